"""Writing a Minari data set, game by game, lossless, whole or absent.

Minari's own `DataCollector` wraps one Gymnasium environment and compresses images to JPEG unless
told otherwise. Here the games come from `rollout.environments`, several side by side, and go to
Minari's storage one at a time, in a folder that gets its name when the last is in it.

Parquet is the default: a lossless MsPacman screen takes 8 kB there and 100 kB in HDF5. Minari reads
both alike. What identifies the game is what Minari's own sets have: the environment's
specification, `ALE/Breakout-v5` with its frame skip and sticky actions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprise.rollout.environments.base import CLASSIC_CONTROL
from reprise.rollout.errors import BadInput
from reprise.rollout.files import atomic_directory
from reprise.rollout.minari_atari import minari_folder
from reprise.rollout.run.settings import EnvironmentSettings

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from minari.dataset.minari_storage import MinariStorage

# Bytes of one game's observations: beyond, Parquet's 32-bit offsets overflow.
LARGEST_GAME = 2**31 - 1


@dataclass
class Writer:
    """A data set that is being written."""

    storage: MinariStorage
    shape: tuple[int, ...]
    games: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()

    def add(
        self,
        observations: list[np.ndarray],
        actions: list[int],
        rewards: list[float],
        terminated: bool,
    ) -> None:
        """Append a game: T + 1 observations, T actions and rewards; truncated if not terminated."""
        from minari.data_collector import EpisodeBuffer

        steps = len(actions)
        assert len(observations) == steps + 1 == len(rewards) + 1
        seen = np.stack(observations)
        assert seen.shape[1:] == self.shape and seen.nbytes <= LARGEST_GAME
        ends = np.zeros((2, steps), dtype=np.bool_)
        ends[0 if terminated else 1, -1] = True
        columns = (
            seen,
            np.array(actions, dtype=np.int64),
            np.array(rewards, dtype=np.float32),
            *ends,
        )
        for column in columns:
            self.digest.update(np.ascontiguousarray(column).tobytes())
        self.storage.update_episodes([EpisodeBuffer(self.games, None, None, *columns)])
        self.games += 1
        self.steps += steps


def existing(dataset_id: str) -> dict[str, Any] | None:
    """The metadata of a Minari data set on this machine, or None.

    Raises:
        BadInput: something else is in its place.
    """
    folder = minari_folder(dataset_id)
    if not folder.exists():
        return None
    if not (folder / "data" / "metadata.json").is_file():
        raise BadInput(
            f"to={dataset_id!r}: {folder} is there and is no data set; choose another id"
        )
    from minari.dataset.minari_storage import MinariStorage

    return dict(MinariStorage.read_raw_metadata(folder / "data"))


@contextmanager
def new_data_set(
    dataset_id: str,
    environment: str,
    settings: EnvironmentSettings,
    observation: np.ndarray,
    actions: int,
    data_format: str,
    about: dict[str, Any],
) -> Iterator[Writer]:
    """Yield a writer; the data set is there under its id once the block has ended well.

    Args:
        dataset_id: such as ``breakout/pqn-v0``, in MINARI_DATASETS_PATH.
        environment: canonical name.
        settings: of the environment.
        observation: one, for shape and dtype.
        actions: size of the action set.
        data_format: ``parquet``, ``hdf5`` or ``arrow``.
        about: further metadata; what is in it when the block ends is written. `description` and
            `algorithm_name` are Minari's own keys.
    """
    from gymnasium.spaces import Box, Discrete
    from minari.dataset.minari_storage import MinariStorage

    _make_namespace(dataset_id)
    low, high = (0, 255) if observation.dtype == np.uint8 else (-np.inf, np.inf)
    with atomic_directory(minari_folder(dataset_id)) as folder:
        storage = MinariStorage.new(
            folder / "data",
            Box(low, high, observation.shape, observation.dtype.type),
            Discrete(actions),
            specification(environment, settings),
            data_format,
            jpeg_encoding=False,  # lossy
        )
        writer = Writer(storage, observation.shape)
        yield writer
        storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": importlib.metadata.version("minari"),
                "author": {"none"},
                "author_email": {"none"},
                "code_permalink": "none",
                **about,
            }
        )


def specification(environment: str, settings: EnvironmentSettings) -> EnvSpec:
    """Gymnasium's specification of an environment as it is played here; raw, as Minari keeps it."""
    import copy

    import gymnasium

    if environment in CLASSIC_CONTROL:
        return gymnasium.spec(environment)
    import ale_py

    gymnasium.register_envs(ale_py)
    for known in gymnasium.registry.values():
        if known.id.startswith("ALE/") and known.kwargs.get("game") == environment:
            break
    else:
        raise BadInput(
            f"environment={environment!r}: ale-py registers no Gymnasium environment for it, and a "
            "Minari data set has to name one; choose another game"
        )
    spec = copy.deepcopy(known)
    spec.kwargs |= {
        "frameskip": settings.frame_skip,
        "repeat_action_probability": settings.sticky_actions,
        "full_action_space": settings.full_action_space,
        "max_num_frames_per_episode": settings.max_episode_frames,
    }
    return spec


def _make_namespace(dataset_id: str) -> None:
    """Minari lists namespaces by a file of their own."""
    namespace = Path(dataset_id).parent.as_posix()
    if namespace == ".":
        return
    from minari.namespace import create_namespace, list_local_namespaces

    if namespace not in list_local_namespaces():
        create_namespace(namespace)
