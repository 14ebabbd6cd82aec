"""The training sets of an offline RL study: every kind with every data seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from reprise.distill.config import DistillOfflineRL
from reprise.distill.data import training_set
from reprise.distill.predictors import Scaling


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


class Source:
    """One training set with what every cell on it needs."""

    def __init__(self, config: DistillOfflineRL, which: TrainingSet) -> None:
        self.data = training_set(config.environment, which.kind, config.data_size, which.seed)
        self.scaling = Scaling.of(self.data)
        self.full = self.scaling.batch(self.data)

    def raw(self, states: np.ndarray) -> np.ndarray:
        """Standardized states in the environment's units."""
        return (states * self.scaling.scale + self.scaling.centre).astype(np.float32)
