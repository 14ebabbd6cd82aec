"""What a PQN run ends with: the policy, games played with it, and the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reprise.rl.config import PQN
from reprise.rl.networks import Metadata, QNetwork, greedy, save_policy
from reprise.rollout.environments.base import make
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.weights import weights_sha256

if TYPE_CHECKING:
    from reprise.rl.pqn import Learner

WORK = ("acting", "environment", "forward", "backward", "optimizer")  # `<name>_seconds` in metrics


def result(learner: Learner) -> dict[str, Any]:
    """Save the policy, play with it, and sum up."""
    config, recorded = learner.config, learner.run_dir.metrics()
    summary: dict[str, Any] = {
        "environment": learner.environments.name,
        "steps": learner.step,
        "steps_per_second": len(recorded)
        * config.batch
        / max(sum(config.batch / one["steps_per_second"] for one in recorded), 1e-9),
        "episodes": learner.games,
        "mean_return_last_3": float(np.mean(list(learner.recent)[-3:])) if learner.recent else None,
        "mean_return_last_100": float(np.mean(learner.recent)) if learner.recent else None,
        "quantization_step": config.quantization.step,
        "arrangement": config.arrangement,
        "precision": learner.precision,
        "weights_sha256": weights_sha256(learner.network.state_dict()),
    }
    if learner.run_dir.is_main:
        training = {"seed": config.seed, "steps": learner.step, "precision": learner.precision}
        metadata = Metadata(
            learner.environments.name,
            config.environment_settings.model_dump(mode="json", exclude={"workers"}),
            list(learner.environments.observation_shape),
            learner.environments.actions,
            list(config.hidden),
            config.quantization.model_dump(mode="json"),
            training,
        )
        with learner.run_dir.checkpoint("final") as folder:
            save_policy(learner.network, folder, metadata)
        summary |= play_games(config, learner.network, learner.streams, learner.run_dir)
    learner.environments.close()
    return summary


def play_games(config: PQN, network: QNetwork, streams: Streams, run_dir: RunDir) -> dict[str, Any]:
    """Greedy and epsilon-greedy games in float32, their returns as fields, and a film."""
    from reprise.rl.play import film, play, write_csv

    games = config.evaluation
    settings = config.environment_settings.model_copy(update={"workers": 0})  # few copies play

    def policy(observations: np.ndarray) -> np.ndarray:
        return greedy(network, observations)[0]

    played = {}
    for prefix, epsilon in (("evaluation", games.epsilon), ("greedy", 0.0)):
        environments = make(config.environment, min(games.copies, games.episodes), settings)
        played[prefix] = play(policy, environments, games.episodes, streams, epsilon)
        environments.close()
    write_csv(run_dir.path / "evaluation.csv", played.values())
    if games.film:
        environments = make(config.environment, 1, settings)
        film(policy, environments, run_dir.path / "episode.gif", streams, games.epsilon)
        environments.close()
    return {
        key: value for prefix, one in played.items() for key, value in one.summary(prefix).items()
    }
