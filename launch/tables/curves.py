"""Curves over rounds from several seeds: gather, average, print as a table, draw."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprise.rollout.run.figures import COLOURS, MARKERS, finish, start
from reprise.rollout.run.intervals import student
from reprise.rollout.run.markdown import markdown_table
from reprise.rollout.run.run_dir import metrics_of

METRICS = {
    "reward_mean": "reward",
    "win_rate_vs_initial": "win rate",
    "rouge_l": "ROUGE-L",
    "kl_to_initial": "ln π/π₀ (nats)",
}
Curves = Mapping[str, Sequence[Mapping[int, Mapping[str, float]]]]


def rounds_so_far(run: Path) -> dict[int, dict[str, Any]]:
    """Round -> what was measured, from the metrics of a finished or a running run."""
    return {record["round"]: record for record in metrics_of(run) if "reward_mean" in record}


def last_record(run: Path) -> dict[str, Any]:
    """The last whole line of a run's metrics; empty if there is none."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return {}
    with open(file, "rb") as stream:
        stream.seek(max(0, file.stat().st_size - 65536))
        lines = stream.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines and lines[-1].startswith(b"{") else {}


def paired_difference(
    curves: Curves, better: str, worse: str, metric: str, round: int
) -> tuple[float, float, int]:
    """Mean and 95% half-width of `better` minus `worse` over the seeds both have, and how many."""
    pairs = zip(curves[better], curves[worse], strict=False)
    differences = [
        a[round][metric] - b[round][metric] for a, b in pairs if round in a and round in b
    ]
    if not differences:
        return math.nan, math.nan, 0
    return *student(differences), len(differences)


def rows(curves: Curves) -> list[list[str]]:
    """One row for each method and round: mean ± half-width of the 95% interval, over seeds."""
    table = []
    for method, seeds in curves.items():
        for round in sorted({round for seed in seeds for round in seed}):
            measured = [seed[round] for seed in seeds if round in seed]
            cells = [_cell([record[metric] for record in measured]) for metric in METRICS]
            table.append([method, str(round), *cells, str(len(measured))])
    return table


def markdown(curves: Curves) -> str:
    """The table in Markdown."""
    head = ["method", "round", *METRICS.values(), "seeds"]
    return markdown_table(head, rows(curves))


def draw(curves: Curves, path: Path, caption: str) -> None:
    """Win rate and reward against round (2601.08421, Figure 2), as `path`.png and `path`.svg."""
    figure, panels = start(2)
    metrics = ("win_rate_vs_initial", "reward_mean")
    for panel, metric in zip(panels, metrics, strict=True):
        for index, (method, seeds) in enumerate(curves.items()):
            known = sorted({round for seed in seeds for round in seed})
            values = [[seed[k][metric] for seed in seeds if k in seed] for k in known]
            mean = np.array([np.mean(value) for value in values])
            spread = np.array([np.std(value) for value in values])
            colour = COLOURS[index % len(COLOURS)]
            panel.plot(
                known,
                mean,
                label=method,
                color=colour,
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                linestyle="--" if "offline" in method else "-",
            )
            panel.fill_between(known, mean - spread, mean + spread, color=colour, alpha=0.12, lw=0)
        panel.set_xlabel("round")
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("win rate against the initial policy")
    panels[0].axhline(0.5, color="grey", lw=0.8, ls=":")
    panels[1].set_ylabel("reward (in deviations of pi_0's)")
    panels[0].legend(frameon=False, fontsize=8)
    finish(figure, path, caption)


def _cell(values: Sequence[float]) -> str:
    mean, half = student(values)
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"
