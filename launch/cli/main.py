"""The command `reprise`.

Heavy imports happen in the command that needs them, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reprise.launch.cli import replicable as cli_replicable
from reprise.launch.cli import results as cli_results
from reprise.launch.cli import store as cli_store
from reprise.launch.cli.shared import Format, FormatOption, finish, show

app = typer.Typer(
    help="Train and reproduce: on-policy preference learning, replicable reinforcement learning, "
    "dataset distillation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StagedOption = Annotated[
    bool, typer.Option("--staged", help="A process for each phase: collect, update, collect, ...")
]


@app.command("list")
def list_command(form: FormatOption = Format.text) -> None:
    """Show the experiments and the shipped configs."""

    def work() -> None:
        from reprise.launch.python import listed

        experiments, configs = listed().values()

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

        show({"experiments": experiments, "configs": configs}, lines, form)

    finish(work)


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
        from reprise.launch.run import execute

        execute(config, overrides or [], out, dry_run, staged)

    finish(work)


@app.command("resume")
def resume_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An interrupted run.")],
    staged: StagedOption = False,
) -> None:
    """Continue an interrupted run to the same result as an uninterrupted one."""

    def work() -> None:
        from reprise.launch.run import resume

        resume(directory, staged)

    finish(work)


# A Typer without a name lends its commands to the one that it is added to.
app.add_typer(cli_store.app, name="store")
app.add_typer(cli_results.app)
app.add_typer(cli_replicable.app)


@app.command("doctor")
def doctor_command(form: FormatOption = Format.text) -> None:
    """Say what this machine can run; exit status 1 if not even the quickstart."""
    ready = True

    def work() -> None:
        nonlocal ready
        from reprise.launch.cli import doctor

        found = doctor.examine()
        ready = found["can"]["quickstart"]["possible"]
        show(found, lambda: doctor.lines(found), form)

    finish(work)
    if not ready:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `reprise`, and of ``python -m reprise.launch.run``."""
    app(args=arguments, prog_name="reprise")


if __name__ == "__main__":
    main()
