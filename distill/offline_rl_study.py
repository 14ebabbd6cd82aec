"""Distilled offline RL sets against subsets of their training set: returns and Bellman errors.

A training set is one kind with one data seed. A cell is one training set, method and size (and
number of predictors), for all seeds at once. Seed i has the same training set, and its own subset,
predictors, learner and episodes; the subset that distillation starts from, the learner's initial
weights and the episodes are the same for all methods of a size, so that differences are paired.
Seeds on one set are no evidence of what happens on another: over sets, intervals are of the sets'
means (`distill.offline_rl_means`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reprise.distill import baselines
from reprise.distill.backups import agreement, choose, distill_backups, feature_maps
from reprise.distill.banks import Bank, Draw, near_iterates, random_networks
from reprise.distill.config import DistillOfflineRL, Downstream
from reprise.distill.evaluate import fitted_q, greedy_returns
from reprise.distill.offline_rl import (
    Dynamics,
    check,
    distill,
    gather,
    held_out_error,
    starting_rows,
    terminal_count,
)
from reprise.distill.offline_rl_sets import Source, TrainingSet, training_sets
from reprise.distill.predictors import Batch, Networks
from reprise.rollout.environments.base import make
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run import cells
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.types import Transitions

ITERATES = (0.02, 0.05, 0.1, 0.17, 0.27, 0.4, 0.57, 0.75, 1.0)  # of all backups
PARTS = ("states", "rewards", "following")


def run(config: DistillOfflineRL, run_dir: RunDir) -> dict[str, Any]:
    """Every cell, the paired tests, the distilled rounds with their card, and the figure."""
    work = Work(config)
    plan = work.plan()
    results = cells.each(run_dir, [name for name, _ in plan], work.cell, "offline RL cells")
    from reprise.distill.offline_rl_report import finish

    named = {name: arrays for (name, _), arrays in zip(plan, results, strict=True)}
    summary = finish(config, run_dir, work, plan, named)
    summary["weights_sha256"] = cells.seal(run_dir, [name for name, _ in plan], results)
    return summary


class Work:
    """One cell at a time; training sets and predictors are kept between cells that share them."""

    def __init__(self, config: DistillOfflineRL) -> None:
        self.config = config
        self.streams = Streams(config.seed)
        copies = make(config.environment, 1)
        self.actions = copies.actions
        copies.close()
        self.sets = training_sets(config)
        self.sources: dict[TrainingSet, Source] = {}
        self.kept: dict[tuple[str, TrainingSet], Any] = {}
        largest = max(config.sizes)
        for one in self.sets:
            source = self.source(one)
            for size in config.sizes:
                check(source.data, size, self.ends(one, size), self.actions)
            if len(source.data) <= largest:
                raise BadInput(
                    f"sizes={config.sizes}: {one.name} has {len(source.data)} transitions; take "
                    "smaller sizes, or a larger data_size"
                )

    def source(self, one: TrainingSet) -> Source:
        """The training set, made or read once."""
        if one not in self.sources:
            self.sources[one] = Source(self.config, one)
        return self.sources[one]

    def plan(self) -> list[tuple[str, dict[str, Any]]]:
        """Names and descriptions of all cells, in the order they are computed."""
        config, plan = self.config, []
        for one in self.sets:
            plan.append((f"{one.name}-full", {"set": one, "method": "full", "size": None}))
        for size in config.sizes:
            for one in self.sets:
                for method in config.methods:
                    about: dict[str, Any] = {"set": one, "method": method, "size": size}
                    plan.append((f"{one.name}-{size}-{method}", about))
                for count in config.predictors:
                    about = {"set": one, "method": "distilled", "size": size, "predictors": count}
                    plan.append((f"{one.name}-{size}-distilled-{count}", about))
        return plan

    def ends(self, one: TrainingSet, size: int, natural: bool = False) -> int:
        """Terminated points of a distilled set, or with `natural` of a stratified one."""
        share = None if natural else self.config.distillation.terminal_share
        return terminal_count(self.source(one).data, size, share)

    def cell(self, index: int) -> cells.Arrays:
        """Sets, returns and errors of one cell."""
        about = self.plan()[index][1]
        one, method, size = about["set"], about["method"], about["size"]
        source, config = self.source(one), self.config
        if method == "full":
            return {"returns": self._returns(one, None, source.full, config.downstream)}
        count = about.get("predictors")
        sets = self._sets(one, method, size, count)
        arrays = {f"weights_{part}": getattr(sets, part).numpy() for part in PARTS}
        arrays["actions"], arrays["terminated"] = sets.actions.numpy(), sets.terminated.numpy()
        if method == "cloning":
            arrays["returns"] = self._cloned(one, size, sets)
            return arrays
        arrays["returns"] = self._returns(one, size, sets, config.downstream)
        last = method == "distilled" and count == config.predictors[-1]
        shown = size == config.sizes[0] and one.seed == config.data_seeds[0]
        if shown and (last or method in ("stratified", "start")):
            for place, shape in enumerate(config.transfer):
                learner = config.downstream.model_copy(update=shape.model_dump())
                arrays[f"transfer_{place}"] = self._returns(one, size, sets, learner)
        arrays["held_out"] = self._held_out(one, sets)
        return arrays

    # -- sets --------------------------------------------------------------------------------------

    def _sets(self, one: TrainingSet, method: str, size: int, count: Any) -> Batch:
        if method == "cloning":
            start = self._start(one, size)
            draw = self.streams.data("cloning", one.name, size)
            return baselines.distill_cloning(self.source(one).full, start, self.actions, draw)
        if method == "start":
            return self._start(one, size)
        if method == "distilled":
            return self._distilled(one, size, count)
        source = self.source(one)
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
        source, ends = self.source(one), self.ends(one, size)
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
        q = self._iterates(one).part(-settings.iterate_ensemble, None)
        scores = []
        for place, some in enumerate(sets):
            draw = self.streams.data("selection", one.name, size, count, place)
            fitted = fitted_q(some, self.actions, self.config.downstream, draw)
            full = self.source(one).full
            scores.append(agreement(fitted, q, full, settings.value_weight))
        return choose(sets, torch.stack(scores).argmax(0))

    def _distilled_once(self, one: TrainingSet, size: int, count: Any, candidate: int) -> Batch:
        source, settings = self.source(one), self.config.distillation
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
            q = self._iterates(one).part(-settings.iterate_ensemble, None)
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
            self._draw(one, size if fresh else None),
            None if fresh else self._bank(one, count),
            gamma,
            minibatch=settings.fresh_minibatch if fresh else settings.minibatch,
            loss=settings.loss,
            rows=rows,
            row_count=settings.fresh_rows,
            **shared,
        )

    # -- predictors --------------------------------------------------------------------------------

    def _draw(self, one: TrainingSet, size: int | None) -> Draw:
        """Predictors of every seed; fresh ones (with a size) have another stream than a bank's."""
        settings, seeds = self.config.distillation, self.config.seeds
        generator = self.streams.data("predictors", one.name, "bank" if size is None else size)
        shape = {"units": settings.units, "gains": settings.gains}
        if settings.source == "random":
            full = self.source(one).full
            return random_networks(generator, full, seeds, self.actions, **shape)
        scale = 1 - self.config.downstream.gamma
        return near_iterates(generator, self._iterates(one), scale, settings.spread, **shape)

    def _bank(self, one: TrainingSet, count: int) -> Bank:
        """The first K of the seeds' predictors, the same for every size; losses computed once."""
        if ("bank", one) not in self.kept:
            self.kept = {key: value for key, value in self.kept.items() if key[0] != "bank"}
            largest = max(count for count in self.config.predictors if count != "fresh")
            networks, scales = self._draw(one, None)(largest)
            gamma = self.config.downstream.gamma
            self.kept["bank", one] = Bank.of(networks, scales, self.source(one).full, gamma)
        return self.kept["bank", one].part(0, count)

    def _iterates(self, one: TrainingSet) -> Networks:
        """Fitted Q-iterates of the training set [seeds, iterates x networks], each seed its own."""
        if ("iterates", one) not in self.kept:
            settings, downstream = self.config.distillation, self.config.downstream
            learner = downstream.model_copy(
                update={"ensemble": settings.iterate_ensemble, "depth": 1, "activation": "tanh"}
            )
            wanted = {max(1, round(part * learner.backups)) for part in ITERATES}
            seen: list[Networks] = []

            def watch(backup: int, average: Networks) -> None:
                if backup in wanted:
                    seen.append(average.copy())

            draw = self.streams.data("iterates", one.name)
            full = self.source(one).full
            fitted_q(full, self.actions, learner, draw, groups=self.config.seeds, watch=watch)
            self.kept["iterates", one] = Networks(
                torch.cat([some.first for some in seen], 1),
                torch.cat([some.action for some in seen], 1),
                [],
                torch.cat([some.head for some in seen], 1),
                torch.cat([some.offset for some in seen], 1),
            )
        return self.kept["iterates", one]

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
        config, scaling = self.config, self.source(one).scaling
        return greedy_returns(networks, scaling, config.environment, config.episodes, seed)

    def _held_out(self, one: TrainingSet, sets: Batch) -> np.ndarray:
        """Relative Bellman error on random networks never used [seeds]."""
        if ("held out", one) not in self.kept:
            draw = self.streams.data("held out", one.name)
            full = self.source(one).full
            settings = self.config.distillation
            networks, scales = random_networks(
                draw, full, 1, self.actions, units=settings.units, gains=settings.gains
            )(self.config.held_out)
            gamma = self.config.downstream.gamma
            self.kept["held out", one] = Bank.of(networks, scales, full, gamma)
        bank = self.kept["held out", one]
        return held_out_error(sets, bank, self.config.downstream.gamma).numpy()

    def transitions(self, one: TrainingSet, arrays: cells.Arrays, seed: int) -> Transitions:
        """One distilled set in the environment's units.

        Every transition is an episode of its own, cut after one step where it is not terminated.
        """
        source = self.source(one)
        ended = arrays["terminated"]
        ended = ended[seed] if ended.ndim == 2 else ended
        return Transitions(
            source.raw(arrays["weights_states"][seed]),
            arrays["actions"][seed],
            arrays["weights_rewards"][seed].astype(np.float32),
            source.raw(arrays["weights_following"][seed]),
            ended.copy(),
            ~ended,
        )
