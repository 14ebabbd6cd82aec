"""Draws are the same for probabilities that differ in the last bit; frequencies are right."""

import numpy as np
import pytest

from rollout import draws


def perturbed(p, generator):
    """Every entry one unit in the last place up, down, or as it is."""
    up, down = np.nextafter(p, 2.0), np.nextafter(p, 0.0)
    return np.choose(generator.integers(3, size=p.shape), [up, p, down])


# Where NumPy's own algorithms branch: at p = 1/2, at n p = 30, at equal entries; and anywhere.
AWKWARD = np.array([[0.5, 0.25, 0.25, 0.0], [0.5, 0.5, 0.0, 0.0], [3e-4, 0.5, 0.2497, 0.25]])


def test_one_unit_in_the_last_place_changes_no_count():
    for trial in range(50):
        generator = np.random.default_rng(trial)
        p = np.concatenate([AWKWARD, generator.dirichlet(np.full(4, 0.7), size=20)])
        other = perturbed(p, generator)
        assert (other != p).any()
        np.testing.assert_array_equal(draws.grid(p), draws.grid(other))
        first, second = (
            draws.multinomial(np.random.default_rng(9), 100_000, one) for one in (p, other)
        )
        np.testing.assert_array_equal(first, second)
        counts = generator.integers(100_000, size=p.shape)
        first, second = (
            draws.binomial(np.random.default_rng(9), counts, one) for one in (p, other)
        )
        np.testing.assert_array_equal(first, second)
        first, second = (
            draws.categorical(np.random.default_rng(9), one / one.sum(axis=1, keepdims=True))
            for one in (p, other)
        )
        np.testing.assert_array_equal(first, second)


def test_numpys_own_draws_do_change():
    # What this module is there for: on the other side of 1/2 NumPy counts failures instead.
    at, below = 0.5, np.nextafter(0.5, 0.0)
    above = np.nextafter(0.5, 1.0)
    drawn = [np.random.default_rng(0).binomial(100_000, p, size=20) for p in (below, at, above)]
    assert (drawn[1] != drawn[2]).any()


def test_grid_points_sum_to_one_exactly_and_are_near():
    p = np.random.default_rng(0).dirichlet(np.ones(7), size=30)
    settled = draws.settled(7.3 * p)  # normalized here
    assert (draws.grid(p).sum(axis=1) == 1 << 40).all()
    assert (settled.sum(axis=1) == 1.0).all()
    np.testing.assert_allclose(settled, p, atol=7 * 2.0**-41, rtol=0)


def test_frequencies():
    p = np.array([0.5, 0.3, 0.2, 0.0])
    generator = np.random.default_rng(1)
    drawn = draws.categorical(generator, p, 100_000)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 100_000, p, atol=0.006)
    assert (drawn < 3).all()
    by_row = draws.categorical(generator, np.tile(p[::-1], (100_000, 1)))
    np.testing.assert_allclose(np.bincount(by_row, minlength=4) / 100_000, p[::-1], atol=0.006)
    counts = draws.multinomial(generator, 100_000, p)
    np.testing.assert_allclose(counts / 100_000, p, atol=0.006)
    assert draws.binomial(generator, np.array(100_000), np.array(0.3)) / 100_000 == pytest.approx(
        0.3, abs=0.006
    )
    assert draws.binomial(generator, np.array(9), np.array([0.0, 1.0])).tolist() == [0, 9]


@pytest.mark.parametrize("p", [[0.5, -0.1], [np.nan, 1.0], [0.0, 0.0]])
def test_bad_probabilities_are_refused(p):
    with pytest.raises(ValueError, match="at least 0, and not all 0"):
        draws.grid(np.array(p))
    with pytest.raises(ValueError, match="outside"):
        draws.binomial(np.random.default_rng(0), np.array(3), np.array([1.5]))
