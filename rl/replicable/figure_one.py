"""Figure 1 of 2509.08660: return and identical weights against data, for each lambda.

For every recorded learner and internal seed there are `runs` replicas of fitted Q-iteration with
data of their own, and four arms, with and without regularization and rounding. Nothing is selected:
an estimate is the mean over all recordings and internal seeds, and its interval covers both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from reprise.rl.config import FQI
from reprise.rl.replicable.agreement import (
    identities,
    identity_values,
    most_common_share,
    pairwise_identity,
)
from reprise.rl.replicable.fqi import (
    Encoded,
    Features,
    draw_features,
    fit,
    grid_nearest_zero,
    mean_returns,
)
from reprise.rollout import cartpole
from reprise.rollout.errors import BadInput
from reprise.rollout.offline import load_transitions
from reprise.rollout.randomness import Streams
from reprise.rollout.run import cells
from reprise.rollout.run.intervals import crossed, share_ends
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.types import Transitions


def run(config: FQI, run_dir: RunDir) -> dict[str, Any]:
    """Every recording and internal seed, then the summary and the figure."""
    places = [(recording, seed) for recording in config.recordings for seed in config.internal()]
    names = [f"recording-{recording}-seed-{seed}" for recording, seed in places]
    work = _Work(config, run_dir)
    results = cells.each(
        run_dir, names, lambda index: work.cell(*places[index]), "fitted Q-iteration"
    )
    summary = {
        "protocol": config.protocol,
        "recordings": config.recordings,
        "internal_seeds": config.internal(),
        "no_data": _no_data(config, results),
        "cells": [
            _entry(config, results, position, rounded, column)
            for position in range(len(config.fractions))
            for rounded in _arms(config)
            for column in range(len(_lambdas(config)))
        ],
        "weights_sha256": cells.seal(run_dir, names, results),
    }
    if run_dir.is_main:
        from reprise.rl.replicable.figures import draw_figure_one

        draw_figure_one(summary, run_dir.path / "figure_1")
    return summary


def _lambdas(config: FQI) -> list[float]:
    """Without regularization first, where that arm is asked for."""
    return [0.0, *config.lambdas] if config.baseline else config.lambdas


def _arms(config: FQI) -> list[bool]:
    """Rounded or not; the replicable algorithm last."""
    return [False, True] if config.baseline else [True]


def _sizes(config: FQI) -> list[int]:
    """Transitions of a run, for each fraction."""
    return [max(1, round(fraction * config.data_size)) for fraction in config.fractions]


class _Work:
    """One recording and internal seed at a time: all fractions, lambdas and arms."""

    def __init__(self, config: FQI, run_dir: RunDir) -> None:
        self.config, self.run_dir = config, run_dir
        self.lambdas = np.array(_lambdas(config))
        self.streams = Streams(config.seed)
        self.sizes = _sizes(config)
        self.plain = config.method.model_copy(update={"alpha": None, "median_of": 1})
        self.at: int | None = None  # the recording whose data these are
        self.sets: list[Transitions] = []

    def cell(self, recording: int, seed: int) -> cells.Arrays:
        """Weights [runs, fractions, lambdas, D] of each arm, and what they return when played."""
        config = self.config
        self._load(recording)
        streams = Streams(config.seed, seed)
        features = draw_features(config.features, streams)
        if config.protocol == "fresh":
            fitted = self._on_fresh(features, streams)
        else:
            fitted = self._on_one_set(features, streams, recording, seed)
        zero = grid_nearest_zero(config.features.width, config.method, streams)
        fitted = {**fitted, "_no_data": zero[None, None, None]}
        play = self.streams.data_seed("evaluation", recording, seed)
        arrays: cells.Arrays = {}
        for key, weights in fitted.items():
            arrays[f"weights{key}"] = weights
            flat = weights.reshape(-1, weights.shape[-1])
            returns = mean_returns(flat, features, config.episodes, play)
            arrays[f"returns{key}"] = returns.reshape(weights.shape[:-1])
        return arrays

    def _load(self, recording: int) -> None:
        """Collect, once, the data from which all internal seeds learn."""
        config = self.config
        if self.at == recording:
            return
        if config.protocol != "fresh":
            self.sets = [_first(load_transitions(config.data, config.data_size, recording), config)]
        else:
            snapshots = cartpole.behaviour(seed=recording)
            self.sets = []
            with self.run_dir.progress("collecting", config.runs, "data sets") as progress:
                for run in range(config.runs):
                    data = cartpole.fresh(snapshots, config.data_size, self.streams, recording, run)
                    order = self.streams.data("order", recording, run).permutation(len(data))
                    self.sets.append(data.take(order))
                    progress.advance()
        self.at = recording

    def _on_fresh(self, features: Features, streams: Streams) -> dict[str, np.ndarray]:
        """Every run's data collected for it alone; a smaller size is their head."""
        runs = []
        for data in self.sets:
            encoded = Encoded.of(data, features, self.config.method)
            parts = [
                self._fit(encoded.head(size), np.ones((1, size), dtype=np.uint16), streams)
                for size in self.sizes
            ]
            runs.append({key: np.stack([part[key][0] for part in parts]) for key in parts[0]})
        return {key: np.stack([one[key] for one in runs]) for key in runs[0]}

    def _on_one_set(
        self, features: Features, streams: Streams, *index: int
    ) -> dict[str, np.ndarray]:
        """Every run's data as counts over the one set."""
        (data,), runs = self.sets, self.config.runs
        encoded = Encoded.of(data, features, self.config.method)
        parts = []
        for size in self.sizes:
            counts = np.zeros((runs, len(data)), dtype=np.uint16)
            for run in range(runs):
                draw = self.streams.data(self.config.protocol, *index, size, run)
                if self.config.protocol == "subsample":
                    counts[run, draw.permutation(len(data))[:size]] = 1
                else:
                    rows = draw.integers(0, len(data), size)
                    counts[run] = np.bincount(rows, minlength=len(data))
            parts.append(self._fit(encoded, counts, streams))
        return {key: np.stack([part[key] for part in parts], axis=1) for key in parts[0]}

    def _fit(self, data: Encoded, counts: np.ndarray, streams: Streams) -> dict[str, np.ndarray]:
        """Weights [C, L, D] of each arm."""
        arms = {True: self.config.method, False: self.plain}
        return {
            _key(rounded): fit(data, counts, self.lambdas, arms[rounded], streams)
            for rounded in _arms(self.config)
        }


def _key(rounded: bool) -> str:
    return "" if rounded else "_unrounded"


def _first(data: Transitions, config: FQI) -> Transitions:
    if len(data) < config.data_size:
        raise BadInput(
            f"data_size={config.data_size}: {config.data} has {len(data)} transitions; set "
            f"data_size to at most that"
        )
    return data if len(data) == config.data_size else data.take(np.arange(config.data_size))


# -- the summary -----------------------------------------------------------------------------------


def _table(
    config: FQI, results: list[cells.Arrays], of: Callable[[cells.Arrays], np.ndarray]
) -> np.ndarray:
    """`of` every cell's arrays, a value for each run: [recordings, internal seeds, runs]."""
    values = np.array([of(arrays) for arrays in results])
    return values.reshape(len(config.recordings), config.internal_seeds, -1)


def _estimate(name: str, table: np.ndarray, share: bool = False) -> dict[str, Any]:
    """Mean, Student's interval over internal seeds and data, and degrees of freedom.

    Data are the recordings where there are several, else the runs. A share is cut to [0, 1], and
    where every internal seed has the same, 0 or 1, the interval keeps Clopper and Pearson's width.
    """
    columns = table[0] if len(table) == 1 else table.mean(2).T  # [internal seeds, data]
    mean, half, degrees = crossed(columns)
    ends = share_ends(mean, half, table.shape[1]) if share else (mean - half, mean + half)
    stem = name.removesuffix("_mean")
    return {name: mean, f"{stem}_ci95": list(ends), f"{stem}_degrees": degrees}


def _undefined(name: str) -> dict[str, Any]:
    """What a cell has no number for."""
    return {name: None, f"{name}_ci95": [None, None], f"{name}_degrees": None}


def _entry(
    config: FQI, results: list[cells.Arrays], index: int, rounded: bool, column: int
) -> dict[str, Any]:
    """One fraction, lambda and arm."""
    key = _key(rounded)
    labels = [identities(arrays[f"weights{key}"][:, index, column]) for arrays in results]
    returns = _table(config, results, lambda arrays: arrays[f"returns{key}"][:, index, column])
    of_seed = returns.mean(2)  # [recordings, internal seeds]
    entry: dict[str, Any] = {
        "fraction": config.fractions[index],
        "transitions": _sizes(config)[index],
        "lambda": _lambdas(config)[column],
        "arm": "rounded" if rounded else "not rounded",
        "runs": config.runs,
        "agreement": float(np.mean([most_common_share(label) for label in labels])),
        **_estimate("return_mean", returns),
        "return_median": float(np.median(of_seed)),
        "return_quartiles": np.percentile(of_seed, [25, 75]).tolist(),
        **_estimate("enough_share", np.float64(of_seed >= config.enough)[..., None], share=True),
        "return_by_seed": of_seed.mean(0).tolist(),
        "return_by_recording": of_seed.mean(1).tolist(),
    }
    without = returns - _table(config, results, lambda arrays: arrays["returns_no_data"][0, 0])
    entry |= {**_estimate("above_no_data", without), **_undefined("above_unrounded")}
    if rounded and config.baseline:
        other = _table(
            config, results, lambda arrays: arrays["returns_unrounded"][:, index, column]
        )
        entry |= _estimate("above_unrounded", returns - other)
    if config.runs > 1:
        shape = (len(config.recordings), config.internal_seeds, -1)
        pairs = np.array([identity_values(label) for label in labels]).reshape(shape)
        exact = np.array([pairwise_identity(label) for label in labels]).reshape(shape)
        entry |= _estimate("pairwise_identity", pairs, share=True)
        entry["pairwise_identity_by_seed"] = exact.mean((0, 2)).tolist()
        entry["pairwise_identity_by_recording"] = exact.mean((1, 2)).tolist()
    return entry


def _no_data(config: FQI, results: list[cells.Arrays]) -> dict[str, Any]:
    """What the grid alone returns: the policy of the points next to 0."""
    returns = _table(config, results, lambda arrays: arrays["returns_no_data"][0, 0])
    return {
        "transitions": 0,
        **_undefined("pairwise_identity"),
        **_undefined("above_unrounded"),
        **_undefined("above_no_data"),
        **_estimate("return_mean", returns),
        "return_median": float(np.median(returns)),
        **_estimate("enough_share", np.float64(returns >= config.enough), share=True),
        "return_by_seed": returns.mean((0, 2)).tolist(),
    }
