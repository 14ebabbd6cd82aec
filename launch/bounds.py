"""How many samples the theorems of 2509.08660 ask for, and how many an experiment needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.config import ConfigError
from rl import regression


def bounds(
    epsilon: float,
    delta: float,
    rho: float,
    dimension: int,
    horizon: int,
    core_set: float,
    regularization: float,
    label_bound: float,
    weight_bound: float,
    rounds: int,
) -> list[dict[str, Any]]:
    """One row for each theorem: what it is about, its formula, and the number."""
    asked = (epsilon, delta, rho, dimension)
    both = label_bound + weight_bound
    return [
        {
            "theorem": "3.1",
            "about": "ridge regression",
            "formula": "25 (B+Y)^2 d^3 ln(2/delta) / (lambda eps (rho-2delta))^2",
            "unit": "data points",
            "samples": regression.samples_theorem_3_1(*asked, regularization, both),
        },
        {
            "theorem": "3.2",
            "about": "ridge regression on a core set",
            "formula": "1600 (B+Y)^2 d^3 k^2 |theta|^4 ln(2/delta) / (eps^6 (rho-2delta)^2)",
            "unit": "data points",
            "samples": regression.samples_theorem_3_2(*asked, core_set, weight_bound, both),
        },
        {
            "theorem": "3.3",
            "about": "second moments",
            "formula": "8 T^2 d^8 ln(2d^2/delta) / (eps (rho-2delta))^2",
            "unit": "data points",
            "samples": regression.samples_theorem_3_3(*asked, rounds),
        },
        {
            "theorem": "4.1",
            "about": "R-LSVI, generative model",
            "formula": "H calls of 3.2: order d^6 k^3 H^23 ln(H/delta) / (eps^8 (rho-2delta)^2)",
            "unit": "next states",
            "samples": regression.samples_theorem_4_1(*asked, core_set, horizon),
        },
        {
            "theorem": "4.2",
            "about": "R-LSVI-UCB, episodes",
            "formula": "d^56 H^62 ln(1/delta)^5 / (eps^44 rho^2), constant not given",
            "unit": "episodes",
            "samples": regression.samples_theorem_4_2(*asked, horizon),
        },
    ]


def needed(run: Path) -> dict[str, Any]:
    """What a finished `rl.lsvi` or `rl.lsvi_ucb` run needed, beside its theorem.

    The fewest samples whose cell reached both targets of the config's `theory` section: pairs with
    identical weights at least 1 - rho, and suboptimality at most epsilon.

    Raises:
        ConfigError: `run` holds no such result.
    """
    file = run / "summary.json"
    if not file.is_file():
        raise ConfigError(f"{run} holds no finished run: there is no {file}")
    summary = json.loads(file.read_text(encoding="utf-8"))
    if summary["experiment"] not in ("rl.lsvi", "rl.lsvi_ucb"):
        raise ConfigError(
            f"{run} is a run of {summary['experiment']}, not of rl.lsvi or rl.lsvi_ucb"
        )
    theory = summary["theory"]
    good = [
        cell
        for cell in summary["cells"]
        if cell["agreement_weights"] is not None
        and cell["agreement_weights"] >= 1 - theory["rho"]
        and cell["suboptimality"] <= theory["epsilon"]
    ]
    best = min(good, key=lambda cell: (cell["samples"], cell["suboptimality"]), default=None)
    return {
        "experiment": summary["experiment"],
        "epsilon": theory["epsilon"],
        "rho": theory["rho"],
        "theorem": theory["theorem"],
        "asked": theory["samples"],
        "needed": best and best["samples"],
        "alpha": best and best["alpha"],
        "ratio": best and theory["samples"] / best["samples"],
        "most_tried": max(cell["samples"] for cell in summary["cells"]),
    }


def lines(rows: list[dict[str, Any]], measured: Mapping[str, Any] | None) -> list[str]:
    """The rows for a person."""
    told = [
        f"Theorem {row['theorem']}  {row['samples']:10.3g} {row['unit']:12} {row['about']:32} "
        f"{row['formula']}"
        for row in rows
    ]
    if measured is None:
        return told
    target = f"epsilon {measured['epsilon']:g}, rho {measured['rho']:g}"
    if measured["needed"] is None:
        found = f"no cell reached {target}, with up to {measured['most_tried']:.3g} samples"
    else:
        found = (
            f"{target} was reached with {measured['needed']:.3g} samples (alpha "
            f"{measured['alpha']:.3g}); theorem {measured['theorem']} asks for "
            f"{measured['asked']:.3g}, {measured['ratio']:.3g} times as many"
        )
    return [*told, "", f"{measured['experiment']}: {found}"]
