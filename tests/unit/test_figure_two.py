"""Figure 2's table from made-up cells."""

from reprise.rl.figure_two import markdown


def cell(variant, agreement, returned):
    return {
        "game": "breakout",
        "variant": variant,
        "runs": 5,
        "missing": [],
        "agreement_mean": agreement,
        "agreement_se": 0.02,
        "agreement_degrees": 4,
        "agreement_random_ties": agreement - 0.2,
        "agreement_random_ties_se": 0.02,
        "agreement_random_ties_degrees": 4,
        "return_mean": returned,
        "return_se": 2.0,
        "return_degrees": 4,
    }


def test_the_table_says_what_is_missing():
    cells = [cell("baseline", 0.3, 100.0), cell("quantized", 0.8, 20.0)]
    cells[1] |= {"runs": 0, "agreement_mean": None, "return_mean": None}
    cells[1]["missing"] = ["runs/pqn/breakout_quantized/seed-0"]
    text = markdown({"cells": cells, "data": {}})
    rows = [line for line in text.splitlines() if line.startswith("| breakout | quantized |")]
    assert rows[0].count("missing") >= 2 and "20.0" not in rows[0]
    assert "Missing runs (1): runs/pqn/breakout_quantized/seed-0" in text
    assert "| breakout | baseline | 5 | 100.0 +- 5.553 |" in text
