"""Tables and figures of the regression studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprise.rollout.files import write_text
from reprise.rollout.run.figures import COLOURS, MARKERS, finish, start
from reprise.rollout.run.markdown import markdown_table

FLOOR = 1e-16


def write_table(summary: dict[str, Any], path: Path) -> None:
    """Every cell as a line of Markdown, subsets first."""
    head = (
        "method",
        "k",
        "N",
        "held-out error",
        "worst error",
        "test MSE",
        "95% interval",
        "median",
    )
    lines = []
    for subset in summary["subsets"]:
        for name in ("random", "leverage"):
            of = {
                key.removeprefix(f"{name}_"): value
                for key, value in subset.items()
                if key.startswith(name)
            }
            errors = of["relative_error"], of["worst_relative_error"]
            index = f"{name} subset", "", str(subset["size"])
            lines.append(
                (
                    *index,
                    *_numbers(*errors, of["test_mse"], of["test_mse_ci95"], of["test_mse_median"]),
                )
            )
    for cell in summary["cells"]:
        errors = cell["held_out_relative_error"], cell["worst_relative_error"]
        index = cell["route"], str(cell["k"]), str(cell["size"])
        found = cell["test_mse"], cell["test_mse_ci95"], cell["test_mse_median"]
        lines.append((*index, *_numbers(*errors, *found)))
    full = summary["cells"][0]["test_mse_full"]
    write_text(
        path,
        f"{summary['data']}: d = {summary['dimension']}, threshold q(q+1)/2 = "
        f"{summary['threshold']}, {summary['trials']} trials; full data: test MSE {full:.4g}\n\n"
        "Errors are relative, of the loss: mean over held-out regressors, and the largest over all "
        "linear models.\n\n" + markdown_table(head, lines),
    )


def _numbers(
    relative: float, worst: float, mse: float, interval: Sequence[float], median: float
) -> list[str]:
    low, high = interval
    errors = [f"{relative:.2g}", f"{worst:.2g}"]
    return [*errors, f"{mse:.4g}", f"[{low:.4g}, {high:.4g}]", f"{median:.4g}"]


def draw(summary: dict[str, Any], path: Path) -> None:
    """Relative error of the loss (mean, worst) and test error against k; `path`.png and .svg."""
    figure, panels = start(3)
    sampled = [cell for cell in summary["cells"] if cell["route"].startswith("sampled")]
    route = (sampled or summary["cells"])[0]["route"]
    full = summary["cells"][0]["test_mse_full_median"]
    for index, subset in enumerate(summary["subsets"]):
        colour, size = COLOURS[index % len(COLOURS)], subset["size"]
        line = sorted(
            (c for c in summary["cells"] if (c["size"], c["route"]) == (size, route)),
            key=lambda cell: cell["k"],
        )
        curves = (
            ("held_out_relative_error", "random_relative_error", None, 1.0),
            ("worst_relative_error", "random_worst_relative_error", None, 1.0),
            ("test_mse_median", "random_test_mse_median", "leverage_test_mse_median", full),
        )
        for panel, (key, dotted, dashed, unit) in zip(panels, curves, strict=True):
            values = [max(cell[key] / unit, FLOOR) for cell in line]
            marks = {"marker": MARKERS[index % 6], "markersize": 4, "lw": 1}
            counts = [cell["k"] for cell in line]
            panel.plot(counts, values, color=colour, label=f"N = {size}", **marks)
            panel.axhline(subset[dotted] / unit, color=colour, ls=":", lw=1)
            if dashed:
                panel.axhline(subset[dashed] / unit, color=colour, ls="--", lw=1)
    for panel, label in zip(
        panels,
        (
            "held-out error of the loss",
            "worst error over all models",
            "median test MSE / full data's",
        ),
        strict=True,
    ):
        panel.axvline(summary["threshold"], color="grey", lw=1)
        panel.set_xlabel("regressors k")
        panel.set_ylabel(label)
    for panel in panels[:2]:
        panel.set_yscale("log")
    panels[2].legend(frameon=False, fontsize=8)
    finish(
        figure,
        path,
        f"{summary['data']}, {route}, {summary['trials']} trials; grey: threshold q(q+1)/2 = "
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
        + markdown_table(
            ("route", "N", "bound (relative)", "reached", "bound (absolute)", "reached"), points
        )
        + "\n"
        + markdown_table(
            ("route", "k", "bound (relative)", "reached, least", "losses apart"), regressors
        ),
    )


def draw_lower_bound(summary: dict[str, Any], path: Path) -> None:
    """Worst relative error against points and against regressors, with the bounds."""
    figure, panels = start(2)
    routes = list(dict.fromkeys(entry["route"] for entry in summary["too_few_points"]))
    for index, route in enumerate(routes):
        line = [entry for entry in summary["too_few_points"] if entry["route"] == route]
        worst = [max(entry["worst"], FLOOR) for entry in line]
        sizes = [entry["size"] for entry in line]
        panels[0].plot(
            sizes, worst, color=COLOURS[index], marker=MARKERS[index], markersize=4, label=route
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
    panels[1].set_xlabel("regressors k (grey: threshold; dashed: bound)")
    for panel in panels:
        panel.set_yscale("log")
        panel.set_ylabel("worst relative error over all models")
    finish(
        figure, path, f"{summary['data']}: d = {summary['dimension']}, {summary['trials']} trials"
    )
