"""95% intervals of means and shares, one definition for every table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

NORMAL_975 = 1.959963984540054
DRAWS = 10_000  # of a bootstrap


def wilson(share: float, trials: int) -> tuple[float, float]:
    """95% interval of a binomial share (Wilson): inside [0, 1], of some width also at 0 and 1."""
    z = NORMAL_975
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def student(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean, and half-width of its 95% interval (Student's t); NaN for a single value."""
    from scipy import stats

    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()), math.nan
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1)) * error


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half: a quarter of the mass is cut on each side, fractions counted.

    Source: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice".
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    cut = len(ordered) / 4
    weights = np.clip(np.arange(1, len(ordered) + 1) - cut, 0.0, 1.0)
    weights = np.minimum(weights, weights[::-1])
    return float(weights @ ordered / weights.sum())


def bootstrap(
    strata: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float] = np.mean
) -> tuple[float, float]:
    """95% percentile interval of a statistic of all values, resampled within each stratum.

    Args:
        strata: values of each task (a game, say); runs are drawn with replacement within a task.
        statistic: of all drawn values together.

    Returns:
        Low and high end; NaN where no stratum has two values. With three runs it is narrow: the
        smallest of 27 equally likely samples is the lowest value. Student's interval is wider.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in strata]
    if all(len(array) < 2 for array in arrays) or any(np.isnan(array).any() for array in arrays):
        return math.nan, math.nan
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).digest()
    draw = np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))
    picked = [array[draw.integers(0, len(array), (DRAWS, len(array)))] for array in arrays]
    samples = np.concatenate(picked, axis=1)
    if statistic is np.mean:
        values = samples.mean(axis=1)
    else:
        values = np.array([statistic(sample) for sample in samples])
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
