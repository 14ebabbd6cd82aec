"""Record what a trained policy does as a Minari data set (experiment `rl.collect`).

The policy acts on what it was trained on, maximum over two frames included. With ``frames: raw``
the set keeps the emulator's screen after each step instead: no maximum, no resizing, frame skip 4,
as Minari's own Atari sets. With ``frames: exact`` it keeps what the policy saw. Games are whole
games: a lost life ends none.

`epsilon` is the share of random actions: a greedy policy in a deterministic emulator otherwise
differs from game to game only by its no-ops at the start. The seeds are a stream of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from reprise.rl.agreement_config import Collect
from reprise.rl.networks import Metadata, QNetwork, greedy, load_policy
from reprise.rl.play import standard_error
from reprise.rollout.environments.base import CLASSIC_CONTROL, Environments, make
from reprise.rollout.errors import BadInput
from reprise.rollout.files import without_home
from reprise.rollout.minari_atari import minari_folder
from reprise.rollout.minari_record import LARGEST_GAME, Writer, existing, new_data_set
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.run.settings import EnvironmentSettings
from reprise.rollout.weights import weights_sha256


def run(config: Collect, run_dir: RunDir) -> dict[str, Any]:
    """Play, write, sum up. A run that was killed leaves no data set, and starts again."""
    if run_dir.world > 1:
        raise BadInput(f"{run_dir.world} processes: a data set is recorded by one; start one")
    network, of = load_policy(config.policy)
    made_by = {
        "config_sha256": run_dir.config_sha256,
        "policy_sha256": weights_sha256(network.state_dict()),
    }
    there = existing(config.to)
    if there is not None:
        ours = there.get("recorded", {})
        if any(ours.get(key) != value for key, value in made_by.items()):
            raise BadInput(
                f"to={config.to!r}: a data set of this id is already in "
                f"{minari_folder(config.to)}; choose another, with a higher version, or delete it "
                f"with `minari delete {config.to}`"
            )
        return dict(ours["summary"])  # killed after the last byte and before summary.json
    run_dir.cut_metrics(lambda record: False)
    settings = _settings(config, of)
    environments = make(of.environment, min(config.copies, config.amount), settings)
    player = _Player(config, network, environments, run_dir)
    about: dict[str, Any] = {
        "algorithm_name": "PQN",
        "description": f"{of.environment} played by a policy trained with PQN "
        f"({of.training}), epsilon {config.epsilon}, frames: {config.frames}. "
        "Lossless; frame skip without maximum over frames where frames are raw.",
    }
    first = player.start()
    with new_data_set(
        config.to, of.environment, settings, first, environments.actions, config.format, about
    ) as writer:
        player.play(writer)
        summary = {
            "dataset": config.to,
            "path": without_home(minari_folder(config.to)),
            "environment": of.environment,
            "frames": config.frames,
            "games": writer.games,
            "observations": writer.steps,
            "return_mean": float(np.mean(player.totals)) if player.totals else None,
            "return_se": standard_error(player.totals),
            "data_sha256": writer.digest.hexdigest(),
            "policy_sha256": made_by["policy_sha256"],
        }
        about["recorded"] = {
            **made_by,
            "summary": {key: None if value != value else value for key, value in summary.items()},
            "epsilon": config.epsilon,
            "seed": config.seed,
            "policy": of.training,
            "environment_settings": of.environment_settings,
        }
    environments.close()
    return summary


def _settings(config: Collect, of: Metadata) -> EnvironmentSettings:
    """The policy's own, with the shorter of both time limits.

    Raises:
        BadInput: raw frames of vectors.
    """
    settings = EnvironmentSettings(**of.environment_settings)
    skip = settings.frame_skip
    if of.environment in CLASSIC_CONTROL:
        if config.frames == "raw":
            raise BadInput(
                f"frames=raw: {config.policy} plays {of.environment}, whose observations are "
                "vectors, not screens; use frames=exact"
            )
        skip = 1
    frames = min(settings.max_episode_frames, config.longest * skip)
    return settings.model_copy(update={"max_episode_frames": frames})


@dataclass
class _Track:
    """A game being played."""

    observations: list[np.ndarray]
    actions: list[int]
    rewards: list[float]


class _Player:
    """Plays as many games, or steps, in every copy: short games are not favoured."""

    def __init__(
        self, config: Collect, network: QNetwork, environments: Environments, run_dir: RunDir
    ) -> None:
        self.config, self.network, self.environments = config, network, environments
        self.run_dir = run_dir
        self.streams = Streams(config.seed)
        self.totals: list[float] = []
        self.tracks: list[_Track] = []
        self.observations = np.zeros(0)

    def start(self) -> np.ndarray:
        """Reset all copies; the first observation of the first."""
        self.observations = self.environments.reset(self.streams.data_seed("collect"))
        self.tracks = [self._track(copy) for copy in range(self.environments.copies)]
        first = self.tracks[0].observations[0]
        if first.nbytes * (self.config.longest + 1) > LARGEST_GAME:
            raise BadInput(
                f"longest={self.config.longest}: a game of so many observations of {first.nbytes} "
                f"bytes may exceed 2 GiB; at most {LARGEST_GAME // first.nbytes - 1}"
            )
        return first

    def play(self, writer: Writer) -> None:
        """Until every copy has done its share."""
        config, environments = self.config, self.environments
        noise = self.streams.data("collect-actions", 0)
        copies = environments.copies
        left = config.amount // copies + (np.arange(copies) < config.amount % copies)
        what = "games" if config.episodes else "steps"
        with self.run_dir.progress("recording", config.amount, what) as progress:
            while left.any():
                busy = left > 0
                actions = np.zeros(copies, dtype=np.int64)
                actions[busy] = greedy(self.network, self.observations[busy])[0]
                random = noise.integers(0, environments.actions, copies)
                actions = np.where(noise.random(copies) < config.epsilon, random, actions)
                step = environments.step(actions, busy)
                self.observations = step.observations
                games = {game.copy: game for game in step.episodes}
                for copy in np.flatnonzero(busy).tolist():
                    track, game = self.tracks[copy], games.get(copy)
                    track.actions.append(int(actions[copy]))
                    track.rewards.append(float(step.rewards[copy]))
                    done = bool(game) if config.episodes else True
                    left[copy] -= done
                    if done:
                        progress.advance()
                    if game:
                        last = step.final_observations[copy]
                        if config.frames == "raw":
                            last = environments.last_screen(copy)  # type: ignore[attr-defined]
                        track.observations.append(last)
                        self.totals.append(game.total)
                        self._write(writer, copy, not game.truncated)
                    else:
                        track.observations.append(self._view(copy))
                        if not left[copy]:
                            self._write(writer, copy, False)

    def _write(self, writer: Writer, copy: int, terminated: bool) -> None:
        track = self.tracks[copy]
        writer.add(track.observations, track.actions, track.rewards, terminated)
        self.run_dir.log(
            step=writer.steps, game=writer.games, total=sum(track.rewards), cut=not terminated
        )
        self.tracks[copy] = self._track(copy)

    def _track(self, copy: int) -> _Track:
        return _Track([self._view(copy)], [], [])

    def _view(self, copy: int) -> np.ndarray:
        """What is recorded of a copy now."""
        if self.config.frames == "raw":
            return self.environments.render(copy)
        return self.observations[copy].copy()
