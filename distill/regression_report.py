"""Tables and figures of the regression studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollout.figures import COLOURS, MARKERS, finish, start
from rollout.files import write_text

FLOOR = 1e-16


def write_table(summary: dict[str, Any], path: Path) -> None:
    """Every cell as a line of Markdown, subsets and the full data first."""
    head = ("method", "k", "N", "held-out relative error", "test MSE", "95% interval")
    lines = []
    for subset in summary["subsets"]:
        for name in ("random", "leverage"):
            low, high = subset[f"{name}_test_mse_ci95"]
            lines.append(
                (
                    f"{name} subset",
                    "",
                    str(subset["size"]),
                    f"{subset[f'{name}_relative_error']:.2g}",
                    f"{subset[f'{name}_test_mse']:.4g}",
                    f"[{low:.4g}, {high:.4g}]",
                )
            )
    for cell in summary["cells"]:
        low, high = cell["test_mse_ci95"]
        lines.append(
            (
                cell["route"],
                str(cell["k"]),
                str(cell["size"]),
                f"{cell['held_out_relative_error']:.2g}",
                f"{cell['test_mse']:.4g}",
                f"[{low:.4g}, {high:.4g}]",
            )
        )
    full = summary["cells"][0]["test_mse_full"]
    write_text(
        path,
        f"{summary['data']}: d = {summary['dimension']}, threshold q(q+1)/2 = "
        f"{summary['threshold']}, {summary['trials']} trials; full data: test MSE {full:.4g}\n\n"
        + markdown(head, lines),
    )


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def draw(summary: dict[str, Any], path: Path) -> None:
    """Held-out relative error and test error against k, with the threshold; `path`.png and .svg."""
    figure, panels = start(2)
    sampled = [cell for cell in summary["cells"] if cell["route"].startswith("sampled")]
    cells = [cell for cell in sampled if cell["route"] == sampled[0]["route"]]
    cells = cells or summary["cells"]
    for place, subset in enumerate(summary["subsets"]):
        colour, size = COLOURS[place % len(COLOURS)], subset["size"]
        line = sorted((c for c in cells if c["size"] == size), key=lambda cell: cell["k"])
        counts = [cell["k"] for cell in line]
        style = {"color": colour, "marker": MARKERS[place % 6], "markersize": 4, "lw": 1}
        errors = [max(cell["held_out_relative_error"], FLOOR) for cell in line]
        panels[0].plot(counts, errors, label=f"N = {size}", **style)
        panels[0].axhline(subset["random_relative_error"], color=colour, ls=":", lw=1)
        panels[1].plot(counts, [cell["test_mse"] for cell in line], label=f"N = {size}", **style)
        panels[1].axhline(subset["random_test_mse"], color=colour, ls=":", lw=1)
        panels[1].axhline(subset["leverage_test_mse"], color=colour, ls="--", lw=1)
    panels[1].axhline(summary["cells"][0]["test_mse_full"], color="black", lw=1, label="full data")
    for panel in panels:
        panel.axvline(summary["threshold"], color="grey", lw=1)
        panel.set_xlabel("regressors k")
        panel.set_yscale("log")
    panels[0].set_ylabel("held-out relative error of the loss")
    panels[1].set_ylabel("test mean squared error")
    panels[1].legend(frameon=False, fontsize=8)
    finish(
        figure,
        path,
        f"{summary['data']}: {summary['trials']} trials; grey: threshold q(q+1)/2 = "
        f"{summary['threshold']}; dotted: random subset, where distillation starts; dashed: "
        "leverage scores",
    )


def write_lower_bound(summary: dict[str, Any], path: Path) -> None:
    """The two lower bounds beside what was reached, as Markdown."""
    points = [
        (
            entry["route"],
            str(entry["size"]),
            f"{entry['bound']:g}",
            f"{entry['worst']:.3g}",
            f"{entry['eigenvalue']:.3g}",
            f"{entry['absolute']:.3g}",
        )
        for entry in summary["too_few_points"]
    ]
    regressors = [
        (
            entry["route"],
            str(entry["k"]),
            f"{entry['bound']:g}",
            f"{entry['worst_min']:.3g}",
            f"{entry['seen_apart']:.1g}",
        )
        for entry in summary["too_few_regressors"]
    ]
    write_text(
        path,
        f"{summary['data']}: q = {summary['width']}, threshold {summary['threshold']}, "
        f"{summary['trials']} trials\n\n"
        + markdown(
            ("route", "N", "bound (relative)", "reached", "bound (absolute)", "reached"), points
        )
        + "\n"
        + markdown(
            ("route", "k", "bound (relative)", "reached, least", "losses apart"), regressors
        ),
    )


def draw_lower_bound(summary: dict[str, Any], path: Path) -> None:
    """Worst relative error against points and against regressors, with the bounds."""
    figure, panels = start(2)
    routes = list(dict.fromkeys(entry["route"] for entry in summary["too_few_points"]))
    for place, route in enumerate(routes):
        line = [entry for entry in summary["too_few_points"] if entry["route"] == route]
        worst = [max(entry["worst"], FLOOR) for entry in line]
        sizes = [entry["size"] for entry in line]
        panels[0].plot(
            sizes, worst, color=COLOURS[place], marker=MARKERS[place], markersize=4, label=route
        )
    panels[0].axvline(summary["width"], color="grey", lw=1)
    panels[0].set_xlabel("points N (grey: q)")
    panels[0].legend(frameon=False, fontsize=8)
    line = summary["too_few_regressors"]
    counts = [entry["k"] for entry in line]
    worst = [max(entry["worst"], FLOOR) for entry in line]
    panels[1].plot(counts, worst, color=COLOURS[0], marker=MARKERS[0], markersize=4)
    held = [entry for entry in line if entry["bound"] > 0]
    panels[1].plot([entry["k"] for entry in held], [entry["bound"] for entry in held], "k--", lw=1)
    panels[1].axvline(summary["threshold"], color="grey", lw=1)
    panels[1].set_xlabel("regressors k (grey: q(q+1)/2; dashed: no algorithm does better)")
    for panel in panels:
        panel.set_yscale("log")
        panel.set_ylabel("worst relative error over all models")
    finish(
        figure, path, f"{summary['data']}: d = {summary['dimension']}, {summary['trials']} trials"
    )
