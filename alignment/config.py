"""Settings of the alignment experiments: what the paper's symbols are called here.

No torch in this file: `reprise --dry-run` checks a config in well under two seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignment.training_arguments import TrainingArgumentsDict
from rollout.settings import Sampling, Settings

PositiveFloat = Annotated[float, Field(gt=0)]
PerRound = PositiveFloat | list[PositiveFloat]


# -- text ----------------------------------------------------------------------------------------


class Data(Settings):
    """Prompts, with the reference answers that people wrote."""

    name: str = Field(description="'docstrings', a Hub name, or a path of the same schema")


# -- objectives ----------------------------------------------------------------------------------


class DPO(Settings):
    """-ln sigmoid(y) on a winner (2601.08421, Algorithm 1)."""

    name: Literal["dpo"]
    gamma: PerRound = Field(description="gamma, the KL regularization; a list gives each round its own")
    reference: Literal["initial", "previous"] = Field(description="pi_0 or pi_k in y")
    labels: Literal["ranked", "sampled"] = Field(
        description="winner = higher reward, or drawn from the Bradley-Terry model of the rewards"
    )
    beta: float = Field(1.0, gt=0, description="beta, reward scale in sampled labels")


class PDFR(Settings):
    """Cross-entropy of sigmoid(y) against sigmoid(beta (r1 - r2)), Eq. 10 regularized by pi_0."""

    name: Literal["pdfr"]
    gamma: PerRound = Field(description="gamma, the KL regularization; a list gives each round its own")
    reference: Literal["initial"] = Field(description="fixed regularization: pi_0")
    beta: float = Field(gt=0, description="beta, sharpness of the soft labels")


class REBEL(Settings):
    """(y - (r1 - r2))^2, Eq. 9."""

    name: Literal["rebel"]
    gamma: PerRound = Field(description="gamma, the KL regularization; a list gives each round its own")
    reference: Literal["initial", "previous"] = Field(description="pi_0 or pi_k in y; REBEL: pi_k")


class RDRC(Settings):
    """(y - z)^2, z calibrated by gamma_c ln pi_k/pi_0 (Algorithm 3, reward-calibration)."""

    name: Literal["rdrc"]
    gamma: PerRound = Field(description="gamma, the KL regularization; a list gives each round its own")
    reference: Literal["previous"] = Field(description="reward calibration: pi_k")
    gamma_c: float = Field(ge=0, description="gamma_c, the calibration level; 0 is REBEL")


Objective = Annotated[DPO | PDFR | REBEL | RDRC, Field(discriminator="name")]


# -- the on-policy loop and its offline twin -----------------------------------------------------


class Reward(Settings):
    """The reward model r~(x, a)."""

    model: str = Field(description="a sequence classifier with one output: run, folder or Hub name")
    batch_size: int = Field(64, ge=1, description="sequences scored side by side")
    standardize: bool = Field(
        False, description="shift and scale so that pi_0's held-out samples have mean 0, deviation 1"
    )
    missing_eos_penalty: float | None = Field(
        None, ge=0, description="subtracted from the raw reward of a completion without EOS"
    )


class Evaluation(Settings):
    """Measuring the policy after each round, on held-out prompts."""

    split: str = Field("test", description="split of `data` that holds the held-out prompts")
    prompts: int = Field(256, ge=2, description="held-out prompts, one completion each")
    bootstrap: int = Field(1000, ge=100, description="resamples behind each 95% interval")


class _Alignment(Settings):
    seed: int = Field(0, ge=0, description="seed of every random stream")
    policy: str = Field(description="pi_0: run directory, model folder or Hub name")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="attention implementation of policy and reward model"
    )
    data: Data
    on_long_prompt: Literal["error", "truncate", "drop"] = Field(
        "error", description="what to do with prompts above sampling.max_prompt_tokens"
    )
    reward: Reward
    sampling: Sampling
    selection: Literal["first_two", "best_worst"] = Field(
        "first_two", description="the pair of each prompt: two samples, or best against worst of n"
    )
    objective: Objective
    rounds: int = Field(ge=1, description="K, number of policy updates")
    prompts_per_round: int | list[Annotated[int, Field(ge=1)]] | None = Field(
        None, description="n_k: one size, one per round, or null for all prompts"
    )
    batch_size: int = Field(ge=1, description="pairs per optimizer step, over all processes")
    shard_size: int = Field(256, ge=1, description="prompts per stored shard, the unit of resumption")
    first_step_tolerance: float = Field(
        1e-2, gt=0, description="largest |ln pi/pi_k| in nats accepted when a round starts training"
    )
    evaluation: Evaluation = Evaluation()
    train: TrainingArgumentsDict = Field(
        default_factory=dict, description="transformers.TrainingArguments of each round"
    )

    @model_validator(mode="after")
    def _lists_have_one_entry_per_round(self) -> _Alignment:
        for key, value in (
            ("objective.gamma", self.objective.gamma),
            ("prompts_per_round", self.prompts_per_round),
        ):
            if isinstance(value, list) and len(value) != self.rounds:
                raise ValueError(
                    f"{key} lists {len(value)} values for rounds={self.rounds}; give one value, "
                    "or one for each round"
                )
        per_step = self.train.get("per_device_train_batch_size", 8)
        if self.batch_size % per_step:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of "
                f"train.per_device_train_batch_size={per_step}, so that accumulation fills it"
            )
        if self.sampling.samples_per_prompt < 2:
            raise ValueError(
                "sampling.samples_per_prompt must be at least 2: a pair needs two responses"
            )
        return self

    def gamma(self, round: int) -> float:
        """Gamma of round `round`, counted from 0."""
        gamma = self.objective.gamma
        return gamma[round] if isinstance(gamma, list) else gamma

    def prompts_in_round(self, round: int) -> int | None:
        """Number of prompts n_k of round `round`; None for all."""
        sizes = self.prompts_per_round
        return sizes[round] if isinstance(sizes, list) else sizes


class OnPolicy(_Alignment):
    """K rounds: sample D_k from pi_k, score it, store it, update on it (Algorithms 1 and 3)."""

    experiment: Literal["alignment.on_policy"]
    epochs: int = Field(1, ge=1, description="passes over D_k in each round")


class Offline(_Alignment):
    """The same objective on D_0 only: "round" k is the k-th epoch over it."""

    experiment: Literal["alignment.offline"]
    replay: str | None = Field(
        None, description="run whose stored round 0 is replayed instead of sampling one"
    )
