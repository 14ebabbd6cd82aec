"""R-ridge and R-covariance alone: what they converge to, and the experiment."""

import json

import numpy as np
import pytest

from reprise.launch.run import execute
from reprise.rl.replicable.estimation import Design
from reprise.rl.replicable.regression import replicable_covariance, round_covariance

pytestmark = pytest.mark.portable

DESIGN = Design.draw(points=12, dimension=3, seed=1)


def test_the_design_is_bounded_and_its_moments_are_those_of_samples():
    assert np.linalg.norm(DESIGN.points, axis=1).max() <= 1 + 1e-12
    assert np.linalg.norm(DESIGN.theta) == pytest.approx(1)
    # One by one: x of the design, y of the two labels, means of x x^T and x y.
    generator = np.random.default_rng(0)
    rows = generator.choice(12, 200_000, p=DESIGN.probabilities)
    x = DESIGN.points[rows]
    y = np.where(generator.random(len(x)) < (1 + x @ DESIGN.theta) / 2, 1.0, -1.0)
    gram, moment = DESIGN.moments(200_000, np.random.default_rng(1))
    assert gram == pytest.approx(x.T @ x / len(x), abs=0.01)
    assert moment == pytest.approx(x.T @ y / len(x), abs=0.01)
    assert gram == pytest.approx(DESIGN.covariance, abs=0.01)


def test_ridge_converges_to_the_optimum_of_its_objective():
    best = DESIGN.optimum(0.1)
    gram, moment = DESIGN.moments(10**9, np.random.default_rng(0))
    assert np.linalg.solve(gram + 0.1 * np.eye(3), moment) == pytest.approx(best, abs=1e-3)
    # E (theta.x - y)^2 + lambda |theta|^2 has no slope there.
    slope = DESIGN.covariance @ (best - DESIGN.theta) + 0.1 * best
    assert np.abs(slope).max() < 1e-12


@pytest.mark.parametrize("estimator", ["ridge", "covariance"])
def test_the_experiment(estimator, tmp_path):
    changes = ["internal_seeds=6", "runs=6", "alphas=[0.3, theory]", "samples=[30, 1000000]"]
    execute(f"paper/replicable_{estimator}", changes, tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    few, many, *_, theory = summary["cells"]
    assert [c["samples_from"] for c in summary["cells"]] == ["config"] * 4 + ["theory"]
    assert theory["samples"] == summary["theory"]["samples"] > 10**10
    assert few["agreement"] < many["agreement"] and theory["agreement"] == 1
    assert theory["agreement_ci95"] == [pytest.approx(0.025 ** (1 / 6)), 1.0]
    assert theory["error_max"] < 0.1 < few["error"] and theory["within_epsilon"] == 1
    for cell in summary["cells"]:
        # The predicted probability is of the same pairs, averaged over where the grid may lie.
        assert cell["product"] == pytest.approx(cell["agreement"], abs=0.35)
        assert cell["bound"] <= cell["product"] + 1e-12


def test_the_experiment_rounds_as_algorithm_3_does():
    data = DESIGN.points[np.random.default_rng(0).integers(0, 12, (1, 50))]
    whole = replicable_covariance(data, np.random.default_rng(5), alpha=0.2)
    gram = data[0].T @ data[0] / 50
    parts = round_covariance(gram[None], np.random.default_rng(5), 0.2, 1.0, "project")
    assert np.array_equal(parts[0], whole)


def test_one_run_agrees_with_none(tmp_path):
    with pytest.raises(ValueError, match="runs=1"):
        execute("paper/replicable_ridge", ["runs=1"], dry_run=True)
