"""Evaluation: whole games by a policy that no longer learns, on seeds that nobody trained on.

A return here is the sum of a game's raw rewards: not discounted, not clipped, and over all lives,
also where a lost life cuts what the learner sees.

Two traps. "The first E episodes to end" of several copies favours short episodes, so each copy has
its own quota and all its games count. And a greedy policy may do nothing for ever (Breakout waits
for FIRE): such a game ends at the environment's time limit and counts with what it has.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprise.rl.human_scores import human_normalized
from reprise.rollout.errors import BadInput
from reprise.rollout.files import write_bytes, write_text
from reprise.rollout.randomness import Streams

if TYPE_CHECKING:
    from reprise.rollout.environments.base import Environments, Episode

Policy = Callable[[np.ndarray], np.ndarray]  # observations [N, ...] -> actions [N]


@dataclass(frozen=True)
class PlayedGames:
    """Whole games of one policy.

    Attributes:
        environment: its name.
        epsilon: share of actions drawn at random; 0 is greedy.
        seed: of the environments.
        episodes: in order of copies, each copy's in order of time.
    """

    environment: str
    epsilon: float
    seed: int
    episodes: tuple[Episode, ...]

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted returns, float64 [E]."""
        return np.array([episode.total for episode in self.episodes], dtype=np.float64)

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over episodes; NaN for one episode."""
        return standard_error(self.returns)

    def summary(self, prefix: str = "evaluation") -> dict[str, Any]:
        """Fields for ``summary.json``; `human_normalized` is None for what has no human score."""
        return {
            f"{prefix}_episodes": len(self.episodes),
            f"{prefix}_epsilon": self.epsilon,
            f"{prefix}_return_mean": self.mean,
            f"{prefix}_return_se": self.standard_error,
            f"{prefix}_length_mean": float(np.mean([one.length for one in self.episodes])),
            f"{prefix}_time_limits": sum(one.truncated for one in self.episodes),
            f"{prefix}_human_normalized": human_normalized(self.environment, self.mean),
        }


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Of the mean of independent values; NaN for fewer than two."""
    count = len(values)
    return float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan


def play(
    policy: Policy,
    environments: Environments,
    episodes: int,
    streams: Streams,
    epsilon: float = 0.0,
    name: str = "evaluation",
) -> PlayedGames:
    """Play `episodes` whole games, shared out evenly over the copies.

    Args:
        policy: observations [n, ...] -> actions [n]; sees only copies that still have to play.
        environments: its copies are reset from the stream `name`, which training does not use.
        episodes: E.
        streams: the run's; nothing is left in them, so a run may evaluate at any time.
        epsilon: share of actions drawn uniformly at random.
        name: of the stream; another name gives other games.

    Raises:
        BadInput: no episodes, or epsilon is no share.
    """
    if episodes < 1:
        raise BadInput(f"episodes={episodes}; must be at least 1")
    if not 0 <= epsilon <= 1:
        raise BadInput(f"epsilon={epsilon}; must be within [0, 1]")
    seed = streams.data_seed(name)
    noise = streams.data(f"{name}-actions", 0)
    copies = environments.copies
    left = episodes // copies + (np.arange(copies) < episodes % copies).astype(np.int64)
    played: list[list[Episode]] = [[] for _ in range(copies)]
    observations = environments.reset(seed)
    while left.any():
        actions = np.zeros(copies, dtype=np.int64)
        busy = left > 0
        actions[busy] = policy(observations[busy])
        if epsilon:
            explore = noise.random(copies) < epsilon
            actions = np.where(explore, noise.integers(0, environments.actions, copies), actions)
        step = environments.step(actions, busy)
        observations = step.observations
        for episode in step.episodes:
            played[episode.copy].append(episode)
            left[episode.copy] -= 1
    return PlayedGames(environments.name, epsilon, seed, tuple(chain(*played)))


def episode_returns(
    policy: Policy,
    environments: Environments,
    episodes: int,
    streams: Streams,
    epsilon: float = 0.0,
    name: str = "evaluation",
) -> np.ndarray:
    """The undiscounted returns of `play`, float64 [E]."""
    return play(policy, environments, episodes, streams, epsilon, name).returns


def write_csv(path: Path, evaluations: Iterable[PlayedGames]) -> None:
    """One line for each game: environment, epsilon, seed, copy, episode, return, length, limit."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(
        ["environment", "epsilon", "seed", "copy", "episode", "return", "length", "time_limit"]
    )
    for one in evaluations:
        for number, episode in enumerate(one.episodes):
            lines.writerow(
                [
                    one.environment,
                    one.epsilon,
                    one.seed,
                    episode.copy,
                    number,
                    episode.total,
                    episode.length,
                    int(episode.truncated),
                ]
            )
    write_text(path, text.getvalue())


# -- video -----------------------------------------------------------------------------------------


def film(
    policy: Policy,
    environments: Environments,
    path: Path,
    streams: Streams,
    epsilon: float = 0.0,
    name: str = "video",
    longest: int = 1500,
    milliseconds: int = 70,
) -> Episode | None:
    """Play one game and write it as the animated GIF `path`.

    Args:
        policy: as in `play`.
        environments: one copy.
        path: ends in ``.gif``.
        streams: the run's.
        epsilon: share of random actions.
        name: of the stream of seeds.
        longest: frames (agent steps) after which the film is cut.
        milliseconds: a frame's; GIF counts in tens. 70 is Atari's speed at frame skip 4 (66.7).

    Returns:
        The game, or None if it was not over after `longest` steps.

    Raises:
        BadInput: several copies, or a file that is not called ``.gif``.
    """
    if environments.copies != 1:
        raise BadInput(f"copies={environments.copies}: a film is of one; make one copy")
    if path.suffix != ".gif":
        raise BadInput(f"{path}: a film is written as .gif")
    noise = streams.data(f"{name}-actions", 0)
    observations = environments.reset(streams.data_seed(name))
    frames = [environments.render(0)]
    game = None
    while game is None and len(frames) < longest:
        actions = np.asarray(policy(observations), dtype=np.int64)
        if epsilon and noise.random() < epsilon:
            actions = noise.integers(0, environments.actions, 1)
        step = environments.step(actions)
        observations = step.observations
        if step.episodes:
            game = step.episodes[0]
        else:  # after an end the screen already shows the next game
            frames.append(environments.render(0))
    write_gif(path, frames, milliseconds)
    return game


def write_gif(path: Path, frames: list[np.ndarray], milliseconds: int) -> None:
    """Write RGB frames, uint8 [H, W, 3], as a GIF that repeats.

    A GIF has 256 colours. An Atari game has at most 128, and they are kept exactly; a film of more
    colours is reduced to 6 levels of each of red, green and blue.
    """
    from PIL import Image

    weights = np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    codes = [frame.astype(np.int32) @ weights for frame in frames]
    colours = np.unique(np.concatenate([np.unique(code) for code in codes]))
    if len(colours) <= 256:
        indices = [np.searchsorted(colours, code).astype(np.uint8) for code in codes]
        palette = np.stack([colours >> 16, (colours >> 8) & 255, colours & 255], 1)
    else:
        cube = np.array([36, 6, 1], dtype=np.int32)
        indices = [
            (np.rint(frame / 51.0).astype(np.int32) @ cube).astype(np.uint8) for frame in frames
        ]
        palette = 51 * np.stack(np.unravel_index(np.arange(216), (6, 6, 6)), 1)
    images = [Image.fromarray(index) for index in indices]
    for image in images:
        image.putpalette(palette.astype(np.uint8).tobytes())
    file = io.BytesIO()
    images[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=milliseconds,
        loop=0,
        optimize=False,
    )
    write_bytes(path, file.getvalue())
