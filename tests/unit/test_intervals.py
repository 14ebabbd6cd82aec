"""Student's intervals, the jackknife, shares, the bootstrap and the interquartile mean."""

import itertools
import math

import numpy as np
import pytest

from reprise.rollout.run.intervals import (
    bootstrap,
    interquartile_mean,
    jackknife,
    mean_of,
    stratified_student,
    student,
    student_half,
    student_share,
    welch_degrees,
)

pytestmark = pytest.mark.portable


def test_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, -50.0])) == 1.5
    # Six values: 1.5 are cut on each side, so the second and the fifth count half.
    values = np.array([-9.0, 1.0, 2.0, 3.0, 4.0, 99.0])
    assert interquartile_mean(values) == pytest.approx((0.5 * 1 + 2 + 3 + 0.5 * 4) / 3)
    assert interquartile_mean(np.array([4.0])) == 4.0


def test_bootstrap_covers_the_exact_distribution_of_three_values():
    values = [1.0, 2.0, 6.0]
    means = sorted(np.mean(draw) for draw in itertools.product(values, repeat=3))
    low, high = bootstrap([values])
    # 27 equally likely samples; 2.5% lies within the lowest one of them (1/27 = 3.7%).
    assert low == pytest.approx(means[0]) and high == pytest.approx(means[-1])


def test_bootstrap_resamples_within_strata():
    # One value in each task cannot vary; mixed up, the mean would.
    low, high = bootstrap([[0.0, 0.0], [10.0, 10.0]])
    assert low == high == 5.0
    low, high = bootstrap([[0.0, 0.0, 10.0, 10.0]])
    assert low < 5.0 < high


def test_bootstrap_is_the_same_every_time_and_unknown_for_one_value():
    values = [[0.3, 0.1, 0.7, 0.2, 0.9]]
    assert bootstrap(values, interquartile_mean) == bootstrap(values, interquartile_mean)
    assert all(map(math.isnan, bootstrap([[1.0]])))
    assert all(map(math.isnan, bootstrap([[1.0, math.nan]])))


def test_student_by_hand():
    mean, half = student([1.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(12.706 * 1.0, rel=1e-4)


def test_means_are_rounded_once_whatever_the_order():
    values = [0.1] * 10 + [1e16, -1e16]
    assert mean_of(values) == mean_of(values[::-1]) == 1.0 / 12
    assert math.isnan(mean_of([])) and mean_of([1.0, math.inf]) == math.inf


def test_the_quantile_follows_the_degrees_of_freedom():
    assert student_half(2.0, 2) == pytest.approx(2 * 4.30265, rel=1e-5)
    assert student_half(2.0, 5) == pytest.approx(2 * 2.57058, rel=1e-5)
    assert student_half(2.0, math.inf) == pytest.approx(2 * 1.95996, rel=1e-5)


def test_welch_degrees_by_hand():
    # Equal errors with 2 and 4 degrees: (1 + 1)^2 / (1/2 + 1/4) = 16/3.
    assert welch_degrees([1.0, 1.0], [2, 4]) == pytest.approx(16 / 3)
    assert welch_degrees([3.0, 0.0], [7, 2]) == pytest.approx(7)  # a constant adds nothing
    # A known error adds certainty: (1 + 4)^2 / (1/3) = 75.
    assert welch_degrees([1.0, 2.0], [3, math.inf]) == pytest.approx(75)
    assert welch_degrees([0.0, 0.0], [3, 3]) == welch_degrees([1.0], [math.inf]) == math.inf


def test_within_fixed_strata_only_what_varies_there_counts():
    # Variances 2 and 8, two values each: s^2 = (2/4)^2 (2/2 + 8/2) = 5/4, and
    # nu = (1/4 + 1)^2 / ((1/4)^2 + 1^2) = 25/17.
    mean, half, degrees = stratified_student([[0.0, 2.0], [100.0, 104.0]])
    assert mean == 51.5 and degrees == pytest.approx(25 / 17)
    assert half == pytest.approx(student_half(math.sqrt(5 / 4), 25 / 17))
    assert stratified_student([[1.0, 3.0]])[:2] == student([1.0, 3.0])
    assert math.isnan(stratified_student([[1.0], [2.0, 3.0]])[1])


def test_jackknife_of_a_mean_is_students_interval():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    without = [np.delete(values, place).mean() for place in range(4)]
    assert jackknife(without) == pytest.approx(student(values))
    assert math.isnan(jackknife([1.0])[1])


def test_jackknife_of_a_mean_over_pairs_sees_that_pairs_share_runs():
    # Of four runs, three agree: 3 of 6 pairs. Without the odd one 1, without another 1/3:
    # s^2 = 3/4 (3 (1/6)^2 + (1/2)^2) = 1/4; six independent pairs would give 1/20.
    estimate, half = jackknife([1 / 3, 1 / 3, 1.0, 1 / 3])
    assert estimate == pytest.approx(0.5) and half == pytest.approx(3.18245 * 0.5, rel=1e-5)


def test_shares_that_are_all_one_have_an_interval_of_some_width():
    # .025 = mu^20: the largest mean that twenty shares of one refuse.
    assert student_share([1.0] * 20) == (1.0, pytest.approx(0.8316, abs=1e-4), 1.0)
    assert student_share([0.0] * 20) == (0.0, 0.0, pytest.approx(0.1684, abs=1e-4))
    assert student_share([1.0]) == (1.0, pytest.approx(0.025), 1.0)
    mean, low, high = student_share([0.9, 1.0, 1.0])
    assert high == 1.0 and low == pytest.approx(mean - student([0.9, 1.0, 1.0])[1])
    assert math.isnan(student_share([0.5])[1])


def test_students_interval_of_three_covers_and_the_others_do_not():
    draw = np.random.Generator(np.random.Philox(0))
    samples = draw.normal(size=(1500, 3))
    covered = {"student": 0, "normal": 0, "bootstrap": 0}
    for sample in samples:
        mean, half = student(sample)
        covered["student"] += abs(mean) <= half
        covered["normal"] += abs(mean) <= 1.96 * sample.std(ddof=1) / math.sqrt(3)
    for sample in samples[:300]:
        low, high = bootstrap([sample])
        covered["bootstrap"] += low <= 0 <= high
    assert 0.935 < covered["student"] / 1500 < 0.965
    assert 0.78 < covered["normal"] / 1500 < 0.84
    assert 0.66 < covered["bootstrap"] / 300 < 0.82
