"""Replicability: do results agree, from what data, and what do the theorems ask for?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from reprise.launch.cli.shared import Format, FormatOption, finish, show

app = typer.Typer()


@app.command("replicate")
def replicate_command(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped name.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Settings to change; seed is the first of N."),
    ] = None,
    runs: Annotated[int, typer.Option(min=2, help="N, number of runs.")] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs [default: runs/replicate/NAME]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time [default: one for each core]")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Where summary.json has the return, e.g. cells.0.return_mean")
    ] = None,
    form: FormatOption = Format.text,
) -> None:
    """Run N times on other data with the same internal randomness: how often do results agree?"""

    def work() -> None:
        from reprise.launch import replicate

        report = replicate.replicate(config, overrides or [], runs, out, workers, metric)
        show(report, lambda: replicate.lines(report), form)

    finish(work)


@app.command("agreement")
def agreement_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Finished rl.pqn runs of one game.")
    ],
    data: Annotated[
        str,
        typer.Option(metavar="ID_OR_PATH", help="Held-out observations, e.g. a Minari data set."),
    ],
    observations: Annotated[
        int, typer.Option(min=1, help="At most so many, evenly spread over the data.")
    ] = 10_000,
    form: FormatOption = Format.text,
) -> None:
    """Compare what trained policies would do: pairwise agreement of their greedy actions."""

    def work() -> None:
        from reprise.launch.cli import agreement

        report = agreement.agreement(runs, data, observations)
        show(report, lambda: agreement.lines(report), form)

    finish(work)


@app.command("collect")
def collect_command(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="A YAML file, a shipped name, or a run directory of rl.pqn."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Settings; a run directory needs to=ID."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The recording's run directory [default: as of `run`]")
    ] = None,
) -> None:
    """Record a trained policy's games as a Minari data set, lossless."""

    def work() -> None:
        from reprise.launch.cli.collect import collect

        collect(config, overrides or [], out)

    finish(work)


@app.command("bounds")
def bounds_command(
    epsilon: Annotated[float, typer.Option(help="epsilon, accuracy")] = 0.1,
    delta: Annotated[float, typer.Option(help="delta, failure probability")] = 0.01,
    rho: Annotated[float, typer.Option(help="rho, allowed disagreement; above 2 delta")] = 0.2,
    dimension: Annotated[int, typer.Option(min=1, help="d, number of features")] = 5,
    horizon: Annotated[int, typer.Option(min=1, help="H")] = 5,
    core_set: Annotated[
        float | None, typer.Option(help="k of the core set [default: d, an optimal design's]")
    ] = None,
    regularization: Annotated[float, typer.Option(help="lambda")] = 0.1,
    label_bound: Annotated[float, typer.Option(help="Y, largest label")] = 1.0,
    weight_bound: Annotated[float, typer.Option(help="B, largest weight vector")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="T, distributions of Theorem 3.3")] = 1,
    radius: Annotated[
        float, typer.Option(min=1e-6, help="R, ball of parameters (2601.08421, like what follows)")
    ] = 8.0,
    gamma: Annotated[
        float | None, typer.Option(help="gamma, KL regularization [default: 1/R]")
    ] = None,
    norm: Annotated[float, typer.Option(help="p of the ball, 1 to 2")] = 2.0,
    coverage: Annotated[
        float | None, typer.Option(help="C(R), local coverage [default: its bound e^(2R)]")
    ] = None,
    eigenvalue: Annotated[
        float | None, typer.Option(help="lambda, smallest eigenvalue of V(pi*) [default: 1/d]")
    ] = None,
    eta: Annotated[float, typer.Option(help="eta, factor of the radius in a round")] = 0.5,
    alpha: Annotated[
        float, typer.Option(help="alpha: C(r) / r^(2 + alpha) does not fall beyond r_0")
    ] = 1.0,
    start: Annotated[float, typer.Option(help="r_0")] = 1.0,
    run: Annotated[
        Path | None, typer.Option(help="A finished rl.lsvi or rl.lsvi_ucb run to set beside")
    ] = None,
    form: FormatOption = Format.text,
) -> None:
    """Print how many samples the theorems ask for, and how many an experiment needed."""

    def work() -> None:
        from reprise.launch.cli import bounds

        rows = bounds.bounds(
            epsilon,
            delta,
            rho,
            dimension,
            horizon,
            dimension if core_set is None else core_set,
            regularization,
            label_bound,
            weight_bound,
            rounds,
        )
        setting = bounds.Setting(
            dimension,
            radius,
            1 / radius if gamma is None else gamma,
            norm,
            math.exp(2 * radius) if coverage is None else coverage,
            1 / dimension if eigenvalue is None else eigenvalue,
            epsilon,
            delta,
            eta,
        )
        rows += bounds.preference_bounds(setting, alpha, start)
        measured = None if run is None else bounds.needed(run)
        value = {"theorems": rows, **({} if measured is None else {"measured": measured})}
        show(value, lambda: bounds.lines(rows, measured), form)

    finish(work)
