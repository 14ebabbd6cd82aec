"""Draws that do not hang on the last bit: exact sums, distributions, and one ulp more or less."""

from __future__ import annotations

import numpy as np
import pytest

from reprise.rollout import draws

pytestmark = pytest.mark.portable

ULP = 2.0**-40


def _tables(rows: int = 2000, outcomes: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(outcomes, 0.5), size=rows)


def _chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


# -- settled ---------------------------------------------------------------------------------------


def test_settled_by_hand():
    third = round(2**40 / 3)  # 366503875925.33
    assert 3 * third == 2**40 - 1  # one unit is left over, and the first of the largest takes it
    assert (draws.settled([1 / 3, 1 / 3, 1 / 3]) * 2**40).tolist() == [third + 1, third, third]
    assert draws.settled([0.25, 0.75]).tolist() == [0.25, 0.75]
    assert draws.settled([1.0]).tolist() == [1.0]
    assert draws.settled([1e-15, 1 - 1e-15]).tolist() == [0.0, 1.0]
    assert draws.settled([-1e-16, 1.0]).tolist() == [0.0, 1.0]  # negative by rounding alone


def test_settled_sums_to_one_exactly_in_any_order_and_is_near():
    p = _tables()
    found = draws.settled(p)
    assert (found.sum(-1) == 1.0).all() and (found[:, ::-1].cumsum(-1)[:, -1] == 1.0).all()
    assert (found * 2**40 == np.rint(found * 2**40)).all()
    order = np.argsort(p, axis=-1)
    error = np.take_along_axis(np.abs(found - p), order, -1)
    assert error[:, :-1].max() <= ULP / 2  # all but the largest: rounded to nearest
    assert error[:, -1].max() <= 4 * ULP  # the largest: seven halves, and its own
    assert draws.settled(found).tobytes() == found.tobytes()  # settled twice is settled once


def test_settled_takes_any_axis():
    p = _tables(6).reshape(2, 3, 7)
    there = draws.settled(np.moveaxis(p, -1, 0), axis=0)
    assert there.shape == (7, 2, 3)
    assert (np.moveaxis(there, 0, -1) == draws.settled(p)).all()


@pytest.mark.parametrize("direction", [0.0, 1.0])
def test_one_ulp_moves_a_probability_rarely_and_then_by_one_unit(direction):
    p = _tables(20_000)
    one, other = draws.settled(p), draws.settled(np.nextafter(p, direction))
    changed = (one != other).any(-1)
    # At most 2^-12 an entry on average, and the largest may follow: 7 x 2^-12 = .0017 a row.
    assert 0 < changed.mean() < 0.0017
    assert np.abs(one - other).max() <= 2 * ULP


def test_equal_but_for_the_last_bit_is_a_tie_and_the_first_takes_the_remainder():
    p = np.full(3, 1 / 3)
    for place in range(3):
        for direction in (0.0, 1.0):
            moved = p.copy()
            moved[place] = np.nextafter(p[place], direction)
            assert draws.settled(moved).tobytes() == draws.settled(p).tobytes()


@pytest.mark.parametrize(
    ("p", "words"),
    [
        ([0.5, np.nan], r"p=nan: probabilities must be finite numbers; 1 of 2 .* correct"),
        ([np.inf, 0.5], r"p=inf: probabilities must be finite numbers"),
        ([1.5, -0.5], r"p=-0.5: probabilities must be at least 0; 1 of 2 .* correct"),
        ([1.0, -1e-9], r"p=-1e-09: probabilities must be at least 0"),
        ([0.5, 0.4], r"p: a sum of probabilities is 0.9; it must be 1 .* divide by it"),
        ([[0.5, 0.5], [0.5, 0.5 + 1e-8]], r"p: a sum of probabilities is 1.00000001"),
        ([], r"p: shape \[0\]; axis -1 must hold 1 to 1048576 outcomes"),
        (1.0, r"p: shape \[\]"),
    ],
)
def test_what_is_no_distribution_is_refused(p, words):
    generator = np.random.default_rng(0)
    for draw in (
        lambda: draws.settled(p),
        lambda: draws.multinomial(generator, 3, p),
        lambda: draws.categorical(generator, p, 3),
    ):
        with pytest.raises(ValueError, match=words):
            draw()


def test_the_key_is_the_callers():
    with pytest.raises(ValueError, match=r"initial=-1.0: probabilities must be at least 0"):
        draws.settled([-1.0, 2.0], key="initial")


# -- draws -----------------------------------------------------------------------------------------


def test_numpys_own_draws_do_hang_on_the_last_bit():
    """The trap itself: if numpy mends it, this module may go."""
    below, above = np.nextafter(0.5, 0.0), np.nextafter(0.5, 1.0)
    one, other = (np.random.default_rng(0).binomial(1000, p, 50) for p in (below, above))
    assert (one != other).mean() > 0.9
    one, other = (draws.binomial(np.random.default_rng(0), 1000, p, 50) for p in (below, above))
    assert (one == other).all()


def test_one_ulp_changes_no_count():
    p = _tables(3000)
    settled = draws.settled(p)
    half = np.full((2, 2), 0.5)
    for direction in (0.0, 1.0):
        moved = np.nextafter(p, direction)
        same = (draws.settled(moved) == settled).all(-1)
        assert same.mean() > 0.998
        for n in (3, 40, 10_000, 10**9):
            one = draws.multinomial(np.random.default_rng(n), n, p[same])
            other = draws.multinomial(np.random.default_rng(n), n, moved[same])
            assert (one == other).all()
        one = draws.multinomial(np.random.default_rng(0), 999, half)
        tilted = np.nextafter(half, [[0.0, 1.0], [1.0, 0.0]])
        assert (draws.multinomial(np.random.default_rng(0), 999, tilted) == one).all()
        one = draws.categorical(np.random.default_rng(0), p, len(p))
        other = draws.categorical(np.random.default_rng(0), moved, len(p))
        assert (one == other).all()


def test_multinomial_has_the_right_distribution_and_broadcasts():
    p = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    found = draws.multinomial(np.random.default_rng(1), [[100_000], [40_000]], p)
    assert found.shape == (2, 2, 4)
    assert found.sum(-1).tolist() == [[100_000] * 2, [40_000] * 2]
    expected = np.array([[100_000], [40_000]])[..., None] * p
    # 12 degrees of freedom: 99.9% of draws lie below 32.9, and a draw that is too even above 2.2
    assert 2.2 < _chi_square(found, expected) < 32.9
    assert draws.multinomial(np.random.default_rng(1), 5, p[0], size=3).shape == (3, 4)
    assert draws.multinomial(np.random.default_rng(1), 0, p[0]).tolist() == [0, 0, 0, 0]


def test_multinomial_is_numpys_at_settled_probabilities():
    p = draws.settled(_tables(50))
    expected = np.random.default_rng(3).multinomial(1000, p)
    assert (draws.multinomial(np.random.default_rng(3), 1000, p) == expected).all()


def test_binomial_has_the_right_distribution_and_broadcasts():
    p = np.array([0.03, 0.5, 0.8])
    found = draws.binomial(np.random.default_rng(2), 12, p, (20_000, 3))
    values = np.arange(13)
    binomials = np.array([1, 12, 66, 220, 495, 792, 924, 792, 495, 220, 66, 12, 1])
    for column, chance in enumerate(p):
        expected = 20_000 * binomials * chance**values * (1 - chance) ** (12 - values)
        observed = np.bincount(found[:, column], minlength=13)
        enough = expected >= 5
        statistic = _chi_square(observed[enough], expected[enough])
        assert statistic < 32.9  # 12 degrees of freedom at most: .1% lie above
        assert abs(found[:, column].mean() - 12 * chance) < 4 * np.sqrt(
            12 * chance * (1 - chance) / 20_000
        )
    assert draws.binomial(np.random.default_rng(0), [5, 6], [[0.0], [1.0]]).tolist() == [
        [0, 0],
        [5, 6],
    ]
    assert draws.binomial(np.random.default_rng(0), 7, 1 + 1e-15).tolist() == 7


@pytest.mark.parametrize("p", [-1e-9, 1 + 1e-9, np.nan, np.inf])
def test_binomial_refuses_what_is_no_probability(p):
    with pytest.raises(
        ValueError, match=r"p=.*: a probability lies in \[0, 1\]; 1 of 2 .* correct"
    ):
        draws.binomial(np.random.default_rng(0), 5, [0.5, p])


@pytest.mark.parametrize("counts", [-1, 2.5, [3, -2]])
def test_numbers_of_draws_are_integers_from_zero(counts):
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"counts=.*integers, at least 0; round them"):
        draws.multinomial(generator, counts, [0.5, 0.5])
    with pytest.raises(ValueError, match=r"n=.*integers, at least 0; round them"):
        draws.binomial(generator, counts, 0.5)


def test_categorical_has_the_right_distribution():
    p = np.array([0.05, 0.0, 0.25, 0.7])
    found = draws.categorical(np.random.default_rng(5), p, 100_000)
    observed = np.bincount(found, minlength=4)
    assert observed[1] == 0
    kept = [0, 2, 3]
    assert _chi_square(observed[kept], 100_000 * p[kept]) < 13.8  # two degrees: .1% lie above
    rows = draws.categorical(np.random.default_rng(5), [p, p[::-1]], (50_000, 2))
    assert _chi_square(np.bincount(rows[:, 0], minlength=4)[kept], 50_000 * p[kept]) < 13.8
    assert _chi_square(np.bincount(3 - rows[:, 1], minlength=4)[kept], 50_000 * p[kept]) < 13.8


def test_categorical_inverts_one_uniform_a_draw():
    p = np.array([[0.2, 0.8], [0.6, 0.4], [1.0, 0.0]])
    uniforms = np.random.default_rng(8).random(3)
    assert len({*(uniforms >= p[:, 0]).tolist()}) == 2  # both outcomes are among the three
    drawn = draws.categorical(np.random.default_rng(8), p)
    assert drawn.tolist() == (uniforms >= p[:, 0]).astype(int).tolist()
    wide = draws.categorical(np.random.default_rng(8), p[0], (2, 5))
    many = draws.categorical(np.random.default_rng(8), p[:1], (2, 5))
    assert wide.shape == (2, 5) and (wide == many).all()
    with pytest.raises(ValueError, match=r"size=\(2,\): p's leading axes \(3,\) do not broadcast"):
        draws.categorical(np.random.default_rng(8), p, 2)
