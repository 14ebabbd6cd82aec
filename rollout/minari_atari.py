"""Held-out observations: what recorded players saw, as the policies compared here see it.

A source is a Minari data set, by id (`atari/breakout/expert-v0`) or folder, or, for vectors, any
source of `rollout.offline`. Its observations are one of

    raw        uint8 [height, width, 3], the screen after each frame skip (Minari's own Atari sets,
               and those recorded here with frames=raw): grayscale, 84x84 and stack 4 are done now
    exact      uint8 [4, 84, 84], as the environments here give them (recorded with frames=exact)
    vectors    [D], as they are

**What raw frames cannot give back.** Grayscale and resizing equal the environment's to the bit
(grayscale is ALE's own formula, tested on its palette). Three things do not:

* training takes the maximum over the last two frames of a skip, of which a set holds one: what an
  Atari shows only every other frame (ghosts of MsPacman) is missing half of the time;
* after a lost life training starts its stack anew; a set does not say where a life was lost;
* Minari's published frames went through JPEG, which changes grey values by a few levels.

All policies see the same, so agreement between them is well defined; it is agreement on foreign
observations. frames=exact has none of the three, and shows how much they matter: of the greedy
actions of two MsPacman policies (300,000 steps) on 1,200 observations recorded both ways, raw
frames changed 14% and 20%.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprise.rollout.environments.base import CLASSIC_CONTROL, canonical_name
from reprise.rollout.errors import BadInput

if TYPE_CHECKING:
    from minari import MinariDataset


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Observations that someone acted on.

    Attributes:
        source: as it was named.
        frames: ``raw``, ``exact`` or ``vectors``.
        observations: [M, ...], as the environment gives them.
        taken: actions in the data int64 [M], or None if they are of another action set.
        steps: of the whole source, of which these are an even choice.
        lossy: whether the frames went through JPEG.
    """

    source: str
    frames: str
    observations: np.ndarray
    taken: np.ndarray | None
    steps: int
    lossy: bool


def held_out(
    source: str, environment: str, actions: int, frame_skip: int, count: int | None
) -> HeldOut:
    """At most `count` observations of `source`, evenly spread over its steps.

    Args:
        source: Minari id or folder, or for vectors any source of `rollout.offline`.
        environment: canonical name of what the policies play.
        actions: size of their action set.
        frame_skip: of their environment.
        count: M; None for all.

    Raises:
        BadInput: no such data set, or it is of another game, frame skip or kind.
    """
    folder = find(source)
    if folder is None:
        return _from_transitions(source, environment, actions, count)
    from minari import MinariDataset

    dataset = MinariDataset(folder)
    _check_game(dataset, source, environment, frame_skip)
    lengths = [
        int(about["total_steps"])
        for about in dataset.storage.get_episode_metadata(range(dataset.storage.total_episodes))
    ]
    if not sum(lengths):
        raise BadInput(f"data={source!r}: the data set has no steps; record another")
    shape = dataset.observation_space.shape
    frames = _kind(shape, environment, source)
    chosen = evenly(sum(lengths), count)
    observations, taken = [], []
    for episode, rows in _by_episode(dataset, lengths, chosen):
        seen = np.asarray(episode["observations"])
        observations.append(stacks(seen, rows) if frames == "raw" else seen[rows])
        taken.append(np.asarray(episode["actions"])[rows])
    same = getattr(dataset.action_space, "n", None) == actions
    return HeldOut(
        source,
        frames,
        np.concatenate(observations),
        np.concatenate(taken).astype(np.int64) if same else None,
        sum(lengths),
        frames == "raw" and dataset.storage.jpeg_encoding,
    )


def evenly(total: int, count: int | None) -> np.ndarray:
    """At most `count` of 0..total-1, evenly spread and the same every time; all if None."""
    if count is None or count >= total:
        return np.arange(total)
    return np.floor((np.arange(count) + 0.5) * total / count).astype(np.int64)


# -- preprocessing ---------------------------------------------------------------------------------


def grayscale(frames: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> [...]: round(.2989 R + .5870 G + .1140 B), ALE's formula, in integers."""
    red, green, blue = (frames[..., colour].astype(np.int32) for colour in range(3))
    return ((2989 * red + 5870 * green + 1140 * blue + 5000) // 10000).astype(np.uint8)


def stacks(frames: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Observations [M, 4, 84, 84] of raw frames [T, height, width, 3] of one game at steps `rows`.

    Before the first frame stands the first, as after a reset.
    """
    from reprise.rollout.environments.atari import SIZE, STACK, Shrink

    wanted = np.maximum(rows[:, None] + np.arange(1 - STACK, 1), 0)
    needed, index = np.unique(wanted, return_inverse=True)
    pictures = np.empty((len(needed), SIZE, SIZE), dtype=np.uint8)
    shrink = Shrink(*frames.shape[1:3])
    for number, step in enumerate(needed.tolist()):
        shrink(grayscale(frames[step]), pictures[number])
    return pictures[index.reshape(wanted.shape)]


# -- finding and checking --------------------------------------------------------------------------


def find(source: str) -> Path | None:
    """The folder with a Minari data set's ``metadata.json``; None if `source` names no such set.

    Raises:
        BadInput: an id of a set that is not on this machine.
    """
    plain = source.removeprefix("minari:")
    for folder in (Path(plain) / "data", Path(plain), minari_folder(plain) / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    is_id = plain.rpartition("-v")[2].isdigit()
    if not is_id or Path(plain).is_dir():
        return None
    raise BadInput(
        f"data={source!r}: no Minari data set of this id in {minari_folder('')}; download it with "
        f"`minari download {plain}`, record one with `reprise collect`, or set "
        "MINARI_DATASETS_PATH to where it is"
    )


def minari_folder(dataset_id: str) -> Path:
    """Where Minari keeps a data set: below MINARI_DATASETS_PATH, else ``~/.minari/datasets``."""
    root = os.environ.get("MINARI_DATASETS_PATH")
    return (Path(root) if root else Path.home() / ".minari" / "datasets") / dataset_id


def _check_game(dataset: MinariDataset, source: str, environment: str, frame_skip: int) -> None:
    spec = dataset.spec.env_spec
    if spec is None:
        raise BadInput(
            f"data={source!r}: the data set does not say what environment it is of, so it cannot "
            f"be checked against {environment}; record it with an environment"
        )
    try:
        game = canonical_name(str(spec.kwargs.get("game", spec.id)))
    except ValueError:  # a robot, say: surely another
        game = spec.id
    if game != environment:
        raise BadInput(
            f"data={source!r}: a data set of {game} ({spec.id}), but the runs play {environment}; "
            "give one of the same game"
        )
    skip = spec.kwargs.get("frameskip", frame_skip)
    if game not in CLASSIC_CONTROL and skip != frame_skip:
        raise BadInput(
            f"data={source!r}: recorded with frame skip {skip}, the runs play with {frame_skip}: "
            "four frames in a row would be another span of time; give a set with the same"
        )


def _kind(shape: tuple[int, ...] | None, environment: str, source: str) -> str:
    if environment in CLASSIC_CONTROL:
        if shape is not None and len(shape) == 1:
            return "vectors"
    elif shape == (4, 84, 84):
        return "exact"
    elif shape is not None and len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= 84:
        return "raw"
    raise BadInput(
        f"data={source!r}: its observations have shape {shape}; for {environment} they must be "
        + (
            "vectors"
            if environment in CLASSIC_CONTROL
            else "screens [height, width, 3] or preprocessed [4, 84, 84]"
        )
    )


def _by_episode(
    dataset: MinariDataset, lengths: list[int], chosen: np.ndarray
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Episodes that hold chosen steps, one in memory at a time, with the steps within them."""
    ends = np.cumsum(lengths)
    for index, end in enumerate(ends.tolist()):
        start = end - lengths[index]
        rows = chosen[(chosen >= start) & (chosen < end)] - start
        if len(rows):
            yield next(iter(dataset.storage.get_episodes([index]))), rows


def _from_transitions(source: str, environment: str, actions: int, count: int | None) -> HeldOut:
    """Observations and actions of transitions; for vectors only."""
    if environment not in CLASSIC_CONTROL:
        raise BadInput(
            f"data={source!r}: no Minari data set is there, neither by id nor as a folder with "
            f"data/metadata.json. For {environment}: `minari download atari/GAME/expert-v0`, or "
            "record one with `reprise collect`"
        )
    from reprise.rollout.offline import load_transitions

    data = load_transitions(source)
    chosen = evenly(len(data), count)
    taken = np.asarray(data.actions)[chosen].reshape(len(chosen), -1)[:, 0].astype(np.int64)
    fits = 0 <= taken.min() and taken.max() < actions
    return HeldOut(
        source,
        "vectors",
        np.asarray(data.observations)[chosen],
        taken if fits else None,
        len(data),
        False,
    )
