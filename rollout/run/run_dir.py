"""What a run leaves behind, and how it tells a human where it stands.

DIR/config.yaml       every setting, defaults written out            (launch writes it)
DIR/provenance.json   code revision, packages, machine               (launch writes it)
DIR/metrics.jsonl     one JSON object a line, appended
DIR/rounds/           experience (rollout.store)
DIR/checkpoints/      weights, each folder whole or absent
DIR/tensorboard/      and what other trackers write (rollout.trackers); nothing is read from them
DIR/summary.json      the result; written last, so its presence means the run is complete
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprise.rollout.errors import BadInput
from reprise.rollout.files import (
    atomic_directory,
    explain_full_disk,
    numbered,
    seal_of,
    sha256_file,
    write_json,
    write_text,
)
from reprise.rollout.run.remote import redact
from reprise.rollout.run.trackers import Report, Tracker, check_trackers, open_trackers


@dataclass(frozen=True)
class HandedOver:
    """What a phase of a staged run tells the next; lost, like all that is timed, if it is killed.

    Attributes:
        collect_seconds: how long the round took to collect.
        resumed: whether the round was interrupted.
    """

    collect_seconds: float = 0.0
    resumed: bool = False


@dataclass
class Stage:
    """That a process does one phase of an experiment, and the next one is another process's.

    Attributes:
        before: what the phase before handed over; None for the first of a command.
        after: what this one hands over.
    """

    before: HandedOver | None = None
    after: HandedOver = HandedOver()


class RunDir:
    """One run's directory.

    Args:
        path: the directory; created if missing.
        experiment: the experiment's name, e.g. ``alignment.on_policy``.
        seed: the run's seed.
        config_sha256: hash of the resolved config.
        code_revision: revision of the code that runs.
        rank: this process among `world`; only rank 0 writes metrics, checkpoints and summary.
        world: number of processes.
        report: where the run is shown beside ``metrics.jsonl``.
        settings: the resolved config, for those places.
        stage: that only one phase of the experiment is done; None: all of it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        experiment: str,
        seed: int,
        config_sha256: str = "",
        code_revision: str = "",
        rank: int = 0,
        world: int = 1,
        report: Report | None = None,
        settings: dict[str, Any] | None = None,
        stage: Stage | None = None,
    ) -> None:
        self.path = Path(path)
        self.experiment = experiment
        self.seed = seed
        self.config_sha256 = config_sha256
        self.code_revision = code_revision
        self.rank = rank
        self.world = world
        self.stage = stage
        self.checkpoints = self.path / "checkpoints"
        self.rounds = self.path / "rounds"
        if self.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
        earlier = [record["seconds"] for record in self.metrics() if "seconds" in record]
        self._seconds_before = max(earlier, default=0.0)
        self._started = time.monotonic()
        self.report = report or Report()
        self._settings = settings or {}
        self._opened: list[Tracker] | None = None
        check_trackers(self.report)
        self._last_line_is_whole = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent on this run, those before an interruption included."""
        return self._seconds_before + time.monotonic() - self._started

    # -- metrics ---------------------------------------------------------------------------

    @property
    def _metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, **values: Any) -> None:
        """Append one line to ``metrics.jsonl``: numbers, strings, lists. NaN is written as null."""
        if not self.is_main:
            return
        if not ({"step", "round"} & values.keys()):
            raise BadInput(f"metrics need a 'step' or a 'round'; got {sorted(values)}")
        record = _without_nan({**values, "seconds": round(self.seconds, 3)})
        if not self._last_line_is_whole:  # a torn one would swallow the next
            self.cut_metrics(lambda record: True)
            self._last_line_is_whole = True
        try:
            with open(self._metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise explain_full_disk(error, self._metrics_file) from error
        kind, index = ("step", record["step"]) if "step" in record else ("round", record["round"])
        numbers = {
            name: value
            for name, value in record.items()
            if isinstance(value, int | float) and name not in ("step", "round", "seconds")
        }
        for tracker in self._trackers():
            tracker.log(kind, index, numbers)

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[list[Any]], *, round: int
    ) -> None:
        """Show the first ``report.samples`` rows in every tracker."""
        shown = [list(row) for row in rows[: self.report.samples]]
        if self.is_main and shown:
            for tracker in self._trackers():
                tracker.table(name, round, columns, _without_nan(shown))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line torn by a kill is left out."""
        return metrics_of(self.path)

    def cut_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop what lies past the checkpoint that the run resumes from."""
        if self.is_main and self._metrics_file.exists():
            kept = [json.dumps(record) + "\n" for record in self.metrics() if keep(record)]
            write_text(self._metrics_file, "".join(kept))

    def _trackers(self) -> list[Tracker]:
        if self._opened is None:  # the first number opens them: a refused run leaves nothing
            name = "-".join(self.path.resolve().parts[-2:]).strip("/-")
            self._opened = open_trackers(self.report, self.path, name, self._settings)
        return self._opened

    # -- checkpoints and result ------------------------------------------------------------

    @contextmanager
    def checkpoint(self, name: str) -> Iterator[Path]:
        """A directory to fill, which becomes ``checkpoints/name`` in one step."""
        with atomic_directory(self.checkpoints / name) as folder:
            yield folder

    def newest(self, name: str) -> tuple[int, Path] | None:
        """Number and folder of the last of ``checkpoints/name-N``; what is there is whole."""
        found = numbered(self.checkpoints, name)
        return max(found.items()) if found else None

    def prune(self, name: str, unwanted: Callable[[list[int]], list[int]]) -> None:
        """Delete those of ``checkpoints/name-N`` whose numbers `unwanted` picks of all."""
        found = numbered(self.checkpoints, name)
        for number in unwanted(list(found)) if self.is_main else []:
            shutil.rmtree(found[number])

    def finish(self, **summary: Any) -> None:
        """Write ``summary.json``: the run is complete."""
        if self.is_main:
            head = {
                "experiment": self.experiment,
                "status": "complete",
                "seed": self.seed,
                "config_sha256": self.config_sha256,
                "code_revision": self.code_revision,
                "seconds": round(self.seconds, 3),
            }
            whole = _without_nan({**head, **summary, "files": self._checksums()})
            write_json(self.path / "summary.json", {**whole, "seal": seal_of(whole)})
        self.close()

    def close(self) -> None:
        """Let go of open files; the run may be unfinished."""
        for tracker in self._opened or []:
            tracker.close()
        self._opened = None

    def _checksums(self) -> dict[str, str]:
        """SHA-256 of what the result rests on: the final checkpoint, and the evaluations."""
        files = [
            file
            for folder in (self.checkpoints / "final", self.path / "evaluations")
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]
        return {file.relative_to(self.path).as_posix(): sha256_file(file) for file in files}

    # -- for humans, on standard error -------------------------------------------------------

    def say(self, text: str) -> None:
        """One line for a human."""
        if self.is_main:
            print(redact(text), file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, description: str, total: int, unit: str = "it") -> Iterator[Progress]:
        """Show work being done, with throughput and time left."""
        quiet = not self.is_main
        shown = _Bar if sys.stderr.isatty() and not quiet else Progress
        with shown(description, total, unit, quiet) as progress:
            yield progress


class Progress:
    """Progress as plain lines, for logs: one when work starts to take long, then every 15 s."""

    interval = 15.0

    def __init__(self, description: str, total: int, unit: str, quiet: bool = False) -> None:
        self.description, self.total, self.unit, self.quiet = description, total, unit, quiet
        self.done = 0
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""
        self.done += n
        now = time.monotonic()
        if self.quiet or now - self._last < self.interval:
            return
        self._last = now
        rate = self.done / (now - self._start)
        left = (self.total - self.done) / rate
        print(
            f"{self.description}: {self.done}/{self.total} {self.unit}, {rate:.3g} {self.unit}/s, "
            f"{left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


class _Bar(Progress):
    """Progress as a bar, for a terminal."""

    def __enter__(self) -> Progress:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.description, total=self.total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, n: int = 1) -> None:
        self.done += n
        rate = self.done / max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._task, advance=n, rate=f"{rate:.3g} {self.unit}/s")


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of ``metrics.jsonl`` of the run in `path`."""
    return records_of(path / "metrics.jsonl")


def records_of(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines, which may be growing; none if it is not there."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
