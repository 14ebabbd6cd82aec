"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; bars and line breaks in a cell do not end it, floats have four digits."""
    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)]) + "\n"


def line(cells: Sequence[Any]) -> str:
    """A row of a table."""
    shown = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
    plain = [" ".join(text.replace("|", "\\|").split()) for text in shown]
    return "| " + " | ".join(plain) + " |"
