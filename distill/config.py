"""Settings of the distillation experiments: what the paper's symbols are called here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from reprise.rollout.errors import BadInput
from reprise.rollout.run.experiment import Experiment
from reprise.rollout.run.settings import Settings

Count = Annotated[int, Field(ge=1)]
REGRESSION_DATA = ("synthetic", "diabetes", "boston", "california", "wine-red", "wine-white")


# -- regression ------------------------------------------------------------------------------------


class SyntheticData(Settings):
    """y = w . x + noise with Gaussian features, used where `data.name` is synthetic."""

    dimension: int = Field(10, ge=1, description="d, number of features")
    points: int = Field(1250, ge=4, description="points in all, those for testing included")
    noise: float = Field(1.0, ge=0, description="standard deviation of the noise on y")
    condition: float = Field(
        1.0, ge=1, description="condition number of the features' covariance; 1: isotropic"
    )


class RegressionData(Settings):
    """A regression data set: numbers only, one column of them the target."""

    name: str = Field(
        description="synthetic, diabetes, boston, california, wine-red, wine-white, or the path of "
        "a CSV file with a header"
    )
    target: str | None = Field(None, description="the column to predict, of a CSV file")
    test_share: float = Field(0.2, gt=0, lt=1, description="share held out, drawn for each trial")
    synthetic: SyntheticData = SyntheticData()

    @model_validator(mode="after")
    def _a_known_name_or_a_file_with_its_target(self) -> RegressionData:
        is_file = self.name.lower().endswith(".csv")
        if not is_file and self.name not in REGRESSION_DATA:
            raise BadInput(
                f"name={self.name!r}: should be one of {', '.join(REGRESSION_DATA)}, or the path "
                "of a .csv file"
            )
        if is_file != (self.target is not None):
            raise BadInput(
                f"name={self.name!r}, target={self.target!r}: a CSV file needs a target, the "
                "column to predict; the other data sets have theirs"
            )
        return self


class Domain(Settings):
    """Where the distilled points may lie: bounded by construction, not by a penalty."""

    shape: Literal["ball", "box", "none"] = Field(
        "ball", description="|z| <= B, |z_i| <= b_i for each coordinate i, or unbounded"
    )
    margin: float = Field(
        1.1,
        ge=1.01,
        description="B and b_i, as a multiple of the largest of the training points; tighter, "
        "optimizers crawl along the edge",
    )


Route = Literal["sampled", "sampled_gauss_newton", "moments", "closed_form"]


class DistillRegression(Experiment):
    """Distilling a regression data set by matching the losses of linear regressors."""

    experiment: Literal["distill.regression"]
    seed: int = Field(0, ge=0, description="seed of the data streams: splits, starting subsets")
    internal_seed: int = Field(
        0, ge=0, description="seed of the internal streams, which replicas share: the regressors"
    )
    data: RegressionData
    study: Literal["threshold", "lower_bound"] = Field(
        "threshold",
        description="distill and compare with subsets; or show what no algorithm could do with "
        "fewer points (`sizes`) or regressors (`regressors`)",
    )
    routes: list[Route] = Field(
        ["sampled", "closed_form"],
        min_length=1,
        description="sampled: L-BFGS on the losses of k regressors (Algorithm 1); "
        "sampled_gauss_newton: the same objective by Gauss-Newton; moments: Gauss-Newton on "
        "Z^T Z / N itself; closed_form: its exact solution",
    )
    sizes: list[Count] = Field(min_length=1, description="N_syn, points of the distilled set")
    regressors: list[Count] = Field(min_length=1, description="k, regressors whose losses match")
    trials: int = Field(10, ge=1, description="splits, starting subsets and draws of regressors")
    held_out: int = Field(1000, ge=1, description="regressors never used, for the error")
    intercept: bool = Field(False, description="models with an intercept: z = (x, 1, y)")
    standardize: bool = Field(
        True, description="centre and scale each column by the training points' statistics"
    )
    domain: Domain = Domain()
    max_iterations: int = Field(20000, ge=1, description="of L-BFGS; Gauss-Newton: at most 200")

    @model_validator(mode="after")
    def _the_lower_bound_is_shown_without_intercept(self) -> DistillRegression:
        if self.study == "lower_bound" and self.intercept:
            raise BadInput("study=lower_bound with intercept=true: set intercept to false")
        if self.study == "lower_bound" and not self.routes[0].startswith("sampled"):
            raise BadInput(
                f"study=lower_bound with routes={self.routes}: the first has to be sampled or "
                "sampled_gauss_newton, which see nothing but losses"
            )
        return self


# -- offline reinforcement learning ----------------------------------------------------------------


class Downstream(Settings):
    """The learner that judges a set: neural fitted Q-iteration, the same for every method."""

    gamma: float = Field(0.98, ge=0, lt=1, description="discount, also of the Bellman losses")
    backups: int = Field(60, ge=1, description="rounds of value backups")
    steps: int = Field(25, ge=1, description="Adam steps of a backup, warm started")
    learning_rate: float = Field(3e-3, gt=0, description="of Adam; falls linearly to a tenth")
    weight_decay: float = Field(0.3, ge=0, description="decoupled weight decay")
    units: int = Field(64, ge=1, description="H, units of a hidden layer")
    depth: int = Field(1, ge=1, description="hidden layers; 1 is the paper's 2-layer network")
    activation: Literal["tanh", "relu"] = Field("tanh", description="of the hidden layers")
    ensemble: int = Field(3, ge=1, description="networks whose mean acts and gives the targets")
    average: float = Field(
        0.9, ge=0, lt=1, description="Polyak: weights averaged over backups, with this rate"
    )
    batch_size: int = Field(256, ge=1, description="minibatch, where the set is larger")


class Architecture(Settings):
    """A downstream network never used in distilling."""

    units: int = Field(64, ge=1, description="H")
    depth: int = Field(1, ge=1, description="hidden layers")
    activation: Literal["tanh", "relu"] = Field("tanh", description="of the hidden layers")


class Distillation(Settings):
    """How sets are distilled: what is matched, and what of the transitions is optimized."""

    match: Literal["losses", "backups"] = Field(
        "losses",
        description="losses: Bellman losses of predictors (Algorithm 2); backups: regressions of "
        "the fitted Q-function's backup, with `predictors` feature maps (distill.backups)",
    )
    ridge: float = Field(1e-3, gt=0, description="backups: rho, of the regression on the points")
    rows: int = Field(200, ge=1, description="backups: training states in a step")
    value_weight: float = Field(
        1.0, ge=0, description="backups: beta; states are drawn by exp(beta V), V standardized"
    )
    source: Literal["random", "iterates"] = Field(
        "random",
        description="random: networks and lambda ~ N(0, 1) (the paper's); iterates: drawn around "
        "fitted Q-iterates of the training set",
    )
    spread: tuple[float, float] = Field(
        (0.03, 1.0), description="iterates: smallest and largest distance from an iterate"
    )
    iterate_ensemble: int = Field(
        2, ge=1, description="iterates, backups: networks of each seed's own fitted Q-function"
    )
    units: int = Field(64, ge=1, description="H of the predictors or feature maps")
    gains: list[Annotated[float, Field(gt=0)]] = Field(
        [0.5, 1.0, 1.5], min_length=1, description="gains of their hidden layers, in turn"
    )
    next_states: Literal["free", "dynamics"] = Field(
        "free",
        description="free: displacements s' - s are optimized too; dynamics: they follow the "
        "states by a quadratic model of the training set",
    )
    loss: Literal["huber", "squared"] = Field(
        "huber",
        description="losses: squared: sum_j (L_syn_j - L_train_j)^2, as Algorithm 2 prints it; "
        "huber: Huber's function of the relative errors L_syn_j / L_train_j - 1",
    )
    learn_rewards: bool = Field(False, description="optimize rewards too")
    start: Literal["stratified", "medoids"] = Field(
        "stratified",
        description="stratified: a random subset; medoids: the transitions next to k-means "
        "centres, clustered apart by action and end",
    )
    terminal_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="terminated share of the points; null: the training set's"
    )
    candidates: int = Field(
        0,
        ge=0,
        description="backups: choose among so many starting subsets, each as it is and distilled, "
        "by how well a learner's greedy actions agree with Q's; 0: distill one, no choice",
    )
    steps: int = Field(100, ge=1, description="Adam steps")
    minibatch: int = Field(25, ge=1, description="predictors in a step")
    fresh_minibatch: int = Field(10, ge=1, description="predictors in a step, if drawn anew")
    fresh_rows: int = Field(256, ge=1, description="training rows in a step, if drawn anew")
    learning_rate: float = Field(0.02, gt=0, description="in standard deviations a step")


Method = Literal["random", "stratified", "balanced", "leverage", "kmeans", "start", "cloning"]
OfflineEnvironment = Literal["CartPole-v1", "MountainCar-v0", "Acrobot-v1"]


class DistillOfflineRL(Experiment):
    """Distilling offline RL data by matching Bellman losses of predictors (Algorithm 2)."""

    experiment: Literal["distill.offline_rl"]
    seed: int = Field(0, ge=0, description="seed of the streams of everything but the data sets")
    environment: OfflineEnvironment = Field("CartPole-v1", description="Gymnasium's name")
    data: list[Literal["replay", "mixed", "random"]] = Field(
        ["replay", "mixed", "random"], min_length=1, description="training sets; see distill.data"
    )
    data_size: int = Field(4000, ge=20, description="n, transitions of a training set")
    data_seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0],
        min_length=1,
        description="a training set of each kind for each of these seeds; intervals of what is "
        "averaged over sets are over sets",
    )
    sizes: list[Annotated[int, Field(ge=2)]] = Field(
        [50, 100, 200], min_length=1, description="N, points of a distilled set"
    )
    predictors: list[Count | Literal["fresh"]] = Field(
        [20, 100, 300, "fresh"],
        min_length=1,
        description="K, predictors whose losses (or feature maps whose regressions) are matched; "
        "fresh: others in every step",
    )
    methods: list[Method] = Field(
        ["random", "stratified", "balanced", "leverage", "kmeans", "start", "cloning"],
        description="baselines beside the full data; balanced: random with the distilled sets' "
        "terminated share; start: what distillation starts from",
    )
    seeds: int = Field(20, ge=2, description="subsets, predictors and learners of each cell")
    distillation: Distillation = Distillation()
    downstream: Downstream = Downstream()
    transfer: list[Architecture] = Field(
        default_factory=list,
        description="further downstream networks, on the sets of the first size and data seed: "
        "stratified, start and distilled with the last of `predictors`",
    )
    d3rlpy_steps: int = Field(
        0, ge=0, description="gradient steps of d3rlpy's DQN on the first cell; 0: without it"
    )
    episodes: int = Field(10, ge=1, description="episodes behind a return")
    held_out: int = Field(100, ge=1, description="predictors never used, for the Bellman error")

    @model_validator(mode="after")
    def _each_training_set_once(self) -> DistillOfflineRL:
        for key in ("data", "data_seeds"):
            given = getattr(self, key)
            if len(set(given)) < len(given):
                raise BadInput(f"{key}={given}: each may be given once; remove the repeated")
        if self.distillation.match == "backups" and self.distillation.loss == "squared":
            raise BadInput(
                "distillation.loss=squared with distillation.match=backups: it says how Bellman "
                "losses differ; set distillation.match to losses, or remove distillation.loss"
            )
        return self


# -- the decomposable case -------------------------------------------------------------------------

Features = Literal["linear", "rbf", "mlp"]
Arm = Literal["decomposable", "unconstrained", "joint", "terminated"]


class DistillDecomposable(Experiment):
    """The convex case of Algorithm 2: how many predictors a decomposable feature map needs."""

    experiment: Literal["distill.decomposable"]
    seed: int = Field(0, ge=0, description="seed of the systems, features, predictors, candidates")
    environment: Literal["synthetic", "CartPole-v1", "MountainCar-v0", "Acrobot-v1"] = Field(
        "synthetic", description="a random system for each trial, or Gymnasium's name"
    )
    data: Literal["replay", "mixed", "random"] = Field(
        "random", description="training set of an environment; see distill.data"
    )
    data_size: int = Field(4000, ge=20, description="n, transitions of a training set")
    data_seed: int = Field(0, ge=0, description="seed of an environment's training set")
    actions: int = Field(3, ge=2, description="A, of a synthetic system")
    gamma: float = Field(0.9, ge=0, lt=1, description="discount")
    features: list[Features] = Field(["linear", "rbf", "mlp"], min_length=1, description="phi")
    dimensions: list[Count] = Field(
        [2, 4, 8], min_length=1, description="d of phi; q = d + 1, threshold t = q(q+1)/2"
    )
    arms: list[Arm] = Field(
        ["decomposable", "unconstrained", "joint", "terminated"],
        min_length=1,
        description="decomposable: phi1(s) + phi2(a) under the moment constraint (Theorem 4.4); "
        "unconstrained: without it; joint: phi(s, a) that does not decompose; terminated: "
        "decomposable, terminated transitions",
    )
    multiples: list[Annotated[float, Field(gt=0)]] = Field(
        [0.5, 0.75, 2.0, 4.0],
        description="k over t, beside t - q, t - 1, t and t + q; rounded up",
    )
    room: float = Field(
        4.0, ge=1, description="candidate transitions, over the equations t + q + moments"
    )
    trials: int = Field(5, ge=2, description="draws of everything")
    held_out: int = Field(500, ge=1, description="predictors never used, for the error")
    tolerance: float = Field(
        1e-8, gt=0, description="held-out error that counts as matched, in every trial"
    )
    hull: list[Annotated[float, Field(ge=1)]] = Field(
        [1.0, 1.5, 2.0, 3.0, 4.0, 64.0],
        min_length=1,
        description="candidates over equations, where feasibility of the constraint is counted",
    )
    hull_draws: int = Field(50, ge=2, description="random candidate sets behind that share")
