"""Settings of what is done with trained policies: recording them, and comparing them."""

from __future__ import annotations

import string
from typing import Annotated, Literal

from pydantic import Field, model_validator

from reprise.rollout.errors import BadInput
from reprise.rollout.run.experiment import Experiment
from reprise.rollout.run.settings import Settings

Seed = Annotated[int, Field(ge=0)]


class Collect(Experiment):
    """A trained policy's games as a Minari data set."""

    experiment: Literal["rl.collect"]
    seed: Seed = Field(0, description="seed of the games: none that training or evaluation used")
    policy: str = Field(description="run directory of a finished rl.pqn run, or a saved policy")
    to: str = Field(
        pattern=r"^([A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+-v\d+$",
        description="Minari id to give it, e.g. breakout/pqn-v0; kept in MINARI_DATASETS_PATH",
    )
    episodes: int | None = Field(None, ge=1, description="whole games to record, or:")
    observations: int | None = Field(
        None, ge=1, description="steps to record; the games then being played are cut"
    )
    copies: int = Field(2, ge=1, description="games side by side; each is kept in memory")
    epsilon: float = Field(0.01, ge=0, le=1, description="share of random actions")
    frames: Literal["raw", "exact"] = Field(
        "raw",
        description="raw: screens without maximum over frames, as Minari's Atari sets; exact: what "
        "the policy saw (vectors too)",
    )
    longest: int = Field(4500, ge=1, description="steps after which a game is cut: 5 minutes")
    format: Literal["parquet", "hdf5", "arrow"] = Field(
        "parquet", description="of Minari's storage; all lossless, parquet by far the smallest"
    )

    @property
    def amount(self) -> int:
        """Games, or steps, in all."""
        amount = self.episodes or self.observations
        assert amount is not None
        return amount

    @model_validator(mode="after")
    def _one_amount(self) -> Collect:
        if (self.episodes is None) == (self.observations is None):
            raise BadInput(
                f"episodes={self.episodes} and observations={self.observations}: exactly one of "
                "the two says how much to record; set the other to null"
            )
        return self


class Game(Settings):
    """A game of Figure 2."""

    environment: str = Field(description="what its runs must be of, e.g. ms_pacman")
    data: str = Field(description="expert observations: Minari id or folder")


class FigureTwo(Experiment):
    """Figure 2: return and agreement of finished runs, for each game and variant."""

    experiment: Literal["rl.figure_two"]
    seed: Seed = Field(0, description="of nothing: nothing here is drawn")
    runs: str = Field(
        "runs/pqn/{game}_{variant}/seed-{seed}", description="where the run directories are"
    )
    games: dict[str, Game] = Field(min_length=1, description="{game}: environment and data")
    variants: dict[str, str] = Field(
        {name: name for name in ("baseline", "regularized", "quantized", "quantized_regularized")},
        min_length=1,
        description="name: what stands for {variant}; the paper has these four. The first is what "
        "the others are compared with",
    )
    seeds: list[Seed] = Field(min_length=1, description="{seed}; the paper has 15 runs")
    observations: int = Field(
        5000, ge=1, description="held-out observations for each game, evenly spread"
    )
    checkpoints: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list,
        description="steps at which variants are compared by the last 100 training episodes too",
    )

    @model_validator(mode="after")
    def _every_run_has_its_place(self) -> FigureTwo:
        fields = {name for _, name, _, _ in string.Formatter().parse(self.runs) if name is not None}
        if fields != {"game", "variant", "seed"}:
            raise BadInput(
                f"runs={self.runs!r} must hold {{game}}, {{variant}} and {{seed}}, and nothing "
                "else in braces: each run has a directory of its own"
            )
        return self
