"""How many processes and threads a run has: asked for, checked, and the same on every resume.

Accelerate starts one process without a word when a config of several falls back (seen with
``MULTI_CPU`` and ``--cpu --num_processes 2``). A run that was meant for two must not go on as one.
Which strategy Accelerate then really uses, and whether parameters are sharded, shows only where
models are trained: `alignment.sharding`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any, NoReturn

from reprise.alignment.training.parallelism import Parallelism, launched_strategy
from reprise.launch.config import ConfigError
from reprise.rollout.run.run_dir import HandedOver

_AT_START = dict(os.environ)  # libraries add to it; the next phase begins with what we began with
_HANDED_OVER = "REPRISE_HANDED_OVER"


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


def check_launch(requested: Parallelism | None, world: int) -> None:
    """Compare the launch with the config's ``parallelism``, before anything is loaded.

    Raises:
        ConfigError: another number of processes, or another strategy.
    """
    if requested is None:
        return
    strategy, problems = launched_strategy(os.environ, world), []
    if requested.processes not in (None, world):
        problems.append(
            f"parallelism.processes={requested.processes}, but {world} "
            f"{'was' if world == 1 else 'were'} started"
        )
    if requested.strategy not in (None, strategy):
        problems.append(
            f"parallelism.strategy={requested.strategy!r}, but the launch is for {strategy!r}"
        )
    if problems:
        raise ConfigError(
            f"{'; '.join(problems)}. Start it with `accelerate launch --config_file "
            "launch/accelerate/....yaml -m reprise.launch.run`, with the file and --num_processes "
            "that fit, or change `parallelism`"
        )


def join(world: int) -> None:
    """Meet the other processes.

    Raises:
        ConfigError: fewer came than were asked for.
    """
    import torch

    _quiet_deepspeed()
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
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def threads() -> int:
    """Threads each process computes with: OMP_NUM_THREADS, else the cores it may use.

    Raises:
        ConfigError: OMP_NUM_THREADS is not a positive whole number.
    """
    from reprise.launch.provenance import cores

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

    _quiet_deepspeed()
    torch.set_num_threads(count)


def _quiet_deepspeed() -> None:
    """Where there is no GPU, tell DeepSpeed, which would warn on standard output: not its own.

    transformers imports it wherever it is installed, needed or not.
    """
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


# -- staged runs: one process for each phase -----------------------------------------------------


def handed_over() -> HandedOver | None:
    """What the phase before this one handed over; None in the first phase of a command."""
    text = os.environ.pop(_HANDED_OVER, None)
    return None if text is None else HandedOver(**json.loads(text))


def become_the_next_phase(values: HandedOver) -> NoReturn:
    """Replace this process by a new one with the same command: all memory is given back.

    The command continues the run, which is how the next phase begins. Its number stays what it
    was, so a launcher notices nothing and its signals arrive. Several processes agree on where
    they will meet while they still can talk: the launcher's own store remembers this phase's
    addresses, and would give them to the next.

    Args:
        values: for the next phase.
    """
    rank, world = asked_for()
    environment = {**_AT_START, _HANDED_OVER: json.dumps(vars(values))}
    if world > 1:
        environment["MASTER_PORT"] = str(share(_free_port() if rank == 0 else 0))
        environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        leave()
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in os.listdir("/proc/self/fd"):
        if int(descriptor) > 2 and os.path.exists(f"/proc/self/fd/{descriptor}"):
            os.set_inheritable(int(descriptor), False)  # a device kept open would keep its memory
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _free_port() -> int:
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]
