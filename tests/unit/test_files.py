"""Files that are whole or absent, on a file system that really fails."""

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from reprise.rollout import files

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def file_size_limit(size):
    """No file may grow beyond `size` bytes: writing fails as it does on a full disk (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# No process has a number beyond 2^22.
DEAD = ".{}.4194305.partial"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_written_and_overwritten(tmp_path):
    files.write_bytes(tmp_path / "a", b"one")
    files.write_bytes(str(tmp_path / "a"), b"2")
    files.write_text(tmp_path / "b", "Größe\n")
    assert (tmp_path / "a").read_bytes() == b"2"
    assert (tmp_path / "b").read_bytes() == "Größe\n".encode()
    assert names(tmp_path) == ["a", "b"]


def test_a_reader_never_sees_half_of_a_file(tmp_path):
    """Who has the old file open goes on reading the old one: the new one is another file."""
    file = tmp_path / "a"
    files.write_text(file, "old content")
    with open(file, encoding="utf-8") as reader:
        files.write_text(file, "new")
        assert reader.read() == "old content"
    assert file.read_text() == "new"


def test_what_was_there_survives_a_full_disk(tmp_path):
    file = tmp_path / "a"
    files.write_bytes(file, b"precious")
    with (
        file_size_limit(100),
        pytest.raises(OSError, match="no space left while writing a") as full,
    ):
        files.write_bytes(file, b"x" * 5000)
    assert full.value.errno == errno.EFBIG and "reprise resume" in str(full.value)
    assert file.read_bytes() == b"precious"
    assert names(tmp_path) == ["a"]


def test_other_failures_are_reported_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        files.write_bytes(tmp_path / "missing" / "a", b"x")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        files.write_bytes(tmp_path / "folder", b"x")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["inside"]


def test_json_has_no_nan(tmp_path):
    file = tmp_path / "a.json"
    files.write_json(file, {"x": [1, 2.5, None], "ü": "ö"})
    assert json.loads(file.read_text()) == {"x": [1, 2.5, None], "ü": "ö"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(file, {"x": float("nan")})
    assert json.loads(file.read_text())["x"] == [1, 2.5, None]
    assert names(tmp_path) == ["a.json"]


def test_links_are_replaced(tmp_path):
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
        files.link(tmp_path / "final", number)
        assert (tmp_path / "final").resolve() == (tmp_path / number).resolve()
    assert names(tmp_path) == ["1", "2", "final"]


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "a") == expected


# -- directories ---------------------------------------------------------------------------------


def test_a_directory_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "checkpoint"
    with files.atomic_directory(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(b"w")
        assert not target.exists()
    assert (target / "sub" / "weights").read_bytes() == b"w"
    assert names(tmp_path / "deep") == ["checkpoint"]


def test_an_existing_directory_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "old").write_text("old")
    with files.atomic_directory(target) as folder:
        (folder / "new").write_text("new")
        assert names(target) == ["old"]
    assert names(target) == ["new"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_there_survives_an_error(tmp_path, error):
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(error), files.atomic_directory(target) as folder:
        (folder / "new").write_text("new")
        raise error
    assert names(tmp_path) == ["checkpoint"] and names(target) == ["old"]


def test_a_full_disk_leaves_the_old_directory(tmp_path):
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "old").write_text("old")
    with (
        file_size_limit(100),
        pytest.raises(OSError, match="no space left while writing checkpoint"),
        files.atomic_directory(target) as folder,
    ):
        (folder / "new").write_bytes(b"x" * 5000)
    assert names(tmp_path) == ["checkpoint"] and names(target) == ["old"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    for leftover in (
        DEAD.format("checkpoint"),
        ".checkpoint.4194306.partial",
        ".another.123.partial",
    ):
        (tmp_path / leftover / "sub").mkdir(parents=True)
    with files.atomic_directory(tmp_path / "checkpoint") as folder:
        (folder / "weights").write_text("w")
    assert names(tmp_path) == [".another.123.partial", "checkpoint"]


WRITER = """
import sys, time
from pathlib import Path
from reprise.rollout.files import atomic_directory
with atomic_directory(sys.argv[1]) as folder:
    (folder / "who").write_text(sys.argv[2])
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_may_fill_one_cold_cache(tmp_path):
    goal = tmp_path / "cache"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(goal), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in ("first", "second")
    ]
    for writer in writers:  # both are at it, and neither has deleted the other's work
        assert writer.stdout.readline() == "writing\n"
    for writer in writers:
        writer.communicate("go\n")
        assert writer.returncode == 0
        assert (goal / "who").read_text() == "first"
    assert names(tmp_path) == ["cache"]


def test_a_foreign_machines_work_is_left_alone(tmp_path):
    (tmp_path / ".cache.elsewhere-4194305.partial").mkdir()
    with files.atomic_directory(tmp_path / "cache"):
        pass
    assert names(tmp_path) == [".cache.elsewhere-4194305.partial", "cache"]
