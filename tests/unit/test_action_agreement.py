"""Pairwise action agreement: by hand, its standard error, ties, chance and gaps."""

import math

import numpy as np
import pytest

from reprise.rl.action_agreement import (
    action_gaps,
    agreement_random_ties,
    chance_agreement,
    gap_histogram,
    gap_summary,
    greedy_actions,
    jackknife_error,
    pairs,
    pairwise_agreement,
    summarize,
)


def one_hot(actions, count):
    return np.eye(count, dtype=np.float32)[np.asarray(actions)]


def test_agreement_by_hand():
    actions = np.array([[0, 1, 2, 0], [0, 1, 1, 1], [2, 1, 2, 0]])
    expected = {(0, 1): 2 / 4, (0, 2): 3 / 4, (1, 2): 1 / 4}
    matrix = pairwise_agreement(actions)
    for (i, j), value in expected.items():
        assert matrix[i, j] == matrix[j, i] == value
    report = summarize(one_hot(actions, 3), taken=np.array([0, 1, 2, 2]))
    assert report["agreement_mean"] == 0.5 and report["pairs"] == 3 and report["observations"] == 4
    # run 0: 3 of 4 as in the data, run 1: 2, run 2: 2
    assert report["agreement_with_data"] == pytest.approx(7 / 12)
    assert report["agreement_random_ties"] == 0.5 and report["tied_share"] == 0
    assert report["most_common_action_share"] == pytest.approx((2 + 3 + 2) / 12)
    # frequencies: (2,1,1), (1,3,0), (1,1,2) quarters
    chance = ((2 + 3) + (2 + 1 + 2) + (1 + 3)) / 16 / 3
    assert report["agreement_chance"] == pytest.approx(chance)
    assert report["kappa"] == pytest.approx((0.5 - chance) / (1 - chance))


def test_the_error_is_the_jackknife_done_the_long_way():
    actions = np.random.default_rng(0).integers(0, 3, (6, 50))
    matrix = pairwise_agreement(actions)
    left_out = [
        pairs(np.delete(np.delete(matrix, run, 0), run, 1)).mean() for run in range(len(matrix))
    ]
    expected = math.sqrt(5 / 6 * ((left_out - np.mean(left_out)) ** 2).sum())
    assert jackknife_error(matrix) == pytest.approx(expected, rel=1e-12)
    with_others = (matrix.sum(1) - 1) / 5
    naive = with_others.std(ddof=1) / math.sqrt(6)
    assert jackknife_error(matrix) == pytest.approx(naive * 2 * 5 / 4)
    assert summarize(one_hot(actions, 3))["agreement_se_of_run_means"] == pytest.approx(naive)
    assert math.isnan(jackknife_error(matrix[:2, :2]))


def test_the_error_covers_what_other_runs_would_give():
    """Runs that follow a common policy, each to a degree of its own: the spread over experiments
    is the jackknife's error, and more than twice that of the run means."""
    random = np.random.default_rng(1)
    means, errors, naive = [], [], []
    common = random.integers(0, 4, 300)
    for _ in range(300):
        faith = random.uniform(0.2, 0.9, 8)
        follow = random.random((8, 300)) < faith[:, None]
        actions = np.where(follow, common, random.integers(0, 4, (8, 300)))
        report = summarize(one_hot(actions, 4))
        means.append(report["agreement_mean"])
        errors.append(report["agreement_se"])
        naive.append(report["agreement_se_of_run_means"])
    assert 0.85 < np.mean(errors) / np.std(means) < 1.25
    assert np.mean(naive) < 0.5 * np.std(means)


def test_ties_go_to_the_lowest_index_and_are_counted():
    # Two runs, three observations. Both know nothing at the first; one ties at the second.
    q = np.array(
        [
            [[1, 1, 1, 1], [0, 2, 2, 0], [0, 0, 0, 3]],
            [[5, 5, 5, 5], [0, 1, 0, 0], [0, 0, 0, 1]],
        ],
        dtype=np.float32,
    )
    assert greedy_actions(q).tolist() == [[0, 1, 3], [0, 1, 3]]
    report = summarize(q)
    assert report["agreement_mean"] == 1
    assert report["tied_share"] == pytest.approx(3 / 6)
    assert report["tied_share_by_run"] == pytest.approx([2 / 3, 1 / 3])
    # 4 * (1/4)^2, then 1/2, then 1
    assert report["agreement_random_ties"] == pytest.approx((1 / 4 + 1 / 2 + 1) / 3)
    assert report["agreement_without_ties"] == 1
    assert agreement_random_ties(q)[0, 1] == pytest.approx(1.75 / 3)


def test_random_ties_is_what_random_tie_breaking_gives():
    random = np.random.default_rng(2)
    q = random.integers(0, 3, (3, 40, 4)).astype(np.float32)
    total = np.zeros((3, 3))
    for _ in range(3000):
        broken = greedy_actions(q + 1e-3 * random.random(q.shape))
        total += pairwise_agreement(broken)
    assert np.abs(pairs(total / 3000) - pairs(agreement_random_ties(q))).max() < 0.01


def test_policies_that_do_not_look_agree_by_chance_only():
    random = np.random.default_rng(3)
    actions = random.choice(4, (5, 20_000), p=[0.7, 0.1, 0.1, 0.1])
    report = summarize(one_hot(actions, 4))
    assert report["agreement_chance"] == pytest.approx(0.52, abs=0.01)
    assert abs(report["kappa"]) < 0.02
    constant = summarize(one_hot(np.zeros((3, 10), int), 4))
    assert constant["agreement_mean"] == 1 and math.isnan(constant["kappa"])
    assert constant["most_common_action_share"] == 1
    assert chance_agreement(np.array([[0, 0], [1, 1]]), 2)[0, 1] == 0


def test_gaps():
    q = np.array([[[3.0, 1.0, 2.5], [4.0, 4.0, 0.0], [-1.0, -5.0, -2.0]]])
    assert action_gaps(q).tolist() == [[0.5, 0, 1]]
    summary = gap_summary(q)
    assert summary["action_gap_quantiles"]["0.5"] == 0.5
    spread = np.std([3.0, 4.0, -1.0])
    assert summary["relative_action_gap_quantiles"]["0.95"] == pytest.approx(0.95 / spread)
    flat = gap_summary(np.ones((1, 3, 2)))
    assert flat["action_gap_quantiles"]["0.5"] == 0
    assert math.isnan(flat["relative_action_gap_quantiles"]["0.5"])


def test_the_histogram_of_gaps():
    # From 1e-4 to 10 in five bins, one for each power of ten; 0 and 50 at the ends.
    gaps = np.array([0.0, 2e-4, 0.05, 0.5, 0.5, 50.0, np.nan, np.inf])
    shares, edges = gap_histogram(gaps, bins=5)
    assert (shares * 6).tolist() == pytest.approx([2, 0, 1, 2, 1])
    assert edges == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1, 10])


@pytest.mark.parametrize(
    ("q", "told"),
    [
        (np.zeros((1, 3, 2)), "1 run"),
        (np.zeros((2, 0, 2)), "no observations"),
        (np.array([[[0.0, 1.0]], [[np.nan, 0.0]]]), "run 1 are not finite"),
    ],
)
def test_bad_input_is_refused(q, told):
    with pytest.raises(ValueError, match=told):
        summarize(q)
