"""Log-probabilities without logits: the same numbers and gradients; and padding, counted."""

import gc
import itertools

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from reprise.alignment import chunked, models
from reprise.alignment.logprobs import (
    completion_logprobs,
    pad_completions,
    padding_share,
    score_completions,
)
from reprise.alignment.training.update import bucketed, padding_of
from reprise.rollout.types import Pairs

LENGTHS = [(1, 1), (7, 2), (3, 9), (12, 1), (1, 6), (3, 3), (5, 4), (2, 12)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles that divide neither the tokens nor the vocabulary."""
    monkeypatch.setattr(chunked, "TOKENS", 7)
    monkeypatch.setattr(chunked, "VOCABULARY", 64)


@pytest.fixture(scope="module")
def sequences():
    generator = np.random.default_rng(0)
    return tuple(
        [generator.integers(2, 290, size=row[side], dtype=np.int32) for row in LENGTHS]
        for side in (0, 1)
    )


@pytest.mark.parametrize("bias", [False, True])
def test_tiles_against_log_softmax_in_float64(bias):
    generator = torch.Generator().manual_seed(1)
    hidden = (3 * torch.randn(45, 16, generator=generator)).double().requires_grad_()
    weight = torch.randn(301, 16, generator=generator).double().requires_grad_()
    offset = torch.randn(301, generator=generator).double().requires_grad_() if bias else None
    tokens = torch.randint(0, 301, (45,), generator=generator)
    coefficients = torch.randn(45, generator=generator)
    leaves = [tensor for tensor in (hidden, weight, offset) if tensor is not None]

    logits = hidden @ weight.T + (0 if offset is None else offset)
    expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    gradients = torch.autograd.grad((coefficients * expected).sum(), leaves)

    values = chunked.token_logprobs(hidden, weight, offset, tokens)
    ours = torch.autograd.grad((coefficients * values).sum(), leaves)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, atol=2e-6, rtol=2e-7)
    for one, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert gradients[1].abs().max() > 0.1


def test_a_word_without_probability_leaves_no_nan():
    hidden = torch.tensor([[200.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = chunked.token_logprobs(hidden, weight, None, torch.tensor([1]))
    value.sum().backward()
    assert value.item() == pytest.approx(-400, abs=1e-3)
    assert torch.isfinite(hidden.grad).all() and hidden.grad[0, 0].item() == pytest.approx(-2)


@pytest.mark.parametrize("lab", ["neox_lab", "llama_lab"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_whole_model_gives_the_same_logprobs_and_gradients(request, sequences, lab, autocast):
    """At most 1e-5 nats a token in float32, and what bfloat16 rounds in bfloat16."""
    policy = models.load_policy(str(request.getfixturevalue(lab).policy), attention="eager")
    batch = pad_completions(*sequences, pad_id=0)
    coefficients = torch.linspace(-1, 1, len(LENGTHS))
    found = []
    for in_chunks in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total, tokens = completion_logprobs(policy, **batch, chunked=in_chunks)
        (coefficients * total).sum().backward()
        grads = {name: p.grad.clone() for name, p in policy.named_parameters()}
        policy.zero_grad()
        found.append((total.detach(), tokens.detach(), grads))
    (plain_total, plain, plain_grads), (ours_total, ours, grads) = found
    atol = 3e-2 if autocast else 1e-5
    torch.testing.assert_close(ours, plain, atol=atol, rtol=0)
    torch.testing.assert_close(ours_total, plain_total, atol=10 * atol, rtol=0)
    assert ours.dtype == torch.float32 and (ours[batch["completion_mask"] == 0] == 0).all()
    for name, expected in plain_grads.items():
        scale = expected.abs().max().item()
        tolerance = {"atol": (5e-2 if autocast else 1e-5) * max(scale, 1e-2), "rtol": 0}
        torch.testing.assert_close(grads[name], expected, **tolerance)


def test_the_head_is_put_back_and_generation_sees_logits(neox_lab, sequences):
    policy = models.load_policy(str(neox_lab.policy)).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = policy(ids).logits
    chunk = score_completions(policy, *sequences, pad_id=0, batch_size=3, chunked=True)
    plain = score_completions(policy, *sequences, pad_id=0, batch_size=3)
    np.testing.assert_allclose(chunk, plain, atol=1e-4)
    assert torch.equal(policy(ids).logits, before)
    batch = pad_completions(*sequences, pad_id=0)
    batch["completion_ids"] = batch["completion_ids"] + 10**6  # not in the vocabulary
    with pytest.raises((RuntimeError, IndexError)):
        completion_logprobs(policy, **batch)
    assert torch.equal(policy(ids).logits, before)


def test_a_frozen_head_costs_no_gradient_of_its_own(neox_lab, sequences):
    policy = models.load_policy(str(neox_lab.policy))
    policy.get_output_embeddings().weight.requires_grad_(False)
    total, _ = completion_logprobs(policy, **pad_completions(*sequences, pad_id=0), chunked=True)
    total.sum().backward()
    assert policy.get_output_embeddings().weight.grad is None
    assert policy.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_model_that_changes_its_logits_afterwards_is_refused(sequences):
    config = AutoConfig.for_model(
        "gemma2",
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    batch = pad_completions(*sequences, pad_id=0)
    with pytest.raises(ValueError, match=r"gemma2: final_logit_softcapping .*logits=full"):
        completion_logprobs(model, **batch, chunked=True)


def test_logits_of_the_whole_batch_never_exist():
    """Autograd saves no tensor with a vocabulary in it but the weight itself."""
    tokens, width, vocabulary = 128, 8, 3000
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    gc.collect()
    sizes = []

    def kept(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        chunked.token_logprobs(hidden, weight, None, torch.arange(tokens)).sum().backward()
    assert max(sizes) == vocabulary * width and len(sizes) >= 4


# -- padding ---------------------------------------------------------------------------------------


def test_padding_share_by_hand():
    prompts = [np.zeros(n, np.int32) for n in (1, 3, 2)]
    completions = [np.zeros(n, np.int32) for n in (4, 1, 2)]
    # Together: 3 x (3 + 4) tokens for 13; apart: nothing is wasted.
    assert padding_share(prompts, completions, [np.arange(3)]) == pytest.approx(1 - 13 / 21)
    assert padding_share(prompts, completions, [np.array([row]) for row in range(3)]) == 0


def make_pairs(count=32):
    generator = np.random.default_rng(3)

    def draw(most):
        sizes = generator.integers(1, most, count)
        return [np.ones(size, np.int32) for size in sizes]

    flat = np.zeros((count, 2), np.float32)
    return Pairs(
        prompt_index=np.arange(count),
        prompt_ids=draw(30),
        first_ids=draw(40),
        second_ids=draw(40),
        terminated=flat > 0,
        rewards=flat,
        policy_logprobs=flat,
        reference_logprobs=flat,
        label_uniform=np.zeros(count),
        weight=np.ones(count, np.float32),
    )


def test_bucketing_keeps_every_step_and_wastes_less():
    pairs = make_pairs()
    order = np.random.default_rng(4).permutation(32)
    sorted_order = bucketed(order, pairs, batch_size=16)
    for step in (slice(0, 16), slice(16, 32)):
        assert set(sorted_order[step]) == set(order[step])
    before, after = (padding_of(rows, pairs, micro_batch=4) for rows in (order, sorted_order))
    assert 0 < after < before - 0.05
    lengths = [
        len(pairs.prompt_ids[r]) + max(len(pairs.first_ids[r]), len(pairs.second_ids[r]))
        for r in sorted_order[:16]
    ]
    assert all(one >= other for one, other in itertools.pairwise(lengths))
