"""G-optimal designs to a 1% gap, against a generic convex solver.

    python benchmarks/design.py [--repeats 3] [--actions 1000] [--dimension 32]

The peer maximizes ln det (D-optimality, the same problem) with cvxpy, by each of its bundled
solvers that handles it (Clarabel, an interior-point method; SCS, a first-order one) at the loosest
tolerance of those tried that reaches the gap; the faster one counts, without cvxpy's compilation.
Both sides are given the same points, uniform on the sphere, a fresh draw for each repeat; one
thread. A result counts only if its duality gap, recomputed here for both, is at most 1%.

Then, for us alone, how time grows with the number of actions and with d.

The last line is one JSON object; a ratio is the peer's time over ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from reprise.alignment.theory.design import g_optimal_design

GAP = 0.01


def main() -> None:
    """Measure, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--actions", type=int, default=1000)
    parser.add_argument("--dimension", type=int, default=32)
    parser.add_argument(
        "--limit", type=float, default=300.0, help="seconds a peer's solve may take"
    )
    options = parser.parse_args()
    ours, peer, names = [], [], []
    for repeat in range(options.repeats):
        points = sphere(options.actions, options.dimension, seed=repeat)
        ours.append(measure_ours(points))
        seconds, name = measure_peer(points, options.limit)
        peer.append(seconds)
        names.append(name)
        print(
            f"{options.actions} actions, d = {options.dimension}: ours {ours[-1]:.3f} s, "
            f"cvxpy with {name} {seconds:.2f} s"
        )
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    growth = [grow(n, d) for n, d in GROWTH]
    for row in growth:
        print(
            f"{row['actions']} actions, d = {row['dimension']}: {row['seconds']:.3f} s, "
            f"gap {row['gap']:.2%}, support {row['support']}"
        )
    result = {
        "name": "g_optimal_design_against_cvxpy",
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "repeats": options.repeats,
        "ours": ours,
        "peer": peer,
        "peer_solver": names,
        "actions": options.actions,
        "dimension": options.dimension,
        "gap": GAP,
        "growth": growth,
        "machine": machine(),
    }
    print(json.dumps(result))


GROWTH = [(1000, 8), (1000, 32), (1000, 64), (10_000, 32), (100_000, 8), (100_000, 32)]


def sphere(points: int, dimension: int, seed: int) -> np.ndarray:
    """Uniform directions, shape (points, dimension)."""
    phi = np.random.default_rng(seed).normal(size=(points, dimension))
    return phi / np.linalg.norm(phi, axis=1, keepdims=True)


def gap_of(points: np.ndarray, weights: np.ndarray) -> float:
    """max_i psi_i' M^-1 psi_i / d - 1, from the definition."""
    moment = (points * weights[:, None]).T @ points
    values = np.einsum("ni,ni->n", points, np.linalg.solve(moment, points.T).T)
    return float(values.max()) / points.shape[1] - 1


def measure_ours(points: np.ndarray) -> float:
    """Seconds to the gap."""
    started = time.perf_counter()
    design = g_optimal_design(points, GAP)
    seconds = time.perf_counter() - started
    assert gap_of(points, design.weights) <= GAP * (1 + 1e-6)
    return seconds


def measure_peer(points: np.ndarray, limit: float) -> tuple[float, str]:
    """Seconds of the fastest solver that reached the gap, and its name."""
    import cvxpy

    weights = cvxpy.Variable(len(points), nonneg=True)
    moment = points.T @ cvxpy.diag(weights) @ points
    problem = cvxpy.Problem(cvxpy.Maximize(cvxpy.log_det(moment)), [cvxpy.sum(weights) == 1])
    found: list[tuple[float, str]] = []
    for solver, settings in (
        ("SCS", [{"eps": eps, "time_limit_secs": limit} for eps in (1e-2, 1e-3, 1e-4)]),
        (
            "CLARABEL",
            [
                {"tol_gap_rel": tol, "tol_gap_abs": tol, "tol_feas": tol, "time_limit": limit}
                for tol in (1e-3, 1e-5)
            ],
        ),
    ):
        for setting in settings:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    problem.solve(solver=solver, warm_start=False, **setting)
                except cvxpy.SolverError:
                    continue
            if weights.value is None:
                continue
            found_weights = np.maximum(weights.value, 0)
            if gap_of(points, found_weights / found_weights.sum()) <= GAP:
                found.append((float(problem.solver_stats.solve_time), solver))
                break
    if not found:
        raise SystemExit(f"no solver reached a gap of {GAP:.0%} in {limit:g} s; raise --limit")
    return min(found)


def grow(actions: int, dimension: int) -> dict[str, Any]:
    """One measurement of ours alone."""
    points = sphere(actions, dimension, seed=0)
    started = time.perf_counter()
    design = g_optimal_design(points, GAP)
    return {
        "actions": actions,
        "dimension": dimension,
        "seconds": time.perf_counter() - started,
        "gap": design.gap,
        "support": len(design.support),
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    import cvxpy

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cvxpy": cvxpy.__version__,
        "cores": os.cpu_count(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
    }


if __name__ == "__main__":
    main()
