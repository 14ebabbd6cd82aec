"""Which two of n samples make a pair, and that every column follows them."""

import numpy as np
import pytest

from reprise.alignment.objectives import sigmoid
from reprise.alignment.pairs import identical, select_pairs
from reprise.rollout.types import Completions


def make_completions(rewards, ids=None):
    """Completions whose every column tells prompt and sample: value = 10 * prompt + sample."""
    rewards = np.array(rewards, dtype=np.float32)
    count, n = rewards.shape
    label = 10 * np.arange(count)[:, None] + np.arange(n)
    if ids is None:
        ids = [[[5 + int(label[row, column])] for column in range(n)] for row in range(count)]
    return Completions(
        prompt_index=np.arange(count) + 100,
        prompt_ids=[np.array([2, 3 + row], dtype=np.int32) for row in range(count)],
        completion_ids=[[np.array(sample, dtype=np.int32) for sample in row] for row in ids],
        terminated=label % 2 == 0,
        rewards=rewards,
        policy_logprobs=(-1.0 - label).astype(np.float32),
        reference_logprobs=(-1000.0 - label).astype(np.float32),
        label_uniform=(np.arange(count) + 0.5) / count,
    )


def chosen_samples(pairs):
    """(first, second) sample numbers of each pair, read off the log-probabilities."""
    return ((-1 - pairs.policy_logprobs) % 10).astype(int).tolist()


def test_the_first_two_samples():
    pairs = select_pairs(make_completions([[1, 2, 9], [5, 4, -9]]), "first_two")
    assert chosen_samples(pairs) == [[0, 1], [0, 1]]
    assert pairs.rewards.tolist() == [[1, 2], [5, 4]]


@pytest.mark.parametrize(
    ("rewards", "best", "worst"),
    [
        ([3, 1, 4, 0, 2], 2, 3),
        ([9, 1], 0, 1),
        ([1, 9], 1, 0),
        ([5, 5, 1, 1], 0, 3),  # the first of the best
        ([0, 1, 1], 1, 0),
        ([1, 0, 0], 0, 2),
        ([-2, -1, -3], 1, 2),
    ],
)
def test_the_best_against_the_worst(rewards, best, worst):
    pairs = select_pairs(make_completions([rewards]), "best_worst")
    assert chosen_samples(pairs) == [[best, worst]]
    assert pairs.rewards.tolist() == [[max(rewards), min(rewards)]]
    assert pairs.weight.tolist() == [1]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_sample_is_never_paired_with_itself(n):
    rewards = np.random.default_rng(n).integers(0, 3, size=(200, n))
    rewards[0] = 1  # all equal
    pairs = select_pairs(make_completions(rewards), "best_worst")
    samples = np.array(chosen_samples(pairs))
    assert (samples[:, 0] != samples[:, 1]).all()
    assert (pairs.rewards[:, 0] == rewards.max(axis=1)).all()
    assert (pairs.rewards[:, 1] == rewards.min(axis=1)).all()
    assert not identical(pairs.first_ids, pairs.second_ids).any()


@pytest.mark.parametrize("selection", ["first_two", "best_worst"])
def test_every_column_follows_the_pair(selection):
    completions = make_completions(np.random.default_rng(0).normal(size=(6, 4)))
    pairs = select_pairs(completions, selection)
    for row, (first, second) in enumerate(chosen_samples(pairs)):
        for side, (sample, ids) in enumerate(
            ((first, pairs.first_ids), (second, pairs.second_ids))
        ):
            assert ids[row].tolist() == completions.completion_ids[row][sample].tolist()
            for column in ("rewards", "terminated", "policy_logprobs", "reference_logprobs"):
                assert (
                    getattr(pairs, column)[row, side] == getattr(completions, column)[row, sample]
                )
    assert pairs.prompt_index.tolist() == [100, 101, 102, 103, 104, 105]
    assert pairs.label_uniform.tolist() == completions.label_uniform.tolist()
    assert [ids[1] for ids in pairs.prompt_ids] == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("selection", ["first_two", "best_worst"])
def test_ties_and_identical_completions_stay_with_weight_zero(selection):
    ids = [[[7], [8]], [[7], [8]], [[7, 8], [7, 8]], [[7], [7, 8]]]
    pairs = select_pairs(make_completions([[1, 0], [1, 1], [1, 0], [0, 1]], ids), selection)
    assert len(pairs) == 4
    assert pairs.weight.tolist() == [1, 0, 0, 1]


def test_identical_compares_tokens_and_length():
    def arrays(*rows):
        return [np.array(row, dtype=np.int32) for row in rows]

    first = arrays([1, 2], [1, 2], [1, 2], [0])
    second = arrays([1, 2], [2, 1], [1, 2, 0], [0])
    assert identical(first, second).tolist() == [True, False, False, True]


def test_the_sigmoid_at_the_ends():
    x = np.array([-1e4, -np.log(3), 0, np.log(3), 1e4], dtype=np.float32)
    assert sigmoid(x).tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-7)
