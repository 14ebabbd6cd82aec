"""What is wrong between the parts of a table file: names that nothing has, paths that are none."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from reprise.launch.tables.claim_schema import filled
from reprise.launch.tables.values import PathError, parse

if TYPE_CHECKING:
    from reprise.launch.tables.schema import Table


def _unknown(kind: str, name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.4)
    return f"{kind} '{name}' is not among {known}" + (f"; nearest: '{close[0]}'" if close else "")


def row_problems(table: Table) -> list[str]:
    """Rows that name runs, keys or columns which are not there, or that are given twice."""
    problems = []
    for line in table.lines():
        files = [filled(column.file, line.chosen) for column in table.columns.values()]
        if "{" in "".join([line.name, *line.runs, line.cell, *files]):
            problems.append(f"row '{line.name}': a {{key}} without values in `each`")
        for budget, settings in table.budgets.items():
            known = list(settings.runs)
            problems += [
                f"row '{line.name}', {budget}: {_unknown('run', run, known)}"
                for run in line.runs
                if run not in settings.runs
            ]
        for column in line.paper:
            if column not in table.columns:
                known = list(table.columns)
                problems.append(f"row '{line.name}': {_unknown('column', column, known)}")
    names = [line.name for line in table.lines()]
    problems += [f"row '{name}' is given twice" for name in {*names} if names.count(name) > 1]
    return problems


def claim_problems(table: Table) -> list[str]:
    """Claims about rows or columns that are not there; numbers of a paper that prints none."""
    rows, columns = [line.name for line in table.lines()], list(table.columns)
    problems = []
    for claim in table.claims:
        for side in [side for cell in claim.cells() for side in (cell.left, cell.right)]:
            if side.row is not None and side.row not in rows:
                problems.append(f"claim '{claim.text}': {_unknown('row', side.row, rows)}")
            if side.column is not None and side.column not in columns:
                problems.append(f"claim '{claim.text}': {_unknown('column', side.column, columns)}")
    printed = any(v is not None for line in table.lines() for v in line.paper.values())
    if table.paper_prints is False and (printed or table.paper_numbers):
        problems.append("paper_prints=false, but `paper` or paper_numbers names numbers of it")
    return list(dict.fromkeys(problems))


def path_problems(table: Table) -> list[str]:
    """Paths into summaries that are not paths."""
    paths = [line.cell for line in table.lines() if line.cell]
    for column in table.columns.values():
        paths += column.paths()
    problems = []
    for path in dict.fromkeys(paths):
        try:
            parse(path)
        except PathError as error:
            problems.append(str(error))
    return problems
