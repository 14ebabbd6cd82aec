"""Settings of the experiments on bandits and designs (2601.08421, Sections 2 to 5).

No torch in this file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from reprise.alignment.config import RoundSizes
from reprise.rollout.errors import BadInput
from reprise.rollout.run.experiment import Experiment
from reprise.rollout.run.settings import Settings

PairCount = Annotated[int, Field(ge=1)]
Radius = Annotated[float, Field(gt=0)]

# -- instances -----------------------------------------------------------------------------------


class _Instance(Settings):
    radius: float = Field(gt=0, description="R, radius of the ball of parameters")
    gamma: float | None = Field(None, gt=0, description="gamma, KL regularization; null: 1/R")


class Skewed(_Instance):
    """The bandit of Theorem 2.2, on which pi_0 hardly ever draws what must be learned."""

    kind: Literal["skewed"]
    dimension: int = Field(ge=2, description="d; even for norm 1, where there are d + 1 responses")
    norm: float = Field(1.0, ge=1, le=2, description="p of the ball")


class Random(_Instance):
    """Random features on the sphere, several prompts."""

    kind: Literal["random"]
    prompts: int = Field(ge=1, description="number of prompts, equally likely")
    responses: int = Field(ge=2, description="responses to each prompt")
    dimension: int = Field(ge=1, description="d")
    norm: float = Field(2.0, ge=1, le=2, description="p of the ball")
    skew: float = Field(1.0, ge=0, description="deviation of pi_0's logits")
    target: float = Field(0.9, gt=0, le=1, description="norm of theta* as a share of R")
    opposed: bool = Field(False, description="pi_0 avoids what pi* prefers: the worst coverage")


class Dyadic(_Instance):
    """A table f(a) without any structure, responses of probability 1/2, 1/4, 1/8, ..."""

    kind: Literal["dyadic"]
    responses: int = Field(ge=3, le=40, description="number of responses")


Instance = Annotated[Skewed | Random | Dyadic, Field(discriminator="kind")]

# -- methods -------------------------------------------------------------------------------------


class Method(Settings):
    """One learner: what it minimizes, and where its pairs come from."""

    name: str = Field(description="how tables and figures call it")
    objective: Literal["dpo", "pdfr", "rebel", "rdrc"] = Field("dpo", description="the objective")
    reference: Literal["initial", "previous"] = Field(
        "initial", description="pi_0 or pi_k in y (RDRC has pi_k)"
    )
    calibration: float = Field(1.0, ge=0, description="gamma_c / gamma (RDRC)")
    sampler: Literal["on_policy", "offline", "design", "hybrid", "hybrid_pairs"] = Field(
        "on_policy",
        description="pi_k; pi_0, all pairs so far; the design; both actions from the mixture of "
        "pi_k and the design (Algorithm 2); or whole pairs of either",
    )
    schedule: RoundSizes | None = Field(None, description="round sizes of its own")


# -- studies -------------------------------------------------------------------------------------


class Rounds(Settings):
    """Error against rounds, for every method and number of pairs."""

    name: Literal["rounds"]
    methods: list[Method] = Field(min_length=1, description="what is compared")
    pairs_per_round: list[PairCount] = Field(description="n, each tried with every method")
    rounds: int = Field(ge=1, description="K")
    measure: Literal["kl", "forward_kl", "theta_error", "variance_error", "reward"] = Field(
        "kl", description="what the figure shows"
    )


class Scaling(Settings):
    """Error after K rounds against pairs, with the slope in logarithms, for several instances."""

    name: Literal["scaling"]
    methods: list[Method] = Field(min_length=1, description="what is compared")
    pairs_per_round: list[PairCount] = Field(min_length=3, description="n")
    rounds: int = Field(1, ge=1, description="K")
    measure: Literal["kl", "forward_kl", "theta_error", "variance_error", "deviation"] = Field(
        "theta_error", description="the error whose slope is taken"
    )
    radii: list[Radius] = Field(
        default_factory=list, description="radii to repeat it with; empty: the instance's"
    )
    dimensions: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list, description="dimensions to repeat it with; empty: the instance's"
    )
    reward_errors: list[Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: [0.0],
        description="eps_RM, MAD of the reward model's error over gamma, to repeat it with",
    )


class Complexity(Settings):
    """Total pairs until the median error falls below eps, on-policy against offline."""

    name: Literal["complexity"]
    errors: list[Annotated[float, Field(gt=0)]] = Field(min_length=3, description="eps")
    pairs_per_round: list[PairCount] = Field(min_length=3, description="n tried, ascending")
    rounds: int = Field(ge=2, description="largest K tried")


class Coverage(Settings):
    """C_*^p(R) against R: Proposition 2.1."""

    name: Literal["coverage"]
    radii: list[Radius] = Field(min_length=3, description="R")
    dimensions: list[Annotated[int, Field(ge=4)]] = Field(min_length=1, description="d, even")
    norms: list[Annotated[float, Field(ge=1, le=2)]] = Field(min_length=1, description="p")


class Regions(Settings):
    """The shrinking confidence regions of Figure 1, on an instance with two dimensions."""

    name: Literal["regions"]
    pairs_per_round: int = Field(ge=1, description="n")
    rounds: int = Field(ge=2, description="K")
    level: float = Field(0.95, gt=0, lt=1, description="share of the replicas in each region")


class Network(Settings):
    """Theorem 5.1 with small networks as the function class, trained by Adam."""

    name: Literal["network"]
    width: int = Field(16, ge=2, description="hidden units")
    steps: int = Field(3000, ge=10, description="Adam steps of each fit")
    learning_rate: float = Field(1e-2, gt=0, description="its peak; cosine to 0")
    pairs_per_round: list[PairCount] = Field(min_length=3, description="n")
    rounds: int = Field(2, ge=1, description="K")


Study = Annotated[
    Rounds | Scaling | Complexity | Coverage | Regions | Network, Field(discriminator="name")
]


class BanditExperiment(Experiment):
    """A claim about preference learning in bandits, measured."""

    experiment: Literal["alignment.bandit"]
    instance: Instance
    replicas: int = Field(100, ge=2, description="independent seeds, side by side")
    study: Study

    @model_validator(mode="after")
    def _study_fits_instance(self) -> BanditExperiment:
        fixed = isinstance(self.instance, Dyadic)
        if fixed and isinstance(self.study, Scaling) and self.study.dimensions:
            raise BadInput("study.dimensions: a dyadic instance has responses, no dimension")
        return self


class DesignExperiment(Experiment):
    """Optimal designs of random features: values, bounds and supports."""

    experiment: Literal["alignment.design"]
    prompts: int = Field(ge=1, description="number of prompts")
    responses: int = Field(ge=2, description="responses to each")
    dimension: int = Field(ge=1, description="d")
    tolerance: float = Field(0.01, gt=0, lt=1, description="relative duality gap")
    direct: bool = Field(True, description="also solve Eq. 7 itself (Remark 4.3)")
    families: list[Literal["sphere", "cluster", "axes", "heavy", "spikes"]] = Field(
        min_length=1,
        description="how features are drawn: uniform directions, prompts in clusters, one axis a "
        "prompt with little else, heavy-tailed lengths, or one long response a prompt",
    )
    replicas: int = Field(5, ge=1, description="draws of each family")


class CoverageOfRun(Experiment):
    """Coverage of the final policy by each round's, in the hidden features of a finished run."""

    experiment: Literal["alignment.coverage"]
    run: str = Field(description="directory of a finished on-policy or offline run")
    dimension: int = Field(8, ge=1, description="d, features after the projection")
    batch_size: int = Field(256, ge=1, description="sequences in a forward pass")
    bootstrap: int = Field(300, ge=20, description="resamples behind each 95% interval")
