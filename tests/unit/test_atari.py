"""Atari: preprocessing against a frame-by-frame oracle, saving, grouping, returns, bad input."""

import functools
import pickle

import numpy as np
import pytest
import torch
from ale_py import Action, ALEInterface, roms

from reprise.rollout.environments.atari import Shrink
from reprise.rollout.environments.base import canonical_name, make
from reprise.rollout.randomness import Streams
from reprise.rollout.run.settings import EnvironmentSettings


@functools.cache
def shares(size):
    """Repeat each of `size` pixels 84 times, cut into 84 equal parts, count whose they are."""
    parts = np.repeat(np.arange(size), 84).reshape(84, size)
    return np.stack([np.bincount(part, minlength=size) for part in parts]).astype(np.float64)


def area(picture):
    """84x84 means of equal rectangles, rounded, halves up; whole numbers below 2**53 throughout."""
    height, width = picture.shape
    both = (shares(height) @ picture @ shares(width).T).astype(np.int64)
    return ((2 * both + height * width) // (2 * height * width)).astype(np.uint8)


class Oracle:
    """One copy, frame by frame, keeping every screen and every picture of the game."""

    def __init__(self, game, settings, seed, copy):
        self.settings, self.draws = settings, Streams(seed).data("environment", copy)
        self.ale = ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0)
        self.ale.setInt("random_seed", Streams(seed).data_seed("emulator", copy) >> 32)
        self.ale.loadROM(roms.get_rom_path(game))
        minimal = self.ale.getMinimalActionSet()
        full = self.ale.getLegalActionSet()
        self.actions = full if settings.full_action_space else minimal
        self.has_fire = settings.fire_reset and Action.FIRE in minimal
        self.new_game()

    def frame(self, action):
        self.played = action
        self.score += self.ale.act(action)
        self.screens.append(self.ale.getScreenGrayscale())

    def four(self, action, sticky=0.0):
        for _ in range(self.settings.frame_skip):
            stays = sticky and self.draws.random() < sticky
            self.frame(self.played if stays else action)
        two = self.screens[-2:] if self.settings.frame_skip > 1 else self.screens[-1:]
        self.pictures.append(area(np.max(two, axis=0)))

    def new_game(self):
        self.ale.reset_game()
        self.screens, self.pictures, self.score = [self.ale.getScreenGrayscale()], [], 0
        if self.settings.noop_max:
            for _ in range(self.draws.integers(1, self.settings.noop_max + 1)):
                self.frame(Action.NOOP)
        self.played = Action.NOOP
        if self.has_fire:
            self.four(Action.FIRE)
        else:
            self.pictures.append(area(self.screens[-1]))
        self.new_stack()
        self.score, self.steps = 0, 0

    def new_stack(self):
        self.pictures += [self.pictures[-1]] * 3

    def observation(self):
        return np.stack(self.pictures[-4:])

    def step(self, action):
        """Observation, reward, terminated, truncated, final observation, episode."""
        lives, score, cut = self.ale.lives(), self.score, self.settings.life_loss == "cut"
        self.four(self.actions[action], self.settings.sticky_actions)
        self.steps += 1
        last, life_lost = self.observation(), 0 < self.ale.lives() < lives
        limit = self.steps == self.settings.max_episode_frames // self.settings.frame_skip
        if life_lost and self.has_fire and not limit:
            self.four(Action.FIRE)
        over = self.ale.game_over()
        assert not (over and life_lost), "the oracle has no answer to a game ended by FIRE"
        reward, terminated = self.score - score, over or (life_lost and cut)
        ends = (self.score, self.steps, not over) if over or limit else None
        if ends:
            self.new_game()
        elif terminated:
            self.new_stack()
        return self.observation(), reward, terminated, limit and not terminated, last, ends


CASES = {
    "breakout": ("breakout", {}, 330),
    "breakout, lives ignored, sticky": (
        "breakout",
        {"life_loss": "ignore", "sticky_actions": 0.3, "max_episode_frames": 360},
        190,
    ),
    "breakout, no reset actions, skip 1": (
        "breakout",
        {"noop_max": 0, "fire_reset": False, "frame_skip": 1, "max_episode_frames": 40},
        90,
    ),
    "ms_pacman, all actions": ("ms_pacman", {"full_action_space": True}, 110),
    "ms_pacman, skip 3, no cut, short": (
        "ms_pacman",
        {"frame_skip": 3, "life_loss": "ignore", "max_episode_frames": 100},
        70,
    ),
    "250 lines": ("air_raid", {"noop_max": 3}, 40),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_steps_are_the_oracles(case):
    game, changed, count = case
    settings = EnvironmentSettings(**changed)
    ours = make(game, 2, settings, first_copy=6)
    oracles = [Oracle(game, settings, 11, copy) for copy in (6, 7)]
    start = np.stack([each.observation() for each in oracles])
    np.testing.assert_array_equal(ours.reset(11), start, strict=True)
    assert ours.actions == len(oracles[0].actions)
    seen = {"reward": 0, "cut": 0, "over": 0, "limit": 0}
    acts = np.random.default_rng(0).integers(0, ours.actions, (count, 2))
    # Held for three steps each, so that the paddle gets somewhere.
    for row in np.repeat(acts, 3, axis=0)[:count]:
        step = ours.step(row)
        ends = []
        for copy, oracle in enumerate(oracles):
            following, reward, terminated, truncated, last, end = oracle.step(row[copy])
            np.testing.assert_array_equal(step.observations[copy], following, strict=True)
            assert step.rewards[copy] == reward
            assert (step.terminated[copy], step.truncated[copy]) == (terminated, truncated)
            assert (copy in step.final_observations) == (terminated or truncated)
            if copy in step.final_observations:
                np.testing.assert_array_equal(step.final_observations[copy], last, strict=True)
            if end:
                ends.append((copy, *end))
            seen["reward"] += reward != 0
            seen["cut"] += terminated and not end
            seen["over"] += bool(end) and not end[2]
            seen["limit"] += bool(end) and end[2]
        assert [(e.copy, e.total, e.length, e.truncated) for e in step.episodes] == ends
    ours.close()
    if game == "breakout" and not changed:
        assert seen["reward"] > 3 and seen["cut"] > 4 and seen["over"] >= 2, seen
    if "max_episode_frames" in changed:
        assert seen["limit"] >= 2 and not (seen["cut"] and changed.get("life_loss")), seen


@pytest.mark.parametrize("height", [210, 214, 220, 230, 250])
def test_pictures_are_area_averages(height):
    noise = np.random.default_rng(height).integers(0, 256, (height, 160), dtype=np.uint8)
    white = np.full((height, 160), 255, dtype=np.uint8)
    for frame in (noise, white, white - white):
        picture = np.zeros((84, 84), dtype=np.uint8)
        Shrink(height, 160)(frame, picture)
        np.testing.assert_array_equal(picture, area(frame), strict=True)


def as_bytes(step):
    arrays = (step.observations, step.rewards, step.terminated, step.truncated)
    final = {copy: value.tobytes() for copy, value in step.final_observations.items()}
    return [array.tobytes() for array in arrays], final, step.episodes


def test_saved_in_an_episode_it_continues_in_a_fresh_object(tmp_path):
    settings = EnvironmentSettings(sticky_actions=0.25, life_loss="cut")
    ours = make("breakout", 2, settings)
    ours.reset(2)
    acts = np.random.default_rng(1).integers(0, 4, (420, 2))
    for row in acts[:77]:
        last = ours.step(row)
    assert not last.terminated.any()
    torch.save(ours.state_dict(), tmp_path / "state.pt")
    pickled, screen = pickle.dumps(ours.state_dict()), ours.render(1)
    assert len(pickled) < 2 * 180_000
    expected = [as_bytes(ours.step(row)) for row in acts[77:]]
    assert sum(len(step[2]) for step in expected) >= 2, "goes on over ends of games"
    loaded = torch.load(tmp_path / "state.pt", weights_only=False)
    for state, threads in ((loaded, 1), (pickle.loads(pickled), 2)):
        fresh = make("breakout", 2, settings.model_copy(update={"threads": threads}))
        np.testing.assert_array_equal(fresh.load_state_dict(state), last.observations, strict=True)
        np.testing.assert_array_equal(fresh.render(1), screen, strict=True)
        again = pickle.loads(pickle.dumps(fresh.state_dict()))
        for before, after in zip(state["games"], again["games"], strict=True):
            assert before["emulator"] == after["emulator"] and before["last"] == after["last"] > 0
            np.testing.assert_array_equal(before["screen"], after["screen"], strict=True)
        assert [as_bytes(fresh.step(row)) for row in acts[77:]] == expected
        assert (fresh.render(1) == ours.render(1)).all()
        fresh.close()


def test_any_threads_and_any_grouping_give_the_same_bits():
    whole = make("breakout", 5)
    threaded = make("breakout", 5, EnvironmentSettings(threads=3))
    groups = [make("breakout", 2), make("breakout", 3, first_copy=2)]
    before = whole.reset(3)
    np.testing.assert_array_equal(before, threaded.reset(3))
    np.testing.assert_array_equal(before, np.concatenate([each.reset(3) for each in groups]))
    seen: list[list[bytes]] = []
    for row in np.random.default_rng(0).integers(0, 4, (40, 5)):
        step = whole.step(row)
        seen.append([game.tobytes() for game in step.observations])
        assert as_bytes(threaded.step(row)) == as_bytes(step)
        parts = [groups[0].step(row[:2]), groups[1].step(row[2:])]
        for key in ("observations", "rewards", "terminated", "truncated"):
            joined = np.concatenate([getattr(part, key) for part in parts])
            np.testing.assert_array_equal(getattr(step, key), joined, strict=True)
    assert len(set(zip(*seen, strict=True))) == 5, "copies differ"
    np.testing.assert_array_equal(whole.reset(3), before)  # whatever happened before
    threaded.close()


def nothing(count, **changed):
    """Steps of Breakout in which the agent does nothing, without no-ops before."""
    ours = make("breakout", 1, EnvironmentSettings(noop_max=0, **changed))
    ours.reset(0)
    for _ in range(count):
        yield ours.step(np.array([0]))


def test_fire_after_a_lost_life_keeps_an_idle_policy_from_waiting_for_ever():
    cut = list(nothing(130))
    lost = [t for t, step in enumerate(cut, 1) if step.terminated[0]]
    first = lost[0]
    games = [(e.length, e.truncated) for step in cut for e in step.episodes]
    assert len(lost) == 5 and games == [(lost[4], False)]
    assert set(np.diff(lost)) <= {first, first - 1, first + 1}
    # A cut does not reset the game: its new stack is 4 times one picture, without the ball's row.
    after = cut[first - 1]
    assert (after.observations[0] == after.observations[0, 0]).all()
    assert (after.final_observations[0][3] != after.final_observations[0][0]).any()
    ignored = list(nothing(130, life_loss="ignore"))
    assert [t for t, step in enumerate(ignored, 1) if step.terminated[0]] == [lost[4]]
    assert sum(len(step.episodes) for step in ignored) == 1
    # Without the automatic FIRE no ball ever comes.
    assert not any(step.terminated[0] for step in nothing(130, fire_reset=False))


def test_a_time_limit_where_a_life_is_lost():
    first = next(t for t, step in enumerate(nothing(60), 1) if step.terminated[0])
    for limit, terminated in ((first, True), (first - 1, False)):
        steps = list(nothing(2 * limit, max_episode_frames=4 * limit + 3))
        step = steps[limit - 1]
        assert (step.terminated[0], step.truncated[0]) == (terminated, not terminated)
        games = [[(e.length, e.truncated) for e in step.episodes] for step in steps]
        assert [t for t, ended in enumerate(games, 1) if ended] == [limit, 2 * limit]
        assert games[limit - 1] == games[-1] == [(limit, True)]


@pytest.mark.parametrize("life_loss", ["cut", "ignore"])
def test_raw_returns_are_the_sums_of_their_own_games_rewards(life_loss):
    settings = EnvironmentSettings(max_episode_frames=500, life_loss=life_loss)
    ours = make("breakout", 3, settings)
    ours.reset(1)
    sums, kinds, totals, cuts = [[] for _ in range(3)], set(), [], 0
    for row in np.repeat(np.random.default_rng(7).integers(0, 4, (125, 3)), 3, axis=0):
        row[0] = 0  # an idle player is done after some 120 steps
        step = ours.step(row)
        for copy, reward in enumerate(step.rewards):
            sums[copy].append(float(reward))
        for e in step.episodes:
            assert (e.total, e.length) == (sum(sums[e.copy]), len(sums[e.copy]))
            assert e.length == 125 if e.truncated else e.length <= 125
            kinds.add(e.truncated)
            totals.append(e.total)
            sums[e.copy] = []
        cuts += int(step.terminated.sum()) - sum(not e.truncated for e in step.episodes)
    assert kinds == {True, False} and len(set(totals)) >= 3
    assert (cuts > 10) if life_loss == "cut" else cuts == 0


def test_a_copy_that_does_not_run_stands_still():
    one, both = make("ms_pacman", 2), make("ms_pacman", 2)
    start = one.reset(0)
    both.reset(0)
    acts = np.random.default_rng(0).integers(0, 9, (12, 2))
    for row in acts:
        step = one.step(row, np.array([True, False]))
        assert step.observations[0].tobytes() == both.step(row).observations[0].tobytes()
        assert step.observations[1].tobytes() == start[1].tobytes() and step.rewards[1] == 0
    both.reset(0)
    for row in acts:
        late = one.step(row, np.array([False, True])).observations[1]
        assert late.tobytes() == both.step(row).observations[1].tobytes()


def test_every_usual_spelling_is_known():
    for name in ("ms_pacman", "MsPacman", "mspacman", "ALE/MsPacman-v5", "MsPacmanNoFrameskip-v4"):
        assert canonical_name(name) == "ms_pacman"
    assert canonical_name("pitfall2") == "pitfall2" and canonical_name("Pong") == "pong"


def test_bad_input_is_refused(monkeypatch, tmp_path, capsys):
    with pytest.raises(ValueError, match="max_episode_frames=3; must be at least frame_skip=4"):
        make("breakout", 1, EnvironmentSettings(max_episode_frames=3))
    with pytest.raises(ValueError, match="'joust': ale-py has its ROM but not its rules"):
        make("joust", 1)
    ours = make("breakout", 1)
    ours.reset(0)
    for other in (
        make("pong", 1),
        make("breakout", 2),
        make("breakout", 1, EnvironmentSettings(sticky_actions=0.25)),
        make("breakout", 1, first_copy=1),
    ):
        with pytest.raises(ValueError, match="the saved environments have"):
            other.load_state_dict(ours.state_dict())
    with pytest.raises(ValueError, match=r"has the actions 0\.\.3"):
        ours.step(np.array([4]))
    # No ROM, a damaged one, no folder.
    (tmp_path / "pong.bin").write_bytes(b"no game")
    for game, folder in (("breakout", tmp_path), ("pong", tmp_path), ("pong", tmp_path / "none")):
        monkeypatch.setenv("ALE_ROMS_DIR", str(folder))
        with pytest.raises(ValueError, match="ROMs come with ale-py"):
            make(game, 1)
    assert capsys.readouterr().out == ""
