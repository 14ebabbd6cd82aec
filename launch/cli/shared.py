"""What the commands of `reprise` share: formats, how a command ends, how it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer


class Format(StrEnum):
    """How to print: for a person, or for a program (alone on standard output)."""

    text = "text"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="For a person or a program.")]


def finish(work: Callable[[], object]) -> None:
    """Do `work` and leave with the exit status that says how it ended."""
    from reprise.launch.cli.ending import exit_status

    status = exit_status(work)
    if status:
        raise typer.Exit(status)


def show(value: Any, lines: Callable[[], list[str]], form: Format) -> None:
    """Print `value` for a program, or its `lines` for a person, on standard output."""
    if form is Format.json:
        sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    else:
        sys.stdout.write("".join(line + "\n" for line in lines()))
