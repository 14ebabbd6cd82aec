"""95% intervals of means and shares, one definition for every table.

Student's everywhere: of a mean over independent values, of a jackknife, of an estimate with a
standard error and degrees of freedom. Wilson's for binomial shares only. The percentile bootstrap
for interquartile means, where nothing else is at hand; with three values it covers about .74 in
place of .95, so that it is shown and decides nothing.

Sums are `math.fsum`'s, rounded once: the same number on every processor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

NORMAL_975 = 1.959963984540054  # Student's quantile with infinitely many degrees: Wilson's only
DRAWS = 10_000  # of a bootstrap


def wilson(share: float, trials: int) -> tuple[float, float]:
    """95% interval of a binomial share (Wilson): inside [0, 1], of some width also at 0 and 1.

    The trials must be independent and the event fixed beforehand. The share of the most common
    result is not such a share (the event is chosen by looking), nor is a share of pairs.
    """
    z = NORMAL_975
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_of(values: Sequence[float] | np.ndarray) -> float:
    """Mean, rounded once from the exact sum; NaN of none."""
    numbers = np.asarray(values, dtype=np.float64).ravel().tolist()
    if not all(map(math.isfinite, numbers)):
        return sum(numbers) / len(numbers)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def variance_of(values: Sequence[float] | np.ndarray) -> float:
    """Unbiased variance; NaN below two values."""
    numbers = np.asarray(values, dtype=np.float64).ravel().tolist()
    mean = mean_of(numbers)
    if len(numbers) < 2 or not math.isfinite(mean):
        return math.nan
    return math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)


def student_quantile(degrees: float) -> float:
    """t_{.975} with `degrees` of freedom; 1.96 where they are infinite."""
    if math.isinf(degrees):
        return NORMAL_975
    from scipy import stats

    return float(stats.t.ppf(0.975, degrees))


def student(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean, and half-width of its 95% interval (Student's t); NaN for a single value."""
    mean, error = mean_of(values), math.sqrt(variance_of(values) / max(len(values), 1))
    if math.isnan(error):
        return mean, math.nan
    return mean, student_quantile(len(values) - 1) * error


def student_half(standard_error: float, degrees: float) -> float:
    """Half-width of the 95% interval of an estimate: t_{.975, degrees} x its standard error."""
    return student_quantile(degrees) * standard_error


def student_share(shares: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean of independent shares, each in [0, 1], and its 95% interval, of some width also at 1.

    Student's, cut to [0, 1]. Where every share is 1 nothing varied, and the lower end is the
    largest mean mu that n such draws refuse: P(share = 1) <= mu, so P(all are 1) <= mu^n, hence
    .025^(1/n) (Clopper and Pearson's bound). Likewise at 0.
    """
    mean, half = student(shares)
    if math.isnan(half) and mean not in (0.0, 1.0):
        return mean, math.nan, math.nan
    return mean, *share_ends(mean, half, len(shares))


def share_ends(mean: float, half: float, count: int) -> tuple[float, float]:
    """Ends of the interval of a mean of `count` shares, as `student_share` says."""
    end = 0.025 ** (1 / count)
    if mean == 1:
        return end, 1.0
    if mean == 0:
        return 0.0, 1 - end
    return max(0.0, mean - half), min(1.0, mean + half)


def stratified_student(strata: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean of all values of fixed strata, half-width of its 95% interval, degrees of freedom.

        s^2 = sum_k (n_k / N)^2 s_k^2 / n_k        (values vary within strata only)

    with Welch and Satterthwaite's degrees. NaN where some stratum has a single value.
    """
    count = sum(len(stratum) for stratum in strata)
    mean = mean_of([value for stratum in strata for value in stratum])
    parts = [(len(s) * variance_of(s) / count**2, float(len(s) - 1)) for s in strata if len(s) > 0]
    degrees = welch_degrees([math.sqrt(part) for part, _ in parts], [nu for _, nu in parts])
    error = math.sqrt(math.fsum(part for part, _ in parts)) if parts else math.nan
    if math.isnan(error):
        return mean, math.nan, math.nan
    return mean, student_half(error, degrees), degrees


def crossed(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values [rows, columns] of two crossed random factors, half-width, degrees.

        s^2 = s_rows^2 / R + s_columns^2 / C       (of the means of rows, and of columns)

    Rows may be internal seeds and columns data sets that all of them learn from. What a row and a
    column have together counts in both parts, so that the interval errs on the wide side. Welch
    and Satterthwaite's degrees; one part alone where the other factor has a single level.
    """
    table = np.asarray(values, dtype=np.float64)
    mean = mean_of(table)
    parts = [
        (math.sqrt(variance_of(means) / len(means)), float(len(means) - 1))
        for means in ([mean_of(row) for row in table], [mean_of(row) for row in table.T])
        if len(means) > 1
    ]
    errors, degrees = [error for error, _ in parts], [nu for _, nu in parts]
    error = math.sqrt(math.fsum(e * e for e in errors))
    if not parts or math.isnan(error):
        return mean, math.nan, math.nan
    nu = welch_degrees(errors, degrees) if error > 0 else max(degrees)
    return mean, student_half(error, nu), nu


def welch_degrees(errors: Sequence[float], degrees: Sequence[float]) -> float:
    """Degrees of freedom of a sum of independent estimates (Welch 1947, Satterthwaite 1946).

        nu = (sum_k e_k^2)^2 / sum_k (e_k^4 / nu_k)

    Args:
        errors: e_k, standard errors.
        degrees: nu_k, of each; infinite where the error is known.

    Returns:
        nu; infinite where nothing is uncertain or every error is known.
    """
    total = math.fsum(e**2 for e in errors)
    below = math.fsum(e**4 / nu for e, nu in zip(errors, degrees, strict=True) if e > 0)
    return total**2 / below if below > 0 else math.inf


def jackknife(values_without_each: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Estimate and half-width of its 95% interval from the statistic without each of n units.

        s^2 = (n - 1) / n  sum_i (theta_(i) - mean)^2,      half = t_{.975, n-1} s

    The estimate is the mean of theta_(i), which for a mean over pairs of units is the statistic of
    all units. Units (runs, say) must be independent; pairs that share a unit need not be.

    Args:
        values_without_each: theta_(i), one for each unit; at least two, or the half-width is NaN.
    """
    count = len(values_without_each)
    estimate = mean_of(values_without_each)
    if count < 2 or math.isnan(estimate):
        return estimate, math.nan
    error = (count - 1) * math.sqrt(variance_of(values_without_each) / count)
    return estimate, student_half(error, count - 1)


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half: a quarter of the mass is cut on each side, fractions counted.

    Source: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice".
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    cut = len(ordered) / 4
    weights = np.clip(np.arange(1, len(ordered) + 1) - cut, 0.0, 1.0)
    weights = np.minimum(weights, weights[::-1])
    return math.fsum((weights * ordered).tolist()) / math.fsum(weights.tolist())


def bootstrap(
    strata: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float] = np.mean
) -> tuple[float, float]:
    """95% percentile interval of a statistic of all values, resampled within each stratum.

    For interquartile means; an interval of a mean is Student's.

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
