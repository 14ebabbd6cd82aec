"""A table of a paper as a file: the runs it needs, where their numbers are, what the paper says.

    configs/tables/NAME.yaml  --sweep-->  finished runs  --table-->  ours beside the paper's, claims

A row is one experiment (a config with overrides) in one or several seeds, or one cell of a run that
measures many. A budget says how large the runs are: `laptop` (minutes to an hour on two cores),
`desk` (a day on a workstation), `paper` (full size). Nothing here imports torch, and a table file
with mistakes is refused with all of them named, before any run starts.
"""

from __future__ import annotations

import itertools
import json
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from reprise.launch.config import ConfigError, configs_folder, load, read
from reprise.launch.evaluation.suite import settings_of
from reprise.launch.problems import explain
from reprise.launch.tables.claim_schema import Claim, filled
from reprise.launch.tables.table_problems import claim_problems, path_problems, row_problems
from reprise.launch.tables.values import one_less
from reprise.rollout.errors import BadInput
from reprise.rollout.run.settings import Settings

Overrides = list[str]
BudgetName = Literal["laptop", "desk", "paper"]


class SuiteRun(Settings):
    """A suite of `reprise evaluate`, run on policies of a finished run."""

    suite: Literal["openllm", "judge", "alpaca"]
    rounds: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="which policies; 0 is the initial one"
    )
    overrides: Overrides = Field(default_factory=list, description="key.path=value of the suite")
    minutes: float = Field(1.0, gt=0, description="of one policy: an estimate")


class Run(Settings):
    """A config, what changes in it, and in how many seeds it is run."""

    config: str = Field(description="path or shipped name")
    overrides: Overrides = Field(default_factory=list, description="key.path=value")
    seeds: Annotated[list[int], Field(min_length=1)] | None = Field(
        None, description="seeds; by default those of the budget"
    )
    minutes: float = Field(1.0, gt=0, description="of one seed, on one core or GPU: an estimate")
    megabytes: float = Field(5.0, gt=0, description="that one seed leaves on disk: an estimate")
    gpus: int = Field(0, ge=0, description="GPUs of one seed")
    stage: int = Field(0, ge=0, description="of `first`: waits for those of lower stages")
    evaluate: list[SuiteRun] = Field(
        default_factory=list, description="made after the run, on as many GPUs"
    )


class Budget(Settings):
    """One size of the table's runs."""

    note: str = Field(description="how these runs differ from the paper's; printed as the caption")
    seeds: list[int] = Field([0], min_length=1, description="seeds of each run")
    first: list[Run] = Field(
        default_factory=list, description="runs that the rows' runs read, made before them"
    )
    runs: dict[str, Run] = Field(min_length=1, description="name -> run; rows refer to the names")


class Row(Settings):
    """One line of the table, or, with `each`, one for every combination of its values."""

    name: str = Field(description="may hold {key} for each key of `each`")
    run: str = Field(description="a run of the budget; may hold {key}")
    strata: list[str] = Field(
        default_factory=list,
        description="further runs, of other games say, whose seeds count too: the bootstrap draws "
        "within each run; may hold {key}",
    )
    cell: str = Field(
        "", description="path in summary.json that the columns' paths start from; may hold {key}"
    )
    each: dict[str, list[int | float | str]] = Field(
        default_factory=dict, description="key -> values"
    )
    paper: dict[str, float | None] = Field(
        default_factory=dict, description="column -> the number that the paper prints"
    )

    def expanded(self) -> list[Row]:
        """The rows it stands for, in order."""
        if not self.each:
            return [self]
        lines = []
        for values in itertools.product(*self.each.values()):
            chosen = dict(zip(self.each, values, strict=True))
            lines.append(
                Row(
                    name=filled(self.name, chosen),
                    run=filled(self.run, chosen),
                    strata=[filled(run, chosen) for run in self.strata],
                    cell=filled(self.cell, chosen),
                    each={key: [value] for key, value in chosen.items()},
                    paper=self.paper,
                )
            )
        return lines

    @property
    def chosen(self) -> dict[str, int | float | str]:
        """The values of `each` that an expanded row stands for."""
        return {key: values[0] for key, values in self.each.items()}

    @property
    def runs(self) -> list[str]:
        """Every run whose seeds count."""
        return [self.run, *self.strata]


class Column(Settings):
    """One number of each row."""

    label: str = Field(description="head of the column")
    path: str = Field(description="where it is, from the row's cell on: `rounds[round=5].reward`")
    interval: str | None = Field(
        None,
        description="where the run itself gives the 95% interval ([low, high], or a half-width); "
        "else it is over seeds, Student's",
    )
    standard_error: str | None = Field(
        None,
        description="where the run itself gives a standard error; Student's quantile with "
        "`degrees` of freedom makes the interval",
    )
    degrees: int | str | None = Field(
        None, description="of freedom of the run's own interval, or where they are: `runs - 1`"
    )
    trials: int | str | None = Field(
        None,
        description="number of independent trials of a fixed event, or where it is: Wilson's 95% "
        "interval. Not for the share of the most common result, nor for pairs",
    )
    exact: bool = Field(False, description="computed, not sampled: an interval of no width")
    file: str = Field(
        "summary.json",
        description="JSON file in the run's directory, e.g. an evaluation's; may hold {key}. The "
        "lines of a .jsonl file are the list `records`",
    )
    budgets: list[BudgetName] | None = Field(
        None, min_length=1, description="where the column is shown; null: everywhere"
    )
    digits: int = Field(3, ge=0, le=8, description="after the point")
    aggregate: Literal["mean", "iqm"] = Field(
        "mean", description="over seeds: mean, or interquartile mean"
    )

    def paths(self) -> list[str]:
        """Every path that it reads."""
        named = (self.path, self.interval, self.standard_error, self.degrees, self.trials)
        return [one_less(path)[0] for path in named if isinstance(path, str)]

    @model_validator(mode="after")
    def _one_interval(self) -> Column:
        given = (self.interval, self.standard_error, self.trials, self.exact or None)
        if sum(one is not None for one in given) > 1:
            raise BadInput("give at most one of interval, standard_error, trials and exact")
        if self.standard_error is not None and self.degrees is None:
            raise BadInput("standard_error needs degrees (of freedom): a number, or a path")
        if self.degrees is not None and self.standard_error is None and self.interval is None:
            raise BadInput("degrees are those of an interval or a standard_error: give one")
        if isinstance(self.degrees, int) and self.degrees < 1:
            raise BadInput(f"degrees={self.degrees} must be at least 1")
        return self


class Figure(Settings):
    """A drawing of the table: one line for each series."""

    kind: Literal["curves", "bars", "frontier"] = Field(
        description="curves: list in summary.json against x; bars: a column for each row; "
        "frontier: one column against another, rows joined by `series`"
    )
    x: str = Field("", description="curves: key of each entry; frontier: column")
    y: list[str] = Field(min_length=1, description="curves: keys of each entry; else columns")
    entries: str = Field("", description="curves: the list in the file, e.g. `rounds`")
    file: str = Field("summary.json", description="curves: as a column's `file`")
    x_label: str = ""
    y_labels: list[str] = Field(default_factory=list)
    log_x: bool = False
    log_y: bool = False


class Table(Settings):
    """A table or figure of a paper."""

    title: str
    source: str = Field(description="arXiv number and place, e.g. '2601.08421, Figure 2'")
    about: str = Field(description="one or two sentences: what is compared, and what it shows")
    remark: str = Field("", description="what a reader must know before believing it")
    paper_prints: bool | None = Field(
        None, description="false: the paper prints no numbers for it, and the page says so"
    )
    paper_numbers: str = Field(
        "", description="where the paper's numbers are, if no row can be compared with them"
    )
    budgets: dict[BudgetName, Budget] = Field(min_length=1)
    rows: list[Row] = Field(min_length=1)
    columns: dict[str, Column] = Field(min_length=1)
    claims: list[Claim] = Field(default_factory=list)
    figure: Figure | None = None

    def lines(self) -> list[Row]:
        """Every row, expanded."""
        return [line for row in self.rows for line in row.expanded()]

    def at(self, budget: str) -> Table:
        """The table with the columns of one budget, and the claims that are about them."""
        shown = {
            name: column
            for name, column in self.columns.items()
            if column.budgets is None or budget in column.budgets
        }
        claims = [
            claim
            for claim in self.claims
            if all(
                side.column in (None, *shown)
                for cell in claim.cells()
                for side in (cell.left, cell.right)
            )
        ]
        return self.model_copy(update={"columns": shown, "claims": claims})

    @model_validator(mode="before")
    @classmethod
    def _same_budgets(cls, raw: Any) -> Any:
        """`desk: laptop` says that the laptop's runs are large enough for a desk too."""
        budgets = raw.get("budgets") if isinstance(raw, dict) else None
        if not isinstance(budgets, dict):
            return raw
        meant = {}
        for name, given in budgets.items():
            meant[name] = budgets.get(given) if isinstance(given, str) else given
            if not isinstance(meant[name], dict):
                known = [one for one, settings in budgets.items() if isinstance(settings, dict)]
                raise BadInput(
                    f"budgets.{name}={given!r} should be a mapping with note and runs, or the name "
                    f"of a budget that is one ({', '.join(known) or 'there is none'})"
                )
        return {**raw, "budgets": meant}

    @model_validator(mode="after")
    def _consistent(self) -> Table:
        problems = [*row_problems(self), *claim_problems(self), *path_problems(self)]
        if problems:
            raise BadInput("; ".join(problems))
        return self


# -- files -------------------------------------------------------------------------------------


def shipped_tables() -> dict[str, Path]:
    """Name -> file of every shipped table."""
    return {file.stem: file for file in sorted((configs_folder() / "tables").glob("*.yaml"))}


def load_table(table: str | Path) -> tuple[str, Table]:
    """Name and contents of a table file, checked, with every config that it names.

    Args:
        table: a path, or a shipped table's name.

    Raises:
        ConfigError: names every problem at once.
    """
    path = _find(table)
    raw = read(path)
    try:
        loaded = Table.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        problems = explain(error, Table, raw)
        raise ConfigError(f"{path}:\n" + "\n".join(f"  - {line}" for line in problems)) from error
    problems = []
    for budget, settings in loaded.budgets.items():
        for run in [*settings.first, *settings.runs.values()]:
            try:
                load(run.config, run.overrides)
                for evaluation in run.evaluate:
                    settings_of(evaluation.suite, None, evaluation.overrides)
            except ConfigError as error:
                problems.append(f"budgets.{budget}: {error}")
    if problems:
        raise ConfigError(f"{path}:\n" + "\n".join(f"  - {line}" for line in problems))
    return path.stem, loaded


def budget_of(name: str, table: Table, budget: str) -> Budget:
    """The named budget.

    Raises:
        ConfigError: the table has no such budget.
    """
    for known, settings in table.budgets.items():
        if known == budget:
            return settings
    raise ConfigError(f"--budget {budget}: table '{name}' has {', '.join(table.budgets)}")


def _find(table: str | Path) -> Path:
    path = Path(table)
    if path.is_file():
        return path
    known = shipped_tables()
    name = path.as_posix().removeprefix("configs/").removeprefix("tables/").removesuffix(".yaml")
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise ConfigError(
        f"no table file and no shipped table is called '{table}'{hint} (shipped: "
        f"{', '.join(known) or 'none'})"
    )
