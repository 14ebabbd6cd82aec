"""Transitions from and to what others use: Minari, d3rlpy's CartPole replay, RoundStores.

Names of sources:

    dqn-replay                the CartPole replay recorded here (`rollout.cartpole`)
    d3rlpy:cartpole-replay    d3rlpy's own, downloaded by d3rlpy where there is a network
    d3rlpy:cartpole-random    likewise
    minari:ID                 a Minari data set by id, local or downloaded
    PATH                      a Minari data set's folder, or the rounds of a RoundStore
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprise.rollout import cartpole
from reprise.rollout.errors import BadInput
from reprise.rollout.files import atomic_directory, write_bytes
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Transitions

if TYPE_CHECKING:
    from minari import MinariDataset


def load_transitions(source: str, replay_steps: int = 100_000, replay_seed: int = 0) -> Transitions:
    """Read the transitions that `source` names.

    Args:
        source: one of the names above.
        replay_steps: length of 'dqn-replay', which is recorded if it is not there.
        replay_seed: its seed.

    Raises:
        BadInput: nothing of that name, or nothing in it.
    """
    if source == "dqn-replay":
        return cartpole.replay(replay_steps, replay_seed)
    if source.startswith("d3rlpy:"):
        return _from_d3rlpy(source.removeprefix("d3rlpy:"))
    if source.startswith("minari:"):
        import minari

        return from_minari(minari.load_dataset(source.removeprefix("minari:"), download=True))
    path = Path(source)
    for folder in (path / "data", path):
        if (folder / "metadata.json").is_file():
            from minari import MinariDataset

            return from_minari(MinariDataset(folder))
    for folder in (path / "rounds", path):
        store = RoundStore(folder)
        if rounds := store.rounds():
            parts = [store.read(index).data for index in rounds]
            if not all(isinstance(part, Transitions) for part in parts):
                raise BadInput(f"data={source!r}: its rounds hold completions, not transitions")
            return Transitions.concatenate(parts)  # type: ignore[arg-type]
    raise BadInput(
        f"data={source!r}: neither a Minari data set (with data/metadata.json) nor a RoundStore "
        "with finished rounds is there; other sources are 'dqn-replay', 'minari:ID' and "
        "'d3rlpy:cartpole-replay'"
    )


# -- Minari ----------------------------------------------------------------------------------------


def from_minari(dataset: MinariDataset) -> Transitions:
    """All transitions of a Minari data set with array observations, in its order.

    Raises:
        BadInput: it is empty.
    """
    parts = []
    for episode in dataset.iterate_episodes():
        observations = np.asarray(episode.observations)
        parts.append(
            Transitions(
                observations[:-1],
                np.asarray(episode.actions),
                np.asarray(episode.rewards, dtype=np.float32),
                observations[1:],
                np.asarray(episode.terminations, dtype=np.bool_),
                np.asarray(episode.truncations, dtype=np.bool_),
            )
        )
    if not parts:
        raise BadInput(f"minari data set {dataset.id}: has no episodes")
    return Transitions.concatenate(parts)


def to_minari(transitions: Transitions, dataset_id: str, environment: str, **about: Any) -> None:
    """Write transitions as the local Minari data set `dataset_id`.

    Minari keeps episodes, one observation more than actions, so rows must be in order of time:
    within an episode the next observation is the next row's. Where the last episode has no end,
    its last step becomes truncated.

    Args:
        transitions: at least one.
        dataset_id: e.g. ``cartpole/dqn-replay-v0``; the folder is MINARI_DATASETS_PATH.
        environment: Gymnasium id of the environment, e.g. ``CartPole-v1``.
        about: further arguments of `minari.create_dataset_from_buffers`, such as `algorithm_name`.

    Raises:
        BadInput: no transitions, or not in order of time.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [
        EpisodeBuffer(
            id=number,
            observations=np.concatenate([episode.observations, episode.next_observations[-1:]]),
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminated,
            truncations=episode.truncated,
        )
        for number, episode in enumerate(episodes(transitions))
    ]
    # Minari warns about each of these that is left out.
    keys = ("algorithm_name", "author", "author_email", "code_permalink", "description")
    unknown = dict.fromkeys(keys, "none")
    minari.create_dataset_from_buffers(
        dataset_id=dataset_id,
        buffer=buffers,
        env=environment,
        eval_env=environment,
        jpeg_encoding=False,  # lossy
        **{**unknown, **about},
    )


def episodes(transitions: Transitions) -> Iterator[Transitions]:
    """Split rows in order of time at the ends of episodes.

    Raises:
        BadInput: no rows, or a row does not start where the row before it ended.
    """
    if len(transitions) == 0:
        raise BadInput("no transitions to split into episodes")
    ends = transitions.terminated | transitions.truncated
    follows = transitions.next_observations[:-1] == transitions.observations[1:]
    follows = follows.reshape(len(follows), -1).all(1)
    if not (follows | ends[:-1]).all():
        row = int(np.argmin(follows | ends[:-1]))
        raise BadInput(
            f"row {row + 1} does not start where row {row} ended, and no episode ended there; "
            "give the rows in order of time"
        )
    start = 0
    for end in [*np.flatnonzero(ends).tolist(), len(ends) - 1]:
        if end < start:
            continue
        episode = transitions.take(np.arange(start, end + 1))
        if not ends[end]:
            episode.truncated[-1] = True
        yield episode
        start = end + 1


# -- d3rlpy ----------------------------------------------------------------------------------------


def _from_d3rlpy(name: str) -> Transitions:
    kinds = {"cartpole-replay": "replay", "cartpole-random": "random"}
    if name not in kinds:
        raise BadInput(f"data='d3rlpy:{name}': d3rlpy's CartPole sets are {', '.join(kinds)}")
    from d3rlpy.datasets import get_cartpole

    buffer, _ = get_cartpole(kinds[name])
    return from_d3rlpy(buffer.episodes)


def from_d3rlpy(parts: Iterable[Any]) -> Transitions:
    """All transitions of d3rlpy episodes.

    d3rlpy keeps no observation after the last action. Where an episode terminated its value is 0,
    so any will do and the last one is repeated; where it was cut, the last step is left out.
    """
    batches = []
    for episode in parts:
        observations = np.asarray(episode.observations)
        count = len(observations) if episode.terminated else len(observations) - 1
        following = np.concatenate([observations[1:], observations[-1:]])[:count]
        ended = np.zeros(count, dtype=np.bool_)
        cut = np.zeros(count, dtype=np.bool_)
        if count:
            (ended if episode.terminated else cut)[-1] = True
        batches.append(
            Transitions(
                observations[:count],
                np.asarray(episode.actions).reshape(len(observations), -1)[:count, 0],
                np.asarray(episode.rewards, dtype=np.float32).reshape(-1)[:count],
                following,
                ended,
                cut,
            )
        )
    return Transitions.concatenate(batches)


def to_d3rlpy(transitions: Transitions) -> list[Any]:
    """Episodes of d3rlpy with exactly these transitions.

    Rows in order of time make whole episodes. Where an episode was cut, its last transition needs
    the observation it ended with, which d3rlpy keeps only with an action after it: one more step
    is appended, whose action 0 and reward 0 d3rlpy never samples.
    """
    from d3rlpy.dataset import Episode

    made = []
    for episode in episodes(transitions):
        ended = bool(episode.terminated[-1])
        observations, actions, rewards = episode.observations, episode.actions, episode.rewards
        if not ended:
            observations = np.concatenate([observations, episode.next_observations[-1:]])
            actions = np.concatenate([actions, np.zeros_like(actions[:1])])
            rewards = np.concatenate([rewards, np.zeros_like(rewards[:1])])
        made.append(
            Episode(
                observations,
                actions.reshape(len(actions), -1),
                rewards.astype(np.float32).reshape(-1, 1),
                terminated=ended,
            )
        )
    return made


def d3rlpy_buffer(transitions: Transitions, actions: int) -> Any:
    """A d3rlpy ReplayBuffer of these transitions, for discrete actions 0..actions-1."""
    import d3rlpy
    from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer

    return ReplayBuffer(
        InfiniteBuffer(),
        episodes=to_d3rlpy(transitions),
        action_space=d3rlpy.ActionSpace.DISCRETE,
        action_size=actions,
    )


# -- a folder or file of one's own -----------------------------------------------------------------


def export_transitions(transitions: Transitions, path: Path, form: str, about: str) -> None:
    """Write transitions where others read them.

    Args:
        transitions: at least one; for Minari and d3rlpy in order of time, or single steps.
        path: a new one.
        form: "minari", a folder for `minari.MinariDataset(path / "data")`; "d3rlpy", a file for
            `ReplayBuffer.load`; "datasets", a folder for `datasets.load_from_disk`.
        about: Gymnasium id of the environment, which Minari records.

    Raises:
        BadInput: `path` exists, or the rows are not in order of time.
    """
    assert form in ("minari", "d3rlpy", "datasets")
    if path.exists():
        raise BadInput(f"{path}: exists; export elsewhere or remove it first")
    if form == "datasets":
        from datasets import Dataset

        with atomic_directory(path) as folder:
            Dataset(transitions.to_arrow()).save_to_disk(folder)
    elif form == "d3rlpy":
        buffer = d3rlpy_buffer(transitions, int(transitions.actions.max()) + 1)
        file = io.BytesIO()
        buffer.dump(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, file.getvalue())
    else:
        _minari_folder(transitions, path, about)


def _minari_folder(transitions: Transitions, path: Path, environment: str) -> None:
    """Minari writes below MINARI_DATASETS_PATH alone: there first, then moved."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    with atomic_directory(path) as folder:
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
        try:
            to_minari(transitions, "export-v0", environment)
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before
        (folder / "export-v0" / "data").rename(folder / "data")
        (folder / "export-v0").rmdir()
