"""The paper's claims about Figure 2, judged on made-up cells."""

import pytest

from rl.claims import claims, decrease, increase, no_increase, no_loss
from rl.figure_two import markdown

VARIANTS = ["baseline", "regularized", "quantized", "quantized_regularized"]


def cell(variant, agreement, returned, game="breakout", error=0.02, runs=5):
    return {
        "game": game,
        "variant": variant,
        "runs": runs,
        "missing": [],
        "agreement_mean": agreement,
        "agreement_se": error,
        "agreement_random_ties": agreement - 0.2,
        "agreement_random_ties_se": error,
        "return_mean": returned,
        "return_se": 2.0,
    }


def as_the_paper_has_it(game="breakout"):
    return [
        cell("baseline", 0.3, 100.0, game),
        cell("regularized", 0.32, 101.0, game),
        cell("quantized", 0.8, 20.0, game),
        cell("quantized_regularized", 0.7, 98.0, game),
    ]


def verdicts(cells, variants=VARIANTS):
    games = list(dict.fromkeys(each["game"] for each in cells))
    return {
        (one["claim"].split(":")[0][:30], one["game"]): one["holds"]
        for one in claims(cells, games, variants)
    }


def test_all_hold_where_all_hold():
    told = claims(as_the_paper_has_it(), ["breakout"], VARIANTS)
    assert [one["holds"] for one in told] == ["holds"] * 7
    assert told[1]["numbers"] == "agreement 0.8 against 0.3: difference +0.5 +- 0.055"


def test_the_low_return_is_about_breakout_only():
    games = as_the_paper_has_it() + as_the_paper_has_it("mspacman")
    told = claims(games, ["breakout", "mspacman"], VARIANTS)
    assert [one["game"] for one in told if "low return" in one["claim"]] == ["breakout"]
    assert len(told) == 13


def test_what_does_not_hold_is_said():
    cells = as_the_paper_has_it()
    cells[1] = cell("regularized", 0.9, 101.0)  # regularization alone suffices
    cells[2] = cell("quantized", 0.1, 150.0)  # quantization lowers agreement, raises the return
    cells[3] = cell("quantized_regularized", 0.31, 60.0)  # nothing kept
    told = [one["holds"] for one in claims(cells, ["breakout"], VARIANTS)]
    no = "does not hold"
    assert told == [no, no, no, no, no, "undecided", "undecided"]


def test_missing_runs_and_unknown_errors():
    cells = as_the_paper_has_it()
    cells[2] |= {"runs": 0, "agreement_mean": None, "return_mean": None}
    del cells[2]["agreement_random_ties"]
    cells[3]["agreement_se"] = None  # two runs
    told = [one["holds"] for one in claims(cells, ["breakout"], VARIANTS)]
    assert told == ["holds", "missing", "missing", "missing", "holds", "undecided", "holds"]


def test_other_variants_have_no_claims():
    cells = [cell("step-0.1", 0.5, 1.0), cell("step-1", 0.6, 1.0)]
    assert claims(cells, ["breakout"], ["step-0.1", "step-1"]) == []


@pytest.mark.parametrize(
    ("judge", "answers"),
    [
        (increase, [True, None, False]),
        (decrease, [False, None, True]),
        (no_loss, [True, True, False]),
        (no_increase, [False, True, True]),
    ],
)
def test_judges(judge, answers):
    assert [judge(difference, 0.05) for difference in (0.3, 0.02, -0.3)] == answers
    assert no_increase(0.08, 0.1) is None


def test_the_table_says_what_is_missing():
    cells = as_the_paper_has_it()
    cells[2] |= {"runs": 0, "agreement_mean": None, "return_mean": None}
    cells[2]["missing"] = ["runs/pqn/breakout_quantized/seed-0"]
    text = markdown({"cells": cells, "claims": claims(cells, ["breakout"], VARIANTS), "data": {}})
    rows = [line for line in text.splitlines() if line.startswith("| breakout | quantized |")]
    assert rows[0].count("missing") >= 2 and "20.0" not in rows[0]
    assert "Missing runs (1): runs/pqn/breakout_quantized/seed-0" in text
    assert "| breakout | baseline | 5 | 100.0 +- 3.920 |" in text
