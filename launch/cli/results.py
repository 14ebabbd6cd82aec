"""From runs to results: sweeps, tables, reports, evaluations, the Hub."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from reprise.launch.cli.shared import Format, FormatOption, finish, show

app = typer.Typer()


class TableFormat(StrEnum):
    """How to print a table."""

    md = "md"
    csv = "csv"
    json = "json"
    latex = "latex"


class Executor(StrEnum):
    """Who makes the runs of a sweep."""

    local = "local"
    ray = "ray"


class What(StrEnum):
    """What of a directory goes to the Hub."""

    model = "model"
    adapter = "adapter"
    rounds = "rounds"
    distilled = "distilled"


class SuiteName(StrEnum):
    """What to evaluate with."""

    openllm = "openllm"
    judge = "judge"
    alpaca = "alpaca"


TableArgument = Annotated[
    str, typer.Argument(metavar="TABLE", help="A file, a shipped table's name, or `all`.")
]


BudgetOption = Annotated[str, typer.Option(help="laptop, desk or paper: how large the runs are.")]


@app.command("sweep")
def sweep_command(
    table: TableArgument,
    budget: BudgetOption = "laptop",
    executor: Annotated[
        Executor, typer.Option(help="A process for each core here, or a Ray cluster.")
    ] = Executor.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Local runs at a time [default: one for each core]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the plan, its time and its disk need.")
    ] = False,
    form: FormatOption = Format.text,
) -> None:
    """Make every run that a table needs; finished ones are skipped."""
    failed = False

    def work() -> None:
        nonlocal failed
        from reprise.launch.tables import sweep

        made = sweep.plan_of(table, budget)
        if dry_run:
            at_once = workers or sweep.cores()
            report = sweep.cost(made, at_once)
            show(report, lambda: sweep.cost_lines(report, at_once), form)
            return
        jobs = sweep.sweep(made, executor.value, workers)
        failed = bool(jobs)
        for job in jobs:
            sys.stderr.write(f"failed: {job.out}; the reason is in {job.log}\n")

    finish(work)
    if failed:
        raise typer.Exit(1)


@app.command("table")
def table_command(
    table: TableArgument,
    budget: BudgetOption = "laptop",
    form: Annotated[
        TableFormat, typer.Option("--format", help="How to print it.")
    ] = TableFormat.md,
    out: Annotated[
        Path | None, typer.Option(help="Also write every format and the figure to this folder.")
    ] = None,
) -> None:
    """Print a table: ours beside the paper's, with intervals, claims and what is missing."""

    def work() -> None:
        from reprise.launch.tables import render as tables

        name, evidence = tables.make(table, budget)
        sys.stdout.write(tables.render(evidence, form.value))
        if out is not None:
            for file in tables.save(name, evidence, out):
                sys.stderr.write(f"{file}\n")

    finish(work)


@app.command("report")
def report_command(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Runs, or folders of runs.")
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    table: Annotated[
        list[str] | None, typer.Option(help="A table to show first; may be given again.")
    ] = None,
    budget: BudgetOption = "laptop",
) -> None:
    """Write one self-contained HTML page: results, curves, completions, films, provenance."""

    def work() -> None:
        from reprise.launch.tables import report
        from reprise.launch.tables.render import make, markdown

        shown = []
        for name in table or []:
            _, evidence = make(name, budget)
            shown.append((evidence.table.title, markdown(evidence)))
        report.report(directories, out, shown)
        sys.stderr.write(f"{out}\n")

    finish(work)


@app.command("evaluate")
def evaluate_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run; or a model, with --out.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Settings, e.g. judge.model=gpt-5-mini"),
    ] = None,
    suite: Annotated[SuiteName, typer.Option(help="Leaderboard tasks, a judge, or AlpacaEval.")] = (
        SuiteName.openllm
    ),
    config: Annotated[Path | None, typer.Option(help="YAML file of the suite's settings.")] = None,
    rounds: Annotated[
        list[int] | None,
        typer.Option("--round", min=0, help="Which policy, 0 the initial one; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go [default: RUN]")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and say what a judge would cost.")
    ] = False,
    form: FormatOption = Format.text,
) -> None:
    """Measure a run's policy with lm-evaluation-harness, a judge model, or AlpacaEval 2.0."""

    def work() -> None:
        from reprise.launch.evaluation import suite as suites

        name = suite.value
        found = suites.evaluate(run, name, config, overrides or [], rounds, out, dry_run)
        show(found, lambda: suites.lines(found), form)

    finish(work)


@app.command("push")
def push_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run, or a model's folder.")],
    repo_id: Annotated[
        str | None,
        typer.Argument(
            metavar="REPO_ID", help="owner/name [default: report.push, what is missing]"
        ),
    ] = None,
    what: Annotated[
        What | None, typer.Option(help="[default: the model, or what there is instead]")
    ] = None,
    round: Annotated[int | None, typer.Option(min=1, help="The model after this round.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private one.")] = False,
) -> None:
    """Push a model, an adapter, rounds or distilled data to the Hugging Face Hub, with a card."""

    def work() -> None:
        from reprise.launch.hub import publisher
        from reprise.launch.hub import push as hub

        if repo_id is not None:
            address = hub.push(directory, repo_id, what and what.value, round, private)
            sys.stderr.write(f"pushed: {address}\n")
        else:
            publisher.push_what_is_missing(directory)

    finish(work)
