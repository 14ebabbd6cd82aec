"""The experiment `alignment.design`: how good optimal designs are, and what Eq. 7 would give."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from reprise.alignment.theory.config import DesignExperiment
from reprise.alignment.theory.design import (
    direct_design,
    g_optimal_design,
    preferential_design,
    worst_variance,
)
from reprise.alignment.theory.report import Figure, write_table
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir


def run(config: DesignExperiment, run_dir: RunDir) -> dict[str, Any]:
    """Designs of every family and draw; returns the fields of ``summary.json``.

    ``value``, ``gap`` and ``support`` are of the global G-optimal design of the first draw of the
    first family (all responses to all prompts as points), ``bound`` its theoretical value d, and
    ``designs`` holds one record for each family and draw.
    """
    run_dir.cut_metrics(lambda record: False)
    streams, d = Streams(config.seed), config.dimension
    started = time.monotonic()
    records = []
    with run_dir.progress("designs", len(config.families) * config.replicas) as progress:
        for family in config.families:
            for replica in range(config.replicas):
                generator = streams.internal("features", family, replica)
                shape = config.prompts, config.responses, d
                record = measure(draw_features(family, shape, generator), config)
                records.append({"features": family, "draw": replica} | record)
                run_dir.log(round=len(records), **records[-1])
                progress.advance()
    seconds = time.monotonic() - started
    write_table(run_dir.path, records)
    draw(records, config, run_dir)
    first = records[0]
    return {
        "dimension": d,
        "value": first["value"],
        "gap": first["gap"],
        "bound": d,
        "support": first["support"],
        "design_seconds": seconds,
        "designs": records,
    }


def draw_features(
    family: str, shape: tuple[int, int, int], generator: np.random.Generator
) -> np.ndarray:
    """Features of norm at most 1.

    * ``sphere``: uniform directions.
    * ``cluster``: the responses of a prompt lie close together, around a direction of its own.
    * ``axes``: responses to prompt x differ along axis x mod d, and little along the others.
    * ``heavy``: uniform directions with Pareto lengths, few of them long.
    * ``spikes``: one long response a prompt, along axis x mod d, among short ones. The conditional
      design then gives it 1 / (d + 1), and the prompts have to share the axes: d times d.
    """
    phi = generator.normal(size=shape)
    phi /= np.linalg.norm(phi, axis=2, keepdims=True)
    prompts, _, d = shape
    if family == "cluster":
        phi = 0.1 * phi + 0.9 * phi[:, :1]
    elif family == "axes":
        scale = np.full((prompts, d), 0.05)
        scale[np.arange(prompts), np.arange(prompts) % d] = 1.0
        phi = phi * scale[:, None]
    elif family == "spikes":
        phi[:, 1:] *= 1e-3
        phi[:, 0] = np.eye(d)[np.arange(prompts) % d]
    elif family == "heavy":
        phi = phi * generator.pareto(1.5, size=shape[:2])[:, :, None]
    return phi / np.linalg.norm(phi, axis=2).max()


def measure(features: np.ndarray, config: DesignExperiment) -> dict[str, Any]:
    """Values of the global, the preferential, the uniform and the direct design."""
    d = features.shape[2]
    whole = g_optimal_design(features.reshape(-1, d), config.tolerance)
    preferential = preferential_design(features, config.tolerance)
    uniform = np.full(len(features), 1 / len(features))
    conditional, centred = preferential.response_weights, preferential.centred
    record = {
        "value": whole.value,
        "gap": whole.gap,
        "support": len(whole.support),
        "preferential": preferential.value,
        "preferential / d": preferential.value / d,
        "bound": preferential.bound,
        "prompts used": int((preferential.prompt_weights > 0).sum()),
        "uniform prompts": worst_variance(centred, conditional, uniform),
    }
    if config.direct:
        direct = direct_design(centred, conditional, preferential.prompt_weights, 0.01)
        record |= {"Eq. 7": direct.value, "Eq. 7 at least": direct.lower}
        record["direct_at_least"] = direct.lower  # the same, under a name that tables can read
        record |= {"Eq. 7 / d": direct.value / d}
    return record


def draw(records: list[dict[str, Any]], config: DesignExperiment, run_dir: RunDir) -> None:
    """Worst variances over d, by family."""
    figure = Figure(1, width=6.0)
    names = ["preferential", "uniform prompts", *(["Eq. 7"] if config.direct else [])]
    for index, name in enumerate(names):
        means = [
            np.mean([r[name] / config.dimension for r in records if r["features"] == family])
            for family in config.families
        ]
        figure.line(0, range(len(means)), means, index, name)
    axes = figure.panels[0]
    axes.axhline(config.dimension, color="grey", ls=":", lw=1, label="bound: d")
    axes.axhline(1, color="grey", lw=0.8)
    axes.set_xticks(range(len(config.families)), config.families)
    axes.set_yscale("log")
    axes.set_ylabel("worst variance of a difference / d")
    axes.legend(frameon=False, fontsize=8)
    figure.save(run_dir.path, f"d = {config.dimension}, mean over {config.replicas} draws")
