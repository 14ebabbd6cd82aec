"""What an offline RL study leaves: the summary, rounds with their card, table and figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reprise.distill.config import DistillOfflineRL
from reprise.distill.offline_rl_means import about, means, measured, paired, paired_means, transfer
from reprise.distill.offline_rl_sets import Cell, Source, TrainingSet, cells_of
from reprise.rollout.files import write_text
from reprise.rollout.run import cells, figures
from reprise.rollout.run.markdown import markdown_table
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.store import RoundStore

Sources = dict[TrainingSet, Source]


def finish(
    config: DistillOfflineRL,
    run_dir: RunDir,
    sources: Sources,
    results: dict[str, cells.Arrays],
) -> dict[str, Any]:
    """The summary; writes rounds, card, table and figure on the way."""
    summary: dict[str, Any] = {
        "environment": config.environment,
        "data": {one.name: about(one, source.data) for one, source in sources.items()},
        "cells": [measured(cell, results) for cell in cells_of(config)],
        "means": means(config, results),
        "paired": paired(config, results),
        "paired_means": paired_means(config, results),
        "transfer": transfer(config, results),
    }
    summary["rounds"] = _rounds(config, run_dir, sources, results)
    if config.d3rlpy_steps and run_dir.is_main:
        summary["d3rlpy"] = _d3rlpy(config, sources, results)
    if run_dir.is_main:
        write_text(run_dir.path / "table.md", table(summary))
        write_text(run_dir.rounds / "README.md", card(config, summary))
        _draw(config, summary, run_dir.path / "figure")
    return summary


# -- distilled sets as rounds ----------------------------------------------------------------------


def _rounds(
    config: DistillOfflineRL, run_dir: RunDir, sources: Sources, results: dict[str, cells.Arrays]
) -> list[dict[str, Any]]:
    """Seed 0's points of every training set and size, for the last number of predictors."""
    from reprise.distill.data import write_round

    store, listed = RoundStore(run_dir.rounds), []
    count = config.predictors[-1]
    names = [(one, size) for one in sources for size in config.sizes]
    for index, (one, size) in enumerate(names):
        data = sources[one].transitions(results[Cell(one, "distilled", size, count).name], 0)
        what = {"round": index, **one.about, "size": size, "predictors": count}
        listed.append(what)
        if index in store.rounds() or not run_dir.is_main:
            continue
        metadata = {
            "config_sha256": run_dir.config_sha256,
            "code_revision": run_dir.code_revision,
            "policy": f"distilled from {config.environment} {one.name}",
            "reward_model": None,
            "random_state": {"seed": config.seed},
            "distilled_from": {"environment": config.environment, **what},
        }
        write_round(run_dir.rounds, data, metadata, index)
    return listed


def _d3rlpy(
    config: DistillOfflineRL, sources: Sources, results: dict[str, cells.Arrays]
) -> list[dict[str, Any]]:
    """d3rlpy's DQN on the first cell's distilled sets, and on stratified ones, three seeds."""
    from reprise.distill.evaluate import d3rlpy_return

    one, size, entries = next(iter(sources)), config.sizes[0], []
    shown = [Cell(one, "distilled", size, config.predictors[-1])]
    if "stratified" in config.methods:
        shown.append(Cell(one, "stratified", size))
    for cell in shown:
        returns = [
            d3rlpy_return(
                sources[one].transitions(results[cell.name], seed),
                config.environment,
                config.downstream.gamma,
                config.d3rlpy_steps,
                config.episodes,
                seed,
            )
            for seed in range(min(3, config.seeds))
        ]
        entries.append({"method": cell.method, **one.about, "size": size, "returns": returns})
    return entries


# -- for readers -----------------------------------------------------------------------------------


def shown(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each kind of set: the cells of the only set of it, or means over sets."""
    kinds = [one["data"] for one in summary["data"].values()]
    if len(kinds) == len(set(kinds)):
        return summary["cells"]
    return [one for one in summary["means"] if one["data"] != "all"]


def table(summary: dict[str, Any]) -> str:
    """Returns with 95% intervals in Markdown: a row a method, a column a kind of set and size."""
    found = shown(summary)
    sizes = sorted({cell["size"] for cell in found if cell["size"]})
    kinds = list(dict.fromkeys(cell["data"] for cell in found))
    columns = [(kind, size) for size in sizes for kind in kinds]
    rows = list(dict.fromkeys((cell["method"], cell["predictors"]) for cell in found))
    entry = {
        (cell["method"], cell["predictors"], cell["data"], cell["size"]): cell for cell in found
    }
    lines = []
    for method, count in rows:
        label = method if count is None else f"{method} K={count}"
        entries = []
        for kind, size in columns:
            cell = entry[method, count, kind, None if method == "full" else size]
            half = cell["return_ci95"][1] - cell["return_mean"]
            entries.append(f"{cell['return_mean']:.0f} ± {half:.0f}")
        lines.append([label, *entries])
    return markdown_table(["method", *(f"{kind} N={size}" for kind, size in columns)], lines)


def card(config: DistillOfflineRL, summary: dict[str, Any]) -> str:
    """The rounds' data card: what they were distilled from, with which loss, how they score."""
    settings = config.distillation
    rounds = "\n".join(
        f"| {one['round']} | {one['data']}, seed {one['data_seed']} | {one['size']} |"
        for one in summary["rounds"]
    )
    over = f"{config.seeds} seeds"
    if len(config.data_seeds) > 1:
        over = f"{len(config.data_seeds)} training sets of a kind (each of {over})"
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

**Training sets** (`distill.data`): {", ".join(config.data)} of {config.environment}, data seeds
{", ".join(map(str, config.data_seeds))}.

**Loss.** {_loss(config)} Start: {settings.start}, terminated: {ends}. Next states:
{settings.next_states}. Optimized for {settings.steps} steps of Adam.

**Scores.** Mean return over {over} (95% interval) of neural fitted Q-iteration
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
    loss = "squared differences" if settings.loss == "squared" else "Huber's, relative"
    if settings.source == "iterates":
        source = "networks around fitted Q-iterates of the training set"
    return (
        "Bellman losses mean (f(s,a) - lambda r - gamma max_a' f(s',a'))^2, gamma = "
        f"{config.downstream.gamma}, of {count} predictors (f, lambda) are matched to the training "
        "set's, terminated and other transitions apart (2512.00536, Algorithm 2; "
        f"{loss}): {source}."
    )


def _draw(config: DistillOfflineRL, summary: dict[str, Any], path: Path) -> None:
    """Return against N for every method, a panel a training set."""
    figure, panels = figures.start(max(2, len(config.data)))
    lines = [*config.methods, *(f"distilled {count}" for count in config.predictors)]
    found = shown(summary)
    for panel, kind in zip(panels, config.data, strict=False):
        for index, method in enumerate(lines):
            cells_shown = [
                cell
                for cell in found
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
                marker=figures.MARKERS[index % 6],
                markersize=4,
                linestyle="-" if method.startswith("distilled") else "--",
                color=figures.COLOURS[index % len(figures.COLOURS)],
                lw=1,
            )
        full = next(c for c in found if c["data"] == kind and c["method"] == "full")
        panel.axhline(full["return_mean"], color="grey", lw=0.8)
        panel.set_title(kind, fontsize=9)
        panel.set_xlabel("N, points")
    panels[0].set_ylabel("return")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=6)
    caption = f"{config.environment}, {config.seeds} seeds, 95% intervals; grey: full data"
    figures.finish(figure, path, caption)
