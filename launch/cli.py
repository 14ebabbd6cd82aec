"""The command `reprise`.

Heavy imports happen in the command that needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Train and reproduce: on-policy preference learning, replicable reinforcement learning, "
    "dataset distillation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
store_app = typer.Typer(help="Look at the rounds that runs have stored.", no_args_is_help=True)
app.add_typer(store_app, name="store")


class Format(StrEnum):
    """How to print: for a person, or for a program (alone on standard output)."""

    text = "text"
    json = "json"


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


class ExportForm(StrEnum):
    """What stored rounds can be written as."""

    preferences = "preferences"
    minari = "minari"
    d3rlpy = "d3rlpy"
    datasets = "datasets"


FormatOption = Annotated[Format, typer.Option("--format", help="For a person or a program.")]
StagedOption = Annotated[
    bool, typer.Option("--staged", help="A process for each phase: collect, update, collect, ...")
]
StoreArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A run, or its rounds/ folder.")]


def _finish(work: Callable[[], object]) -> None:
    """Do `work` and leave with the exit status that says how it ended."""
    from launch.ending import exit_status

    status = exit_status(work)
    if status:
        raise typer.Exit(status)


def _print(value: Any, lines: Callable[[], list[str]], form: Format) -> None:
    if form is Format.json:
        sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    else:
        sys.stdout.write("".join(line + "\n" for line in lines()))


@app.command("list")
def list_command(form: FormatOption = Format.text) -> None:
    """Show the experiments and the shipped configs."""

    def work() -> None:
        from launch import config

        experiments = {name: kind.description for name, kind in config.EXPERIMENTS.items()}
        configs = {
            name: {
                "experiment": config.read(path).get("experiment"),
                "description": config.description(path),
            }
            for name, path in config.shipped().items()
        }

        def lines() -> list[str]:
            wide = max(map(len, [*experiments, *configs]))
            return [
                "Experiments",
                *(f"  {name:{wide}}  {text}" for name, text in experiments.items()),
                "",
                "Configs (reprise run NAME)",
                *(
                    f"  {name:{wide}}  {entry['experiment']}: {entry['description']}"
                    for name, entry in configs.items()
                ),
            ]

        _print({"experiments": experiments, "configs": configs}, lines, form)

    _finish(work)


@app.command("run")
def run_command(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped name.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Settings to change, e.g. sampling.top_p=0.9"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's directory [default: runs/GROUP/NAME]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and print every setting.")
    ] = False,
    staged: StagedOption = False,
) -> None:
    """Run an experiment, or continue it; a finished one is left alone."""

    def work() -> None:
        from launch.run import execute

        execute(config, overrides or [], out, dry_run, staged)

    _finish(work)


@app.command("resume")
def resume_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An interrupted run.")],
    staged: StagedOption = False,
) -> None:
    """Continue an interrupted run to the same result as an uninterrupted one."""

    def work() -> None:
        from launch.run import resume

        resume(directory, staged)

    _finish(work)


@store_app.command("verify")
def store_verify(directory: StoreArgument, form: FormatOption = Format.text) -> None:
    """Check every checksum; exit status 1 if a finished round is not as it was written."""
    damaged = False

    def work() -> None:
        nonlocal damaged
        from launch.store_view import open_store

        store = open_store(directory)
        unfinished = store.unfinished()
        states: dict[str, str] = {}
        for index, problem in store.verify().items():
            if index in unfinished:
                states[str(index)] = "unfinished"
            else:
                states[str(index)] = problem or "sound"
                damaged = damaged or problem is not None
        _print(
            {"sound": not damaged, "rounds": states},
            lambda: [f"round {index}: {state}" for index, state in states.items()],
            form,
        )

    _finish(work)
    if damaged:
        raise typer.Exit(1)


@store_app.command("show")
def store_show(
    directory: StoreArgument,
    samples: Annotated[int, typer.Option(min=0, help="Prompts to show of each round.")] = 2,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model folder or tokenizer.json [default: the run's policy]")
    ] = None,
    form: FormatOption = Format.text,
) -> None:
    """Show rounds, counts, rewards and some samples."""

    def work() -> None:
        from launch import store_view

        store = store_view.open_store(directory)
        file = store_view.find_tokenizer(directory, tokenizer)
        reader = None
        if file is not None:
            from tokenizers import Tokenizer

            reader = Tokenizer.from_file(str(file))
        rounds = store_view.overview(store, samples, reader)
        unfinished = store.unfinished()
        _print(
            {"rounds": rounds, "unfinished": unfinished},
            lambda: store_view.lines(rounds, unfinished),
            form,
        )

    _finish(work)


@store_app.command("export")
def store_export(
    directory: StoreArgument,
    destination: Annotated[
        Path, typer.Argument(metavar="OUT", help="A new FILE.jsonl, or a folder for `datasets`.")
    ],
    to: Annotated[
        ExportForm, typer.Option(help="preferences, from completions; the others, from transitions")
    ] = ExportForm.preferences,
    rounds: Annotated[
        list[int] | None, typer.Option("--round", help="Only this round; may be given again.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Run, model folder or Hub name [default: the run's policy]")
    ] = None,
) -> None:
    """Write stored rounds for others: completions as preferences, best against worst; transitions.

    OUT is FILE.jsonl or a folder of `datasets` for preferences, a folder of Minari or `datasets`,
    or a file that d3rlpy's `ReplayBuffer.load` reads.
    """

    def work() -> None:
        from launch.store_view import export, export_transitions

        if to is not ExportForm.preferences:
            count = export_transitions(directory, destination, rounds, to.value)
            sys.stderr.write(f"{destination}: {count} transitions\n")
            return
        counts = export(directory, destination, rounds, tokenizer)
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        sys.stderr.write(f"{destination}: {told}\n")

    _finish(work)


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
        from launch import sweep

        made = sweep.plan_of(table, budget)
        if dry_run:
            at_once = workers or sweep.cores()
            report = sweep.cost(made, at_once)
            _print(report, lambda: sweep.cost_lines(report, at_once), form)
            return
        jobs = sweep.sweep(made, executor.value, workers)
        failed = bool(jobs)
        for job in jobs:
            sys.stderr.write(f"failed: {job.out}; the reason is in {job.log}\n")

    _finish(work)
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
        from launch import table as tables

        name, evidence = tables.make(table, budget)
        sys.stdout.write(tables.render(evidence, form.value))
        if out is not None:
            for file in tables.save(name, evidence, out):
                sys.stderr.write(f"{file}\n")

    _finish(work)


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
        from launch import report
        from launch.table import make, markdown

        shown = []
        for name in table or []:
            _, evidence = make(name, budget)
            shown.append((evidence.table.title, markdown(evidence)))
        report.report(directories, out, shown)
        sys.stderr.write(f"{out}\n")

    _finish(work)


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
        from launch import replicate

        report = replicate.replicate(config, overrides or [], runs, out, workers, metric)
        _print(report, lambda: replicate.lines(report), form)

    _finish(work)


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
        from launch import agreement

        report = agreement.agreement(runs, data, observations)
        _print(report, lambda: agreement.lines(report), form)

    _finish(work)


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
        from launch.collect import collect

        collect(config, overrides or [], out)

    _finish(work)


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
    run: Annotated[
        Path | None, typer.Option(help="A finished rl.lsvi or rl.lsvi_ucb run to set beside")
    ] = None,
    form: FormatOption = Format.text,
) -> None:
    """Print how many samples the theorems ask for, and how many an experiment needed."""

    def work() -> None:
        from launch import bounds

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
        measured = None if run is None else bounds.needed(run)
        value = {"theorems": rows, **({} if measured is None else {"measured": measured})}
        _print(value, lambda: bounds.lines(rows, measured), form)

    _finish(work)


class What(StrEnum):
    """What of a directory goes to the Hub."""

    model = "model"
    adapter = "adapter"
    rounds = "rounds"
    distilled = "distilled"


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
        from launch import hub, publisher

        if repo_id is not None:
            address = hub.push(directory, repo_id, what and what.value, round, private)
            sys.stderr.write(f"pushed: {address}\n")
        else:
            publisher.push_what_is_missing(directory)

    _finish(work)


class SuiteName(StrEnum):
    """What to evaluate with."""

    openllm = "openllm"
    judge = "judge"
    alpaca = "alpaca"


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
        from launch import suite as suites

        name = suite.value
        found = suites.evaluate(run, name, config, overrides or [], rounds, out, dry_run)
        _print(found, lambda: suites.lines(found), form)

    _finish(work)


@app.command("doctor")
def doctor_command(form: FormatOption = Format.text) -> None:
    """Say what this machine can run; exit status 1 if not even the quickstart."""
    ready = True

    def work() -> None:
        nonlocal ready
        from launch import doctor

        found = doctor.examine()
        ready = found["can"]["quickstart"]["possible"]
        _print(found, lambda: doctor.lines(found), form)

    _finish(work)
    if not ready:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `reprise`, and of ``python -m launch.run``."""
    app(args=arguments, prog_name="reprise")


if __name__ == "__main__":
    main()
