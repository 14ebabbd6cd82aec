"""Distilled offline RL sets against subsets of their training set: returns and Bellman errors.

Of a cell, seed i has the same training set, and its own subset, predictors, learner and episodes;
the subset that distillation starts from, the learner's initial weights and the episodes are the
same for all methods of a size, so that differences are paired. Seeds on one set are no evidence of
what happens on another: over sets, intervals are of the sets' means (`distill.offline_rl_means`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reprise.distill import baselines
from reprise.distill.backups import agreement, choose, distill_backups, feature_maps
from reprise.distill.config import DistillOfflineRL, Downstream
from reprise.distill.evaluate import fitted_q, greedy_returns
from reprise.distill.offline_rl import (
    Dynamics,
    check,
    distill,
    gather,
    held_out_error,
    starting_rows,
)
from reprise.distill.offline_rl_sets import Cell, Source, TrainingSet, cells_of, training_sets
from reprise.distill.predictors import Batch, Networks
from reprise.rollout.environments.base import make
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run import cells
from reprise.rollout.run.run_dir import RunDir

PARTS = ("states", "rewards", "following")


def run(config: DistillOfflineRL, run_dir: RunDir) -> dict[str, Any]:
    """Every cell, the paired tests, the distilled rounds with their card, and the figure."""
    study, plan = Study(config), cells_of(config)
    names = [cell.name for cell in plan]
    results = cells.each(
        run_dir, names, lambda index: study.arrays(plan[index]), "offline RL cells"
    )
    from reprise.distill.offline_rl_report import finish

    summary = finish(config, run_dir, study.sources, dict(zip(names, results, strict=True)))
    summary["weights_sha256"] = cells.seal(run_dir, names, results)
    return summary


class Study:
    """Computes one cell at a time; what cells share, their training set's `Source` keeps."""

    def __init__(self, config: DistillOfflineRL) -> None:
        self.config = config
        self.streams = Streams(config.seed)
        copies = make(config.environment, 1)
        self.actions = copies.actions
        copies.close()
        self.sources = {
            one: Source(config, one, self.streams, self.actions) for one in training_sets(config)
        }
        largest = max(config.sizes)
        for one, source in self.sources.items():
            for size in config.sizes:
                check(source.data, size, source.ends(size), self.actions)
            if len(source.data) <= largest:
                raise BadInput(
                    f"sizes={config.sizes}: {one.name} has {len(source.data)} transitions; take "
                    "smaller sizes, or a larger data_size"
                )

    def arrays(self, cell: Cell) -> cells.Arrays:
        """Sets, returns and errors of one cell."""
        one, method, size, count = cell
        source, config = self.sources[one], self.config
        for other in self.sources.values():
            if other is not source:
                other.forget_bank()
        if size is None:
            return {"returns": self._returns(one, None, source.full, config.downstream)}
        sets = self._sets(cell, size)
        arrays = {f"weights_{part}": getattr(sets, part).numpy() for part in PARTS}
        arrays["actions"], arrays["terminated"] = sets.actions.numpy(), sets.terminated.numpy()
        if method == "cloning":
            arrays["returns"] = self._cloned(one, size, sets)
            return arrays
        arrays["returns"] = self._returns(one, size, sets, config.downstream)
        last = method == "distilled" and count == config.predictors[-1]
        shown = size == config.sizes[0] and one.seed == config.data_seeds[0]
        if shown and (last or method in ("stratified", "start")):
            for index, shape in enumerate(config.transfer):
                learner = config.downstream.model_copy(update=shape.model_dump())
                arrays[f"transfer_{index}"] = self._returns(one, size, sets, learner)
        gamma = config.downstream.gamma
        arrays["held_out"] = held_out_error(sets, source.held_out, gamma).numpy()
        return arrays

    # -- sets --------------------------------------------------------------------------------------

    def _sets(self, cell: Cell, size: int) -> Batch:
        one, method, source = cell.of, cell.method, self.sources[cell.of]
        if method == "cloning":
            start = self._start(one, size)
            draw = self.streams.data("cloning", one.name, size)
            return baselines.distill_cloning(source.full, start, self.actions, draw)
        if method == "start":
            return self._start(one, size)
        if method == "distilled":
            return self._distilled(one, size, cell.predictors)
        share = self.config.distillation.terminal_share
        rows = [
            baselines.subset(method, source.data, source.full, size, share, draw)
            for draw in self._draws(method, one, size)
        ]
        return gather(source.full, np.stack(rows))

    def _draws(
        self, method: str, one: TrainingSet, size: int, *index: int
    ) -> list[np.random.Generator]:
        return [
            self.streams.data("subset", method, one.name, size, seed, *index)
            for seed in range(self.config.seeds)
        ]

    def _start(self, one: TrainingSet, size: int, candidate: int = 0) -> Batch:
        """What distillation starts from."""
        source, ends = self.sources[one], self.sources[one].ends(size)
        rows = []
        for draw in self._draws("start", one, size, *([candidate] if candidate else [])):
            if self.config.distillation.start == "medoids":
                rows.append(baselines.medoids(source.data, source.full, size, ends, draw))
            else:
                rows.append(starting_rows(source.data.terminated, size, ends, draw))
        return gather(source.full, np.stack(rows))

    def _distilled(self, one: TrainingSet, size: int, count: Any) -> Batch:
        """Distilled sets, the best of some candidates where the config asks for them."""
        candidates = self.config.distillation.candidates
        if not candidates:
            return self._distilled_once(one, size, count, 0)
        sets = []
        for candidate in range(candidates):
            sets += [
                self._start(one, size, candidate),
                self._distilled_once(one, size, count, candidate),
            ]
        settings = self.config.distillation
        q = self.sources[one].iterates.part(-settings.iterate_ensemble, None)
        scores = []
        for index, some in enumerate(sets):
            draw = self.streams.data("selection", one.name, size, count, index)
            fitted = fitted_q(some, self.actions, self.config.downstream, draw)
            full = self.sources[one].full
            scores.append(agreement(fitted, q, full, settings.value_weight))
        return choose(sets, torch.stack(scores).argmax(0))

    def _distilled_once(self, one: TrainingSet, size: int, count: Any, candidate: int) -> Batch:
        source, settings = self.sources[one], self.config.distillation
        gamma, fresh = self.config.downstream.gamma, count == "fresh"
        more = [candidate] if candidate else []
        dynamics = None
        if settings.next_states == "dynamics":
            dynamics = Dynamics.of(source.full, self.actions)
        rows = self.streams.data("training rows", one.name, size, count, *more)
        start = self._start(one, size, candidate)
        shared: dict[str, Any] = {
            "steps": settings.steps,
            "learning_rate": settings.learning_rate,
            "dynamics": dynamics,
            "learn_rewards": settings.learn_rewards,
        }
        if settings.match == "backups":
            maps = feature_maps(
                self.streams.data("maps", one.name, size if fresh else "bank", *more),
                None if fresh else count,
                self.config.seeds,
                source.full.states.shape[-1],
                self.actions,
                units=settings.units,
                gains=settings.gains,
            )
            q = self.sources[one].iterates.part(-settings.iterate_ensemble, None)
            return distill_backups(
                source.full,
                start,
                q,
                maps,
                gamma,
                rows,
                ridge=settings.ridge,
                value_weight=settings.value_weight,
                rows=settings.rows,
                **shared,
            )
        return distill(
            source.full,
            start,
            source.draw(size if fresh else None),
            None if fresh else source.bank(count),
            gamma,
            minibatch=settings.fresh_minibatch if fresh else settings.minibatch,
            loss=settings.loss,
            rows=rows,
            row_count=settings.fresh_rows,
            **shared,
        )

    # -- judging -----------------------------------------------------------------------------------

    def _returns(
        self, one: TrainingSet, size: int | None, sets: Batch, learner: Downstream
    ) -> np.ndarray:
        """Return of every seed's learner [seeds]."""
        groups = self.config.seeds if size is None else None
        draw = self.streams.data("learner", one.name, size or 0)
        networks = fitted_q(sets, self.actions, learner, draw, groups=groups)
        return self._play(one, networks)

    def _cloned(self, one: TrainingSet, size: int, sets: Batch) -> np.ndarray:
        draw = self.streams.data("learner", one.name, size)
        ensemble = self.config.downstream.ensemble
        return self._play(one, baselines.clone(sets, self.actions, draw, ensemble))

    def _play(self, one: TrainingSet, networks: Networks) -> np.ndarray:
        seed = self.streams.data_seed("episodes", one.name)
        config, scaling = self.config, self.sources[one].scaling
        return greedy_returns(networks, scaling, config.environment, config.episodes, seed)
