"""CartPole data: collecting, Minari and d3rlpy episodes, and the recorded DQN replay."""

from types import SimpleNamespace

import numpy as np
import pytest

from reprise.rollout import cartpole as cartpole_data
from reprise.rollout.environments.base import cartpole
from reprise.rollout.episodes import collect, episode_returns
from reprise.rollout.offline import episodes, from_d3rlpy, load_transitions, to_minari
from reprise.rollout.randomness import Streams
from reprise.rollout.store import RoundStore


def push_right(states):
    return np.ones(len(states), dtype=np.int64)


def collected(steps=60, copies=3, seed=0, limit=500):
    return collect(push_right, cartpole(copies, limit), steps, seed)


def columns(transitions):
    return {name: value.tobytes() for name, value in vars(transitions).items()}


def test_transitions_follow_each_other_and_resets_are_left_out():
    data = collected()
    ends = data.terminated | data.truncated
    assert 10 < ends.sum() < 25 and len(data) < 180
    # Rows follow each other except at ends, of which the last row of each copy is one.
    follows = (data.next_observations[:-1] == data.observations[1:]).all(1)
    assert (follows == ~ends[:-1]).all() and ends[-1]
    assert data.truncated.sum() <= 3
    lengths = np.diff(np.flatnonzero(ends), prepend=-1)
    assert 7 <= lengths[:-1].min() and lengths.max() <= 12
    assert (data.rewards == 1).all()
    # After an end comes a fresh state.
    assert np.abs(data.observations[np.flatnonzero(ends[:-1]) + 1]).max() <= 0.05


def test_a_time_limit_truncates():
    data = collect(lambda x: (x[:, 2] + x[:, 3] > 0).astype(int), cartpole(2, 20), 63, 0)
    assert data.truncated.sum() == 6 and not data.terminated.any() and len(data) == 120


def test_returns_are_lengths_of_first_episodes():
    data = collected()
    returns = episode_returns(push_right, cartpole(3), 0)
    first = np.flatnonzero(data.terminated)[0] + 1
    assert returns[0] == first and ((8 <= returns) & (returns <= 12)).all()


def test_the_same_seed_gives_the_same_bytes():
    assert columns(collected(seed=4)) == columns(collected(seed=4)) != columns(collected(seed=5))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="copies=0"):
        cartpole(0)
    with pytest.raises(ValueError, match="steps=0"):
        collected(steps=0)
    with pytest.raises(ValueError, match="neither a Minari"):
        load_transitions("nowhere/at-all")
    with pytest.raises(ValueError, match="d3rlpy's CartPole sets"):
        load_transitions("d3rlpy:pendulum")


def test_minari_gives_back_what_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = collect(push_right, cartpole(1), 55, 0)
    to_minari(data, "cartpole/right-v0", "CartPole-v1", algorithm_name="push right")
    for source in ("minari:cartpole/right-v0", str(tmp_path / "cartpole" / "right-v0")):
        assert columns(load_transitions(source)) == columns(data)
    cut = data.take(np.arange(45))
    assert not (cut.terminated[-1] or cut.truncated[-1])
    to_minari(cut, "cartpole/cut-v0", "CartPole-v1")
    again = load_transitions("minari:cartpole/cut-v0")
    assert again.truncated[-1] and len(again) == 45  # the last episode has no end of its own


def test_rows_out_of_order_are_no_episodes():
    data = collect(push_right, cartpole(1), 40, 0)
    with pytest.raises(ValueError, match="order of time"):
        list(episodes(data.take(np.arange(len(data))[::-1])))
    with pytest.raises(ValueError, match="no transitions"):
        list(episodes(data.take([])))


def test_d3rlpy_episodes_lose_only_what_they_do_not_hold():
    ended = SimpleNamespace(
        observations=np.arange(12.0, dtype=np.float32).reshape(3, 4),
        actions=np.array([[0], [1], [0]]),
        rewards=np.ones((3, 1)),
        terminated=True,
    )
    cut = SimpleNamespace(**{**vars(ended), "terminated": False})
    data = from_d3rlpy([ended, cut])
    assert len(data) == 5
    assert data.terminated.tolist() == [False, False, True, False, False]
    assert data.truncated.tolist() == [False] * 4 + [True]
    assert np.array_equal(data.next_observations[0], data.observations[1])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A very short training of the learner, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        global_state = np.random.get_state()[1].tobytes()
        data = cartpole_data.replay(400, seed=1)
        assert np.random.get_state()[1].tobytes() == global_state
        yield SimpleNamespace(
            data=data,
            folder=cartpole_data.replay_folder(400, 1),
            snapshots=cartpole_data.behaviour(400, 1),
        )


def test_the_recorded_replay_is_a_verified_round_of_whole_episodes(recorded):
    data = recorded.data
    assert len(data) == 400 and set(np.unique(data.actions)) == {0, 1}
    ends = data.terminated | data.truncated
    follows = (data.next_observations[:-1] == data.observations[1:]).all(1)
    assert (follows | ends[:-1]).all() and follows.sum() > 300
    store = RoundStore(recorded.folder / "rounds")
    assert store.verify() == {0: None}
    manifest = store.manifest(0)
    assert manifest["kind"] == "transitions" and len(manifest["shards"]) == 10
    assert manifest["random_state"] == {"seed": 1}
    shard = recorded.folder / "rounds" / "round-00000" / "shard-00003.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="torn or altered"):
        cartpole_data.replay(400, seed=1)
    shard.write_bytes(whole)


def test_snapshots_act_as_the_learner_did_and_data_are_fresh(recorded):
    assert recorded.snapshots["epsilon"].shape == (20,)
    assert recorded.snapshots["weight0"].shape == (20, 4, 32)
    assert not np.array_equal(recorded.snapshots["weight2"][0], recorded.snapshots["weight2"][-1])
    one, same, other = (
        cartpole_data.fresh(recorded.snapshots, 500, Streams(3), index) for index in (0, 0, 1)
    )
    assert len(one) == 500
    assert columns(one) == columns(same) != columns(other)


def test_a_replay_has_enough_steps_for_its_shards():
    with pytest.raises(ValueError, match="steps=100"):
        cartpole_data.replay(100)
