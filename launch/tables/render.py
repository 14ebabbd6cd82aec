"""`reprise table`: ours beside the paper's, with intervals, claims and what is missing.

Markdown for reading, CSV and JSON for programs, LaTeX for a paper; the budget is in the caption.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reprise.launch.tables.claims import Verdict, verdicts
from reprise.launch.tables.evidence import Evidence, Number, gather
from reprise.launch.tables.schema import Column, budget_of, load_table
from reprise.rollout.files import write_text
from reprise.rollout.run.markdown import markdown_table

FORMATS = ("md", "csv", "json", "latex")
SUFFIXES = {"md": ".md", "csv": ".csv", "json": ".json", "latex": ".tex"}


def make(table: str | Path, budget: str) -> tuple[str, Evidence]:
    """The table's name and its numbers, as far as its runs are there.

    Raises:
        ConfigError: an unknown table or budget, or a table that does not fit its runs.
    """
    name, loaded = load_table(table)
    return name, gather(loaded.at(budget), budget, budget_of(name, loaded, budget))


def render(evidence: Evidence, form: str) -> str:
    """The table as text in one of `FORMATS`."""
    writers: dict[str, Callable[[Evidence], str]] = {
        "md": markdown,
        "csv": comma_separated,
        "json": as_json,
        "latex": latex,
    }
    return writers[form](evidence)


def save(name: str, evidence: Evidence, folder: Path) -> list[Path]:
    """Every format and the figure, as `folder`/NAME.*; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for form in FORMATS:
        file = folder / f"{name}{SUFFIXES[form]}"
        write_text(file, render(evidence, form))
        files.append(file)
    if evidence.table.figure is not None:
        from reprise.launch.tables.figure import draw

        files += draw(evidence, folder / name)
    return files


# -- words ---------------------------------------------------------------------------------------


def caption(evidence: Evidence) -> str:
    """What was run, how large, over how many seeds, and what the intervals are."""
    finished = [source for source in evidence.all_sources() if source.state == "finished"]
    seeds = sorted({source.seed for source in finished})
    text = f"Budget *{evidence.budget}*: {evidence.settings.note}"
    if len(seeds) < 2:
        return text + "."
    columns = evidence.table.columns.values()
    strata = any(line.strata for line in evidence.table.lines())
    text += f"; over seeds {', '.join(map(str, seeds))}"
    if any(column.aggregate == "mean" for column in columns):
        text += ": means with Student's 95% interval" + (", within each game" if strata else "")
    if any(column.aggregate == "iqm" for column in columns):
        text += ": interquartile means with a 95% percentile bootstrap" + (
            ", drawn within each game" if strata else ""
        )
        text += f", which is narrow with {len(seeds)} seeds and decides no claim"
    return text + "."


def made_on(evidence: Evidence) -> list[str]:
    """How many runs, how long, on which processors, from which code; and what was transcribed."""
    finished = evidence.finished()
    minutes = sum(source.seconds for source in finished) / 60
    revisions = sorted({source.revision for source in finished if source.revision})
    processors = evidence.processors()
    lines = [
        f"{len(finished)} runs, {minutes:.1f} core-minutes; processor: "
        f"{'; '.join(processors) or 'unknown'}; code {', '.join(revisions) or 'unknown'}."
    ]
    transcribed: dict[str, list[str]] = {}
    for source in finished:
        if source.transcribed:
            transcribed.setdefault(source.transcribed, []).append(source.directory.name)
    for origin, names in transcribed.items():
        runs = "1 run is lost, its" if len(names) == 1 else f"{len(names)} runs are lost, their"
        lines.append(f"*{runs} numbers transcribed from {origin}:* {', '.join(names)}.")
    return lines


def troubles(evidence: Evidence) -> list[str]:
    """A line for each run that is missing or corrupt, and each evaluation that is missing."""
    runs = [
        f"{source.state}: `{source.command}`: {source.problem}"
        for source in evidence.all_sources()
        if source.state != "finished"
    ]
    return [*runs, *(f"missing: `{command}`" for command in evidence.unevaluated.values())]


def _cell(number: Number, column: Column) -> str:
    if not number.by_seed:
        return "missing"
    if not number.known:
        return "undefined"
    text = _digits(number.value, column.digits)
    if math.isnan(number.low) or number.low == number.high:
        return text
    return f"{text} [{_digits(number.low, column.digits)}, {_digits(number.high, column.digits)}]"


def _digits(value: float, digits: int) -> str:
    """Fixed point; a number that would be shown as zero but is not, by its magnitude."""
    small = value != 0 and abs(value) < 0.5 * 10.0**-digits
    return f"{value:.0e}" if small else f"{value:.{digits}f}"


def _paper_columns(evidence: Evidence) -> list[str]:
    """Columns for which the paper prints a number in some row."""
    printed = {
        name
        for line in evidence.table.lines()
        for name, value in line.paper.items()
        if value is not None
    }
    return [name for name in evidence.table.columns if name in printed]


def _grid(evidence: Evidence) -> list[list[str]]:
    """Head and rows; a column of the paper's follows each of ours that has one."""
    table, printed = evidence.table, _paper_columns(evidence)
    head = [""]
    for name, column in table.columns.items():
        head += [column.label, *([f"{column.label}, paper"] if name in printed else [])]
    rows = [head]
    for line in table.lines():
        cells = [line.name]
        for name, column in table.columns.items():
            cells.append(_cell(evidence.numbers[line.name][name], column))
            if name in printed:
                value = line.paper.get(name)
                cells.append("-" if value is None else f"{value:.{column.digits}f}")
        rows.append(cells)
    return rows


# -- formats -------------------------------------------------------------------------------------


def markdown(evidence: Evidence, fold: int | None = None) -> str:
    """Title, table, caption, claims, commands' troubles.

    Args:
        evidence: the table's numbers.
        fold: with more rows than so many, they are behind a click.
    """
    table = evidence.table
    head, *rows = _grid(evidence)
    lines = [f"### {table.title}", "", f"{table.source}. {table.about}", ""]
    numbers = [markdown_table(head, rows)]
    if fold is not None and len(rows) > fold:
        opened = [f"<details><summary>{len(rows)} rows</summary>", ""]
        numbers = [*opened, *numbers, "</details>", ""]
    lines += numbers
    lines += [caption(evidence), ""]
    if table.paper_prints is False:
        lines += ["The paper prints no numbers for this table.", ""]
    if table.paper_numbers:
        lines += [f"The paper's numbers are in {table.paper_numbers}.", ""]
    if table.remark:
        lines += [table.remark, ""]
    lines += _claim_lines(verdicts(evidence))
    if absent := troubles(evidence):
        lines += ["Not in the table:", "", *(f"- {text}" for text in absent), ""]
    return "\n".join(lines)


def _claim_lines(found: list[Verdict]) -> list[str]:
    if not found:
        return []
    rows = []
    for verdict in found:
        source = f" ({verdict.claim.source})" if verdict.claim.source else ""
        reason = f". Reason: {verdict.reason}" if verdict.reason else ""
        rows.append([verdict.claim.text + source, verdict.verdict, verdict.statistic + reason])
    return [markdown_table(["claim", "here", "statistic"], rows)]


def comma_separated(evidence: Evidence) -> str:
    """A line for each row, column and seed, and one for the mean."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "column", "seed", "value", "low", "high", "paper"])
    for line in evidence.table.lines():
        for name in evidence.table.columns:
            number, paper = evidence.numbers[line.name][name], line.paper.get(name)
            for seed, value in number.by_seed.items():
                writer.writerow([line.name, name, seed, repr(value), "", "", ""])
            ends = ["" if math.isnan(x) else repr(x) for x in (number.low, number.high)]
            mean = repr(number.value) if number.known else ""
            writer.writerow([line.name, name, "all", mean, *ends, "" if paper is None else paper])
    return out.getvalue()


def as_json(evidence: Evidence) -> str:
    """Everything: numbers, seeds, intervals, the paper's, claims, runs and their commands."""
    return json.dumps(as_values(evidence), indent=2, allow_nan=False) + "\n"


def as_values(evidence: Evidence) -> dict[str, Any]:
    """The table as plain values."""
    table = evidence.table
    return {
        "title": table.title,
        "source": table.source,
        "budget": evidence.budget,
        "note": evidence.settings.note,
        "processors": evidence.processors(),
        "rows": [
            {
                "name": line.name,
                "values": {
                    name: {
                        "value": _or_none(number.value),
                        "low": _or_none(number.low),
                        "high": _or_none(number.high),
                        "degrees": _finite(number.degrees),
                        "bootstrapped": number.bootstrapped,
                        "by_seed": {str(s): _or_none(v) for s, v in number.by_seed.items()},
                        "paper": line.paper.get(name),
                    }
                    for name, number in evidence.numbers[line.name].items()
                },
            }
            for line in table.lines()
        ],
        "claims": [
            {
                "text": verdict.claim.text,
                "source": verdict.claim.source,
                "identity": verdict.claim.identity,
                "cells": len(verdict.claim.cells()),
                "verdict": verdict.verdict,
                "p": _or_none(verdict.p),
                "holm_p": _or_none(verdict.holm_p),
                "degrees": _finite(verdict.degrees),
                "statistic": verdict.statistic,
                "reason": verdict.reason,
            }
            for verdict in verdicts(evidence)
        ],
        "runs": [
            {
                "directory": source.directory.as_posix(),
                "command": source.command,
                "state": source.state,
                "problem": source.problem,
                "seconds": source.seconds,
                "code_revision": source.revision,
                "processors": list(source.processors),
                "recorded": source.recorded,
                "transcribed": source.transcribed,
            }
            for source in evidence.all_sources()
        ],
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def latex(evidence: Evidence) -> str:
    """A `table` environment for booktabs; intervals as subscripts would be unreadable: brackets."""
    head, *rows = _grid(evidence)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(evidence.table.title)}. {_tex(caption(evidence).replace('*', ''))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(map(_tex, head)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_tex, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _tex(text: str) -> str:
    special = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "~": r"\~{}"}
    special |= {"^": r"\^{}", "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}"}
    greek = {"\u03b1": "alpha", "\u03b2": "beta", "\u03b3": "gamma", "\u03bb": "lambda"}
    special |= {letter: rf"$\{name}$" for letter, name in greek.items()}
    return "".join(special.get(character, character) for character in text)
