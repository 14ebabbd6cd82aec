"""Tables, slopes and figures of the experiments on bandits and designs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprise.rollout.files import write_text
from reprise.rollout.run import figures
from reprise.rollout.run.intervals import student, student_half, variance_of, welch_degrees
from reprise.rollout.run.markdown import markdown_table

COLOURS = (*figures.COLOURS, "#000000")  # a sweep may have seven curves
MARKERS = figures.MARKERS + "X"


def mean_interval(values: np.ndarray) -> tuple[float, list[float]]:
    """Mean over replicas and its 95% interval by Student's t."""
    mean, half = student(values)
    return mean, [mean - half, mean + half]


def slope(x: Sequence[float], values: np.ndarray) -> tuple[float, list[float], float]:
    r"""Least-squares slope of ln(mean over replicas) in ln x, its 95% interval, and its degrees.

        slope = sum_i w_i ln m_i,    w_i = (ln x_i - mean) / sum_j (ln x_j - mean)^2

    The positions' replicas are drawn apart, so that s^2 = sum_i w_i^2 s_i^2, with s_i of ln m_i by
    the jackknife over replicas; Student's quantile with Welch's degrees of freedom.

    Args:
        x: positions, > 0.
        values: shape (positions, replicas), > 0 on average.
    """
    centred = np.log(np.asarray(x, dtype=float))
    centred = centred - centred.mean()
    weights = (centred / np.square(centred).sum()).tolist()
    logs, errors = [], []
    for row in values:
        count, total = len(row), math.fsum(row.tolist())
        without = np.log((total - row) / (count - 1))
        logs.append(math.log(total / count))
        errors.append((count - 1) * math.sqrt(variance_of(without) / count))
    fitted = math.fsum(w * y for w, y in zip(weights, logs, strict=True))
    parts = [abs(w) * error for w, error in zip(weights, errors, strict=True)]
    degrees = welch_degrees(parts, [values.shape[1] - 1] * len(parts))
    half = student_half(math.hypot(*parts), degrees)
    return fitted, [fitted - half, fitted + half], degrees


def geometric_interval(logs: Sequence[float]) -> tuple[float, list[float]]:
    """exp of the mean of logarithms, and of its 95% interval by Student's t; NaN if one is."""
    mean, half = student(logs)
    return math.exp(mean), [math.exp(mean - half), math.exp(mean + half)]


GROUPS = 10  # of replicas, behind the interval of what is no mean


def quantile_interval(values: np.ndarray, level: float) -> tuple[float, list[float], int]:
    """Quantile over replicas, a 95% interval, and the number of groups behind it.

    The quantile is taken in each of ten equal groups of replicas too: their Student's half-width,
    around the quantile of all.
    """
    groups = np.array_split(np.asarray(values), min(GROUPS, len(values)))
    whole = float(np.quantile(values, level))
    _, half = student([float(np.quantile(group, level)) for group in groups])
    return whole, [whole - half, whole + half], len(groups)


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Records as a Markdown table; the first one's keys are the columns."""
    records = list(rows)
    head = list(records[0])
    return markdown_table(
        head, [[_cell(record.get(key, "")) for key in head] for record in records]
    )


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
