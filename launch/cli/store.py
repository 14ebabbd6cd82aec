"""`reprise store`: look at, check and export the rounds that runs have stored."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from reprise.launch.cli.shared import Format, FormatOption, finish, show

app = typer.Typer(help="Look at the rounds that runs have stored.", no_args_is_help=True)


StoreArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A run, or its rounds/ folder.")]


class ExportForm(StrEnum):
    """What stored rounds can be written as."""

    preferences = "preferences"
    minari = "minari"
    d3rlpy = "d3rlpy"
    datasets = "datasets"


@app.command("verify")
def store_verify(directory: StoreArgument, form: FormatOption = Format.text) -> None:
    """Check every checksum; exit status 1 if a finished round is not as it was written."""
    damaged = False

    def work() -> None:
        nonlocal damaged
        from reprise.launch.cli.store_view import open_store

        store = open_store(directory)
        unfinished = store.unfinished()
        states: dict[str, str] = {}
        for index, problem in store.verify().items():
            if index in unfinished:
                states[str(index)] = "unfinished"
            else:
                states[str(index)] = problem or "sound"
                damaged = damaged or problem is not None
        show(
            {"sound": not damaged, "rounds": states},
            lambda: [f"round {index}: {state}" for index, state in states.items()],
            form,
        )

    finish(work)
    if damaged:
        raise typer.Exit(1)


@app.command("show")
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
        from reprise.launch.cli import store_view

        store = store_view.open_store(directory)
        file = store_view.find_tokenizer(directory, tokenizer)
        reader = None
        if file is not None:
            from tokenizers import Tokenizer

            reader = Tokenizer.from_file(str(file))
        rounds = store_view.overview(store, samples, reader)
        unfinished = store.unfinished()
        show(
            {"rounds": rounds, "unfinished": unfinished},
            lambda: store_view.lines(rounds, unfinished),
            form,
        )

    finish(work)


@app.command("export")
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
        from reprise.launch.cli.store_view import export, export_transitions

        if to is not ExportForm.preferences:
            count = export_transitions(directory, destination, rounds, to.value)
            sys.stderr.write(f"{destination}: {count} transitions\n")
            return
        counts = export(directory, destination, rounds, tokenizer)
        reported = ", ".join(f"{count} {name}" for name, count in counts.items())
        sys.stderr.write(f"{destination}: {reported}\n")

    finish(work)
