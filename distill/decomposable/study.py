"""How many predictors the convex case needs, against d, and with what it fails (Theorem 4.4).

For each feature map, dimension d and arm, weights on N candidate transitions match the losses of k
random predictors (`distill.decomposable`), and are judged by predictors never used: the mean of
|L_syn / L_train - 1|. With q = d + 1 and t = q(q+1)/2,

    decomposable    under the moment constraint only M = E[z z^T] is unknown      exact from k = t
    unconstrained   E[z] is unknown too: q numbers more                           from k = t + q
    terminated      alpha = 0: regression                                         from k = t
    (where rewards are constant, the constraint or the weights' sum fix q numbers: from k = t - q)
    joint           the maximum does not leave the states: no number of equations determines the
                    losses, and more predictors help slowly

Trials draw system, features, predictors and candidates anew, and are the units of intervals. Beside
it: how often the moment constraint can be met at all, by random candidates of several numbers, and
how often for points symmetric about their mean (Wendel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from reprise.distill.config import DistillDecomposable
from reprise.distill.decomposable.convex import (
    achieved,
    chance_of_hull,
    equations,
    feasible,
    fit_weights,
    predictors_needed,
)
from reprise.distill.decomposable.features import Features, Steps, losses_of, recorded, synthetic
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run import cells
from reprise.rollout.run.intervals import mean_of, student
from reprise.rollout.run.run_dir import RunDir


def run(config: DistillDecomposable, run_dir: RunDir) -> dict[str, Any]:
    """Every cell, the feasibility of the constraint, the table and the figure."""
    work = Cells(config)
    plan = work.plan()
    results = cells.each(run_dir, [name for name, _ in plan], work.cell, "convex distillation")
    found = list(zip([about for _, about in plan], results, strict=True))
    summary = {
        "environment": config.environment,
        "trials": config.trials,
        "cells": [
            _cell(config, about, arrays) for about, arrays in found if about["arm"] != "hull"
        ],
        "hull": [
            entry
            for about, arrays in found
            if about["arm"] == "hull"
            for entry in _hull(config, about, arrays)
        ],
        "weights_sha256": cells.seal(run_dir, [name for name, _ in plan], results),
    }
    if run_dir.is_main:
        from reprise.distill.decomposable.report import draw, write_table

        write_table(summary, run_dir.path / "table.md")
        draw(summary, run_dir.path / "figure")
    return summary


def counts(config: DistillDecomposable, dimension: int) -> list[tuple[str, int]]:
    """Numbers of predictors k to match, named by the threshold t and q, from few to many."""
    q = dimension + 1
    t = predictors_needed(q)
    named = [(f"{ratio:g} t", math.ceil(ratio * t)) for ratio in config.multiples]
    named += [("t - q", t - q), ("t - 1", t - 1), ("t", t), ("t + q", t + q)]
    return sorted(named, key=lambda one: one[1])


class Cells:
    """One cell at a time: a feature map, a dimension and an arm, all trials and numbers k."""

    def __init__(self, config: DistillDecomposable) -> None:
        self.config = config
        self.streams = Streams(config.seed)
        self.recorded: dict[bool, Steps] = {}
        if config.environment != "synthetic":
            self.recorded = {ended: recorded(config, ended) for ended in (False, True)}
            width = self.recorded[False].states.shape[1]
            if "linear" in config.features and max(config.dimensions) > width:
                raise BadInput(
                    f"dimensions={config.dimensions} with features linear: a state of "
                    f"{config.environment} has {width} numbers, and linear features of more are "
                    f"dependent; take at most {width}, or other features"
                )
        for dimension in config.dimensions:
            for arm in config.arms:
                self._check_size(dimension, arm)

    def _check_size(self, dimension: int, arm: str) -> None:
        needed = self.points(dimension, self._most_moments(dimension))
        there = len(self.recorded[arm == "terminated"].actions) if self.recorded else None
        there = self.config.data_size if there is None else there
        if needed > there:
            raise BadInput(
                f"room={self.config.room:g} with dimension {dimension}: {needed} candidates of "
                f"{there} transitions ({arm}); take less room, smaller dimensions or more data_size"
            )

    def plan(self) -> list[tuple[str, dict[str, Any]]]:
        """Names and descriptions of all cells."""
        config = self.config
        return [
            (
                f"{features}-{dimension}-{arm}",
                {"features": features, "dimension": dimension, "arm": arm},
            )
            for features in config.features
            for dimension in config.dimensions
            for arm in (*config.arms, "hull")
        ]

    def cell(self, index: int) -> cells.Arrays:
        """Errors [trials, k], gaps and weights; or of the hull, the share of feasible draws."""
        about = self.plan()[index][1]
        if about["arm"] == "hull":
            return self._hull(about["features"], about["dimension"])
        trials = [self._trial(**about, trial=trial) for trial in range(self.config.trials)]
        stacked = {key: np.stack([one[key] for one in trials]) for key in trials[0]}
        stacked["k"] = stacked["k"][0]
        return stacked

    # -- one trial ---------------------------------------------------------------------------------

    def _drawn(
        self, kind: str, dimension: int, terminated: bool, trial: int
    ) -> tuple[Steps, Features]:
        """Transitions and features of a trial, the same for every arm."""
        config, streams = self.config, self.streams
        if self.recorded:
            steps = self.recorded[terminated]
            actions = int(max(one.actions.max() for one in self.recorded.values())) + 1
        else:
            width, actions = max(config.dimensions), config.actions
            draw = streams.data("system", kind, dimension, trial)
            steps = synthetic(config.data_size, width, actions, draw)
        draw = streams.internal("features", kind, dimension, trial)
        made = Features.drawn(kind, steps.states.shape[1], dimension, actions, draw)
        return steps, made

    def points(self, dimension: int, moments: int) -> int:
        """N: `room` times as many candidates as there are equations."""
        q = dimension + 1
        return math.ceil(self.config.room * (predictors_needed(q) + q + moments))

    def _most_moments(self, dimension: int) -> int:
        return 3 * dimension + 2  # phi1(s), phi2(a), r, phi1(s'), and the weights' sum

    def _trial(self, features: str, dimension: int, arm: str, trial: int) -> cells.Arrays:
        config, terminated = self.config, arm == "terminated"
        steps, made = self._drawn(features, dimension, terminated, trial)
        full = made.linear(steps, config.gamma, terminated)
        size = self.points(dimension, self._most_moments(dimension))
        draw = self.streams.data("candidates", features, dimension, trial)
        candidates = draw.permutation(len(steps.actions))[:size]
        named = counts(config, dimension)
        q, most = dimension + 1, named[-1][1]
        draw = self.streams.internal("predictors", features, dimension, trial)
        u = draw.standard_normal((most + config.held_out, q)) / np.sqrt(q)
        if arm == "joint":
            losses = made.joint_losses(steps, u, config.gamma)
        else:
            best = (u[:, :-1] @ made.action.T).max(1)
            alphas = np.zeros(len(u)) if terminated else best
            losses = losses_of(full, u, alphas, config.gamma)
        free = arm in ("joint", "unconstrained")
        constraint = None if free else equations(full.moments)
        held_out, wanted = losses[candidates, most:], losses[:, most:].mean(0)
        weights = np.full((len(named), size), np.nan)
        errors, gaps, off = (np.full(len(named), np.nan) for _ in range(3))
        scale = np.linalg.norm(full.second_moment(), 2)
        for index, (_, count) in enumerate(named):
            found = fit_weights(losses[:, :count], candidates, constraint)
            if found is None:
                continue
            weights[index] = found
            errors[index] = np.mean(np.abs(found @ held_out / wanted - 1))
            reached = achieved(full, candidates, found)
            gaps[index], off[index] = reached.gap / scale, reached.moment_error
        return {
            "weights": weights,
            "errors": errors,
            "gaps": gaps,
            "moment_errors": off,
            "k": np.array([count for _, count in named]),
            "equations": np.int64(0 if constraint is None else constraint.shape[1]),
        }

    def _hull(self, features: str, dimension: int) -> cells.Arrays:
        """How often random candidates can meet the moment constraint, by their number."""
        config = self.config
        sizes, shares = [], []
        steps, made = self._drawn(features, dimension, False, 0)
        points = equations(made.linear(steps, config.gamma, False).moments)
        count, needed = points.shape
        draw = self.streams.data("hull", features, dimension)
        for ratio in config.hull:
            size = min(math.ceil(ratio * needed), count)
            there = [
                feasible(points[draw.permutation(count)[:size]]) for _ in range(config.hull_draws)
            ]
            sizes.append(size)
            shares.append(mean_of(np.array(there, dtype=float)))
        return {
            "points": np.array(sizes),
            "shares": np.array(shares),
            "equations": np.int64(needed),
        }


# -- summary ---------------------------------------------------------------------------------------


def _cell(
    config: DistillDecomposable, about: dict[str, Any], arrays: cells.Arrays
) -> dict[str, Any]:
    q = about["dimension"] + 1
    named = counts(config, about["dimension"])
    convex = about["arm"] != "joint"  # only there is the loss a quadratic form of M
    entries = []
    for index, (label, count) in enumerate(named):
        errors, gaps = arrays["errors"][:, index], arrays["gaps"][:, index]
        known = bool(np.isfinite(errors).all())  # else no weights met the constraint
        mean, half = student(errors) if known else (math.nan, math.nan)
        entries.append(
            {
                "label": label,
                "k": count,
                "held_out_relative_error": mean if known else None,
                "held_out_relative_error_ci95": [mean - half, mean + half] if known else None,
                "held_out_relative_error_max": float(errors.max()) if known else None,
                "relative_gap_max": float(gaps.max()) if known and convex else None,
                "moment_error_max": (
                    float(arrays["moment_errors"][:, index].max()) if known else None
                ),
                "infeasible": int(np.isnan(errors).sum()),
                "units": len(errors),
            }
        )
    return {
        **about,
        "q": q,
        "threshold": predictors_needed(q),
        "equations": int(arrays["equations"].max()),
        "points": int(arrays["weights"].shape[2]),
        "k_needed": _needed(entries, config.tolerance),
        "at": entries,
    }


def _needed(entries: Sequence[dict[str, Any]], tolerance: float) -> int | None:
    """The smallest k from which on every trial is matched; None: not even the largest is."""
    needed = None
    for entry in reversed(entries):
        worst = entry["held_out_relative_error_max"]
        if worst is None or worst > tolerance:
            break
        needed = entry["k"]
    return needed


def _hull(
    config: DistillDecomposable, about: dict[str, Any], arrays: cells.Arrays
) -> list[dict[str, Any]]:
    needed = int(arrays["equations"])
    return [
        {
            "features": about["features"],
            "dimension": about["dimension"],
            "ratio": ratio,
            "equations": needed,
            "points": int(size),
            "share": float(share),
            "draws": config.hull_draws,
            "share_symmetric": chance_of_hull(int(size), needed),
        }
        for ratio, size, share in zip(config.hull, arrays["points"], arrays["shares"], strict=True)
    ]
