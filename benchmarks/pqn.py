"""PQN on Breakout: our fast arrangement against the reference layout, and against the hardware.

    python benchmarks/pqn.py [--repeats 5] [--game breakout] [--threads 1]

Both sides are the same trainer on the same game: whole iterations of 8 copies x 128 steps (act,
returns, 4 epochs of 4 minibatches), emulator included. The peer computes in the reference layout in
float32, as CleanRL's PQN does; ours in the fast arrangement, in the precision that `auto` chooses
here and in float32. Sides take turns. Ratios are of CPU seconds of the process (all threads), which
other programs on the machine disturb least; wall seconds stand beside them.

The ceiling is what the machine's matrix product alone allows: one environment step costs
13 forward passes' worth of multiplications (1 to act, 4 epochs of 3, without the gradient of the
pixels), 217 MFLOP on Breakout. It is measured twice: for a square product of 1,024, and for the
network's own, tall and narrow ones. A step also costs the emulator and everything that is no
multiplication, so nothing reaches it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from reprise.launch.config import load
from reprise.launch.provenance import cores, cpu_name
from reprise.rl.config import PQN
from reprise.rl.networks import QNetwork
from reprise.rl.pqn import Learner
from reprise.rl.pqn_result import WORK
from reprise.rl.workers import Clock
from reprise.rollout.run.run_dir import RunDir

SIDES = {
    "ours": ("fast", "auto"),
    "ours_float32": ("fast", "float32"),
    "peer": ("reference", "float32"),
}


def main() -> None:
    """Measure all sides in turn, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            name: Side(arguments.game, *how, Path(folder) / name) for name, how in SIDES.items()
        }
        for side in sides.values():
            side.iterate()  # unmeasured: allocations, the libraries' choices
        for repeat in range(arguments.repeats):
            for name in list(sides) if repeat % 2 == 0 else list(sides)[::-1]:
                sides[name].measured.append(sides[name].iterate())
    ours, peer = sides["ours"], sides["peer"]
    ratios, ratios_32 = (
        [b["cpu"] / a["cpu"] for a, b in zip(side.measured, peer.measured, strict=True)]
        for side in (ours, sides["ours_float32"])
    )
    flops = flops_a_step(ours.learner.network)
    shapes = {
        "square": [(1024, 1024, 1024)],
        "network": network_products(ours.learner.network, 256),
    }
    limits = {
        kind: {
            precision: gemm_flops(getattr(torch, precision), products)
            for precision in ("float32", "bfloat16")
        }
        for kind, products in shapes.items()
    }
    told = {name: side.told() for name, side in sides.items()}
    for name, side in sides.items():
        told[name]["share_of_ceiling"] = {
            kind: told[name]["steps_per_core_second"] * flops / limit[side.learner.precision]
            for kind, limit in limits.items()
        }
    print(
        json.dumps(
            {
                "name": "pqn_fast_vs_reference",
                "ratio_median": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "ratio_float32_median": statistics.median(ratios_32),
                "repeats": arguments.repeats,
                "steps": ours.learner.config.batch,
                **told,
                "megaflop_a_step": flops / 1e6,
                "gemm_gigaflops": {
                    kind: {key: value / 1e9 for key, value in limit.items()}
                    for kind, limit in limits.items()
                },
                "ceiling_steps_per_core_second": {
                    kind: {key: value / flops for key, value in limit.items()}
                    for kind, limit in limits.items()
                },
                "machine": {
                    "cpu": cpu_name(),
                    "cores": cores(),
                    "threads_used": arguments.threads,
                },
            }
        )
    )


class Side:
    """A trainer in one arrangement and precision, and what its iterations took."""

    def __init__(self, game: str, arrangement: str, precision: str, folder: Path) -> None:
        config = load(
            "paper/pqn_breakout_quantized_regularized",
            [f"environment={game}", f"arrangement={arrangement}", f"precision={precision}"],
        )
        assert isinstance(config, PQN)
        self.learner = Learner(config, RunDir(folder, experiment="rl.pqn", seed=0))
        self.learner.resume()
        self.measured: list[dict[str, float]] = []

    def iterate(self) -> dict[str, float]:
        """Seconds of one iteration: CPU, wall, and CPU by kind of work."""
        learner, wall = self.learner, time.perf_counter()
        clock = Clock(learner.workers.device, time.process_time)
        rollout = learner.act(clock)
        learner.update(rollout, learner.returns(rollout), clock)
        learner.iteration += 1
        return {"cpu": clock.total(), "wall": time.perf_counter() - wall, **clock.seconds}

    def told(self) -> dict[str, Any]:
        """Medians over the iterations."""
        steps = self.learner.config.batch
        median = {
            key: statistics.median(one[key] for one in self.measured) for key in self.measured[0]
        }
        return {
            "arrangement": self.learner.config.arrangement,
            "precision": self.learner.precision,
            "steps_per_second": steps / median["wall"],
            "steps_per_core_second": steps / median["cpu"],
            "cpu_seconds": {name: median[name] for name in WORK},
        }


def flops_a_step(network: QNetwork) -> float:
    """Multiplications and additions of one environment step, learning included."""
    macs, first = 0.0, 0.0
    for module, norm in (
        (network.conv1, network.norm1),
        (network.conv2, network.norm2),
        (network.conv3, network.norm3),
    ):
        pixels = norm.weight[0].numel()
        macs += module.weight.numel() * pixels
        first = first or macs
    macs += network.hidden.weight.numel() + network.head.weight.numel()
    return 2 * (macs + 4 * (3 * macs - first))


def gemm_flops(dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]]) -> float:
    """Floating-point operations a CPU second of matrix products [m, k] [k, n], each as often."""
    generator = torch.Generator().manual_seed(0)
    seconds = 0.0
    for m, k, n in shapes:
        a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((m, k), (k, n)))
        times = []
        for _ in range(12):
            start = time.process_time()
            a @ b
            times.append(time.process_time() - start)
        seconds += statistics.median(times[2:])
    return sum(2 * m * k * n for m, k, n in shapes) / seconds


def network_products(network: QNetwork, rows: int) -> list[tuple[int, int, int]]:
    """The network's layers as matrix products for a minibatch, forward; a row for each pixel."""
    products = []
    for module, norm in (
        (network.conv1, network.norm1),
        (network.conv2, network.norm2),
        (network.conv3, network.norm3),
    ):
        outputs = len(module.weight)
        products.append((rows * norm.weight[0].numel(), module.weight[0].numel(), outputs))
    outputs, inputs = network.hidden.weight.shape
    return [*products, (rows, inputs, outputs)]


if __name__ == "__main__":
    main()
