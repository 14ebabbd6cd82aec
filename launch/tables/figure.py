"""The figure of a table, as SVG and PNG: readable in print and by colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprise.launch.tables.evidence import Evidence, entries_of
from reprise.launch.tables.schema import Figure, Row
from reprise.launch.tables.values import number_at
from reprise.rollout.run.figures import COLOURS, MARKERS, save, start

LINES = ("-", "--", "-.", ":")


def draw(evidence: Evidence, path: Path, suffixes: Sequence[str] = (".svg", ".png")) -> list[Path]:
    """`path` with each suffix; the same numbers give the same file."""
    figure = evidence.table.figure
    assert figure is not None
    count = len(figure.y)
    sheet, panels = start(count, size=(1.0 + 4.2 * count, 3.8))
    painters = {"curves": _curves, "bars": _bars, "frontier": _frontier}
    for index, panel in enumerate(panels):
        painters[figure.kind](panel, evidence, figure, figure.y[index])
        label = figure.y_labels[index] if index < len(figure.y_labels) else figure.y[index]
        panel.set_ylabel(label)
        if figure.kind != "bars":
            panel.set_xlabel(figure.x_label or figure.x)
        if figure.log_x:
            panel.set_xscale("log")
        if figure.log_y:
            panel.set_yscale("log")
    handles, labels = panels[0].get_legend_handles_labels()
    if labels:
        sheet.legend(
            handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
    return save(sheet, path, suffixes)


def _style(index: int) -> dict[str, Any]:
    """Colour, marker and line differ together, so that any one of them tells series apart."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index // len(COLOURS) % len(LINES)],
        "markersize": 4,
    }


def _curves(panel: Any, evidence: Evidence, figure: Figure, key: str) -> None:
    """Mean over seeds of `key` against `x`, with their range as a band.

    A line for each row; rows of the same runs are one, called what their names share before the
    last comma.
    """
    of_runs: dict[tuple[str, ...], list[Row]] = {}
    for line in evidence.table.lines():
        of_runs.setdefault(tuple(line.runs), []).append(line)
    for index, (line, *more) in enumerate(of_runs.values()):
        curves = [
            {number_at(entry, figure.x): number_at(entry, key) for entry in curve}
            for curve in entries_of(evidence, line.name, figure.entries, figure.file)
        ]
        if not curves:
            continue
        xs = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[x] for x in xs] for curve in curves])
        style = _style(index)
        sparse = max(1, len(xs) // 12)
        name = line.name.rpartition(",")[0] if more else line.name
        panel.plot(xs, values.mean(axis=0), label=name, markevery=sparse, **style)
        low, high = values.min(axis=0), values.max(axis=0)
        panel.fill_between(xs, low, high, color=style["color"], alpha=0.12, lw=0)


def _bars(panel: Any, evidence: Evidence, figure: Figure, column: str) -> None:
    """A bar for each row, with its 95% interval; a row without a number has none."""
    lines = evidence.table.lines()
    for index, line in enumerate(lines):
        number = evidence.numbers[line.name][column]
        if not number.known:
            panel.text(index, 0, "missing", rotation=90, ha="center", va="bottom", fontsize=7)
            continue
        hatch = ("", "//", "..", "xx")[index % 4]
        colour = COLOURS[index % len(COLOURS)]
        panel.bar(index, number.value, color=colour, alpha=0.75, hatch=hatch, edgecolor="black")
        if number.low == number.low:
            ends = [[number.value - number.low], [number.high - number.value]]
            panel.errorbar(index, number.value, yerr=np.abs(ends), color="black", capsize=3)
    panel.set_xticks(range(len(lines)), [line.name for line in lines], rotation=40, ha="right")
    panel.tick_params(axis="x", labelsize=7)


def _frontier(panel: Any, evidence: Evidence, figure: Figure, column: str) -> None:
    """Column against column with its 95% interval; rows whose names agree up to the last comma are
    joined."""
    series: dict[str, list[tuple[float, ...]]] = {}
    for line in evidence.table.lines():
        x = evidence.numbers[line.name][figure.x]
        y = evidence.numbers[line.name][column]
        if x.known and y.known:
            below, above = (0.0 if d != d else abs(d) for d in (y.value - y.low, y.high - y.value))
            series.setdefault(line.name.rpartition(",")[0] or line.name, []).append(
                (x.value, y.value, below, above)
            )
    for index, (name, points) in enumerate(series.items()):
        xs, ys, *ends = zip(*points, strict=True)
        panel.errorbar(xs, ys, yerr=ends, label=name, capsize=2, elinewidth=0.8, **_style(index))
