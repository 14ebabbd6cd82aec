"""What no algorithm can do with fewer points or regressors: data sets that show it.

Errors are relative and over *all* linear models: max_r |L_syn(r) - L(r)| / L(r).

Points. N < q points have moments of rank at most N, so some r has L_syn(r) = 0 and its relative
error is 1, whatever the points are (Lemma C.2 asks for d + 1 = q). In absolute terms, over |r| = 1,
the error is at least the (N+1)-th eigenvalue of M (Eckart and Young), which the truncated closed
form attains.

Regressors. For any k < q(q+1)/2 fixed r_j some symmetric D != 0 has r_j^T D r_j = 0 for all j. With
E = M^(-1/2) D M^(-1/2), scaled to |E|_2 = e < 1, the two data sets with moments

    M+ = M^(1/2) (I + E) M^(1/2),      M- = M^(1/2) (I - E) M^(1/2)

have equal losses on all r_j, and L+ = (1 + e) L, L- = (1 - e) L at E's top direction. Who sees only
the k losses answers both alike, with some loss s L there: its relative error, max(|s - 1 - e| /
(1 + e), |s - 1 + e| / (1 - e)), is at least e (at s = 1 - e^2). This holds for regressors drawn
without looking at the data, as the algorithm draws them. It is our argument: the paper's own proof
of its lower bound is not known to us.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from reprise.distill.config import DistillRegression
from reprise.distill.supervised.baselines import random_subset
from reprise.distill.supervised.closed_form import closed_form
from reprise.distill.supervised.regression import (
    BelowThreshold,
    distill,
    loss_rows,
    losses,
    second_moment,
)
from reprise.distill.supervised.study import Trials, worst_relative_error
from reprise.rollout.run import cells
from reprise.rollout.run.run_dir import RunDir

SPREAD = 0.9  # e


def run(config: DistillRegression, run_dir: RunDir) -> dict[str, Any]:
    """Both bounds for every trial, and what the routes reach."""
    trials = Trials(config)
    names = [f"trial-{trial}" for trial in range(config.trials)]
    study = _Study(config, trials)
    results = cells.each(run_dir, names, study.run, "lower bounds")
    summary = {
        **trials.about(),
        "cells": [],
        "too_few_points": [
            _mean(results, f"size/{size}/{route}", route=route, size=size)
            for route in config.routes
            for size in config.sizes
        ],
        "too_few_regressors": [
            _mean(results, f"k/{count}", route=config.routes[0], k=count)
            for count in config.regressors
        ],
    }
    if run_dir.is_main:
        from reprise.distill.supervised.report import draw_lower_bound, write_lower_bound

        write_lower_bound(summary, run_dir.path / "table.md")
        draw_lower_bound(summary, run_dir.path / "figure")
    return summary


class _Study:
    """One trial at a time."""

    def __init__(self, config: DistillRegression, trials: Trials) -> None:
        self.config, self.trials = config, trials

    def run(self, trial: int) -> cells.Arrays:
        """Numbers for every size and for every k."""
        training, *_ = self.trials.split(trial)
        arrays: cells.Arrays = {}
        for size in self.config.sizes:
            arrays |= self._size(trial, training, size)
        for count in self.config.regressors:
            arrays |= self._regressors(trial, training, count)
        return arrays

    def _distill(
        self, route: str, trial: int, data: np.ndarray, start: np.ndarray, count: int
    ) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BelowThreshold)
            return distill(
                route,
                data,
                start,
                self.trials.regressors(trial)[0][:count],
                draw=self.trials.streams.internal("closed-form", trial, len(start)),
                domain=self.trials.domain(np.concatenate([data, start])),
                max_iterations=self.config.max_iterations,
                allow_too_few=True,
            ).points

    def _size(self, trial: int, training: np.ndarray, size: int) -> cells.Arrays:
        moment = second_moment(training)
        values = np.linalg.eigvalsh(moment)[::-1]
        start = random_subset(training, size, self.trials.streams.data("subset", trial, size))
        arrays: cells.Arrays = {}
        for route in self.config.routes:
            points = self._distill(
                route, trial, training, start.points, max(self.config.regressors)
            )
            syn = second_moment(points)
            arrays |= {
                f"size/{size}/{route}/bound": np.float64(size < len(values)),
                f"size/{size}/{route}/worst": np.float64(worst_relative_error(syn, moment)),
                f"size/{size}/{route}/eigenvalue": np.float64(
                    values[size] if size < len(values) else 0.0
                ),
                f"size/{size}/{route}/absolute": np.float64(np.linalg.norm(syn - moment, 2)),
            }
        return arrays

    def _regressors(self, trial: int, training: np.ndarray, count: int) -> cells.Arrays:
        matched = self.trials.regressors(trial)[0][:count]
        pair, bound = twins(
            second_moment(training), matched, self.trials.streams.internal("unseen", trial, count)
        )
        size = max(self.config.sizes)
        start = random_subset(training, size, self.trials.streams.data("subset", trial, size))
        draw = self.trials.streams.data("twins", trial, count)
        data = [closed_form(moment, len(training), draw) for moment in pair]
        syn = [
            second_moment(self._distill(self.config.routes[0], trial, points, start.points, count))
            for points in data
        ]
        seen = [losses(second_moment(points), matched) for points in data]
        worst = [worst_relative_error(a, b) for a, b in zip(syn, pair, strict=True)]
        return {
            f"k/{count}/bound": np.float64(bound),
            f"k/{count}/worst": np.float64(max(worst)),
            # What the algorithm sees of the two, and what it answers, are the same.
            f"k/{count}/seen_apart": np.float64(np.abs(seen[0] / seen[1] - 1).max()),
            f"k/{count}/answers_apart": np.float64(np.abs(syn[0] - syn[1]).max()),
        }


def twins(
    moment: np.ndarray, regressors: np.ndarray, draw: np.random.Generator
) -> tuple[list[np.ndarray], float]:
    """Moments M+ and M- with equal losses on the regressors, and e; M twice and 0 if none exist."""
    rows = loss_rows(regressors)
    _, values, basis = np.linalg.svd(rows)
    rank = int((values > values[0] * max(rows.shape) * np.finfo(float).eps).sum())
    if rank == rows.shape[1]:
        return [moment, moment], 0.0
    unseen = np.zeros_like(moment)
    unseen[np.triu_indices(len(moment))] = draw.standard_normal(len(basis) - rank) @ basis[rank:]
    unseen = unseen + unseen.T - np.diag(np.diag(unseen))
    eigenvalues, vectors = np.linalg.eigh(moment)
    whiten = vectors / np.sqrt(eigenvalues)
    scale = SPREAD / np.linalg.norm(whiten.T @ unseen @ whiten, 2)
    return [moment + scale * unseen, moment - scale * unseen], SPREAD


def _mean(results: list[cells.Arrays], prefix: str, **told: Any) -> dict[str, Any]:
    """Means over trials of everything under a prefix, and the least and largest worst error."""
    entry = dict(told)
    for key in results[0]:
        if key.startswith(prefix + "/"):
            values = np.array([float(arrays[key]) for arrays in results])
            name = key.removeprefix(prefix + "/")
            entry[name] = float(values.mean())
            if name == "worst":
                entry["worst_min"], entry["worst_max"] = float(values.min()), float(values.max())
    return entry
