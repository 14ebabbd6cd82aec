"""How sure a difference is on one side of a margin: p-values, families, Holm's correction.

    estimate d, standard error s, nu degrees of freedom, margin m:   t = (d - m) / s

p is two-sided, 2 P(T_nu > |t|); the sign of d - m is the side. p < .05 just where the 95% interval
d +- t_{.975, nu} s does not cover m. Equivalence is two one-sided tests, each at .025, so that it
agrees with the 95% interval too (Schuirmann 1987 has .05 each).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reprise.rollout.run.intervals import student_quantile

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """left - right with its uncertainty on both sides, which may differ."""

    value: float  # NaN: a run is missing
    below: float  # standard error on the lower side; NaN: unknown; 0: exact
    above: float
    degrees_below: float  # of freedom; infinite where unknown
    degrees_above: float
    over: str  # what it was taken over, in words

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return self.value - student_quantile(self.degrees_below) * self.below

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return self.value + student_quantile(self.degrees_above) * self.above

    @property
    def known(self) -> bool:
        """Whether there are a difference and an interval."""
        return not any(map(math.isnan, (self.value, self.low, self.high)))

    def mirrored(self) -> Difference:
        """right - left."""
        return Difference(
            *(-self.value, self.above, self.below),
            *(self.degrees_above, self.degrees_below, self.over),
        )


@dataclass(frozen=True)
class Outcome:
    """Which way a test points, and how surely: at what p it may be said."""

    favours: bool | None  # the claim; None: nothing can be said
    p: float  # two-sided; NaN: nothing can be said
    degrees: float = math.nan


NOTHING = Outcome(None, math.nan)


def outcome_of(difference: Difference, relation: str, margin: float) -> Outcome:
    """The test of `left relation right` with a margin (launch.claim_schema.Claim)."""
    if not difference.known:
        return NOTHING
    if relation == "within":
        return _equivalence(difference, margin)
    faced = difference.mirrored() if relation == "<" else difference
    favours = faced.value > margin
    p = _tail(faced, margin)
    return Outcome(favours, p, faced.degrees_below if favours else faced.degrees_above)


def _equivalence(difference: Difference, margin: float) -> Outcome:
    """|difference| < margin: both tests; outside: the test against the nearer end."""
    upper = Outcome(None, _tail(difference, margin), difference.degrees_above)
    lower = Outcome(None, _tail(difference, -margin), difference.degrees_below)
    if abs(difference.value) < margin:
        worse = max(upper, lower, key=lambda one: one.p)
        return Outcome(True, worse.p, worse.degrees)
    if difference.value > 0:
        return Outcome(False, _tail(difference, margin), difference.degrees_below)
    return Outcome(False, _tail(difference, -margin), difference.degrees_above)


def _tail(difference: Difference, margin: float) -> float:
    """Two-sided p of a value against `margin`, from the standard error that faces it."""
    over = difference.value > margin
    error = difference.below if over else difference.above
    if error == 0:
        return 0.0  # exact: on the margin itself is not beyond it
    degrees = difference.degrees_below if over else difference.degrees_above
    from scipy import stats

    t = abs(difference.value - margin) / error
    tail = stats.norm.sf(t) if math.isinf(degrees) else stats.t.sf(t, degrees)
    return min(1.0, 2.0 * float(tail))


def family(outcomes: Sequence[Outcome]) -> tuple[Outcome, int]:
    """The test of a whole family of cells, and the place of the cell that decides it.

    It favours the claim where every cell does, at the largest p: every cell must be beyond the
    margin, so that none needs a correction (intersection-union). Where some cell points the other
    way, the smallest p of those counts after Holm's correction over all cells, which for the
    smallest is their number.
    """
    against = [k for k, one in enumerate(outcomes) if one.favours is False]
    if against:
        index = min(against, key=lambda k: outcomes[k].p)
        p = min(1.0, len(outcomes) * outcomes[index].p)
        return Outcome(False, p, outcomes[index].degrees), index
    unknown = [k for k, one in enumerate(outcomes) if one.favours is None]
    if unknown:
        return NOTHING, unknown[0]
    index = max(range(len(outcomes)), key=lambda k: outcomes[k].p)
    return outcomes[index], index


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down p-values (1979), in the order given; NaN counts as a test with p = 1.

        adjusted p_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))      p_(1) <= ... <= p_(m)

    An adjusted p below .05 keeps the chance of a single wrong verdict among the m below .05.
    """
    tests = [1.0 if math.isnan(p) else p for p in values]
    adjusted, largest = [math.nan] * len(tests), 0.0
    for rank, index in enumerate(sorted(range(len(tests)), key=lambda k: tests[k])):
        largest = max(largest, min(1.0, (len(tests) - rank) * tests[index]))
        adjusted[index] = largest
    return [math.nan if math.isnan(p) else new for p, new in zip(values, adjusted, strict=True)]
