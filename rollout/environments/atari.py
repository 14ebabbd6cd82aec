"""Atari games, preprocessed as usual, whose whole state can be saved.

What a step of one copy does, in this order:

1. The action is held for `frame_skip` emulator frames; rewards add up, raw. With sticky actions
   each frame keeps, with that probability, the action of the frame before it instead.
2. Pixelwise maximum of the last two of these frames, each in ALE's grayscale (one frame if
   `frame_skip` is 1). A game that ends within the skip stays on its last screen.
3. Area averaging to 84x84: a pixel is the mean of the rectangle it covers, rounded, halves up.
4. The picture is pushed onto the stack of 4, oldest first.
5. A **lost life** (fewer than before, not 0, the game goes on) never resets the game. Where
   `life_loss` is "cut" it terminates, and the stack starts anew with the latest picture. If the
   game has a FIRE button, `fire_reset` then presses it for one more skip (1 to 4 again, outside
   the agent's count, its reward added to this step's) whether lives cut or not: Breakout waits for
   FIRE after each lost ball, and a greedy policy that never learnt to press it would wait for ever.
6. **Game over** terminates; `max_episode_frames // frame_skip` steps of the agent without it
   truncate. Both start a new game: emulator reset, 1 to `noop_max` frames of NOOP, FIRE for one
   skip if the game has it, and a stack of 4 times the last picture. Rewards before the agent's
   first step count nowhere.

Rewards are never clipped here. If the time limit falls on a step that loses a life with
"cut", the step terminates and the episode it ends is marked truncated. A game that shows no lives
before it is over is cut once, at its end.

A loop over `ALEInterface` is as fast per core as the vector environments in C++, which cannot be
saved. Sticky actions are drawn here, not by ALE, whose saved state lacks the action being kept.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ale_py import Action, ALEInterface, ALEState, LoggerMode, roms

from reprise.rollout.environments.base import Environments, Episode, Step
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run.settings import EnvironmentSettings

SIZE, STACK = 84, 4


class Atari(Environments):
    """N copies of an Atari game; see the module for what a step is.

    Copy i draws its no-ops and sticky actions from Streams(seed).data("environment", i), and its
    emulator is seeded from "emulator" likewise. Emulation holds Python's lock, so `threads` overlap
    only the resizing and gain nothing (two on two cores: 2,350 steps a second, one: 2,630); what
    scales is more processes, each with its `first_copy`: `workers`.
    """

    observation_shape = (STACK, SIZE, SIZE)
    observation_dtype = np.dtype(np.uint8)

    def __init__(
        self, name: str, copies: int, settings: EnvironmentSettings, first_copy: int = 0
    ) -> None:
        if settings.max_episode_frames < settings.frame_skip:
            raise BadInput(
                f"max_episode_frames={settings.max_episode_frames}; must be at least "
                f"frame_skip={settings.frame_skip}, one step"
            )
        path = rom_path(name)
        self.name, self.copies, self.first_copy = name, copies, first_copy
        self.settings = settings
        self.observations = np.zeros((copies, *self.observation_shape), dtype=np.uint8)
        self.games = [_Game(path, settings, stack) for stack in self.observations]
        self.actions = len(self.games[0].actions)
        self.started = False
        self.pool = ThreadPoolExecutor(settings.threads) if settings.threads > 1 else None

    def reset(self, seed: int) -> np.ndarray:
        """Seed every copy by (seed, copy) and start a game in it."""
        streams = Streams(seed)
        for copy, game in enumerate(self.games, self.first_copy):
            # ALE's seeds are 31 bits
            game.seed(streams.data_seed("emulator", copy) >> 32, streams.data("environment", copy))
        self.started = True
        return self.observations.copy()

    def step(self, actions: np.ndarray, running: np.ndarray | None = None) -> Step:
        """Act once in every running copy; see `Environments.step`."""
        assert self.started, "reset or load_state_dict comes before step"
        actions, running = self._check_actions(actions, running)
        rewards = np.zeros(self.copies, dtype=np.float32)
        terminated, truncated = np.zeros((2, self.copies), dtype=bool)
        final: dict[int, np.ndarray] = {}
        episodes: dict[int, Episode] = {}

        def advance(copies: np.ndarray) -> None:
            for copy in copies.tolist():
                game = self.games[copy]
                rewards[copy], terminated[copy], truncated[copy] = game.step(int(actions[copy]))
                if game.final is not None:
                    final[copy] = game.final
                if game.ended is not None:
                    episodes[copy] = Episode(copy, *game.ended)

        busy = np.flatnonzero(running)
        if self.pool is None:
            advance(busy)
        else:
            list(self.pool.map(advance, np.array_split(busy, self.settings.threads)))
        return Step(
            self.observations.copy(),
            rewards,
            terminated,
            truncated,
            {copy: final[copy] for copy in sorted(final)},
            [episodes[copy] for copy in sorted(episodes)],
        )

    def state_dict(self) -> dict[str, Any]:
        """Emulators with their generators, stacks, lives, accounts and our generators."""
        assert self.started, "reset or load_state_dict comes before state_dict"
        return {
            **self._identity(),
            "observations": self.observations.copy(),
            "games": [game.state_dict() for game in self.games],
        }

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Continue exactly where `state_dict` was taken."""
        self._check_state(state, self._identity())
        self.observations[:] = state["observations"]
        for game, saved in zip(self.games, state["games"], strict=True):
            game.load_state_dict(saved)
        self.started = True
        return self.observations.copy()

    def render(self, copy: int) -> np.ndarray:
        """The emulator's screen, uint8 [210, 160, 3] for most games."""
        return self.games[copy].screen()

    def last_screen(self, copy: int) -> np.ndarray:
        """The screen that the latest finished game of `copy` ended on, which `render` is past."""
        screen = self.games[copy].last_screen
        assert screen is not None, "a game of this copy has ended since it was made"
        return screen

    def close(self) -> None:
        """End the threads and forget the emulators."""
        if self.pool is not None:
            self.pool.shutdown()
        self.games = []

    def _identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "copies": self.copies,
            "first_copy": self.first_copy,
            "settings": self.settings.model_dump(exclude={"threads", "workers"}),
        }


class _Game:
    """One copy: its emulator, its view `stack` of the observations, its accounts."""

    def __init__(self, path: Path, settings: EnvironmentSettings, stack: np.ndarray) -> None:
        self.path, self.settings, self.stack = path, settings, stack
        self.ale = ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.loaded = False  # loading the ROM costs a tenth of a second, seeding loads it again
        own, full, (height, width) = _rules(path)
        self.actions = full if settings.full_action_space else own
        self.fires = settings.fire_reset and Action.FIRE in own
        self.limit = settings.max_episode_frames // settings.frame_skip
        self.shrink = Shrink(height, width)
        self.frames = np.zeros((2, height, width), dtype=np.uint8)
        self.generator = np.random.Generator(np.random.Philox())
        self.last = Action.NOOP  # what the latest frame was played with
        self.lives = self.length = 0
        self.total = 0.0
        self.loaded_screen: np.ndarray | None = None  # restoring an emulator leaves it stale
        self.last_screen: np.ndarray | None = None  # of the latest game that ended
        self.final: np.ndarray | None = None  # observation the latest step ended with
        self.ended: tuple[float, int, bool] | None = None  # game the latest step ended

    def seed(self, seed: int, generator: np.random.Generator) -> None:
        self.generator = generator
        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(self.path)  # seeds take effect here
        self.loaded = True
        self._start()

    def step(self, action: int) -> tuple[float, bool, bool]:
        """Reward, terminated, truncated; sets `final` and `ended`."""
        reward = self._hold(self.actions[action], self.settings.sticky_actions)
        self._push()
        self.length += 1
        over, lives = self.ale.game_over(with_truncation=False), self.ale.lives()
        limit = self.length >= self.limit
        lost = not over and 0 < lives < self.lives
        cut = lost and self.settings.life_loss == "cut"
        terminated = over or cut
        self.final = self.stack.copy() if terminated or limit else None
        if lost and self.fires and not limit:
            reward += self._hold(Action.FIRE)
            self._push()
            over, lives = self.ale.game_over(with_truncation=False), self.ale.lives()
            if over and not cut:
                terminated, self.final = True, self.stack.copy()
        self.lives = lives
        self.total += reward
        self.ended = None
        if over or limit:
            self.ended = (self.total, self.length, not over)
            self.last_screen = self.screen()
            self._start()
        elif cut:
            self.stack[:] = self.stack[-1].copy()
        return reward, terminated, limit and not terminated

    def _start(self) -> None:
        """Start a game: reset, NOOPs, FIRE, a stack of equal pictures."""
        self.ale.reset_game()
        most = self.settings.noop_max
        for _ in range(int(self.generator.integers(1, most + 1)) if most else 0):
            self.ale.act(Action.NOOP)
            if self.ale.game_over(with_truncation=False):
                self.ale.reset_game()
        self.last = Action.NOOP
        if self.fires:
            self._hold(Action.FIRE)
            if self.ale.game_over(with_truncation=False):
                self.ale.reset_game()
                self.ale.getScreenGrayscale(self.frames[0])
        else:
            self.ale.getScreenGrayscale(self.frames[0])
        self.loaded_screen = None
        self._push()
        self.stack[:] = self.stack[-1].copy()
        self.lives, self.length, self.total = self.ale.lives(), 0, 0.0

    def _hold(self, action: Action, sticky: float = 0.0) -> float:
        """Play `action` for a skip of frames; leave the maximum of the last two in `frames[0]`."""
        reward, skip, act = 0, self.settings.frame_skip, self.ale.act
        for frame in range(skip):
            if not sticky or self.generator.random() >= sticky:
                self.last = action
            reward += act(self.last)
            if frame >= skip - 2:
                self.ale.getScreenGrayscale(self.frames[frame - skip])
        if skip == 1:
            self.frames[0] = self.frames[1]
        else:
            np.maximum(self.frames[0], self.frames[1], out=self.frames[0])
        self.loaded_screen = None
        return float(reward)

    def _push(self) -> None:
        self.stack[:-1] = self.stack[1:]
        self.shrink(self.frames[0], self.stack[-1])

    def screen(self) -> np.ndarray:
        return self.ale.getScreenRGB() if self.loaded_screen is None else self.loaded_screen.copy()

    def state_dict(self) -> dict[str, Any]:
        return {
            "emulator": self.ale.cloneState(include_rng=True).serialize(),
            "generator": self.generator.bit_generator.state,
            "last": self.last.value,
            "lives": self.lives,
            "length": self.length,
            "total": self.total,
            "screen": self.screen(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not self.loaded:
            self.ale.loadROM(self.path)
            self.loaded = True
        self.ale.restoreState(ALEState(state["emulator"]))
        self.generator = np.random.Generator(np.random.Philox())
        self.generator.bit_generator.state = state["generator"]
        self.last = Action(state["last"])
        self.lives, self.length, self.total = state["lives"], state["length"], state["total"]
        self.loaded_screen = state["screen"].copy()


@functools.cache
def _rules(path: Path) -> tuple[list[Action], list[Action], tuple[int, int]]:
    """The game's own actions, all actions, and the size of its screen."""
    ale = ALEInterface()
    ale.loadROM(path)
    return ale.getMinimalActionSet(), ale.getLegalActionSet(), ale.getScreenDims()


class Shrink:
    """Area averaging to SIZE x SIZE as two small matrix products, exact and so the same everywhere.

    Along an axis of n pixels, out pixel j is the mean of [j n/84, (j+1) n/84). Times 84 these
    overlaps are whole numbers, and they repeat with the greatest common divisor of n and 84: 210
    rows are 42 blocks of 5 rows to 2, 160 columns 4 blocks of 40 to 21. Sums of whole numbers below
    2^24 are exact in float32, in whatever order they are added.
    """

    def __init__(self, height: int, width: int) -> None:
        self.rows, self.columns = _overlaps(height), _overlaps(width).T.copy()
        self.weight = np.float32(self.rows[0].sum() * self.columns[:, 0].sum())
        assert 256 * self.weight < 2**24
        self.wide = np.empty((height, width), dtype=np.float32)

    def __call__(self, frame: np.ndarray, out: np.ndarray) -> None:
        """Write the shrunken uint8 `frame` [height, width] into `out` [SIZE, SIZE]."""
        self.wide[:] = frame
        tall = self.wide.reshape(-1, len(self.columns)) @ self.columns
        sums = self.rows @ tall.reshape(-1, self.rows.shape[1], SIZE)
        sums += self.weight / 2
        sums /= self.weight
        out[:] = sums.reshape(SIZE, SIZE)  # to uint8: rounds down


def _overlaps(size: int) -> np.ndarray:
    """Overlap of each out pixel with each in pixel of one block, in whole units, float32."""
    common = math.gcd(size, SIZE)
    ins, outs = size // common, SIZE // common
    left, start = np.arange(outs)[:, None] * ins, np.arange(ins) * outs
    overlap = np.minimum(left + ins, start + outs) - np.maximum(left, start)
    return np.maximum(overlap, 0).astype(np.float32)


def rom_path(game: str) -> Path:
    """Where the ROM of `game` (ale-py's spelling) lies.

    Raises:
        BadInput: it is missing, damaged, or of no single-player game; what to install.
    """
    ALEInterface.setLoggerMode(LoggerMode.Error)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it reports ALE_ROMS_DIR by printing
            path = roms.get_rom_path(game)
    except OSError as error:
        raise BadInput(
            f"environment={game!r}: its ROM cannot be read ({error}); ROMs come with ale-py: "
            "unset ALE_ROMS_DIR, or pip install --force-reinstall ale-py"
        ) from error
    assert path is not None, "the name was checked"
    if ALEInterface.isSupportedROM(path) is None:
        raise BadInput(
            f"environment={game!r}: ale-py has its ROM but not its rules (a game for several "
            "players, say); choose another"
        )
    return path
