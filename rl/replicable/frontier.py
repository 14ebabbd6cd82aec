"""Replicability against accuracy: R-LSVI and R-LSVI-UCB over widths of the grid and sample sizes.

A cell is `runs` replicas for each of `internal_seeds` grids. Measured agreement of pairs stands
beside the exact product and Lemma 2.1's bound at the measured differences (`rl.agreement.Trace`),
and beside the sample size that the theorem asks for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from reprise.rl.config import LSVI, LSVIUCB, MDP
from reprise.rl.replicable import linear_mdp
from reprise.rl.replicable.agreement import identities, pairwise_identity
from reprise.rl.replicable.linear_mdp import LinearMDP
from reprise.rl.replicable.lsvi import CoreSet, Learned, core_set, lsvi, lsvi_ucb
from reprise.rl.replicable.regression import (
    covariance_bin,
    ridge_bin,
    samples_theorem_4_1,
    samples_theorem_4_2,
)
from reprise.rollout.randomness import Streams
from reprise.rollout.run import cells
from reprise.rollout.run.intervals import student, student_share
from reprise.rollout.run.run_dir import RunDir


def make_mdp(settings: MDP) -> LinearMDP:
    """The MDP of a config; its own seed makes it, so all runs and replicas face the same one."""
    if settings.family == "chain":
        return linear_mdp.chain(settings.states, settings.horizon, settings.slip)
    family = linear_mdp.simplex if settings.family == "simplex" else linear_mdp.random_finite
    return family(
        settings.states,
        settings.actions,
        settings.dimension,
        settings.horizon,
        Streams(settings.seed).data("mdp"),
    )


def run(config: LSVI | LSVIUCB, run_dir: RunDir) -> dict[str, Any]:
    """Every cell, the unrounded baseline, and the figure."""
    mdp = make_mdp(config.mdp)
    core = core_set(mdp.features.reshape(-1, mdp.dimension))
    widths: list[float | str | None] = [*config.alphas, *([None] if config.baseline else [])]
    grid = [(alpha, samples) for alpha in widths for samples in config.samples]
    names = [f"alpha-{alpha}-samples-{samples}" for alpha, samples in grid]

    def work(index: int) -> cells.Arrays:
        return _cell(config, mdp, core, *grid[index])

    results = cells.each(run_dir, names, work, config.experiment)
    _, best = mdp.optimal()
    entries = [
        _entry(config, mdp, alpha, samples, best, arrays)
        for (alpha, samples), arrays in zip(grid, results, strict=True)
    ]
    summary = {
        "cells": [entry for entry in entries if entry["alpha"] is not None],
        "baseline": [entry for entry in entries if entry["alpha"] is None],
        "internal_seeds": config.internal(),
        "optimal_value": best,
        "core_set": {
            "size": len(core.rows),
            "leverage": core.leverage,
            "smallest_k_of_definition_3_1": core.printed,
        },
        "theory": theory(config, mdp, core),
        "weights_sha256": cells.seal(run_dir, names, results),
    }
    if run_dir.is_main:
        from reprise.rl.replicable.figures import draw_frontier

        draw_frontier(summary, run_dir.path / "frontier")
    return summary


def theory(config: LSVI | LSVIUCB, mdp: LinearMDP, core: CoreSet) -> dict[str, Any]:
    """What the theorem asks for, in the unit of the config's `samples`."""
    requested = config.theory
    reported: dict[str, Any] = requested.model_dump()
    d, horizon = mdp.dimension, mdp.horizon
    if isinstance(config, LSVI):
        total = samples_theorem_4_1(
            requested.epsilon, requested.delta, requested.rho, d, core.leverage, horizon
        )
        return {**reported, "theorem": "4.1", "total": total, "samples": total / horizon}
    total = samples_theorem_4_2(requested.epsilon, requested.delta, requested.rho, d, horizon)
    return {**reported, "theorem": "4.2", "total": total, "samples": total / config.rounds}


def grid_widths(
    config: LSVI | LSVIUCB, mdp: LinearMDP, alpha: float | str | None
) -> tuple[float | None, float | None]:
    """Widths for weights and covariances: as given, or with "theory" the paper's.

    Algorithm 4 calls the regression with eps / 2H^2, delta / H, rho / H; Algorithm 5 with eps / H
    and rho / 4HT (Appendix D.2), and the covariance with Delta_Lambda = lambda^5 (eps / beta H)^4.
    """
    if not isinstance(alpha, str):
        return alpha, alpha
    requested, d, horizon = config.theory, mdp.dimension, mdp.horizon
    if isinstance(config, LSVI):
        each = (
            requested.epsilon / (2 * horizon**2),
            requested.delta / horizon,
            requested.rho / horizon,
        )
        return ridge_bin(*each, d), None
    calls = 4 * horizon * config.rounds
    shares = requested.delta / calls, requested.rho / calls
    beta = config.beta or 1.0
    accuracy = config.regularization**5 * (requested.epsilon / (beta * horizon)) ** 4
    return ridge_bin(requested.epsilon / horizon, *shares, d), covariance_bin(accuracy, *shares, d)


def _cell(
    config: LSVI | LSVIUCB,
    mdp: LinearMDP,
    core: CoreSet,
    alpha: float | str | None,
    samples: int,
) -> cells.Arrays:
    """`runs` replicas for each internal seed; the same data for every alpha."""
    width, width_covariance = grid_widths(config, mdp, alpha)
    learned: list[Learned] = []
    for seed in config.internal():
        streams = Streams(config.seed, seed)
        draws = [streams.data("samples", seed, samples, run) for run in range(config.runs)]
        offsets = streams.internal("grid", "offsets")
        if isinstance(config, LSVI):
            learned.append(
                lsvi(
                    mdp,
                    core,
                    samples,
                    draws,
                    offsets,
                    alpha=width,
                    regularization=config.regularization,
                    normalization=config.normalization,
                    weight_bound=config.weight_bound,
                )
            )
        else:
            learned.append(
                lsvi_ucb(
                    mdp,
                    config.rounds,
                    samples,
                    draws,
                    offsets,
                    alpha=width,
                    alpha_covariance=width_covariance,
                    beta=config.beta,
                    regularization=config.regularization,
                    normalization=config.normalization,
                    backup=config.backup,
                    cap=config.cap,
                    not_positive=config.not_positive,
                    weight_bound=config.weight_bound,
                )
            )
    return {
        "weights": np.stack([one.weights for one in learned]),
        "histories": np.stack([one.trace.classes for one in learned]),
        "policies": np.stack([one.policies for one in learned]).astype(np.int16),
        "product": np.array([one.trace.product for one in learned]),
        "bound": np.array([one.trace.bound for one in learned]),
    }


def _entry(
    config: LSVI | LSVIUCB,
    mdp: LinearMDP,
    alpha: float | str | None,
    samples: int,
    best: float,
    arrays: cells.Arrays,
) -> dict[str, Any]:
    policies = arrays["policies"]  # [I, R, (T + 1,) H, S]
    last = policies if policies.ndim == 4 else policies[:, :, -1]
    values = mdp.policy_value(policies)
    lost = best - values.reshape(*values.shape[:2], -1).mean(-1)
    lost_last = best - mdp.policy_value(last)
    weights = _agreement(arrays["histories"][..., None])
    of_last = _agreement(last)
    width, width_covariance = grid_widths(config, mdp, alpha)
    return {
        "alpha": width,
        "alpha_covariance": width_covariance,
        "alpha_from": "theory" if isinstance(alpha, str) else "config",
        "samples": samples,
        "runs": config.runs,
        "agreement_weights": weights[0],
        "agreement_weights_ci95": weights[1],
        "agreement_policy": _agreement(policies)[0],
        "agreement_last_policy": of_last[0],
        "agreement_last_policy_ci95": of_last[1],
        "degrees": len(policies) - 1,
        "suboptimality": float(lost.mean()),
        "suboptimality_ci95": _interval(lost.mean(1)),
        "suboptimality_last": float(lost_last.mean()),
        "suboptimality_last_ci95": _interval(lost_last.mean(1)),
        "optimal_value": best,
        "product": float(arrays["product"].mean()),
        "bound": float(arrays["bound"].mean()),
    }


def _interval(of_seed: np.ndarray) -> list[float] | None:
    """Student's 95% interval of a mean over internal seeds [I]; none for one of them."""
    mean, half = student(of_seed)
    return None if math.isnan(half) else [mean - half, mean + half]


def _agreement(results: np.ndarray) -> tuple[float | None, list[float] | None]:
    """Pairwise identity over internal seeds [I, R, ...]: mean and 95% interval over the seeds.

    Every seed has its own grid and its own data, so that seeds are independent; pairs are not.
    """
    if results.shape[1] < 2:
        return None, None
    mean, low, high = student_share(
        [pairwise_identity(identities(replicas)) for replicas in results]
    )
    return mean, None if math.isnan(low) else [low, high]
