"""Rounding: the grid of Algorithm 1 to its ends, and how often two estimates meet on it."""

import numpy as np
import pytest

from reprise.rl.replicable.agreement import Trace, identities, most_common_share, pairwise_identity
from reprise.rl.replicable.rounding import (
    agreement_bound,
    agreement_probability,
    draw_offsets,
    hypergrid_rounding,
    round_to_grid,
)
from reprise.rollout.run.intervals import wilson

pytestmark = pytest.mark.portable

LOW, HIGH = -2.0, 3.0


@pytest.fixture
def draw():
    return np.random.default_rng(11)


def test_intervals_worked_out_by_hand():
    # [-1, -.75), [-.75, -.25), [-.25, .25), [.25, .75), [.75, 1): first and last are shorter.
    offsets = np.full(7, 0.25)
    values = np.array([-1.0, -0.76, -0.75, 0.0, 0.25, 0.85, 1.0])
    rounded = round_to_grid(values, offsets, 0.5, -1.0, 1.0)
    assert rounded.tolist() == [-0.875, -0.875, -0.5, 0.0, 0.5, 0.875, 0.875]


def test_an_offset_of_zero_leaves_no_first_interval():
    rounded = round_to_grid(np.array([0.0, 0.99]), np.zeros(2), 0.5, 0.0, 1.0)
    assert rounded.tolist() == [0.25, 0.75]


def test_a_grid_wider_than_the_range_has_two_intervals_or_one():
    values = np.array([0.0, 0.6, 1.0])
    assert round_to_grid(values, np.full(3, 0.5), 10.0, 0.0, 1.0).tolist() == [0.25, 0.75, 0.75]
    assert round_to_grid(values, np.full(3, 7.0), 10.0, 0.0, 1.0).tolist() == [0.5] * 3


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("alpha", [1e-3, 0.07, 0.9, 20.0])
def test_rounding_is_idempotent_and_near_in_any_shape(draw, shape, alpha):
    values = draw.uniform(LOW, HIGH, (50, *shape))
    values[0], values[1] = LOW, HIGH
    offsets = draw_offsets(draw, shape, alpha)
    once = round_to_grid(values, offsets, alpha, LOW, HIGH)
    assert np.abs(once - values).max() <= alpha / 2 * (1 + 1e-9)
    assert round_to_grid(once, offsets, alpha, LOW, HIGH).tobytes() == once.tobytes()
    assert once.min() >= LOW and once.max() <= HIGH


def test_values_on_the_edges_round_twice_as_they_round_once(draw):
    offsets = draw_offsets(draw, (40,), 0.1)
    edges = LOW + (offsets + np.arange(49)[:, None] * 0.1)
    for values in (edges, np.nextafter(edges, LOW), np.nextafter(edges, HIGH)):
        once = round_to_grid(values, offsets, 0.1, LOW, HIGH)
        assert round_to_grid(once, offsets, 0.1, LOW, HIGH).tobytes() == once.tobytes()


def test_offsets_are_uniform_below_alpha(draw):
    offsets = draw_offsets(draw, (20_000,), 0.3)
    assert 0 <= offsets.min() and offsets.max() < 0.3
    assert abs(offsets.mean() - 0.15) < 4 * 0.3 / np.sqrt(12 * 20_000)
    assert len(np.unique(offsets)) == 20_000


@pytest.mark.parametrize("where", ["inside", "first interval", "last interval"])
def test_agreement_is_as_frequent_as_the_product_says(draw, where):
    alpha, trials = 0.5, 20_000
    difference = np.array([0.11, -0.04, 0.2, 0.0])
    start = {"inside": 0.3, "first interval": LOW + 0.05, "last interval": HIGH - 0.25}[where]
    pair = np.stack([np.full(4, start), start + difference])
    offsets = draw_offsets(draw, (trials, 4), alpha)
    one, other = (round_to_grid(x[None], offsets[:, :], alpha, LOW, HIGH) for x in pair)
    agreed = (one == other).all(1).mean()
    expected = agreement_probability(difference, alpha)
    assert expected == pytest.approx((1 - 0.22) * (1 - 0.08) * (1 - 0.4))
    assert abs(agreed - expected) < 4 * np.sqrt(expected * (1 - expected) / trials)
    assert agreement_bound(difference, alpha) < expected


def test_the_bound_of_the_paper_is_a_bound_for_any_matrix(draw):
    difference = draw.normal(0, 0.02, (500, 3, 4))
    exact = agreement_probability(difference, 0.7, entry_axes=2)
    bound = agreement_bound(difference, 0.7, entry_axes=2)
    assert exact.shape == bound.shape == (500,)
    assert (bound <= exact).all()
    norm = np.linalg.norm(difference[0])
    assert bound[0] == pytest.approx(1 - 12 * norm / 0.7)


def test_shared_randomness_gives_the_same_bytes_and_other_randomness_does_not(draw):
    values = draw.normal(size=(3, 5))
    near = values + 1e-13
    rounded = [
        hypergrid_rounding(x, np.random.default_rng(seed), 0.1, -9.0, 9.0)
        for x, seed in ((values, 1), (near, 1), (values, 2))
    ]
    assert rounded[0].tobytes() == rounded[1].tobytes() != rounded[2].tobytes()


def test_replicas_share_one_grid(draw):
    values = np.broadcast_to(draw.normal(size=4), (6, 4))
    rounded = hypergrid_rounding(values, draw, 0.1, -9.0, 9.0, replica_axes=1)
    assert (identities(rounded) == 0).all()


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, np.inf])
def test_a_width_must_be_positive(draw, alpha):
    with pytest.raises(ValueError, match="alpha"):
        draw_offsets(draw, (2,), alpha)
    with pytest.raises(ValueError, match="alpha"):
        agreement_probability(np.zeros(2), alpha)


@pytest.mark.parametrize(
    "values, offsets, alpha, low, high, match",
    [
        ([3.1], [0.1], 0.5, LOW, HIGH, "widen the bounds"),
        ([np.nan], [0.1], 0.5, LOW, HIGH, "finite"),
        ([0.0], [0.5], 0.5, LOW, HIGH, "offsets"),
        ([0.0], [0.1], 0.5, HIGH, LOW, "lower bound"),
        ([0.0], [0.0], 1e-18, LOW, HIGH, "finer than floating point"),
    ],
)
def test_bad_input_is_named(values, offsets, alpha, low, high, match):
    with pytest.raises(ValueError, match=match):
        round_to_grid(np.array(values), np.array(offsets), alpha, low, high)


# -- agreement -------------------------------------------------------------------------------------


def test_identity_is_of_bytes():
    results = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0], [np.nextafter(0, 1), 1.0]])
    assert identities(results).tolist() == [0, 1, 0, 3]


def test_shares_worked_out_by_hand():
    labels = ["a", "a", "a", "b", "b", "c"]
    assert most_common_share(labels) == 0.5
    assert pairwise_identity(labels) == pytest.approx((3 * 2 + 2 * 1) / (6 * 5))
    with pytest.raises(ValueError, match="1 run"):
        pairwise_identity(["a"])


def test_wilson_is_never_empty_nor_outside():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson(1.0, 10)
    assert high == pytest.approx(1) and high <= 1 and 0.6 < low < 0.8


def test_the_trace_predicts_what_is_measured(draw):
    # Two rounding steps, the second on estimates that the first one's outcome does not move.
    alpha, replicas, steps = 0.5, 40, []
    measured, product, bound = [], [], []
    for _ in range(150):
        trace = Trace(replicas)
        for _ in range(2):
            estimates = 0.02 * draw.standard_normal((replicas, 3))
            rounded = hypergrid_rounding(estimates, draw, alpha, -9.0, 9.0, replica_axes=1)
            trace.step(estimates, rounded, alpha)
            steps.append(rounded)
        measured.append(pairwise_identity(trace.classes))
        product.append(trace.product)
        bound.append(trace.bound)
    error = np.std(measured) / np.sqrt(len(measured))
    assert abs(np.mean(measured) - np.mean(product)) < 4 * error
    assert np.mean(bound) < np.mean(product) - 0.1


def test_the_trace_ends_where_no_pair_is_left():
    trace = Trace(3)
    trace.step(np.arange(3.0)[:, None], np.arange(3.0)[:, None], None)
    assert (trace.product, trace.classes.tolist()) == (0.0, [0, 1, 2])
