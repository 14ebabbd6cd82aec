"""Evaluation episodes: quotas, raw returns, noise, scores, tables and films."""

import csv

import numpy as np
import pytest
from PIL import Image

from reprise.rl.human_scores import SCORES, human_normalized
from reprise.rl.play import episode_returns, film, play, write_csv, write_gif
from reprise.rollout.environments.base import Environments, Episode, Step, make
from reprise.rollout.randomness import Streams
from reprise.rollout.run.settings import EnvironmentSettings


class Countdown(Environments):
    """Probe: game g of copy c has 2 + c steps with reward 100 c + g + (1 if action 1) each.

    Every step "loses a life": terminated, but no game is over. Copy 2's games end by time.
    """

    name = "breakout"
    actions = 3
    observation_shape = (2,)

    def __init__(self, copies):
        self.copies = copies
        self.seeds = []

    def reset(self, seed):
        self.seeds.append(seed)
        self.game, self.step_of, self.total = (np.zeros(self.copies, int) for _ in range(3))
        return self.observe()

    def observe(self):
        return np.stack([np.arange(self.copies), self.step_of], 1)

    def step(self, actions, running=None):
        actions, running = self._check_actions(actions, running)
        rewards = running * (100 * np.arange(self.copies) + self.game + (actions == 1))
        self.total += rewards
        self.step_of += running
        over = self.step_of == 2 + np.arange(self.copies)
        episodes = [
            Episode(int(c), float(self.total[c]), int(2 + c), truncated=bool(c == 2))
            for c in np.flatnonzero(over)
        ]
        self.game[over] += 1
        self.step_of[over] = self.total[over] = 0
        cut = over & (np.arange(self.copies) == 2)
        return Step(self.observe(), rewards.astype(np.float32), running & ~cut, cut, {}, episodes)

    def render(self, copy):
        shade = 40 * self.step_of[copy]
        return np.full((4, 6, 3), [shade, 255 - shade, 7 * self.game[copy]], np.uint8)

    def state_dict(self):
        raise NotImplementedError

    def load_state_dict(self, state):
        raise NotImplementedError

    def close(self):
        pass


def nothing(observations):
    return np.zeros(len(observations), dtype=np.int64)


def test_each_copy_has_its_quota_and_short_games_are_not_favoured():
    # 7 games on 3 copies: 3, 2 and 2. Copy 0's games are over in 2 steps, copy 2's in 4.
    result = play(nothing, Countdown(3), 7, Streams(0))
    assert [one.copy for one in result.episodes] == [0, 0, 0, 1, 1, 2, 2]
    # game g of copy c: (2 + c) (100 c + g), by hand
    assert result.returns.tolist() == [0, 2, 4, 300, 303, 800, 804]
    assert result.mean == 2213 / 7
    expected = result.returns.std(ddof=1) / 7**0.5
    assert result.standard_error == pytest.approx(expected)
    assert result.summary()["evaluation_time_limits"] == 2
    assert result.summary()["evaluation_length_mean"] == pytest.approx((6 + 6 + 8) / 7)


def test_fewer_games_than_copies():
    assert play(nothing, Countdown(3), 1, Streams(0)).returns.tolist() == [0]


def test_copies_that_are_done_are_not_asked():
    seen = []

    def policy(observations):
        seen.append(len(observations))
        return nothing(observations)

    play(policy, Countdown(3), 3, Streams(0))
    assert seen == [3, 3, 2, 1]


def test_cartpole():
    def push_back(states):
        return (states[:, 2] + states[:, 3] > 0).astype(np.int64)

    limit = EnvironmentSettings(max_episode_frames=100)
    result = play(push_back, make("CartPole-v1", 4, limit), 6, Streams(0))
    assert (result.returns == 100).all() and result.summary()["evaluation_time_limits"] == 6
    assert result.summary()["evaluation_human_normalized"] is None
    falls = play(nothing, make("CartPole-v1", 4), 6, Streams(0))
    assert (falls.returns < 12).all()
    # A copy's games do not depend on the copies beside it.
    alone = play(nothing, make("CartPole-v1", 1), 2, Streams(0))
    assert alone.returns.tolist() == falls.returns[:2].tolist()


def test_epsilon_of_one_is_uniform_and_streams_are_left_as_they_were():
    streams = Streams(5)
    before = streams.state_dict()
    result = play(nothing, Countdown(1), 900, streams, epsilon=1.0)
    # Of 1800 random actions a third adds 1.
    extra = (result.returns - 2 * np.arange(900)).sum()
    assert 540 < extra < 660
    assert streams.state_dict() == before
    again = play(nothing, Countdown(1), 900, streams, epsilon=1.0)
    assert (again.returns == result.returns).all()
    other = play(nothing, Countdown(1), 900, Streams(6), epsilon=1.0)
    assert (other.returns != result.returns).any()


def test_seeds_of_evaluation_are_not_those_of_training():
    environments = Countdown(2)
    for seed in range(20):
        episode_returns(nothing, environments, 2, Streams(seed))
        episode_returns(nothing, environments, 2, Streams(seed), name="other")
    trained = {Streams(seed).data_seed("environments") for seed in range(20)} | set(range(1000))
    assert len(set(environments.seeds)) == 40 and not set(environments.seeds) & trained


@pytest.mark.parametrize(
    ("arguments", "told"), [((0, Streams(0)), "episodes=0"), ((1, Streams(0), 2.0), "epsilon=2.0")]
)
def test_bad_input_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        play(nothing, Countdown(1), *arguments)


def test_human_normalized_scores():
    assert human_normalized("breakout", 1.7) == 0
    assert human_normalized("ms_pacman", 6951.6) == 1
    assert human_normalized("breakout", 384.85) == pytest.approx(383.15 / 28.8)
    assert human_normalized("double_dunk", -17.5) == pytest.approx(0.5)
    assert human_normalized("CartPole-v1", 500) is None
    assert len(SCORES) == 57 and all(human > random for random, human in SCORES.values())


def test_the_table_of_returns(tmp_path):
    results = [play(nothing, Countdown(2), 3, Streams(0), epsilon) for epsilon in (0.0, 1.0)]
    write_csv(tmp_path / "evaluation.csv", results)
    with open(tmp_path / "evaluation.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["return"]) for row in rows[:3]] == results[0].returns.tolist()
    assert [row["copy"] for row in rows] == ["0", "0", "1"] * 2
    assert [row["epsilon"] for row in rows] == ["0.0"] * 3 + ["1.0"] * 3


def frames_of(path):
    with Image.open(path) as image:
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
        return frames, image.info["duration"]


def test_a_film_has_the_games_frames_to_the_pixel(tmp_path):
    game = film(nothing, Countdown(1), tmp_path / "game.gif", Streams(0))
    frames, duration = frames_of(tmp_path / "game.gif")
    assert game.length == 2 and duration == 70
    # The first screen and the one after the first step; the second step ends the game.
    assert [frame[0, 0].tolist() for frame in frames] == [[0, 255, 0], [40, 215, 0]]
    assert frames[0].shape == (4, 6, 3)


def test_many_colours_are_reduced_to_the_nearest_of_a_cube(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3)).astype(np.uint8)
    write_gif(tmp_path / "noise.gif", list(noise), 100)
    frames, _ = frames_of(tmp_path / "noise.gif")
    for frame, shown in zip(noise, frames, strict=True):
        assert np.abs(frame.astype(int) - shown.astype(int)).max() <= 26


def test_a_film_is_of_one_copy_and_a_gif(tmp_path):
    with pytest.raises(ValueError, match="copies=2"):
        film(nothing, Countdown(2), tmp_path / "game.gif", Streams(0))
    with pytest.raises(ValueError, match=r"game\.mp4"):
        film(nothing, Countdown(1), tmp_path / "game.mp4", Streams(0))
