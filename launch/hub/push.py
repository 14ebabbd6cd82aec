"""Push what a run made to the Hugging Face Hub: models, adapters, rounds, distilled data.

A push is one commit: large files go first, each by its SHA-256, and the commit that names them
last, so a repository never shows half of one. A push that was cut off is run again, and sends only
what the server does not have yet. Only safetensors leave as weights.
What was pushed is noted in ``DIR/pushes.jsonl``.

The token is that of `hf auth login` or HF_TOKEN. The trap: the client library quotes addresses with
signatures, and servers quote headers, in what they raise; nothing is said or kept unredacted.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

from reprise.launch import strict_yaml
from reprise.launch.config import ConfigError, read
from reprise.launch.hub.cards import card, public, without_report
from reprise.rollout.files import numbered
from reprise.rollout.run.remote import OutageError, hide_secrets_in_logs, redact

KINDS = ("model", "adapter", "rounds", "distilled")
ATTEMPTS = 2  # the client library tries each request six times by itself
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
RECORD = ("config.yaml", "provenance.json", "summary.json", "metrics.jsonl")
_REPOSITORY = re.compile(r"^[\w.-]+/[\w.-]+$")


def push(
    directory: Path,
    repo_id: str,
    what: str | None = None,
    round: int | None = None,
    private: bool = False,
) -> str:
    """Push one thing; returns the address of the commit.

    Args:
        directory: a run, or a folder of a model.
        repo_id: owner/name; created if it is not there.
        what: one of `KINDS`; None takes the model, or what the run has instead.
        round: which round's model; None takes the final one.
        private: create the repository as a private one.

    Raises:
        ConfigError: there is no such thing in `directory`, or it holds pickled weights.
        OutageError: the Hub did not take it; says whether another try can help.
    """
    if not _REPOSITORY.match(repo_id):
        raise ConfigError(f"{repo_id!r} is not the name of a repository; write owner/name")
    what = what or what_there_is(directory, round)
    files, data_files = _files(directory, what, round)
    message = f"Add {what}" if round is None else f"Add {what} after round {round}"
    kind = "model" if what in ("model", "adapter") else "dataset"
    contents: dict[str, Path | bytes] = {}
    for name, file in files.items():
        # These two name the folder that the weights once came from.
        reported = name in ("config.json", "adapter_config.json")
        contents[name] = public(file.read_text(encoding="utf-8")).encode() if reported else file
    contents["README.md"] = card(directory, repo_id, what, data_files).encode()
    for name in RECORD:
        if (directory / name).is_file():
            text = (directory / name).read_text(encoding="utf-8")
            if name == "config.yaml":  # whoever runs it again should not push to this repository
                text = strict_yaml.write(without_report(read(directory / name)))
            contents[f"reprise/{name}"] = public(text).encode()
    tag = None if round is None else f"round-{round:05d}"
    address = _upload(contents, repo_id, kind, message, private, tag)
    note(directory, what=what, round=round, repo_id=repo_id, status="pushed", commit=address)
    return address


# -- what there is to push -------------------------------------------------------------------------


def what_there_is(directory: Path, round: int | None = None) -> str:
    """Which of `KINDS` to push unless told: the rounds of a LoRA run are adapters."""
    if round is not None:
        folder = directory / "checkpoints" / f"round-{round:05d}"
        return "adapter" if (folder / "adapter_config.json").is_file() else "model"
    if (directory / "distilled").is_dir():
        return "distilled"
    checkpoints = directory / "checkpoints"
    saved = (checkpoints / "final").exists() or numbered(checkpoints, "round")
    if saved or (directory / "config.json").is_file():
        return "model"
    if (directory / "adapter_config.json").is_file():
        return "adapter"
    return "rounds"


def _files(
    directory: Path, what: str, round: int | None
) -> tuple[dict[str, Path], dict[str, str] | None]:
    """Path in the repository -> file, and the parts of a data set."""
    if what == "rounds":
        return _rounds(directory)
    if what == "distilled":
        folder = directory / "distilled"
        if not folder.is_dir():
            raise ConfigError(f"{directory} has no distilled data (no folder {folder})")
        files = _all_files(folder)
        tables = {}
        for path in map(PurePosixPath, files):
            if path.suffix in (".parquet", ".csv", ".jsonl"):
                alone = path.parent == PurePosixPath(".")  # else a folder of shards
                part = path.stem if alone else path.parent.name
                tables[part] = f"data/{path if alone else path.parent / f'*{path.suffix}'}"
        return {f"data/{name}": file for name, file in files.items()}, tables or None
    folder = _model_folder(directory, what, round)
    return _all_files(folder), None


def _model_folder(directory: Path, what: str, round: int | None) -> Path:
    checkpoints = directory / "checkpoints"
    rounds = numbered(checkpoints, "round").values()
    candidates = [checkpoints / "final", *reversed(rounds), directory]
    if round is not None:
        candidates = [checkpoints / f"round-{round:05d}"]
    markers = ("adapter_config.json",) if what == "adapter" else ("config.json", "network.json")
    for folder in candidates:
        if any((folder / marker).is_file() for marker in markers):
            return folder
    where = f"checkpoints/round-{round:05d}" if round is not None else "checkpoints"
    raise ConfigError(
        f"{directory} has no {what} in {where} (no {' or '.join(markers)}); is the run finished?"
    )


def _rounds(directory: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Every finished round, verified."""
    from reprise.launch.cli.store_view import open_store

    store = open_store(directory)
    damaged = {
        index: problem
        for index, problem in store.verify().items()
        if problem and index not in store.unfinished()
    }
    if damaged:
        raise ConfigError(f"{directory}: {'; '.join(damaged.values())}; nothing was pushed")
    if not store.rounds():
        raise ConfigError(f"{directory} has no finished round to push")
    files = {
        f"rounds/{store.path(index).name}/{name}": file
        for index in store.rounds()
        for name, file in _all_files(store.path(index)).items()
    }
    parts = {
        store.path(index).name: f"rounds/{store.path(index).name}/*.parquet"
        for index in store.rounds()
    }
    return files, parts


def _all_files(folder: Path) -> dict[str, Path]:
    found = {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    }
    pickled = [name for name in found if name.endswith(PICKLES)]
    if pickled:
        raise ConfigError(
            f"{folder} holds {', '.join(pickled)}: a pickle can run code where it is loaded. Save "
            "the model with `save_pretrained` (safetensors) and remove it"
        )
    found.pop("README.md", None)  # the card takes its place
    return found


# -- sending it ------------------------------------------------------------------------------------


def _upload(
    contents: dict[str, Path | bytes],
    repo_id: str,
    kind: str,
    message: str,
    private: bool,
    tag: str | None,
) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    hide_secrets_in_logs()
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    for attempt in range(ATTEMPTS):
        try:
            api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
            operations = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=source)
                for name, source in contents.items()
            ]
            commit = api.create_commit(repo_id, operations, commit_message=message, repo_type=kind)
            if tag is not None:
                api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type=kind, exist_ok=True)
            return str(commit.commit_url)
        except Exception as error:
            status = _status(error)
            if status is None and not _from_the_network(error):
                raise
            final = attempt == ATTEMPTS - 1
            if final or (status is not None and status < 500 and status != 429):
                raise OutageError(_explained(error, status, repo_id)) from None
            time.sleep(1.0)
    raise AssertionError("the last attempt returns or raises")


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _status(error: BaseException) -> int | None:
    """The HTTP status that it came from, if one came at all."""
    for one in _chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _from_the_network(error: BaseException) -> bool:
    """Whether a connection failed; the client's HTTP library changes from version to version."""
    libraries = ("httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub", "hf_xet")
    return any(
        isinstance(one, ConnectionError) or type(one).__module__.split(".")[0] in libraries
        for one in _chain(error)
    )


def _explained(error: BaseException, status: int | None, repo_id: str) -> str:
    answered = [one for one in _chain(error) if hasattr(one, "response")]
    root = (answered or _chain(error))[-1]
    said = [line.strip() for line in str(root).splitlines() if line.strip()]
    first = [line for line in said if not line.startswith("For more information")]
    reason = redact(" ".join(first[:2]) or repr(root))[:300]
    again = "`reprise push` sends what is missing"
    if status == 401:
        return f"the Hub does not accept the token ({reason}); `hf auth login`, then {again}"
    if status == 403:
        return f"the token may not write to {repo_id} ({reason}); get one that may, then {again}"
    if status is not None and status < 500:
        return f"the Hub refuses the push to {repo_id}: {reason}"
    return f"the Hub could not be reached or did not finish ({reason}); {again}"


def note(directory: Path, **record: Any) -> None:
    """Append to ``pushes.jsonl`` of a run what became of a push."""
    if not (directory / "config.yaml").is_file():
        return  # not a run of ours: nothing is written into it
    record["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with open(directory / "pushes.jsonl", "a", encoding="utf-8") as file:
        file.write(redact(json.dumps(record)) + "\n")


def notes(directory: Path) -> list[dict[str, Any]]:
    """The pushes of a run so far; a last line torn by a kill is left out."""
    file = directory / "pushes.jsonl"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
