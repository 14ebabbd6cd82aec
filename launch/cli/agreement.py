"""`reprise agreement RUN... --data ID_OR_PATH`: how often do trained policies act alike?"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reprise.rollout.run.intervals import student_half


def agreement(paths: Sequence[Path], data: str, observations: int | None) -> dict[str, Any]:
    """Greedy actions of finished runs on held-out observations, compared pair by pair.

    Args:
        paths: run directories of rl.pqn, of one game and action set.
        data: Minari id or folder (or, for vectors, any source of transitions).
        observations: at most so many, evenly spread.

    Raises:
        BadInput: the runs or the data cannot be compared; says why, and what to do.
    """
    from reprise.rl.finished_runs import compare, load_together, observations_for

    runs = load_together(paths)
    held = observations_for(runs, data, observations)
    print(
        f"{len(runs)} runs on {len(held.observations)} of {held.steps} observations "
        f"({held.frames})",
        file=sys.stderr,
    )
    return compare(runs, held)[0]


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a person."""
    error = report["agreement_se"]
    interval = ""
    if error is not None:
        half = student_half(error, report["runs"] - 1)
        interval = f" +- {half:.3f} (95%, Student's, a jackknife over runs)"
    kind = f"{report['frames']} frames" + (", lossy" if report["frames_lossy"] else "")
    reported = [
        f"{report['runs']} runs, {report['pairs']} pairs, {report['observations']} observations of "
        f"{report['data']} ({kind})",
        f"  agreement of greedy actions           {report['agreement_mean']:.3f}{interval}",
        f"  with ties broken at random            {report['agreement_random_ties']:.3f}",
        f"  by chance, with the runs' frequencies {report['agreement_chance']:.3f}",
        f"  beyond chance (kappa)                 {_number(report['kappa'])}",
        f"  observations where values tie         {report['tied_share']:.3f}",
        f"  where neither of a pair ties          {_number(report['agreement_without_ties'])}",
        f"  with the actions in the data          {_number(report['agreement_with_data'])}",
        "  action gap before rounding            "
        + "  ".join(f"{q}: {_number(v)}" for q, v in report["action_gap_quantiles"].items()),
        "  the same, over the values' spread     "
        + "  ".join(
            f"{q}: {_number(v)}" for q, v in report["relative_action_gap_quantiles"].items()
        ),
    ]
    if error is None:
        reported.append("  two runs have no standard error: leaving one out leaves no pair")
    if report["distinct_weights"] < report["runs"]:
        reported.append(
            f"  only {report['distinct_weights']} different weights: some runs are the same one"
        )
    rows = zip(
        report["paths"],
        report["mean_return_last_3"],
        report["evaluation_return_mean"],
        report["tied_share_by_run"],
        strict=True,
    )
    reported.append("  return of the last 3, evaluation return, share of ties:")
    return reported + [
        f"    {_number(last):>9} {_number(played):>9} {ties:6.3f}  {path}"
        for path, last, played, ties in rows
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
