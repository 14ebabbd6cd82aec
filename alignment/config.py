"""Settings of the alignment experiments: what the paper's symbols are called here.

No torch in this file: `reprise --dry-run` checks a config in well under two seconds.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from reprise.alignment.rewards.config import Reward as Reward  # re-exported: one place for configs
from reprise.alignment.training.arguments import TrainingArgumentsDict
from reprise.alignment.training.parallelism import Parallelism
from reprise.rollout.errors import BadInput
from reprise.rollout.functions import PATTERN
from reprise.rollout.run.experiment import Experiment
from reprise.rollout.run.settings import Sampling, Settings

PositiveFloat = Annotated[float, Field(gt=0)]
PerRound = PositiveFloat | list[PositiveFloat]
GAMMA = "gamma, the KL regularization: one value, or one for each round"


# -- text ----------------------------------------------------------------------------------------


class Docstrings(Settings):
    """Which docstrings, and how much of them a prompt shows (`data.name: docstrings`)."""

    body_words: int = Field(24, ge=0, le=24, description="words of the docstring's body shown")
    summary_words: int = Field(16, ge=3, le=16, description="longest summary kept, in words")
    overlap: float = Field(
        0.0, ge=0, le=1, description="keep summaries with this share of the name's words, or more"
    )


class Data(Settings):
    """Prompts with the answers people wrote, or with a chosen and a rejected answer.

    A path is a .json, .jsonl or .parquet file, a folder of such files named after their splits, or
    a folder written by `datasets.save_to_disk`. Where a split is named, `name[a:b]` takes rows a to
    b of it; bounds may be percentages (`train[:95%]`).
    """

    name: str = Field(description="'docstrings', a Hub name, or a path of the same schema")
    split: str = Field("train", description="split to train on, or a slice of it")
    max_examples: int | None = Field(None, ge=1, description="use the first so many; null: all")
    prompt_column: str | None = Field(None, description="where the prompt is; null: 'prompt'")
    reference_column: str | None = Field(
        None, description="where the answer is; null: the first of reference, completion, chosen"
    )
    docstrings: Docstrings = Field(Docstrings(), description="choices for name 'docstrings'")


# -- supervised training and reward training -----------------------------------------------------


class FromScratch(Settings):
    """A small model with fresh weights and its own byte-level BPE tokenizer."""

    architecture: Literal["gpt_neox", "llama"] = Field("gpt_neox", description="kind of model")
    layers: int = Field(4, ge=1, description="transformer blocks")
    width: int = Field(128, ge=8, description="size of the residual stream")
    heads: int = Field(4, ge=1, description="attention heads; they divide `width`")
    feedforward: int = Field(512, ge=8, description="size of the hidden layer of each block")
    vocabulary: int = Field(2048, ge=300, description="tokens of the byte-level BPE")
    positions: int = Field(128, ge=8, description="longest sequence, in tokens")
    tie_embeddings: bool = Field(False, description="one matrix for input and output tokens")
    rotary_fraction: float = Field(
        0.25, gt=0, le=1, description="share of each head that is rotated (GPT-NeoX)"
    )
    initializer_range: float = Field(0.02, gt=0, description="deviation of the fresh weights")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> FromScratch:
        if self.width % (2 * self.heads):
            raise BadInput(
                f"width={self.width} must be a multiple of twice heads={self.heads}: each head "
                "rotates pairs of features"
            )
        return self


class _Supervised(Experiment):
    data: Data
    heldout_split: str = Field("test", description="split, or slice of one, to measure on")
    heldout: int = Field(256, ge=2, description="held-out examples measured")
    max_prompt_tokens: int = Field(512, ge=1, description="longest prompt, in tokens")
    max_completion_tokens: int = Field(64, ge=2, description="longest completion, with its EOS")
    on_long_prompt: Literal["error", "truncate", "drop"] = Field(
        "error", description="what to do with longer prompts (truncate keeps the end)"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="attention implementation"
    )
    epochs: float = Field(1.0, gt=0, description="passes over the data")
    batch_size: int = Field(
        ge=1, description="examples (or pairs) per optimizer step, over all processes"
    )
    parallelism: Parallelism = Field(Parallelism(), description="what the launch must provide")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for hidden matrices, AdamW for the rest"
    )
    train: TrainingArgumentsDict = Field(
        default_factory=dict, description="transformers.TrainingArguments"
    )

    @model_validator(mode="after")
    def _accumulation_fills_the_batch(self) -> _Supervised:
        per_step = self.train.get("per_device_train_batch_size", 8)
        if self.batch_size % per_step:
            raise BadInput(
                f"batch_size={self.batch_size} must be a multiple of "
                f"train.per_device_train_batch_size={per_step}, so that accumulation fills it"
            )
        return self


class SFT(_Supervised):
    """Supervised training on the references: the policy pi_0."""

    experiment: Literal["alignment.sft"]
    model: str | None = Field(None, description="start from this run, folder or Hub name")
    from_scratch: FromScratch | None = Field(None, description="or from fresh weights")

    @model_validator(mode="after")
    def _one_start(self) -> SFT:
        if (self.model is None) == (self.from_scratch is None):
            raise BadInput("give either model (a start) or from_scratch (fresh weights)")
        return self


class Corruptions(Settings):
    """How rejected answers are made from references, when the data set has none: shares."""

    other: float = Field(0.3, ge=0, description="the reference of another prompt")
    related: float = Field(0.2, ge=0, description="that of a prompt of the same module")
    truncated: float = Field(0.1, ge=0, description="cut short, with a period and EOS")
    unfinished: float = Field(0.1, ge=0, description="cut short, without EOS")
    dropped: float = Field(0.1, ge=0, description="some words left out")
    repeated: float = Field(0.1, ge=0, description="some words twice")
    sampled: float = Field(0.0, ge=0, description="a sample of `model`")

    @model_validator(mode="after")
    def _some(self) -> Corruptions:
        if not any(self.model_dump().values()):
            raise BadInput("all shares are 0: give at least one kind of corruption a share")
        return self


class RewardTraining(_Supervised):
    """Bradley-Terry reward model: -ln sigmoid(r(x, chosen) - r(x, rejected))."""

    experiment: Literal["alignment.reward_training"]
    model: str = Field(
        description="run, folder or Hub name of the language model whose body it starts from"
    )
    extra_layers: int = Field(
        0, ge=0, description="blocks put on top of the body; at first they change nothing"
    )
    pairs_per_prompt: int = Field(
        1, ge=1, description="pairs made for each prompt when the data has no rejected answers"
    )
    corruptions: Corruptions = Field(
        Corruptions(), description="used when the data has references and no rejected answers"
    )


# -- objectives ----------------------------------------------------------------------------------


class DPO(Settings):
    """-ln sigmoid(y) on a winner (2601.08421, Algorithm 1)."""

    name: Literal["dpo"]
    gamma: PerRound = Field(description=GAMMA)
    reference: Literal["initial", "previous"] = Field(description="pi_0 or pi_k in y")
    labels: Literal["ranked", "sampled"] = Field(
        description="winner = higher reward, or drawn from the Bradley-Terry model of the rewards"
    )
    beta: float = Field(1.0, gt=0, description="beta, reward scale in sampled labels")


class PDFR(Settings):
    """Cross-entropy of sigmoid(y) against sigmoid(beta (r1 - r2)), Eq. 10 regularized by pi_0."""

    name: Literal["pdfr"]
    gamma: PerRound = Field(description=GAMMA)
    reference: Literal["initial"] = Field(description="fixed regularization: pi_0")
    beta: float = Field(gt=0, description="beta, sharpness of the soft labels")


class REBEL(Settings):
    """(y - (r1 - r2))^2, Eq. 9."""

    name: Literal["rebel"]
    gamma: PerRound = Field(description=GAMMA)
    reference: Literal["initial", "previous"] = Field(description="pi_0 or pi_k in y; REBEL: pi_k")


class RDRC(Settings):
    """(y - z)^2, z calibrated by gamma_c ln pi_k/pi_0 (Algorithm 3, reward-calibration)."""

    name: Literal["rdrc"]
    gamma: PerRound = Field(description=GAMMA)
    reference: Literal["previous"] = Field(description="reward calibration: pi_k")
    gamma_c: float = Field(ge=0, description="gamma_c, the calibration level; 0 is REBEL")


class Custom(Settings):
    """A loss of your own, f(y, z) per pair, on z = r1 - r2; see `alignment.objectives`."""

    name: Literal["custom"]
    function: str = Field(
        pattern=PATTERN,
        description="the loss, `package.module:function`: f(y, z) -> losses, tensors [pairs]",
    )
    gamma: PerRound = Field(description=GAMMA)
    reference: Literal["initial", "previous"] = Field(description="pi_0 or pi_k in y")


Objective = Annotated[DPO | PDFR | REBEL | RDRC | Custom, Field(discriminator="name")]


# -- the on-policy loop and its offline twin -----------------------------------------------------


class Evaluation(Settings):
    """Measuring the policy after each round, on held-out prompts."""

    split: str = Field("test", description="split of `data` that holds the held-out prompts")
    prompts: int = Field(256, ge=2, description="held-out prompts, one completion each")
    bootstrap: int = Field(1000, ge=100, description="resamples behind each 95% interval")


class RoundSizes(Settings):
    """Rounds that shrink and a large last one: n_k = first * decay^k (Corollary 3.6)."""

    first: int = Field(ge=1, description="n_0")
    decay: float = Field(gt=0, le=1, description="eta^alpha, the factor from round to round")
    last: int | None = Field(None, ge=1, description="n_{K-1}; null: what decay makes of it")

    def sizes(self, rounds: int, least: int = 1) -> list[int]:
        """n_0, ..., n_{K-1}, each at least `least`; halves are rounded up.

        In fractions, with `decay` as it was typed: .1 squared is a hundredth here.
        """
        decay = Fraction(str(self.decay))
        whole = [floor(self.first * decay**k + Fraction(1, 2)) for k in range(rounds)]
        sizes = [max(least, size) for size in whole]
        return sizes if self.last is None else [*sizes[: rounds - 1], self.last]


class HybridDesign(Settings):
    """Both actions of every pair from a mixture of pi_k and a G-optimal design (Algorithm 2).

    The design is over `prompts` prompts and `candidates` responses of pi_0 to each, with pi_0's
    last hidden layer, averaged over the completion and projected, as features. It is made once,
    before training, without the reward model.
    """

    share: float = Field(0.5, gt=0, lt=1, description="weight of the design in the mixture")
    prompts: int = Field(256, ge=1, description="prompts that the design chooses from")
    candidates: int = Field(8, ge=2, description="responses to each that it chooses from")
    dimension: int = Field(16, ge=1, description="d, features after the projection")
    tolerance: float = Field(0.05, gt=0, lt=1, description="relative duality gap")


class Quantization(Settings):
    """QLoRA (2305.14314): the frozen base in few bits; needs bitsandbytes and a CUDA GPU."""

    bits: Literal[4, 8] = Field(4, description="bits of a frozen weight")
    kind: Literal["nf4", "fp4"] = Field("nf4", description="code of 4-bit weights")
    double: bool = Field(True, description="quantize the scales of 4-bit weights too")
    compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="precision that 4-bit weights are multiplied in"
    )


class LoRA(Settings):
    """Train W + (alpha / rank) B A with W frozen (2106.09685); pi_0 is W, the adapter off."""

    rank: int = Field(16, ge=1, description="rank r of the difference")
    alpha: float = Field(32.0, gt=0, description="the difference is scaled by alpha / rank")
    target_modules: str | list[str] = Field(
        "all-linear", description="names of the matrices; 'all-linear': all but the output layer"
    )
    base_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision in which the frozen base is kept"
    )
    quantization: Quantization | None = Field(None, description="QLoRA: the base in 4 or 8 bits")


class _Alignment(Experiment):
    policy: str = Field(description="pi_0: run directory, model folder or Hub name")
    lora: LoRA | None = Field(None, description="train a low-rank adapter; null: every weight")
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
    prompts_per_round: PositiveInt | list[PositiveInt] | RoundSizes | None = Field(
        None,
        description="n_k: one size, one per round, {first, decay, last} (never below batch_size), "
        "or null for all prompts",
    )
    batch_size: int = Field(ge=1, description="pairs per optimizer step, over all processes")
    shard_size: int = Field(256, ge=1, description="prompts per stored shard: what a kill can cost")
    first_step_tolerance: float = Field(
        1e-2, gt=0, description="largest |ln pi/pi_k| in nats accepted when a round starts training"
    )
    logits: Literal["full", "chunked"] = Field(
        "full",
        description="chunked: log-probabilities in pieces, logits of a whole batch never exist",
    )
    bucket_by_length: bool = Field(
        False, description="within an optimizer step, put pairs of like length side by side"
    )
    evaluation: Evaluation = Evaluation()
    parallelism: Parallelism = Field(Parallelism(), description="what the launch must provide")
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
                raise BadInput(
                    f"{key} lists {len(value)} values for rounds={self.rounds}; give one value, "
                    "or one for each round"
                )
        per_step = self.train.get("per_device_train_batch_size", 8)
        if self.batch_size % per_step:
            raise BadInput(
                f"batch_size={self.batch_size} must be a multiple of "
                f"train.per_device_train_batch_size={per_step}, so that accumulation fills it"
            )
        if self.sampling.samples_per_prompt < 2:
            raise BadInput(
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
        if isinstance(sizes, RoundSizes):
            return sizes.sizes(self.rounds, self.batch_size)[round]
        return sizes[round] if isinstance(sizes, list) else sizes


class OnPolicy(_Alignment):
    """K rounds: sample D_k from pi_k, score it, store it, update on it (Algorithms 1 and 3)."""

    experiment: Literal["alignment.on_policy"]
    epochs: int = Field(1, ge=1, description="passes over D_k in each round")
    design: HybridDesign | None = Field(
        None, description="the hybrid sampler: pi_k mixed with an optimal design"
    )

    @model_validator(mode="after")
    def _design_gives_pairs(self) -> OnPolicy:
        if self.design is not None and self.sampling.samples_per_prompt != 2:
            raise BadInput(
                f"sampling.samples_per_prompt={self.sampling.samples_per_prompt}: with a design a "
                "round consists of pairs; set it to 2"
            )
        return self


class Offline(_Alignment):
    """The same objective on D_0 only: "round" k is the k-th epoch over it."""

    experiment: Literal["alignment.offline"]
    epochs: ClassVar[int] = 1  # a pass over D_0 is a "round"
    replay: str | None = Field(
        None, description="run whose stored data is replayed; null samples D_0 from pi_0"
    )
    replay_round: int = Field(0, ge=0, description="which of its rounds; pi_0 must have drawn it")
