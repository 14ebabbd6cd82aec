"""A bank of predictors as one batch, against a loop over them.

    python benchmarks/distill.py [--repeats 5]

The Bellman losses of K = 300 random networks on 50 points, and their gradient by the points: what a
step of distillation costs. Ours is `distill.predictors.bellman_losses`; the peer is what one would
write first, the same formula with one `torch.nn.Sequential` for each predictor, one-hot actions
appended to the states. Both give the same losses. One thread; ratios are of CPU seconds, which
other programs on the machine change less than wall seconds.

The last line is one JSON object; `growth` has our CPU seconds of a step by K, N and d, and
`distillation` the seconds of whole 50-point CartPole distillations, training losses included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Python looks beside a script first, where `distill` would be this very file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from reprise.distill.backups import distill_backups, feature_maps
from reprise.distill.banks import Bank, random_networks
from reprise.distill.config import Downstream
from reprise.distill.evaluate import fitted_q
from reprise.distill.offline_rl import (
    Domain,
    Points,
    distill,
    gather,
    starting_rows,
    terminal_count,
)
from reprise.distill.predictors import Batch, Networks, Scaling, bellman_losses, draw_networks
from reprise.launch.provenance import cores, cpu_name
from reprise.rollout.environments.base import make
from reprise.rollout.episodes import collect_transitions
from reprise.rollout.types import Transitions

GAMMA = 0.98


def main() -> None:
    """Measure both sides in turn, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batch = points(50, 4)
    networks = draw_networks(np.random.default_rng(0), 1, 300, 4, 2)
    scales = torch.as_tensor(np.random.default_rng(1).standard_normal((1, 300), dtype=np.float32))
    modules = one_by_one(networks)
    ours, peer = batched(networks, scales, batch), looped(modules, scales, batch)
    torch.testing.assert_close(ours, peer, rtol=1e-3, atol=1e-5)
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for repeat in range(arguments.repeats):
        for side in ("ours", "peer") if repeat % 2 == 0 else ("peer", "ours"):
            if side == "ours":
                times[side].append(timed(lambda: batched(networks, scales, batch), 10))
            else:
                times[side].append(timed(lambda: looped(modules, scales, batch), 2))
    ratios = [b[0] / a[0] for a, b in zip(times["ours"], times["peer"], strict=True)]
    told = {
        side: {
            "cpu_seconds": statistics.median(cpu for cpu, _ in values),
            "wall_seconds": statistics.median(wall for _, wall in values),
        }
        for side, values in times.items()
    }
    print(
        json.dumps(
            {
                "name": "distill_batched_vs_loop",
                "ratio_median": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "repeats": arguments.repeats,
                **told,
                "growth": growth(),
                "distillation": distillations(),
                "machine": {"cpu": cpu_name(), "cores": cores(), "threads_used": 1},
            }
        )
    )


def batched(networks: Networks, scales: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Gradient by the states of the sum of all losses, [1, N, d]."""
    states = batch.states.clone().requires_grad_(True)
    moved = Batch(states, batch.actions, batch.rewards, batch.following, batch.terminated)
    on, end = bellman_losses(networks, scales, moved, GAMMA)
    (on + end).sum().backward()
    assert states.grad is not None
    return states.grad


def looped(modules: list[torch.nn.Module], scales: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The same, one predictor after another."""
    states = batch.states[0].clone().requires_grad_(True)
    ended, rewards = batch.terminated, batch.rewards[0]
    one_hot = torch.eye(2)
    total = torch.zeros(())
    for module, scale in zip(modules, scales[0], strict=True):
        value = module(torch.cat([states, one_hot[batch.actions[0]]], 1))[:, 0]
        ahead = torch.stack(
            [
                module(torch.cat([batch.following[0], row.expand(len(states), 2)], 1))[:, 0]
                for row in one_hot
            ]
        ).amax(0)
        on = value - scale * rewards - GAMMA * ahead
        end = value - scale * rewards
        total = total + on[~ended].square().mean() + end[ended].square().mean()
    total.backward()
    assert states.grad is not None
    return states.grad[None]


def one_by_one(networks: Networks) -> list[torch.nn.Module]:
    """Each predictor as modules of torch."""
    modules: list[torch.nn.Module] = []
    for k in range(networks.first.shape[1]):
        first = torch.nn.Linear(networks.first.shape[2] + 2, networks.first.shape[3], bias=False)
        last = torch.nn.Linear(networks.first.shape[3], 1)
        with torch.no_grad():
            first.weight.copy_(torch.cat([networks.first[0, k], networks.action[0, k]]).T)
            last.weight.copy_(networks.head[0, k][None])
            last.bias.copy_(networks.offset[0, k][None])
        module = torch.nn.Sequential(first, torch.nn.Tanh(), last)
        modules.append(module.requires_grad_(False))
    return modules


def points(size: int, width: int) -> Batch:
    """One set of `size` random points, a fifth of them terminated."""
    draw = np.random.default_rng(2)
    return Batch(
        torch.as_tensor(draw.standard_normal((1, size, width), dtype=np.float32)),
        torch.as_tensor(draw.integers(0, 2, (1, size))),
        torch.ones(1, size),
        torch.as_tensor(draw.standard_normal((1, size, width), dtype=np.float32)),
        torch.arange(size) >= size - max(1, size // 5),
    )


def growth() -> dict[str, dict[int, float]]:
    """Our CPU seconds of a step: by K at N = 50, d = 4; by N at K = 100; by d at K = 100."""

    def step(count: int, size: int, width: int) -> float:
        networks = draw_networks(np.random.default_rng(0), 1, count, width, 2)
        scales, batch = torch.ones(1, count), points(size, width)
        batched(networks, scales, batch)
        return timed(lambda: batched(networks, scales, batch), 5)[0]

    return {
        "predictors": {count: step(count, 50, 4) for count in (20, 100, 300, 1000)},
        "points": {size: step(100, size, 4) for size in (50, 100, 200, 400)},
        "dimension": {width: step(100, 50, width) for width in (2, 4, 16, 64)},
    }


def distillations() -> dict[str, dict[str, float]]:
    """Seconds of distilling 50 of 4,000 CartPole transitions, by what is matched."""
    data = cartpole(4000)
    full = Scaling.of(data).batch(data)
    ends = terminal_count(data, 50, 0.3)
    rows = starting_rows(data.terminated, 50, ends, np.random.default_rng(0))
    start = gather(full, rows[None])
    draw = random_networks(np.random.default_rng(1), full, 1, 2)
    assert Points.of(start, Domain.of(full)).batch().states.shape == (1, 50, 4)

    def losses() -> None:
        distill(full, start, draw, Bank.of(*draw(300), full, GAMMA), GAMMA, steps=100)

    learner = Downstream(gamma=GAMMA, ensemble=2)
    q = fitted_q(full, 2, learner, np.random.default_rng(2), groups=1)

    def backups() -> None:
        maps = feature_maps(np.random.default_rng(3), None, 1, 4, 2, units=192, gains=[0.5, 1.0])
        distill_backups(full, start, q, maps, GAMMA, np.random.default_rng(4))

    told = {}
    for name, work in (("losses, K = 300", losses), ("backups, fresh maps", backups)):
        cpu, wall = timed(work, 1)
        told[name] = {"cpu_seconds": cpu, "wall_seconds": wall}
    fit = timed(lambda: fitted_q(full, 2, learner, np.random.default_rng(2), groups=1), 1)
    told["Q fitted to the training set"] = {"cpu_seconds": fit[0], "wall_seconds": fit[1]}
    return told


def cartpole(size: int) -> Transitions:
    """CartPole under a random policy; nothing to record or download first."""
    draw, copies = np.random.default_rng(0), make("CartPole-v1", 50)
    data = collect_transitions(
        lambda observations: draw.integers(0, 2, len(observations)), copies, size // 50, 0
    )
    copies.close()
    return data


def timed(work: Callable[[], Any], times: int) -> tuple[float, float]:
    """CPU and wall seconds of `work()`, the mean of `times`."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        work()
    return (time.process_time() - cpu) / times, (time.perf_counter() - wall) / times


if __name__ == "__main__":
    main()
