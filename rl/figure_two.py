"""Figure 2 of 2509.08660 from finished runs: return and action agreement of each variant.

Reads what `rl.pqn` runs left; trains nothing and draws nothing at random. A run that is not there,
or not finished, is listed as missing and the cell is of those that are. What the paper says about
the cells is judged by `reprise table pqn_figure_2`.

Every interval is Student's with runs - 1 degrees of freedom: of a return, over runs; of an
agreement, the jackknife's (`rl.action_agreement`). With few runs they are wide. Differences from
the first variant are paired by seed, and scores are taken over all games at once (`rl.compared`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reprise.rl.action_agreement import gap_histogram, relative_gaps
from reprise.rl.agreement_config import FigureTwo
from reprise.rl.compared import MEASURES, differences, mean_entry, of_summary, paired, scores
from reprise.rl.finished_runs import (
    FinishedRun,
    check_together,
    compare,
    load_finished,
    observations_for,
    q_values,
    without_nan,
)
from reprise.rl.human_scores import human_normalized
from reprise.rl.replicable.figures import draw_figure_two
from reprise.rollout.errors import BadInput
from reprise.rollout.files import write_json, write_text
from reprise.rollout.minari_atari import HeldOut
from reprise.rollout.run.intervals import student_half
from reprise.rollout.run.markdown import markdown_table
from reprise.rollout.run.run_dir import RunDir, metrics_of

Cell = dict[str, Any]


def run(config: FigureTwo, run_dir: RunDir) -> dict[str, Any]:
    """Every cell, ``table.md``, ``table.json`` and ``figure_2``."""
    found, missing = _find(config)
    held: dict[str, HeldOut] = {}
    for game, runs in found.items():  # all checks before any work
        present = [each for of_variant in runs.values() for each in of_variant]
        if present:
            _check(config, game, present)
            held[game] = observations_for(present, config.games[game].data, config.observations)
    cells: list[Cell] = []
    total = len(config.games) * len(config.variants)
    with run_dir.progress("comparing", total, "cells") as progress:
        for game in config.games:
            for variant in config.variants:
                cell = _cell(found[game][variant], held.get(game))
                cell |= _lost(found[game][variant], found[game][next(iter(config.variants))])
                index = {"game": game, "variant": variant, "missing": missing[game, variant]}
                cells.append(without_nan({**index, **cell}))
                progress.advance()
    summary = {
        "cells": cells,
        "differences": without_nan(differences(found, config.checkpoints)),
        "scores": without_nan(scores(found)),
        "data": {
            game: {
                "source": data.source,
                "frames": data.frames,
                "lossy": data.lossy,
                "observations": len(data.observations),
                "steps": data.steps,
            }
            for game, data in held.items()
        },
    }
    if run_dir.is_main:
        write_json(run_dir.path / "table.json", summary)
        write_text(run_dir.path / "table.md", markdown(summary))
        draw_figure_two(summary, run_dir.path / "figure_2")
    return summary


def _find(
    config: FigureTwo,
) -> tuple[dict[str, dict[str, list[FinishedRun]]], dict[tuple[str, str], list[str]]]:
    """Finished runs by game and variant, and the paths of those that are missing."""
    found: dict[str, dict[str, list[FinishedRun]]] = {}
    missing: dict[tuple[str, str], list[str]] = {}
    for game in config.games:
        found[game] = {}
        for variant in config.variants:
            part = config.variants[variant]
            paths = [
                Path(config.runs.format(game=game, variant=part, seed=seed))
                for seed in config.seeds
            ]
            there = [path for path in paths if (path / "summary.json").is_file()]
            found[game][variant] = [load_finished(path) for path in there]
            missing[game, variant] = [str(path) for path in paths if path not in there]
    if not any(runs for of_game in found.values() for runs in of_game.values()):
        raise BadInput(
            f"runs={config.runs!r}: not one of these runs is finished, the first would be "
            f"{next(iter(missing.values()))[0]}; make them with `reprise run CONFIG --out DIR`, or "
            "say where they are"
        )
    return found, missing


def _check(config: FigureTwo, game: str, runs: list[FinishedRun]) -> None:
    wanted = config.games[game].environment
    for each in runs:
        if each.of.environment != wanted:
            raise BadInput(
                f"{each.path}: plays {each.of.environment}, but games.{game}.environment is "
                f"{wanted}; correct the one or the pattern of runs"
            )
    check_together(runs)


def _cell(runs: list[FinishedRun], held: HeldOut | None) -> Cell:
    """Return, agreement, gaps and churn of one variant in one game."""
    cell: Cell = {"runs": len(runs)}
    if not runs:
        return {**cell, "return_mean": None, "agreement_mean": None}
    for key, field in (("return", "mean_return_last_3"), ("evaluation", "evaluation_return_mean")):
        values = [run.summary[field] for run in runs if run.summary.get(field) is not None]
        cell |= {**mean_entry(key, values), f"{key}s": values}
    if cell["evaluation_mean"] is not None:
        game = runs[0].of.environment
        cell["human_normalized"] = human_normalized(game, cell["evaluation_mean"])
    churn = [value for run in runs if (value := _churn(run.path)) is not None]
    cell |= {
        "steps": sorted({run.summary["steps"] for run in runs}),
        "quantization_steps": sorted({run.of.quantization["step"] or 0 for run in runs}),
        **mean_entry("churn", churn),
    }
    assert held is not None, "there is a run, so its game's data were read"
    if len(runs) > 1:
        report, raw = compare(runs, held)
        kept = (
            *("pairs", "observations", "agreement_mean", "agreement_se", "agreement_degrees"),
            *("agreement_random_ties", "agreement_random_ties_se", "agreement_random_ties_degrees"),
            *("agreement_chance", "kappa"),
            *("tied_share", "most_common_action_share", "agreement_with_data"),
            *("action_gap_quantiles", "relative_action_gap_quantiles", "distinct_weights"),
        )
        cell |= {key: report[key] for key in kept}
        by_pair = np.array(report["agreement_by_pair"])
        cell["agreements"] = by_pair[np.triu_indices(len(by_pair), 1)].tolist()
    else:
        raw = q_values(runs[0].network, held.observations)[1][None]
        cell["agreement_mean"] = None
    shares, edges = gap_histogram(relative_gaps(raw))
    cell["gap_histogram"] = {"shares": shares.tolist(), "edges": edges.tolist()}
    return cell


def _lost(runs: list[FinishedRun], baseline: list[FinishedRun]) -> Cell:
    """Returns minus those of the first variant, paired by seed; nothing for that one itself."""
    lost: Cell = {}
    for name, key in MEASURES.items():
        ours, theirs = of_summary(runs, key), of_summary(baseline, key)
        pairs = [] if runs is baseline else [ours]
        lost |= paired(pairs, [theirs][: len(pairs)], f"{name}_difference")
    return {key: value for key, value in lost.items() if key != "pairs"}


def _churn(path: Path) -> float | None:
    """Mean over updates of the share of greedy actions that an update changes, from the metrics."""
    values = [one["churn"] for one in metrics_of(path) if one.get("churn") is not None]
    return float(np.mean(values)) if values else None


# -- the table -------------------------------------------------------------------------------------

COLUMNS = (
    ("return, last 3", "return"),
    ("evaluation return", "evaluation"),
    ("human-normalized", "human_normalized"),
    ("agreement", "agreement"),
    ("ties at random", "agreement_random_ties"),
    ("chance", "agreement_chance"),
    ("kappa", "kappa"),
    ("tied", "tied_share"),
    ("with expert", "agreement_with_data"),
    ("median gap", "median_gap"),
    ("churn", "churn"),
)


def markdown(summary: dict[str, Any]) -> str:
    """The table, and what is missing."""
    head = ["game", "variant", "runs", *(title for title, _ in COLUMNS)]
    rows = [
        [cell["game"], cell["variant"], cell["runs"], *(_entry(cell, key) for _, key in COLUMNS)]
        for cell in summary["cells"]
    ]
    lines = [markdown_table(head, rows).rstrip()]
    lines += [
        "",
        "Means +- Student's 95% over runs (agreement: jackknife over runs, at least three). "
        "Ties at random: agreement if every policy broke its ties by lot instead of taking the "
        "lowest action. Tied: share of observations with several best actions. Median gap: best "
        "minus second-best value before rounding, over the spread of a run's values. Churn: share "
        "of greedy actions that the updates of one iteration change.",
        "",
    ]
    steps = sorted({step for cell in summary["cells"] for step in cell.get("steps", [])})
    lines += [
        f"Runs of {' or '.join(f'{step:,}' for step in steps)} steps. The paper has 15 runs of "
        "10,000,000 steps in each cell and prints no numbers, only the figure.",
        "",
    ]
    for game, data in summary["data"].items():
        lines.append(
            f"{game}: {data['observations']} of {data['steps']} observations of {data['source']} "
            f"({data['frames']}{', lossy' if data['lossy'] else ''})."
        )
    absent = [path for cell in summary["cells"] for path in cell["missing"]]
    if absent:
        lines += ["", f"Missing runs ({len(absent)}): " + ", ".join(absent)]
    return "\n".join(lines) + "\n"


def _entry(cell: Cell, key: str) -> str:
    if key == "median_gap":
        return _number((cell.get("relative_action_gap_quantiles") or {}).get("0.5"))
    mean = cell.get(f"{key}_mean", cell.get(key))
    error = cell.get(f"{key}_se")
    if mean is None:
        return "missing" if not cell["runs"] else "-"
    if error is None:
        return _number(mean)
    return f"{_number(mean)} +- {_number(student_half(error, cell[f'{key}_degrees']))}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
