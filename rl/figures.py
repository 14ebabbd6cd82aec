"""Figures of the replicable linear experiments, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rollout.figures import COLOURS, MARKERS, finish, start


def draw_figure_one(summary: dict[str, Any], path: Path) -> None:
    """Return and share of identical weights against data (Figure 1), as `path`.png and `path`.svg.

    Thin lines are single internal seeds, where there are several.
    """
    figure, panels = start(2)
    lines = {f"$\\lambda$ = {c['lambda']:g}": c["lambda"] for c in summary["cells"]}
    curves = {
        label: [c for c in summary["cells"] if c["lambda"] == value]
        for label, value in lines.items()
    }
    if summary["baseline"]:
        curves["not replicable"] = summary["baseline"]
    for place, (label, cells) in enumerate(curves.items()):
        dashed = label == "not replicable"
        style: dict[str, Any] = {
            "color": "grey" if dashed else COLOURS[place % len(COLOURS)],
            "linestyle": "--" if dashed else "-",
        }
        x = [100 * cell["fraction"] for cell in cells]
        for panel, mean, seeds in (
            (panels[0], "return_mean", "return_by_seed"),
            (panels[1], "agreement", "agreement_by_seed"),
        ):
            y = np.array([cell[mean] for cell in cells])
            panel.plot(x, y, label=label, marker=MARKERS[place % 6], markersize=4, **style)
            if len(summary["internal_seeds"]) > 1:
                low, high = np.percentile([cell[seeds] for cell in cells], [25, 75], axis=1)
                panel.fill_between(x, low, high, color=style["color"], alpha=0.12, lw=0)
    panels[0].set_ylabel("return")
    panels[0].set_ylim(0, 520)
    panels[1].set_ylabel("share of the most common weights")
    panels[1].set_ylim(-0.02, 1.02)
    for panel in panels:
        panel.set_xlabel("data used by a run (% of the set)")
    panels[1].legend(frameon=False, fontsize=8)
    seeds = summary["internal_seeds"]
    told = f"internal seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} internal seeds"
    runs = summary["cells"][0]["runs"]
    finish(
        figure,
        path,
        f"{summary['protocol']}: {runs} runs for each of {told}"
        + ("" if len(seeds) == 1 else "; bands: middle half of the seeds"),
    )


def draw_frontier(summary: dict[str, Any], path: Path) -> None:
    """Agreement against samples with its predictions, and against suboptimality."""
    figure, panels = start(2)
    widths = list(dict.fromkeys(cell["alpha"] for cell in summary["cells"]))
    for place, alpha in enumerate([*widths, None]):
        cells = [
            cell
            for cell in [*summary["cells"], *summary["baseline"]]
            if cell["alpha"] == alpha and cell["agreement_weights"] is not None
        ]
        if not cells:
            continue
        colour = "grey" if alpha is None else COLOURS[place % len(COLOURS)]
        label = "unrounded" if alpha is None else f"$\\alpha$ = {alpha:.3g}"
        x = [cell["samples"] for cell in cells]
        y = [cell["agreement_weights"] for cell in cells]
        marker = MARKERS[place % 6]
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
    told = summary["theory"]
    finish(
        figure,
        path,
        "lines: exact product; dotted: Lemma 2.1 where not vacuous. Theorem "
        f"{told['theorem']} asks for {told['samples']:.1e} samples "
        f"(epsilon {told['epsilon']:g}, rho {told['rho']:g})",
    )
