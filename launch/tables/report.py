"""`reprise report`: one self-contained HTML page over any set of runs.

Results, interactive curves, completions of the same prompts side by side round by round, an
episode's frames, and where it all comes from. The page holds its data as JSON and draws with the
script in `report.html`; it loads nothing from anywhere, so it can be sent by mail.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprise.launch.config import ConfigError
from reprise.launch.tables.integrity import problems
from reprise.rollout.files import write_text
from reprise.rollout.run.run_dir import metrics_of
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions

TEMPLATE = Path(__file__).with_name("report.html")
PROMPTS = 8  # shown of each run
PICTURE_BYTES = 4_000_000
MIME = {".gif": "image/gif", ".png": "image/png", ".svg": "image/svg+xml"}


def report(runs: Sequence[Path], out: Path, tables: Sequence[tuple[str, str]] = ()) -> None:
    """Write the page.

    Args:
        runs: run directories, finished or not; a folder of runs stands for all in it.
        out: the page, ``*.html``.
        tables: title and Markdown of tables to show first.

    Raises:
        ConfigError: a directory holds no run.
    """
    found = [run for path in runs for run in _runs_in(path)]
    data = {
        "tables": [{"title": title, "markdown": text} for title, text in tables],
        "runs": [_run(path) for path in found],
    }
    text = json.dumps(data, allow_nan=False).replace("</", "<\\/")  # cannot end the script element
    page = TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/null", text, 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)


def _runs_in(path: Path) -> list[Path]:
    if (path / "config.yaml").is_file():
        return [path]
    found = sorted(file.parent for file in path.glob("**/config.yaml")) if path.is_dir() else []
    if not found:
        raise ConfigError(f"{path} holds no run: there is no config.yaml in it or below it")
    return found


def _run(path: Path) -> dict[str, Any]:
    """What the page shows of one run."""
    summary = _json(path / "summary.json")
    return {
        "name": path.as_posix(),
        "experiment": (summary or {}).get("experiment", ""),
        "state": "finished" if summary else "unfinished",
        "problems": problems(path) if summary else [],
        "results": {key: value for key, value in (summary or {}).items() if _plain(value)},
        "cells": _cells(summary or {}),
        "series": _series(path),
        "samples": _samples(path),
        "pictures": _pictures(path),
        "provenance": _json(path / "provenance.json") or {},
        "config": (path / "config.yaml").read_text(encoding="utf-8"),
    }


def _json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _cells(summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The lists of records of a summary: tables of cells, curves, rounds."""
    return {
        key: [{k: v for k, v in entry.items() if _plain(v)} for entry in value]
        for key, value in summary.items()
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value)
    }


def _series(run: Path) -> dict[str, list[list[float]]]:
    """Metric -> [[x, y], ...]: x is the step where there is one, else the round.

    Steps that begin anew in every round are counted on. At most 2,000 points of each are kept.
    """
    series: dict[str, list[list[float]]] = {}
    offset, last = 0, 0
    for record in metrics_of(run):
        if "step" in record:
            if record["step"] <= last:
                offset += last
            last = record["step"]
        x = record["step"] + offset if "step" in record else record.get("round", 0)
        kind = "step" if "step" in record else "round"
        for key, value in record.items():
            if isinstance(value, int | float) and key not in ("step", "round", "seconds"):
                series.setdefault(f"{key} by {kind}", []).append([x, value])
    return {key: points[:: len(points) // 2000 + 1] for key, points in series.items()}


def _samples(path: Path) -> list[dict[str, Any]]:
    """The same held-out prompts with what each round's policy wrote, and its reward."""
    folder = path / "evaluations"
    if not folder.is_dir():
        return []
    from reprise.launch.cli.store_view import find_tokenizer

    file = find_tokenizer(path, None)
    if file is None:
        return []
    from tokenizers import Tokenizer

    tokenizer, store = Tokenizer.from_file(str(file)), RoundStore(folder)
    prompts: dict[int, dict[str, Any]] = {}
    for index in store.rounds():
        data = store.read(index).data
        if not isinstance(data, Completions):
            return []
        for row in range(min(PROMPTS, len(data))):
            entry = prompts.setdefault(
                int(data.prompt_index[row]),
                {"prompt": tokenizer.decode(list(map(int, data.prompt_ids[row]))), "rounds": []},
            )
            ids = list(map(int, data.completion_ids[row][0]))
            entry["rounds"].append(
                {
                    "round": index,
                    "text": tokenizer.decode(ids, skip_special_tokens=True),
                    "reward": float(data.rewards[row][0]),
                }
            )
    return list(prompts.values())


def _pictures(path: Path) -> list[dict[str, str]]:
    """Figures and films that the run left, as data URLs."""
    return [
        {"name": file.relative_to(path).as_posix(), "url": _data_url(file)}
        for file in sorted(path.rglob("*"))
        if file.suffix in MIME and file.stat().st_size <= PICTURE_BYTES
        if not (file.suffix == ".png" and file.with_suffix(".svg").is_file())
    ]


def _data_url(file: Path) -> str:
    encoded = base64.b64encode(file.read_bytes()).decode()
    return f"data:{MIME[file.suffix]};base64,{encoded}"
