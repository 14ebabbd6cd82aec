"""The newcomer's first run: all three families, on two cores.

    supervised training -> reward model -> {offline DPO, on-policy DPO, PDFR, REBEL, RDRC} x seeds
    replicable fitted Q-iteration, PQN with quantized Q-values, distilled regression, distilled RL

`make quickstart` runs it. Whatever is finished is kept: the second time it only prints, and an
interrupted one continues. It writes table.md and the figure beside the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprise.launch.parallel import Job, run_side_by_side
from reprise.launch.provenance import cores
from reprise.launch.tables.curves import draw, markdown, paired_difference, rounds_so_far
from reprise.launch.tables.values import number_at
from reprise.rollout.files import write_text
from reprise.rollout.run.intervals import student

METHODS = {
    "offline_dpo": "DPO, offline",
    "onpolicy_dpo": "DPO, on-policy",
    "onpolicy_pdfr": "PDFR",
    "onpolicy_rebel": "REBEL",
    "onpolicy_rdrc": "RDRC",
}


# The other families: what to say of each, and where its summary has the numbers.
OTHERS = {
    "fqi_cartpole": (
        "replicable fitted Q-iteration, five internal seeds, independent data: {:.0%} of pairs of "
        "runs have identical weights, return {:.0f} (without data {:.0f}, not rounded {:.0f})",
        (
            "cells[-1].pairwise_identity",
            "cells[-1].return_mean",
            "no_data.return_mean",
            "cells[transitions=1000000,arm=not rounded,lambda=1.0].return_mean",
        ),
    ),
    "pqn_cartpole": ("PQN on CartPole: greedy return {:.0f} of 500", ("evaluation_return_mean",)),
    "distill_regression": (
        "1,000 points distilled into 50: test error {:.4f}, on all points {:.4f}, on 50 random "
        "ones {:.4f}",
        tuple(
            f"cells[route=closed_form,size=50].{key}"
            for key in ("test_mse", "test_mse_full", "test_mse_random")
        ),
    ),
    "distill_cartpole": (
        "4,000 transitions distilled into 50: return {:.0f}, on a stratified subset {:.0f}, on "
        "all {:.0f}",
        tuple(
            f"cells[method={method}].return_mean" for method in ("distilled", "stratified", "full")
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, print the table, draw the figure; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m reprise.launch.quickstart", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each method (default 3)")
    parser.add_argument("--workers", type=int, default=cores(), help="runs side by side")
    options = parser.parse_args(arguments)
    started, out = time.monotonic(), Path("runs/quickstart")
    for name, what in (
        ("sft", "supervised training: summarize a function from its name, arguments and docstring"),
        ("reward_model", "reward model: tell people's summaries from worse ones"),
    ):
        print(f"\n{what}", file=sys.stderr)
        if status := _prerequisite(name):
            return status
    others = [Job(f"quickstart/{name}", (), out / name) for name in OTHERS]
    jobs = [
        Job(f"quickstart/{method}", (f"seed={seed}",), out / f"{method}-seed{seed}")
        for seed in range(options.seeds)
        for method in METHODS
    ]
    count = len(jobs) + len(others)
    print(f"\n{count} runs, {options.workers} at a time", file=sys.stderr)
    board = _LiveBoard(jobs) if sys.stderr.isatty() else _PlainBoard(jobs)
    with board:
        run_side_by_side([*jobs, *others], options.workers, board.show)
    _report(jobs, out, time.monotonic() - started)
    for line in other_results(others):
        print(line)
    failed = [job for job in [*jobs, *others] if job.status == "failed"]
    for job in failed:
        print(f"failed: {job.out}; the reason is in {job.log}", file=sys.stderr)
    return 1 if failed else 0


def curves_of(jobs: Sequence[Job]) -> dict[str, list[dict[int, dict[str, Any]]]]:
    """Method -> one curve for each seed, as far as the runs have come."""
    curves: dict[str, list[dict[int, dict[str, Any]]]] = {}
    for job in jobs:
        method = METHODS[job.config.split("/")[1]]
        curves.setdefault(method, []).append(rounds_so_far(job.out))
    return {method: seeds for method, seeds in curves.items() if any(seeds)}


def _prerequisite(name: str) -> int:
    """One run in the foreground, on all cores: what it says is worth reading."""
    command = [sys.executable, "-m", "reprise.launch.run", f"quickstart/{name}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores())}
    return subprocess.run(command, env=environment, check=False).returncode


def _report(jobs: Sequence[Job], out: Path, seconds: float) -> None:
    curves = curves_of(jobs)
    table = markdown(curves)
    seeds = max((len(seed_curves) for seed_curves in curves.values()), default=0)
    caption = f"mean and 95% interval (Student's) over {seeds} seeds; the reward model is the judge"
    write_text(out / "table.md", table)
    draw(curves, out / "figure", caption)
    print(f"\n{table}")
    print("mean ± half-width of the 95% interval (Student's t over seeds)")
    for line in _findings(curves):
        print(line)
    print(f"\ntable: {out / 'table.md'}   figure: {out / 'figure.png'}   {seconds:.0f} s")


def _findings(curves: dict[str, list[dict[int, dict[str, Any]]]]) -> list[str]:
    """What the paper says of these curves, and what they say."""
    on, off = METHODS["onpolicy_dpo"], METHODS["offline_dpo"]
    if on not in curves or off not in curves:
        return []
    last = max(round for seed in curves[on] for round in seed)
    lines = []
    for metric, name in (("reward_mean", "reward"), ("win_rate_vs_initial", "win rate")):
        mean, half, seeds = paired_difference(curves, on, off, metric, last)
        verdict = "holds" if mean - half > 0 else "does not" if mean + half < 0 else "undecided"
        lines.append(
            f"on-policy DPO above offline DPO in {name}, round {last}: {mean:+.3f} ± {half:.3f} "
            f"({seeds} seeds, paired): {verdict}"
        )
    return lines


def other_results(jobs: Sequence[Job]) -> list[str]:
    """A sentence for each finished run of the other families."""
    lines = []
    for job in jobs:
        if job.finished_before:
            sentence, paths = OTHERS[job.config.split("/")[1]]
            summary = json.loads((job.out / "summary.json").read_text(encoding="utf-8"))
            lines.append(sentence.format(*(number_at(summary, path) for path in paths)))
    return lines


class _PlainBoard:
    """A line for each round that a run finishes."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.started = time.monotonic()
        # What earlier attempts finished is not news.
        self._told = {(job.out, k) for job in jobs for k in rounds_so_far(job.out)}
        self._before = len(self._told)
        self._expected = 0

    def __enter__(self) -> _PlainBoard:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self) -> None:
        """Tell what is new."""
        for job in self.jobs:
            for k, record in rounds_so_far(job.out).items() if job.status != "waiting" else ():
                if (job.out, k) not in self._told:
                    self._told.add((job.out, k))
                    print(f"{job.out.name} {describe(record)}   {self.left()}", file=sys.stderr)

    def left(self) -> str:
        """Time left, once enough is known to say."""
        rounds = max((len(rounds_so_far(job.out)) for job in self.jobs), default=0)
        if not any(job.status == "done" for job in self.jobs):
            return ""
        total = rounds * len(self.jobs)
        made = len(self._told) - self._before
        if not made or total <= len(self._told):
            return ""
        seconds = (time.monotonic() - self.started) / made * (total - len(self._told))
        return f"about {seconds / 60:.0f} min left"


class _LiveBoard(_PlainBoard):
    """The table, filling in."""

    def __enter__(self) -> _LiveBoard:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), refresh_per_second=2)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self) -> None:
        """Redraw."""
        from rich.table import Table

        self._told = {(job.out, k) for job in self.jobs for k in rounds_so_far(job.out)}
        columns = ("method", "runs", "round", "reward", "win rate", "ROUGE-L", "ln π/π₀ (nats)")
        table = Table(*columns, caption=self.left())
        for method, seeds in curves_of(self.jobs).items():
            last = max(round for seed in seeds for round in seed)
            reached = [seed[last] for seed in seeds if last in seed]
            metrics = ("reward_mean", "win_rate_vs_initial", "rouge_l", "kl_to_initial")
            cells = [f"{student([r[m] for r in reached])[0]:.3f}" for m in metrics]
            done = sum(
                METHODS[job.config.split("/")[1]] == method and job.status == "done"
                for job in self.jobs
            )
            table.add_row(method, f"{done} done", str(last), *cells)
        self._live.update(table)


def describe(record: dict[str, Any]) -> str:
    """One measured round in a line."""
    return (
        f"round {record['round']}: reward {record['reward_mean']:+.3f}, win rate "
        f"{record['win_rate_vs_initial']:.0%}, ROUGE-L {record['rouge_l']:.3f}, "
        f"ln π/π₀ {record['kl_to_initial']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
