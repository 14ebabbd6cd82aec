"""One look for every figure: a row of panels, saved as PNG and SVG, the same data the same file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, told apart by colour-blind readers too; and markers for black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"


def start(columns: int, rows: int = 1, size: tuple[float, float] | None = None) -> tuple[Any, Any]:
    """A figure and its panels side by side: an array [columns], or [rows, columns] of several rows.

    Args:
        columns: panels in a row.
        rows: of panels.
        size: width and height in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "reprise"
    from matplotlib import pyplot

    size = size or (max(9, 3 * columns), 3.6 * rows)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False
    )
    for panel in panels.flat:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels if rows > 1 else panels[0]


def finish(figure: Any, path: Path, caption: str) -> None:
    """Write `path`.png and `path`.svg, with the caption below."""
    figure.supxlabel(caption, fontsize=7, color="grey")
    save(figure, path, (".png", ".svg"))


def save(figure: Any, path: Path, suffixes: Sequence[str] = (".svg", ".png")) -> list[Path]:
    """Write `path` with each suffix, and let go of the figure; returns the files."""
    from matplotlib import pyplot

    files = [path.with_suffix(suffix) for suffix in suffixes]
    for file in files:
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=160, metadata=metadata)
    pyplot.close(figure)
    return files
