"""Fitted Q-iteration: batched replicas against a plain loop, CartPole data, and the experiment."""

import json

import numpy as np
import pytest

from reprise.launch.run import execute
from reprise.rl.config import FQIFeatures, FQIMethod
from reprise.rl.replicable.agreement import identities, identity_values, pairwise_identity
from reprise.rl.replicable.fqi import Encoded, Fourier, Mirror, fit, grid_nearest_zero, mean_returns
from reprise.rl.replicable.rounding import hypergrid_rounding
from reprise.rollout.environments.base import cartpole
from reprise.rollout.episodes import collect
from reprise.rollout.offline import to_minari
from reprise.rollout.randomness import Streams
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Transitions

STREAMS = Streams(0)
LAMBDAS = np.array([0.01, 0.1])
SCALE = (2.4, 2.0, 0.21, 2.0)


def plain(**changes):
    """CartPole's own reward, on a grid that its values span."""
    return FQIMethod(**{"reward": "step", "reward_scale": 1.0, **changes})


def fourier_features(count):
    return Fourier.draw(
        FQIFeatures(kind="fourier", count=count, bandwidth=0.7, scale=SCALE, constant=0), STREAMS
    )


def mirror_features(count=3, constant=30.0):
    return Mirror.draw(FQIFeatures(count=count, constant=constant), STREAMS)


@pytest.fixture(scope="module")
def transitions():
    draw = np.random.default_rng(0)
    policy = lambda states: np.where(  # noqa: E731
        draw.random(len(states)) < 0.8,
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


def loop(data, features, count, strength, method):
    """One replica as one would write it: features, then ridge and rounding for each backup."""
    rows = np.repeat(np.arange(len(data)), count)
    part = data.take(rows)
    phi = features(part.observations, 2.0 * part.actions[:, None] - 1)
    ahead = [features(part.next_observations, sign) for sign in (-1.0, 1.0)]
    fell = part.terminated.astype(float)
    rewards = method.reward_scale * (-fell if method.reward == "failure" else part.rewards)
    grid = STREAMS.internal("grid", method.backups)
    weights = np.zeros(phi.shape[1])
    for _ in range(method.backups):
        values = np.maximum(ahead[0] @ weights, ahead[1] @ weights)
        targets = rewards + method.gamma * np.where(part.terminated, 0.0, values)
        system = phi.T @ phi + strength * len(part) * np.eye(len(weights))
        weights = np.linalg.solve(system, phi.T @ targets)
        if method.alpha is not None:
            weights = hypergrid_rounding(weights, grid, method.alpha, -1e6, 1e6)
    return weights


@pytest.mark.parametrize(
    "features, method, tolerance",
    [
        (fourier_features(12), plain(alpha=0.2), 1e-12),
        (fourier_features(12), plain(alpha=None), 1e-8),
        (mirror_features(11), FQIMethod(), 1e-12),
        (mirror_features(11), FQIMethod(alpha=None), 1e-8),
    ],
)
def test_batched_replicas_are_those_of_a_loop(transitions, features, method, tolerance):
    counts = halves(len(transitions))
    counts[2] *= 3  # a data set may hold a transition more than once
    data = Encoded.of(transitions, features, method)
    weights = fit(data, counts, LAMBDAS, method, STREAMS)
    assert weights.shape == (6, 2, 12)
    for row, column in ((0, 0), (0, 1), (2, 1), (5, 0)):
        alone = loop(transitions, features, counts[row], LAMBDAS[column], method)
        assert np.abs(weights[row, column] - alone).max() < tolerance


def test_one_backup_is_ridge_regression_of_the_rewards(transitions):
    fourier = fourier_features(8)
    data = Encoded.of(transitions, fourier, plain())
    counts = np.ones((1, len(transitions)), dtype=np.uint16)
    weights = fit(data, counts, np.array([0.5]), plain(backups=1, alpha=None), STREAMS)[0, 0]
    phi, n = data.features, len(transitions)
    residual = phi.T @ (phi @ weights - data.rewards) + 0.5 * n * weights
    assert np.abs(residual).max() < 1e-8


def test_features_are_those_of_a_gaussian_kernel():
    fourier = fourier_features(20_000)
    states = np.array([[0.1, 0.2, 0.01, -0.3], [0.4, -0.5, 0.05, 0.2]])
    one, other = fourier(states, np.array([[1.0], [-1.0]]))
    apart = np.append((states[0] - states[1]) / [2.4, 2.0, 0.21, 2.0], 2.0)
    assert one @ other == pytest.approx(np.exp(-(apart @ apart) / (2 * 0.7**2)), abs=0.03)
    assert one @ one == pytest.approx(1, abs=0.03)


def test_mirror_features_know_the_symmetry_and_have_the_lengths_of_the_kernel(transitions):
    features = mirror_features(8, constant=3.0)
    states = transitions.observations[:50]
    assert features(-states, -1.0) == pytest.approx(features(states, 1.0), abs=1e-6)
    assert (features(states, 1.0)[:, -1] == 3.0).all() and features(states, 1.0).shape == (50, 9)
    scaled = features.frequencies * 0.375 * np.array([[4.8], [3.0], [0.21], [1.0]])
    assert (scaled > 0).all()
    assert np.linalg.norm(scaled, axis=0) == pytest.approx(np.full(8, 2.0))
    other = Mirror.draw(FQIFeatures(count=8), Streams(0, 1))
    assert not np.allclose(other.frequencies, features.frequencies)


@pytest.mark.parametrize("features", [fourier_features(16), mirror_features(15)])
def test_the_greedy_action_has_the_larger_value(transitions, features):
    weights = np.random.default_rng(0).standard_normal((3, 16))
    states = transitions.observations[:90].reshape(3, 30, 4)
    gap = ((features(states, 1.0) - features(states, -1.0)) * weights[:, None]).sum(-1)
    clear = np.abs(gap) > 1e-4
    assert clear.mean() > 0.9
    assert (features.greedy(weights, states)[clear] == (gap > 0)[clear]).all()


def test_without_data_the_weights_are_the_grid_next_to_zero(transitions):
    for changes in ({}, {"rounding": "last"}, {"average": 2}):
        method = FQIMethod(reward_scale=1e-9, **changes)  # a reward that rounding does not see
        features = mirror_features()
        data = Encoded.of(transitions, features, method)
        counts = np.ones((1, len(transitions)), dtype=np.uint16)
        zero = grid_nearest_zero(4, method, STREAMS)
        assert (np.abs(zero) <= 0.1).all() and zero.any()
        if not changes:  # rounded every time, what went before leaves a trace
            assert np.abs(fit(data, counts, np.array([1e6]), method, STREAMS) - zero).max() < 1e-9
        elif "rounding" in changes:
            assert fit(data, counts, np.array([1e6]), method, STREAMS)[0, 0] == pytest.approx(zero)


def test_a_head_is_the_encoding_of_the_first_rows(transitions):
    features = mirror_features()
    part = Encoded.of(transitions.take(np.arange(200)), features, FQIMethod())
    head = Encoded.of(transitions, features, FQIMethod()).head(200)
    for name in ("features", "following", "rewards", "alive"):
        assert np.array_equal(getattr(part, name), getattr(head, name))
    whole = Encoded.of(transitions, features, FQIMethod())
    assert set(whole.rewards) == {0.0, -500.0} and (whole.alive == (whole.rewards == 0)).all()


def test_pseudo_values_of_identity_have_its_mean():
    labels = np.array([0, 0, 0, 3, 0, 5])
    values = identity_values(labels)
    assert values.mean() == pytest.approx(pairwise_identity(labels)) and len(set(values)) == 2
    assert identity_values(np.array([0, 1])).tolist() == [0.0, 0.0]


def test_returns_are_those_of_the_policy():
    # Without features of the state a policy always pushes one way: about 9 or 10 steps.
    fourier = Fourier(np.zeros((4, 1)), np.array([1.0]), np.array([0.5 * np.pi]))
    returns = mean_returns(np.array([[1.0], [-1.0], [1.0]]), fourier, 20, seed=0)
    assert (8 <= returns).all() and (returns <= 11).all() and returns[0] == returns[2]


def test_shared_grids_replicate_and_other_grids_do_not(transitions):
    fourier = fourier_features(6)
    data = Encoded.of(transitions, fourier, plain())
    counts = np.ones((2, len(transitions)), dtype=np.uint16)
    counts[1, 0] = 0  # one transition less
    same = fit(data, counts, LAMBDAS[1:], plain(alpha=2.0), STREAMS)
    assert same[0].tobytes() == same[1].tobytes()
    other = fit(data, counts, LAMBDAS[1:], plain(alpha=2.0), Streams(0, 1))
    assert same[0].tobytes() != other[0].tobytes()
    exact = fit(data, counts, LAMBDAS[1:], plain(alpha=None), STREAMS)
    assert exact[0].tobytes() != exact[1].tobytes()


@pytest.mark.parametrize(
    "changes",
    [{"rounding": "last"}, {"average": 3}, {"average": 3, "rounding": "last"}, {"median_of": 3}],
)
def test_variants_end_near_the_unrounded_result_on_the_grid(transitions, changes):
    fourier = fourier_features(6)
    data = Encoded.of(transitions, fourier, plain())
    counts = np.ones((1, len(transitions)), dtype=np.uint16)
    method = plain(backups=6, alpha=0.05, **changes)
    weights = fit(data, counts, LAMBDAS[1:], method, STREAMS)[0, 0]
    average = {"average": changes.get("average", 1)}
    exact = fit(data, counts, LAMBDAS[1:], plain(backups=6, alpha=None, **average), STREAMS)
    # Rounding once is off by at most alpha/2; along the way errors pass through the backups.
    limit = 0.025 if changes.get("rounding") == "last" else 0.5
    assert 0 < np.abs(weights - exact[0, 0]).max() <= limit * (1 + 1e-9)


def test_rounding_once_agrees_more_often_than_rounding_every_backup(transitions):
    fourier = fourier_features(8)
    data = Encoded.of(transitions, fourier, plain())
    counts = halves(len(transitions), 12)
    agreement = {"every": [], "last": []}
    for seed in range(12):
        streams = Streams(0, seed)
        for rounding, shares in agreement.items():
            method = plain(rounding=rounding, alpha=1.0)
            weights = fit(data, counts, np.array([0.3]), method, streams)[:, 0]
            shares.append(pairwise_identity(identities(weights)))
    assert np.mean(agreement["last"]) > np.mean(agreement["every"]) + 0.05


def test_bad_data_is_named(transitions):
    fourier = fourier_features(4)
    with pytest.raises(ValueError, match="no data"):
        Encoded.of(transitions.take([]), fourier, plain())
    data = Encoded.of(transitions, fourier, plain())
    with pytest.raises(ValueError, match="no data"):
        fit(data, np.zeros((1, len(transitions)), np.uint16), LAMBDAS, plain(), STREAMS)
    wide = np.zeros((3, 5), dtype=np.float32)
    other = Transitions(
        wide, np.zeros(3, int), np.ones(3, np.float32), wide, *np.zeros((2, 3), bool)
    )
    with pytest.raises(ValueError, match="CartPole has 4"):
        Encoded.of(other, fourier, plain())


# -- the experiment --------------------------------------------------------------------------------

SMALL = ["runs=4", "fractions=[0.2, 1]", "lambdas=[0.1, 1]", "episodes=2", "internal_seeds=2"]


def of_store(store, transitions, protocol="subsample"):
    return [*SMALL, f"data={store}", f"data_size={len(transitions)}", f"protocol={protocol}"]


def test_the_experiment_on_a_store(store, transitions, tmp_path):
    execute("quickstart/fqi_cartpole", of_store(store, transitions), tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["experiment"] == "rl.fqi" and summary["status"] == "complete"
    assert summary["protocol"] == "subsample" and summary["internal_seeds"] == [0, 1]
    places = [(c["fraction"], c["arm"], c["lambda"]) for c in summary["cells"]]
    assert places == [
        (fraction, arm, strength)
        for fraction in (0.2, 1)
        for arm in ("not rounded", "rounded")
        for strength in (0, 0.1, 1)
    ]
    for cell in summary["cells"]:
        assert 0.25 <= cell["agreement"] <= 1 and cell["runs"] == 4
        assert len(cell["return_by_seed"]) == 2
        assert (cell["above_unrounded"] is None) == (cell["arm"] != "rounded")
        for name in ("return", "enough_share", "pairwise_identity"):
            low, high = cell[f"{name}_ci95"]
            assert low <= cell.get(name, cell.get("return_mean")) <= high
    # All of one set is one data set; without rounding, parts of it never agree.
    assert {c["agreement"] for c in summary["cells"] if c["fraction"] == 1} == {1.0}
    parts = [c for c in summary["cells"] if c["fraction"] != 1 and c["arm"] == "not rounded"]
    assert {c["pairwise_identity"] for c in parts} == {0.0}
    assert (tmp_path / "a" / "figure_1.png").stat().st_size > 1000


def test_independent_draws_of_all_the_data_are_not_the_data(store, transitions, tmp_path):
    execute("quickstart/fqi_cartpole", of_store(store, transitions, "resample"), tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    unrounded = [c for c in summary["cells"] if c["arm"] == "not rounded"]
    assert {c["agreement"] for c in unrounded} == {0.25}


def test_fresh_data_of_two_recordings_and_what_a_killed_run_keeps(tmp_path):
    changes = ["runs=2", "data_size=2000", "fractions=[1]", "episodes=2", "recordings=[0, 1]"]
    execute("quickstart/fqi_cartpole", [*changes, "internal_seeds=2"], tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    last = summary["cells"][-1]
    assert last["arm"] == "rounded" and last["transitions"] == 2000 and last["lambda"] == 1.0
    assert len(last["return_by_recording"]) == 2 and len(last["pairwise_identity_by_seed"]) == 2
    weights = np.load(tmp_path / "a" / "checkpoints" / "recording-1-seed-0" / "arrays.npz")
    assert weights["weights"].shape == (2, 1, 2, 4) and weights["weights_no_data"].shape[-1] == 4
    # Continued from the middle, the second recording's data are collected again, to the bit.
    for name in ("recording-1-seed-1", "final"):
        (tmp_path / "a" / "checkpoints" / name).rename(tmp_path / name)
    (tmp_path / "a" / "summary.json").unlink()
    execute("quickstart/fqi_cartpole", [*changes, "internal_seeds=2"], tmp_path / "a")
    again = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert again["weights_sha256"] == summary["weights_sha256"]


def test_the_experiment_on_a_minari_path_is_that_on_the_store(
    store, transitions, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    to_minari(transitions, "cartpole/test-v0", "CartPole-v1")
    digests = set()
    for number, source in enumerate(
        (store, tmp_path / "minari" / "cartpole" / "test-v0", "minari:cartpole/test-v0")
    ):
        out = tmp_path / str(number)
        execute("quickstart/fqi_cartpole", of_store(source, transitions), out)
        digests.add(json.loads((out / "summary.json").read_text())["weights_sha256"])
    assert len(digests) == 1


def test_a_set_that_is_too_small_is_refused(store, tmp_path):
    changes = [*SMALL, f"data={store}", "protocol=subsample"]
    with pytest.raises(ValueError, match="data_size=1000000"):
        execute("quickstart/fqi_cartpole", changes, tmp_path / "a")


@pytest.mark.parametrize(
    "change, match",
    [
        ("method.alpha=0", "method.alpha"),
        ("method.median_of=2", "odd"),
        ("method.average=9", "backups"),
        ("lambdas=[]", "lambdas"),
        ("fractions=[1.5]", "fractions"),
        ("recordings=[1, 1]", "names one twice"),
        ("features.scale=[1, 1, 1]", "features.scale"),
    ],
)
def test_bad_settings_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        execute("quickstart/fqi_cartpole", [change], dry_run=True)


def test_fresh_data_and_several_recordings_need_the_recorded_learner():
    other = "data=minari:a/b-v0"
    with pytest.raises(ValueError, match="snapshots"):
        execute("quickstart/fqi_cartpole", ["protocol=fresh", other], dry_run=True)
    with pytest.raises(ValueError, match="one set"):
        changes = ["protocol=resample", other, "recordings=[0, 1]"]
        execute("quickstart/fqi_cartpole", changes, dry_run=True)


def test_the_number_of_threads_changes_no_bit_of_a_weight(said_with_threads):
    code = (
        "import numpy as np\n"
        "from reprise.rl.replicable.fqi import *\nd = np.random.default_rng(0)\nn = 30000\n"
        "o = d.standard_normal((n, 4)).astype(np.float32) / 4\n"
        "t = Transitions(o, d.integers(0, 2, n), np.ones(n, np.float32), o + .01, d.random(n) < .1,"
        " np.zeros(n, bool))\ns = Streams(0)\nf = draw_features(FQIFeatures(count=31), s)\n"
        "e = Encoded.of(t, f, FQIMethod())\nc = (d.random((20, n)) < .5).astype(np.uint16)\n"
        "for a in (None, .2):\n"
        "    w = fit(e, c, np.array([1e-4]), FQIMethod(alpha=a), s)\n    print(w.tobytes().hex())"
    )
    outputs = said_with_threads(code, "1", "4")
    assert len(outputs) == 1 and len(outputs.pop()) > 20_000
