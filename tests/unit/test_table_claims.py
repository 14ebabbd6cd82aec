"""Claims of a paper against our numbers: every verdict, from numbers set by hand."""

import math

import pytest

from reprise.launch.tables.claims import Verdict, verdicts
from reprise.launch.tables.evidence import Evidence, Number
from reprise.launch.tables.schema import Table
from reprise.rollout.run.intervals import student, student_half

NAN = math.nan


def seeds(*values):
    return Number(dict(enumerate(values)), sum(values) / len(values), min(values), max(values))


def single(value, half=NAN):
    return Number({0: value}, value, value - half, value + half)


def exact(value):
    return Number({0: value}, value, value, value, math.inf)


def table_of(numbers, claims):
    """Verdicts on `claims` (left row, relation, right row or constant, more) about `numbers`."""
    made = []
    for left, relation, right, more in claims:
        side = {"value": right} if isinstance(right, float) else {"row": right, "column": "x"}
        claim = {"text": "c", "left": {"row": left, "column": "x"}, "relation": relation}
        made.append({**claim, "right": side, **more})
    table = Table.model_validate(
        {
            "title": "t",
            "source": "s",
            "about": "a",
            "budgets": {"laptop": {"note": "n", "runs": {"r": {"config": "c"}}}},
            "rows": [{"name": name, "run": "r"} for name in numbers],
            "columns": {"x": {"label": "x", "path": "x"}},
            "claims": made,
        }
    )
    cells = {name: {"x": number} for name, number in numbers.items()}
    return verdicts(Evidence(table, "laptop", table.budgets["laptop"], cells))


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
        (exact(1.0), ">", exact(0.0), 0.0, "holds"),
        (exact(1.0), ">", exact(1.0), 0.0, "does not"),
        (exact(1.0), ">", 0.5, 0.0, "holds"),
        (single(1.0, 0.0), ">", single(0.0, 0.0), 0.0, "undecided"),  # sampled, nothing varied
        (seeds(1.0, 1.0, 1.0), ">", 0.0, 0.0, "undecided"),
        (single(1.0, 0.0), ">", single(0.0, 0.2), 0.0, "undecided"),
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
    from reprise.launch.tables.claim_schema import Claim, Side

    sides = {"left": Side(value=1.0), "right": Side(value=0.0), "reason": "too few."}
    holds, fails = (Claim(text="c", relation=r, **sides, shown_by="b") for r in (">", "<"))
    assert Verdict(holds, "holds", "").reason == Verdict(holds, "identity", "").reason == ""
    assert Verdict(fails, "does not", "").reason == "too few (shown by b)"
    assert Verdict(fails, "undecided", "").reason == "too few (shown by b)"
    guessed = Claim(text="c", relation="<", **sides)
    assert Verdict(guessed, "does not", "").reason == ""


def test_the_page_shows_p_and_holms_and_the_corrected_one_decides():
    # Two-sided p of 2.2 and 3 standard errors: .0278 and .0027; corrected .0278 and .0054.
    half = 1.959963984540054
    numbers = {"a": single(2.2, half), "b": single(3.0, half), "c": single(2.1, half)}
    first, second = table_of(numbers, [("a", ">", 0.0, {}), ("b", ">", 0.0, {})])
    assert (first.p, first.holm_p) == pytest.approx((0.0278, 0.0278), abs=1e-4)
    assert (second.p, second.holm_p) == pytest.approx((0.0027, 0.0054), abs=1e-4)
    assert (first.verdict, second.verdict) == ("holds", "holds")
    assert "p 0.028, Holm's 0.028" in first.statistic and "Holm's 0.0054" in second.statistic
    # A third claim, p = .0357: two above .025 no longer pass, though each interval excludes 0.
    found = table_of(numbers, [(name, ">", 0.0, {}) for name in numbers])
    assert [one.verdict for one in found] == ["undecided", "holds", "undecided"]
    assert found[0].holm_p == pytest.approx(2 * found[0].p)
    # `does not` needs the corrected p too.
    found = table_of(numbers, [("a", "<", 0.0, {}), ("b", ">", 0.0, {}), ("c", ">", 0.0, {})])
    assert [one.verdict for one in found] == ["undecided", "holds", "undecided"]


def test_degrees_of_freedom_widen_the_interval_and_welch_joins_them():
    # Standard errors 1 and 1 with 2 and 4 degrees: 16/3 degrees, t = 2.523; without: 1.96.
    left = Number({0: 3.0}, 3.0, 3.0 - 4.30265, 3.0 + 4.30265, 2.0)
    right = Number({0: 0.0}, 0.0, -2.77645, 2.77645, 4.0)
    [found] = table_of({"a": left, "b": right}, [("a", ">", "b", {})])
    assert found.degrees == pytest.approx(16 / 3, rel=1e-4)
    half = student_half(math.sqrt(2), 16 / 3)
    assert half == pytest.approx(2.5226 * math.sqrt(2), abs=1e-3)
    assert f"[{3 - half:+.3g}, {3 + half:+.3g}] (intervals of the run itself)" in found.statistic
    assert found.verdict == "undecided" and found.p == pytest.approx(0.0838, abs=1e-3)
    [found] = table_of({"a": single(3.0, 1.96), "b": single(0.0, 1.96)}, [("a", ">", "b", {})])
    assert "degrees not given" in found.statistic and found.degrees == math.inf


def test_a_bootstrap_decides_nothing_but_seeds_are_paired_all_the_same():
    middle = Number({0: 1.0, 1: 2.0}, 1.5, 1.0, 2.0, bootstrapped=True)
    other = Number({0: 0.0, 1: 1.01}, 0.5, 0.0, 1.01, bootstrapped=True)
    assert verdict(middle, ">", single(0.0, 0.1)).verdict == "undecided"
    found = verdict(middle, ">", other)
    assert found.verdict == "holds" and "paired, 2 seeds" in found.statistic


def test_an_identity_is_a_class_of_its_own_outside_holms():
    numbers = {"a": exact(1.0), "b": exact(1.0 + 1e-12), "c": single(2.2, 1.959964)}
    same = {"identity": True, "margin": 1e-9}
    found = table_of(numbers, [("a", "within", "b", same), ("c", ">", 0.0, {})])
    assert [one.verdict for one in found] == ["identity", "holds"]
    assert found[1].holm_p == found[1].p and math.isnan(found[0].p)
    assert "Holm" not in found[0].statistic
    # Violated: does not. Measured with an interval: all of it must satisfy the claim.
    numbers |= {"b": exact(2.0), "d": single(1e-12, 1e-12), "e": single(0.0, 1.0)}
    numbers["f"] = Number({}, NAN, NAN, NAN)
    small = {"identity": True}
    found = table_of(
        numbers, [("a", "within", "b", same), *((name, "<", 1e-6, small) for name in "def")]
    )
    assert [one.verdict for one in found] == ["does not", "identity", "does not", "undecided"]


FAMILY = {"each": {"n": [1, 2, 3]}}


def family_of(*values, half=1.959964, more=FAMILY):
    numbers = {f"n = {n}": single(value, half) for n, value in enumerate(values, start=1)}
    return table_of(numbers, [("n = {n}", ">", 0.0, more)])[0]


def test_a_family_holds_only_if_every_cell_does():
    found = family_of(5.0, 2.1, 3.0)
    assert found.verdict == "holds" and found.p == pytest.approx(0.0357, abs=1e-4)
    assert found.statistic.startswith("3 cells, 3 hold alone; worst: n = 2 (x) 2.1, constant 0")
    assert "[+0.14, +4.06]" in found.statistic
    # The favourable cell alone would decide it; one undecided cell keeps the family undecided.
    found = family_of(5.0, 1.0, 3.0)
    assert found.verdict == "undecided" and "3 cells, 2 hold alone" in found.statistic


def test_a_family_fails_by_one_cell_after_holms_correction_over_it():
    # p of -2.2 errors is .0278, times three .083: not significant among three cells.
    found = family_of(5.0, -2.2, 3.0)
    assert found.verdict == "undecided" and found.p == pytest.approx(3 * 0.0278, abs=1e-3)
    found = family_of(5.0, -3.0, 3.0)
    assert found.verdict == "does not" and "worst: n = 2 (x) -3" in found.statistic
    assert found.p == pytest.approx(3 * 0.0027, abs=1e-4)


def test_a_family_of_identities_names_the_cell_that_breaks_it():
    more = {**FAMILY, "identity": True}
    assert family_of(1.0, 2.0, 3.0, half=0.5, more=more).verdict == "identity"
    found = family_of(1.0, -2.0, 3.0, half=0.5, more=more)
    assert found.verdict == "does not" and "3 cells, 2 hold; worst: n = 2" in found.statistic


def test_a_family_may_name_whole_rows():
    numbers = {"red, k = 86": exact(1.0), "Boston, k = 116": exact(2.0)}
    more = {"each": {"row": list(numbers)}}
    assert table_of(numbers, [("{row}", ">", 0.0, more)])[0].verdict == "holds"
    assert table_of(numbers, [("{row}", ">", 1.5, more)])[0].verdict == "does not"
