"""Sentences of a paper, tested on our numbers: holds, does not, or undecided.

The difference left - right is compared with the margin by its 95% interval:

    left > right    holds where the whole interval is above the margin, does not where it is below
    left < right    likewise with the sides exchanged
    within          holds where the whole interval is inside (-margin, margin), does not where it is
                    wholly outside

Over seeds the interval is Student's, of differences paired by seed. Cells of one run that bring
their own intervals are taken as independent: distances from value to end, which may differ between
the ends, add as squares (Zou and Donner 2008). A difference without an interval is undecided,
unless both sides are exact (a constant, or an interval of no width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.evidence import Evidence, Number
from launch.tables import Claim, Side
from rollout.intervals import student


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: Claim
    verdict: str  # holds, does not, undecided
    statistic: str

    @property
    def reason(self) -> str:
        """The authors' opinion, where the claim does not hold."""
        return "" if self.verdict == "holds" else self.claim.reason


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Every claim of the table."""
    return [_verdict(claim, evidence) for claim in evidence.table.claims]


def _verdict(claim: Claim, evidence: Evidence) -> Verdict:
    left, right = _number(claim.left, evidence), _number(claim.right, evidence)
    difference, low, high, runs = _difference(left, right)
    if math.isnan(difference):
        return Verdict(claim, "undecided", "a run is missing")
    shown = f"{_side(claim.left)} {left.value:.4g}, {_side(claim.right)} {right.value:.4g}"
    margin = f", margin {claim.margin:.3g}" if claim.margin else ""
    if math.isnan(low) or math.isnan(high):
        text = f"{shown}; difference {difference:+.3g}, no interval ({runs}){margin}"
        return Verdict(claim, "undecided", text)
    text = f"{shown}; difference {difference:+.3g} [{low:+.3g}, {high:+.3g}] ({runs}){margin}"
    return Verdict(claim, _decide(claim, low, high), text)


def _decide(claim: Claim, low: float, high: float) -> str:
    margin = claim.margin
    if claim.relation == "within":
        if -margin < low and high < margin:
            return "holds"
        return "does not" if low > margin or high < -margin else "undecided"
    if claim.relation == "<":
        low, high = -high, -low
    if low > margin:
        return "holds"
    return "does not" if high <= margin else "undecided"


def _number(side: Side, evidence: Evidence) -> Number:
    if side.value is not None:
        return Number({}, side.value, side.value, side.value)
    assert side.row is not None and side.column is not None
    found = evidence.numbers[side.row][side.column]
    return Number(
        {seed: value * side.times for seed, value in found.by_seed.items()},
        found.value * side.times,
        *sorted((found.low * side.times, found.high * side.times)),
    )


def _difference(left: Number, right: Number) -> tuple[float, float, float, str]:
    """left - right, the ends of its 95% interval, and over what it was taken."""
    if not (left.known and right.known):
        return math.nan, math.nan, math.nan, ""
    if len(left.by_seed) > 1 and len(right.by_seed) > 1:
        both = [seed for seed in left.by_seed if seed in right.by_seed]
        mean, half = student([left.by_seed[s] - right.by_seed[s] for s in both])
        return mean, mean - half, mean + half, f"paired, {len(both)} seeds"
    for several, other, sign in ((left, right, 1.0), (right, left, -1.0)):
        if len(several.by_seed) > 1 and not other.by_seed:
            mean, half = student([sign * (v - other.value) for v in several.by_seed.values()])
            return mean, mean - half, mean + half, f"{len(several.by_seed)} seeds"
    difference = left.value - right.value
    below = math.hypot(left.value - left.low, right.high - right.value)
    above = math.hypot(left.high - left.value, right.value - right.low)
    return difference, difference - below, difference + above, "intervals of the run itself"


def _side(side: Side) -> str:
    if side.value is not None:
        return "constant"
    times = f"{side.times:g} x " if side.times != 1 else ""
    return f"{times}{side.row} ({side.column})"
