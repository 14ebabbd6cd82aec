"""Randomized rounding to a hypergrid: nearby estimates become the same estimate.

R-Hypergrid-Rounding (2509.08660, Algorithm 1). Entry x in [b_s, b_e] and its offset o in [0, alpha)
give the grid intervals

    [b_s, b_s + o), [b_s + o, b_s + o + alpha), ..., [b_s + o + kappa alpha, b_e)

and x becomes the midpoint of its own: at most alpha/2 away. The first and the last interval are
shorter, and theirs is their own midpoint. Offsets come from the *internal* stream, so replicas
share the grid: two values |D| apart fall into one interval with probability max(0, 1 - |D|/alpha).

The traps: an offset drawn anew for each replica replicates nothing, and one offset used for all
entries leaves the marginals right and the joint probability wrong.
"""

from __future__ import annotations

import math

import numpy as np

from reprise.rollout.errors import BadInput


def draw_offsets(
    generator: np.random.Generator, shape: tuple[int, ...], alpha: float
) -> np.ndarray:
    """One offset for each entry, uniform on [0, alpha); `generator` is an internal stream."""
    check_alpha(alpha)
    # alpha * (1 - 2^-53) may round to alpha itself, which would be another grid.
    return np.minimum(alpha * generator.random(shape), np.nextafter(alpha, 0.0))


def round_to_grid(
    values: np.ndarray, offsets: np.ndarray, alpha: float, low: float, high: float
) -> np.ndarray:
    """Midpoint of the grid interval of each entry.

    Args:
        values: [..., *shape], between `low` and `high`; leading axes are replicas.
        offsets: [*shape], in [0, alpha): the grid that all replicas share.
        alpha: width of the intervals.
        low: b_s.
        high: b_e; it belongs to the last interval.

    Returns:
        [..., *shape] float64, at most alpha/2 from `values`.

    Raises:
        BadInput: alpha, the bounds or a value are not as said.
    """
    check_alpha(alpha)
    values, offsets = np.asarray(values, dtype=np.float64), np.asarray(offsets, dtype=np.float64)
    if not low < high:
        raise BadInput(f"low={low}, high={high}; the lower bound must be below the upper one")
    if (high - low) / alpha > 2.0**50:
        raise BadInput(
            f"alpha={alpha}: between low={low} and high={high} that grid is finer than floating "
            "point; choose a wider one, or nearer bounds"
        )
    if offsets.size and not (offsets.min() >= 0 and offsets.max() < alpha):
        raise BadInput(f"offsets must lie in [0, alpha={alpha}); draw them with draw_offsets")
    if values.size and not (values.min() >= low and values.max() <= high):
        raise BadInput(
            f"values between {values.min():.6g} and {values.max():.6g} must lie between "
            f"low={low} and high={high}, and be finite; widen the bounds (they only serve to "
            "number the intervals)"
        )

    def edge(number: np.ndarray) -> np.ndarray:
        return low + (offsets + number * alpha)

    last = np.ceil((high - low - offsets) / alpha) - 1
    number = np.minimum(np.floor(((values - low) - offsets) / alpha), last)
    # Division may round across an edge. The edges themselves decide, so that rounding twice
    # is rounding once.
    number = number - (values < edge(number))
    number = np.minimum(number + (values >= edge(number + 1)), last)
    left = np.maximum(edge(number), low)
    right = np.minimum(edge(number + 1), high)
    return left + (right - left) / 2


def hypergrid_rounding(
    values: np.ndarray,
    generator: np.random.Generator,
    alpha: float,
    low: float,
    high: float,
    replica_axes: int = 0,
) -> np.ndarray:
    """Algorithm 1: draw the grid from the shared `generator`, and round to it.

    Args:
        values: entries; the first `replica_axes` axes share one grid.
        generator: internal stream.
        alpha: rounding accuracy.
        low: b_s.
        high: b_e.
        replica_axes: how many leading axes are replicas.
    """
    offsets = draw_offsets(generator, np.shape(values)[replica_axes:], alpha)
    return round_to_grid(values, offsets, alpha, low, high)


def agreement_probability(difference: np.ndarray, alpha: float, entry_axes: int = 1) -> np.ndarray:
    """Exact probability over the offsets that both estimates round alike.

        prod_i max(0, 1 - |D_i| / alpha)

    An edge separates two values exactly if one of b_s + o + k alpha lies between them; o is uniform
    and independent for each entry. First and last intervals make no exception.

    Args:
        difference: D, [..., *shape].
        alpha: width of the intervals.
        entry_axes: number of axes in `shape`; the others are kept.
    """
    check_alpha(alpha)
    axes = tuple(range(-entry_axes, 0))
    return np.prod(np.maximum(0.0, 1.0 - np.abs(difference) / alpha), axis=axes)


def agreement_bound(difference: np.ndarray, alpha: float, entry_axes: int = 1) -> np.ndarray:
    """Lower bound of Lemma 2.1: 1 - d1 d2 ||D||_F / alpha. Negative says nothing."""
    check_alpha(alpha)
    axes = tuple(range(-entry_axes, 0))
    entries = math.prod(np.shape(difference)[-entry_axes:])
    norm = np.sqrt(np.sum(np.square(difference), axis=axes))
    return 1.0 - entries * norm / alpha


def check_alpha(alpha: float, key: str = "alpha") -> None:
    """Raise BadInput unless `alpha` is a positive, finite width."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise BadInput(
            f"{key}={alpha}: the width of the rounding intervals must be positive and finite; "
            "give null where a config means no rounding"
        )
