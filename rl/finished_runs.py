"""Finished PQN runs, what they act on, and how far they agree.

Q-values are computed in float32 whatever a run was trained in: a run in bfloat16 may act
otherwise on a few observations near a boundary of the grid, and agreement would measure that noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reprise.rl.action_agreement import gap_summary, summarize
from reprise.rl.networks import Metadata, QNetwork, load_policy
from reprise.rollout.errors import BadInput
from reprise.rollout.minari_atari import HeldOut, held_out

BATCH = 256


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run and its policy."""

    path: Path
    summary: dict[str, Any]
    network: QNetwork
    of: Metadata


def load_finished(path: Path) -> FinishedRun:
    """The run in `path`.

    Raises:
        BadInput: no run, not a finished one, or not of a Q-network.
    """
    file = path / "summary.json"
    if not file.is_file():
        if (path / "config.yaml").is_file():
            raise BadInput(f"{path}: an unfinished run; `reprise resume {path}` finishes it")
        raise BadInput(f"{path}: no run is there (no config.yaml); give run directories of rl.pqn")
    summary = json.loads(file.read_text(encoding="utf-8"))
    if summary["experiment"] != "rl.pqn":
        raise BadInput(
            f"{path}: a run of {summary['experiment']}, which leaves no Q-network; give runs of "
            "rl.pqn"
        )
    return FinishedRun(path, summary, *load_policy(path))


def load_together(paths: Sequence[Path]) -> list[FinishedRun]:
    """Runs that can be compared: at least two, distinct, of one game and one action set.

    Raises:
        BadInput: they cannot.
    """
    if len(paths) < 2:
        raise BadInput(
            f"{len(paths)} run ({', '.join(map(str, paths))}): agreement is between two or more; "
            "give more run directories"
        )
    places = [path.resolve() for path in paths]
    if len(set(places)) < len(places):
        twice = next(
            path for path, index in zip(paths, places, strict=True) if places.count(index) > 1
        )
        raise BadInput(f"{twice}: given twice; a run agrees with itself, give each once")
    runs = [load_finished(path) for path in paths]
    check_together(runs)
    return runs


def check_together(runs: Sequence[FinishedRun]) -> None:
    """Check that runs are of one game and one action set.

    Raises:
        BadInput: they are not.
    """
    first = runs[0]
    for run in runs[1:]:
        for key in ("environment", "actions", "observation_shape"):
            ours, theirs = getattr(first.of, key), getattr(run.of, key)
            if ours != theirs:
                raise BadInput(
                    f"{run.path}: {key} is {theirs}, but {first.path} has {ours}; only runs of one "
                    "game and one action set have actions to compare"
                )
        skips = [each.of.environment_settings["frame_skip"] for each in (first, run)]
        if skips[0] != skips[1]:
            raise BadInput(
                f"{run.path}: frame_skip is {skips[1]}, but {first.path} has {skips[0]}; their "
                "observations are not of the same kind"
            )


def observations_for(runs: Sequence[FinishedRun], source: str, count: int | None) -> HeldOut:
    """Held-out observations of what `runs` play; see `rollout.minari_atari`.

    Raises:
        BadInput: there are none, or of another game or kind.
    """
    of = runs[0].of
    data = held_out(
        source, of.environment, of.actions, of.environment_settings["frame_skip"], count
    )
    if list(data.observations.shape[1:]) != list(of.observation_shape):
        raise BadInput(
            f"data={source!r}: observations of shape {list(data.observations.shape[1:])}, but "
            f"{of.environment} has {list(of.observation_shape)}; give data of that environment"
        )
    return data


def q_values(network: QNetwork, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values that the policy acts on, and the same before rounding: float32 [M, A] each."""
    import torch

    rounded, raw = [], []
    with torch.no_grad():
        for start in range(0, len(observations), BATCH):
            part = np.ascontiguousarray(observations[start : start + BATCH])
            values = network(torch.from_numpy(part).to(network.head.weight.device))
            raw.append(values.cpu().numpy())
            rounded.append(network.quantizer(values).cpu().numpy())
    return np.concatenate(rounded), np.concatenate(raw)


def compare(runs: Sequence[FinishedRun], data: HeldOut) -> tuple[dict[str, Any], np.ndarray]:
    """All that `rl.action_agreement` measures, and Q-values before rounding float32 [R, M, A]."""
    both = [q_values(run.network, data.observations) for run in runs]
    rounded, raw = (np.stack(part) for part in zip(*both, strict=True))
    digests = [run.summary["weights_sha256"] for run in runs]
    report = {
        "runs": len(runs),
        **summarize(rounded, data.taken),
        **gap_summary(raw),
        "rounded_action_gap_quantiles": gap_summary(rounded)["action_gap_quantiles"],
        "distinct_weights": len(set(digests)),
        "environment": runs[0].of.environment,
        "data": data.source,
        "frames": data.frames,
        "frames_lossy": data.lossy,
        "steps_in_data": data.steps,
        "paths": [str(run.path) for run in runs],
        "quantization_steps": [run.of.quantization["step"] for run in runs],
        "mean_return_last_3": [run.summary["mean_return_last_3"] for run in runs],
        "evaluation_return_mean": [run.summary["evaluation_return_mean"] for run in runs],
    }
    return without_nan(report), raw


def without_nan(value: Any) -> Any:
    """Not-a-number and infinity as None, at any depth: JSON has neither."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
