"""Fitted Q-iteration: batched replicas against a plain loop, CartPole data, and the experiment."""

import json

import numpy as np
import pytest

from launch.run import execute
from rl.agreement import identities, pairwise_identity
from rl.config import FQIMethod
from rl.fqi import Encoded, Fourier, fit, mean_returns
from rl.rounding import hypergrid_rounding
from rollout.collect import collect
from rollout.environments import cartpole
from rollout.offline import to_minari
from rollout.randomness import Streams
from rollout.store import RoundStore
from rollout.types import Transitions

STREAMS = Streams(0)
LAMBDAS = np.array([0.01, 0.1])


@pytest.fixture(scope="module")
def transitions():
    draw = np.random.default_rng(0)
    policy = lambda states: np.where(  # noqa: E731
        draw.random(len(states)) < 0.3,
        draw.integers(0, 2, len(states)),
        states[:, 2] + 0.3 * states[:, 3] > 0,
    )
    return collect(policy, cartpole(20), 150, seed=0)


@pytest.fixture(scope="module")
def store(transitions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    metadata = dict.fromkeys(
        ("config_sha256", "code_revision", "policy", "reward_model", "random_state")
    )
    writer = RoundStore(folder / "rounds").writer(0, 1, metadata, kind="transitions")
    writer.write(0, transitions)
    writer.finish()
    return folder


def halves(count, sets=6):
    counts = np.zeros((sets, count), dtype=np.uint16)
    for row in range(sets):
        counts[row, np.random.default_rng(row).permutation(count)[: count // 2]] = 1
    return counts


def loop(data, fourier, count, strength, method):
    """One replica as one would write it: features, then ridge and rounding for each backup."""
    rows = np.repeat(np.arange(len(data)), count)
    part = data.take(rows)
    phi = fourier(fourier.angles(part.observations), 2.0 * part.actions[:, None] - 1)
    ahead = [fourier(fourier.angles(part.next_observations), sign) for sign in (-1.0, 1.0)]
    grid = STREAMS.internal("grid", method.backups)
    weights = np.zeros(phi.shape[1])
    for _ in range(method.backups):
        values = np.maximum(ahead[0] @ weights, ahead[1] @ weights)
        targets = part.rewards + method.gamma * np.where(part.terminated, 0.0, values)
        system = phi.T @ phi + strength * len(part) * np.eye(len(weights))
        weights = np.linalg.solve(system, phi.T @ targets)
        if method.alpha is not None:
            weights = hypergrid_rounding(weights, grid, method.alpha, -1e6, 1e6)
    return weights


@pytest.mark.parametrize("alpha, tolerance", [(0.2, 1e-12), (None, 1e-8)])
def test_batched_replicas_are_those_of_a_loop(transitions, alpha, tolerance):
    method = FQIMethod(alpha=alpha)
    fourier = Fourier.draw(12, 0.7, STREAMS)
    counts = halves(len(transitions))
    counts[2] *= 3  # a data set may hold a transition more than once
    weights = fit(Encoded.of(transitions, fourier), counts, LAMBDAS, method, STREAMS)
    assert weights.shape == (6, 2, 12)
    for row, column in ((0, 0), (0, 1), (2, 1), (5, 0)):
        alone = loop(transitions, fourier, counts[row], LAMBDAS[column], method)
        assert np.abs(weights[row, column] - alone).max() < tolerance


def test_one_backup_is_ridge_regression_of_the_rewards(transitions):
    fourier = Fourier.draw(8, 0.7, STREAMS)
    data = Encoded.of(transitions, fourier)
    counts = np.ones((1, len(transitions)), dtype=np.uint16)
    weights = fit(data, counts, np.array([0.5]), FQIMethod(backups=1, alpha=None), STREAMS)[0, 0]
    phi, n = data.features, len(transitions)
    residual = phi.T @ (phi @ weights - data.rewards) + 0.5 * n * weights
    assert np.abs(residual).max() < 1e-8


def test_features_are_those_of_a_gaussian_kernel():
    fourier = Fourier.draw(20_000, 0.7, STREAMS)
    states = np.array([[0.1, 0.2, 0.01, -0.3], [0.4, -0.5, 0.05, 0.2]])
    one, other = fourier(fourier.angles(states), np.array([[1.0], [-1.0]]))
    apart = np.append((states[0] - states[1]) / [2.4, 2.0, 0.21, 2.0], 2.0)
    assert one @ other == pytest.approx(np.exp(-(apart @ apart) / (2 * 0.7**2)), abs=0.03)
    assert one @ one == pytest.approx(1, abs=0.03)


def test_the_greedy_action_has_the_larger_value(transitions):
    fourier = Fourier.draw(16, 0.7, STREAMS)
    weights = np.random.default_rng(0).standard_normal((3, 16))
    states = transitions.observations[:90].reshape(3, 30, 4)
    angles = fourier.angles(states)
    gap = ((fourier(angles, 1.0) - fourier(angles, -1.0)) * weights[:, None]).sum(-1)
    clear = np.abs(gap) > 1e-4
    assert clear.mean() > 0.9
    assert (fourier.greedy(weights, states)[clear] == (gap > 0)[clear]).all()


def test_returns_are_those_of_the_policy():
    # Without features of the state a policy always pushes one way: about 9 or 10 steps.
    fourier = Fourier(np.zeros((4, 1)), np.array([1.0]), np.array([0.5 * np.pi]))
    returns = mean_returns(np.array([[1.0], [-1.0], [1.0]]), fourier, 20, seed=0)
    assert (8 <= returns).all() and (returns <= 11).all() and returns[0] == returns[2]


def test_shared_grids_replicate_and_other_grids_do_not(transitions):
    fourier = Fourier.draw(6, 0.7, STREAMS)
    data = Encoded.of(transitions, fourier)
    counts = np.ones((2, len(transitions)), dtype=np.uint16)
    counts[1, 0] = 0  # one transition less
    same = fit(data, counts, LAMBDAS[1:], FQIMethod(alpha=2.0), STREAMS)
    assert same[0].tobytes() == same[1].tobytes()
    other = fit(data, counts, LAMBDAS[1:], FQIMethod(alpha=2.0), Streams(0, 1))
    assert same[0].tobytes() != other[0].tobytes()
    plain = fit(data, counts, LAMBDAS[1:], FQIMethod(alpha=None), STREAMS)
    assert plain[0].tobytes() != plain[1].tobytes()


@pytest.mark.parametrize(
    "changes",
    [{"rounding": "last"}, {"average": 3}, {"average": 3, "rounding": "last"}, {"median_of": 3}],
)
def test_variants_end_near_the_unrounded_result_on_the_grid(transitions, changes):
    fourier = Fourier.draw(6, 0.7, STREAMS)
    data = Encoded.of(transitions, fourier)
    counts = np.ones((1, len(transitions)), dtype=np.uint16)
    method = FQIMethod(backups=6, alpha=0.05, **changes)
    weights = fit(data, counts, LAMBDAS[1:], method, STREAMS)[0, 0]
    average = {"average": changes.get("average", 1)}
    exact = fit(data, counts, LAMBDAS[1:], FQIMethod(backups=6, alpha=None, **average), STREAMS)
    # Rounding once is off by at most alpha/2; along the way errors pass through the backups.
    limit = 0.025 if changes.get("rounding") == "last" else 0.5
    assert 0 < np.abs(weights - exact[0, 0]).max() <= limit * (1 + 1e-9)


def test_rounding_once_agrees_more_often_than_rounding_every_backup(transitions):
    fourier = Fourier.draw(8, 0.7, STREAMS)
    data = Encoded.of(transitions, fourier)
    counts = halves(len(transitions), 12)
    agreement = {"every": [], "last": []}
    for seed in range(12):
        streams = Streams(0, seed)
        for rounding, shares in agreement.items():
            method = FQIMethod(rounding=rounding, alpha=1.0)
            weights = fit(data, counts, np.array([0.3]), method, streams)[:, 0]
            shares.append(pairwise_identity(identities(weights)))
    assert np.mean(agreement["last"]) > np.mean(agreement["every"]) + 0.05


def test_bad_data_is_named(transitions):
    fourier = Fourier.draw(4, 0.7, STREAMS)
    with pytest.raises(ValueError, match="no data"):
        Encoded.of(transitions.take([]), fourier)
    data = Encoded.of(transitions, fourier)
    with pytest.raises(ValueError, match="no data"):
        fit(data, np.zeros((1, len(transitions)), np.uint16), LAMBDAS, FQIMethod(), STREAMS)
    wide = np.zeros((3, 5), dtype=np.float32)
    other = Transitions(
        wide, np.zeros(3, int), np.ones(3, np.float32), wide, *np.zeros((2, 3), bool)
    )
    with pytest.raises(ValueError, match="CartPole has 4"):
        Encoded.of(other, fourier)


# -- the experiment --------------------------------------------------------------------------------

SMALL = ["runs=4", "fractions=[0.2, 1]", "lambdas=[0.1, 1]", "features=6", "episodes=2"]


def test_the_experiment_on_a_store(store, transitions, tmp_path):
    changes = [*SMALL, f"data={store}", f"data_size={len(transitions)}", "internal_seeds=2"]
    execute("quickstart/fqi_cartpole", changes, tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["experiment"] == "rl.fqi" and summary["status"] == "complete"
    assert summary["protocol"] == "subsample" and summary["internal_seeds"] == [78, 79]
    assert [(c["fraction"], c["lambda"]) for c in summary["cells"]] == [
        (0.2, 0.1),
        (0.2, 1),
        (1, 0.1),
        (1, 1),
    ]
    for cell in [*summary["cells"], *summary["baseline"]]:
        assert 0.25 <= cell["agreement"] <= 1 and cell["runs"] == 4
        low, high = cell["return_ci95"]
        assert low <= cell["return_mean"] <= high
    # All of one set is one data set; without rounding, parts of it never agree.
    assert [c["agreement"] for c in summary["cells"][2:]] == [1.0, 1.0]
    assert [c["agreement"] for c in summary["baseline"]] == [0.25, 1.0]
    assert (tmp_path / "a" / "figure_1.png").stat().st_size > 1000


def test_independent_draws_of_all_the_data_are_not_the_data(store, transitions, tmp_path):
    changes = [*SMALL, f"data={store}", f"data_size={len(transitions)}", "protocol=resample"]
    execute("quickstart/fqi_cartpole", changes, tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["baseline"][-1]["agreement"] == 0.25


def test_the_experiment_on_a_minari_path_is_that_on_the_store(
    store, transitions, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    to_minari(transitions, "cartpole/test-v0", "CartPole-v1")
    size = f"data_size={len(transitions)}"
    digests = set()
    for number, source in enumerate(
        (store, tmp_path / "minari" / "cartpole" / "test-v0", "minari:cartpole/test-v0")
    ):
        out = tmp_path / str(number)
        execute("quickstart/fqi_cartpole", [*SMALL, f"data={source}", size], out)
        digests.add(json.loads((out / "summary.json").read_text())["weights_sha256"])
    assert len(digests) == 1


def test_a_set_that_is_too_small_is_refused(store, tmp_path):
    with pytest.raises(ValueError, match="data_size=100000"):
        execute("quickstart/fqi_cartpole", [*SMALL, f"data={store}"], tmp_path / "a")


@pytest.mark.parametrize(
    "change, match",
    [
        ("method.alpha=0", "method.alpha"),
        ("method.median_of=2", "odd"),
        ("method.average=9", "backups"),
        ("lambdas=[]", "lambdas"),
        ("fractions=[1.5]", "fractions"),
    ],
)
def test_bad_settings_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        execute("quickstart/fqi_cartpole", [change], dry_run=True)


def test_fresh_data_need_the_recorded_learner():
    with pytest.raises(ValueError, match="snapshots"):
        execute("quickstart/fqi_cartpole", ["protocol=fresh", "data=minari:a/b-v0"], dry_run=True)


def test_the_number_of_threads_changes_no_bit_of_a_weight(said_with_threads):
    code = (
        "import numpy as np\nfrom rl.fqi import *\nd = np.random.default_rng(0)\nn = 30000\n"
        "o = d.standard_normal((n, 4)).astype(np.float32) / 4\n"
        "t = Transitions(o, d.integers(0, 2, n), np.ones(n, np.float32), o + .01, d.random(n) < .1,"
        " np.zeros(n, bool))\ns = Streams(0)\ne = Encoded.of(t, Fourier.draw(32, .7, s))\n"
        "c = (d.random((20, n)) < .5).astype(np.uint16)\n"
        "for a in (None, .2):\n"
        "    w = fit(e, c, np.array([1e-4]), FQIMethod(alpha=a), s)\n    print(w.tobytes().hex())"
    )
    outputs = said_with_threads(code, "1", "4")
    assert len(outputs) == 1 and len(outputs.pop()) > 20_000
