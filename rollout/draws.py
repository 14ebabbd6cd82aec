"""Draws that do not hang on the last bit of a probability.

Probabilities come out of matrix products, exponentials and solvers, whose last bits differ between
processors. NumPy's binomial and multinomial branch on them (at p = 1/2 they turn to the other
side; at n p = 30 to another algorithm), so that one unit in the last place changes every count.
Here probabilities are first rounded to a grid,

    k_i = round(2^40 p_i / sum_j p_j),      sum_i k_i = 2^40   (the largest takes what is left over)

and all that follows is arithmetic on multiples of 2^-40, exact in double precision. Two processors
then draw the same counts unless an entry lies within their rounding of a grid point's half, about
once in 10^3 to 10^4 entries, and then the probability differs by 10^-12 and a count only rarely.

What is below 2^-41 is never drawn: of n draws that loses less than n / 10^12 each.
"""

from __future__ import annotations

import numpy as np

BITS = 40
WHOLE = 1 << BITS


def grid(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis as multiples of 2^-40: int64, each row's sum is 2^40.

    Args:
        probabilities: non-negative, shape (..., outcomes); normalized here.

    Raises:
        ValueError: a probability that is negative or not finite, or a row that is all 0.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    total = p.sum(axis=-1, keepdims=True)
    if not (np.isfinite(p).all() and (p >= 0).all() and (total > 0).all()):
        raise ValueError(
            "probabilities must be finite, at least 0, and not all 0; those given hold "
            f"{p.min() if p.size else 'nothing'} to {p.max() if p.size else 'nothing'}"
        )
    counts = np.rint(p / total * WHOLE).astype(np.int64)
    rest = WHOLE - counts.sum(axis=-1, keepdims=True)
    largest = counts.argmax(axis=-1)[..., None]
    np.put_along_axis(counts, largest, np.take_along_axis(counts, largest, -1) + rest, -1)
    return counts


def settled(probabilities: np.ndarray) -> np.ndarray:
    """The nearest multiples of 2^-40 that sum to exactly 1 along the last axis; same shape."""
    return grid(probabilities) / WHOLE


def multinomial(generator: np.random.Generator, size: int, probabilities: np.ndarray) -> np.ndarray:
    """How often each outcome comes in `size` draws; int64, the shape of `probabilities`.

    Args:
        generator: randomness.
        size: n.
        probabilities: shape (..., outcomes), one experiment for each row; normalized here.
    """
    return generator.multinomial(size, settled(probabilities))


def binomial(
    generator: np.random.Generator, counts: np.ndarray, probability: np.ndarray
) -> np.ndarray:
    """Successes among `counts` trials, each with `probability` in [0, 1]; both broadcast."""
    p = np.asarray(probability, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"a probability lies outside [0, 1]: {p.min()} to {p.max()}")
    return generator.binomial(counts, np.rint(p * WHOLE) / WHOLE)


def categorical(
    generator: np.random.Generator, probabilities: np.ndarray, size: int | None = None
) -> np.ndarray:
    """Outcomes by inversion: u uniform on 0 ... 2^40 - 1, the first i with u < k_0 + ... + k_i.

    Args:
        generator: randomness; one integer for each draw.
        probabilities: shape (outcomes,) with `size` draws from it, or (rows, outcomes) without,
            one draw from each row.
        size: number of draws from a single distribution.

    Returns:
        int64, shape (size,) or (rows,).
    """
    ends = grid(probabilities).cumsum(axis=-1)
    if ends.ndim == 1:
        assert size is not None
        return np.searchsorted(ends, generator.integers(WHOLE, size=size), side="right")
    assert ends.ndim == 2 and size is None
    uniforms = generator.integers(WHOLE, size=len(ends))
    return (uniforms[:, None] >= ends[:, :-1]).sum(axis=1)
