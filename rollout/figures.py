"""One look for every figure: a row of panels, saved as PNG and SVG, the same data the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Okabe and Ito's palette, told apart by colour-blind readers too; and markers for black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"


def start(columns: int, rows: int = 1) -> tuple[Any, Any]:
    """A figure and its panels: `rows` rows of `columns` (two or more), side by side."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "reprise"
    from matplotlib import pyplot

    size = (max(9, 3 * columns), 3.6 * rows)
    figure, panels = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
    for panel in panels.flat:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def finish(figure: Any, path: Path, caption: str) -> None:
    """Write `path`.png and `path`.svg, with the caption below."""
    from matplotlib import pyplot

    figure.supxlabel(caption, fontsize=7, color="grey")
    for suffix in (".png", ".svg"):
        metadata = {"Date": None} if suffix == ".svg" else None
        figure.savefig(path.with_suffix(suffix), dpi=160, metadata=metadata)
    pyplot.close(figure)
