"""Distilling regression data: identities that hold to rounding, and bounds that nothing beats."""

import numpy as np
import pytest

from reprise.distill.supervised import domains
from reprise.distill.supervised.baselines import (
    least_squares,
    leverage_scores,
    leverage_subset,
    mean_squared_error,
)
from reprise.distill.supervised.closed_form import (
    UnequalNorms,
    closed_form,
    closed_form_centred,
    equal_rows,
)
from reprise.distill.supervised.lower_bound import SPREAD, twins
from reprise.distill.supervised.regression import (
    BelowThreshold,
    Matching,
    distill,
    draw_regressors,
    loss_rows,
    losses,
    moment_rows,
    second_moment,
    threshold,
)
from reprise.distill.supervised.study import relative_error, worst_relative_error

pytestmark = pytest.mark.portable


@pytest.fixture
def draw():
    return np.random.default_rng(7)


def correlated(draw, count, dimension, intercept=False):
    """Points (x, [1,] y), features mixed by a random matrix, y linear in them."""
    features = draw.standard_normal((count, dimension)) @ draw.standard_normal((dimension,) * 2)
    target = features @ draw.standard_normal(dimension) + draw.standard_normal(count)
    if intercept:
        features, target = features + 3.0, target - 5.0
        return np.column_stack([features, np.ones(count), target])
    return np.column_stack([features, target])


def test_a_loss_is_a_quadratic_form_of_the_second_moment(draw):
    points, regressors = draw.standard_normal((7, 4)), draw_regressors(5, 4, draw)
    by_hand = [sum(sum(r[i] * z[i] for i in range(4)) ** 2 for z in points) / 7 for r in regressors]
    moment = second_moment(points)
    assert losses(moment, regressors) == pytest.approx(by_hand, rel=1e-13)
    upper = moment[np.triu_indices(4)]
    assert loss_rows(regressors) @ upper == pytest.approx(by_hand, rel=1e-13)
    assert np.linalg.norm(moment_rows(4) @ upper) == pytest.approx(np.linalg.norm(moment))


def test_regressors_are_normal_with_variance_one_over_q(draw):
    regressors = draw_regressors(200_000, 5, draw)
    assert np.abs(regressors.T @ regressors / 200_000 - np.eye(5) / 5).max() < 3e-3


@pytest.mark.parametrize("width", [2, 5, 11])
def test_the_threshold_is_where_losses_determine_the_moments(width, draw):
    rows = loss_rows(draw_regressors(width**2, width, draw))
    count = threshold(width)
    assert np.linalg.matrix_rank(rows[: count - 1]) == count - 1 < width * (width + 1) // 2
    assert np.linalg.matrix_rank(rows) == np.linalg.matrix_rank(rows[:count]) == count
    # With an intercept one entry of M, that of 1 and 1, is known.
    place = [(a, b) for a in range(width) for b in range(a, width)].index((width - 2,) * 2)
    unknown = np.delete(rows, place, axis=1)
    least = threshold(width, intercept=True)
    assert np.linalg.matrix_rank(unknown[:least]) == unknown.shape[1] == least == count - 1


# -- closed form -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "size"), [(1, 1), (2, 3), (4, 4), (11, 11), (11, 20), (12, 101), (3, 500)]
)
def test_the_closed_form_has_the_moments_and_one_norm(width, size, draw):
    mixed = draw.standard_normal((50, width)) * np.geomspace(1, 1e3, width)
    moment = second_moment(mixed)
    points = closed_form(moment, size, draw)
    assert points.shape == (size, width)
    assert np.abs(second_moment(points) - moment).max() <= 1e-12 * np.abs(moment).max()
    norms = np.square(points).sum(1)
    assert np.abs(norms / np.trace(moment) - 1).max() <= 1e-12
    # The root mean square norm of the original points: in every ball that holds them.
    assert np.sqrt(norms.max()) <= np.sqrt(np.square(mixed).sum(1).max())


def test_turning_rows_to_one_norm_keeps_their_moments(draw):
    points = draw.standard_normal((40, 6)) * np.geomspace(1, 100, 40)[:, None]
    turned = equal_rows(points)
    assert np.ptp(np.square(turned).sum(1)) <= 1e-12 * np.square(turned).sum(1).max()
    assert (
        np.abs(turned.T @ turned - points.T @ points).max()
        <= 1e-12 * np.abs(points.T @ points).max()
    )
    same = equal_rows(turned[:1])
    assert np.array_equal(same, turned[:1])


def test_data_on_a_plane_need_only_as_many_points_as_its_dimension(draw):
    flat = draw.standard_normal((60, 2)) @ draw.standard_normal((2, 5))
    moment = second_moment(flat)
    points = closed_form(moment, 2, draw)
    assert np.abs(second_moment(points) - moment).max() < 1e-12
    with pytest.raises(ValueError, match=r"size=1 is below the size bound.* rank 2"):
        closed_form(moment, 1, draw)


@pytest.mark.parametrize(("width", "size"), [(3, 4), (5, 9), (11, 20), (11, 13), (12, 101)])
def test_the_centred_closed_form_keeps_the_mean_too(width, size, draw):
    mixed = draw.standard_normal((200, width)) * np.geomspace(1, 30, width) + 4.0
    mean, covariance = mixed.mean(0), np.cov(mixed.T, bias=True)
    points = closed_form_centred(mean, covariance, size, draw)
    scale = np.trace(covariance)
    assert np.abs(points.mean(0) - mean).max() <= 1e-12 * np.sqrt(scale)
    assert np.abs(np.cov(points.T, bias=True) - covariance).max() <= 1e-12 * scale
    distances = np.square(points - mean).sum(1)
    assert np.abs(distances / scale - 1).max() <= 1e-12


def test_three_points_cannot_be_at_one_distance_from_their_mean_unless_their_covariance_is_round(
    draw,
):
    with pytest.warns(UnequalNorms, match="3 points"):
        points = closed_form_centred(np.ones(2), np.diag([1.0, 4.0]), 3, draw)
    assert np.cov(points.T, bias=True) == pytest.approx(np.diag([1.0, 4.0]), abs=1e-12)
    assert points.mean(0) == pytest.approx([1, 1], abs=1e-12)
    round_ones = closed_form_centred(np.zeros(2), np.eye(2), 3, draw)
    assert np.square(round_ones).sum(1) == pytest.approx([2, 2, 2], abs=1e-12)
    with pytest.raises(ValueError, match="at least 2 points, and one more for the mean"):
        closed_form_centred(np.ones(2), np.eye(2), 2, draw)


# -- derivatives -----------------------------------------------------------------------------------

STEP = 1e-6


def shapes(points):
    return {
        "ball": domains.around(points, "ball", 1.1),
        "box": domains.around(points, "box", 1.2),
        "none": domains.around(points, "none", 1.1),
    }


@pytest.mark.parametrize("shape", ["ball", "box", "none"])
def test_domains_hold_their_points_and_have_their_derivatives(shape, draw):
    points = draw.standard_normal((6, 4)) * [1, 2, 3, 4]
    domain = shapes(points)[shape]
    u = domain.inverse(points)
    assert domain.points(u) == pytest.approx(points, rel=1e-12)
    wild = draw.standard_normal((50, 4)) * 1e3
    assert domain.contains(domain.points(wild)) and domain.contains(points)
    assert domain.contains(1.3 * points) == (shape == "none")
    weights = draw.standard_normal((2, 6, 4))  # two functions sum(weights * z) at once
    slope = domain.pull_back(u, weights)
    for place in range(4):
        moved = STEP * np.eye(4)[place]
        central = (domain.points(u + moved) - domain.points(u - moved)) / (2 * STEP)
        assert slope[:, :, place] == pytest.approx((weights * central).sum(-1), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("shape", ["ball", "box", "none"])
def test_gradients_and_jacobians_are_those_of_finite_differences(shape, intercept, draw):
    training = correlated(draw, 80, 3, intercept)
    regressors = draw_regressors(9, training.shape[1], draw)
    free = np.delete(training, -2, axis=1) if intercept else training
    problem = Matching(second_moment(training), training[:6], intercept, shapes(free)[shape])
    target = losses(problem.moment, regressors)
    u = problem.first + 0.1 * draw.standard_normal(problem.first.shape)
    value, gradient = problem.objective(u, regressors, target)
    by_hand = sum(
        (np.mean([(r @ z) ** 2 for z in problem.points(u)]) - t) ** 2
        for r, t in zip(regressors, target, strict=True)
    )
    assert value == pytest.approx(by_hand, rel=1e-12)
    jacobian = problem.jacobian(u)
    for place in range(u.size):
        moved = np.zeros(u.size)
        moved[place] = STEP
        moved = moved.reshape(u.shape)
        sides = [problem.objective(u + sign * moved, regressors, target)[0] for sign in (1, -1)]
        assert gradient.ravel()[place] == pytest.approx(
            (sides[0] - sides[1]) / (2 * STEP), rel=1e-5, abs=1e-6 * np.abs(gradient).max()
        )
        gaps = [problem.gap(problem.points(u + sign * moved)) for sign in (1, -1)]
        assert jacobian[:, place] == pytest.approx(
            (gaps[0] - gaps[1]) / (2 * STEP), rel=1e-5, abs=1e-6 * np.abs(jacobian).max()
        )


# -- the threshold ---------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("shape", ["ball", "none"])
@pytest.mark.parametrize("route", ["sampled", "sampled_gauss_newton", "moments", "closed_form"])
def test_exact_above_the_threshold_and_visibly_not_below(route, shape, intercept, draw):
    data = correlated(draw, 700, 6, intercept)
    training, test = data[:500], data[500:]
    width = training.shape[1]
    needed = threshold(width, intercept)
    matched = draw_regressors(2 * needed, width, draw)
    held_out = draw_regressors(500, width, draw)
    moment = second_moment(training)
    free = np.delete(training, -2, axis=1) if intercept else training
    domain = shapes(free)[shape]
    full = mean_squared_error(least_squares(training), test)

    def errors(count):
        found = distill(
            route,
            training,
            training[:20],
            matched[:count],
            draw=draw,
            domain=domain,
            intercept=intercept,
        )
        if intercept:
            assert (found.points[:, -2] == 1).all()
        assert shape == "none" or domain.contains(
            np.delete(found.points, -2, axis=1) if intercept else found.points
        )
        syn = second_moment(found.points)
        error = mean_squared_error(least_squares(found.points), test)
        assert (
            worst_relative_error(syn, moment)
            >= np.abs(losses(syn, held_out) / losses(moment, held_out) - 1).max() * (1 - 1e-9)
            - 1e-12
        )
        return relative_error(syn, moment, held_out), error, found

    for count in (int(np.ceil(1.1 * needed)), 2 * needed):
        relative, error, found = errors(count)
        assert relative < 1e-9 and abs(error / full - 1) < 1e-8  # asked for: 1e-5 and 1%
        assert found.objective < 1e-20
    if route.startswith("sampled"):
        with pytest.warns(BelowThreshold, match=rf"below the threshold q\(q\+1\)/2 = {needed}"):
            relative, error, found = errors(int(0.75 * needed))
        assert found.objective < 1e-20 < found.initial  # what it was asked to match, it matches
        assert relative > 1e-2 and error > 1.01 * full


def test_the_worst_error_is_the_largest_over_all_models(draw):
    moment, syn = (second_moment(draw.standard_normal((20, 3))) for _ in range(2))
    tried = draw.standard_normal((200_000, 3))
    ratios = np.abs(losses(syn, tried) / losses(moment, tried) - 1)
    worst = worst_relative_error(syn, moment)
    assert ratios.max() <= worst * (1 + 1e-12) and ratios.max() > 0.99 * worst


# -- lower bounds ----------------------------------------------------------------------------------


def test_with_fewer_points_than_q_the_truncated_form_is_the_best_there_is(draw):
    training = correlated(draw, 300, 4)
    moment = second_moment(training)
    values = np.linalg.eigvalsh(moment)[::-1]
    for size in range(1, 5):
        points = closed_form(moment, size, draw, truncate=True)
        gap = second_moment(points) - moment
        assert np.linalg.norm(gap, 2) == pytest.approx(values[size], rel=1e-9)
        assert worst_relative_error(second_moment(points), moment) == pytest.approx(1)
        found = distill(
            "moments", training, training[:size], np.empty((0, 5)), draw=draw, allow_too_few=True
        )
        gap = second_moment(found.points) - moment
        assert np.linalg.norm(gap, 2) >= values[size] * (1 - 1e-9)
        assert worst_relative_error(second_moment(found.points), moment) >= 1 - 1e-9


@pytest.mark.parametrize("missing", [1, 5, 14])
def test_two_data_sets_that_too_few_regressors_cannot_tell_apart(missing, draw):
    moment = second_moment(correlated(draw, 300, 4))
    needed = threshold(5)
    regressors = draw_regressors(needed, 5, draw)
    (plus, minus), bound = twins(moment, regressors[: needed - missing], draw)
    assert bound == SPREAD
    assert np.linalg.eigvalsh(plus).min() > 0 and np.linalg.eigvalsh(minus).min() > 0
    seen = regressors[: needed - missing]
    assert losses(plus, seen) == pytest.approx(losses(minus, seen), rel=1e-11)
    # Whatever is answered, it is e off for one of them; the best answer is exactly that.
    answers = [closed @ closed.T for closed in draw.standard_normal((200, 5, 5))]
    for answer in [moment, plus, minus, (1 - SPREAD**2) * moment, *answers]:
        worst = max(worst_relative_error(answer, true) for true in (plus, minus))
        assert worst >= SPREAD * (1 - 1e-9)
    pair, bound = twins(moment, regressors, draw)
    assert bound == 0 and all(np.array_equal(one, moment) for one in pair)


# -- baselines -------------------------------------------------------------------------------------


def test_leverage_scores_sum_to_the_rank_and_their_weights_are_unbiased(draw):
    training = correlated(draw, 30, 3)
    features = training[:, :-1]
    scores = leverage_scores(features)
    inverse = np.linalg.inv(features.T @ features)
    assert scores == pytest.approx([x @ inverse @ x for x in features], rel=1e-9)
    doubled = np.column_stack([features, features[:, 0]])
    assert leverage_scores(doubled).sum() == pytest.approx(3)
    subset = leverage_subset(training, 200_000, draw)
    assert second_moment(subset.points, subset.weights) == pytest.approx(
        second_moment(training), rel=0.05, abs=0.05
    )
    weights = least_squares(subset.points, subset.weights)
    assert weights == pytest.approx(least_squares(training), abs=0.02)
