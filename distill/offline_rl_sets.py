"""The training sets of an offline RL study, and its cells.

A training set is one kind with one data seed. A cell is one training set, method and size (and
number of predictors), for all seeds at once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from reprise.distill.banks import Bank, Draw, near_iterates, random_networks
from reprise.distill.config import DistillOfflineRL
from reprise.distill.data import training_set
from reprise.distill.evaluate import fitted_q
from reprise.distill.offline_rl import terminal_count
from reprise.distill.predictors import Batch, Networks, Scaling
from reprise.rollout.randomness import Streams
from reprise.rollout.run import cells
from reprise.rollout.types import Transitions

ITERATES = (0.02, 0.05, 0.1, 0.17, 0.27, 0.4, 0.57, 0.75, 1.0)  # of all backups


class TrainingSet(NamedTuple):
    """Which training set."""

    kind: str
    seed: int

    @property
    def name(self) -> str:
        """Its kind, and its data seed where that is not 0."""
        return f"{self.kind}-{self.seed}" if self.seed else self.kind

    @property
    def about(self) -> dict[str, Any]:
        """How the summary names it."""
        return {"data": self.kind, "data_seed": self.seed}


def training_sets(config: DistillOfflineRL) -> list[TrainingSet]:
    """Every kind with every data seed."""
    return [TrainingSet(kind, seed) for kind in config.data for seed in config.data_seeds]


class Cell(NamedTuple):
    """One cell; `full` has no size, and only `distilled` a number of predictors, or "fresh"."""

    of: TrainingSet
    method: str
    size: int | None = None
    predictors: Any = None

    @property
    def name(self) -> str:
        """Of its folder and its arrays."""
        parts = (self.of.name, self.size, self.method, self.predictors)
        return "-".join(str(part) for part in parts if part is not None)

    @property
    def about(self) -> dict[str, Any]:
        """How the summary names it."""
        what = {"method": self.method, "size": self.size, "predictors": self.predictors}
        return {**self.of.about, **what}


def cells_of(config: DistillOfflineRL) -> list[Cell]:
    """All cells, in the order in which they are computed."""
    sets = training_sets(config)
    found = [Cell(one, "full") for one in sets]
    for size in config.sizes:
        for one in sets:
            found += [Cell(one, method, size) for method in config.methods]
            found += [Cell(one, "distilled", size, count) for count in config.predictors]
    return found


class Source:
    """One training set with what every cell on it needs: data, iterates, predictors.

    Args:
        config: the study's.
        of: which training set.
        streams: the study's.
        actions: A.
    """

    def __init__(
        self, config: DistillOfflineRL, of: TrainingSet, streams: Streams, actions: int
    ) -> None:
        self.config, self.of, self.streams, self.actions = config, of, streams, actions
        self.data = training_set(config.environment, of.kind, config.data_size, of.seed)
        self.scaling = Scaling.of(self.data)
        self.full: Batch = self.scaling.batch(self.data)
        self._bank: Bank | None = None

    def raw(self, states: np.ndarray) -> np.ndarray:
        """Standardized states in the environment's units."""
        return (states * self.scaling.scale + self.scaling.centre).astype(np.float32)

    def transitions(self, arrays: cells.Arrays, seed: int) -> Transitions:
        """A seed's set of a cell on it, in the environment's units.

        Every transition is an episode of its own, cut after one step where it is not terminated.
        """
        ended = arrays["terminated"]
        ended = ended[seed] if ended.ndim == 2 else ended
        return Transitions(
            self.raw(arrays["weights_states"][seed]),
            arrays["actions"][seed],
            arrays["weights_rewards"][seed].astype(np.float32),
            self.raw(arrays["weights_following"][seed]),
            ended.copy(),
            ~ended,
        )

    def ends(self, size: int, natural: bool = False) -> int:
        """Terminated points of a distilled set, or with `natural` of a stratified one."""
        share = None if natural else self.config.distillation.terminal_share
        return terminal_count(self.data, size, share)

    def draw(self, size: int | None) -> Draw:
        """Predictors of every seed; fresh ones (with a size) have another stream than a bank's."""
        settings, seeds = self.config.distillation, self.config.seeds
        generator = self.streams.data("predictors", self.of.name, "bank" if size is None else size)
        shape = {"units": settings.units, "gains": settings.gains}
        if settings.source == "random":
            return random_networks(generator, self.full, seeds, self.actions, **shape)
        scale = 1 - self.config.downstream.gamma
        return near_iterates(generator, self.iterates, scale, settings.spread, **shape)

    def bank(self, count: int) -> Bank:
        """The first K of the seeds' predictors, the same for every size; losses computed once."""
        if self._bank is None:
            largest = max(count for count in self.config.predictors if count != "fresh")
            networks, scales = self.draw(None)(largest)
            self._bank = Bank.of(networks, scales, self.full, self.config.downstream.gamma)
        return self._bank.part(0, count)

    def forget_bank(self) -> None:
        """Give its memory back."""
        self._bank = None

    @functools.cached_property
    def iterates(self) -> Networks:
        """Fitted Q-iterates of the training set [seeds, iterates x networks], each seed its own."""
        settings, downstream = self.config.distillation, self.config.downstream
        learner = downstream.model_copy(
            update={"ensemble": settings.iterate_ensemble, "depth": 1, "activation": "tanh"}
        )
        wanted = {max(1, round(part * learner.backups)) for part in ITERATES}
        seen: list[Networks] = []

        def watch(backup: int, average: Networks) -> None:
            if backup in wanted:
                seen.append(average.copy())

        draw = self.streams.data("iterates", self.of.name)
        fitted_q(self.full, self.actions, learner, draw, groups=self.config.seeds, watch=watch)
        return Networks(
            torch.cat([some.first for some in seen], 1),
            torch.cat([some.action for some in seen], 1),
            [],
            torch.cat([some.head for some in seen], 1),
            torch.cat([some.offset for some in seen], 1),
        )

    @functools.cached_property
    def held_out(self) -> Bank:
        """Random networks that no distillation uses."""
        draw, settings = self.streams.data("held out", self.of.name), self.config.distillation
        networks, scales = random_networks(
            draw, self.full, 1, self.actions, units=settings.units, gains=settings.gains
        )(self.config.held_out)
        return Bank.of(networks, scales, self.full, self.config.downstream.gamma)
