"""Ridge regression and second moments: closed forms, what rounds to what, and bad input."""

import numpy as np
import pytest

from reprise.rl.replicable import regression
from reprise.rl.replicable.agreement import identities
from reprise.rl.replicable.regression import (
    covariance,
    covariance_bin,
    moments,
    replicable_covariance,
    replicable_ridge,
    ridge,
    ridge_bin,
    round_covariance,
)

pytestmark = pytest.mark.portable


def data(seed, count, d=4, noise=0.1):
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((count, d))
    features /= np.maximum(1.0, np.linalg.norm(features, axis=1, keepdims=True))
    truth = np.linspace(-1, 1, d)
    return features, features @ truth + noise * draw.standard_normal(count)


@pytest.mark.parametrize("normalization, scale", [("sum", 1), ("mean", 50)])
def test_ridge_minimises_its_objective(normalization, scale):
    features, targets = data(0, 50)
    weights = ridge(*moments(features, targets), 50, 0.3, normalization)
    # d/dw of sum (x w - y)^2 + scale * 0.3 |w|^2
    gradient = features.T @ (features @ weights - targets) + scale * 0.3 * weights
    assert np.abs(gradient).max() < 1e-12


def test_ridge_of_one_orthonormal_basis():
    weights = ridge(*moments(np.eye(3), np.array([1.0, 2.0, 3.0])), 3, 0.5, "sum")
    assert weights == pytest.approx(np.array([1, 2, 3]) / 1.5)
    weights = ridge(*moments(np.eye(3), np.array([1.0, 2.0, 3.0])), 3, 0.5, "mean")
    assert weights == pytest.approx(np.array([1, 2, 3]) / 2.5)


def test_ridge_of_many_data_sets_is_each_ones():
    sets = [data(seed, 30) for seed in range(5)]
    features, targets = (np.stack(column) for column in zip(*sets, strict=True))
    together = ridge(*moments(features, targets), 30, 0.1, "mean")
    alone = [ridge(*moments(x, y), 30, 0.1, "mean") for x, y in sets]
    assert np.allclose(together, alone, rtol=0, atol=1e-13)


def test_mean_normalization_is_what_replicates_as_data_grow():
    # With "sum" lambda fades, on "mean" the minimiser of the population stays put.
    def spread(count, normalization):
        return np.std(
            [
                ridge(*moments(*data(seed, count, noise=1.0)), count, 0.5, normalization)
                for seed in range(30)
            ],
            axis=0,
        ).max()

    assert spread(200, "mean") < 0.5 * spread(200, "sum")


def test_replicable_ridge_rounds_the_ridge_weights():
    features, targets = data(0, 200)
    exact = ridge(*moments(features, targets), 200, 0.1, "mean")
    options = {"regularization": 0.1, "alpha": 0.05, "weight_bound": 10.0}
    rounded = replicable_ridge(features, targets, np.random.default_rng(3), **options)
    assert 0 < np.abs(rounded - exact).max() <= 0.025
    again = replicable_ridge(features, targets, np.random.default_rng(3), **options)
    assert again.tobytes() == rounded.tobytes()


def test_replicable_ridge_agrees_more_often_with_more_data():
    def agreement(count):
        sets = [data(100 + seed, count) for seed in range(20)]
        features, targets = (np.stack(column) for column in zip(*sets, strict=True))
        rounded = replicable_ridge(
            features,
            targets,
            np.random.default_rng(0),
            regularization=0.1,
            alpha=0.2,
            weight_bound=10.0,
        )
        return np.bincount(identities(rounded)).max() / 20

    assert agreement(50) < agreement(20_000) and agreement(20_000) > 0.8


def test_covariance_worked_out_by_hand():
    features = np.array([[[1.0, 0.0], [0.6, 0.8]], [[0.0, 0.5], [0.0, 0.0]]])  # T = 2, M = 2
    expected = [[(1 + 0.36) / 2, 0.48 / 2], [0.48 / 2, 0.64 / 2 + 0.25 / 2]]
    assert np.allclose(covariance(features), expected)


def test_a_rounded_covariance_is_symmetric_near_and_positive():
    features = data(0, 300)[0][None]
    rounded = replicable_covariance(features, np.random.default_rng(0), alpha=0.02)
    assert rounded.tobytes() == np.ascontiguousarray(rounded.T).tobytes()
    assert np.abs(rounded - covariance(features)).max() <= 0.01 + 1e-12
    assert np.linalg.eigvalsh(rounded).min() >= -1e-12


def test_rounding_can_lose_positivity_and_what_then_happens_is_a_choice():
    # Rank one: rounding turns zeros into nonzeros off the diagonal.
    truth = np.zeros((4, 4))
    truth[0, 0] = 1.0
    grids = [np.random.default_rng(seed) for seed in range(50)]
    kept = [round_covariance(truth, grid, 0.5, 1.0, "keep") for grid in grids]
    lost = [seed for seed, matrix in enumerate(kept) if np.linalg.eigvalsh(matrix).min() < -1e-9]
    assert len(lost) > 10, "the paper's remark would hold"
    for seed in lost:
        projected = round_covariance(truth, np.random.default_rng(seed), 0.5, 1.0, "project")
        assert np.linalg.eigvalsh(projected).min() >= -1e-12
        assert np.array_equal(projected, projected.T)
        # Never farther from the truth, which is positive semidefinite.
        assert np.linalg.norm(projected - truth) <= np.linalg.norm(kept[seed] - truth) + 1e-12
        with pytest.raises(ValueError, match="not positive"):
            round_covariance(truth, np.random.default_rng(seed), 0.5, 1.0, "raise")


def test_projection_keeps_replicas_identical():
    truth = np.zeros((4, 4))
    truth[0, 0] = 1.0
    noisy = truth + 1e-12 * np.random.default_rng(0).standard_normal((6, 4, 4))
    noisy = np.clip((noisy + np.swapaxes(noisy, -1, -2)) / 2, -1, 1)
    for seed in range(10):
        both = round_covariance(noisy, np.random.default_rng(seed), 0.5, 1.0, "project")
        assert (identities(both) == 0).all()


# -- widths and sample sizes -----------------------------------------------------------------------


def test_the_widths_give_what_the_proofs_need():
    epsilon, delta, rho, d = 0.1, 0.01, 0.3, 6
    slack = rho - 2 * delta
    alpha = ridge_bin(epsilon, delta, rho, d)
    apart = epsilon * slack / (d**1.5 + slack)  # Delta of Appendix A.3
    assert d * apart / alpha == pytest.approx(slack)  # Lemma 2.1
    assert np.sqrt(d) * alpha / 2 + apart / 2 == pytest.approx(epsilon / 2)
    alpha = covariance_bin(epsilon, delta, rho, d)
    apart = epsilon * slack / (d**3 + slack)  # Delta of Appendix B.1
    assert d * d * apart / alpha == pytest.approx(slack)
    assert d * alpha / 2 + apart / 2 == pytest.approx(epsilon / 2)


def test_sample_sizes_scale_as_the_theorems_say():
    one = regression.samples_theorem_3_1(0.1, 0.01, 0.2, 5, 0.1, 2.0)
    assert one == pytest.approx(25 * 4 * 125 / (0.1 * 0.1 * 0.18) ** 2 * np.log(200))
    assert regression.samples_theorem_3_1(0.05, 0.01, 0.2, 5, 0.1, 2.0) == pytest.approx(4 * one)
    two = regression.samples_theorem_3_2(0.1, 0.01, 0.2, 5, 5, 1.5, 2.0)
    expected = 1600 * 4 * 125 * 25 * 1.5**4 / (0.1**6 * 0.18**2) * np.log(200)
    assert two == pytest.approx(expected)
    three = regression.samples_theorem_3_3(0.1, 0.01, 0.2, 3, 2)
    assert three == pytest.approx(8 * 4 * 3**8 / (0.1 * 0.18) ** 2 * np.log(2 * 9 / 0.01))
    four = [regression.samples_theorem_4_1(0.1, 0.001, 0.2, 5, k, 5) for k in (5, 10)]
    assert 7.5 < four[1] / four[0] < 8.5  # k^3
    last = [regression.samples_theorem_4_2(0.1, 0.01, 0.2, d, 2) for d in (2, 4)]
    assert last[1] / last[0] == pytest.approx(2.0**56)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho, delta", [(0.2, 0.1), (0.1, 0.2)])
def test_rho_must_exceed_two_delta(rho, delta):
    for work in (
        lambda: ridge_bin(0.1, delta, rho, 3),
        lambda: covariance_bin(0.1, delta, rho, 3),
        lambda: regression.samples_theorem_4_2(0.1, delta, rho, 3, 3),
    ):
        with pytest.raises(ValueError, match="rho must exceed 2 delta"):
            work()


def test_bad_data_is_named():
    features, targets = data(0, 10)
    for bad, match in (
        (3 * features, "Assumption 3.1"),
        (features[:0], "no data"),
        (np.where(features > 0, np.nan, features), "features.*not finite"),
    ):
        with pytest.raises(ValueError, match=match):
            moments(bad, targets[: len(bad)])
    with pytest.raises(ValueError, match=r"targets.*not finite"):
        moments(features, np.full(10, np.inf))
    gram, moment = moments(features, targets)
    with pytest.raises(ValueError, match="lambda=-1"):
        ridge(gram, moment, 10, -1.0, "mean")
    with pytest.raises(ValueError, match="no data"):
        ridge(gram, moment, 0, 1.0, "mean")
    with pytest.raises(ValueError, match="use lambda > 0"):
        ridge(np.zeros((2, 2)), np.zeros(2), 10, 0.0, "mean")
    with pytest.raises(ValueError, match=r"epsilon=1\.5"):
        ridge_bin(1.5, 0.01, 0.2, 3)


def test_the_number_of_threads_changes_no_bit(said_with_threads):
    code = (
        "import numpy as np\n"
        "from reprise.rl.replicable.regression import moments, ridge, covariance\n"
        "draw = np.random.default_rng(0)\nx = draw.standard_normal((20000, 48)) / 20\n"
        "g, m = moments(x, draw.standard_normal(20000))\n"
        "print(g.tobytes().hex()[:99999:97], ridge(g, m, 20000, .1, 'mean').tobytes().hex(),"
        "covariance(x[None]).tobytes().hex()[:99999:97])"
    )
    outputs = said_with_threads(code, "1", "2", "4")
    assert len(outputs) == 1 and len(outputs.pop()) > 1000
