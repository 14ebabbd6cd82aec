"""Figure 1 of 2509.08660: return and identical weights against data, for each lambda.

Every cell of (fraction, lambda) is `runs` replicas of fitted Q-iteration with one internal seed and
data of their own, repeated for `internal_seeds` internal seeds: one seed may flatter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rl.agreement import identities, most_common_share, pairwise_identity
from rl.config import FQI, FQIMethod
from rl.fqi import Encoded, Fourier, fit, mean_returns
from rollout import cartpole, cells
from rollout.intervals import student
from rollout.offline import load_transitions
from rollout.randomness import Streams
from rollout.run_dir import RunDir
from rollout.types import Transitions


def run(config: FQI, run_dir: RunDir) -> dict[str, Any]:
    """Every cell of the grid, the baseline, and the figure."""
    names = [
        f"seed-{seed}-fraction-{fraction:g}"
        for seed in config.internal()
        for fraction in config.fractions
    ]
    work = _Work(config, run_dir)
    results = cells.each(run_dir, names, work.cell, "fitted Q-iteration")
    summary = {
        "protocol": config.protocol,
        "internal_seeds": config.internal(),
        "cells": _summary(config, results, ""),
        "baseline": _summary(config, results, "_baseline") if config.baseline else [],
        "weights_sha256": cells.seal(run_dir, names, results),
    }
    if run_dir.is_main:
        from rl.figures import draw_figure_one

        draw_figure_one(summary, run_dir.path / "figure_1")
    return summary


class _Work:
    """One cell at a time, for all lambdas together."""

    def __init__(self, config: FQI, run_dir: RunDir) -> None:
        self.config, self.run_dir = config, run_dir
        self.lambdas = np.array(config.lambdas)
        self.streams = Streams(config.seed)
        self.unrounded = FQIMethod(
            backups=config.method.backups, gamma=config.method.gamma, alpha=None
        )
        self.set: Transitions | None = None
        self.fresh: list[Transitions] = []
        self.encoded: tuple[int, Encoded] | None = None

    def cell(self, index: int) -> cells.Arrays:
        config = self.config
        seed = config.internal()[index // len(config.fractions)]
        fraction = config.fractions[index % len(config.fractions)]
        size = max(1, round(fraction * config.data_size))
        streams = Streams(config.seed, seed)
        fourier = Fourier.draw(config.features, config.bandwidth, streams)
        if config.protocol == "fresh":
            fitted = self._on_fresh(size, fourier, streams)
        else:
            fitted = self._on_one_set(size, fourier, streams, (seed, f"{fraction:g}"))
        play = self.streams.data_seed("evaluation")
        arrays: cells.Arrays = {}
        for key, weights in fitted.items():
            arrays[f"weights{key}"] = weights
            arrays[f"returns{key}"] = np.stack(
                [
                    mean_returns(weights[:, place], fourier, config.episodes, play)
                    for place in range(weights.shape[1])
                ],
                axis=1,
            )
        return arrays

    def _on_one_set(
        self, size: int, fourier: Fourier, streams: Streams, index: tuple[int, str]
    ) -> dict[str, np.ndarray]:
        """Every run's data as counts over the one set."""
        if self.set is None:
            self.set = _first(load_transitions(self.config.data, *self._recorded()), self.config)
        if self.encoded is None or self.encoded[0] != streams.internal_seed:
            self.encoded = streams.internal_seed, Encoded.of(self.set, fourier)
        counts = np.zeros((self.config.runs, len(self.set)), dtype=np.uint16)
        for run in range(self.config.runs):
            draw = self.streams.data(self.config.protocol, *index, run)
            if self.config.protocol == "subsample":
                counts[run, draw.permutation(len(self.set))[:size]] = 1
            else:
                counts[run] = np.bincount(
                    draw.integers(0, len(self.set), size), minlength=len(self.set)
                )
        return self._fit(self.encoded[1], counts, streams)

    def _on_fresh(self, size: int, fourier: Fourier, streams: Streams) -> dict[str, np.ndarray]:
        """Every run's data collected for it alone, once; all internal seeds learn from them."""
        if not self.fresh:
            snapshots = cartpole.behaviour(*self._recorded())
            with self.run_dir.progress("collecting", self.config.runs, "data sets") as progress:
                for run in range(self.config.runs):
                    data = cartpole.fresh(snapshots, self.config.data_size, self.streams, run)
                    order = self.streams.data("order", run).permutation(len(data))
                    self.fresh.append(data.take(order))
                    progress.advance()
        counts = np.ones((1, size), dtype=np.uint16)
        fitted = [
            self._fit(Encoded.of(_head(data, size), fourier), counts, streams)
            for data in self.fresh
        ]
        return {key: np.concatenate([one[key] for one in fitted]) for key in fitted[0]}

    def _fit(self, data: Encoded, counts: np.ndarray, streams: Streams) -> dict[str, np.ndarray]:
        fitted = {"": fit(data, counts, self.lambdas, self.config.method, streams)}
        if self.config.baseline:
            fitted["_baseline"] = fit(data, counts, np.zeros(1), self.unrounded, streams)
        return fitted

    def _recorded(self) -> tuple[int, int]:
        return self.config.data_size, self.config.data_seed


def _head(data: Transitions, size: int) -> Transitions:
    return data if size == len(data) else data.take(np.arange(size))


def _first(data: Transitions, config: FQI) -> Transitions:
    if len(data) < config.data_size:
        raise ValueError(
            f"data_size={config.data_size}: {config.data} has {len(data)} transitions; set "
            f"data_size to at most that"
        )
    return _head(data, config.data_size)


def _summary(config: FQI, results: list[cells.Arrays], key: str) -> list[dict[str, Any]]:
    """One entry for each fraction and lambda: means over internal seeds, and their values."""
    entries = []
    lambdas = config.lambdas if not key else [0.0]
    for place, fraction in enumerate(config.fractions):
        of_seed = results[place :: len(config.fractions)]
        for column, strength in enumerate(lambdas):
            labels = [identities(arrays[f"weights{key}"][:, column]) for arrays in of_seed]
            returns = [arrays[f"returns{key}"][:, column] for arrays in of_seed]
            by_seed = [float(value.mean()) for value in returns]
            mean, half = student(by_seed if len(by_seed) > 1 else returns[0])
            shares = [most_common_share(label) for label in labels]
            pairs = [pairwise_identity(label) for label in labels] if config.runs > 1 else []
            entries.append(
                {
                    "fraction": fraction,
                    "lambda": strength,
                    "runs": config.runs,
                    "agreement": float(np.mean(shares)),
                    "return_mean": mean,
                    "return_ci95": [mean - half, mean + half],
                    "pairwise_identity": float(np.mean(pairs)) if pairs else None,
                    "agreement_by_seed": shares,
                    "pairwise_identity_by_seed": pairs,
                    "return_by_seed": by_seed,
                }
            )
    return entries
