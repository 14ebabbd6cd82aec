"""How often does an experiment give the same result? Shared internal randomness, other data.

N runs of one config that differ in `seed`. Where the config has an `internal_seed`, that is the
algorithm's own randomness, and stays; where it has none (a language model's training), everything
random follows the seed, and identity is not to be expected: then the distances tell.

Two results are identical if their `weights_sha256` are: to the last bit. A study that leaves no
weights is compared by the numbers of its summary.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprise.launch.config import EXPERIMENTS, ConfigError, ExperimentSettings, find, load
from reprise.launch.parallel import Job, run_side_by_side
from reprise.launch.provenance import cores
from reprise.launch.run import default_out
from reprise.launch.tables.values import PathError, number_at
from reprise.rl.replicable.agreement import most_common_share, pairwise_identity
from reprise.rollout.files import write_json
from reprise.rollout.run.intervals import jackknife, student, student_share

# What tells two runs apart without being a result.
NOT_RESULTS = {
    "experiment",
    "status",
    "seed",
    "config_sha256",
    "code_revision",
    "files",
    "seal",
}


def replicate(
    config: str,
    overrides: Sequence[str],
    runs: int,
    out: Path | None = None,
    workers: int | None = None,
    metric: str | None = None,
) -> dict[str, Any]:
    """Make the runs that are not there yet, and compare them all.

    Args:
        config: path or shipped name.
        overrides: ``key.path=value``; `seed` here is the first of the N.
        runs: N.
        out: folder of the runs [default: runs/replicate/<the config's name>].
        workers: runs at a time [default: one for each core].
        metric: where in ``summary.json`` the return is, e.g. ``cells.0.return_mean``.

    Returns:
        The report, which is also in ``<out>/replicate.json``.

    Raises:
        ConfigError: bad input, or a run failed.
    """
    settings = load(config, overrides)
    if runs < 2:
        raise ConfigError(f"--runs {runs}: agreement is between two runs or more")
    metric = metric or EXPERIMENTS[settings.experiment].headline
    out = out or Path("runs") / "replicate" / default_out(find(config)).relative_to("runs")
    jobs = [
        Job(config, (*overrides, f"seed={settings.seed + number}"), out / f"run-{number:03d}")
        for number in range(runs)
    ]
    # The first alone: it makes what all need (needed runs, recorded data).
    for batch in (jobs[:1], jobs[1:]):
        run_side_by_side(batch, workers or cores(), lambda: None, interval=0.2)
        failed = [job for job in batch if job.status == "failed"]
        if failed:
            raise ConfigError(
                f"{len(failed)} of {len(batch)} runs failed; the reason of the first is in "
                f"{failed[0].log}. Repeat the command to continue with what is missing"
            )
        print(f"{sum(job.status == 'done' for job in jobs)}/{runs} runs", file=sys.stderr)
    report = compare(settings, [job.out for job in jobs], metric)
    write_json(out / "replicate.json", report)
    return report


def compare(settings: ExperimentSettings, paths: Sequence[Path], metric: str) -> dict[str, Any]:
    """Identity, distance and return of finished runs that differ in `seed`.

    Intervals are 95%: of pairwise identity by `identity_interval`, of means Student's. The share of
    the most common result has none: that result is chosen by looking. Distances are between
    disjoint pairs of runs.
    """
    summaries = [_summary(path) for path in paths]
    hashes = [summary["weights_sha256"] for summary in summaries]
    values = [_value(summary, metric) for summary in summaries]
    share, pairs = most_common_share(hashes), pairwise_identity(hashes)
    apart = [_distance(a, b) for a, b in zip(paths[::2], paths[1::2], strict=False)]
    mean, half = student(values)
    internal = getattr(settings, "internal_seed", None)
    return {
        "experiment": settings.experiment,
        "runs": len(paths),
        "internal_seed": internal,
        "distinct_results": len(set(hashes)),
        "most_common_share": share,
        "pairwise_identity": pairs,
        "pairwise_identity_ci95": identity_interval(hashes),
        "distance_mean": _mean(apart, 0),
        "relative_distance_mean": _mean(apart, 1),
        "largest_difference": max(one[2] for one in apart),
        "metric": metric,
        "return_mean": mean,
        "return_ci95": [mean - half, mean + half],
        "results": [
            {"seed": summary["seed"], "weights_sha256": digest, "return": value}
            for summary, digest, value in zip(summaries, hashes, values, strict=True)
        ],
    }


def identity_interval(results: Sequence[str]) -> list[float]:
    """95% interval of the share of identical pairs: a jackknife over runs, for pairs share runs.

    Where nothing varies (all runs alike, or all different), and for two runs, from disjoint pairs,
    which are independent.
    """
    half = 0.0
    if len(results) > 2:
        without = [
            pairwise_identity([*results[:run], *results[run + 1 :]]) for run in range(len(results))
        ]
        mean, half = jackknife(without)
    if half > 0:
        return [max(0.0, mean - half), min(1.0, mean + half)]
    apart = [a == b for a, b in zip(results[::2], results[1::2], strict=False)]
    return list(student_share(apart)[1:])


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a person."""
    internal = report["internal_seed"]
    shared = "none to share" if internal is None else f"seed {internal}, shared"
    pair_low, pair_high = report["pairwise_identity_ci95"]
    return_low, return_high = report["return_ci95"]
    return [
        f"{report['runs']} runs of {report['experiment']}; internal randomness: {shared}",
        f"  identical to the most common result  {report['most_common_share']:.3f}",
        f"  pairs that are identical             {report['pairwise_identity']:.3f}"
        f"  [{pair_low:.3f}, {pair_high:.3f}]",
        f"  distinct results                     {report['distinct_results']}",
        f"  distance of two results              {report['distance_mean']:.4g}"
        f"  ({100 * report['relative_distance_mean']:.3g}% of their length; largest entry "
        f"{report['largest_difference']:.3g})",
        f"  {report['metric']:35}  {report['return_mean']:.4g}"
        f"  [{return_low:.4g}, {return_high:.4g}]",
    ]


def _summary(path: Path) -> dict[str, Any]:
    """A finished run's summary; a study without weights is identified by the numbers it reports."""
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    if "weights_sha256" not in summary:
        digest = hashlib.sha256(_reported(summary).tobytes()).hexdigest()
        summary["weights_sha256"] = digest
    return summary


def _reported(summary: dict[str, Any]) -> np.ndarray:
    """Every number of a summary that is a result, in the order of the keys; float64."""
    numbers: list[float] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                if key not in NOT_RESULTS and not key.endswith("seconds"):
                    walk(value[key])
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, int | float):
            numbers.append(float(value))

    walk(summary)
    return np.array(numbers, dtype=np.float64)


def _value(summary: Any, metric: str) -> float:
    try:
        return number_at(summary, metric)
    except PathError as error:
        known = f"; there are {error.known}" if error.known else ", should be a number"
        raise ConfigError(f"--metric {metric}: in summary.json, {error}{known}") from None


def _distance(a: Path, b: Path) -> tuple[float, float, float]:
    """Euclidean distance of two results, the same over their length, and the largest difference."""
    left, right = _weights(a), _weights(b)
    if {name: array.shape for name, array in left.items()} != {
        name: array.shape for name, array in right.items()
    }:
        raise ConfigError(f"{a} and {b} have weights of other names or shapes")
    square = length = largest = 0.0
    for name, array in left.items():
        difference = np.abs(array.astype(np.float64) - right[name])
        square += float(np.square(difference).sum())
        length += float(np.square(array.astype(np.float64)).sum())
        largest = max(largest, float(difference.max(initial=0.0)))
    return square**0.5, (square / length) ** 0.5 if length else 0.0, largest


def _weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a run's ``checkpoints/final``, or the numbers of its summary without one."""
    folder = path / "checkpoints" / "final"
    if not folder.exists():
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        return {"summary": _reported(summary)}
    found: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            found |= {f"{file.stem}/{name}": arrays[name] for name in arrays.files}
    for file in sorted(folder.glob("*.safetensors")):
        from safetensors.torch import load_file

        found |= {name: tensor.float().numpy() for name, tensor in load_file(file).items()}
    if not found:
        raise ConfigError(f"{folder} holds neither .npz nor .safetensors to compare results by")
    return found


def _mean(rows: Sequence[tuple[float, ...]], column: int) -> float:
    return float(np.mean([row[column] for row in rows]))
