r"""Coverage in a real run: does each round's policy cover the final one better than the last did?

    V(pi) = E_x Cov_{a ~ pi(x)} phi(x, a),    C_{pi_k -> pi_K} = inf {C : V(pi_K) <= C V(pi_k)}

(2601.08421, Eq. 4), with phi the last hidden layer of the final policy, averaged over a
completion's tokens and projected. V(pi_k) is estimated without bias from the samples that the run
stored: those of each policy on held-out prompts (`evaluations`), and D_k itself (`rounds`), two or
more for each prompt.

The trap: the largest eigenvalue of a noisy ratio is above 1 even for equal policies. What two
halves of the final policy's own samples give is reported beside it, as ``noise``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reprise.alignment.features import hidden_features, projection
from reprise.alignment.models import load_policy, load_tokenizer
from reprise.alignment.theory.bandit import largest_ratio
from reprise.alignment.theory.config import CoverageOfRun
from reprise.alignment.theory.report import Figure, write_table
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions


def run(config: CoverageOfRun, run_dir: RunDir) -> dict[str, Any]:
    """Measure every round of `config.run`; returns the fields of ``summary.json``."""
    run_dir.cut_metrics(lambda record: False)
    source = Path(config.run)
    evaluations, rounds = RoundStore(source / "evaluations"), RoundStore(source / "rounds")
    if len(evaluations.rounds()) < 2:
        raise BadInput(
            f"run={config.run!r} holds no samples of two or more policies under evaluations/; name "
            "the directory of a finished alignment.on_policy or alignment.offline run"
        )
    streams, last = Streams(config.seed), max(evaluations.rounds())
    model = load_policy(config.run, "run", attention="eager")
    tokenizer = load_tokenizer(config.run, "run")
    project = projection(model.config.hidden_size, config.dimension, streams)
    stores = [("held out", k, evaluations) for k in evaluations.rounds()]
    stores += [("training", k, rounds) for k in rounds.rounds()]
    features = {}
    with run_dir.progress("features", len(stores), "rounds") as progress:
        for name, k, store in stores:
            completions = store.read(k).data
            assert isinstance(completions, Completions)
            features[name, k] = phi(completions, model, tokenizer, project, config.batch_size)
            progress.advance()
    longest = max(np.linalg.norm(value, axis=-1).max() for value in features.values())
    parts = {key: within_prompt(value / longest) for key, value in features.items()}
    target = parts["held out", last]
    table = []
    for (name, k), part in parts.items():
        generator = streams.data("bootstrap", name, k)
        paired = name == "held out"
        value, interval = interval_of(part, target, paired, config.bootstrap, generator)
        ratio, trace = value
        record = {"samples": name, "round": k, "coverage": ratio, "coverage_ci95": interval}
        table.append(record | {"mean_ratio": trace, "variance": float(np.trace(part.mean(0)))})
        run_dir.log(**table[-1])
    noise = noise_level(target, streams.data("halves", 0))
    write_table(run_dir.path, table)
    _draw(table, noise, run_dir)
    return {"dimension": config.dimension, "noise": noise, "rounds": table}


def phi(
    completions: Completions,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    project: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Projected features of every completion, shape (prompts, samples, d)."""
    n = completions.samples_per_prompt
    repeated = [prompt for prompt in completions.prompt_ids for _ in range(n)]
    flat = [ids for samples in completions.completion_ids for ids in samples]
    hidden = hidden_features(model, repeated, flat, tokenizer.pad_token_id, batch_size)
    return (hidden @ project).reshape(len(completions), n, -1)


def within_prompt(features: np.ndarray) -> np.ndarray:
    """Unbiased covariance of each prompt's responses, shape (prompts, d, d)."""
    centred = features - features.mean(axis=1, keepdims=True)
    return np.einsum("xni,xnj->xij", centred, centred) / (features.shape[1] - 1)


def coverage(covering: np.ndarray, covered: np.ndarray) -> tuple[float, float]:
    """C, and the mean eigenvalue tr(V^-1 V') / d, from covariances of prompts."""
    below, above = covering.mean(axis=0), covered.mean(axis=0)
    ratio = float(largest_ratio(torch.from_numpy(below), torch.from_numpy(above)))
    if ratio > 1e10:  # singular but for rounding: too few prompts for the dimension
        return math.inf, math.inf
    return ratio, float(np.trace(np.linalg.solve(below, above)) / len(below))


def interval_of(
    covering: np.ndarray,
    covered: np.ndarray,
    paired: bool,
    resamples: int,
    generator: np.random.Generator,
) -> tuple[tuple[float, float], list[float]]:
    """Coverage and its 95% bootstrap interval over prompts (the same prompts, where `paired`)."""
    drawn = []
    for _ in range(resamples):
        first = generator.integers(len(covering), size=len(covering))
        other = first if paired else generator.integers(len(covered), size=len(covered))
        drawn.append(coverage(covering[first], covered[other])[0])
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")  # some may be infinite
    return coverage(covering, covered), [float(low), float(high)]


def noise_level(part: np.ndarray, generator: np.random.Generator, repeats: int = 50) -> float:
    """The median coverage of one half of the prompts by the other: 1 with endless samples."""
    values = []
    for _ in range(repeats):
        order = generator.permutation(len(part))
        half = len(part) // 2
        values.append(coverage(part[order[:half]], part[order[half:]])[0])
    return float(np.median(values))


def _draw(table: list[dict[str, Any]], noise: float, run_dir: RunDir) -> None:
    figure = Figure(1)
    for index, name in enumerate(("held out", "training")):
        own = [row for row in table if row["samples"] == name and math.isfinite(row["coverage"])]
        x, y = [row["round"] for row in own], [row["coverage"] for row in own]
        band = [row["coverage_ci95"][0] for row in own], [row["coverage_ci95"][1] for row in own]
        figure.line(0, x, y, index, f"{name} prompts", index == 1, band)
    axes = figure.panels[0]
    axes.axhline(noise, color="grey", ls=":", lw=1, label="noise: halves of one policy")
    axes.set_yscale("log")
    axes.set_xlabel("round k")
    axes.set_ylabel("coverage of the final policy by pi_k")
    axes.legend(frameon=False, fontsize=8)
    figure.save(run_dir.path, "features: last hidden layer, projected; 95% bootstrap over prompts")
