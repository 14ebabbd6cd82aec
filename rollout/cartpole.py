"""Offline CartPole data: a replay of d3rlpy's DQN as it learns, recorded here and kept.

d3rlpy publishes such a replay, which needs a network to download. This one is made by the same
learner on the same environment, 100,000 steps from a random policy to a good one, and is stored
as round 0 of a `RoundStore` (10 shards of Parquet), with twenty snapshots of the learner's network.
The snapshots make *independent* data of the same kind: `behaviour` acts as the learner did at a
twentieth, two twentieths, ... of its training, so any number of fresh data sets can be drawn.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rollout.collect import Policy, collect
from rollout.environments import cartpole
from rollout.files import atomic_directory, sha256_file, write_json
from rollout.randomness import Streams
from rollout.store import RoundStore, shard_rows
from rollout.types import Transitions

SHARDS = 10
SNAPSHOTS = 20
# d3rlpy's own example for CartPole (examples/online/dqn_cartpole.py), with a smaller network.
LEARNER: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": 1e-3,
    "target_update_interval": 100,
    "hidden_units": [64, 64],
    "start_epsilon": 1.0,
    "end_epsilon": 0.1,
    "epsilon_steps": 10_000,
    "update_start_step": 1_000,
}


def cache_folder() -> Path:
    """`$REPRISE_CACHE`, or ~/.cache/reprise."""
    return Path(os.environ.get("REPRISE_CACHE") or Path.home() / ".cache" / "reprise")


def replay_folder(steps: int = 100_000, seed: int = 0) -> Path:
    """Where the recorded replay lies; recorded first if missing (100,000 steps: minutes).

    Appears whole or not at all, so that a killed recording leaves nothing behind.
    """
    if steps < SNAPSHOTS * SHARDS:
        raise ValueError(f"steps={steps}; a replay has at least {SNAPSHOTS * SHARDS} steps")
    path = cache_folder() / f"cartpole-dqn-{steps}-seed-{seed}"
    if not (path / "rounds").is_dir():
        with atomic_directory(path) as folder:
            transitions, networks = _learn(steps, seed)
            np.savez(folder / "snapshots.npz", **networks)
            _store(folder, transitions, steps, seed)
    return path


def replay(steps: int = 100_000, seed: int = 0) -> Transitions:
    """Return the recorded replay, verified against its checksums."""
    data = RoundStore(replay_folder(steps, seed) / "rounds").read(0).data
    assert isinstance(data, Transitions)
    return data


def behaviour(steps: int = 100_000, seed: int = 0) -> dict[str, np.ndarray]:
    """Networks and exploration of the learner's snapshots, read from the recorded replay."""
    with np.load(replay_folder(steps, seed) / "snapshots.npz") as file:
        return {name: file[name] for name in file.files}


def fresh(
    snapshots: dict[str, np.ndarray], steps: int, streams: Streams, *index: int
) -> Transitions:
    """Collect `steps` transitions anew, an equal share under each snapshot.

    Every call with another index, or with streams of another seed, is an independent data set:
    five copies of CartPole for each snapshot, from fresh initial states, epsilon-greedy.
    """
    copies = 5 * len(snapshots["epsilon"])
    policy = _epsilon_greedy(snapshots, 5, streams.data("behaviour", *index))
    # A share of the steps only resets; one in nine is more than the shortest episodes need.
    enough = -(-steps * 9 // (8 * copies)) + 2
    parts = collect(policy, cartpole(copies), enough, streams.data_seed("environment", *index))
    rows = streams.data("rows", *index).permutation(len(parts))[:steps]
    if len(rows) < steps:
        raise ValueError(f"steps={steps}: only {len(rows)} were collected; episodes are too short")
    return parts.take(np.sort(rows))


def _epsilon_greedy(
    snapshots: dict[str, np.ndarray], copies_each: int, generator: np.random.Generator
) -> Policy:
    count = len(snapshots["epsilon"])
    epsilon = np.repeat(snapshots["epsilon"], copies_each)

    def act(observations: np.ndarray) -> np.ndarray:
        hidden = observations.reshape(count, copies_each, -1)
        layers = sum(name.startswith("weight") for name in snapshots)
        for layer in range(layers):
            hidden = hidden @ snapshots[f"weight{layer}"].transpose(0, 2, 1)
            hidden = hidden + snapshots[f"bias{layer}"][:, None]
            if layer < layers - 1:
                hidden = np.maximum(hidden, 0.0)
        greedy = hidden.argmax(-1).reshape(-1)
        explore = generator.random(len(greedy)) < epsilon
        return np.where(explore, generator.integers(0, 2, len(greedy)), greedy)

    return act


def _store(folder: Path, transitions: Transitions, steps: int, seed: int) -> None:
    metadata = {
        "config_sha256": None,
        "code_revision": None,
        "policy": f"d3rlpy DQN while learning, {LEARNER}",
        "reward_model": None,
        "random_state": {"seed": seed},
    }
    writer = RoundStore(folder / "rounds").writer(0, SHARDS, metadata, kind="transitions")
    for shard in writer.missing():
        writer.write(shard, transitions.take(shard_rows(steps, SHARDS, shard)))
    writer.finish(episodes=int((transitions.terminated | transitions.truncated).sum()))
    write_json(
        folder / "about.json",
        {
            "environment": "CartPole-v1",
            "steps": steps,
            "seed": seed,
            "learner": LEARNER,
            "snapshots_sha256": sha256_file(folder / "snapshots.npz"),
        },
    )


def _learn(steps: int, seed: int) -> tuple[Transitions, dict[str, np.ndarray]]:
    """Train DQN for `steps` and return every transition, with SNAPSHOTS copies of its network."""
    import d3rlpy
    import gymnasium
    import torch
    from d3rlpy.algos import DQNConfig, LinearDecayEpsilonGreedy
    from d3rlpy.logging import NoopAdapterFactory
    from d3rlpy.models.encoders import VectorEncoderFactory

    # d3rlpy draws from the global generators; whoever calls us finds theirs as they left them.
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    d3rlpy.seed(seed)
    recorder = _recorder(gymnasium.make("CartPole-v1"), seed)
    explorer = LinearDecayEpsilonGreedy(
        LEARNER["start_epsilon"], LEARNER["end_epsilon"], LEARNER["epsilon_steps"]
    )
    learner = DQNConfig(
        batch_size=LEARNER["batch_size"],
        learning_rate=LEARNER["learning_rate"],
        target_update_interval=LEARNER["target_update_interval"],
        encoder_factory=VectorEncoderFactory(LEARNER["hidden_units"]),
    ).create(device="cpu")
    networks: list[dict[str, np.ndarray]] = []

    def snapshot(algorithm: Any, _: int, step: int) -> None:
        if step % (steps // SNAPSHOTS) == 0 and len(networks) < SNAPSHOTS:
            networks.append(_network(algorithm.impl.q_function[0], explorer.compute_epsilon(step)))

    try:
        with contextlib.redirect_stdout(sys.stderr):  # d3rlpy logs to standard output
            learner.fit_online(
                recorder,
                buffer=d3rlpy.dataset.create_fifo_replay_buffer(steps, env=recorder),
                explorer=explorer,
                n_steps=steps,
                n_steps_per_epoch=steps,
                update_start_step=min(LEARNER["update_start_step"], steps // 10),
                save_interval=2,  # never: there is one epoch
                logger_adapter=NoopAdapterFactory(),
                show_progress=False,
                callback=snapshot,
            )
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
    return recorder.transitions(), {
        name: np.stack([network[name] for network in networks]) for name in networks[0]
    }


def _network(module: Any, epsilon: float) -> dict[str, np.ndarray]:
    """Weights and biases of a d3rlpy Q-function, by layer, as they are now."""
    tensors = [tensor.detach().cpu().numpy().copy() for tensor in module.parameters()]
    weights = [tensor for tensor in tensors if tensor.ndim == 2]
    biases = [tensor for tensor in tensors if tensor.ndim == 1]
    assert len(weights) == len(biases) == len(LEARNER["hidden_units"]) + 1
    network = {f"weight{layer}": weight for layer, weight in enumerate(weights)}
    network |= {f"bias{layer}": bias for layer, bias in enumerate(biases)}
    return {**network, "epsilon": np.float64(epsilon)}


def _recorder(environment: Any, seed: int) -> Any:
    """Wrap an environment so that it remembers every step; the first reset is seeded."""
    import gymnasium

    class Recorder(gymnasium.Wrapper):
        def __init__(self) -> None:
            super().__init__(environment)
            self.rows: list[tuple[Any, ...]] = []
            self.seed: int | None = seed

        def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
            self.observation, about = self.env.reset(seed=self.seed)
            self.seed = None
            return self.observation, about

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            following, reward, terminated, truncated, about = self.env.step(int(action))
            self.rows.append(
                (self.observation, int(action), reward, following, terminated, truncated)
            )
            self.observation = following
            return following, reward, terminated, truncated, about

        def transitions(self) -> Transitions:
            columns = [np.array(column) for column in zip(*self.rows, strict=True)]
            dtypes = (np.float32, np.int64, np.float32, np.float32, np.bool_, np.bool_)
            return Transitions(
                *(column.astype(kind) for column, kind in zip(columns, dtypes, strict=True))
            )

    return Recorder()
