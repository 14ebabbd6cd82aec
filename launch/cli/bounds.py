"""How many samples the theorems of 2509.08660 and 2601.08421 ask for; what an experiment needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reprise.alignment.theory import sample_sizes
from reprise.alignment.theory.sample_sizes import Setting
from reprise.launch.config import ConfigError
from reprise.rl.replicable import regression

REPLICABLE, PREFERENCES = "2509.08660", "2601.08421"


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
    """One row for each theorem of 2509.08660: what it is about, its formula, and the number."""
    requested = (epsilon, delta, rho, dimension)
    both = label_bound + weight_bound
    rows = [
        {
            "theorem": "3.1",
            "about": "ridge regression",
            "formula": "25 (B+Y)^2 d^3 ln(2/delta) / (lambda eps (rho-2delta))^2",
            "unit": "data points",
            "samples": regression.samples_theorem_3_1(*requested, regularization, both),
        },
        {
            "theorem": "3.2",
            "about": "ridge regression on a core set",
            "formula": "1600 (B+Y)^2 d^3 k^2 |theta|^4 ln(2/delta) / (eps^6 (rho-2delta)^2)",
            "unit": "data points",
            "samples": regression.samples_theorem_3_2(*requested, core_set, weight_bound, both),
        },
        {
            "theorem": "3.3",
            "about": "second moments",
            "formula": "8 T^2 d^8 ln(2d^2/delta) / (eps (rho-2delta))^2",
            "unit": "data points",
            "samples": regression.samples_theorem_3_3(*requested, rounds),
        },
        {
            "theorem": "4.1",
            "about": "R-LSVI, generative model",
            "formula": "H calls of 3.2: order d^6 k^3 H^23 ln(H/delta) / (eps^8 (rho-2delta)^2)",
            "unit": "next states",
            "samples": regression.samples_theorem_4_1(*requested, core_set, horizon),
        },
        {
            "theorem": "4.2",
            "about": "R-LSVI-UCB, episodes",
            "formula": "d^56 H^62 ln(1/delta)^5 / (eps^44 rho^2), constant not given",
            "unit": "episodes",
            "samples": regression.samples_theorem_4_2(*requested, horizon),
        },
    ]
    return [{"paper": REPLICABLE, "kind": "Theorem", **row} for row in rows]


def preference_bounds(s: Setting, alpha: float, start: float) -> list[dict[str, Any]]:
    """One row for each theorem of 2601.08421; A = 52 e^(4 gamma R) d^(2/p) / (lambda gamma^2).

    Args:
        s: the setting.
        alpha: growth of coverage (Corollary 3.6).
        start: r_0 of that corollary.
    """
    sizes = sample_sizes.schedule(s, alpha, start)
    reported = ", ".join(f"{size:.3g}" for size in sizes)
    threshold = "min(eta^2 R^2/C, 1/(4 gamma^2 C), eta^2/e^2)"
    rows: list[tuple[str, str, str, str, float]] = [
        (
            "Theorem 2.2",
            "any offline learner",
            "d C / eps^2 (p = 1: d^2), constant not given",
            "pairs, order",
            sample_sizes.offline(s),
        ),
        (
            "Proposition 3.1",
            "a round to r = min(1/(2 gamma), R)",
            "n = A C ln(9 gamma R n/delta) / r^2 (Eq. 5)",
            "pairs",
            sample_sizes.one_round(s),
        ),
        (
            "Theorem 3.2",
            "coverage threshold",
            f"A ln(9 gamma R K n/delta) / n <= {threshold} (Eqs. 6, 17)",
            "pairs a round",
            sample_sizes.threshold(s),
        ),
        (
            "Theorem 3.2",
            "floor at eps",
            "e^2 xi_n / gamma^2 <= eps^2",
            "pairs a round",
            sample_sizes.precise(s),
        ),
        ("Theorem 3.2", "rounds", "K = ln(R/eps) / ln(1/eta)", "rounds", sample_sizes.rounds(s)),
        (
            "Corollary 3.3",
            "constant batches",
            "K max(threshold, floor)",
            "pairs in all",
            sample_sizes.constant_batches(s),
        ),
        (
            "Corollary 3.6",
            "decaying batches",
            f"n_i eta^(alpha k), then n_f: {reported}",
            "pairs in all",
            sum(sizes),
        ),
        (
            "Theorem 4.4",
            "two rounds with the design",
            "d R^2 ln(1/delta) / eps^2, constant not given",
            "pairs, order",
            sample_sizes.two_rounds(s),
        ),
    ]
    return [
        {
            "paper": PREFERENCES,
            "kind": index.split()[0],
            "theorem": index.split()[1],
            "about": about,
            "formula": formula,
            "unit": unit,
            "samples": samples,
        }
        for index, about, formula, unit, samples in rows
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
    reported = []
    for index, row in enumerate(rows):
        if index == 0 or row["paper"] != rows[index - 1]["paper"]:
            reported += [""] * (index > 0) + [f"{row['paper']}"]
        reported.append(
            f"{row['kind']} {row['theorem']}".ljust(16) + f"{row['samples']:10.3g} "
            f"{row['unit']:14}{row['about']:36}{row['formula']}"
        )
    if measured is None:
        return reported
    target = f"epsilon {measured['epsilon']:g}, rho {measured['rho']:g}"
    if measured["needed"] is None:
        found = f"no cell reached {target}, with up to {measured['most_tried']:.3g} samples"
    else:
        found = (
            f"{target} was reached with {measured['needed']:.3g} samples (alpha "
            f"{measured['alpha']:.3g}); theorem {measured['theorem']} asks for "
            f"{measured['asked']:.3g}, {measured['ratio']:.3g} times as many"
        )
    return [*reported, "", f"{measured['experiment']}: {found}"]
