"""The processes of one run: which of them this is, and what they tell each other.

One process is the same code with nobody to talk to. Sums over processes add the same numbers in
another order than one process does, so results agree up to that, and are the same to the last bit
in all processes of a run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from reprise.rollout.errors import BadInput


@dataclass(frozen=True)
class Workers:
    """Rank of this process among `world`, and the device that it computes on."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def meet(cls, rank: int, world: int) -> Workers:
        """The device is Accelerate's choice: one of this process's own, else the CPU."""
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        state = PartialState(cpu=cpu)
        assert state.num_processes == world
        return cls(rank, world, state.device)

    def share_of(self, copies: int) -> slice:
        """Which of all `copies` are this process's.

        Raises:
            BadInput: they cannot be shared out evenly.
        """
        if copies % self.world:
            raise BadInput(
                f"copies={copies} cannot be shared out evenly over {self.world} processes; "
                "make it a multiple, or start another number of processes"
            )
        each = copies // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors of one dtype, in place, by their sums over all processes."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank, in every process."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, value)
        return gathered


class Clock:
    """Seconds by name of what was done.

    Args:
        device: waited for at the end of each piece, so that its work counts where it belongs.
        now: what tells the time, in seconds.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.now = device, now
        self.seconds: dict[str, float] = defaultdict(float)
        self.started = now()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time as `name`."""
        start = self.now()
        yield
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        self.seconds[name] += self.now() - start

    def total(self) -> float:
        """Seconds since this clock was made."""
        return self.now() - self.started
