"""The runs behind a table: where each is, whether it is sound, and what made it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprise.launch.config import differences, load
from reprise.launch.parallel import Job
from reprise.launch.run import stored_config
from reprise.launch.tables import records
from reprise.launch.tables.integrity import problems, read_summary, summary_problems
from reprise.launch.tables.schema import Run
from reprise.launch.tables.sweep import directory_of


@dataclass(frozen=True)
class Source:
    """One run of a row: where it is, what state it is in, and on what it was made."""

    directory: Path  # where a sweep makes it, whether it is there or only its record
    seed: int
    command: str
    state: str  # finished, missing or corrupt
    problem: str = ""
    seconds: float = 0.0
    revision: str = ""
    place: Path | None = None  # where its files are read: the run, or its record
    processors: tuple[str, ...] = ()  # of every start
    transcribed: str = ""  # where the numbers were copied from, if the run itself is lost

    @property
    def recorded(self) -> bool:
        """Whether it is read from the records."""
        return self.place is not None and self.place != self.directory


def source_of(run: Run, seed: int) -> tuple[Source, dict[str, Any] | None]:
    """A run of the table and its summary: from its directory, or else from the records.

    A run that is there but damaged is corrupt, whatever its record says.
    """
    config, overrides = run.config, run.overrides
    directory = directory_of(config, overrides, seed)
    command = Job(config, (*overrides, f"seed={seed}"), directory).typed
    index = directory
    if not (index / "summary.json").is_file():
        index = records.record_of(directory)
    if not (index / "summary.json").is_file():
        return Source(directory, seed, command, "missing", "there is no finished run"), None
    found = problems(index) if index == directory else _record_problems(index)
    if not found:
        wanted = load(config, [*overrides, f"seed={seed}"]).model_dump(mode="json")
        unlike = differences(wanted, stored_config(index))
        if unlike:
            found = [f"made with another config ({'; '.join(unlike)}); delete it and sweep again"]
    if found:
        return Source(directory, seed, command, "corrupt", "; ".join(found), place=index), None
    summary = read_summary(index)
    made = _provenance(index)
    changed = " (with uncommitted changes)" if made.get("code_dirty") else ""
    source = Source(
        *(directory, seed, command, "finished"),
        seconds=float(summary["seconds"]),
        revision=str(summary["code_revision"])[:12] + changed,
        place=index,
        processors=tuple(dict.fromkeys(map(processor, [made, *made.get("resumed", [])]))),
        transcribed=str(made.get("transcribed", "")),
    )
    return source, summary


def _record_problems(record: Path) -> list[str]:
    """What is wrong with a record; it has no rounds and no checkpoint to look at."""
    return records.problems(record) or summary_problems(record)


def _provenance(place: Path) -> dict[str, Any]:
    file = place / "provenance.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def processor(made: dict[str, Any]) -> str:
    """``AMD EPYC 7B13, avx2, 1 thread``: as much of it as a provenance tells."""
    threads = made.get("threads")
    parts = [made.get("cpu") or "unknown processor", made.get("instruction_set")]
    if threads is not None:
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    return ", ".join(str(part) for part in parts if part)
