"""How many processes and threads a run has: asked for, checked, and the same on every resume.

Accelerate starts one process without a word when a config of several falls back (seen with
``MULTI_CPU`` and ``--cpu --num_processes 2``). A run that was meant for two must not go on as one.
"""

from __future__ import annotations

import os
from typing import Any

from launch.config import ConfigError


def asked_for() -> tuple[int, int]:
    """(rank, world size) from the environment that a launcher sets; (0, 1) without one.

    Raises:
        ConfigError: the launcher was asked for several processes and started one.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    # Accelerate names a meeting point exactly when several processes were asked for; its
    # fallback to one process leaves WORLD_SIZE out.
    if launched and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate was asked for several processes but started one (it does so for "
            "MULTI_CPU and for --cpu). Use launch/accelerate/cpu.yaml, or distributed_type: "
            "MULTI_GPU with use_cpu: true"
        )
    return int(os.environ.get("RANK", "0")), world


def join(world: int) -> None:
    """Meet the other processes.

    Raises:
        ConfigError: fewer came than were asked for.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without `cpu`, Accelerate looks for an accelerator, finds none, and runs as one process.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu)
    if state.num_processes != world:
        raise ConfigError(
            f"{world} processes were asked for (WORLD_SIZE), but Accelerate runs "
            f"{state.num_processes} ({state.distributed_type.value}); use "
            "launch/accelerate/cpu.yaml as the --config_file"
        )


def share(value: Any) -> Any:
    """Rank 0's `value`, in every process. Others wait here until it comes."""
    from accelerate.utils import broadcast_object_list

    [received] = broadcast_object_list([value], from_process=0)
    return received


def leave() -> None:
    """Part from the other processes, so that none of them warns about an abandoned group."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def threads() -> int:
    """Threads each process computes with: OMP_NUM_THREADS, else the cores it may use.

    Raises:
        ConfigError: OMP_NUM_THREADS is not a positive whole number.
    """
    from launch.provenance import cores

    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not given:
        return cores()
    if not given.isdigit() or int(given) < 1:
        raise ConfigError(f"OMP_NUM_THREADS = {given!r}: should be a whole number of at least 1")
    return int(given)


def pin_threads(count: int) -> None:
    """Compute with `count` threads: another count adds in another order and gives other bits."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)  # for libraries not yet loaded and for child processes
    import torch

    torch.set_num_threads(count)
