"""Files that are either whole or absent: write aside, flush to disk, rename.

A rename within one file system is atomic (POSIX), so a reader, or a run resumed after SIGKILL,
sees the old content or the new, never a torn one. The flush before it makes that hold across a
power cut too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, atomically.

    Raises:
        OSError: the disk is full or not writable; the file at `path` is as it was before.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        aside.write_bytes(data)
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise explain_full_disk(error, path) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically; NaN is refused (it is not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def link(path: str | os.PathLike[str], target: str) -> None:
    """Make `path` a symbolic link to its neighbour `target`, replacing an earlier link."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.unlink(missing_ok=True)
    os.symlink(target, aside)
    os.replace(aside, path)


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` if the block ends without an error.

    A directory that was at `path` before is replaced. One that another process put there meanwhile
    stays, and ours is dropped: two runs that fill a cold cache both go on. Leftovers of killed
    attempts are removed first, never what a living process is writing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        if not _alive(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    aside = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    before = path.exists()
    try:
        yield aside
        for file in sorted(aside.rglob("*")):
            sync(file)
        sync(aside)
        if before:
            shutil.rmtree(path, ignore_errors=True)
        try:
            os.replace(aside, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(aside)  # another process was faster
        sync(path.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        explained = explain_full_disk(error, path) if isinstance(error, Exception) else error
        if explained is error:
            raise
        raise explained from error


def _alive(aside: Path) -> bool:
    """Whether who writes it may still be at work: a process here, or any on another machine."""
    named = re.search(r"\.(?:(?P<host>[^.].*)-)?(?P<process>\d+)\.partial$", aside.name)
    if named is None:
        return False
    if named["host"] not in (None, socket.gethostname()):
        return True
    try:
        os.kill(int(named["process"]), 0)
    except (ProcessLookupError, OverflowError):  # none has that number, or none can
        return False
    except PermissionError:  # another user's
        pass
    return True


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is what a killed process had not finished writing."""
    return name.startswith(".") and name.endswith(".partial")


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written; nobody may be writing in `folder`."""
    for path in [path for path in folder.rglob(".*.partial") if is_leftover(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain_full_disk(error: Exception, path: Path) -> Exception:
    """Say what to do when the disk is full; any other error is returned as it is.

    safetensors and torch raise errors of their own then, which only their text tells apart.
    """
    if isinstance(error, OSError):
        number = error.errno
    else:
        texts = {os.strerror(number): number for number in FULL}
        texts["inline_container.cc"] = errno.ENOSPC  # where torch.save writes
        number = next((texts[text] for text in texts if text in str(error)), None)
    if number not in FULL:
        return error
    return OSError(
        number,
        f"no space left while writing {path.name} in {path.parent}; nothing already written was "
        "lost. Free some space, then continue the run with `reprise resume`",
    )


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_home(path: str | os.PathLike[str]) -> str:
    """A path as it may be published: the home folder is ``~``."""
    path = Path(path)
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def json_sha256(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form: keys sorted, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal_of(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its own ``seal``."""
    return json_sha256({key: item for key, item in value.items() if key != "seal"})


def numbered(folder: Path, name: str) -> dict[int, Path]:
    """The entries ``name-N`` of a folder by N, lowest first; none if the folder is not there."""
    found = {
        int(number): entry
        for entry in folder.glob(f"{name}-*")
        if (number := entry.name.removeprefix(f"{name}-")).isdigit()
    }
    return dict(sorted(found.items()))
