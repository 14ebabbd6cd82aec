"""95% intervals of means and shares, one definition for every table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NORMAL_975 = 1.959963984540054


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
