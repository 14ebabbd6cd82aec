"""Optimal designs: their theory holds to the stated gap, and bad input says what to do."""

import numpy as np
import pytest

from reprise.alignment.theory.design import (
    centre,
    conditional_designs,
    covariances,
    direct_design,
    g_optimal_design,
    preferential_design,
    worst_variance,
)

pytestmark = pytest.mark.portable


def sphere(seed, *shape):
    phi = np.random.default_rng(seed).normal(size=shape)
    return phi / np.linalg.norm(phi, axis=-1, keepdims=True)


def variances(points, weights):
    """g_i straight from the definition."""
    moment = sum(w * np.outer(p, p) for w, p in zip(weights, points, strict=True))
    return np.array([p @ np.linalg.solve(moment, p) for p in points])


@pytest.mark.parametrize("tolerance", [0.1, 1e-3, 1e-8])
@pytest.mark.parametrize(("points", "d"), [(3, 3), (40, 3), (500, 8), (2000, 20)])
def test_kiefer_wolfowitz_to_the_stated_gap(points, d, tolerance):
    features = sphere(points, points, d) * np.linspace(0.1, 1, points)[:, None]
    design = g_optimal_design(features, tolerance)
    g = variances(features, design.weights)
    assert design.weights.min() >= 0
    assert design.weights.sum() == pytest.approx(1, abs=1e-12)
    # d is the least possible; equality holds where there is weight.
    assert d * (1 - 1e-9) <= g.max() <= d * (1 + tolerance)
    assert design.value == pytest.approx(g.max(), rel=1e-8)
    assert design.gap == pytest.approx(g.max() / d - 1, abs=1e-8)
    assert design.weights @ g == pytest.approx(d)
    assert len(design.support) <= d * (d + 1) // 2 + 1


def test_a_design_worked_out_by_hand():
    # Weight w on each of (+-1, 0), v on (0, 2): M = diag(w, 4 v), d = 2 gives total 1/2 each; a
    # short point gets none.
    features = np.array([[1.0, 0.0], [0.0, 2.0], [0.3, 0.3]])
    design = g_optimal_design(features, 1e-9)
    np.testing.assert_allclose(design.weights, [0.5, 0.5, 0], atol=1e-8)
    assert design.support.tolist() == [0, 1]


def test_designs_do_not_change_under_linear_maps():
    features = sphere(1, 60, 4)
    map_ = np.random.default_rng(0).normal(size=(4, 4)) @ np.diag([1, 10, 1e3, 1e-4])
    a, b = g_optimal_design(features, 1e-9), g_optimal_design(features @ map_, 1e-9)
    # Points on a sphere admit many weights, but only one M.
    moments = [(features * design.weights[:, None]).T @ features for design in (a, b)]
    np.testing.assert_allclose(*moments, atol=1e-5)


@pytest.mark.parametrize(("points", "d"), [(5, 2), (50, 4), (300, 10)])
def test_centred_design_has_value_d(points, d):
    features = sphere(points + d, points, d) + 3  # far from the origin: centring matters
    design = g_optimal_design(features, 1e-4, centred=True)
    mean = design.weights @ features
    shifted = features - mean
    covariance = (shifted * design.weights[:, None]).T @ shifted
    values = np.einsum("ni,ij,nj->n", shifted, np.linalg.inv(covariance), shifted)
    assert d * (1 - 1e-9) <= values.max() <= d * (1 + 1e-4)
    assert design.value == pytest.approx(values.max(), rel=1e-6)


def test_many_actions_use_few_of_them_and_agree_with_one_batch():
    features = sphere(3, 20_000, 6)
    design = g_optimal_design(features, 0.01)
    assert design.value <= 6 * 1.01
    assert len(design.support) <= 22
    # The optimum of the determinant is unique, so the growing set must find that of the whole.
    small = features[:300]
    moment = [
        (small * g_optimal_design(f, 1e-10).weights[order, None]).T @ small
        for f, order in ((small, slice(None)), (small[::-1], slice(None, None, -1)))
    ]
    np.testing.assert_allclose(moment[0], moment[1], atol=1e-4)


def test_conditional_designs_of_many_prompts_are_those_of_each():
    features = sphere(5, 30, 9, 4)
    together = conditional_designs(features, 1e-8)
    for phi, weights in zip(features, together, strict=True):
        alone = g_optimal_design(phi, 1e-8, centred=True).weights
        for w in (weights, alone):
            assert w.sum() == pytest.approx(1)
        moments = [(phi - w @ phi).T @ np.diag(w) @ (phi - w @ phi) for w in (weights, alone)]
        np.testing.assert_allclose(moments[0], moments[1], atol=1e-5)


def test_conditional_designs_of_responses_that_span_less():
    features = sphere(6, 4, 5, 6)
    features[1, 3:] = features[1, 0]  # three different responses: rank 2 around their mean
    features[2] = features[2, :1]  # all alike
    weights = conditional_designs(features, 1e-6)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    centred = centre(features, weights)
    for x, rank in enumerate([4, 2, 0, 4]):
        variance = covariances(centred, weights)[x]
        inverse = np.linalg.pinv(variance, rcond=1e-9, hermitian=True)
        worst = np.einsum("ai,ij,aj->a", centred[x], inverse, centred[x]).max()
        assert worst == pytest.approx(rank, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("prompts", "responses", "d"), [(1, 6, 3), (20, 3, 5), (60, 10, 4)])
def test_preferential_design_is_below_its_bound(prompts, responses, d, seed):
    features = sphere(seed, prompts, responses, d)
    design = preferential_design(features, 1e-4)
    value = worst_variance(design.centred, design.response_weights, design.prompt_weights)
    assert design.value == pytest.approx(value)
    assert d * (1 - 1e-6) <= value <= design.bound * 1.001
    assert design.bound <= d**2
    assert design.joint.sum() == pytest.approx(1)


def test_two_responses_reach_d_itself():
    # One direction a prompt: V_x = phi^g phi^g', and the preferential design is the global one.
    design = preferential_design(sphere(7, 50, 2, 4), 1e-6)
    assert design.bound == 4
    assert design.value == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_direct_design_is_certified_and_no_worse(seed):
    d = 4
    plain = preferential_design(sphere(seed, 40, 8, d), 1e-4)
    problem = plain.centred, plain.response_weights
    direct = direct_design(*problem, plain.prompt_weights, tolerance=0.02)
    assert direct.value == pytest.approx(worst_variance(*problem, direct.prompt_weights))
    assert direct.lower <= direct.value <= 1.02 * direct.lower
    assert d * (1 - 1e-9) <= direct.value <= plain.value
    others = np.random.default_rng(seed).dirichlet(np.ones(40), size=300)
    assert all(worst_variance(*problem, mu) >= direct.lower for mu in others)


@pytest.mark.parametrize("d", [2, 4, 8])
def test_even_the_best_prompts_can_need_d_squared(d):
    """Remark 4.3 asks whether Eq. 7 could be O(d). Not with pi^cg as it is: one long response each.

    The conditional design gives the long one 1 / (d + 1), so that V(x) is about e e' / d in its
    direction, and d prompts have to share the d axes.
    """
    features = 1e-3 * sphere(0, d, d + 3, d)
    features[:, 0] = np.eye(d)
    plain = preferential_design(features, 1e-4)
    direct = direct_design(
        plain.centred, plain.response_weights, plain.prompt_weights, tolerance=0.02
    )
    assert direct.lower > 0.95 * d**2
    assert plain.value <= plain.bound * 1.001


def test_thousands_of_prompts():
    design = preferential_design(sphere(8, 3000, 6, 5), 0.05)
    assert design.value <= 25 * 1.1
    assert (design.prompt_weights > 0).sum() <= 16


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.zeros((0, 3)), "empty support"),
        (np.zeros((4, 3, 2)), r"\(points, d\)"),
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.ones((5, 2)), "span only 1 of 2.*project"),
        (np.zeros((5, 2)), "span only 0 of 2"),
    ],
)
def test_bad_features_say_what_to_do(features, words):
    with pytest.raises(ValueError, match=words):
        g_optimal_design(features)


def test_affinely_dependent_points_have_no_centred_design():
    points = np.column_stack([sphere(9, 20, 2), np.ones(20)])
    g_optimal_design(points)
    with pytest.raises(ValueError, match="span only 3 of 4"):
        g_optimal_design(points, centred=True)


def test_preferences_that_say_nothing_of_a_direction_have_no_design():
    features = sphere(10, 6, 5, 3)
    features[:, :, 2] = 0.5  # every response alike in it
    with pytest.raises(ValueError, match="span only 2 of 3"):
        preferential_design(features)


@pytest.mark.parametrize("tolerance", [0, -1, 1.5])
def test_a_gap_is_a_share(tolerance):
    with pytest.raises(ValueError, match="between 0 and 1"):
        g_optimal_design(np.eye(3), tolerance)
