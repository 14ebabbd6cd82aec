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
    """One run to be made.

    Attributes:
        config: path or shipped name.
        overrides: ``key.path=value``.
        out: its run directory; messages go to ``<out>.log``.
        status: ``waiting``, ``running``, ``done`` or ``failed``.
    """

    config: str
    overrides: tuple[str, ...]
    out: Path
    status: str = "waiting"
    started: float = field(default=0.0, repr=False)

    @property
    def finished_before(self) -> bool:
        """Whether the run's result is already there."""
        return (self.out / "summary.json").is_file()

    @property
    def log(self) -> Path:
        """What the run says to humans."""
        return self.out.with_name(self.out.name + ".log")


def run_side_by_side(
    jobs: Sequence[Job], workers: int, watch: Callable[[], None], interval: float = 1.0
) -> None:
    """Run `jobs`, `workers` at a time; finished ones are skipped, unfinished ones continue.

    Each process computes with one thread: two runs on two cores are faster than one run on both,
    and a fixed thread count keeps results bit-identical.

    Args:
        jobs: in the order in which they start; their `status` is kept up to date.
        workers: how many at a time.
        watch: called every `interval` seconds and after each change.
        interval: seconds.

    Raises:
        KeyboardInterrupt: after the runs were told to stop too; all of them can be continued.
    """
    running: dict[subprocess.Popen[bytes], Job] = {}
    for job in jobs:
        job.status = "done" if job.finished_before else "waiting"
    waiting = [job for job in jobs if job.status == "waiting"]
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[_start(job)] = job
            watch()
            time.sleep(interval)
            for process in [process for process in running if process.poll() is not None]:
                running.pop(process).status = "done" if process.returncode == 0 else "failed"
        watch()
    finally:
        for process in running:  # empty unless interrupted
            process.terminate()
        for process in running:
            process.wait()


def _start(job: Job) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.status, job.started = "running", time.monotonic()
    command = [sys.executable, "-m", "launch.run", job.config, *job.overrides]
    with open(job.log, "ab") as log:
        return subprocess.Popen(
            [*command, "--out", str(job.out)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
