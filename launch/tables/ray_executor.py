"""The runs of a sweep on a Ray cluster: one task for each run, with the GPUs that it asks for.

The cluster is the one that RAY_ADDRESS names (`auto` on a node of it), else a local one. The run
directories must be on a file system that every node sees; each task is the same command line as a
local run, so it continues an interrupted run and leaves a finished one alone.

Run here on a local cluster of two nodes (`ray.cluster_utils.Cluster`), without GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reprise.launch.parallel import Job, ended, next_ready
from reprise.rollout.errors import BadInput


def run_on_ray(
    jobs: Sequence[Job],
    watch: Callable[[], None],
    retries: int = 0,
    interval: float = 1.0,
) -> None:
    """Run `jobs` on the cluster; statuses, order and retries as in `run_side_by_side`.

    Raises:
        BadInput: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise BadInput(
            "--executor ray: Ray is not installed; pip install 'reprise-rl[scale]'"
        ) from error

    joined = ray.is_initialized()
    if not joined:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False
        )
    task = ray.remote(max_retries=0)(_run)
    for job in jobs:
        job.status = "done" if job.finished_before else "waiting"
    running: dict[Any, Job] = {}
    try:
        while (ready := next_ready(jobs)) or running:
            for job in ready:  # the cluster queues what it has no room for
                job.log.parent.mkdir(parents=True, exist_ok=True)
                job.status, job.started = "running", time.monotonic()
                job.attempts += 1
                command = [
                    str(Path(part).resolve()) if part == str(job.out) else part
                    for part in job.command
                ]
                handle = task.options(num_cpus=1, num_gpus=job.gpus, name=job.out.name).remote(
                    command, str(job.log.resolve()), os.getcwd()
                )
                running[handle] = job
            watch()
            finished, _ = ray.wait(list(running), timeout=interval) if running else ([], [])
            for handle in finished:
                ended(running.pop(handle), _went_well(ray, handle), retries)
        watch()
    finally:
        for handle in running:  # empty unless interrupted; a stopped run can be continued
            ray.cancel(handle)
        if not joined:
            ray.shutdown()


def _went_well(ray: Any, handle: Any) -> bool:
    """Whether the run ended with status 0. A node that dies takes its tasks along: they failed."""
    try:
        return ray.get(handle) == 0
    except ray.exceptions.RayError as error:
        print(f"ray: {error}", file=sys.stderr, flush=True)
        return False


def _run(command: list[str], log: str, folder: str) -> int:
    """On a node: one run, with its messages in `log`; returns the exit status."""
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            return process.wait()
        except BaseException:  # the task is cancelled: tell the run, so that it can be continued
            process.terminate()
            process.wait()
            raise
