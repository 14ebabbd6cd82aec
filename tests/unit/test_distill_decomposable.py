"""The convex case as a study: features, constraint, weights, and the thresholds that it finds."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from reprise.distill.config import DistillDecomposable
from reprise.distill.decomposable.convex import (
    ROUNDING,
    chance_of_hull,
    equations,
    feasible,
    fit_weights,
)
from reprise.distill.decomposable.features import Features, losses_of, synthetic
from reprise.distill.decomposable.study import Cells, counts
from reprise.launch.config import ConfigError
from reprise.launch.run import execute

GAMMA = 0.9
SETTINGS = {"experiment": "distill.decomposable", "dimensions": [2], "data_size": 600}


def settings(**changes):
    return DistillDecomposable.model_validate({**SETTINGS, **changes})


@pytest.fixture
def draw():
    return np.random.default_rng(3)


@pytest.mark.parametrize("kind", ["linear", "rbf", "mlp"])
def test_losses_are_bellman_losses_with_the_maximum_over_listed_actions(kind, draw):
    steps = synthetic(12, 3, 4, draw)
    made = Features.drawn(kind, 3, 2, 4, draw)
    u = draw.standard_normal((5, 3))
    full = made.linear(steps, GAMMA, False)
    alphas = (u[:, :2] @ made.action.T).max(1)
    decomposed = losses_of(full, u, alphas, GAMMA)
    joint = made.joint_losses(steps, u, GAMMA)
    ends = losses_of(made.linear(steps, GAMMA, True), u, np.zeros(5), GAMMA)

    def shaped(x):
        if kind == "rbf":
            return math.sqrt(2) * np.cos(x + made.shift)
        return np.tanh(x) if kind == "mlp" else x

    def apart(s, a):
        return shaped(s @ made.weights) + made.action[a]

    def together(s, a):
        if kind == "linear":
            return s @ made.mixing[a]
        return shaped(s @ made.weights + made.action[a])

    for i in range(12):
        for j in range(5):
            v, scale = u[j, :2], -u[j, 2]
            for feature, found in ((apart, decomposed), (together, joint)):
                here = v @ feature(steps.states[i], steps.actions[i]) - scale * steps.rewards[i]
                best = max(v @ feature(steps.following[i], a) for a in range(4))
                assert found[i, j] == pytest.approx((here - GAMMA * best) ** 2, rel=1e-10)
            here = v @ apart(steps.states[i], steps.actions[i]) - scale * steps.rewards[i]
            assert ends[i, j] == pytest.approx(here**2, rel=1e-10)


def test_a_direction_that_is_only_rounding_is_no_equation(draw):
    first, second = draw.standard_normal((2, 500))
    exact = first + 0.02 * second
    rounded = exact.astype(np.float32).astype(np.float64)
    assert 0 < np.abs(rounded - exact).max() < ROUNDING
    constant = np.ones(500)
    found = equations(np.column_stack([first, second, rounded, constant]))
    assert found.shape == (500, 2)
    assert np.abs(found.mean(0)).max() < 1e-12
    assert np.abs(found.T @ found / 500 - np.eye(2)).max() < 1e-9
    moved = exact + 1e-3 * draw.standard_normal(500)  # no rounding: a moment of its own
    assert equations(np.column_stack([first, second, moved])).shape == (500, 3)


def test_the_constraint_can_be_met_just_where_the_mean_is_in_the_hull():
    corners = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert feasible(corners) and not feasible(corners + np.array([1.5, 0.0]))
    assert not feasible(corners[:2])


def test_wendels_chance(draw):
    # By counting: N points on a line are on both sides of 0 but in 2 of 2^N sign patterns.
    for count in (2, 3, 7):
        assert chance_of_hull(count, 1) == pytest.approx(1 - 2 * 0.5**count)
    assert chance_of_hull(5, 5) == 0 and chance_of_hull(10, 5) == 0.5
    exact = Fraction(sum(math.comb(39, i) for i in range(20, 40)), 2**39)
    assert chance_of_hull(40, 20) == pytest.approx(float(exact), rel=1e-12)
    assert chance_of_hull(5000, 4) == pytest.approx(1)  # larger than any float's exponent
    shares = np.mean([feasible(draw.standard_normal((8, 3))) for _ in range(400)])
    assert abs(shares - chance_of_hull(8, 3)) < 4 * math.sqrt(0.25 / 400)


def test_weights_meet_losses_and_constraint_to_rounding(draw):
    steps = synthetic(800, 3, 3, draw)
    made = Features.drawn("rbf", 3, 3, 3, draw)
    full = made.linear(steps, GAMMA, False)
    u = draw.standard_normal((10, 4)) / 2
    losses = losses_of(full, u, (u[:, :3] @ made.action.T).max(1), GAMMA)
    candidates = draw.permutation(800)[:120]
    points = equations(full.moments)
    found = fit_weights(losses, candidates, points)
    assert found.min() >= 0 and found.sum() == pytest.approx(1, abs=1e-13)
    assert np.abs(points[candidates].T @ found).max() < 1e-12
    assert np.abs(found @ losses[candidates] / losses.mean(0) - 1).max() < 1e-12
    free = fit_weights(losses, candidates, None)
    assert np.abs(points[candidates].T @ free).max() > 1e-3  # nothing asks for it
    far = np.argsort(points[:, 0])[-120:]
    assert fit_weights(losses, far, points) is None


def test_numbers_of_predictors_are_in_order_and_named_by_the_threshold():
    named = counts(settings(multiples=[0.5, 4]), 4)
    assert named == [
        ("0.5 t", 8), ("t - q", 10), ("t - 1", 14), ("t", 15), ("t + q", 20), ("4 t", 60),
    ]  # fmt: skip
    assert counts(settings(multiples=[]), 1)[0] == ("t - q", 1)


def test_the_study_finds_the_thresholds(tmp_path):
    config = {**SETTINGS, "features": ["rbf"], "multiples": [4], "trials": 3, "hull_draws": 20}
    execute(settings_file(tmp_path, config), out=tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    cells = {cell["arm"]: cell for cell in summary["cells"]}
    assert list(cells) == ["decomposable", "unconstrained", "joint", "terminated"]
    for arm in ("decomposable", "terminated"):
        assert cells[arm]["threshold"] == cells[arm]["k_needed"] == 6
        errors = {one["label"]: one for one in cells[arm]["at"]}
        assert errors["t"]["held_out_relative_error_max"] < 1e-9
        assert errors["t - 1"]["held_out_relative_error"] > 1e-4
        assert errors["t"]["relative_gap_max"] < 1e-7 and errors["t"]["units"] == 3
    # Without the constraint q numbers more are unknown; joint features have no such number.
    assert cells["unconstrained"]["k_needed"] > 6 and cells["joint"]["k_needed"] is None
    assert cells["joint"]["at"][-1]["held_out_relative_error"] > 1e-4
    shares = [one["share"] for one in summary["hull"]]
    assert shares[0] == 0 and shares[-1] == 1 and sorted(shares) == shares
    text = (tmp_path / "run" / "table.md").read_text()
    assert "| rbf | 2 | joint | 6 | none |" in text and (tmp_path / "run" / "figure.png").exists()


def settings_file(folder, config):
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    return file


def test_what_cannot_be_studied_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"room=4 with dimension 8: .* of 300 transitions"):
        Cells(settings(dimensions=[8], room=4.0, data_size=300, arms=["joint"]))
    file = settings_file(tmp_path, {**SETTINGS, "features": ["wavelet"]})
    with pytest.raises(ConfigError, match="wavelet"):
        execute(file, out=tmp_path / "run")
