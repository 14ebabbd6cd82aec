"""Variants compared with the first of them, the baseline: paired by seed, and over all games.

For one measure y of game g, variant v and seed s, the pairs are those seeds that both have, and

    d_{gs} = y_{gvs} - y_{g,baseline,s}        mean +- t_{.975, n-1} sd / sqrt(n),  n pairs

(Student's). Over all games y is the human-normalized return and the pairs of all games are pooled:
what differs between games then counts as error too. Beside it stands the interquartile mean with
a percentile bootstrap that draws runs within each game (Agarwal et al. 2021). With three runs that
interval covers about .74 in place of .95: it is shown, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reprise.rl.finished_runs import FinishedRun
from reprise.rl.play import standard_error
from reprise.rollout.errors import BadInput
from reprise.rollout.run.intervals import bootstrap, interquartile_mean, mean_of
from reprise.rollout.run.run_dir import metrics_of

BySeed = Mapping[int, float]
Found = Mapping[str, Mapping[str, Sequence[FinishedRun]]]  # game -> variant -> finished runs


def mean_entry(name: str, values: Sequence[float]) -> dict[str, Any]:
    """`name_mean`, `name_se` and `name_degrees` of independent values."""
    return {
        f"{name}_mean": mean_of(values) if values else None,
        f"{name}_se": standard_error(values),
        f"{name}_degrees": max(len(values) - 1, 0),
    }


def paired(
    values: Sequence[BySeed], baseline: Sequence[BySeed], name: str = "difference"
) -> dict[str, Any]:
    """`difference_mean`, `_se`, `_degrees` and `pairs`, over the seeds of each game in turn."""
    differences = [
        ours[seed] - theirs[seed]
        for ours, theirs in zip(values, baseline, strict=True)
        for seed in sorted(ours.keys() & theirs.keys())
    ]
    return {"pairs": len(differences), **mean_entry(name, differences)}


def of_summary(runs: Sequence[FinishedRun], key: str) -> dict[int, float]:
    """A number of each run that has it, by seed."""
    found = {run.summary["seed"]: run.summary.get(key) for run in runs}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def at_step(runs: Sequence[FinishedRun], step: int) -> dict[int, float]:
    """Mean return of the last 100 training episodes at a step, by seed.

    Raises:
        BadInput: a run has no such step.
    """
    found = {}
    for run in runs:
        steps = {one["step"]: one["mean_return"] for one in metrics_of(run.path)}
        if step not in steps:
            near = min(steps, key=lambda one: abs(one - step), default=None)
            raise BadInput(
                f"checkpoints: {step}, but {run.path} has no metrics of that step; the nearest is "
                f"{near}: name that"
            )
        if steps[step] is not None:
            found[run.summary["seed"]] = float(steps[step])
    return found


def differences(found: Found, checkpoints: Sequence[int]) -> list[dict[str, Any]]:
    """Every measure of every variant but the first against the first, for each game."""
    entries = []
    for game, variants in found.items():
        for measure, step in [("return", None), ("evaluation", None)] + [
            ("mean_return", step) for step in checkpoints
        ]:
            by_variant = {
                name: of_summary(runs, MEASURES[measure]) if step is None else at_step(runs, step)
                for name, runs in variants.items()
            }
            baseline, *others = by_variant
            for name in others:
                entries.append(
                    {
                        **{"game": game, "variant": name, "measure": measure, "step": step},
                        **mean_entry("variant", [*by_variant[name].values()]),
                        **mean_entry("baseline", [*by_variant[baseline].values()]),
                        **paired([by_variant[name]], [by_variant[baseline]]),
                    }
                )
    return entries


MEASURES = {"return": "mean_return_last_3", "evaluation": "evaluation_return_mean"}
SCORES = {"score": "evaluation_human_normalized", "greedy": "greedy_human_normalized"}


def scores(found: Found) -> list[dict[str, Any]]:
    """Human-normalized returns of each variant over both (all) games, and of each game alone.

    Games without a human score are left out.
    """
    every: dict[str, list[str]] = {"both": [*found]} if len(found) > 1 else {}
    entries = []
    for index, games in (every | {game: [game] for game in found}).items():
        baseline = next(iter(found[games[0]]))
        for variant in found[games[0]]:
            entry: dict[str, Any] = {"games": index, "variant": variant}
            for name, key in SCORES.items():
                values = [of_summary(found[game][variant], key) for game in games]
                theirs = [of_summary(found[game][baseline], key) for game in games]
                entry |= _score(name, values)
                if name == "score":
                    compared = [] if variant == baseline else values
                    entry |= paired(compared, theirs[: len(compared)])
            if entry["runs"]:
                entries.append(entry)
    return entries


def _score(name: str, values: Sequence[BySeed]) -> dict[str, Any]:
    """Interquartile mean of all values, and its bootstrap within each game."""
    strata = [[*of_game.values()] for of_game in values if of_game]
    every = [value for stratum in strata for value in stratum]
    iqm, low, high = None, None, None
    if every:
        iqm = interquartile_mean(np.array(every))
        low, high = bootstrap(strata, interquartile_mean)
    return {
        "runs": len(every),
        f"{name}_iqm": iqm,
        f"{name}_iqm_interval": [low, high],
        "iqm_interval_is": "percentile bootstrap of runs within each game; narrow with few runs",
    }
