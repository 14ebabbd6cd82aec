"""LoRA: the reference is the base to the bit, sums leave the base alone, checkpointing trains."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from reprise.alignment import adapters, models, on_policy
from reprise.alignment.config import LoRA, OnPolicy
from reprise.alignment.logprobs import completion_logprobs, pad_completions
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.store import RoundStore

SMALL = LoRA(rank=4, alpha=8)


@pytest.fixture(scope="module", params=["neox_lab", "llama_lab"])
def lab(request):
    return request.getfixturevalue(request.param)


def load(lab):
    return models.load_policy(str(lab.policy), attention="eager").eval()


def frozen(lab):
    """The base as LoRA has it: torch multiplies by a weight that takes a gradient in another shape,
    which an old MKL adds up in another order."""
    return load(lab).requires_grad_(False)


def adapted(lab, trained=True, checkpointing=False, settings=SMALL):
    policy = adapters.attach(load(lab), settings, seed=3, checkpointing=checkpointing)
    if trained:  # B is 0 at first
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=generator)
    return policy


def batch(seed=0):
    generator = np.random.default_rng(seed)
    prompts, completions = (
        [generator.integers(2, 290, size=size, dtype=np.int32) for size in sizes]
        for sizes in ((3, 7, 1), (4, 2, 6))
    )
    return pad_completions(prompts, completions, pad_id=0)


@torch.no_grad()
def logprobs(model, **settings):
    return completion_logprobs(model, **batch(), **settings)[1]


def test_a_fresh_adapter_changes_no_bit(lab):
    assert torch.equal(logprobs(adapted(lab, trained=False)), logprobs(frozen(lab)))


def test_the_reference_is_the_base_to_the_bit_and_shares_its_memory(lab):
    policy, base = adapted(lab), frozen(lab)
    reference = adapters.Reference(policy)
    assert (logprobs(policy) - logprobs(base)).abs().max() > 0.1
    with torch.inference_mode():
        assert torch.equal(logprobs(reference), logprobs(base))
        assert torch.equal(logprobs(reference, chunked=True), logprobs(base, chunked=True))
    assert (logprobs(policy) - logprobs(base)).abs().max() > 0.1, "and the adapter is on again"
    ids = torch.tensor([[5, 6, 7]])
    hidden = base.base_model(input_ids=ids).last_hidden_state
    assert torch.equal(reference.base_model(input_ids=ids).last_hidden_state, hidden)
    addresses = {parameter.data_ptr() for parameter in policy.parameters()}
    assert {parameter.data_ptr() for parameter in reference.parameters()} == addresses
    assert all("lora_" in name for name, p in policy.named_parameters() if p.requires_grad)


def test_merging_gives_the_same_policy_and_leaves_the_base_alone(lab, tmp_path):
    policy, base = adapted(lab), load(lab)
    adapters.save_merged(policy, tmp_path / "final", None)
    adapters.save_plain(policy, tmp_path / "policy")
    adapters.save_plain(adapters.Reference(policy), tmp_path / "reference")
    for name, weight in adapters.plain_state(policy).items():
        assert torch.equal(weight, base.state_dict()[name]), name
    for folder in ("final", "policy"):
        merged = models.load_policy(str(tmp_path / folder), attention="eager").eval()
        torch.testing.assert_close(logprobs(merged), logprobs(policy), atol=1e-4, rtol=0)
        expected = models.weights_sha256(dict(adapters.merged(policy)))
        assert models.weights_sha256(merged.state_dict()) == expected
    again = models.load_policy(str(tmp_path / "reference"), attention="eager")
    assert models.weights_sha256(again.state_dict()) == models.weights_sha256(base.state_dict())


def test_a_base_kept_elsewhere_takes_the_sums_too(lab, tmp_path):
    """As for a quantized base: its codes cannot hold them."""
    policy = adapted(lab)
    ours = dict(adapters.merged_onto(policy, load(lab)))
    expected = dict(adapters.merged(policy))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_the_identity_of_an_untrained_adapter_is_that_of_its_base(lab):
    base = models.weights_sha256(load(lab).state_dict())
    policy = adapted(lab)
    assert adapters.identity(adapted(lab, trained=False)) == base == adapters.identity(load(lab))
    assert adapters.identity(adapters.Reference(policy)) == base != adapters.identity(policy)


def test_the_seed_decides_the_adapter_and_nothing_global_does(lab):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = adapters.adapter_state(adapted(lab, trained=False))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    other = adapters.adapter_state(adapted(lab, trained=False))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    assert any("lora_A" in name and tensor.any() for name, tensor in one.items())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_activation_checkpointing_gives_the_same_gradients(lab, reentrant):
    found = []
    for checkpointing in (False, True):
        policy = adapted(lab, checkpointing=checkpointing)
        if checkpointing:
            policy.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
        policy.train()
        total, _ = completion_logprobs(policy, **batch(), chunked=True)
        total.sum().backward()
        grads = {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}
        assert all(gradient is not None for gradient in grads.values())
        found.append(grads)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)
    assert sum(gradient.abs().sum() for gradient in found[0].values()) > 0.1


def test_names_that_the_model_does_not_have_are_refused_with_those_it_has(neox_lab):
    with pytest.raises(ValueError, match=r"target_modules=.*q_proj.*query_key_value"):
        adapted(neox_lab, settings=LoRA(target_modules=["q_proj"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may be able to")
def test_a_quantized_base_is_refused_where_it_cannot_run(neox_lab, tmp_path):
    with pytest.raises(ValueError, match=r"lora\.quantization .*CUDA GPU.*plain LoRA"):
        run(neox_lab, tmp_path, lora={"quantization": {"bits": 4}})


def test_adapter_dropout_cannot_be_asked_for():
    with pytest.raises(ValidationError, match="dropout"):
        LoRA.model_validate({"dropout": 0.1})


# -- whole runs ------------------------------------------------------------------------------------


def run(lab, path, **changes):
    config = TypeAdapter(OnPolicy).validate_python(lab.config(**{"rounds": 1, **changes}))
    run_dir = RunDir(path, experiment=config.experiment, seed=config.seed)
    return on_policy.run(config, run_dir), run_dir


def test_a_run_leaves_the_sum_and_the_adapter(lab, tmp_path):
    result, run_dir = run(lab, tmp_path, lora={"rank": 4}, logits="chunked")
    final = models.load_policy(str(tmp_path), attention="eager")
    assert models.weights_sha256(final.state_dict()) == result["weights_sha256"]
    policy = adapted(lab, trained=False)
    models.load_weights_strictly(policy, run_dir.checkpoints / "adapter")
    state = adapters.adapter_state(policy)
    assert models.weights_sha256(state) == result["adapter_sha256"]
    assert any(tensor.any() for name, tensor in state.items() if "lora_B" in name), "it trained"
    base = models.weights_sha256(load(lab).state_dict())
    assert RoundStore(run_dir.rounds).manifest(0)["policy"] == base != result["weights_sha256"]
    folder = run_dir.checkpoints / "round-00001"
    assert not list(folder.glob("model*")), "the base is not saved again each round"
    padding = [r["update/padding_share"] for r in run_dir.metrics() if "update_seconds" in r]
    assert len(padding) == 1 and 0 <= padding[0] < 1


def test_reference_and_policy_columns_are_those_of_two_separate_models(neox_lab, tmp_path):
    """pi_k of round 1 from its saved adapter, merged; pi_0 from the base itself."""
    _, run_dir = run(
        neox_lab, tmp_path, rounds=2, lora={"rank": 4, "alpha": 8}, train__learning_rate=0.05
    )
    data = RoundStore(run_dir.rounds).read(1).data
    policy = adapted(neox_lab, trained=False)
    models.load_weights_strictly(policy, run_dir.checkpoints / "round-00001")
    prompts = [prompt for prompt in data.prompt_ids for _ in range(2)]
    flat = [ids for samples in data.completion_ids for ids in samples]
    padded = pad_completions(prompts, flat, pad_id=0)
    with torch.no_grad():
        ours, base = (completion_logprobs(m, **padded)[0] for m in (policy, load(neox_lab)))
    np.testing.assert_allclose(data.policy_logprobs.ravel(), ours, atol=1e-4)
    np.testing.assert_allclose(data.reference_logprobs.ravel(), base, atol=1e-4)
    assert np.abs(data.policy_logprobs - data.reference_logprobs).max() > 1e-2
