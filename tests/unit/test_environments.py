"""Classic control equals Gymnasium's bit for bit, and every copy can be saved and regrouped."""

import io
import pickle

import gymnasium
import numpy as np
import pytest
import torch

from reprise.rollout.environments.base import make
from reprise.rollout.episodes import collect_transitions, first_episode_returns
from reprise.rollout.randomness import Streams
from reprise.rollout.run.settings import EnvironmentSettings

NAMES = ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"]


def actions_of(environments, count, seed=0):
    shape = (count, environments.copies)
    return np.random.default_rng(seed).integers(0, environments.actions, shape)


def as_bytes(step):
    arrays = (step.observations, step.rewards, step.terminated, step.truncated)
    final = {copy: value.tobytes() for copy, value in step.final_observations.items()}
    return [array.tobytes() for array in arrays], final, step.episodes


def reference(name, seed, copy):
    """Gymnasium's environment, drawing its initial states from the copy's generator."""
    environment = gymnasium.make(name)
    environment.unwrapped.np_random = Streams(seed).data("environment", copy)
    return environment


@pytest.mark.parametrize("name", NAMES)
def test_classic_control_is_gymnasiums_bit_for_bit(name):
    ours = make(name, 3)
    theirs = [reference(name, 5, copy) for copy in range(3)]
    before = np.stack([each.reset()[0] for each in theirs])
    np.testing.assert_array_equal(ours.reset(5), before, strict=True)
    assert ours.observation_shape == theirs[0].observation_space.shape
    assert ours.actions == theirs[0].action_space.n
    totals, lengths, ended = np.zeros(3), np.zeros(3, dtype=int), 0
    acts = actions_of(ours, 620)
    if name == "MountainCar-v0":  # pumping reaches the goal, chance never does
        acts[:, 0] = 1
    for row in acts:
        if name == "MountainCar-v0":
            row[0] = 1 + np.sign(before[0, 1]).astype(int)
        step = ours.step(row)
        finished = {}
        for copy, environment in enumerate(theirs):
            following, reward, terminated, truncated, _ = environment.step(int(row[copy]))
            totals[copy] += reward
            lengths[copy] += 1
            assert (step.rewards[copy], step.terminated[copy]) == (reward, terminated)
            assert step.truncated[copy] == (truncated and not terminated)
            if terminated or truncated:
                np.testing.assert_array_equal(step.final_observations[copy], following, strict=True)
                finished[copy] = (totals[copy], lengths[copy], truncated and not terminated)
                totals[copy], lengths[copy] = 0, 0
                following, _ = environment.reset()
            np.testing.assert_array_equal(step.observations[copy], following, strict=True)
        assert step.final_observations.keys() == finished.keys()
        found = {e.copy: (e.total, e.length, e.truncated) for e in step.episodes}
        assert found == finished
        before, ended = step.observations, ended + len(finished)
    assert ended >= 3


@pytest.mark.parametrize("name", NAMES)
def test_saved_in_an_episode_it_continues_in_a_fresh_object(name):
    ours = make(name, 4)
    ours.reset(1)
    acts = actions_of(ours, 330)
    for row in acts[:30]:
        last = ours.step(row)
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    pickled = pickle.dumps(ours.state_dict())
    expected = [as_bytes(ours.step(row)) for row in acts[30:]]
    buffer.seek(0)
    for state in (torch.load(buffer, weights_only=False), pickle.loads(pickled)):
        fresh = make(name, 4)
        np.testing.assert_array_equal(fresh.load_state_dict(state), last.observations, strict=True)
        assert [as_bytes(fresh.step(row)) for row in acts[30:]] == expected
    # What was saved is not changed by going on, and an object that was elsewhere can load it.
    ours.load_state_dict(state)
    assert [as_bytes(ours.step(row)) for row in acts[30:]] == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_in_any_group(name):
    whole = make(name, 5)
    groups = [make(name, 2), make(name, 3, first_copy=2)]
    before = whole.reset(3)
    np.testing.assert_array_equal(before, np.concatenate([each.reset(3) for each in groups]))
    assert len({row.tobytes() for row in before}) == 5
    for row in actions_of(whole, 220):
        step = whole.step(row)
        parts = [groups[0].step(row[:2]), groups[1].step(row[2:])]
        for key in ("observations", "rewards", "terminated", "truncated"):
            joined = np.concatenate([getattr(part, key) for part in parts])
            np.testing.assert_array_equal(getattr(step, key), joined, strict=True)
    assert make(name, 1).reset(4).tobytes() != before[:1].tobytes()
    np.testing.assert_array_equal(whole.reset(3), before)  # whatever happened before


def test_a_copy_that_does_not_run_stands_still():
    both, alone = make("CartPole-v1", 2), make("CartPole-v1", 2)
    both.reset(0)
    start = alone.reset(0)
    for row in actions_of(both, 60):
        one = alone.step(row, np.array([True, False]))
        assert one.observations[0].tobytes() == both.step(row).observations[0].tobytes()
        assert one.observations[1].tobytes() == start[1].tobytes()
        assert one.rewards[1] == 0 and not one.terminated[1] and 1 not in one.final_observations
    later, first = alone.step(np.zeros(2, int)), make("CartPole-v1", 2)
    first.reset(0)
    assert later.observations[1].tobytes() == first.step(np.zeros(2, int)).observations[1].tobytes()


def test_a_shorter_limit_truncates_and_nothing_leaks_into_the_next_episode():
    ours = make("MountainCar-v0", 2, EnvironmentSettings(max_episode_frames=7))
    ours.reset(0)
    for count in range(1, 22):
        step = ours.step(np.array([1, 2]))
        assert step.truncated.tolist() == [count % 7 == 0] * 2 and not step.terminated.any()
        ends = [(e.copy, e.total, e.length, e.truncated) for e in step.episodes]
        assert ends == ([(0, -7.0, 7, True), (1, -7.0, 7, True)] if count % 7 == 0 else [])


def test_rendering_shows_the_state():
    for name in NAMES:
        ours = make(name, 2)
        ours.reset(0)
        before = ours.render(1)
        assert before.shape == (240, 360, 3) and before.dtype == np.uint8
        assert (before == 255).mean() > 0.7 and len(np.unique(before)) == 4
        for _ in range(8):
            ours.step(np.array([0, ours.actions - 1]))
        assert (ours.render(1) != before).any()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cartpol", "'CartPole-v1'"),
        ("ALE/Brekout-v5", "'breakout'"),
        ("mspackman", "'ms_pacman'"),
        ("xyzzy", "get_all_rom_ids"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match="unknown") as error:
        make(name, 1)
    assert near in str(error.value) and repr(name) in str(error.value)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="copies=0"):
        make("CartPole-v1", 0)
    with pytest.raises(ValueError, match="first_copy=-1"):
        make("CartPole-v1", 1, first_copy=-1)
    with pytest.raises(ValueError, match=r"noop_max, sticky_actions: CartPole-v1 has no such"):
        make("CartPole-v1", 1, EnvironmentSettings(noop_max=3, sticky_actions=0.25))
    ours = make("CartPole-v1", 2)
    ours.reset(0)
    for actions in (np.array([0, 2]), np.array([-1, 0])):
        with pytest.raises(ValueError, match=r"has the actions 0\.\.1"):
            ours.step(actions)
    for actions in (np.array([0]), np.array([0.0, 1.0])):
        with pytest.raises(ValueError, match=r"whole numbers \[2\]"):
            ours.step(actions)
    with pytest.raises(ValueError, match=r"bool \[2\]"):
        ours.step(np.array([0, 1]), np.array([1, 0]))
    for other in (make("CartPole-v1", 3), make("Acrobot-v1", 2)):
        with pytest.raises(ValueError, match="the saved environments have"):
            other.load_state_dict(ours.state_dict())


def lean(observations):
    """Push where the pole leans: episodes of some 40 to 200 steps."""
    return (observations[:, 2] > 0).astype(np.int64)


def test_every_collected_step_is_a_transition():
    ours = make("CartPole-v1", 3)
    data = collect_transitions(lean, ours, 150, seed=6)
    assert len(data) == 450
    columns = {name: value.reshape(3, 150, *value.shape[1:]) for name, value in vars(data).items()}
    for copy in range(3):
        environment = reference("CartPole-v1", 6, copy)
        observation, _ = environment.reset()
        for t in range(150):
            action = lean(observation[None])[0]
            following, reward, terminated, truncated, _ = environment.step(int(action))
            for name, value in (
                ("observations", observation),
                ("actions", action),
                ("rewards", reward),
                ("next_observations", following),
                ("terminated", terminated),
                ("truncated", truncated or (t == 149 and not terminated)),
            ):
                np.testing.assert_array_equal(columns[name][copy, t], value)
            observation = environment.reset()[0] if terminated or truncated else following
    assert columns["terminated"].sum(1).min() >= 2
    assert columns["truncated"].sum() >= 1 and not columns["truncated"][:, :-1].any()
    with pytest.raises(ValueError, match="steps=0"):
        collect_transitions(lean, ours, 0, 0)


def test_first_episodes_are_counted_once_and_finished_copies_are_left_alone():
    ours, shown = make("CartPole-v1", 5), []

    def policy(observations):
        shown.append(len(observations))
        return lean(observations)

    returns = first_episode_returns(policy, ours, seed=6)
    data = collect_transitions(lean, make("CartPole-v1", 5), 300, seed=6)
    lengths = data.terminated.reshape(5, 300).argmax(1) + 1
    assert returns.tolist() == lengths.tolist() and len(set(returns)) > 2
    assert sum(shown) == lengths.sum() and len(shown) == lengths.max()
