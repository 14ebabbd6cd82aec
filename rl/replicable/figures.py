"""Figures of the replicable linear experiments, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reprise.rollout.run.figures import COLOURS, MARKERS, finish, start
from reprise.rollout.run.intervals import student_half


def draw_figure_one(summary: dict[str, Any], path: Path) -> None:
    """Return and pairs with identical weights against data (Figure 1), as `path`.png and .svg.

    Bands are 95% intervals over internal seeds and data; dashed lines are not rounded, and grey
    ones not regularized.
    """
    figure, panels = start(2)
    cells = summary["cells"]
    strengths = list(dict.fromkeys(cell["lambda"] for cell in cells))
    for arm in ("rounded", "not rounded"):
        rounded = arm == "rounded"
        for index, strength in enumerate(strengths):
            curve = [c for c in cells if c["lambda"] == strength and c["arm"] == arm]
            if not curve:
                continue
            style: dict[str, Any] = {
                "color": COLOURS[index % len(COLOURS)] if strength else "grey",
                "linestyle": "-" if rounded else "--",
            }
            label = f"$\\lambda$ = {strength:g}" + ("" if rounded else ", not rounded")
            x = [cell["transitions"] for cell in curve]
            for panel, mean in ((panels[0], "return_mean"), (panels[1], "pairwise_identity")):
                if mean not in curve[0]:
                    continue
                y = [cell[mean] for cell in curve]
                panel.plot(x, y, label=label, marker=MARKERS[index % 6], markersize=4, **style)
                band = np.array([cell[f"{mean.removesuffix('_mean')}_ci95"] for cell in curve]).T
                if rounded and np.isfinite(band).all():
                    panel.fill_between(x, *band, color=style["color"], alpha=0.12, lw=0)
    panels[0].axhline(summary["no_data"]["return_mean"], color="black", lw=0.8, ls=":")
    panels[0].set_ylabel("return (dotted: of the grid alone, without data)")
    panels[0].set_ylim(0, 520)
    panels[1].set_ylabel("pairs of runs with identical weights")
    panels[1].set_ylim(-0.02, 1.02)
    for panel in panels:
        panel.set_xscale("log")
        panel.set_xlabel("transitions of a run")
    panels[0].legend(frameon=False, fontsize=7)
    seeds, learners = len(summary["internal_seeds"]), len(summary["recordings"])
    finish(
        figure,
        path,
        f"{summary['protocol']}: {cells[0]['runs']} runs for each of {seeds} internal seeds and "
        f"{learners} recorded learners; bands: 95% intervals",
    )


def draw_frontier(summary: dict[str, Any], path: Path) -> None:
    """Agreement against samples with its predictions, and against suboptimality."""
    figure, panels = start(2)
    widths = list(dict.fromkeys(cell["alpha"] for cell in summary["cells"]))
    for index, alpha in enumerate([*widths, None]):
        cells = [
            cell
            for cell in [*summary["cells"], *summary["baseline"]]
            if cell["alpha"] == alpha and cell["agreement_weights"] is not None
        ]
        if not cells:
            continue
        colour = "grey" if alpha is None else COLOURS[index % len(COLOURS)]
        label = "unrounded" if alpha is None else f"$\\alpha$ = {alpha:.3g}"
        x = [cell["samples"] for cell in cells]
        y = [cell["agreement_weights"] for cell in cells]
        marker = MARKERS[index % 6]
        panels[0].plot(x, y, marker, color=colour, label=label, markersize=5)
        if alpha is not None:
            panels[0].plot(x, [cell["product"] for cell in cells], "-", color=colour, lw=1)
            bound = np.maximum(0.0, [cell["bound"] for cell in cells])
            panels[0].plot(x, bound, ":", color=colour, lw=1)
        lost = np.maximum([cell["suboptimality"] for cell in cells], 1e-6)
        panels[1].plot(lost, y, "-", marker=marker, color=colour, label=label, markersize=4, lw=0.8)
    panels[0].set_xscale("log")
    panels[0].set_xlabel("samples M")
    panels[0].set_ylabel("pairs with identical weights")
    panels[1].set_xscale("log")
    panels[1].set_xlabel(f"suboptimality (optimal value {summary['optimal_value']:.3g})")
    panels[1].legend(frameon=False, fontsize=8)
    for panel in panels:
        panel.set_ylim(-0.02, 1.02)
    reported = summary["theory"]
    finish(
        figure,
        path,
        "lines: exact product; dotted: Lemma 2.1 where not vacuous. Theorem "
        f"{reported['theorem']} asks for {reported['samples']:.1e} samples "
        f"(epsilon {reported['epsilon']:g}, rho {reported['rho']:g})",
    )


def draw_figure_two(summary: dict[str, Any], path: Path) -> None:
    """Return, agreement, action gaps and churn of each variant, a row for each game (Figure 2).

    Bars are means, whiskers Student's 95%, dots single runs (of agreement: pairs); the tick
    across a bar of agreement is what is left of it if ties are broken at random.
    """
    games = list(dict.fromkeys(cell["game"] for cell in summary["cells"]))
    figure, grid = start(4, len(games))
    for panels, game in zip(np.atleast_2d(grid), games, strict=True):
        cells = [cell for cell in summary["cells"] if cell["game"] == game]
        bars = (("return", "returns"), ("agreement", "agreements"), ("churn", ""))
        for panel, (key, single) in zip(panels[[0, 1, 3]], bars, strict=True):
            for index, cell in enumerate(cells):
                _bar(panel, index, cell, key, single)
            panel.set_xlim(-0.6, len(cells) - 0.4)
            panel.set_xticks(range(len(cells)))
            panel.set_xticklabels(
                [cell["variant"].replace("_", "\n") for cell in cells], fontsize=6
            )
        for index, cell in enumerate(cells):
            if "gap_histogram" in cell:
                histogram = cell["gap_histogram"]
                colour = COLOURS[index % len(COLOURS)]
                panels[2].stairs(
                    histogram["shares"], histogram["edges"], color=colour, label=cell["variant"]
                )
        panels[2].set_xscale("log")
        panels[0].set_ylabel(f"{game}\nreturn, last 3 episodes")
        panels[1].set_ylabel("pairwise action agreement")
        panels[1].set_ylim(0, 1.02)
        panels[2].set_ylabel("share of observations")
        panels[2].set_xlabel("action gap / spread of values", fontsize=7)
        panels[3].set_ylabel("policy churn")
        if panels[2].has_data():
            panels[2].legend(frameon=False, fontsize=6)
    runs = [cell["runs"] for cell in summary["cells"]]
    count = f"{min(runs)}" if min(runs) == max(runs) else f"{min(runs)} to {max(runs)}"
    steps = sorted({step for cell in summary["cells"] for step in cell.get("steps", [])})
    finish(
        figure,
        path,
        f"{count} runs each of {' or '.join(f'{step:,}' for step in steps)} steps (the paper: 15 "
        "of 10,000,000); whiskers Student's 95%; ticks: ties broken at random",
    )


def _bar(panel: Any, index: int, cell: dict[str, Any], key: str, single: str) -> None:
    mean, error = cell.get(f"{key}_mean"), cell.get(f"{key}_se")
    if mean is None:
        panel.text(index, 0, "missing", rotation=90, ha="center", va="bottom", fontsize=7)
        return
    half = None if error is None else student_half(error, cell[f"{key}_degrees"])
    panel.bar(
        index, mean, yerr=half, color=COLOURS[index % len(COLOURS)], width=0.7, capsize=2, alpha=0.8
    )
    values = cell.get(single, [])
    panel.plot([index] * len(values), values, "o", color="black", markersize=2, alpha=0.6)
    if key == "agreement":
        panel.plot(index, cell["agreement_random_ties"], "_", color="black", markersize=14)
