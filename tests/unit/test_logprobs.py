"""Log-probabilities of padded batches against one plain forward pass for each sequence."""

import numpy as np
import pytest
import torch

from reprise.alignment import models
from reprise.alignment.logprobs import completion_logprobs, pad_completions, score_completions

# (prompt length, completion length), one-token ones and equal ones among them.
LENGTHS = [(1, 1), (7, 2), (3, 9), (12, 1), (1, 6), (3, 3), (3, 3), (5, 4), (2, 12), (10, 5)]


@pytest.fixture(scope="module", params=["neox_lab", "llama_lab"])
def policy(request):
    lab = request.getfixturevalue(request.param)
    return models.load_policy(str(lab.policy), attention="eager").eval()


@pytest.fixture(scope="module")
def sequences():
    generator = np.random.default_rng(0)
    prompts, completions = (
        [generator.integers(2, 290, size=row[side], dtype=np.int32) for row in LENGTHS]
        for side in (0, 1)
    )
    for row in (1, 4, 8):
        completions[row][-1] = 1  # EOS
    return prompts, completions


def oracle(model, prompt, completion):
    """ln pi(a_t | x, a_<t) of each token: one unpadded sequence through the whole model."""
    ids = torch.from_numpy(np.concatenate([prompt, completion])).long()
    logs = torch.log_softmax(model(ids[None]).logits[0].double(), dim=-1)
    places = torch.arange(len(prompt), len(ids))
    return logs[places - 1, ids[places]]


def test_padding_by_hand():
    batch = pad_completions(
        [np.array([5], np.int32), np.array([6, 7, 8], np.int32)],
        [np.array([9, 1], np.int32), np.array([4], np.int32)],
        pad_id=0,
    )
    assert batch["prompt_ids"].tolist() == [[0, 0, 5], [6, 7, 8]]
    assert batch["prompt_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch["completion_ids"].tolist() == [[9, 1], [4, 0]]
    assert batch["completion_mask"].tolist() == [[1, 1], [1, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_equal_to_one_unpadded_pass_for_each_sequence(policy, sequences):
    batch = pad_completions(*sequences, pad_id=0)
    with torch.no_grad():
        total, tokens = completion_logprobs(policy, **batch)
        for row, (prompt, completion) in enumerate(zip(*sequences, strict=True)):
            expected = oracle(policy, prompt, completion)
            size = len(completion)
            torch.testing.assert_close(tokens[row, :size].double(), expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(total[row].double(), expected.sum(), atol=2e-5, rtol=0)
            assert (tokens[row, size:] == 0).all()
    assert total.dtype == tokens.dtype == torch.float32
    # Guard against a model that says the same everywhere: the sequences do differ.
    assert total.std() > 1


def test_gradients_too(policy, sequences):
    coefficients = torch.linspace(-1, 1, len(LENGTHS))
    total, _ = completion_logprobs(policy, **pad_completions(*sequences, pad_id=0))
    (coefficients * total).sum().backward()
    batched = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    for weight, prompt, completion in zip(coefficients, *sequences, strict=True):
        (weight * oracle(policy, prompt, completion).sum()).backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(batched[name], parameter.grad, atol=1e-4, rtol=1e-4)
    assert sum(gradient.abs().sum() for gradient in batched.values()) > 1
    policy.zero_grad()


def test_independent_of_padding(policy, sequences):
    batch = pad_completions(*sequences, pad_id=0)
    other = pad_completions(*sequences, pad_id=17)
    pad = torch.nn.functional.pad
    wider = {
        "prompt_ids": pad(batch["prompt_ids"], (6, 0), value=3),
        "prompt_mask": pad(batch["prompt_mask"], (6, 0)),
        "completion_ids": pad(batch["completion_ids"], (0, 5), value=3),
        "completion_mask": pad(batch["completion_mask"], (0, 5)),
    }
    with torch.no_grad():
        total, tokens = completion_logprobs(policy, **batch)
        for changed in (other, wider):
            same, same_tokens = completion_logprobs(policy, **changed)
            torch.testing.assert_close(same, total, atol=1e-5, rtol=0)
            kept = same_tokens[:, : tokens.shape[1]]
            torch.testing.assert_close(kept, tokens, atol=1e-5, rtol=0)
            assert (same_tokens[:, tokens.shape[1] :] == 0).all()


def test_eos_counts(policy, sequences):
    prompt, completion = sequences[0][4], sequences[1][4]
    with torch.no_grad():
        logs = oracle(policy, prompt, completion)
    with_eos, without = score_completions(
        policy, [prompt, prompt], [completion, completion[:-1]], pad_id=0, batch_size=2
    )
    assert completion[-1] == 1 and logs[-1] < -0.1
    assert with_eos - without == pytest.approx(logs[-1].item(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_many_sequences_come_back_in_order(policy, sequences, batch_size):
    scores = score_completions(policy, *sequences, pad_id=0, batch_size=batch_size)
    with torch.no_grad():
        pairs = zip(*sequences, strict=True)
        expected = [oracle(policy, prompt, completion).sum().item() for prompt, completion in pairs]
    assert scores.dtype == np.float32 and scores.shape == (len(LENGTHS),)
    np.testing.assert_allclose(scores, expected, atol=2e-5)


def test_bfloat16_autocast_is_near_and_comes_back_as_float32(policy, sequences):
    exact = score_completions(policy, *sequences, pad_id=0, batch_size=4)
    rounded = score_completions(policy, *sequences, pad_id=0, batch_size=4, autocast=True)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.5
