"""Training sets to distill, the same bytes on every machine, kept beside CartPole's replays.

    replay   CartPole: a random part of the recorded replay of a learner; data seed k takes
             recording k. The others have no recorded learner: their expert, whose exploration
             epsilon falls from 1 to 0.1 over the copies, stands in for one
    mixed    half an expert's transitions, half a random policy's
    random   a random policy's alone (which never reaches MountainCar's goal: see `training_set`)

Experts: CartPole's is the recorded learner's last snapshot, acting greedily; MountainCar's pushes
where it moves; Acrobot's swings its lower link where that moves. Dynamics and policies are portable
(`rollout.portable`, `rollout.cartpole`), and sets that published tables use are checked against
their SHA-256. The sets are kept in `rollout.cartpole.cache_folder()`, each as round 0 of a
RoundStore: reading verifies them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from reprise.rollout import cartpole
from reprise.rollout.environments.portable import make_portable
from reprise.rollout.episodes import Policy, collect_transitions
from reprise.rollout.errors import BadInput
from reprise.rollout.files import atomic_directory
from reprise.rollout.randomness import Streams
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Transitions

KINDS = ("replay", "mixed", "random")
SIZE = 4_000  # of the published sets
PUBLISHED = Path(__file__).with_name("training_sets.json")
COPIES = 50
LONGEST = {"CartPole-v1": 500, "MountainCar-v0": 200, "Acrobot-v1": 500}  # time limits


def training_set(environment: str, kind: str, size: int, seed: int) -> Transitions:
    """`size` transitions of one kind; the same bits for the same arguments.

    Raises:
        BadInput: no such kind, a replay too short for `size`, a set without ends, or a published
            set that comes out otherwise on this machine.
    """
    if kind not in KINDS:
        raise BadInput(f"data={kind!r}: the kinds are {', '.join(KINDS)}")
    path = cartpole.cache_folder() / f"distill-portable-{environment}-{kind}-{size}-seed-{seed}"
    if not (path / "rounds").is_dir():
        data = _make(environment, kind, size, Streams(seed))
        published = _published().get(f"{environment}-{kind}-{size}-{seed}")
        if published is not None:
            cartpole.verify(data, published, f"the {kind} data of {environment}, seed {seed}")
        if not data.terminated.any():
            raise BadInput(
                f"data={kind!r}: none of {size} transitions of {environment} terminates (a random "
                "policy does not reach MountainCar's goal); take replay or mixed, or more"
            )
        with atomic_directory(path) as folder:
            metadata: dict[str, Any] = {
                "config_sha256": None,
                "code_revision": None,
                "policy": f"{environment}, {kind} (distill.data)",
                "reward_model": None,
                "random_state": {"seed": seed},
            }
            write_round(folder / "rounds", data, metadata)
    stored = RoundStore(path / "rounds").read(0).data
    assert isinstance(stored, Transitions)
    return stored


def write_round(root: Path, data: Transitions, metadata: dict[str, Any], index: int = 0) -> None:
    """Write one set as a whole round of one shard."""
    writer = RoundStore(root).writer(index, 1, metadata, kind="transitions")
    for shard in writer.missing():
        writer.write(shard, data)
    writer.finish(terminated=int(data.terminated.sum()), truncated=int(data.truncated.sum()))


def _make(environment: str, kind: str, size: int, streams: Streams) -> Transitions:
    if kind == "replay" and environment == "CartPole-v1":
        data = cartpole.replay(seed=streams.seed)
        if len(data) < size:
            raise BadInput(f"data_size={size}: the replay has {len(data)} transitions")
        rows = streams.data("rows", kind).permutation(len(data))[:size]
        return data.take(np.sort(rows))
    if kind == "replay":
        return _collected(environment, "stand-in", np.linspace(1.0, 0.1, COPIES), size, streams)
    if kind == "random":
        return _collected(environment, kind, np.ones(COPIES), size, streams)
    half = size // 2
    parts = [
        _collected(environment, "expert", np.zeros(COPIES), half, streams),
        _collected(environment, "random", np.ones(COPIES), size - half, streams),
    ]
    return Transitions.concatenate(parts)


def _collected(
    environment: str, name: str, epsilon: np.ndarray, size: int, streams: Streams
) -> Transitions:
    """A random `size` of twice as many transitions, the expert exploring with `epsilon`."""
    copies = make_portable(environment, COPIES)
    expert = _expert(environment, streams) if (epsilon < 1).any() else None
    draw = streams.data("behaviour", environment, name)

    def act(observations: np.ndarray) -> np.ndarray:
        uniform = draw.integers(0, copies.actions, COPIES)
        if expert is None:
            return uniform
        return np.where(draw.random(COPIES) < epsilon, uniform, expert(observations))

    seed = streams.data_seed("environment", environment, name)
    # Whole episodes, so that what ends late is there too.
    enough = max(-(-2 * size // COPIES), LONGEST[environment])
    data = collect_transitions(act, copies, enough, seed)
    copies.close()
    rows = streams.data("kept", environment, name).permutation(len(data))[:size]
    return data.take(np.sort(rows))


def _expert(environment: str, streams: Streams) -> Policy:
    if environment == "MountainCar-v0":
        return lambda observations: np.where(observations[:, 1] >= 0, 2, 0)
    if environment == "Acrobot-v1":
        return lambda observations: np.where(observations[:, 5] >= 0, 2, 0)
    snapshots = cartpole.behaviour(seed=streams.seed)
    last = {name: value[-1:].copy() for name, value in snapshots.items()}
    last["epsilon"][:] = 0.0
    # Greedy: the generator decides nothing.
    return cartpole.epsilon_greedy(last, COPIES, streams.data("unused"))


def _published() -> dict[str, str]:
    """SHA-256 of the sets behind published tables, by environment, kind, size and seed."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def main() -> None:
    """``python -m reprise.distill.data``: print published checksums, as the file has them.

    CartPole, seeds 0 to 2; MountainCar and Acrobot, seeds 0 to 4.
    """
    wanted = [("CartPole-v1", kind, seed) for kind in KINDS for seed in range(3)]
    for environment in ("MountainCar-v0", "Acrobot-v1"):
        wanted += [(environment, kind, seed) for kind in ("replay", "mixed") for seed in range(5)]
    found = {
        f"{environment}-{kind}-{SIZE}-{seed}": cartpole.transitions_sha256(
            _make(environment, kind, SIZE, Streams(seed))
        )
        for environment, kind, seed in wanted
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
