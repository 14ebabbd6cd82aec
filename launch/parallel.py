"""Independent runs side by side: a process and a thread each, in order, as cores come free."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Job:
    """One run to be made, or one evaluation of a run.

    Attributes:
        config: path or shipped name; of an evaluation, the run's directory.
        overrides: ``key.path=value``.
        out: the run's directory, or the file of the evaluation's result; messages go to
            ``<out>.log``.
        after: run directories that must be finished first.
        gpus: how many it needs; counted by the Ray executor, local runs see all.
        suite: of an evaluation, what `reprise evaluate` calls it.
        round: of an evaluation, which policy.
        status: ``waiting``, ``running``, ``done`` or ``failed``.
        attempts: how often it was started here.
    """

    config: str
    overrides: tuple[str, ...]
    out: Path
    after: tuple[Path, ...] = ()
    gpus: int = 0
    suite: str = ""
    round: int = 0
    status: str = "waiting"
    attempts: int = 0
    started: float = field(default=0.0, repr=False)
    ended: float = field(default=0.0, repr=False)

    @property
    def finished_before(self) -> bool:
        """Whether the run's result is already there."""
        return (self.out if self.suite else self.out / "summary.json").is_file()

    @property
    def log(self) -> Path:
        """What the run says to humans."""
        return self.out.with_name(self.out.name + ".log")

    @property
    def command(self) -> list[str]:
        """The command line that makes, or continues, the run or evaluation."""
        if self.suite:
            chosen = ["--suite", self.suite, "--round", str(self.round)]
            module = [sys.executable, "-m", "reprise.launch.cli", "evaluate"]
            return [*module, self.config, *self.overrides, *chosen]
        module = [sys.executable, "-m", "reprise.launch.run"]
        return [*module, self.config, *self.overrides, "--out", str(self.out)]

    @property
    def typed(self) -> str:
        """The same for a person."""
        if self.suite:
            return " ".join(["reprise", *self.command[3:]])
        return " ".join(["reprise run", *self.command[3:]])


def run_side_by_side(
    jobs: Sequence[Job],
    workers: int,
    watch: Callable[[], None],
    interval: float = 1.0,
    retries: int = 0,
) -> None:
    """Run `jobs`, `workers` at a time; finished ones are skipped, unfinished ones continue.

    Each process computes with one thread on a core of its own: two runs on two cores are faster
    than one run on both, and a fixed thread count keeps results bit-identical.

    Args:
        jobs: in the order in which they start; their `status` is kept up to date. One whose
            predecessor failed fails too, unstarted.
        workers: how many at a time.
        watch: called every `interval` seconds and after each change.
        interval: seconds.
        retries: how often a failed run is continued.

    Raises:
        KeyboardInterrupt: after the runs were told to stop too; all of them can be continued.
    """
    cores = sorted(os.sched_getaffinity(0))
    running: dict[subprocess.Popen[bytes], tuple[Job, int]] = {}
    for job in jobs:
        job.status = "done" if job.finished_before else "waiting"
    try:
        while (ready := next_ready(jobs)) or running:
            while ready and len(running) < workers:
                job = ready.pop(0)
                lane = min(set(range(workers)) - {taken for _, taken in running.values()})
                running[_start(job, cores[lane % len(cores)])] = (job, lane)
                ready = next_ready(jobs)
            watch()
            time.sleep(interval)
            for process in [process for process in running if process.poll() is not None]:
                job, _ = running.pop(process)
                ended(job, process.returncode == 0, retries)
        watch()
    finally:
        for process in running:  # empty unless interrupted
            process.terminate()
        for process in running:
            process.wait()


def next_ready(jobs: Sequence[Job]) -> list[Job]:
    """Waiting jobs whose predecessors are done; those of a failed predecessor are marked failed."""
    status = {job.out: job.status for job in jobs}
    ready = []
    for job in jobs:
        if job.status != "waiting":
            continue
        before = {status.get(out, "done") for out in job.after}
        if "failed" in before:
            job.status = status[job.out] = "failed"
        elif before <= {"done"}:
            ready.append(job)
    return ready


def ended(job: Job, well: bool, retries: int) -> None:
    """Note how a started job ended: done, failed, or waiting for another attempt."""
    job.ended = time.monotonic()
    if well:
        job.status = "done"
    else:
        job.status = "failed" if job.attempts > retries else "waiting"


def _start(job: Job, core: int) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.status, job.started = "running", time.monotonic()
    job.attempts += 1
    with open(job.log, "ab") as log:
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    os.sched_setaffinity(process.pid, {core})
    return process
