"""Settings of the replicable linear experiments: what the paper's symbols are called here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from reprise.rollout.errors import BadInput
from reprise.rollout.run.experiment import Experiment
from reprise.rollout.run.settings import EnvironmentSettings, Settings

Positive = Annotated[float, Field(gt=0)]


class Replicable(Experiment):
    """Experiments on replicas: several runs that share their internal randomness."""

    seed: int = Field(0, ge=0, description="seed of the data streams: independent of replicas")
    internal_seed: int = Field(
        0, ge=0, description="seed of the internal streams (r), which replicas share"
    )
    internal_seeds: int = Field(
        1, ge=1, description="how many internal seeds, from internal_seed on: a distribution"
    )
    runs: int = Field(100, ge=1, description="replicas for each internal seed and cell")

    def internal(self) -> list[int]:
        """The internal seeds."""
        return list(range(self.internal_seed, self.internal_seed + self.internal_seeds))


# -- fitted Q-iteration ----------------------------------------------------------------------------


class FQIFeatures(Settings):
    """What Q is linear in: random features of the state and the action, -1 or +1."""

    kind: Literal["mirror", "fourier"] = Field(
        "mirror",
        description="mirror: a sin(omega . s), which knows that CartPole mirrored is CartPole, "
        "with omega > 0; fourier: cos(omega . (s, a) + b), which knows nothing of it",
    )
    count: int = Field(3, ge=1, description="M, number of random features")
    bandwidth: float = Field(0.375, gt=0, description="of the features' kernel, in units of scale")
    scale: tuple[Positive, Positive, Positive, Positive] = Field(
        (4.8, 3.0, 0.21, 1.0),
        description="unit of position [m], velocity [m/s], angle [rad], angular velocity [rad/s]",
    )
    constant: float = Field(
        30.0,
        ge=0,
        description="value of one feature more, the same everywhere: the larger, the less its "
        "weight is penalized and the coarser its grid; 0: no such feature",
    )

    @property
    def width(self) -> int:
        """D, entries of the weights."""
        return self.count + (self.constant > 0)


class FQIMethod(Settings):
    """Fitted Q-iteration: the paper's procedure, and changes to it."""

    backups: int = Field(5, ge=1, description='"5 rounds of value backups"')
    gamma: float = Field(0.99, ge=0, lt=1, description="discount")
    reward: Literal["step", "failure"] = Field(
        "failure",
        description="step: 1 each step (CartPole's); failure: -1 where the pole fell, 0 elsewhere; "
        "both order policies alike",
    )
    reward_scale: Positive = Field(
        500.0, description="factor R of the reward: weights grow with it, and alpha does not"
    )
    alpha: Positive | None = Field(0.2, description="width of the rounding grid; null: unrounded")
    bound: float = Field(1e6, gt=0, description="largest weight that can be rounded, -b_s = b_e")
    rounding: Literal["every", "last"] = Field(
        "every", description="round each backup's weights (the paper), or only the final ones"
    )
    average: int = Field(
        1, ge=1, description="mean of the last so many backups' weights, then rounded; 1: the last"
    )
    median_of: int = Field(
        1, ge=1, description="split the data in so many parts, and take the median of their weights"
    )

    @model_validator(mode="after")
    def _possible(self) -> FQIMethod:
        if self.average > self.backups:
            raise BadInput(f"average={self.average} must be at most backups={self.backups}")
        if self.median_of % 2 == 0:
            raise BadInput(
                f"median_of={self.median_of} must be odd: the median of an even number of "
                "midpoints may lie between two of them"
            )
        return self


class FQI(Replicable):
    """Replicable fitted Q-iteration on CartPole over random features (Figure 1)."""

    experiment: Literal["rl.fqi"]
    data: str = Field(
        "dqn-replay",
        description="'dqn-replay' (recorded, shipped), 'd3rlpy:cartpole-replay', 'minari:ID', or "
        "the path of a Minari data set or a RoundStore",
    )
    data_size: int = Field(100_000, ge=1, description="transitions in the set: fraction 1")
    recordings: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, description="seeds of the recorded replays; 0, 1 and 2 are shipped"
    )
    protocol: Literal["subsample", "resample", "fresh"] = Field(
        "fresh",
        description="each run's data: newly collected by the recorded learner's snapshots "
        "(independent), a random part of the one set (the paper's: runs share data), or draws "
        "with replacement from it",
    )
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1, description="data of a run, as a share of data_size"
    )
    lambdas: list[Positive] = Field(min_length=1, description="lambda, ridge regularization")
    features: FQIFeatures = FQIFeatures()
    method: FQIMethod = FQIMethod()
    baseline: bool = Field(
        True, description="also the arms without regularization and without rounding"
    )
    episodes: int = Field(10, ge=1, description="episodes behind the return of a run")
    enough: float = Field(400.0, description="a return that counts as balancing")

    @model_validator(mode="after")
    def _only_recordings_are_many_and_act_anew(self) -> FQI:
        if self.data != "dqn-replay":
            if self.protocol == "fresh":
                raise BadInput(
                    f"protocol=fresh with data={self.data!r}: only 'dqn-replay' has the learner's "
                    "snapshots that can act anew; use protocol=resample for independent draws"
                )
            if len(self.recordings) > 1:
                raise BadInput(
                    f"recordings={self.recordings} with data={self.data!r}: that is one set; leave "
                    "recordings out, or use data=dqn-replay"
                )
        if len(set(self.recordings)) < len(self.recordings):
            raise BadInput(f"recordings={self.recordings} names one twice; list each once")
        return self


# -- least-squares value iteration -----------------------------------------------------------------


class MDP(Settings):
    """A finite linear MDP with known optimal values."""

    family: Literal["random", "simplex", "chain"] = Field(description="see rl.linear_mdp")
    states: int = Field(12, ge=2, description="|S|, or the length of the chain")
    actions: int = Field(4, ge=1, description="|A|; the chain has 2")
    dimension: int = Field(5, ge=1, description="d; the chain has 2 |S|")
    horizon: int = Field(5, ge=1, description="H")
    slip: float = Field(
        0.0, ge=0, lt=1, description="probability that a step along the chain fails"
    )
    seed: int = Field(
        0, ge=0, description="seed of the MDP itself, no part of any run's randomness"
    )


class Theory(Settings):
    """What is asked of the theorems, for widths of the grid and sample sizes."""

    epsilon: float = Field(0.1, gt=0, lt=1, description="epsilon, suboptimality")
    delta: float = Field(0.01, gt=0, lt=1, description="delta, failure probability")
    rho: float = Field(0.2, gt=0, lt=1, description="rho, allowed disagreement")

    @model_validator(mode="after")
    def _room(self) -> Theory:
        if self.rho <= 2 * self.delta:
            raise BadInput(
                f"rho={self.rho} must exceed 2 delta = {2 * self.delta}: either of two runs may "
                "fail with probability delta"
            )
        return self


class Estimation(Replicable):
    """R-ridge regression or R-covariance estimation alone, on a known distribution."""

    experiment: Literal["rl.estimation"]
    estimator: Literal["ridge", "covariance"] = Field(
        description="ridge: Algorithm 2; covariance: Algorithm 3 with T = 1"
    )
    points: int = Field(48, ge=1, description="K, support of the distribution of x")
    dimension: int = Field(5, ge=1, description="d")
    design_seed: int = Field(
        0, ge=0, description="seed of the distribution itself, no part of any run's randomness"
    )
    alphas: list[Positive | Literal["theory"]] = Field(
        min_length=1, description="widths of the grid; 'theory' is the paper's, from `theory`"
    )
    samples: list[Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="N; with alpha 'theory' the theorem's N too"
    )
    regularization: float = Field(0.1, gt=0, description="lambda, of the mean (ridge only)")
    not_positive: Literal["project", "raise", "keep"] = Field(
        "project", description="what to do with a rounded covariance that is not positive"
    )
    theory: Theory = Theory()

    @model_validator(mode="after")
    def _pairs(self) -> Estimation:
        if self.runs < 2:
            raise BadInput(f"runs={self.runs}: agreement is between two or more; set runs >= 2")
        return self


class _Linear(Replicable):
    mdp: MDP
    alphas: list[Positive | Literal["theory"]] = Field(
        min_length=1, description="widths of the grid; 'theory' is the paper's, from `theory`"
    )
    samples: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    regularization: float = Field(gt=0, description="lambda")
    normalization: Literal["mean", "sum"] = Field(
        "mean", description="of the regression: over n (Theorem 3.1), or as Algorithm 2 prints it"
    )
    weight_bound: float = Field(1e6, gt=0, description="bound on the weights' entries")
    theory: Theory = Theory()
    baseline: bool = Field(True, description="also without rounding")


class LSVI(_Linear):
    """R-LSVI with a core set and a generative model (Algorithm 4)."""

    experiment: Literal["rl.lsvi"]
    samples: list[Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="M, next states for each step h"
    )


class LSVIUCB(_Linear):
    """R-LSVI-UCB in episodes (Algorithm 5)."""

    experiment: Literal["rl.lsvi_ucb"]
    samples: list[Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="M, trajectories in each round"
    )
    rounds: int = Field(ge=1, description="T")
    beta: float = Field(ge=0, description="beta, scale of the bonus; 0 is greedy")
    backup: Literal["sweep", "previous"] = Field(
        "sweep", description="V of this round (as proved), or of the last one (as printed)"
    )
    cap: Literal["remaining", "horizon"] = Field(
        "remaining", description="values are at most H - h, or at most H (as printed)"
    )
    not_positive: Literal["project", "raise", "keep"] = Field(
        "project", description="what to do with a rounded covariance that is not positive"
    )


# -- PQN -------------------------------------------------------------------------------------------


class Exploration(Settings):
    """epsilon falls linearly from `start` to `end` over the first `fraction` of all steps."""

    start: float = Field(1.0, ge=0, le=1, description="start_e, epsilon at the first step")
    end: float = Field(0.01, ge=0, le=1, description="end_e, epsilon from then on")
    fraction: float = Field(0.3, gt=0, le=1, description="exploration_fraction of all steps")


class Optimizer(Settings):
    """What turns gradients into updates."""

    name: Literal["adamw", "radam"] = Field(
        "adamw", description="adamw: decoupled weight decay (the paper); radam: CleanRL's default"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled, of all parameters; 0 is the baseline"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of both moments")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")


class Quantization(Settings):
    """The fixed grid on which Q-values act and serve as targets; see rl.quantize."""

    step: Positive | None = Field(None, description="width of the grid; null: not quantized")
    range: float = Field(
        100.0, gt=0, description="largest |Q| on the grid; 1 / (1 - gamma) bounds clipped rewards"
    )
    gradient: Literal["straight_through", "targets_only"] = Field(
        "straight_through",
        description="straight_through: the loss sees the rounded output, its gradient passes; "
        "targets_only: rounding in acting and targets, the loss sees the raw output",
    )

    @model_validator(mode="after")
    def _room(self) -> Quantization:
        if self.step is not None and self.range < self.step:
            raise BadInput(
                f"range={self.range} is less than step={self.step}: the grid would be only 0; "
                "raise quantization.range to the largest return expected, or lower the step"
            )
        return self


class PlayedGames(Settings):
    """Games played after training, on seeds that training never used."""

    episodes: int = Field(16, ge=1, description="games, greedy and epsilon-greedy each")
    copies: int = Field(8, ge=1, description="games side by side")
    epsilon: float = Field(0.01, ge=0, le=1, description="of evaluation_return_mean")
    film: bool = Field(True, description="also leave episode.gif")


class PQN(Experiment):
    """PQN with quantized Q-values (Section 5.2 and Appendix E)."""

    experiment: Literal["rl.pqn"]
    seed: int = Field(0, ge=0, description="seed of the environments, and of all else unless:")
    internal_seed: int | None = Field(
        None,
        ge=0,
        description="seed of initial weights, exploration and minibatches; null: follows seed",
    )
    environment: str = Field(description="an Atari game in any usual spelling, or e.g. CartPole-v1")
    environment_settings: EnvironmentSettings = EnvironmentSettings()
    total_steps: int = Field(10_000_000, ge=1, description="total_timesteps, over all copies")
    copies: int = Field(8, ge=1, description="num_envs, over all processes")
    steps: int = Field(128, ge=1, description="num_steps of each copy between updates")
    minibatches: int = Field(4, ge=1, description="num_mini_batches of an epoch")
    epochs: int = Field(4, ge=1, description="update_epochs over each batch")
    learning_rate: Positive = Field(2.5e-4, description="at the start")
    anneal_learning_rate: bool = Field(True, description="anneal_lr: linearly to 0")
    gamma: float = Field(0.99, ge=0, lt=1, description="discount")
    q_lambda: float = Field(0.65, ge=0, le=1, description="lambda of the returns")
    max_gradient_norm: Positive = Field(10.0, description="max_grad_norm, over all parameters")
    exploration: Exploration = Exploration()
    optimizer: Optimizer = Optimizer()
    quantization: Quantization = Quantization()
    clip_rewards: bool = Field(True, description="learn from sign(r); returns are logged raw")
    bootstrap_on_truncation: bool = Field(
        False, description="value what a time limit cut off; CleanRL and the paper do not"
    )
    hidden: list[Annotated[int, Field(ge=1)]] = Field(
        default=[120, 84], min_length=1, description="layers for observations that are vectors"
    )
    arrangement: Literal["fast", "reference"] = Field(
        "fast", description="of the image network's arithmetic: the same function, see rl.arranged"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="of the image network's convolutions. bfloat16 learned worse on Breakout (-1.8 "
        "[-3.2, -.5] after 200,704 steps, -3.0 [-4.7, -1.3] in evaluation; 3 seeds): its gradients "
        "are off by a fifth. auto takes it where it is faster",
    )
    checkpoint_every: int = Field(25, ge=1, description="iterations between checkpoints")
    evaluation: PlayedGames = PlayedGames()

    @property
    def batch(self) -> int:
        """Environment steps of one iteration."""
        return self.copies * self.steps

    @property
    def iterations(self) -> int:
        """Whole batches that fit into `total_steps`; what is left over is not run."""
        return self.total_steps // self.batch

    @model_validator(mode="after")
    def _whole_batches(self) -> PQN:
        product = f"copies={self.copies} x steps={self.steps} = {self.batch}"
        if self.batch % self.minibatches:
            raise BadInput(
                f"minibatches={self.minibatches} must divide the batch, {product}; "
                "change one of the three"
            )
        if self.total_steps < self.batch:
            raise BadInput(
                f"total_steps={self.total_steps} is less than one batch, {product}; "
                "raise it, or lower copies or steps"
            )
        return self
