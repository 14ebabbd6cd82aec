"""Every run that a table needs: planned, made side by side, continued after a kill.

    reprise sweep TABLE --budget laptop [--executor local|ray] [--dry-run]

A run's directory follows from its config, overrides and seed, so tables share runs, what is
finished is never made again, and deleting one run and sweeping again makes just that one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reprise.launch.config import ConfigError, find, load
from reprise.launch.evaluation.suite import result_file
from reprise.launch.parallel import Job, run_side_by_side
from reprise.launch.provenance import cores, instruction_set, starts, unlike
from reprise.launch.run import default_out, state_of
from reprise.launch.tables.schema import (
    Budget,
    Run,
    SuiteRun,
    Table,
    budget_of,
    load_table,
    shipped_tables,
)

RETRIES = 1  # a run that failed for a passing reason continues; one that fails twice is differences


def directory_of(config: str, overrides: Sequence[str], seed: int) -> Path:
    """``runs/quickstart/onpolicy_dpo-seed0``; overrides are part of the name."""
    base = default_out(find(config))
    changed = "-".join(re.sub(r"[^\w.=+-]", "_", text) for text in overrides)
    if len(changed) > 80:
        changed = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:12]
    return base.with_name("-".join([base.name, *([changed] if changed else []), f"seed{seed}"]))


@dataclass
class Plan:
    """The jobs of a table in order, and what they cost."""

    jobs: list[Job] = field(default_factory=list)
    minutes: dict[Path, float] = field(default_factory=dict)
    megabytes: dict[Path, float] = field(default_factory=dict)

    def add(self, job: Job, minutes: float, megabytes: float) -> None:
        """One more job, unless it is there."""
        if job.out not in self.minutes:
            self.jobs.append(job)
            self.minutes[job.out], self.megabytes[job.out] = minutes, megabytes

    def merge(self, other: Plan) -> None:
        """The jobs of another table too, each once."""
        for job in other.jobs:
            if job.out not in self.minutes:
                self.jobs.append(job)
        self.minutes |= other.minutes
        self.megabytes |= other.megabytes


def seeds_of(run: Run, budget: Budget) -> list[int]:
    """The seeds of one run."""
    return run.seeds if run.seeds is not None else budget.seeds


def plan(table: Table, budget: Budget) -> Plan:
    """Every run that the table needs: what the runs need, what is read, then the rows' own.

    Raises:
        ConfigError: a run's directory holds something else.
    """
    made = Plan()
    first: tuple[Path, ...] = ()
    for stage in sorted({run.stage for run in budget.first}):
        first += tuple(
            _add(made, run, seed, first)
            for run in budget.first
            if run.stage == stage
            for seed in seeds_of(run, budget)
        )
    used = dict.fromkeys(run for line in table.lines() for run in line.runs)
    for name in used:
        run = budget.runs[name]
        for seed in seeds_of(run, budget):
            _add(made, run, seed, first)
    return made


def plan_of(table: str, budget: str) -> Plan:
    """The plan of one table, or of `all` shipped tables that have the budget.

    Raises:
        ConfigError: an unknown table or budget.
    """
    if table == "all":
        made = Plan()
        for name in shipped_tables():
            _, loaded = load_table(name)
            if budget in loaded.budgets:
                made.merge(plan(loaded, budget_of(name, loaded, budget)))
        return made
    name, loaded = load_table(table)
    return plan(loaded, budget_of(name, loaded, budget))


def _add(made: Plan, run: Run, seed: int, after: tuple[Path, ...]) -> Path:
    overrides = (*run.overrides, f"seed={seed}")
    settings = load(run.config, overrides)
    out = directory_of(run.config, run.overrides, seed)
    state_of(out, settings)
    needs = tuple(_needed(made, name) for name in settings.needs)
    made.add(
        Job(run.config, overrides, out, after=(*after, *needs), gpus=run.gpus),
        run.minutes,
        run.megabytes,
    )
    for evaluation in run.evaluate:
        for job in evaluations(evaluation, out, run.gpus):
            made.add(job, evaluation.minutes, 1.0)
    return out


def evaluations(evaluation: SuiteRun, run: Path, gpus: int = 0) -> list[Job]:
    """The jobs that measure the policies of the finished run in `run`."""
    return [
        Job(
            run.as_posix(),
            tuple(evaluation.overrides),
            result_file(run, evaluation.suite, k),
            after=(run,),
            gpus=gpus,
            suite=evaluation.suite,
            round=k,
        )
        for k in evaluation.rounds
    ]


def _needed(made: Plan, name: str) -> Path:
    """A run that another builds on, in its default directory, as `reprise run` would make it."""
    settings, out = load(name), default_out(find(name))
    state_of(out, settings)
    before = tuple(_needed(made, other) for other in settings.needs)
    made.add(Job(name, (), out, after=before), minutes=3.0, megabytes=30.0)
    return out


# -- cost ----------------------------------------------------------------------------------------


def cost(made: Plan, workers: int) -> dict[str, Any]:
    """What is left to do: runs, minutes with `workers` at a time, megabytes."""
    left = [job for job in made.jobs if not job.finished_before]
    minutes = sum(made.minutes[job.out] for job in left)
    longest = max((made.minutes[job.out] for job in left), default=0.0)
    return {
        "runs": len(made.jobs),
        "finished": len(made.jobs) - len(left),
        "minutes": round(max(minutes / workers, longest), 1),
        "gpu_minutes": round(sum(made.minutes[job.out] * job.gpus for job in left), 1),
        "megabytes": round(sum(made.megabytes[job.out] for job in left), 1),
        "megabytes_free": round(_free_megabytes(), 1),
        "jobs": [
            {
                "directory": str(job.out),
                "command": job.typed,
                "finished": job.finished_before,
                "minutes": made.minutes[job.out],
                "gpus": job.gpus,
            }
            for job in made.jobs
        ],
    }


def cost_lines(report: dict[str, Any], workers: int) -> list[str]:
    """The cost for a person."""
    lines = [
        f"{'finished' if job['finished'] else 'to run  '}  {job['minutes']:6.1f} min  "
        f"{job['command']}"
        for job in report["jobs"]
    ]
    gpu = f", {report['gpu_minutes']} GPU-minutes" if report["gpu_minutes"] else ""
    return [
        *lines,
        f"{report['runs']} runs, {report['finished']} finished; about {report['minutes']} minutes "
        f"with {workers} at a time{gpu}; {report['megabytes']} MB on disk "
        f"({report['megabytes_free']:.0f} MB free)",
    ]


def _free_megabytes() -> float:
    return shutil.disk_usage(".").free / 1e6


# -- doing it ------------------------------------------------------------------------------------


@contextlib.contextmanager
def sweep_lock(root: Path = Path("runs")) -> Iterator[None]:
    """Hold `root` against a second sweep; the system lets go when this process ends, however.

    Raises:
        ConfigError: another process sweeps there.
    """
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".sweep.lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ConfigError(f"{holder} sweeps in {root.resolve()} already; wait for it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def sweep(made: Plan, executor: str = "local", workers: int | None = None) -> list[Job]:
    """Make every run that is not finished; returns the jobs that failed, after a second attempt.

    Args:
        made: the plan.
        executor: ``local`` (a pinned process for each core) or ``ray`` (a cluster).
        workers: local runs at a time [default: one for each core].

    Raises:
        ConfigError: the disk is too small, or another sweep is at work.
    """
    workers = workers or cores()
    needed = sum(made.megabytes[job.out] for job in made.jobs if not job.finished_before)
    if needed > _free_megabytes():
        raise ConfigError(
            f"these runs need about {needed:.0f} MB and {_free_megabytes():.0f} MB are free; "
            "free some, or sweep a smaller budget"
        )
    with sweep_lock():
        for line in made_elsewhere(made):
            print(line, file=sys.stderr, flush=True)
        board = Board(made, workers)
        if executor == "ray":
            from reprise.launch.tables.ray_executor import run_on_ray

            run_on_ray(made.jobs, board.show, retries=RETRIES)
        else:
            run_side_by_side(made.jobs, workers, board.show, retries=RETRIES)
    return [job for job in made.jobs if job.status == "failed"]


def made_elsewhere(made: Plan) -> list[str]:
    """Which runs, begun or finished, have starts with other kernels or threads than a sweep's now.

    A sweep gives each run one thread; an unfinished run keeps the number that it began with.
    """
    before = {job.out: starts(job.out) for job in made.jobs if not job.suite}
    recorded = {out: differences for out, differences in before.items() if differences}
    if not recorded:
        return []
    here, found = instruction_set(), Counter[str]()
    for out, begun in recorded.items():
        finished = (out / "summary.json").is_file()
        state = "finished" if finished else "unfinished"
        for differences in {
            differences for start in begun if (differences := unlike(start, here, "a start"))
        }:
            found[f"{state} runs: instruction set {differences}"] += 1
        if (threads := begun[0]["threads"]) != 1:
            then = "bits may differ" if finished else "they continue with as many"
            found[f"{state} runs: threads {threads} at the start, 1 in a sweep; {then}"] += 1
    return [f"{number} {line}" for line, number in found.items()]


class Board:
    """What runs, how far, and how long it will take: a line for each change, and every minute."""

    interval = 60.0

    def __init__(self, made: Plan, workers: int) -> None:
        self.made, self.workers = made, workers
        self._told: dict[Path, tuple[str, int]] = {}
        self._last = time.monotonic()

    def show(self) -> None:
        """Tell what is new."""
        for job in self.made.jobs:
            now = (job.status, job.attempts)
            if self._told.get(job.out, ("waiting", 0)) != now:
                self._told[job.out] = now
                if job.attempts or job.status == "failed":
                    self._say(f"{job.status:8} {job.out}{self._why(job)}{self.left()}")
        if time.monotonic() - self._last >= self.interval:
            self._last = time.monotonic()
            for job in self.made.jobs:
                if job.status == "running":
                    self._say(f"running  {job.out}{_progress(job.out)}{self.left()}")

    def left(self) -> str:
        """Time left: the estimates, corrected by how long the finished ones took."""
        minutes = self.made.minutes
        ended = [job for job in self.made.jobs if job.status == "done" and job.attempts]
        took = sum(job.ended - job.started for job in ended) / 60
        expected = sum(minutes[job.out] for job in ended)
        speed = took / expected if expected else 1.0
        remaining = 0.0
        for job in self.made.jobs:
            if job.status in ("waiting", "running"):
                spent = (time.monotonic() - job.started) / 60 if job.status == "running" else 0.0
                remaining += max(minutes[job.out] * speed - spent, 0.0)
        open_runs = sum(job.status in ("waiting", "running") for job in self.made.jobs)
        if not open_runs:
            return ""
        return f"   {open_runs} to go, about {remaining / self.workers:.0f} min"

    def _why(self, job: Job) -> str:
        if job.status == "failed" and not job.attempts:
            return ": a run that it needs failed"
        if job.status in ("failed", "waiting") and job.attempts:
            return f": the reason is in {job.log}"
        return f" ({(job.ended - job.started) / 60:.1f} min)" if job.status == "done" else ""

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _progress(run: Path) -> str:
    """How far a run is, by the last line of its metrics."""
    from reprise.launch.tables.curves import last_record

    record = last_record(run)
    for key in ("step", "round"):
        if key in record:
            return f" at {key} {record[key]}"
    return ""
