"""Generation against an oracle that recomputes everything, and its promises of independence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
)
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from reprise.rollout.generate import filtered, generate, sample_tokens, sampling_model
from reprise.rollout.randomness import Streams
from reprise.rollout.requests import Generated
from reprise.rollout.run.settings import Sampling

VOCABULARY = 40
EOS = 3
LENGTHS = [5, 1, 9, 5, 3, 14, 2]
ARCHITECTURES = ["gpt_neox", "llama", "gpt2", "gemma3"]


def tiny(architecture: str, **changes) -> torch.nn.Module:
    """A random model of two layers, with weights large enough that its tokens vary."""
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, **changes}
    body = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    config = {
        "gpt_neox": lambda: GPTNeoXConfig(**common, **body, hidden_dropout=0.3),
        "llama": lambda: LlamaConfig(**common, **body, num_key_value_heads=1),
        "gpt2": lambda: GPT2Config(**common, n_embd=32, n_layer=2, n_head=2),
        # A window shorter than prompts and completions, so that the sliding cache slides.
        "gemma3": lambda: Gemma3TextConfig(
            **common,
            **body,
            head_dim=16,
            num_key_value_heads=1,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
        ),
    }[architecture]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def some_prompts() -> list[np.ndarray]:
    draws = np.random.default_rng(4)
    return [draws.integers(4, VOCABULARY, size=length) for length in LENGTHS]


def oracle(model, prompts, sampling: Sampling, seed: int, eos: set[int]) -> Generated:
    """No cache, no batch, no padding: the whole sequence again for each token, in float64."""
    all_ids, ends = [], np.zeros((len(prompts), sampling.samples_per_prompt), dtype=bool)
    for row, prompt in enumerate(prompts):
        shape = (sampling.samples_per_prompt, sampling.max_new_tokens)
        uniforms = Streams(seed).data("tokens", 2, row).random(shape)
        all_ids.append([])
        for sample in range(sampling.samples_per_prompt):
            ids: list[int] = []
            for step in range(sampling.max_new_tokens):
                sequence = torch.tensor([[*prompt.tolist(), *ids]])
                with torch.no_grad():
                    logits = model(sequence).logits[0, -1].double().numpy()
                ids.append(invert(logits, uniforms[sample, step], sampling))
                if ids[-1] in eos:
                    ends[row, sample] = True
                    break
            all_ids[-1].append(np.array(ids, dtype=np.int32))
    return Generated(all_ids, ends)


def invert(logits: np.ndarray, uniform: float, sampling: Sampling) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits[logits < np.sort(logits)[-sampling.top_k]] = -np.inf
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    descending = np.argsort(-probabilities)
    before = np.cumsum(probabilities[descending]) - probabilities[descending]
    probabilities[descending[before >= sampling.top_p]] = 0
    cumulative = np.cumsum(probabilities)
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


def same(one: Generated, other: Generated) -> bool:
    return np.array_equal(one.terminated, other.terminated) and all(
        np.array_equal(a, b)
        for first, second in zip(one.completion_ids, other.completion_ids, strict=True)
        for a, b in zip(first, second, strict=True)
    )


@contextmanager
def forwards(model) -> Iterator[list[tuple[int, int]]]:
    """Batch size and length of the token ids in each call of the model."""
    shapes: list[tuple[int, int]] = []

    def note(module, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    yield shapes
    hook.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "filters",
    [{}, {"temperature": 0.7, "top_k": 7}, {"temperature": 1.3, "top_p": 0.8}, {"temperature": 0}],
    ids=["plain", "top_k", "top_p", "greedy"],
)
def test_equals_recomputing_everything(architecture, filters):
    model, prompts = tiny(architecture), some_prompts()
    sampling = Sampling(samples_per_prompt=3, max_new_tokens=12, batch_size=9, **filters)
    eos = {EOS, 7, 11, 19}
    got = generate(model, prompts, sampling, Streams(5), round_index=2, eos_ids=sorted(eos))
    wanted = oracle(model, prompts, sampling, 5, eos)
    assert same(got, wanted)
    assert all(ids.dtype == np.int32 for samples in got.completion_ids for ids in samples)
    # The comparison covers both ends of a completion: by EOS and by the limit.
    assert architecture == "gemma3" or filters.get("temperature") == 0 or got.terminated.any()
    assert any(len(ids) == 12 for samples in got.completion_ids for ids in samples)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8, 100])
def test_does_not_depend_on_batch_size(batch_size):
    model, prompts = tiny("gpt_neox"), some_prompts()
    sampling = Sampling(samples_per_prompt=4, max_new_tokens=10, batch_size=12)
    wanted = generate(model, prompts, sampling, Streams(1), round_index=0, eos_ids=EOS)
    other = sampling.model_copy(update={"batch_size": batch_size})
    assert same(generate(model, prompts, other, Streams(1), round_index=0, eos_ids=EOS), wanted)


def test_does_not_depend_on_order_or_company():
    model, prompts = tiny("llama"), some_prompts()
    sampling = Sampling(samples_per_prompt=2, max_new_tokens=10, batch_size=6)
    wanted = generate(model, prompts, sampling, Streams(1), round_index=3, eos_ids=EOS)
    order = np.random.default_rng(0).permutation(len(prompts))[:4]
    got = generate(
        model,
        [prompts[row] for row in order],
        sampling,
        Streams(1),
        round_index=3,
        eos_ids=EOS,
        prompt_index=order,
    )
    picked = Generated([wanted.completion_ids[row] for row in order], wanted.terminated[order])
    assert same(got, picked)


def test_equal_prompts_draw_apart():
    model, prompt = tiny("gpt_neox"), some_prompts()[0]
    sampling = Sampling(samples_per_prompt=2, max_new_tokens=16)

    def texts(streams, **more):
        drawn = generate(model, [prompt, prompt], sampling, streams, eos_ids=[], **more)
        return {tuple(ids) for samples in drawn.completion_ids for ids in samples}

    first = texts(Streams(1), round_index=0)
    assert len(first) == 4, "samples of a prompt, and equal prompts, have streams of their own"
    assert not first & texts(Streams(1), round_index=1)
    assert not first & texts(Streams(2), round_index=0)
    assert not first & texts(Streams(1), round_index=0, stream="evaluation")
    assert first == texts(Streams(1), round_index=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_transformers(architecture):
    model, prompts = tiny(architecture), some_prompts()
    sampling = Sampling(samples_per_prompt=1, max_new_tokens=12, temperature=0, batch_size=4)
    got = generate(model, prompts, sampling, Streams(0), round_index=0, eos_ids=[EOS, 7])
    for prompt, samples in zip(prompts, got.completion_ids, strict=True):
        ids = torch.tensor(prompt)[None]
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=[EOS, 7],
            pad_token_id=0,
        )
        assert samples[0].tolist() == wanted[0, len(prompt) :].tolist()


def test_one_step_follows_the_softmax():
    model, prompt = tiny("gpt_neox"), some_prompts()[0]
    samples = 20_000
    sampling = Sampling(samples_per_prompt=samples, max_new_tokens=1, batch_size=5_000)
    got = generate(model, [prompt], sampling, Streams(0), round_index=0, eos_ids=EOS)
    counts = np.bincount(np.concatenate(got.completion_ids[0]), minlength=VOCABULARY)
    with torch.no_grad():
        logits = model(torch.tensor(prompt)[None]).logits[0, -1]
    expected = samples * logits.double().softmax(-1).numpy()
    likely = expected > 5
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert likely.sum() > 10
    assert statistic < chi2.ppf(0.999, likely.sum() - 1)


@pytest.mark.parametrize("top_k", [0, 1, 5, VOCABULARY, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.3, 1e-6])
def test_filters_equal_those_of_transformers(top_k, top_p):
    logits = 3 * torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(0))
    wanted = logits
    if top_k:
        wanted = TopKLogitsWarper(top_k)(None, wanted)
    if top_p < 1:
        wanted = TopPLogitsWarper(top_p)(None, wanted)
    assert torch.equal(filtered(logits, Sampling(top_k=top_k, top_p=top_p)), wanted)


@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_a_token_of_probability_zero_is_never_drawn(uniform):
    logits = torch.full((3, 1000), -torch.inf)
    logits[0, 0], logits[1, 999], logits[2, [400, 600]] = 1.0, -5.0, 0.0
    drawn = sample_tokens(logits, torch.full((3,), uniform, dtype=torch.float64), Sampling())
    assert drawn.tolist() == [0, 999, 400 if uniform < 0.5 else 600]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_diverged_model_is_refused(temperature, value):
    model = tiny("gpt_neox")
    with torch.no_grad():
        model.lm_head.weight[5] = value
    sampling = Sampling(max_new_tokens=2, temperature=temperature)
    with pytest.raises(ValueError, match=r"logits are NaN or infinite.*learning rate"):
        generate(model, [[4, 5]], sampling, Streams(0), round_index=0, eos_ids=EOS)


def test_a_prompt_is_run_once_and_finished_rows_leave():
    model, prompts = tiny("gpt_neox"), some_prompts()
    sampling = Sampling(samples_per_prompt=8, max_new_tokens=30, batch_size=64)
    eos = list(range(12))
    with forwards(model) as shapes:
        got = generate(model, prompts, sampling, Streams(0), round_index=2, eos_ids=eos)
    (first, *steps), rows = shapes, len(prompts) * 8
    assert first == (len(prompts), max(LENGTHS))
    assert all(length == 1 for _, length in steps)
    longest = max(len(ids) for samples in got.completion_ids for ids in samples)
    assert got.terminated.all() and len(steps) == longest - 1 < 29, "stops when all have ended"
    alive = [
        sum(len(ids) > step for samples in got.completion_ids for ids in samples)
        for step in range(1, longest)
    ]
    batches = [batch for batch, _ in steps]
    assert batches[0] <= rows and all(
        a <= b <= a / 0.75 + 1 for a, b in zip(alive, batches, strict=True)
    )
    assert same(got, oracle(model, prompts, sampling, 0, set(eos)))


def test_prompts_of_like_length_share_a_batch_the_longest_first():
    model = tiny("gpt_neox")
    sampling = Sampling(samples_per_prompt=2, max_new_tokens=1, batch_size=4)
    with forwards(model) as shapes:
        generate(model, some_prompts(), sampling, Streams(0), round_index=0, eos_ids=EOS)
    assert shapes == [(2, 14), (2, 5), (2, 3), (1, 1)]


def test_only_the_last_logits_of_a_prompt_are_computed():
    model, shapes = tiny("llama"), []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    sampling = Sampling(samples_per_prompt=2, max_new_tokens=4)
    generate(model, some_prompts(), sampling, Streams(0), round_index=0, eos_ids=EOS)
    hook.remove()
    assert shapes and all(shape[1] == 1 for shape in shapes)


def test_leaves_the_model_and_global_randomness_as_they_were():
    model = tiny("gpt_neox").train()
    model.gpt_neox.layers[0].eval()
    modes = [module.training for module in model.modules()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    sampling = Sampling(samples_per_prompt=2, max_new_tokens=8)
    got = generate(model, some_prompts(), sampling, Streams(0), round_index=0, eos_ids=EOS)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    wanted = generate(model.eval(), some_prompts(), sampling, Streams(0), round_index=0, eos_ids=3)
    assert same(got, wanted), "no dropout while sampling"


def test_modes_are_restored_after_an_error():
    model = tiny("gpt_neox").train()

    def stop(done: int) -> None:
        raise RuntimeError("stop")

    sampling = Sampling(max_new_tokens=2)
    with pytest.raises(RuntimeError, match="stop"):
        generate(model, [[4]], sampling, Streams(0), round_index=0, eos_ids=EOS, on_batch=stop)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_in_bfloat16_uses_a_copy(architecture):
    model = tiny(architecture)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sampling = Sampling(samples_per_prompt=2, max_new_tokens=8, dtype="bfloat16")
    with sampling_model(model, sampling.dtype) as sampler:
        assert sampler is not model
        assert {parameter.dtype for parameter in sampler.parameters()} == {torch.bfloat16}
        assert len(list(sampler.parameters())) == len(list(model.parameters())), "ties are kept"
        got = generate(sampler, some_prompts(), sampling, Streams(0), round_index=0, eos_ids=EOS)
    assert all(len(ids) for samples in got.completion_ids for ids in samples)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for dtype in ("auto", "float32"):
        with sampling_model(model, dtype) as sampler:
            assert sampler is model


def test_reports_what_is_done():
    done: list[int] = []
    sampling = Sampling(samples_per_prompt=3, max_new_tokens=2, batch_size=6)
    generate(
        tiny("gpt2"),
        some_prompts(),
        sampling,
        Streams(0),
        round_index=0,
        eos_ids=EOS,
        on_batch=done.append,
    )
    assert done == [6, 6, 6, 3]


def test_no_prompts_give_no_completions():
    got = generate(tiny("gpt2"), [], Sampling(), Streams(0), round_index=0, eos_ids=EOS)
    assert got.completion_ids == [] and got.terminated.shape == (0, 2)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[4, 5], []], r"prompt 1: is empty"),
        ([[4], [4] * 17], r"prompt 1: has 17 tokens, sampling.max_prompt_tokens is 16; raise"),
        ([[4, 40]], r"prompt 0: token ids span 4 to 40, the model has 0 to 39"),
        ([[-1]], r"prompt 0: token ids span -1 to -1"),
    ],
)
def test_bad_prompts_are_refused(prompts, message):
    sampling = Sampling(max_prompt_tokens=16, max_new_tokens=4)
    with pytest.raises(ValueError, match=message):
        generate(tiny("gpt2"), prompts, sampling, Streams(0), round_index=0, eos_ids=EOS)


def test_more_than_the_models_positions_is_refused():
    sampling = Sampling(max_new_tokens=60)
    with pytest.raises(ValueError, match=r"prompt 0: its 5 tokens and .* = 60 exceed .* 64"):
        generate(tiny("gpt2"), [[4] * 5], sampling, Streams(0), round_index=0, eos_ids=EOS)
    got = generate(tiny("gpt2"), [[4] * 4], sampling, Streams(0), round_index=0, eos_ids=[])
    assert all(len(ids) == 60 for ids in got.completion_ids[0])
