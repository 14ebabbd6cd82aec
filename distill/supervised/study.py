"""Regression sets distilled for every route, size and number of regressors, beside their subsets.

A trial draws a split, starting subsets and regressors; its regressors are nested: the first 10 of
k = 20 are those of k = 10. Test errors are of least squares fitted on the small set, in the
target's own units; a set's relative error is the mean of |L_syn(r) - L_train(r)| / L_train(r) over
regressors r never used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from reprise.distill.config import DistillRegression, Route
from reprise.distill.supervised import data as regression_data
from reprise.distill.supervised import domains
from reprise.distill.supervised.baselines import (
    least_squares,
    leverage_subset,
    mean_squared_error,
    random_subset,
)
from reprise.distill.supervised.regression import (
    BelowThreshold,
    distill,
    draw_regressors,
    losses,
    second_moment,
    size_bound,
    threshold,
)
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run import cells
from reprise.rollout.run.intervals import student
from reprise.rollout.run.run_dir import RunDir

SAMPLED = ("sampled", "sampled_gauss_newton")


def run(config: DistillRegression, run_dir: RunDir) -> dict[str, Any]:
    """Every trial, the summary, the table and the figure."""
    if config.study == "lower_bound":
        from reprise.distill.supervised.lower_bound import run as run_lower_bound

        return run_lower_bound(config, run_dir)
    trials = Trials(config)
    needed, below = trials.threshold, [k for k in config.regressors if k < trials.threshold]
    if below:
        run_dir.say(
            f"regressors {', '.join(map(str, below))}: below the threshold q(q+1)/2 = {needed}; "
            "losses of other regressors will not match there"
        )
    names = [f"trial-{trial}" for trial in range(config.trials)]
    results = cells.each(run_dir, names, trials.run, "distillation")
    summary = {
        **trials.about(),
        "cells": _cells(config, needed, results),
        "subsets": [_subsets(size, results) for size in config.sizes],
        "weights_sha256": cells.seal(run_dir, names, results),
    }
    if run_dir.is_main:
        from reprise.distill.supervised.report import draw, write_table

        write_table(summary, run_dir.path / "table.md")
        draw(summary, run_dir.path / "figure")
    return summary


class Trials:
    """The data of a config, and one trial at a time."""

    def __init__(self, config: DistillRegression) -> None:
        self.config = config
        self.streams = Streams(config.seed, config.internal_seed)
        self.table = regression_data.load(config.data, self.streams.data("points"))
        self.dimension = self.table.features.shape[1]
        self.width = self.dimension + 1 + int(config.intercept)
        self.threshold = threshold(self.width, config.intercept)
        most = len(self.table.target) - self._test_points()
        if max(config.sizes) > most:
            raise BadInput(
                f"sizes: {max(config.sizes)} is more than the {most} training points of "
                f"{config.data.name}"
            )
        bound = size_bound(self.split(0)[0])
        if config.study == "threshold" and min(config.sizes) < bound:
            raise BadInput(
                f"sizes: {min(config.sizes)} is below the size bound: the training data's second "
                f"moments have rank {bound}, and fewer than {bound} points cannot have them; "
                "study=lower_bound shows what happens then"
            )
        self.size_bound = bound

    def about(self) -> dict[str, Any]:
        """What the summary says of the data."""
        return {
            "data": self.config.data.name,
            "study": self.config.study,
            "dimension": self.dimension,
            "width": self.width,
            "threshold": self.threshold,
            "size_bound": self.size_bound,
            "training_points": len(self.table.target) - self._test_points(),
            "trials": self.config.trials,
        }

    def _test_points(self) -> int:
        return max(1, round(self.config.data.test_share * len(self.table.target)))

    def split(self, trial: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Training and test points z [., q], and the mean and scale [q] that they are made with."""
        values = np.column_stack([self.table.features, self.table.target])
        order = self.streams.data("split", trial).permutation(len(values))
        test, training = np.split(values[order], [self._test_points()])
        mean, scale = np.zeros(values.shape[1]), np.ones(values.shape[1])
        if self.config.standardize:
            mean, deviation = training.mean(0), training.std(0)
            scale = np.where(deviation > 0, deviation, 1.0)
        made = [(part - mean) / scale for part in (training, test)]
        if self.config.intercept:
            made = [np.insert(part, self.dimension, 1.0, axis=1) for part in made]
            mean, scale = np.insert(mean, -1, 0.0), np.insert(scale, -1, 1.0)
        return made[0], made[1], mean, scale

    def domain(self, training: np.ndarray) -> domains.Bounded:
        """Where distilled points may lie, the 1 of an intercept aside."""
        free = np.delete(training, -2, axis=1) if self.config.intercept else training
        return domains.around(free, self.config.domain.shape, self.config.domain.margin)

    def regressors(self, trial: int) -> tuple[np.ndarray, np.ndarray]:
        """The regressors to match, as many as any cell uses, and held-out ones."""
        most = max(self.config.regressors)
        return (
            draw_regressors(most, self.width, self.streams.internal("regressors", trial)),
            draw_regressors(
                self.config.held_out, self.width, self.streams.internal("held-out", trial)
            ),
        )

    def run(self, trial: int) -> cells.Arrays:
        """One trial: numbers for every (route, size, k), and the distilled points themselves."""
        config = self.config
        training, test, mean, scale = self.split(trial)
        matched, held_out = self.regressors(trial)
        moment, unit = second_moment(training), float(scale[-1]) ** 2
        domain = self.domain(training)

        def measure(
            key: str, points: np.ndarray, weights: np.ndarray | None = None
        ) -> dict[str, np.ndarray]:
            syn = second_moment(points, weights)
            error = mean_squared_error(least_squares(points, weights), test) * unit
            return {
                f"{key}/relative": np.float64(relative_error(syn, moment, held_out)),
                f"{key}/worst": np.float64(worst_relative_error(syn, moment)),
                f"{key}/mse": np.float64(error),
            }

        arrays: cells.Arrays = measure("full", training)
        for size in config.sizes:
            start = random_subset(training, size, self.streams.data("subset", trial, size))
            arrays |= measure(f"random/{size}", start.points)
            subset = leverage_subset(training, size, self.streams.data("leverage", trial, size))
            arrays |= measure(f"leverage/{size}", subset.points, subset.weights)
            for route, count in grid(config, self.threshold):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", BelowThreshold)  # said once, in `run`
                    found = distill(
                        route,
                        training,
                        start.points,
                        matched[:count],
                        draw=self.streams.internal("closed-form", trial, size),
                        domain=domain,
                        intercept=config.intercept,
                        max_iterations=config.max_iterations,
                    )
                key = f"{route}/{size}/{count}"
                free = np.delete(found.points, -2, axis=1) if config.intercept else found.points
                arrays |= measure(key, found.points)
                arrays |= {
                    f"{key}/objective": np.float64(found.objective),
                    f"{key}/iterations": np.float64(found.iterations),
                    f"{key}/inside": np.float64(domain.contains(free)),
                    f"weights/{key}": found.points * scale + mean,  # in the data's own units
                }
        return arrays


def grid(config: DistillRegression, needed: int) -> Iterator[tuple[Route, int]]:
    """Routes and k; those that match moments do so with as many equations as the threshold."""
    for route in config.routes:
        if route in SAMPLED:
            yield from ((route, count) for count in config.regressors)
        else:
            yield route, needed


def relative_error(syn: np.ndarray, moment: np.ndarray, regressors: np.ndarray) -> float:
    """Mean over regressors of |L_syn(r) - L_train(r)| / L_train(r)."""
    true = losses(moment, regressors)
    return float(np.mean(np.abs(losses(syn - moment, regressors)) / true))


def worst_relative_error(syn: np.ndarray, moment: np.ndarray) -> float:
    """Largest |L_syn(r) - L_train(r)| / L_train(r) over all r: an eigenvalue of M^-1 M_syn, less 1.

    Directions in which M itself vanishes (below rounding) are left out.
    """
    values, vectors = np.linalg.eigh(moment)
    keep = values > values[-1] * len(values) * np.finfo(float).eps
    whiten = vectors[:, keep] / np.sqrt(values[keep])
    return float(np.abs(np.linalg.eigvalsh(whiten.T @ (syn - moment) @ whiten)).max())


# -- summary ---------------------------------------------------------------------------------------


def _values(results: Sequence[cells.Arrays], key: str) -> np.ndarray:
    return np.array([float(arrays[key]) for arrays in results])


def _interval(values: np.ndarray) -> list[float]:
    mean, half = student(values)
    return [mean - half, mean + half]


def _subsets(size: int, results: Sequence[cells.Arrays]) -> dict[str, Any]:
    reported: dict[str, Any] = {"size": size}
    for name in ("random", "leverage"):
        errors = _values(results, f"{name}/{size}/mse")
        reported |= {
            f"{name}_relative_error": float(_values(results, f"{name}/{size}/relative").mean()),
            f"{name}_worst_relative_error": float(_values(results, f"{name}/{size}/worst").mean()),
            f"{name}_test_mse": float(errors.mean()),
            f"{name}_test_mse_median": float(np.median(errors)),
            f"{name}_test_mse_ci95": _interval(errors),
        }
    return reported


def _cells(
    config: DistillRegression, needed: int, results: Sequence[cells.Arrays]
) -> list[dict[str, Any]]:
    """One entry for each route, k and size: means over trials and 95% intervals."""
    entries = []
    for route, count in grid(config, needed):
        for size in config.sizes:
            key = f"{route}/{size}/{count}"
            relative, errors = _values(results, f"{key}/relative"), _values(results, f"{key}/mse")
            start, far, subset = (
                _values(results, f"random/{size}/{what}") for what in ("relative", "worst", "mse")
            )
            worst = _values(results, f"{key}/worst")
            entries.append(
                {
                    "route": route,
                    "k": count,
                    "size": size,
                    "held_out_relative_error": float(relative.mean()),
                    "held_out_relative_error_ci95": _interval(relative),
                    "held_out_relative_error_max": float(relative.max()),
                    "held_out_relative_error_random": float(start.mean()),
                    "worst_relative_error": float(worst.mean()),
                    "worst_relative_error_random": float(far.mean()),
                    "test_mse": float(errors.mean()),
                    "test_mse_ci95": _interval(errors),
                    "test_mse_median": float(np.median(errors)),
                    "test_mse_full": float(_values(results, "full/mse").mean()),
                    "test_mse_full_median": float(np.median(_values(results, "full/mse"))),
                    "test_mse_random": float(subset.mean()),
                    "test_mse_random_median": float(np.median(subset)),
                    "test_mse_leverage": float(_values(results, f"leverage/{size}/mse").mean()),
                    "share_of_trials_test_mse_above_random": float((errors > subset).mean()),
                    "share_of_trials_worst_error_above_random": float((worst > far).mean()),
                    "objective": float(_values(results, f"{key}/objective").mean()),
                    "iterations": float(_values(results, f"{key}/iterations").mean()),
                    "inside_domain": bool(_values(results, f"{key}/inside").all()),
                }
            )
    return entries
