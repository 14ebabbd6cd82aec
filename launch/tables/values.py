"""Numbers out of a run's summary: ``cells[lambda=0.1,fraction=0.25].return_mean``.

A path is keys joined by points. After a key that holds a list, brackets choose one entry: by its
place (``rounds[-1]``, or ``rounds.-1``) or by what it holds (``cells[method=distilled,size=50]``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from reprise.rollout.errors import BadInput

_PART = re.compile(
    r"(?P<key>[^\W\d][^.\[\]]*)(?:\[(?P<choice>[^\[\]]+)\]|\.(?P<place>-?\d+)(?=\.|$))?(?:\.|$)"
)


class PathError(BadInput):
    """A path that is not one, or that leads nowhere; `known` is what there is instead."""

    def __init__(self, message: str, known: str = "") -> None:
        super().__init__(message)
        self.known = known


def parse(path: str) -> list[tuple[str, str | None]]:
    """Keys and choices of `path`, in order.

    Raises:
        PathError: it is not a path.
    """
    parts, index = [], 0
    while index < len(path):
        found = _PART.match(path, index)
        if found is None:
            raise PathError(f"path '{path}': not understood from '{path[index:]}' on")
        parts.append((found["key"], found["choice"] or found["place"]))
        index = found.end()
    if not parts or path.endswith("."):
        raise PathError(f"path '{path}': a key is missing")
    return parts


def value_at(summary: Any, path: str) -> Any:
    """What is at `path`.

    Raises:
        PathError: nothing is, or several entries are; names the part and what there is instead.
    """
    here = summary
    for key, choice in parse(path):
        if not isinstance(here, Mapping) or key not in here:
            known = ", ".join(here) if isinstance(here, Mapping) else repr(here)
            raise PathError(f"path '{path}': no '{key}' in {{{known}}}", known)
        here = here[key]
        if choice is not None:
            here = _chosen(here, choice, path)
    return here


def number_at(summary: Any, path: str) -> float:
    """The finite number at `path`; a null is NaN: measured, but undefined.

    Raises:
        PathError: there is none.
    """
    value = value_at(summary, path)
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PathError(f"path '{path}': {value!r} is not a number")
    return float(value)


def keys_of(path: str) -> set[str]:
    """Keys of the entries that a path into `records` reads: of its choice, and what follows."""
    (_, choice), *rest = parse(path)
    chosen = set() if choice is None or "=" not in choice else _conditions(choice, path)
    return {*chosen, *(key for key, _ in rest[:1])}


def one_less(path: str) -> tuple[str, int]:
    """`runs - 1` as the path `runs` and 1, to be taken off; another path as it is and 0."""
    return (path[:-4], 1) if path.endswith(" - 1") else (path, 0)


def interval_at(summary: Any, path: str, centre: float) -> tuple[float, float]:
    """The 95% interval at `path`: [low, high], or a number, which is its half-width.

    Raises:
        PathError: it is neither.
    """
    value = value_at(summary, path)
    if isinstance(value, list) and len(value) == 2:
        low, high = (float("nan") if end is None else float(end) for end in value)
        return low, high
    half = number_at(summary, path)
    return centre - half, centre + half


def _chosen(entries: Any, choice: str, path: str) -> Any:
    if not isinstance(entries, list):
        raise PathError(f"path '{path}': [{choice}] chooses from a list, not from {entries!r}")
    if re.fullmatch(r"-?\d+", choice):
        index = int(choice)
        if not -len(entries) <= index < len(entries):
            raise PathError(f"path '{path}': [{choice}], but there are {len(entries)} entries")
        return entries[index]
    wanted = _conditions(choice, path)
    found = [
        entry
        for entry in entries
        if all(key in entry and _same(entry[key], value) for key, value in wanted.items())
    ]
    if len(found) != 1:
        raise PathError(f"path '{path}': {len(found)} entries with {choice}; must be 1")
    return found[0]


def _conditions(choice: str, path: str) -> dict[str, str]:
    # A comma parts conditions only before the next `key=`: values such as "REBEL, pi_0" have some.
    return dict(_condition(part, path) for part in re.split(r",(?=[^,=]+=)", choice))


def _condition(text: str, path: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise PathError(f"path '{path}': '{text}' is neither a place nor key=value")
    return key.strip(), value.strip()


def _same(value: Any, wanted: str) -> bool:
    """Whether a stored value is the one that was typed: numbers as numbers, null as null."""
    if value is None:
        return wanted == "null"
    if isinstance(value, bool):
        return wanted == str(value).lower()
    if isinstance(value, int | float):
        try:
            return float(wanted) == float(value)
        except ValueError:
            return False
    return str(value) == wanted
