"""What 2509.08660 says about Figure 2, in words, and whether it holds in a table of cells.

A difference of two means d with standard error e (of independent cells) is an increase if
d > 1.96 e and a decrease if d < -1.96 e. "no increase worth the name" holds if more than .1 can be
excluded, d + 1.96 e < .1. Anything in between is "undecided", which with few runs is common; so is
a cell of two runs, whose agreement has no error. Several claims are tested and none is corrected
for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Cell = dict[str, Any]
MATERIAL = 0.1  # an increase of agreement smaller than this is none worth the name


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper and how to judge it.

    Attributes:
        words: the paper's.
        variant: compared with the variant `against`.
        key: of the cell: `agreement`, `agreement_random_ties` or `return`.
        judge: (difference, 1.96 standard errors) -> whether it holds, None if undecided.
        games: only in these environments' games; empty for all.
    """

    words: str
    variant: str
    against: str
    key: str
    judge: Callable[[float, float], bool | None]
    games: tuple[str, ...] = ()


def increase(difference: float, half: float) -> bool | None:
    """Whether it is an increase."""
    return True if difference > half else False if difference < -half else None


def decrease(difference: float, half: float) -> bool | None:
    """Whether it is a decrease."""
    return increase(-difference, half)


def no_increase(difference: float, half: float) -> bool | None:
    """Whether there is no increase worth the name."""
    return True if difference + half < MATERIAL else False if difference - half > 0 else None


def no_loss(difference: float, half: float) -> bool | None:
    """Whether it is "within variance" or above; intervals that overlap cannot show a loss."""
    return difference >= -half


CLAIMS = (
    Claim(
        "regularization alone is insufficient to ensure high agreement",
        "regularized",
        "baseline",
        "agreement",
        no_increase,
    ),
    Claim(
        "quantization leads to increased agreement",
        "quantized",
        "baseline",
        "agreement",
        increase,
    ),
    Claim(
        "(not the paper's: also if ties are broken at random)",
        "quantized",
        "baseline",
        "agreement_random_ties",
        increase,
    ),
    Claim(
        "quantized policies can agree on the wrong actions: low return on Breakout",
        "quantized",
        "baseline",
        "return",
        decrease,
        ("breakout",),
    ),
    Claim(
        "quantized and regularized: the return is within variance of the baseline",
        "quantized_regularized",
        "baseline",
        "return",
        no_loss,
    ),
    Claim(
        "quantized and regularized: the benefits of agreement are kept",
        "quantized_regularized",
        "baseline",
        "agreement",
        increase,
    ),
    Claim(
        "(not the paper's: also if ties are broken at random)",
        "quantized_regularized",
        "baseline",
        "agreement_random_ties",
        increase,
    ),
)


def claims(
    cells: Sequence[Cell], games: Sequence[str], variants: Sequence[str]
) -> list[dict[str, str]]:
    """Each claim about `variants` in each game: holds, does not hold, undecided or missing."""
    of = {(cell["game"], cell["variant"]): cell for cell in cells}
    told = []
    for claim in CLAIMS:
        if not {claim.variant, claim.against} <= set(variants):
            continue
        for game in games:
            if claim.games and game not in claim.games:
                continue
            holds, numbers = _judge(claim, of[game, claim.variant], of[game, claim.against])
            told.append({"claim": claim.words, "game": game, "holds": holds, "numbers": numbers})
    return told


def _judge(claim: Claim, cell: Cell, against: Cell) -> tuple[str, str]:
    means = [_mean(each, claim.key) for each in (cell, against)]
    if means[0] is None or means[1] is None:
        return "missing", "-"
    errors = [each.get(f"{claim.key}_se") for each in (cell, against)]
    difference = means[0] - means[1]
    shown = f"{claim.key.split('_')[0]} {means[0]:.3g} against {means[1]:.3g}"
    if errors[0] is None or errors[1] is None:
        return "undecided", f"{shown}: difference {difference:+.3g}, error unknown"
    half = 1.96 * math.hypot(errors[0], errors[1])
    verdict = claim.judge(difference, half)
    word = "undecided" if verdict is None else "holds" if verdict else "does not hold"
    return word, f"{shown}: difference {difference:+.3g} +- {half:.2g}"


def _mean(cell: Cell, key: str) -> float | None:
    value: float | None = cell.get(f"{key}_mean", cell.get(key))
    return value
