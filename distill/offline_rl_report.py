"""What an offline RL study leaves: cells with intervals, paired tests, rounds, card, figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distill.config import DistillOfflineRL
from rollout import cells, figures
from rollout.files import write_text
from rollout.intervals import student
from rollout.run_dir import RunDir
from rollout.store import RoundStore

CELL_FIELDS = ("data", "method", "size", "predictors")


def finish(
    config: DistillOfflineRL,
    run_dir: RunDir,
    work: Any,
    plan: list[tuple[str, dict[str, Any]]],
    results: dict[str, cells.Arrays],
) -> dict[str, Any]:
    """The summary; writes rounds, card, table and figure on the way."""
    summary: dict[str, Any] = {
        "environment": config.environment,
        "data": {kind: _about(work.source(kind).data) for kind in config.data},
        "cells": [_cell(name, about, results) for name, about in plan],
        "paired": _paired(config, results),
        "transfer": _transfer(config, results),
    }
    summary["rounds"] = _rounds(config, run_dir, work, results)
    if config.d3rlpy_steps and run_dir.is_main:
        summary["d3rlpy"] = _d3rlpy(config, work, results)
    if run_dir.is_main:
        write_text(run_dir.path / "table.md", table(summary))
        write_text(run_dir.rounds / "README.md", card(config, summary))
        _draw(config, summary, run_dir.path / "figure")
    return summary


def _about(data: Any) -> dict[str, Any]:
    return {"transitions": len(data), "terminated_share": float(data.terminated.mean())}


def _cell(name: str, about: dict[str, Any], results: dict[str, cells.Arrays]) -> dict[str, Any]:
    arrays = results[name]
    mean, half = student(arrays["returns"])
    held_out = arrays.get("held_out")
    start = results.get(f"{about['data']}-{about['size']}-start", {}).get("held_out")
    return {
        **{field: about.get(field) for field in CELL_FIELDS},
        "return_mean": mean,
        "return_ci95": [mean - half, mean + half],
        "return_median": float(np.median(arrays["returns"])),
        "seeds": len(arrays["returns"]),
        "held_out_bellman_error": None if held_out is None else float(held_out.mean()),
        "initial_bellman_error": (
            float(start.mean()) if about["method"] == "distilled" and start is not None else None
        ),
        "returns": arrays["returns"].tolist(),
    }


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Paired Student's t and Wilcoxon's signed ranks of ours - theirs, both two-sided."""
    from scipy import stats

    gap = np.asarray(ours) - np.asarray(theirs)
    mean, half = student(gap)
    result: dict[str, Any] = {"difference": mean, "difference_ci95": [mean - half, mean + half]}
    if np.ptp(gap) == 0:  # equal everywhere: no test has anything to say
        return {**result, "t": None, "p": None, "wilcoxon_p": None, "pairs": len(gap)}
    t = stats.ttest_1samp(gap, 0.0)
    ranks = stats.wilcoxon(gap)
    return {
        **result,
        "t": float(t.statistic),
        "p": float(t.pvalue),
        "wilcoxon_p": float(ranks.pvalue),
        "pairs": len(gap),
    }


def _paired(config: DistillOfflineRL, results: dict[str, cells.Arrays]) -> list[dict[str, Any]]:
    """Distilled against the baselines of its size and the full data: each set, all together."""
    tests = []
    for size in config.sizes:
        for count in config.predictors:
            for other in [*config.methods, "full"]:
                ours, theirs = [], []
                for kind in config.data:
                    name = f"{kind}-full" if other == "full" else f"{kind}-{size}-{other}"
                    ours.append(results[f"{kind}-{size}-distilled-{count}"]["returns"])
                    theirs.append(results[name]["returns"])
                    about = {"data": kind, "size": size, "predictors": count, "against": other}
                    tests.append({**about, **compare(ours[-1], theirs[-1])})
                if len(config.data) > 1:
                    about = {"data": "all", "size": size, "predictors": count, "against": other}
                    together = compare(np.concatenate(ours), np.concatenate(theirs))
                    tests.append({**about, **together})
    return tests


def _transfer(config: DistillOfflineRL, results: dict[str, cells.Arrays]) -> list[dict[str, Any]]:
    entries = []
    for name, arrays in results.items():
        for place, shape in enumerate(config.transfer):
            if f"transfer_{place}" in arrays:
                mean, half = student(arrays[f"transfer_{place}"])
                interval = [mean - half, mean + half]
                entries.append(
                    {"cell": name, **shape.model_dump(), "return_mean": mean, "ci95": interval}
                )
    return entries


# -- distilled sets as rounds ----------------------------------------------------------------------


def _rounds(
    config: DistillOfflineRL, run_dir: RunDir, work: Any, results: dict[str, cells.Arrays]
) -> list[dict[str, Any]]:
    """Seed 0's set of every training set and size, for the last number of predictors."""
    from distill.data import write_round

    store, listed = RoundStore(run_dir.rounds), []
    count = config.predictors[-1]
    names = [(kind, size) for kind in config.data for size in config.sizes]
    for index, (kind, size) in enumerate(names):
        data = work.transitions(kind, results[f"{kind}-{size}-distilled-{count}"], 0)
        about = {"round": index, "data": kind, "size": size, "predictors": count}
        listed.append(about)
        if index in store.rounds() or not run_dir.is_main:
            continue
        metadata = {
            "config_sha256": run_dir.config_sha256,
            "code_revision": run_dir.code_revision,
            "policy": f"distilled from {config.environment} {kind}",
            "reward_model": None,
            "random_state": {"seed": config.seed},
            "distilled_from": {"environment": config.environment, **about},
        }
        write_round(run_dir.rounds, data, metadata, index)
    return listed


def _d3rlpy(
    config: DistillOfflineRL, work: Any, results: dict[str, cells.Arrays]
) -> list[dict[str, Any]]:
    """d3rlpy's DQN on the first cell's distilled sets, and on stratified ones, three seeds."""
    from distill.evaluate import d3rlpy_return

    kind, size, entries = config.data[0], config.sizes[0], []
    names = {"distilled": f"{kind}-{size}-distilled-{config.predictors[-1]}"}
    if "stratified" in config.methods:
        names["stratified"] = f"{kind}-{size}-stratified"
    for method, name in names.items():
        returns = [
            d3rlpy_return(
                work.transitions(kind, results[name], seed),
                config.environment,
                config.downstream.gamma,
                config.d3rlpy_steps,
                config.episodes,
                seed,
            )
            for seed in range(min(3, config.seeds))
        ]
        entries.append({"method": method, "data": kind, "size": size, "returns": returns})
    return entries


# -- for readers -----------------------------------------------------------------------------------


def table(summary: dict[str, Any]) -> str:
    """Returns with 95% intervals in Markdown: a row a method, a column a data set and size."""
    sizes = sorted({cell["size"] for cell in summary["cells"] if cell["size"]})
    columns = [(kind, size) for size in sizes for kind in summary["data"]]
    rows = list(dict.fromkeys((cell["method"], cell["predictors"]) for cell in summary["cells"]))
    entry = {
        (cell["method"], cell["predictors"], cell["data"], cell["size"]): cell
        for cell in summary["cells"]
    }
    lines = [
        "| method | " + " | ".join(f"{kind} N={size}" for kind, size in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method, count in rows:
        label = method if count is None else f"{method} K={count}"
        shown = []
        for kind, size in columns:
            cell = entry[method, count, kind, None if method == "full" else size]
            half = cell["return_ci95"][1] - cell["return_mean"]
            shown.append(f"{cell['return_mean']:.0f} ± {half:.0f}")
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def card(config: DistillOfflineRL, summary: dict[str, Any]) -> str:
    """The rounds' data card: what they were distilled from, with which loss, how they score."""
    settings = config.distillation
    rounds = "\n".join(
        f"| {one['round']} | {one['data']} | {one['size']} |" for one in summary["rounds"]
    )
    share = settings.terminal_share
    ends = "the training set's share" if share is None else f"{share:.0%} of the points"
    return f"""---
task_categories: [reinforcement-learning]
tags: [offline-rl, dataset-distillation, {config.environment}]
---
# Distilled transitions of {config.environment}

Each round is a small set of synthetic transitions that stands in for {config.data_size:,} recorded
ones: an episode of one step each, truncated where it is not terminated. Seed {config.seed}.

| round | training set | points |
|---|---|---|
{rounds}

**Training sets** (`distill.data`): {", ".join(config.data)} of {config.environment}, data seed
{config.data_seed}.

**Loss.** {_loss(config)} Start: {settings.start}, terminated: {ends}. Next states:
{settings.next_states}. Optimized for {settings.steps} steps of Adam.

**Scores.** Mean return over {config.seeds} seeds (95% interval) of neural fitted Q-iteration
trained on each method's sets; `distilled` rows are sets made like these.

{table(summary)}"""


def _loss(config: DistillOfflineRL) -> str:
    settings, count = config.distillation, config.predictors[-1]
    if settings.match == "backups":
        return (
            "Regressions of the Bellman backup of a Q-function fitted to the training set "
            f"(gamma = {config.downstream.gamma}), on {count} random feature maps, are matched to "
            f"that Q-function (distill.backups, ridge {settings.ridge:g})."
        )
    source = "random tanh networks"
    if settings.source == "iterates":
        source = "networks around fitted Q-iterates of the training set"
    return (
        "Bellman losses mean (f(s,a) - lambda r - gamma max_a' f(s',a'))^2, gamma = "
        f"{config.downstream.gamma}, of {count} predictors (f, lambda) are matched to the training "
        f"set's, terminated and other transitions apart (2512.00536, Algorithm 2): {source}."
    )


def _draw(config: DistillOfflineRL, summary: dict[str, Any], path: Path) -> None:
    """Return against N for every method, a panel a training set."""
    figure, panels = figures.start(max(2, len(config.data)))
    shown = [*config.methods, *(f"distilled {count}" for count in config.predictors)]
    for panel, kind in zip(panels, config.data, strict=False):
        for place, method in enumerate(shown):
            cells_shown = [
                cell
                for cell in summary["cells"]
                if cell["data"] == kind
                and cell["size"]
                and (
                    cell["method"]
                    if cell["predictors"] is None
                    else f"distilled {cell['predictors']}"
                )
                == method
            ]
            cells_shown.sort(key=lambda cell: cell["size"])
            x = [cell["size"] for cell in cells_shown]
            y = [cell["return_mean"] for cell in cells_shown]
            spread = np.array([cell["return_ci95"] for cell in cells_shown]).T - y
            panel.errorbar(
                x,
                y,
                np.abs(spread),
                label=method,
                marker=figures.MARKERS[place % 6],
                markersize=4,
                linestyle="-" if method.startswith("distilled") else "--",
                color=figures.COLOURS[place % len(figures.COLOURS)],
                lw=1,
            )
        full = next(c for c in summary["cells"] if c["data"] == kind and c["method"] == "full")
        panel.axhline(full["return_mean"], color="grey", lw=0.8)
        panel.set_title(kind, fontsize=9)
        panel.set_xlabel("N, points")
    panels[0].set_ylabel("return")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=6)
    caption = f"{config.environment}, {config.seeds} seeds, 95% intervals; grey: full data"
    figures.finish(figure, path, caption)
