"""What the runs of a table say: checked, then read, row by row and seed by seed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reprise.launch.config import ConfigError
from reprise.launch.tables.claim_schema import filled
from reprise.launch.tables.schema import Budget, Column, Row, Run, Table
from reprise.launch.tables.sources import Source, source_of
from reprise.launch.tables.sweep import evaluations, seeds_of
from reprise.launch.tables.values import PathError, interval_at, keys_of, number_at, one_less
from reprise.rollout.run.intervals import (
    bootstrap,
    interquartile_mean,
    stratified_student,
    student_half,
    wilson,
)
from reprise.rollout.run.run_dir import records_of


@dataclass(frozen=True)
class Number:
    """One cell of the table."""

    by_seed: dict[int | str, float]  # with several strata, by "stratum:seed"
    value: float  # NaN: no run has it
    low: float
    high: float
    degrees: float = math.nan  # of freedom of the interval; infinite: known error; NaN: not given
    bootstrapped: bool = False  # a percentile bootstrap: shown, and decides nothing

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return not math.isnan(self.value)

    @property
    def exact(self) -> bool:
        """Whether it is computed, not sampled."""
        return self.low == self.high and self.degrees == math.inf


@dataclass
class Evidence:
    """A table's numbers: `numbers[row][column]`, and the runs they come from.

    `behind` are the runs that those runs read: no column is of them, but they were made too.
    """

    table: Table
    budget: str
    settings: Budget
    numbers: dict[str, dict[str, Number]] = field(default_factory=dict)
    sources: dict[str, list[Source]] = field(default_factory=dict)
    behind: list[Source] = field(default_factory=list)
    summaries: dict[Path, dict[str, Any]] = field(default_factory=dict)
    unevaluated: dict[Path, str] = field(default_factory=dict)  # result file -> command

    def all_sources(self) -> list[Source]:
        """Every run of a row once."""
        return list({s.directory: s for row in self.sources.values() for s in row}.values())

    def finished(self) -> list[Source]:
        """Every finished run once, those that others read first."""
        every = {s.directory: s for s in [*self.behind, *self.all_sources()]}
        return [source for source in every.values() if source.state == "finished"]

    def processors(self) -> list[str]:
        """What the finished runs were made on."""
        return sorted({name for source in self.finished() for name in source.processors})


def gather(table: Table, budget: str, settings: Budget) -> Evidence:
    """Read every run of the table.

    A missing run leaves its seed out; a corrupt one is named in `sources` and left out: neither is
    averaged.

    Raises:
        ConfigError: a finished, sound run has no number where the table says one is: the table
            file and the experiment do not fit.
    """
    evidence = Evidence(table, budget, settings)
    for run in settings.first:
        evidence.behind += [source_of(run, seed)[0] for seed in seeds_of(run, settings)]
    sources: dict[str, list[Source]] = {}
    for line in table.lines():
        for name in line.runs:
            if name not in sources:
                run = settings.runs[name]
                sources[name] = [_source(run, seed, evidence) for seed in seeds_of(run, settings)]
        evidence.sources[line.name] = [one for name in line.runs for one in sources[name]]
        evidence.numbers[line.name] = {
            name: _number(line, column, [sources[run] for run in line.runs], evidence)
            for name, column in table.columns.items()
        }
    return evidence


def _source(run: Run, seed: int, evidence: Evidence) -> Source:
    """One run, its summary kept; the evaluations that are still to be made."""
    source, summary = source_of(run, seed)
    if summary is None:
        return source
    evidence.summaries[source.directory] = summary
    assert source.place is not None
    for evaluation in run.evaluate:
        here = evaluations(evaluation, source.place)
        for job, read in zip(evaluations(evaluation, source.directory), here, strict=True):
            if not read.finished_before:
                evidence.unevaluated[job.out] = job.typed
    return source


def _number(line: Row, column: Column, strata: list[list[Source]], evidence: Evidence) -> Number:
    found: list[dict[int, float]] = []
    own = (math.nan, math.nan, math.nan)
    for sources in strata:
        found.append({})
        for source in sources:
            contents = _contents(evidence, source, filled(column.file, line.chosen))
            if contents is None:
                continue
            try:
                value = number_at(contents, _under(line, column.path))
                own = _own_interval(contents, line, column, value)
            except PathError as error:
                raise ConfigError(
                    f"row '{line.name}', column '{column.label}', {source.directory}: {error}"
                ) from error
            found[-1][source.seed] = value
    by_seed: dict[int | str, float] = {}
    for k, of in enumerate(found):
        by_seed |= {f"{k}:{seed}" if len(found) > 1 else seed: value for seed, value in of.items()}
    if not by_seed:
        return Number({}, math.nan, math.nan, math.nan)
    if len(by_seed) == 1:
        return Number(by_seed, next(iter(by_seed.values())), *own)
    drawn = [list(of.values()) for of in found if of]
    if column.exact and len({*by_seed.values()}) == 1:
        return Number(by_seed, drawn[0][0], drawn[0][0], drawn[0][0], math.inf)
    if column.aggregate == "iqm":
        middle = interquartile_mean(np.array([*by_seed.values()]))
        return Number(by_seed, middle, *bootstrap(drawn, interquartile_mean), bootstrapped=True)
    mean, half, degrees = stratified_student(drawn)
    return Number(by_seed, mean, mean - half, mean + half, degrees)


def _under(line: Row, path: str) -> str:
    return f"{line.cell}.{path}" if line.cell else path


def _own_interval(
    contents: dict[str, Any], line: Row, column: Column, value: float
) -> tuple[float, float, float]:
    """The interval that a single run brings along, and its degrees of freedom; NaN: none."""
    if column.exact:
        return value, value, math.inf
    if column.trials is not None:
        return *wilson(value, round(_given(column.trials, contents, line))), math.inf
    degrees = math.nan
    if column.degrees is not None:
        degrees = _given(column.degrees, contents, line)
    if column.standard_error is not None:
        error = number_at(contents, _under(line, column.standard_error))
        half = student_half(error, degrees)
        return value - half, value + half, degrees
    if column.interval is not None:
        return *interval_at(contents, _under(line, column.interval), value), degrees
    return math.nan, math.nan, math.nan


def _given(number: int | str, contents: dict[str, Any], line: Row) -> float:
    """A number of the table file, or at a path, or one less than there: `runs - 1`."""
    if isinstance(number, int):
        return float(number)
    path, less = one_less(number)
    return number_at(contents, _under(line, path)) - less


def _contents(evidence: Evidence, source: Source, file: str) -> dict[str, Any] | None:
    """A JSON file of a finished run; None where an evaluation was not made."""
    if source.state != "finished":
        return None
    if file == "summary.json":
        return evidence.summaries[source.directory]
    assert source.place is not None
    path = source.place / file
    if not path.is_file():
        return None
    if path.suffix == ".jsonl":
        return {"records": records_of(path)}
    return json.loads(path.read_text(encoding="utf-8"))


def files_read(evidence: Evidence) -> dict[Path, dict[str, set[str]]]:
    """What the table reads of each run besides its summary: file -> keys of its JSON lines."""
    found: dict[Path, dict[str, set[str]]] = {s.directory: {} for s in evidence.finished()}
    figure = evidence.table.figure
    for line in evidence.table.lines():
        read: list[tuple[str, str]] = [
            (filled(column.file, line.chosen), _under(line, path))
            for column in evidence.table.columns.values()
            for path in column.paths()
        ]
        if figure is not None and figure.kind == "curves":
            of_figure = [figure.x, *figure.y]
            read += [(figure.file, f"{figure.entries}.{key}") for key in of_figure]
        for source in evidence.sources[line.name]:
            for file, path in read:
                if file != "summary.json" and source.directory in found:
                    keys = keys_of(path) if file.endswith(".jsonl") else set()
                    found[source.directory].setdefault(file, set()).update(keys)
    return found


def entries_of(evidence: Evidence, row: str, key: str, file: str) -> list[list[dict[str, Any]]]:
    """The list `key` of each finished run of a row: a curve for each seed."""
    found = [_contents(evidence, source, file) for source in evidence.sources[row]]
    return [contents.get(key, []) for contents in found if contents is not None]
