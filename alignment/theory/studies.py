"""The experiments of `alignment.bandit`: one function for each kind of study.

Each leaves ``table.md`` and ``figure.png`` / ``.svg`` in the run's directory, and its numbers in
``summary.json``. They take seconds to minutes and begin anew when interrupted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprise.alignment.calibration import calibration_warning
from reprise.alignment.theory.bandit import Bandit, dyadic, random_bandit, skewed
from reprise.alignment.theory.config import (
    BanditExperiment,
    Complexity,
    Coverage,
    Dyadic,
    Instance,
    Method,
    Network,
    Random,
    Regions,
    Rounds,
    Scaling,
    Skewed,
)
from reprise.alignment.theory.function_class import network
from reprise.alignment.theory.learning import AnyObjective, learn, objective_of
from reprise.alignment.theory.report import (
    Figure,
    geometric_interval,
    mean_interval,
    quantile_interval,
    write_table,
)
from reprise.alignment.theory.scaling import complexity, coverage, scaling
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir


def run(config: BanditExperiment, run_dir: RunDir) -> dict[str, Any]:
    """Run the study that `config` names; returns the fields of ``summary.json``."""
    run_dir.cut_metrics(lambda record: False)
    streams, study = Streams(config.seed), config.study
    bandit = build(config.instance, streams)
    summary: dict[str, Any] = {"study": study.name, "instance": describe(bandit, streams)}
    if isinstance(study, Rounds):
        return summary | rounds(bandit, study, config.replicas, streams, run_dir)
    if isinstance(study, Regions):
        return summary | regions(bandit, study, config.replicas, streams, run_dir)
    if isinstance(study, Coverage):
        return summary | coverage(study, streams, run_dir)
    if isinstance(study, Complexity):
        return summary | complexity(bandit, study, config.replicas, streams, run_dir)
    if isinstance(study, Network):
        return summary | network(bandit, study, config.replicas, streams, run_dir)
    assert isinstance(study, Scaling)
    instances = [
        (label, build(instance, streams)) for label, instance in variants(config.instance, study)
    ]
    return summary | scaling(instances, study, config.replicas, streams, run_dir)


def build(instance: Instance, streams: Streams) -> Bandit:
    """The bandit that the settings describe."""
    if isinstance(instance, Skewed):
        return skewed(instance.dimension, instance.radius, instance.norm, instance.gamma)
    if isinstance(instance, Dyadic):
        return dyadic(instance.responses, instance.radius, instance.gamma)
    assert isinstance(instance, Random)
    shape = instance.prompts, instance.responses, instance.dimension
    return random_bandit(
        *shape,
        instance.radius,
        streams.internal("instance", 0),
        instance.norm,
        instance.gamma,
        instance.skew,
        instance.opposed,
        instance.target,
    )


def variants(instance: Instance, study: Scaling) -> list[tuple[dict[str, float], Instance]]:
    """The instance with every radius and dimension that the study asks for."""
    changes: list[dict[str, float]] = [{}]
    if study.radii:
        changes = [{"radius": radius} for radius in study.radii]
    if study.dimensions:
        changes = [c | {"dimension": d} for c in changes for d in study.dimensions]
    return [(change, instance.model_copy(update=change)) for change in changes]


def describe(bandit: Bandit, streams: Streams) -> dict[str, Any]:
    """What ``summary.json`` says of an instance."""
    prompts, responses, dimension = bandit.features.shape
    covered = float(bandit.coverage(bandit.base))
    local = bandit.local_coverage(bandit.radius, streams.internal("coverage", 0))
    return {
        "prompts": prompts,
        "responses": responses,
        "dimension": dimension,
        "radius": bandit.radius,
        "norm": bandit.norm,
        "gamma": bandit.gamma,
        "coverage": covered,
        "local_coverage_at_least": local,
        "local_coverage_at_most": bandit.density_ratio_bound(bandit.radius),
        "lambda": bandit.smallest_eigenvalue,
    }


def _warn(methods: list[Method], gamma: float, run_dir: RunDir) -> None:
    """Say which calibrations diverge, before they do."""
    for method in methods:
        if method.objective == "rdrc":
            reported = calibration_warning(gamma, method.calibration * gamma)
            if reported is not None:
                run_dir.say(f"{method.name}: {reported}")


def method_objective(method: Method, gamma: float) -> AnyObjective:
    """The settings of a method's objective."""
    return objective_of(method.objective, gamma, method.reference, method.calibration)


# -- error against rounds ------------------------------------------------------------------------


def rounds(
    bandit: Bandit, study: Rounds, replicas: int, streams: Streams, run_dir: RunDir
) -> dict[str, Any]:
    """Every method with every number of pairs: what each round leaves (Sections 3 to 5)."""
    curves: list[dict[str, Any]] = []
    _warn(study.methods, bandit.gamma, run_dir)
    tasks = [
        (method, size)
        for method in study.methods
        for size in (study.pairs_per_round if method.schedule is None else [0])
    ]
    with run_dir.progress(study.name, len(tasks), "curves") as progress:
        for method, size in tasks:
            sizes = [size] * study.rounds
            if method.schedule is not None:
                sizes = method.schedule.sizes(study.rounds)
            objective, name = method_objective(method, bandit.gamma), f"{method.name} {size}"
            path = learn(bandit, objective, method.sampler, sizes, replicas, streams, name)
            for k, theta in enumerate(path):
                record = measured(bandit, theta)
                head = {"method": method.name, "pairs_per_round": size or sizes, "round": k}
                curves.append(head | record | {"pairs": sum(sizes[:k]), "seeds": replicas})
                run_dir.log(**curves[-1])
            progress.advance()
    measure = f"{study.measure}_mean"
    table = []
    for method, size in tasks:
        own = [c for c in curves if c["method"] == method.name and _sized(c, size)]
        row = {
            "method": method.name,
            "pairs a round": size or "schedule",
            "in all": own[-1]["pairs"],
        }
        table.append(row | {f"round {c['round']}": c[measure] for c in own})
    write_table(run_dir.path, table)
    draw_rounds(curves, study, run_dir)
    return {"measure": study.measure, "curves": curves}


def _sized(curve: dict[str, Any], size: int) -> bool:
    given = curve["pairs_per_round"]
    return isinstance(given, list) if size == 0 else given == size


def measured(bandit: Bandit, theta: Tensor) -> dict[str, Any]:
    """Errors of the replicas' policies, averaged; theta of shape (replicas, d)."""
    log_policy = bandit.log_policy(theta)
    errors = bandit.errors(theta)
    policy = log_policy.exp()
    reward = torch.einsum("rxa,xa,x->r", policy, bandit.rewards, bandit.prompts)
    entropy = -torch.einsum("rxa,rxa,x->r", policy, log_policy.clamp_min(-700), bandit.prompts)
    means: dict[str, Any] = {}
    for name, values in errors.items():
        means[f"{name}_mean"], means[f"{name}_ci95"] = mean_interval(values.numpy())
    q95, q95_interval, groups = quantile_interval(errors["theta_error"].numpy(), 0.95)
    return means | {
        "kl_median": float(errors["kl"].median()),
        "theta_error_q95": q95,
        "theta_error_q95_ci95": q95_interval,
        "groups": groups,
        "reward_mean": float(reward.mean()),
        "entropy_mean": float(entropy.mean()),
        "top_probability_mean": float(policy.amax(-1).mean()),
        "coverage_median": float(bandit.coverage(log_policy).median()),
    }


def draw_rounds(curves: list[dict[str, Any]], study: Rounds, run_dir: RunDir) -> None:
    """One panel for each number of pairs; schedules are in all of them."""
    sizes = study.pairs_per_round or [0]
    figure = Figure(len(sizes))
    measure = f"{study.measure}_mean"
    for panel, size in enumerate(sizes):
        for index, method in enumerate(study.methods):
            of_method = [c for c in curves if c["method"] == method.name]
            own = [c for c in of_method if _sized(c, 0 if method.schedule else size)]
            band = None
            if study.measure == "kl":
                low = [
                    max(c["kl_ci95"][0], c["kl_mean"] / 20) for c in own
                ]  # the axis is a logarithm
                band = low, [c["kl_ci95"][1] for c in own]
            x, dashed = [c["round"] for c in own], method.sampler == "offline"
            figure.line(panel, x, [c[measure] for c in own], index, method.name, dashed, band)
        axes = figure.panels[panel]
        axes.set_title(f"{size} pairs a round" if size else "")
        axes.set_xlabel("round")
        if study.measure != "reward":
            axes.set_yscale("log")
    figure.panels[0].set_ylabel(study.measure)
    figure.panels[0].legend(frameon=False, fontsize=8)
    figure.save(run_dir.path, "mean over seeds, with the 95% interval where it is KL(pi || pi*)")


# -- Figure 1 ------------------------------------------------------------------------------------


def regions(
    bandit: Bandit, study: Regions, replicas: int, streams: Streams, run_dir: RunDir
) -> dict[str, Any]:
    """Radii within which `level` of the estimates lie around theta*, and one run among them."""
    if bandit.span.shape[1] != 2:
        raise BadInput(
            f"instance: its features differ along {bandit.span.shape[1]} dimensions; the regions "
            "of Figure 1 are drawn in 2 (skewed: dimension 2 with norm 1, or 3 above)"
        )
    objective = objective_of("dpo", bandit.gamma)
    sizes = [study.pairs_per_round] * study.rounds
    paths = {
        sampler: learn(bandit, objective, sampler, sizes, replicas, streams, sampler)
        for sampler in ("on_policy", "offline")
    }
    flat = {name: (path - bandit.theta_star) @ bandit.span for name, path in paths.items()}
    distance = {name: path.norm(dim=-1) for name, path in flat.items()}
    radii = {name: d[1:].quantile(study.level, dim=1) for name, d in distance.items()}
    table = [
        {"round": k + 1, **{f"radius, {name}": float(r[k]) for name, r in radii.items()}}
        for k in range(study.rounds)
    ]
    for row in table:
        run_dir.log(**row)
    curves = [
        {"method": name, "pairs_per_round": study.pairs_per_round, "round": k}
        | measured(bandit, path[k])
        | {"seeds": replicas}
        | (region(distance[name], k, study.level) if k else {})
        for name, path in paths.items()
        for k in range(study.rounds + 1)
    ]
    columns = ["method", "round", "radius", "distance", "distance_ci95", "shrinkage"]
    shown = [{key: c[key] for key in columns} for c in curves if c["round"]]
    write_table(run_dir.path, table, shown)
    _draw_regions(flat, {name: r.numpy() for name, r in radii.items()}, run_dir, study.level)
    return {"regions": table, "curves": curves}


def region(distance: Tensor, k: int, level: float) -> dict[str, Any]:
    """Round k: the region's radius, the mean distance, and the factor that it shrank by.

    ``shrinkage`` is the geometric mean, over replicas, of distance now / distance a round ago.
    """
    radius, radius_interval, _ = quantile_interval(distance[k].numpy(), level)
    mean, interval = mean_interval(distance[k].numpy())
    factor, ends = geometric_interval((distance[k] / distance[k - 1]).log().tolist())
    return {
        "radius": radius,
        "radius_ci95": radius_interval,
        "distance": mean,
        "distance_ci95": interval,
        "shrinkage": factor,
        "shrinkage_ci95": ends,
    }


def _draw_regions(
    flat: dict[str, Tensor], radii: dict[str, np.ndarray], run_dir: RunDir, level: float
) -> None:
    from matplotlib.patches import Circle

    figure = Figure(3)
    for panel, (name, path) in enumerate(flat.items()):
        axes = figure.panels[panel]
        points = path.numpy()
        # The run whose first estimate is the typical one.
        lengths = np.linalg.norm(points[1], axis=1)
        run = int(np.argsort(lengths)[len(lengths) // 2])
        for k, radius in enumerate(radii[name], start=1):
            shade = dict(fill=False, color="#0072B2", alpha=min(1.0, 0.25 + 0.15 * k))
            axes.add_patch(Circle(points[k, run], radius, **shade))
        axes.plot(*points[:, run].T, "o-", color="#D55E00", markersize=4, lw=1)
        axes.plot(0, 0, "*", color="black", markersize=12)
        axes.set_title(f"{name.replace('_', '-')}: estimates of one run")
        axes.set_aspect("equal", adjustable="datalim")
        figure.line(2, range(1, len(radii[name]) + 1), radii[name], panel, name.replace("_", "-"))
    figure.panels[2].set_yscale("log")
    figure.panels[2].set_xlabel("round")
    figure.panels[2].set_ylabel(f"radius that holds {level:.0%} of the runs")
    figure.panels[2].legend(frameon=False, fontsize=8)
    figure.save(run_dir.path, "star: theta*; circles: confidence regions around the estimates")
