"""Settings of the distillation experiments: what the paper's symbols are called here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rollout.settings import Settings

Count = Annotated[int, Field(ge=1)]


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
    target: str | None = Field(None, description="the column to predict; a CSV file needs it")
    test_share: float = Field(0.2, gt=0, lt=1, description="share held out, drawn for each trial")
    synthetic: SyntheticData = SyntheticData()

    @model_validator(mode="after")
    def _a_file_has_a_target(self) -> RegressionData:
        if self.name.endswith(".csv") and self.target is None:
            raise ValueError(
                f"name={self.name!r} is a file: name the column to predict as target=..."
            )
        return self


class Domain(Settings):
    """Where the distilled points may lie: bounded by construction, not by a penalty."""

    shape: Literal["ball", "box", "none"] = Field(
        "ball", description="|z| <= B, |z_i| <= b_i for each coordinate i, or unbounded"
    )
    margin: float = Field(
        1.1, gt=1, description="B and b_i, as a multiple of the largest of the training points"
    )


Route = Literal["sampled", "sampled_gauss_newton", "moments", "closed_form"]


class DistillRegression(Settings):
    """Distilling a regression data set by matching the losses of linear regressors."""

    experiment: Literal["distill.regression"]
    seed: int = Field(0, ge=0, description="seed of the data streams: splits, starting subsets")
    internal_seed: int = Field(
        0, ge=0, description="seed of the internal streams, which replicas share: the regressors"
    )
    needs: list[str] = Field(
        default_factory=list, description="configs whose runs this one uses; made first if missing"
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


# -- offline reinforcement learning ----------------------------------------------------------------
