"""Bootstrap intervals and the interquartile mean."""

import itertools
import math

import numpy as np
import pytest

from rollout.intervals import bootstrap, interquartile_mean, student


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
