"""Offline CartPole data: replays of a learner, recorded once, the same bytes on every machine.

The paper's data are d3rlpy's CartPole replay, which needs a network to download. Shipped here are
three recordings of a learner of our own (`rollout.cartpole_learner`), 100,000 steps each, from
random play to long episodes: its actions, one bit each, and twenty snapshots of its network. The
dynamics are replayed (`rollout.portable`: +, -, * and / alone, fixed by IEEE 754 to the bit) and
checked against a SHA-256.

The snapshots make *independent* data of the same kind: `fresh` acts as the learner did at a
twentieth, two twentieths, ... of its training, from fresh initial states. These policies are exact
too, whatever the processor's matrix product: weights are multiples of 2^-8, what enters a layer is
rounded to multiples of 2^-12, so that every product and sum is a multiple of 2^-20 below 2^33 and
has an exact double; no order of adding can change it (`_check_exact` sees to that).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from reprise.rollout.cartpole_learner import Settings, learn
from reprise.rollout.environments.portable import make_portable
from reprise.rollout.episodes import Policy, collect_transitions
from reprise.rollout.errors import BadInput
from reprise.rollout.files import atomic_directory, sha256_file, write_json
from reprise.rollout.randomness import Streams
from reprise.rollout.store import RoundStore, shard_rows
from reprise.rollout.types import Transitions

SHARDS = 10
SNAPSHOTS = 20
STEPS = 100_000
RECORDINGS = Path(__file__).with_name("recordings")
WEIGHT, INPUT = 2.0**8, 2.0**12  # weights are multiples of 1 / WEIGHT, inputs of 1 / INPUT
COPIES = 5  # of CartPole for each snapshot
# Of the transitions that the shipped recordings make, by seed.
SHA256 = {
    0: "7bb904a243fbaca7f601fec69fca883c86719ad83959cd94bb1be13f6a047c09",
    1: "b57d05152e0c0431a6e2584cae435e62764962bda2e814d6caad7e18fb63916a",
    2: "15422fee285b5c97661db37a1fbb3525707299fd4aa1f05cb5d95730881edd3e",
}


def cache_folder() -> Path:
    """`$REPRISE_CACHE`, or ~/.cache/reprise."""
    return Path(os.environ.get("REPRISE_CACHE") or Path.home() / ".cache" / "reprise")


def replay_folder(steps: int = STEPS, seed: int = 0) -> Path:
    """Where the replay lies; made first if missing.

    Of the shipped recordings (100,000 steps, seeds 0 to 2) within seconds and to the same bytes
    everywhere; any other is recorded here by the learner, a minute for 100,000 steps, and says so
    in ``about.json``. Appears whole or not at all.

    Raises:
        BadInput: too few steps, or this machine's replay of a shipped recording is another.
    """
    if steps < SNAPSHOTS * SHARDS:
        raise BadInput(f"steps={steps}; a replay has at least {SNAPSHOTS * SHARDS} steps")
    path = cache_folder() / f"cartpole-replay-{steps}-seed-{seed}"
    if not (path / "rounds").is_dir():
        shipped = _shipped(steps, seed)
        recording = _load(shipped) if shipped else record(steps, seed)
        transitions = _played(recording, seed)
        if shipped:
            verify(transitions, SHA256[seed], f"the recorded replay of seed {seed}")
        with atomic_directory(path) as folder:
            np.savez(folder / "snapshots.npz", **_behaviour(recording))
            _store(folder, transitions, steps, seed, shipped is not None)
    return path


def replay(steps: int = STEPS, seed: int = 0) -> Transitions:
    """Return the replay, verified against its checksums."""
    data = RoundStore(replay_folder(steps, seed) / "rounds").read(0).data
    assert isinstance(data, Transitions)
    return data


def behaviour(steps: int = STEPS, seed: int = 0) -> dict[str, np.ndarray]:
    """Networks and exploration of the learner's snapshots: weights [20, in, out] by layer."""
    with np.load(replay_folder(steps, seed) / "snapshots.npz") as file:
        return {name: file[name] for name in file.files}


def fresh(
    snapshots: dict[str, np.ndarray], steps: int, streams: Streams, *index: int
) -> Transitions:
    """Collect `steps` transitions anew, an equal share under each snapshot.

    Every call with another index, or with streams of another seed, is an independent data set:
    five copies of CartPole for each snapshot, from fresh initial states, epsilon-greedy. The same
    bytes on every machine.
    """
    copies = COPIES * len(snapshots["epsilon"])
    policy = epsilon_greedy(snapshots, COPIES, streams.data("behaviour", *index))
    environments = make_portable("CartPole-v1", copies)
    each = -(-steps // copies)
    parts = collect_transitions(
        policy, environments, each, streams.data_seed("environment", *index)
    )
    if len(parts) == steps:
        return parts
    rows = streams.data("rows", *index).permutation(len(parts))[:steps]
    return parts.take(np.sort(rows))


def epsilon_greedy(
    snapshots: dict[str, np.ndarray], copies_each: int, generator: np.random.Generator
) -> Policy:
    """Every snapshot's policy for `copies_each` copies: observations [S * copies_each, 4]."""
    count = len(snapshots["epsilon"])
    epsilon = np.repeat(snapshots["epsilon"], copies_each)
    layers = sum(name.startswith("weight") for name in snapshots)
    _check_exact(snapshots, layers)

    def act(observations: np.ndarray) -> np.ndarray:
        hidden = observations.astype(np.float64).reshape(count, copies_each, -1)
        for layer in range(layers):
            hidden = np.rint(hidden * INPUT) / INPUT
            hidden = hidden @ snapshots[f"weight{layer}"]
            hidden = hidden + snapshots[f"bias{layer}"][:, None]
            if layer < layers - 1:
                hidden = np.maximum(hidden, 0.0)
        greedy = hidden.argmax(-1).reshape(-1)
        explore = generator.random(len(greedy)) < epsilon
        return np.where(explore, generator.integers(0, 2, len(greedy)), greedy)

    return act


def _check_exact(snapshots: dict[str, np.ndarray], layers: int) -> None:
    """Every sum has a double of its own: weights on their grid, and no value of 2^33 or more."""
    bound = np.full(snapshots["weight0"].shape[1], 8.0)  # CartPole's observations are below 8
    for layer in range(layers):
        weight, bias = snapshots[f"weight{layer}"], snapshots[f"bias{layer}"]
        for values in (weight, bias):
            assert np.array_equal(values * WEIGHT, np.rint(values * WEIGHT)), "not on the grid"
        bound = (bound @ np.abs(weight) + np.abs(bias)).max(0)
        assert bound.max() < 2.0**33, "sums would round"


# -- recordings ------------------------------------------------------------------------------------


def record(steps: int, seed: int, settings: Settings | None = None) -> dict[str, np.ndarray]:
    """Let the learner learn; its actions in bits and its snapshots in whole numbers.

    Of episodes the lengths are kept; the states they start from follow from the seed.
    """
    course = learn(steps, seed, SNAPSHOTS, settings)
    rest = steps - sum(course.lengths)  # of the episode that the end cuts
    recording = {
        "steps": np.int64(steps),
        "actions": np.packbits(course.actions),
        "lengths": np.array([*course.lengths, *([rest] if rest else [])], dtype=np.uint16),
        "epsilon": np.array(course.epsilons),
    }
    for layer in range(len(course.networks[0])):
        for index, name in enumerate(("weight", "bias")):
            values = np.stack([network[layer][index] for network in course.networks])
            recording[f"{name}{layer}"] = np.rint(values * WEIGHT).astype(np.int16)
    return recording


def verify(data: Transitions, expected: str, what: str) -> None:
    """Refuse transitions that are not the published ones.

    Raises:
        BadInput: says what differs and what to do.
    """
    found = transitions_sha256(data)
    if found != expected:
        raise BadInput(
            f"{what}: this machine makes other transitions (SHA-256 {found[:12]}..., published "
            f"{expected[:12]}...), so no published table can be made from them here. They use "
            "only +, -, *, / and rounding: please report processor and numpy version; a damaged "
            "installation is mended by installing Reprise again"
        )


def transitions_sha256(data: Transitions) -> str:
    """SHA-256 over the bytes of every column, in order."""
    digest = hashlib.sha256()
    for column in (
        data.observations,
        data.actions,
        data.rewards,
        data.next_observations,
        data.terminated,
        data.truncated,
    ):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _shipped(steps: int, seed: int) -> Path | None:
    file = RECORDINGS / f"cartpole-{seed}.npz"
    return file if steps == STEPS and seed in SHA256 else None


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


def _behaviour(recording: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Snapshots as `epsilon_greedy` wants them."""
    names = [name for name in recording if name.startswith(("weight", "bias"))]
    return {name: recording[name] / WEIGHT for name in names} | {"epsilon": recording["epsilon"]}


def _played(recording: dict[str, np.ndarray], seed: int) -> Transitions:
    """What the recorded actions lead to, from the states that the seed starts from.

    Episodes are played side by side, as their lengths are known: the same numbers as one after
    the other, in a hundredth of the time.
    """
    actions = _actions(recording)
    lengths = recording["lengths"].astype(np.int64)
    first = np.cumsum(lengths) - lengths
    environment = make_portable("CartPole-v1", 1)
    environment.reset(seed)
    generator = Streams(seed).data("environment", 0)
    states = np.stack([environment.start(generator) for _ in lengths])
    shape = (len(actions), *environment.observation_shape)
    before, after = np.empty(shape, np.float32), np.empty(shape, np.float32)
    rewards, terminated = np.empty(len(actions), np.float32), np.empty(len(actions), bool)
    for step in range(int(lengths.max())):
        going = np.flatnonzero(lengths > step)
        rows = first[going] + step
        before[rows] = environment.observe(states[going])
        states[going], rewards[rows], terminated[rows] = environment.advance(
            states[going], actions[rows]
        )
        after[rows] = environment.observe(states[going])
    truncated = np.zeros(len(actions), bool)
    truncated[first + lengths - 1] = True  # at the time limit, or at the end of the recording
    return Transitions(before, actions, rewards, after, terminated, truncated & ~terminated)


def _actions(recording: dict[str, np.ndarray]) -> np.ndarray:
    return np.unpackbits(recording["actions"], count=int(recording["steps"])).astype(np.int64)


def _store(folder: Path, transitions: Transitions, steps: int, seed: int, shipped: bool) -> None:
    metadata: dict[str, Any] = {
        "config_sha256": None,
        "code_revision": None,
        "policy": f"Double DQN while learning, {Settings()}",
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
            "environment": "CartPole-v1, portable dynamics",
            "steps": steps,
            "seed": seed,
            "learner": "rollout.cartpole_learner",
            "source": "shipped recording" if shipped else "recorded on this machine",
            "transitions_sha256": transitions_sha256(transitions),
            "snapshots_sha256": sha256_file(folder / "snapshots.npz"),
        },
    )


def main() -> None:
    """``python -m reprise.rollout.cartpole``: record seeds 0, 1 and 2 anew, for the package."""
    RECORDINGS.mkdir(exist_ok=True)
    for seed in range(3):
        recording = record(STEPS, seed)
        np.savez_compressed(RECORDINGS / f"cartpole-{seed}.npz", **recording)
        played = _played(recording, seed)
        ends = np.flatnonzero(played.terminated | played.truncated)
        lengths = np.diff(ends, prepend=-1)
        fifths = [round(float(lengths[(ends * 5 // STEPS) == fifth].mean())) for fifth in range(5)]
        print(f"{seed}: {transitions_sha256(played)}  mean episode lengths by fifths {fifths}")


if __name__ == "__main__":
    main()
