"""Is a finished run what it was when it finished? What a table averages is checked first.

Checked: the summary's own seal (SHA-256 over its fields), its config hash against `config.yaml`,
every stored round against its manifest, final checkpoint and evaluations against their checksums.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reprise.launch.config import ConfigError, read, values_sha256
from reprise.rollout.errors import BadInput
from reprise.rollout.files import seal_of, sha256_file
from reprise.rollout.store import RoundStore


def read_summary(run: Path) -> dict[str, Any]:
    """``summary.json`` of a finished run.

    Raises:
        BadInput: it is not JSON, or not a complete run's.
    """
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{run / 'summary.json'} is not JSON: {error}") from error
    if not isinstance(summary, dict) or summary.get("status") != "complete":
        raise BadInput(f"{run / 'summary.json'}: status is not 'complete'")
    return summary


def problems(run: Path) -> list[str]:
    """What is wrong with a finished run; empty if it is sound."""
    try:
        summary = read_summary(run)
    except ValueError as error:
        return [str(error)]
    return [*summary_problems(run), *_rounds(run), *_files(run, summary)]


def summary_problems(run: Path) -> list[str]:
    """What is wrong with the summary and the config of a finished run, or of its record."""
    try:
        summary = read_summary(run)
    except ValueError as error:
        return [str(error)]
    found = []
    if "seal" in summary and summary["seal"] != seal_of(summary):
        found.append("summary.json was changed after the run finished (its seal does not match)")
    try:
        config = read(run / "config.yaml")
    except (ConfigError, OSError) as error:
        return [*found, f"config.yaml cannot be read: {error}"]
    if values_sha256(config) != summary.get("config_sha256"):
        found.append("config.yaml is not the config that summary.json was made with")
    return found


def _rounds(run: Path) -> list[str]:
    if not (run / "rounds").is_dir():
        return []
    states = RoundStore(run / "rounds").verify()
    return [f"round {index}: {problem}" for index, problem in states.items() if problem]


def _files(run: Path, summary: dict[str, Any]) -> list[str]:
    """The files whose checksums the summary holds: final checkpoint and evaluations."""
    found = []
    for name, checksum in summary.get("files", {}).items():
        if not (run / name).is_file():
            found.append(f"{name} is gone")
        elif sha256_file(run / name) != checksum:
            found.append(f"{name} was changed after the run finished")
    return found
