"""Records: the small files of the runs behind the published tables, kept with the code.

    runs/quickstart/onpolicy_dpo-seed0/   -->   results/quickstart/onpolicy_dpo-seed0/
        config.yaml, summary.json, provenance.json, and what a column or a figure reads

``results/index.json`` holds the SHA-256 of every file, so that a record that was altered is
refused. Of a file of JSON lines the record has the keys that the tables read. A record may be
*transcribed*: its run is lost and its numbers are known from elsewhere; ``provenance.json`` says
from where, and so does the page.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reprise.launch.config import ConfigError, config_sha256, load, read, to_yaml
from reprise.launch.tables.sweep import directory_of
from reprise.rollout.files import sha256_file, write_bytes, write_json
from reprise.rollout.run.run_dir import records_of

RECORDS = Path("results")
INDEX = "index.json"
FILES = ("config.yaml", "summary.json", "provenance.json")
LARGE = 200_000  # bytes; a larger file is named

Files = dict[str, set[str]]  # file -> keys of its lines; empty: the whole file


def record_of(directory: Path) -> Path:
    """Where the record of the run in `directory` is."""
    return RECORDS / Path(*directory.parts[1:])


def problems(record: Path) -> list[str]:
    """What the index says against a record; empty if every file is the one that was recorded."""
    name = record.relative_to(RECORDS).as_posix()
    indexed = {
        file.removeprefix(f"{name}/"): checksum
        for file, checksum in _index().items()
        if file.startswith(f"{name}/")
    }
    there = {file.relative_to(record).as_posix() for file in record.rglob("*") if file.is_file()}
    found = [f"{record / file} is not in {RECORDS / INDEX}" for file in sorted(there - {*indexed})]
    for file, checksum in indexed.items():
        if file not in there:
            found.append(f"{record / file} is gone")
        elif sha256_file(record / file) != checksum:
            found.append(f"{record / file} was altered after it was recorded")
    return found


def write(runs: Mapping[Path, Files]) -> list[str]:
    """Copy the files of finished, verified runs into their records and index them.

    Args:
        runs: directory of a run -> what else than `FILES` to keep of it.

    Returns:
        Remarks for a person: files that are large.

    Raises:
        ConfigError: a file names a folder of this machine.
    """
    index, remarks = _index(), []
    for directory, files in runs.items():
        record, copies = record_of(directory), {}
        for name in FILES:
            copies[name] = (directory / name).read_bytes()
        for name, keys in files.items():
            if (directory / name).is_file():  # an evaluation may not have been made
                copies[name] = _compact(directory / name, keys)
        remarks += _put(record, copies, index)
    _write_index(index)
    return remarks


def _put(record: Path, copies: Mapping[str, bytes], index: dict[str, str]) -> list[str]:
    """Write the files of one record in place of what is there."""
    remarks = []
    name = record.relative_to(RECORDS).as_posix()
    for file, data in copies.items():
        _check_no_folder(record / file, data)
        if len(data) > LARGE:
            remarks.append(f"{record / file} has {len(data) / 1000:.0f} kB")
    for file in [file for file in index if file.startswith(f"{name}/")]:
        if file.removeprefix(f"{name}/") not in copies:
            (RECORDS / file).unlink(missing_ok=True)
            del index[file]
    for file, data in copies.items():
        (record / file).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(record / file, data)
        index[f"{name}/{file}"] = hashlib.sha256(data).hexdigest()
    return remarks


def _compact(file: Path, keys: set[str]) -> bytes:
    """A file of the run; of JSON lines, every line with `keys` only."""
    if not keys:
        return file.read_bytes()
    kept = [{k: v for k, v in line.items() if k in keys} for line in records_of(file)]
    return "".join(json.dumps(line) + "\n" for line in kept).encode()


def _check_no_folder(file: Path, data: bytes) -> None:
    """Records are published: they name no folder of the machine that made them."""
    folders = [str(Path.home()), os.getcwd(), os.environ.get("REPRISE_DATA", "")]
    text = data.decode("utf-8")
    for folder in folders:
        if len(folder) > 1 and re.search(re.escape(folder) + r"(?![\w-])", text):
            raise ConfigError(
                f"{file}: names {folder}, a folder of this machine, and records are published; "
                "make the run with a path relative to the working folder"
            )


def prune(used: Iterable[Path]) -> list[str]:
    """Remove the records of runs that no table names; returns their names."""
    index, kept = _index(), {record_of(run).relative_to(RECORDS).as_posix() for run in used}
    unused = [file for file in index if not any(file.startswith(f"{name}/") for name in kept)]
    for file in unused:
        (RECORDS / file).unlink(missing_ok=True)
        del index[file]
    _write_index(index)
    for folder in sorted(RECORDS.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return sorted({str(Path(file).parent) for file in unused})


def transcribe(file: Path) -> list[Path]:
    """Records of lost runs from a YAML file: a list of entries under `runs`, each with

        config, overrides, seed   what was run
        where                     from where its numbers were copied
        summary                   the numbers: as much of ``summary.json`` as is known
        cpu, threads, seconds, code_revision     of the run; `cpu` may be null

    A run whose directory is there is not transcribed: its own files are recorded.

    Raises:
        ConfigError: an entry lacks a key, or its run is there.
    """
    needed = ("config", "overrides", "seed", "where", "summary", "seconds", "code_revision")
    index, made = _index(), []
    for position, entry in enumerate(read(file)["runs"]):
        absent = [key for key in needed if key not in entry]
        if absent:
            raise ConfigError(f"{file}: runs.{position}.{absent[0]}: required, but not given")
        directory = directory_of(entry["config"], entry["overrides"], entry["seed"])
        if (directory / "summary.json").is_file():
            raise ConfigError(f"{file}: runs.{position}: {directory} is there; record it instead")
        settings = load(entry["config"], [*entry["overrides"], f"seed={entry['seed']}"])
        head = {"experiment": settings.experiment, "status": "complete", "seed": entry["seed"]}
        head |= {"config_sha256": config_sha256(settings)}
        head |= {key: entry[key] for key in ("seconds", "code_revision")}
        origin = {key: entry[key] for key in ("cpu", "threads", "instruction_set") if key in entry}
        origin |= {"code_revision": entry["code_revision"], "transcribed": entry["where"]}
        copies = {
            "config.yaml": to_yaml(settings).encode(),
            "summary.json": _json({**entry["summary"], **head}),
            "provenance.json": _json(origin),
        }
        _put(record_of(directory), copies, index)
        made.append(record_of(directory))
    _write_index(index)
    return made


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _index() -> dict[str, str]:
    file = RECORDS / INDEX
    return json.loads(file.read_text(encoding="utf-8"))["sha256"] if file.is_file() else {}


def _write_index(index: Mapping[str, str]) -> None:
    if index or (RECORDS / INDEX).is_file():
        RECORDS.mkdir(exist_ok=True)
        write_json(RECORDS / INDEX, {"sha256": dict(sorted(index.items()))})
