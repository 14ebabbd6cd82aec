"""Sentences of a paper, tested on our numbers: holds, does not, undecided, or identity.

A difference left - right, with its standard error and degrees of freedom, is tested against the
margin (launch.significance). Over seeds it is Student's, of differences paired by seed. Cells of
one run that bring their own intervals are taken as independent: standard errors add as squares,
each from the distance between value and end, which may differ between the ends (Zou and Donner
2008), with Welch and Satterthwaite's degrees of freedom. A bootstrap interval decides nothing, and
neither does an interval of no width, unless its column is exact: nothing varied, perhaps by luck.

Within a table p is corrected by Holm's step-down procedure over its claims: *holds* and *does not*
are said at a corrected p below .05, all else is *undecided*. An identity, which is exact arithmetic
and no test, is outside that: *identity* where it holds, *does not* where it is violated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reprise.launch.tables.claim_schema import Claim, Side
from reprise.launch.tables.evidence import Evidence, Number
from reprise.launch.tables.significance import LEVEL, Difference, Outcome, family, holm, outcome_of
from reprise.rollout.run.intervals import mean_of, student_quantile, variance_of, welch_degrees

VERDICTS = ("holds", "does not", "undecided", "identity")


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: Claim
    verdict: str  # one of VERDICTS
    statistic: str
    p: float = math.nan  # two-sided; NaN: no test
    holm_p: float = math.nan  # corrected over the table's claims
    degrees: float = math.nan  # of freedom of the test

    @property
    def reason(self) -> str:
        """Why the claim does not hold here, if a row of the table shows it."""
        is_explained = self.verdict in ("does not", "undecided") and self.claim.shown_by
        return (
            f"{self.claim.reason.rstrip('. ')} (shown by {self.claim.shown_by})"
            if is_explained
            else ""
        )


@dataclass(frozen=True)
class _Tested:
    """A claim before Holm's correction."""

    outcome: Outcome
    text: str
    violated: bool | None = None  # an identity's; None: unknown


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Every claim of the table."""
    claims = evidence.table.claims
    tested = [_tested(claim, evidence) for claim in claims]
    real = [k for k, claim in enumerate(claims) if not claim.identity]
    corrected = dict(zip(real, holm([tested[k].outcome.p for k in real]), strict=True))
    return [
        _identity(claim, one) if claim.identity else _decided(claim, one, corrected[k], len(real))
        for k, (claim, one) in enumerate(zip(claims, tested, strict=True))
    ]


def _identity(claim: Claim, tested: _Tested) -> Verdict:
    if tested.violated is None:
        return Verdict(claim, "undecided", tested.text)
    return Verdict(claim, "does not" if tested.violated else "identity", tested.text)


def _decided(claim: Claim, tested: _Tested, corrected: float, tests: int) -> Verdict:
    outcome = tested.outcome
    if math.isnan(outcome.p):
        return Verdict(claim, "undecided", tested.text)
    shown = f"; p {_p(outcome.p)}" + (f", Holm's {_p(corrected)}" if tests > 1 else "")
    verdict = "undecided"
    if corrected < LEVEL:
        verdict = "holds" if outcome.favours else "does not"
    return Verdict(claim, verdict, tested.text + shown, outcome.p, corrected, outcome.degrees)


def _p(value: float) -> str:
    return "< 1e-6" if value < 1e-6 else f"{value:.2g}"


def _tested(claim: Claim, evidence: Evidence) -> _Tested:
    """The test of one claim, over all its cells."""
    cells = claim.cells()
    differences = [_difference_of(cell, evidence) for cell in cells]
    outcomes = [outcome_of(one, claim.relation, claim.margin) for one in differences]
    violated = [_violated(one, claim) for one in differences]
    broken = None if None in violated and True not in violated else True in violated
    if len(cells) == 1:
        return _Tested(outcomes[0], _shown(cells[0], differences[0], evidence), broken)
    outcome, index = family(outcomes)
    if claim.identity and True in violated:
        index = violated.index(True)
    alone = sum(one.favours is True and one.p < LEVEL for one in outcomes)
    fine = sum(one is False for one in violated) if claim.identity else alone
    text = f"{len(cells)} cells, {fine} hold" + ("" if claim.identity else " alone") + "; worst: "
    return _Tested(outcome, text + _shown(cells[index], differences[index], evidence), broken)


def _violated(difference: Difference, claim: Claim) -> bool | None:
    """Whether an identity fails anywhere in the interval, or at the value if there is none."""
    if not claim.identity or math.isnan(difference.value):
        return None
    low, high = difference.low, difference.high
    if not difference.known:
        low = high = difference.value
    if claim.relation == "within":
        return not (-claim.margin < low and high < claim.margin)
    return not (low > claim.margin if claim.relation == ">" else -high > claim.margin)


def _shown(claim: Claim, difference: Difference, evidence: Evidence) -> str:
    """Both sides, the difference, its interval and what it was taken over."""
    left, right = _number(claim.left, evidence), _number(claim.right, evidence)
    if math.isnan(difference.value):
        return "a run is missing"
    shown = f"{_side(claim.left)} {left.value:.4g}, {_side(claim.right)} {right.value:.4g}"
    margin = f", margin {claim.margin:.3g}" if claim.margin else ""
    ends = ", no interval"
    if difference.known:
        ends = f" [{difference.low:+.3g}, {difference.high:+.3g}]"
    return f"{shown}; difference {difference.value:+.3g}{ends} ({difference.over}){margin}"


def _number(side: Side, evidence: Evidence) -> Number:
    if side.value is not None:
        value = side.value * side.times
        return Number({}, value, value, value, math.inf)
    assert side.row is not None and side.column is not None
    found = evidence.numbers[side.row][side.column]
    low, high = sorted((found.low * side.times, found.high * side.times))
    return Number(
        {seed: value * side.times for seed, value in found.by_seed.items()},
        *(found.value * side.times, low, high),
        degrees=found.degrees,
        bootstrapped=found.bootstrapped,
    )


def _difference_of(claim: Claim, evidence: Evidence) -> Difference:
    return _difference(_number(claim.left, evidence), _number(claim.right, evidence))


def _difference(left: Number, right: Number) -> Difference:
    """left - right with its standard errors, and over what it was taken."""
    if not (left.known and right.known):
        return Difference(math.nan, math.nan, math.nan, math.inf, math.inf, "")
    if left.exact and right.exact:
        return Difference(left.value - right.value, 0.0, 0.0, math.inf, math.inf, "exact")
    if len(left.by_seed) > 1 and len(right.by_seed) > 1:
        both = [seed for seed in left.by_seed if seed in right.by_seed]
        values = [left.by_seed[s] - right.by_seed[s] for s in both]
        return _over_seeds(values, f"paired, {len(both)} seeds")
    for several, other, sign in ((left, right, 1.0), (right, left, -1.0)):
        if len(several.by_seed) > 1 and not other.by_seed:
            values = [sign * (v - other.value) for v in several.by_seed.values()]
            return _over_seeds(values, f"{len(values)} seeds")
    below = [_end(left, left.low), _end(right, right.high)]
    above = [_end(left, left.high), _end(right, right.low)]
    numbers = (left, right)
    degrees = [math.inf if math.isnan(one.degrees) else one.degrees for one in numbers]
    over = "intervals of the run itself"
    if any(math.isnan(one.degrees) for one in numbers):
        over += ", degrees not given"
    if any(_varies_not(one) for one in numbers):
        over += ", one of no width"
    return Difference(
        left.value - right.value,
        *(math.hypot(*below), math.hypot(*above)),
        *(welch_degrees(below, degrees), welch_degrees(above, degrees)),
        over,
    )


def _over_seeds(values: list[float], over: str) -> Difference:
    """The mean of differences; without a standard error where they are all the same."""
    count = len(values)
    error = math.sqrt(variance_of(values) / count) if count else math.nan
    if error == 0:
        error, over = math.nan, f"{over}, all the same"
    degrees = float(max(count - 1, 1))
    return Difference(mean_of(values), error, error, degrees, degrees, over)


def _end(number: Number, end: float) -> float:
    """Standard error towards one end of the interval; NaN where the interval decides nothing."""
    if number.bootstrapped or _varies_not(number):
        return math.nan
    degrees = math.inf if math.isnan(number.degrees) else number.degrees
    return abs(number.value - end) / student_quantile(degrees)


def _varies_not(number: Number) -> bool:
    """Whether a sampled number has an interval of no width."""
    return number.low == number.high and not number.exact


def _side(side: Side) -> str:
    if side.value is not None:
        return "constant"
    times = f"{side.times:g} x " if side.times != 1 else ""
    return f"{times}{side.row} ({side.column})"
