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


class ExportForm(StrEnum):
    """What stored rounds can be written as."""

    preferences = "preferences"
    minari = "minari"
    d3rlpy = "d3rlpy"
    datasets = "datasets"


FormatOption = Annotated[Format, typer.Option("--format", help="For a person or a program.")]
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
) -> None:
    """Run an experiment, or continue it; a finished one is left alone."""

    def work() -> None:
        from launch.run import execute

        execute(config, overrides or [], out, dry_run)

    _finish(work)


@app.command("resume")
def resume_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An interrupted run.")],
) -> None:
    """Continue an interrupted run to the same result as an uninterrupted one."""

    def work() -> None:
        from launch.run import resume

        resume(directory)

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
