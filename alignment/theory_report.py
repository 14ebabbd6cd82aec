"""Tables, slopes and figures of the experiments on bandits and designs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rollout import figures
from rollout.files import write_text

COLOURS = (*figures.COLOURS, "#000000")  # a sweep may have seven curves
MARKERS = figures.MARKERS + "X"


def mean_interval(values: np.ndarray) -> tuple[float, list[float]]:
    """Mean over replicas and its 95% interval by Student's t."""
    from scipy import stats

    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, [mean - half, mean + half]


def slope(
    x: Sequence[float], values: np.ndarray, generator: np.random.Generator, resamples: int = 400
) -> tuple[float, list[float]]:
    """Least-squares slope of ln(mean over replicas) in ln x, and its 95% bootstrap interval.

    Args:
        x: positions, > 0.
        values: shape (positions, replicas), > 0 on average.
        generator: draws the replicas of each resample.
        resamples: bootstrap resamples; the replicas of each position are drawn apart.
    """
    logs = np.log(np.asarray(x, dtype=float))

    def fitted(means: np.ndarray) -> float:
        return float(np.polyfit(logs, np.log(means), 1)[0])

    rows = np.arange(len(values))[:, None]
    drawn = [
        fitted(values[rows, generator.integers(values.shape[1], size=values.shape)].mean(axis=1))
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return fitted(values.mean(axis=1)), [float(low), float(high)]


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Records as a Markdown table; the first one's keys are the columns."""
    records = list(rows)
    head = list(records[0])
    lines = [head, ["---"] * len(head)]
    lines += [[_cell(record.get(key, "")) for key in head] for record in records]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write_table(folder: Path, *tables: Iterable[dict[str, Any]]) -> None:
    """Write ``table.md``."""
    write_text(folder / "table.md", "\n".join(markdown(table) for table in tables))


class Figure:
    """A row of panels, saved as ``figure.png`` and ``figure.svg``."""

    def __init__(self, panels: int, width: float = 4.6, height: float = 3.6) -> None:
        self.figure, axes = figures.start(panels, size=(width * panels, height))
        self.panels = list(axes)

    def line(
        self,
        panel: int,
        x: Sequence[float],
        y: Sequence[float],
        place: int,
        label: str | None = None,
        dashed: bool = False,
        band: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        """Draw one curve; `place` picks its colour and marker."""
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        style = "--" if dashed else "-"
        axes = self.panels[panel]
        axes.plot(x, y, style, color=colour, marker=marker, markersize=4, label=label)
        if band is not None:
            axes.fill_between(x, *band, color=colour, alpha=0.12, lw=0)

    def save(self, folder: Path, caption: str) -> None:
        """Write the files."""
        figures.finish(self.figure, folder / "figure", caption)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_cell(item) for item in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
