r"""Policies from a general function class, pi_f = pi_0 exp(f) / Z (2601.08421, Section 5).

f is a network of one hidden layer, R tanh(v . tanh(W phi + b)), bounded by R; a teacher of the same
shape is the truth, so that the class is realizable. Fits are by Adam on all pairs of a round, and
the objectives are those of the language-model trainers. Every replica has its own network; all are
trained at once by batched matrix products.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprise.alignment.config import DPO
from reprise.alignment.objectives import Scores, pair_losses, target_of
from reprise.alignment.theory.bandit import Bandit, tabular
from reprise.alignment.theory.config import Network
from reprise.alignment.theory.learning import PairTable, draw, objective_of, win_probability
from reprise.alignment.theory.report import Figure, mean_interval, slope, write_table
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir

Weights = tuple[Tensor, Tensor, Tensor]


def values(weights: Weights, features: Tensor, radius: float) -> Tensor:
    """f(x, a) of every replica, shape (replicas, prompts, responses)."""
    inner, bias, outer = weights
    hidden = torch.tanh(torch.einsum("xad,rhd->rxah", features, inner) + bias[:, None, None])
    return radius * torch.tanh(torch.einsum("rxah,rh->rxa", hidden, outer) / radius)


def new_weights(
    replicas: int, width: int, dimension: int, generator: np.random.Generator, scale: float
) -> Weights:
    """Gaussian weights; the outer layer is `scale` times that of a unit-variance network."""
    inner = torch.from_numpy(generator.normal(size=(replicas, width, dimension)) * 1.5)
    bias = torch.from_numpy(generator.normal(size=(replicas, width)) * 0.5)
    outer = torch.from_numpy(generator.normal(size=(replicas, width)) * scale / math.sqrt(width))
    return inner, bias, outer


def fit(
    bandit: Bandit,
    features: Tensor,
    objective_name: str,
    f_k: Tensor,
    start: Weights,
    size: int,
    study: Network,
    generator: np.random.Generator,
) -> Tensor:
    """Draw D_k from pi_k = pi_0 exp(f_k) / Z and minimize the objective on it; returns f_{k+1}."""
    table, replicas = PairTable.of(bandit), len(f_k)
    log_policy = torch.log_softmax(bandit.base + f_k, dim=-1)
    probabilities = table.probabilities(bandit.prompts, log_policy.exp())
    batch = draw(probabilities, win_probability(bandit, table), size, generator)
    objective = objective_of(objective_name, bandit.gamma)
    initial = table.both(bandit.base).expand(*batch.counts.shape, 2)
    if isinstance(objective, DPO):
        target = batch.wins / batch.counts.clamp_min(1)
    else:
        difference = table.difference(bandit.rewards).expand(batch.counts.shape)
        unused = np.zeros(0)
        made = target_of(objective, Scores(difference.reshape(-1).numpy(), unused, unused, unused))
        target = torch.from_numpy(made)
    reference, target = initial.reshape(-1, 2), target.reshape(-1)
    weight = (batch.counts / batch.size).reshape(-1)
    weights = tuple(part.clone().requires_grad_(True) for part in start)
    optimizer = torch.optim.Adam(weights, lr=study.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, study.steps)
    for _ in range(study.steps):
        optimizer.zero_grad()
        f = values(weights, features, bandit.radius)
        logprobs = table.both(torch.log_softmax(bandit.base + f, dim=-1)).reshape(-1, 2)
        losses, _ = pair_losses(objective.name, logprobs, reference, target, weight, bandit.gamma)
        (losses.sum() / bandit.gamma**2).backward()  # one learning rate for every gamma
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        f = values(weights, features, bandit.radius)
    assert f.shape[0] == replicas
    return f


def network(
    bandit: Bandit, study: Network, replicas: int, streams: Streams, run_dir: RunDir
) -> dict[str, Any]:
    """MAD_{pi*}(f_K - f*) against n, preference distillation, REBEL and DPO (Theorem 5.1)."""
    features, width = bandit.features, study.width
    teacher = new_weights(1, width, features.shape[2], streams.internal("teacher", 0), 1.0)
    truth = values(teacher, features, bandit.radius)[0]
    problem = tabular(truth, bandit.base, bandit.prompts, bandit.radius, bandit.gamma)
    curves: list[dict[str, Any]] = []
    slopes: list[dict[str, Any]] = []
    methods = {"DPO": "dpo", "PDFR": "pdfr", "REBEL, fixed": "rebel"}
    with run_dir.progress(study.name, len(methods) * len(study.pairs_per_round)) as progress:
        for name, objective in methods.items():
            errors = []
            for size in study.pairs_per_round:
                f = torch.zeros(replicas, *bandit.base.shape, dtype=torch.float64)
                for k in range(study.rounds):
                    fresh = streams.data("initial weights", name, size)
                    start = new_weights(replicas, width, features.shape[2], fresh, 0.3)
                    generator = streams.data("pairs", name, size, k)
                    f = fit(problem, features, objective, f, start, size, study, generator)
                measured = problem.errors(f.reshape(replicas, -1))
                errors.append(measured["deviation"].numpy())
                mean, interval = mean_interval(errors[-1])
                kl, kl_interval = mean_interval(measured["kl"].numpy())
                head = {"method": name, "pairs_per_round": size, "round": study.rounds}
                curves.append(
                    head
                    | {"deviation_mean": mean, "deviation_ci95": interval, "kl_mean": kl}
                    | {"kl_ci95": kl_interval, "seeds": replicas}
                    | {"theta_error_mean": float(measured["theta_error"].mean())}
                )
                run_dir.log(**curves[-1])
                progress.advance()
            fitted, interval, degrees = slope(study.pairs_per_round, np.array(errors))
            slopes.append({"method": name, "slope": fitted, "ci95": interval, "degrees": degrees})
    table = [
        row
        | {
            f"n = {c['pairs_per_round']}": c["deviation_mean"]
            for c in curves
            if c["method"] == row["method"]
        }
        for row in slopes
    ]
    write_table(run_dir.path, table)
    figure = Figure(1)
    for index, row in enumerate(slopes):
        own = [c for c in curves if c["method"] == row["method"]]
        label = f"{row['method']}: slope {row['slope']:.2f}"
        y = [c["deviation_mean"] for c in own]
        figure.line(0, [c["pairs_per_round"] for c in own], y, index, label)
    axes = figure.panels[0]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("pairs a round")
    axes.set_ylabel("mean absolute deviation from f*")
    axes.legend(frameon=False, fontsize=8)
    figure.save(run_dir.path, f"networks of {width} hidden units, mean over {replicas} seeds")
    return {"slopes": slopes, "curves": curves}
