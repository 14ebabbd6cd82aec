"""Means and paired differences of an offline RL study, on each training set and over sets.

    on one set    values x_i of its seeds i (subset, predictors, learner, episodes)
    over sets     values m_c = mean_i x_ci of the sets c, each counted once

Both have Student's 95% interval, with `units` - 1 degrees of freedom, `units` the number of values.
The trap: pooling the seeds of all sets as if they were independent. They share the set, and what
happens on it; three sets of +3, -73 and +171 are not sixty pairs around +34.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reprise.distill.config import DistillOfflineRL
from reprise.distill.offline_rl_sets import Cell, TrainingSet, cells_of, training_sets
from reprise.rollout.run import cells
from reprise.rollout.run.intervals import mean_of, student


def about(one: TrainingSet, data: Any) -> dict[str, Any]:
    """What the summary says of a training set."""
    share = float(data.terminated.mean())
    return {**one.about, "transitions": len(data), "terminated_share": share}


def _interval(mean: float, half: float) -> list[float | None]:
    """[low, high]; nulls of a single value."""
    return [None, None] if np.isnan(half) else [mean - half, mean + half]


def _mean(values: np.ndarray, stratified: np.ndarray | None) -> dict[str, Any]:
    """Mean of independent values, and of their differences to the stratified subsets' values."""
    mean, half = student(values)
    entry = {"return_mean": mean, "return_ci95": _interval(mean, half), "units": len(values)}
    if stratified is None:
        return {**entry, "minus_stratified": None, "minus_stratified_ci95": [None, None]}
    gap, half = student(values - stratified)
    return {**entry, "minus_stratified": gap, "minus_stratified_ci95": _interval(gap, half)}


def _stratified(cell: Cell, results: dict[str, cells.Arrays]) -> np.ndarray | None:
    """Returns of the stratified subsets of a cell's size and set, if there are some."""
    return results.get(Cell(cell.of, "stratified", cell.size).name, {}).get("returns")


def measured(cell: Cell, results: dict[str, cells.Arrays]) -> dict[str, Any]:
    """One cell: return over the seeds of one training set, and its Bellman errors."""
    arrays = results[cell.name]
    held_out = arrays.get("held_out")
    start = results.get(Cell(cell.of, "start", cell.size).name, {}).get("held_out")
    distilled = cell.method == "distilled"
    return {
        **cell.about,
        **_mean(arrays["returns"], _stratified(cell, results)),
        "return_median": float(np.median(arrays["returns"])),
        "seeds": len(arrays["returns"]),
        "held_out_bellman_error": None if held_out is None else mean_of(held_out),
        "initial_bellman_error": mean_of(start) if distilled and start is not None else None,
        "returns": arrays["returns"].tolist(),
    }


def means(config: DistillOfflineRL, results: dict[str, cells.Arrays]) -> list[dict[str, Any]]:
    """Every method, size and number of predictors: over training sets of a kind, and over all."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells_of(config):
        for kind in (cell.of.kind, "all"):
            groups.setdefault((kind, *cell[1:]), []).append(cell)
    entries = []
    for (kind, method, size, count), members in groups.items():
        errors = [results[cell.name].get("held_out") for cell in members]
        known = [one for one in errors if one is not None]
        returns = np.array([mean_of(results[cell.name]["returns"]) for cell in members])
        subsets = [_stratified(cell, results) for cell in members]
        there = [mean_of(one) for one in subsets if one is not None]
        entries.append(
            {
                **{"data": kind, "method": method, "size": size, "predictors": count},
                **_mean(returns, np.array(there) if there else None),
                "seeds": config.seeds,
                "held_out_bellman_error": mean_of(np.concatenate(known)) if known else None,
            }
        )
    return entries


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Paired Student's t and Wilcoxon's signed ranks of ours - theirs, both two-sided.

    Args:
        ours: independent values [units], of seeds or of training sets; `theirs` likewise.
        theirs: see `ours`.
    """
    from scipy import stats

    gap = np.asarray(ours) - np.asarray(theirs)
    mean, half = student(gap)
    result: dict[str, Any] = {"difference": mean, "difference_ci95": _interval(mean, half)}
    if np.ptp(gap) == 0:  # one, or equal everywhere: no test has anything to say
        return {**result, "t": None, "p": None, "wilcoxon_p": None, "units": len(gap)}
    t = stats.ttest_1samp(gap, 0.0)
    ranks = stats.wilcoxon(gap)
    return {
        **result,
        "t": float(t.statistic),
        "p": float(t.pvalue),
        "wilcoxon_p": float(ranks.pvalue),
        "units": len(gap),
    }


def _pairs(
    results: dict[str, cells.Arrays], one: TrainingSet, key: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns of every seed on one set: distilled, and what it is compared with."""
    size, count, other = key
    theirs = Cell(one, "full") if other == "full" else Cell(one, other, size)
    ours = Cell(one, "distilled", size, count)
    return results[ours.name]["returns"], results[theirs.name]["returns"]


def _comparisons(config: DistillOfflineRL) -> list[tuple[Any, ...]]:
    return [
        (size, count, other)
        for size in config.sizes
        for count in config.predictors
        for other in [*config.methods, "full"]
    ]


def paired(config: DistillOfflineRL, results: dict[str, cells.Arrays]) -> list[dict[str, Any]]:
    """Distilled against the baselines of its size and the full data, on each training set."""
    tests = []
    for key in _comparisons(config):
        of = dict(zip(("size", "predictors", "against"), key, strict=True))
        for one in training_sets(config):
            tests.append({**one.about, **of, **compare(*_pairs(results, one, key))})
    return tests


def paired_means(
    config: DistillOfflineRL, results: dict[str, cells.Arrays]
) -> list[dict[str, Any]]:
    """The same over training sets, the set being the unit: those of each kind, and all."""
    tests = []
    for key in _comparisons(config):
        of = dict(zip(("size", "predictors", "against"), key, strict=True))
        for kind in [*config.data, "all"]:
            sets = [one for one in training_sets(config) if kind in (one.kind, "all")]
            pairs = [_pairs(results, one, key) for one in sets]
            ours, theirs = (np.array([mean_of(pair[side]) for pair in pairs]) for side in (0, 1))
            tests.append({"data": kind, **of, **compare(ours, theirs)})
    return tests


def transfer(config: DistillOfflineRL, results: dict[str, cells.Arrays]) -> list[dict[str, Any]]:
    """Returns of networks that no distillation used, on each training set."""
    entries = []
    for name, arrays in results.items():
        for index, shape in enumerate(config.transfer):
            if f"transfer_{index}" in arrays:
                mean, half = student(arrays[f"transfer_{index}"])
                interval = [mean - half, mean + half]
                entries.append(
                    {"cell": name, **shape.model_dump(), "return_mean": mean, "ci95": interval}
                )
    return entries
