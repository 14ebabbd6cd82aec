"""Random draws that do not hang on the last bit of a probability.

A probability that comes out of a matrix product differs in its last bits from one processor to
another. numpy's binomial, and its multinomial, which is made of binomials, branch on those bits:
p <= 1/2 decides whether it draws successes or failures, and floor((n + 1) p) where its envelope
stands. One ulp can so change every count that follows. Here probabilities are first *settled*:

    k_i = round(p_i 2^40)   and   k_m <- k_m + 2^40 - sum_i k_i,   m = argmax_i k_i

integers that sum to 2^40, so that p_i = k_i 2^-40 are exact floats whose sums, in any order, are
exact too. A change of p_i by one ulp (2^-53 below 1) moves k_i only where p_i 2^40 lies that near
to a half-integer: with probability 2^-12 at most for a p_i of no special form, and 2^-13 where
p_i < 1/2. Then, and only then, two processors draw from probabilities that differ by 2^-40 =
9e-13 in that entry and in the largest one. Settling biases the mean of a count of n draws by at
most n K 2^-41 for K outcomes: .03 of 10^10 for K = 7.

Ties: where several k_i are the largest, the first takes the remainder. They are compared after
rounding, so probabilities that were equal but for their last bits are equal here too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from reprise.rollout.errors import BadInput

BITS = 40
UNIT = 2.0**-BITS
TOLERANCE = 1e-9  # of a sum of probabilities, before it is made exact
OUTCOMES = 2**20  # at most: beyond, the remainder could exceed the largest entry

Size = int | tuple[int, ...] | None


def settled(p: ArrayLike, axis: int = -1, key: str = "p") -> np.ndarray:
    """Probabilities as multiples of 2^-40 that sum to exactly 1 along `axis`; float64, as `p`.

    Raises:
        BadInput: an entry is not finite or negative by more than rounding (2^-41), a sum is
            farther than 1e-9 from 1, or there are no outcomes or more than 2^20.
    """
    return np.moveaxis(_integers(p, axis, key) * UNIT, -1, axis)


def multinomial(
    generator: np.random.Generator, counts: ArrayLike, p: ArrayLike, size: Size = None
) -> np.ndarray:
    """How often each outcome came in `counts` draws: int64 [..., K], sums `counts`.

    Args:
        generator: of a data stream.
        counts: number of draws, [...]; broadcast against p's leading axes.
        p: probabilities [..., K]; they are settled.
        size: leading shape of the result, as numpy's; by default what the arguments broadcast to.

    Raises:
        BadInput: see `settled`, and `_counts`.
    """
    return generator.multinomial(_counts(counts, "counts"), settled(p), size)


def binomial(
    generator: np.random.Generator, n: ArrayLike, p: ArrayLike, size: Size = None
) -> np.ndarray:
    """Number of successes in `n` trials of probability `p`, broadcast as numpy's: int64.

    p is rounded to a multiple of 2^-40: 1/2 and its neighbours are one probability, on one side of
    numpy's branch.

    Raises:
        BadInput: p is not in [0, 1] (to within 2^-41), or n is negative or not whole.
    """
    p = np.asarray(p, dtype=np.float64)
    nearest = np.rint(p * 2.0**BITS)
    wrong = ~((nearest >= 0) & (nearest <= 2.0**BITS))  # NaN is wrong too
    if wrong.any():
        raise BadInput(
            f"p={p[wrong].flat[0]}: a probability lies in [0, 1]; {int(wrong.sum())} of {p.size} "
            "do not; correct what they are computed from"
        )
    return np.asarray(generator.binomial(_counts(n, "n"), nearest * UNIT, size))


def categorical(generator: np.random.Generator, p: ArrayLike, size: Size = None) -> np.ndarray:
    """Draw outcomes 0 .. K-1 of probabilities `p` [..., K] by inversion: int64, of shape `size`.

    A uniform u of 2^40 equal steps gives the first i with u < k_0 + .. + k_i: one uniform a draw,
    whatever p is, compared as integers.

    Args:
        generator: of a data stream.
        p: probabilities; they are settled. Leading axes broadcast to `size`.
        size: shape of the result; by default p's leading axes.

    Raises:
        BadInput: see `settled`; or p's leading axes do not broadcast to `size`.
    """
    edges = _integers(p, -1, "p").cumsum(-1)
    shape = edges.shape[:-1] if size is None else (size,) if isinstance(size, int) else size
    steps = np.floor(generator.random(shape) * 2.0**BITS).astype(np.int64)
    if edges.ndim == 1:
        return np.asarray(edges.searchsorted(steps, side="right"))
    try:
        edges = np.broadcast_to(edges, (*shape, edges.shape[-1]))
    except ValueError as error:
        raise BadInput(
            f"size={shape}: p's leading axes {edges.shape[:-1]} do not broadcast to it; give a "
            "size that ends in them"
        ) from error
    return (edges <= steps[..., None]).sum(-1)


def _integers(p: ArrayLike, axis: int, key: str) -> np.ndarray:
    """k [..., K] with outcomes on the last axis: int64, sums 2^40."""
    p = np.asarray(p, dtype=np.float64)
    if p.ndim < 1 or not 1 <= p.shape[axis] <= OUTCOMES:
        raise BadInput(
            f"{key}: shape {list(p.shape)}; axis {axis} must hold 1 to {OUTCOMES} outcomes; give "
            "an array with an axis of probabilities"
        )
    p = np.moveaxis(p, axis, -1)
    scaled = p * 2.0**BITS
    for wrong, rule in (
        (~np.isfinite(p), "probabilities must be finite numbers"),
        (np.rint(scaled) < 0, "probabilities must be at least 0"),
    ):
        if wrong.any():
            raise BadInput(
                f"{key}={p[wrong][0]}: {rule}; {int(wrong.sum())} of {p.size} are not; correct "
                "what they are computed from"
            )
    total = p.sum(-1)
    worst = np.abs(total - 1.0).argmax() if total.size else 0
    if total.size and abs(total.flat[worst] - 1.0) > TOLERANCE:
        raise BadInput(
            f"{key}: a sum of probabilities is {total.flat[worst]:.12g}; it must be 1 to within "
            f"{TOLERANCE:g}; divide by it if these are weights"
        )
    whole = np.rint(scaled).astype(np.int64)
    largest = whole.argmax(-1)[..., None]
    rest = 2**BITS - whole.sum(-1, keepdims=True)
    np.put_along_axis(whole, largest, np.take_along_axis(whole, largest, -1) + rest, -1)
    return whole


def _counts(counts: ArrayLike, key: str) -> np.ndarray:
    """Numbers of draws: integers, at least 0."""
    array = np.asarray(counts)
    if not np.issubdtype(array.dtype, np.integer) or (array.size and array.min() < 0):
        raise BadInput(
            f"{key}={counts!r}: numbers of draws are integers, at least 0; round them first"
        )
    return array
