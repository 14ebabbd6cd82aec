"""R-ridge regression and R-covariance estimation alone: agreement and error against samples.

Theorems 3.1 and 3.3 of 2509.08660 speak of any bounded distribution. Here x is one of K vectors of
length at most 1 in R^d, drawn with probabilities p, and y = +1 or -1 with E[y | x] = <theta, x>, so
that |y| <= 1 and |theta| <= 1. Any number of samples is then two draws of counts:

    n ~ Multinomial(N, p),   s_k ~ Binomial(n_k, (1 + <theta, x_k>) / 2)
    sum x x^T = sum_k n_k x_k x_k^T,   sum x y = sum_k (2 s_k - n_k) x_k

and what the estimators converge to is known: theta_lambda = (E[x x^T] + lambda I)^-1 E[x y], and
E[x x^T]. A cell is `runs` replicas, with data of their own, on each of `internal_seeds` grids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from reprise.rl.config import Estimation
from reprise.rl.replicable.agreement import Trace, identities, pairwise_identity
from reprise.rl.replicable.regression import (
    covariance_bin,
    ridge,
    ridge_bin,
    round_covariance,
    samples_theorem_3_1,
    samples_theorem_3_3,
)
from reprise.rl.replicable.rounding import hypergrid_rounding
from reprise.rollout import draws
from reprise.rollout.randomness import Streams
from reprise.rollout.run import cells
from reprise.rollout.run.intervals import student, student_share
from reprise.rollout.run.run_dir import RunDir


@dataclass(frozen=True)
class Design:
    """A bounded distribution of (x, y) on K points."""

    points: np.ndarray  # x [K, d], of length at most 1
    probabilities: np.ndarray  # [K]
    theta: np.ndarray  # [d], of length at most 1

    @classmethod
    def draw(cls, points: int, dimension: int, seed: int) -> Design:
        """Gaussian directions of lengths uniform in [0, 1], p from a flat Dirichlet, |theta| = 1.

        Entry j is shrunk by 1/sqrt(j + 1): directions that are rarely seen are hard to estimate.
        """
        generator = Streams(seed).data("design")
        x = generator.standard_normal((points, dimension)) / np.sqrt(np.arange(dimension) + 1.0)
        x *= generator.random((points, 1)) / np.linalg.norm(x, axis=1, keepdims=True)
        theta = generator.standard_normal(dimension)
        p = draws.settled(generator.dirichlet(np.ones(points)))
        return cls(x, p, theta / np.linalg.norm(theta))

    @property
    def covariance(self) -> np.ndarray:
        """E[x x^T] [d, d]."""
        return self.points.T @ (self.probabilities[:, None] * self.points)

    def optimum(self, regularization: float) -> np.ndarray:
        """theta_lambda, what ridge regression converges to [d]."""
        moment = self.covariance @ self.theta
        return ridge(self.covariance, moment, 1, regularization, "mean")

    def moments(
        self, samples: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means of x x^T [d, d] and x y [d] over `samples` draws."""
        counts = draws.multinomial(generator, samples, self.probabilities)
        successes = draws.binomial(generator, counts, (1 + self.points @ self.theta) / 2)
        gram = self.points.T @ (counts[:, None] * self.points)
        return gram / samples, self.points.T @ (2.0 * successes - counts) / samples


def run(config: Estimation, run_dir: RunDir) -> dict[str, Any]:
    """Every width of the grid and number of samples; the theorem's own last, where asked for."""
    design = Design.draw(config.points, config.dimension, config.design_seed)
    theory = theorem(config)
    requested = [(alpha, samples) for alpha in config.alphas for samples in _sizes(config, alpha)]
    names = [f"alpha-{alpha}-samples-{samples}" for alpha, samples in requested]
    grid = [
        {**_resolved("alpha", alpha, theory), **_resolved("samples", samples, theory)}
        for alpha, samples in requested
    ]

    def work(index: int) -> cells.Arrays:
        return _cell(config, design, grid[index]["alpha"], grid[index]["samples"])

    results = cells.each(run_dir, names, work, config.experiment)
    entries = [
        {**position, **_entry(config, arrays)}
        for position, arrays in zip(grid, results, strict=True)
    ]
    return {
        "estimator": config.estimator,
        "cells": entries,
        "theory": theory,
        "internal_seeds": config.internal(),
        "weights_sha256": cells.seal(run_dir, names, results),
    }


def _sizes(config: Estimation, alpha: float | str) -> list[int | str]:
    return [*config.samples, *(["theory"] if alpha == "theory" else [])]


def _resolved(key: str, value: float | str, theory: dict[str, Any]) -> dict[str, Any]:
    """A value, or the theorem's, and which of the two it is."""
    own = not isinstance(value, str)
    return {key: value if own else theory[key], f"{key}_from": "config" if own else "theory"}


def theorem(config: Estimation) -> dict[str, Any]:
    """Width of the grid and number of samples that the theorem asks for."""
    requested = config.theory
    shared = (requested.epsilon, requested.delta, requested.rho)
    if config.estimator == "ridge":
        number = samples_theorem_3_1(*shared, config.dimension, config.regularization, 2.0)
        alpha = ridge_bin(*shared, config.dimension)
    else:
        number = samples_theorem_3_3(*shared, config.dimension, 1)
        alpha = covariance_bin(*shared, config.dimension)
    name = "3.1" if config.estimator == "ridge" else "3.3"
    return {
        **requested.model_dump(),
        "theorem": name,
        "alpha": alpha,
        "samples": int(np.ceil(number)),
    }


def _cell(config: Estimation, design: Design, alpha: float, samples: int) -> cells.Arrays:
    """Rounded estimates [I, R, ...], their errors, and what the measured differences predict."""
    truth = (
        design.optimum(config.regularization) if config.estimator == "ridge" else design.covariance
    )
    rounded, traces = [], []
    for seed in config.internal():
        streams = Streams(config.seed, seed)
        replicas = [
            design.moments(samples, streams.data("samples", seed, samples, run))
            for run in range(config.runs)
        ]
        gram, moment = (np.stack(part) for part in zip(*replicas, strict=True))
        offsets = streams.internal("grid", "offsets")
        trace = Trace(config.runs)
        if config.estimator == "ridge":
            before = ridge(gram, moment, 1, config.regularization, "mean")
            after = hypergrid_rounding(before, offsets, alpha, -1e6, 1e6, 1)
            trace.step(before, after, alpha)
        else:
            after = round_covariance(gram, offsets, alpha, 1.0, config.not_positive)
            above = np.triu_indices(config.dimension)
            trace.step(gram[:, *above], after[:, *above], alpha)
        rounded.append(after)
        traces.append(trace)
    weights = np.stack(rounded)
    errors = weights - truth
    return {
        "weights": weights,
        "errors": np.sqrt(np.square(errors).reshape(*errors.shape[:2], -1).sum(-1)),
        "product": np.array([trace.product for trace in traces]),
        "bound": np.array([trace.bound for trace in traces]),
    }


def _entry(config: Estimation, arrays: cells.Arrays) -> dict[str, Any]:
    """Means over grids; the data of one grid are no other's, so grids are independent."""
    shares = [pairwise_identity(identities(replicas)) for replicas in arrays["weights"]]
    agreement, *interval = student_share(shares)
    error, half = student(arrays["errors"].mean(1))
    within = arrays["errors"] <= config.theory.epsilon
    return {
        "runs": config.runs,
        "agreement": agreement,
        "agreement_ci95": interval,
        "degrees": len(shares) - 1,
        "product": float(arrays["product"].mean()),
        "bound": float(arrays["bound"].mean()),
        "error": error,
        "error_ci95": [error - half, error + half],
        "error_max": float(arrays["errors"].max()),
        "within_epsilon": float(within.mean()),
    }
