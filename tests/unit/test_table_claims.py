"""Claims of a paper against our numbers: every verdict, from numbers set by hand."""

import math

import pytest

from launch.claims import Verdict, verdicts
from launch.evidence import Evidence, Number
from launch.tables import Table
from rollout.intervals import student

NAN = math.nan


def seeds(*values):
    return Number(dict(enumerate(values)), sum(values) / len(values), min(values), max(values))


def single(value, half=NAN):
    return Number({0: value}, value, value - half, value + half)


def verdict(left, relation, right, margin=0.0):
    """The verdict on `left relation right`, where the right side may be a constant."""
    constant = isinstance(right, float)
    table = Table.model_validate(
        {
            "title": "t",
            "source": "s",
            "about": "a",
            "budgets": {"laptop": {"note": "n", "runs": {"r": {"config": "c"}}}},
            "rows": [{"name": "a", "run": "r"}, {"name": "b", "run": "r"}],
            "columns": {"x": {"label": "x", "path": "x"}},
            "claims": [
                {
                    "text": "c",
                    "left": {"row": "a", "column": "x"},
                    "relation": relation,
                    "right": {"value": right} if constant else {"row": "b", "column": "x"},
                    "margin": margin,
                }
            ],
        }
    )
    numbers = {"a": {"x": left}, "b": {"x": left if constant else right}}
    evidence = Evidence(table, "laptop", table.budgets["laptop"], numbers)
    return verdicts(evidence)[0]


def test_differences_over_seeds_are_paired():
    # The seeds differ by 10, the methods by 1 in each: only pairing sees it.
    left, right = seeds(1.0, 11.1, 20.9), seeds(0.0, 10.0, 20.0)
    found = verdict(left, ">", right)
    assert found.verdict == "holds"
    mean, half = student([1.0, 1.1, 0.9])
    assert f"{mean:+.3g} [{mean - half:+.3g}, {mean + half:+.3g}] (paired, 3 seeds)" in (
        found.statistic
    )
    assert verdict(left, "<", right).verdict == "does not"
    assert verdict(seeds(1.0, 10.0, 20.0), ">", right).verdict == "undecided"


def test_only_seeds_that_both_sides_have_are_paired():
    left = Number({0: 1.0, 1: 2.0, 7: 99.0}, 34.0, NAN, NAN)
    right = Number({0: 0.0, 1: 1.01, 8: -99.0}, -32.7, NAN, NAN)
    assert "paired, 2 seeds" in verdict(left, ">", right).statistic


@pytest.mark.parametrize(
    ("left", "relation", "right", "margin", "expected"),
    [
        (single(2.0, 0.1), ">", single(1.0, 0.1), 0.0, "holds"),
        (single(2.0, 0.1), ">", single(1.0, 0.1), 0.9, "undecided"),
        (single(2.0, 0.1), ">", single(1.0, 0.1), 2.0, "does not"),
        (single(1.0, 0.8), ">", single(0.0, 0.8), 0.0, "undecided"),  # hypot: 1.13
        (single(1.0, 0.6), ">", single(0.0, 0.6), 0.0, "holds"),  # hypot: .85
        (single(1.0), ">", single(0.0), 0.0, "undecided"),  # no interval, no verdict
        (single(1.0, 0.0), ">", single(0.0, 0.0), 0.0, "holds"),  # exact
        (single(1.0, 0.2), ">", 0.5, 0.0, "holds"),
        (single(1.0, 0.2), "<", 0.5, 0.0, "does not"),
        (Number({0: 1.8}, 1.8, 1.1, 2.9), ">", 1.0, 0.0, "holds"),  # the near end counts
        (Number({0: 1.8}, 1.8, 0.9, 2.0), ">", 1.0, 0.0, "undecided"),
        (Number({0: 1.0}, 1.0, 0.9, 3.0), "<", single(1.5, 0.3), 0.0, "undecided"),
        (single(1.0, 0.2), "within", 1.1, 0.5, "holds"),
        (single(1.0, 0.2), "within", 1.1, 0.15, "undecided"),
        (single(1.0, 0.2), "within", 3.0, 0.5, "does not"),
        (seeds(1.0, 1.1, 0.9), ">", 0.0, 0.0, "holds"),
        (seeds(1.0, -1.1, 0.9), ">", 0.0, 0.0, "undecided"),
        (Number({}, NAN, NAN, NAN), ">", 0.0, 0.0, "undecided"),
    ],
)
def test_verdicts(left, relation, right, margin, expected):
    assert verdict(left, relation, right, margin).verdict == expected


def test_a_reason_is_told_only_where_the_claim_does_not_hold_and_a_row_shows_it():
    from launch.claim_schema import Claim, Side

    sides = {"left": Side(value=1.0), "right": Side(value=0.0), "reason": "too few."}
    holds, fails = (Claim(text="c", relation=r, **sides, shown_by="b") for r in (">", "<"))
    assert Verdict(holds, "holds", "").reason == Verdict(holds, "identity", "").reason == ""
    assert Verdict(fails, "does not", "").reason == "too few (shown by b)"
    assert Verdict(fails, "undecided", "").reason == "too few (shown by b)"
    guessed = Claim(text="c", relation="<", **sides)
    assert Verdict(guessed, "does not", "").reason == ""
