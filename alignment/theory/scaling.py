"""How errors and numbers of pairs scale: slopes in logarithms, with confidence intervals."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprise.alignment.theory.bandit import Bandit
from reprise.alignment.theory.config import Complexity, Coverage, Method, Scaling
from reprise.alignment.theory.learning import learn, objective_of
from reprise.alignment.theory.report import (
    GROUPS,
    Figure,
    geometric_interval,
    mean_interval,
    slope,
    write_table,
)
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir


def scaling(
    instances: list[tuple[dict[str, float], Bandit]],
    study: Scaling,
    replicas: int,
    streams: Streams,
    run_dir: RunDir,
) -> dict[str, Any]:
    """Error after K rounds against n, for each instance, reward error and method.

    ``slopes``: of ln error in ln n, with Student's 95% interval. Every curve's point has the error
    over what a theorem says: ``ratio`` to the rate of Theorem 2.2 (`theta_error`), ``scaled`` to
    that of Theorem 4.4, R sqrt(d / n) (`variance_error`).
    """
    curves: list[dict[str, Any]] = []
    slopes: list[dict[str, Any]] = []
    cells = [
        (index, label, bandit, error, method)
        for index, (label, bandit) in enumerate(instances)
        for error in study.reward_errors
        for method in study.methods
    ]
    with run_dir.progress(study.name, len(cells), "curves") as progress:
        for index, label, bandit, error, method in cells:
            head: dict[str, Any] = label | (
                {"reward_error": error} if len(study.reward_errors) > 1 else {}
            )
            head = head | {"method": method.name}
            values = []
            for size in study.pairs_per_round:
                name = f"{index} {error} {method.name} {size}"
                theta = _learned(bandit, method, study, size, error, replicas, streams, name)
                measured = bandit.errors(theta)
                values.append(measured[study.measure].numpy())
                kl, kl_interval = mean_interval(measured["kl"].numpy())
                curves.append(
                    head
                    | {"pairs_per_round": size, "round": study.rounds, "seeds": replicas}
                    | _beside_theory(values[-1], bandit, size, study.measure)
                    | {"kl_mean": kl, "kl_ci95": kl_interval}
                    | {"theta_error_mean": float(measured["theta_error"].mean())}
                )
                run_dir.log(**curves[-1])
            fitted, interval, degrees = slope(study.pairs_per_round, np.array(values))
            own = curves[-len(study.pairs_per_round) :]
            slopes.append(
                head
                | {"slope": fitted, "ci95": interval, "degrees": degrees, "seeds": replicas}
                | {"last_error": own[-1]["error_mean"], "last_error_ci95": own[-1]["error_ci95"]}
                | {
                    key.replace(name, f"{name}_{point['pairs_per_round']}"): point[key]
                    for point in own
                    for name in ("ratio", "scaled")
                    for key in (name, f"{name}_ci95")
                    if key in point
                }
            )
            progress.advance()
    columns = [
        {key: value for key, value in head.items() if "ratio_" not in key and "scaled_" not in key}
        | {f"n = {c['pairs_per_round']}": c["error_mean"] for c in _of(curves, head)}
        for head in slopes
    ]
    write_table(run_dir.path, columns)
    _draw_scaling(curves, slopes, study, run_dir)
    return {"measure": study.measure, "slopes": slopes, "curves": curves}


def _beside_theory(errors: np.ndarray, bandit: Bandit, size: int, measure: str) -> dict[str, Any]:
    """Mean error and interval, and both over the rate of the theorem that is about `measure`."""
    mean, interval = mean_interval(errors)
    record: dict[str, Any] = {"error_mean": mean, "error_ci95": interval}
    rates = {
        "theta_error": ("ratio", lower_bound_rate(bandit, size)),
        "variance_error": ("scaled", two_round_rate(bandit, size)),
    }
    if measure in rates:
        name, rate = rates[measure]
        record |= {name: mean / rate, f"{name}_ci95": [end / rate for end in interval]}
    return record


def two_round_rate(bandit: Bandit, size: int) -> float:
    """R sqrt(d / n), to which Theorem 4.4 bounds the error, but for constants and logarithms."""
    return bandit.radius * math.sqrt(bandit.span.shape[1] / size)


def lower_bound_rate(bandit: Bandit, size: int) -> float:
    """The rate of Theorem 2.2 without its constant, for the skewed instances."""
    dimension, p = bandit.features.shape[2], bandit.norm
    if p == 1:
        return min((dimension - 1) * math.sqrt(math.exp(bandit.radius) / size), 1.0)
    exponent = 1.0 if p == math.inf else 1 - 1 / p
    return min(math.sqrt(math.exp(2**exponent * bandit.radius) / size), 1.0)


def _learned(
    bandit: Bandit,
    method: Method,
    study: Scaling,
    size: int,
    error: float,
    replicas: int,
    streams: Streams,
    name: str,
) -> Tensor:
    objective = objective_of(method.objective, bandit.gamma, method.reference, method.calibration)
    sizes = [size] * study.rounds
    if method.schedule is not None:
        sizes = method.schedule.sizes(study.rounds)
    rewards = wrong_rewards(bandit, error, streams) if error else None
    return learn(bandit, objective, method.sampler, sizes, replicas, streams, name, rewards)[-1]


def wrong_rewards(bandit: Bandit, error: float, streams: Streams) -> Tensor:
    """Rewards r~ with MAD_{pi*}(r~/gamma - f*) = error (Theorem 5.1); shape of `bandit.rewards`."""
    signs = streams.internal("reward model", 0).choice([-1.0, 1.0], size=bandit.base.shape)
    e, target = torch.from_numpy(signs), bandit.log_target.exp()
    centred = e - (target * e).sum(-1, keepdim=True)
    deviation = torch.einsum("xa,xa,x->", centred.abs(), target, bandit.prompts)
    return bandit.rewards + bandit.gamma * error / deviation * e


def _of(curves: list[dict[str, Any]], head: dict[str, Any]) -> list[dict[str, Any]]:
    keys = [key for key in head if key in ("radius", "dimension", "reward_error", "method")]
    return [c for c in curves if all(c[key] == head[key] for key in keys)]


def _draw_scaling(
    curves: list[dict[str, Any]], slopes: list[dict[str, Any]], study: Scaling, run_dir: RunDir
) -> None:
    groups = [name for name in ("radius", "dimension", "reward_error") if name in slopes[0]]
    panels = sorted({tuple(s[name] for name in groups) for s in slopes})
    figure = Figure(len(panels))
    for head in slopes:
        panel = panels.index(tuple(head[name] for name in groups))
        index = [method.name for method in study.methods].index(head["method"])
        own = _of(curves, head)
        x, y = [c["pairs_per_round"] for c in own], [c["error_mean"] for c in own]
        figure.line(panel, x, y, index, f"{head['method']}: slope {head['slope']:.2f}")
        figure.panels[panel].set_title(
            ", ".join(f"{name} {head[name]:g}" for name in groups), fontsize=9
        )
    for axes in figure.panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("pairs a round")
        axes.legend(frameon=False, fontsize=7)
    figure.panels[0].set_ylabel(f"mean {study.measure}")
    figure.save(run_dir.path, "mean over seeds")


# -- pairs until eps: Corollary 3.3 --------------------------------------------------------------


def complexity(
    bandit: Bandit, study: Complexity, replicas: int, streams: Streams, run_dir: RunDir
) -> dict[str, Any]:
    """Fewest pairs in all with a median L_p error of at most eps.

    On-policy: over all n and K tried. Offline: one round of n pairs from pi_0, n up to the largest
    n K, read off between the sizes tried by interpolation in logarithms. A median over replicas is
    no mean, and its interval no Student's: ``ratio`` and ``slope`` are taken in each of `groups`
    equal groups of replicas, and averaged (the ratio in logarithms) with Student's interval.
    """
    objective, rounds = objective_of("dpo", bandit.gamma), study.rounds
    on: list[tuple[int, np.ndarray]] = []
    off: list[tuple[int, np.ndarray]] = []
    factor = study.pairs_per_round[-1] / study.pairs_per_round[-2]
    totals = list(study.pairs_per_round)
    while totals[-1] < study.pairs_per_round[-1] * rounds * 8:
        totals.append(round(totals[-1] * factor))
    with run_dir.progress(study.name, len(study.pairs_per_round) + len(totals)) as progress:
        for size in study.pairs_per_round:
            path = learn(
                bandit, objective, "on_policy", [size] * rounds, replicas, streams, f"{size}"
            )
            errors = bandit.errors(path)["theta_error"].numpy()
            on += [(size * k, errors[k]) for k in range(1, rounds + 1)]
            progress.advance()
        for size in totals:
            path = learn(bandit, objective, "offline", [size], replicas, streams, f"off {size}")
            off.append((size, bandit.errors(path)["theta_error"].numpy()[-1]))
            progress.advance()
    groups = np.array_split(np.arange(replicas), min(GROUPS, replicas))
    parts = [([(n, e[g]) for n, e in on], [(n, e[g]) for n, e in off]) for g in groups]
    table = []
    for eps in sorted(study.errors, reverse=True):
        row: dict[str, Any] = {"eps": eps, "on_policy": _fewest(on, eps)}
        row["offline"] = _crossing(off, eps)
        logs = [math.log(_crossing(second, eps) / _fewest(first, eps)) for first, second in parts]
        row["ratio"], row["ratio_ci95"] = geometric_interval(logs)
        table.append(row | {"groups": len(groups)})
        run_dir.log(round=len(table), **table[-1])
    # The two regimes of Corollary 3.3 meet where R^2 / eps^2 = C.
    covered = float(bandit.coverage(bandit.base))
    knee = bandit.radius / math.sqrt(covered)
    slopes = []
    for index, (name, needed) in enumerate((("on_policy", _fewest), ("offline", _crossing))):
        for part, kept in (
            ("eps above R/sqrt(C)", [e for e in study.errors if e >= knee]),
            ("eps below", [e for e in study.errors if e < knee]),
            ("all eps", list(study.errors)),
        ):
            fitted = [_slope_of_need(of_group[index], needed, kept) for of_group in parts]
            if not any(map(math.isnan, fitted)):
                mean, interval = mean_interval(np.array(fitted))
                slopes.append({"method": name, "range": part, "slope": mean, "ci95": interval})
                slopes[-1]["groups"] = len(groups)
    write_table(run_dir.path, table, slopes)
    figure = Figure(1)
    inverse = [1 / row["eps"] for row in table]
    for index, name in enumerate(("on_policy", "offline")):
        figure.line(0, inverse, [row[name] for row in table], index, name, name == "offline")
    axes = figure.panels[0]
    axes.axvline(1 / knee, color="grey", lw=0.8, ls=":", label="eps = R / sqrt(C)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("1 / eps")
    axes.set_ylabel("pairs until the median error is eps")
    axes.legend(frameon=False, fontsize=8)
    figure.save(run_dir.path, "fewest pairs in all, over the sizes and numbers of rounds tried")
    return {"pairs": table, "slopes": slopes, "knee": knee, "curves": _as_curves(on, off, replicas)}


def _as_curves(on: list, off: list, replicas: int) -> list[dict[str, Any]]:
    return [
        {"method": name, "pairs": size, "theta_error_mean": float(e.mean()), "seeds": replicas}
        for name, runs in (("on_policy", on), ("offline", off))
        for size, e in runs
    ]


def _fewest(runs: list[tuple[int, np.ndarray]], eps: float) -> float:
    """The smallest total that reached eps; NaN if none did."""
    return min((float(size) for size, e in runs if np.median(e) <= eps), default=math.nan)


def _crossing(runs: list[tuple[int, np.ndarray]], eps: float) -> float:
    """Where the median error, interpolated in logarithms, falls below eps; NaN if it never does."""
    logs = [(math.log(size), math.log(float(np.median(e)))) for size, e in sorted(runs, key=_size)]
    aim = math.log(eps)
    for (x, y), (next_x, next_y) in pairwise(logs):
        if next_y <= aim < y:
            return math.exp(x + (next_x - x) * (y - aim) / (y - next_y))
    return math.exp(logs[0][0]) if logs[0][1] <= aim else math.nan


def _size(run: tuple[int, np.ndarray]) -> int:
    return run[0]


def _slope_of_need(runs: list[tuple[int, np.ndarray]], needed: Any, errors: list[float]) -> float:
    """Slope of ln pairs in ln 1/eps, over the errors that were reached; NaN below three."""
    points = [(-math.log(eps), needed(runs, eps)) for eps in errors]
    points = [(x, math.log(y)) for x, y in points if not math.isnan(y)]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0]) if len(points) > 2 else math.nan


# -- coverage of near-uniform targets: Proposition 2.1 -------------------------------------------


def coverage(study: Coverage, streams: Streams, run_dir: RunDir) -> dict[str, Any]:
    """C_*^p(R) of pi* = softmax(theta*), nearly uniform, phi(i) = e_i, against what 2.1 says.

    ``lower`` is certified (a point of the ball attains it); ``upper`` is the largest density ratio
    over the ball, exact for p = 1 (attained at -R e_i) and found by the same search for p > 1.
    """
    table, slopes = [], []
    for norm in study.norms:
        for dimension in study.dimensions:
            signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(dimension // 2)
            target = signs / dimension
            lowers = []
            for radius in study.radii:
                bandit = Bandit(
                    torch.eye(dimension, dtype=torch.float64)[None],
                    torch.full((1, dimension), -math.log(dimension), dtype=torch.float64),
                    torch.ones(1, dtype=torch.float64),
                    target,
                    1 / radius,
                    max(radius, float(target.abs().sum())),
                    norm,
                )
                lower = bandit.local_coverage(radius, streams.internal("search", dimension))
                rate = math.exp(2 ** (1 - 1 / norm) * radius) / (1 if norm == 1 else dimension)
                lowers.append(lower)
                row = {"p": norm, "d": dimension, "R": radius, "C at least": lower}
                table.append(row | {"rate of 2.1": rate, "C / rate": lower / rate})
                run_dir.log(round=len(table), **table[-1])
            fitted = np.polyfit(study.radii, np.log(lowers), 1)[0]
            local = np.diff(np.log(lowers)) / np.diff(study.radii)
            slopes.append(
                {"p": norm, "d": dimension, "slope of ln C in R": float(fitted)}
                | {"last slope": float(local[-1]), "theory": 2 ** (1 - 1 / norm)}
            )
    write_table(run_dir.path, slopes, table)
    figure = Figure(len(study.norms))
    for panel, norm in enumerate(study.norms):
        axes = figure.panels[panel]
        for index, dimension in enumerate(study.dimensions):
            own = [row for row in table if row["p"] == norm and row["d"] == dimension]
            x = [row["R"] for row in own]
            figure.line(panel, x, [row["C at least"] for row in own], index, f"d = {dimension}")
            axes.plot(x, [row["rate of 2.1"] for row in own], ":", color="grey", lw=1)
        axes.set_yscale("log")
        axes.set_xlabel("R")
        axes.set_title(f"p = {norm:g}")
        axes.legend(frameon=False, fontsize=8)
    figure.panels[0].set_ylabel("local coverage of pi*, certified from below")
    figure.save(run_dir.path, "dotted: the rate of Proposition 2.1, without its constant")
    return {"slopes": slopes, "table": table, "curves": []}
