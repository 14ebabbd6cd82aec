"""Replicable fitted Q-iteration: our batched replicas against a loop over scikit-learn.

    python benchmarks/fqi.py [--repeats 5] [--runs 100] [--peer-runs 10]

The same algorithm on the same data with the same features, regularization and rounding grid: 16
random Fourier features, 5 backups, each run on a random half of 100,000 CartPole transitions. The
peer is what one would write: for each run, `RBFSampler.transform` of its half, and for each backup
`Ridge.fit` and two products. Ours makes all runs at once. Both start from the raw transitions
and end with the rounded weights, which are compared. One thread; times are CPU seconds of the
process, which other programs on the machine do not change, and wall seconds beside them.

The peer makes fewer runs and its time is scaled to as many as ours. The last line is one JSON
object; `growth` has our CPU seconds by number of features and by size of the data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import Ridge

from reprise.launch.provenance import cores, cpu_name
from reprise.rl.config import FQIFeatures, FQIMethod
from reprise.rl.replicable.fqi import Encoded, Fourier, fit
from reprise.rl.replicable.regression import one_thread
from reprise.rl.replicable.rounding import draw_offsets, round_to_grid
from reprise.rollout.environments.base import cartpole
from reprise.rollout.episodes import collect
from reprise.rollout.randomness import Streams
from reprise.rollout.types import Transitions

LAMBDA, BANDWIDTH, FRACTION = 0.1, 0.7, 0.5
METHOD = FQIMethod(reward="step", reward_scale=1.0)
SCALE = (2.4, 2.0, 0.21, 2.0)
STREAMS = Streams(0)


def main() -> None:
    """Measure both sides in turn, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--peer-runs", type=int, default=10)
    arguments = parser.parse_args()
    data = random_transitions(100_000)
    counts = halves(len(data), arguments.runs)
    # Both sides once, unmeasured: what they return must be the same up to where a last bit crosses
    # an edge of the grid.
    ours, peer = batched(data, counts, 16), looped(data, counts[: arguments.peer_runs], 16)
    same = float((ours[: len(peer)] == peer).mean())
    assert same > 0.9 and np.abs(ours[: len(peer)] - peer).max() < 5 * METHOD.alpha, same
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for repeat in range(arguments.repeats):
        for side in ("ours", "peer") if repeat % 2 == 0 else ("peer", "ours"):
            if side == "ours":
                times[side].append(timed(lambda: batched(data, counts, 16)))
            else:
                some = counts[: arguments.peer_runs]
                cpu, wall = timed(lambda some=some: looped(data, some, 16))
                scale = arguments.runs / arguments.peer_runs
                times[side].append((cpu * scale, wall * scale))
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
                "name": "fqi_vs_sklearn",
                "ratio_median": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "repeats": arguments.repeats,
                "runs": arguments.runs,
                "peer_runs": arguments.peer_runs,
                "equal_weights": same,
                **told,
                "growth": growth(data, arguments.runs),
                "machine": {"cpu": cpu_name(), "cores": cores(), "threads_used": 1},
            }
        )
    )


def growth(data: Transitions, runs: int) -> dict[str, dict[int, float]]:
    """Our CPU seconds by D, at the full n, and by n, at D = 16."""
    by_features = {
        width: timed(lambda w=width: batched(data, halves(len(data), runs), w))[0]  # type: ignore[misc]
        for width in (8, 16, 32, 64)
    }
    by_size = {}
    for size in (12_500, 25_000, 50_000, 100_000):
        some = data.take(np.arange(size))
        by_size[size] = timed(lambda s=some: batched(s, halves(len(s), runs), 16))[0]  # type: ignore[misc]
    return {"features": by_features, "transitions": by_size}


def batched(data: Transitions, counts: np.ndarray, width: int) -> np.ndarray:
    """All runs at once: weights [R, D]."""
    encoded = Encoded.of(data, draw(width), METHOD)
    return fit(encoded, counts, np.array([LAMBDA]), METHOD, STREAMS)[:, 0]


def draw(width: int) -> Fourier:
    """Random Fourier features of (s / scale, a), which scikit-learn has too."""
    settings = FQIFeatures(
        kind="fourier", count=width, bandwidth=BANDWIDTH, scale=SCALE, constant=0
    )
    return Fourier.draw(settings, STREAMS)


def looped(data: Transitions, counts: np.ndarray, width: int) -> np.ndarray:
    """One run after another, with scikit-learn: weights [R, D]."""
    fourier = draw(width)
    results = []
    for count in counts:
        part = data.take(np.flatnonzero(count))
        sampler = RBFSampler(gamma=0.5 / BANDWIDTH**2, n_components=width).fit(np.zeros((1, 5)))
        sampler.random_weights_ = np.vstack(
            [fourier.frequencies * np.array(SCALE)[:, None], fourier.action]
        )
        sampler.random_offset_ = fourier.phase
        taken = sampler.transform(inputs(part.observations, 2.0 * part.actions - 1))
        ahead = [sampler.transform(inputs(part.next_observations, sign)) for sign in (-1.0, 1.0)]
        alive = 1.0 - part.terminated
        grid = STREAMS.internal("grid", METHOD.backups)
        weights = np.zeros(width)
        for _ in range(METHOD.backups):
            values = np.maximum(ahead[0] @ weights, ahead[1] @ weights)
            targets = part.rewards + METHOD.gamma * alive * values
            model = Ridge(alpha=LAMBDA * len(part), fit_intercept=False).fit(taken, targets)
            offsets = draw_offsets(grid, (width,), METHOD.alpha)
            weights = round_to_grid(model.coef_, offsets, METHOD.alpha, -METHOD.bound, METHOD.bound)
        results.append(weights)
    return np.stack(results)


def inputs(observations: np.ndarray, action: np.ndarray | float) -> np.ndarray:
    """(s / scale, a) [n, 5]."""
    states = observations / SCALE
    return np.column_stack([states, np.broadcast_to(action, len(states))])


def halves(size: int, runs: int) -> np.ndarray:
    """Which half of the data each run has, as counts [R, n]."""
    counts = np.zeros((runs, size), dtype=np.uint16)
    for run in range(runs):
        chosen = STREAMS.data("halves", run).permutation(size)[: int(FRACTION * size)]
        counts[run, chosen] = 1
    return counts


def random_transitions(size: int) -> Transitions:
    """CartPole under a random policy; nothing to record or download first."""
    draw = STREAMS.data("actions")
    copies = 100
    data = collect(
        lambda observations: draw.integers(0, 2, len(observations)),
        cartpole(copies),
        size // copies * 11 // 10,
        STREAMS.data_seed("environment"),
    )
    return data.take(np.arange(size))


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of `work()`."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


if __name__ == "__main__":
    with one_thread():
        main()
