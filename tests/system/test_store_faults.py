"""RoundStore under real faults: SIGKILL at every file operation, torn files, full disks."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reprise.rollout.store import CorruptRoundError, RoundStore, shard_rows
from reprise.rollout.types import Completions

ROOT = Path(__file__).parents[2]
METADATA = {
    "config_sha256": "c" * 64,
    "code_revision": "abc",
    "policy": "p" * 64,
    "reward_model": "r" * 64,
    "random_state": {"seed": 3},
}


def batch(rows: int, tokens: int = 6) -> Completions:
    draws = np.random.default_rng(0)

    def ids() -> np.ndarray:
        return draws.integers(0, 50_000, size=tokens, dtype=np.int32)

    return Completions(
        prompt_index=np.arange(rows),
        prompt_ids=[ids() for _ in range(rows)],
        completion_ids=[[ids(), ids()] for _ in range(rows)],
        terminated=draws.random((rows, 2)) < 0.5,
        rewards=draws.standard_normal((rows, 2)).astype(np.float32),
        policy_logprobs=-draws.random((rows, 2)).astype(np.float32),
        reference_logprobs=-draws.random((rows, 2)).astype(np.float32),
        label_uniform=draws.random(rows),
    )


def write_round(root: Path, shards: int, data: Completions, *, rank: int = 0, world: int = 1):
    """What a run does, begun or resumed: write what is missing."""
    writer = RoundStore(root).writer(0, shards, METADATA)
    for shard in writer.missing(rank, world):
        writer.write(shard, data.take(shard_rows(len(data), shards, shard)))
    return writer


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each finished shard: both change if it is written again."""
    stats = {path.name: path.stat() for path in folder.glob("shard-*.parquet")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def child(program: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
    """A process that runs `program` with everything in this file imported."""
    here = str(Path(__file__).parent)
    text = f"import sys; sys.path.insert(0, {here!r}); from test_store_faults import *\n{program}"
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", text, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out


# Before its k-th file operation below the store, counted by the interpreter's own audit events,
# the process kills itself; nothing is caught, flushed or cleaned up. One fork for each k.
KILL_AT_EVERY_OPERATION = """
base, data = Path(sys.argv[1]), batch(5)
for k in range(1, 1000):
    pid = os.fork()
    if pid == 0:
        seen = 0
        def count(event, arguments):
            global seen
            if event in ("open", "os.mkdir", "os.rename", "os.remove"):
                if str(arguments[0]).startswith(str(base)):
                    seen += 1
                    if seen == k:
                        os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        write_round(base / str(k), 2, data).finish()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        print(k)
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


def test_killed_at_every_file_operation(tmp_path):
    data = batch(5)
    write_round(tmp_path / "whole", 2, data).finish()
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "whole/round-00000").iterdir()}
    (tmp_path / "killed").mkdir()
    operations = int(finish(child(KILL_AT_EVERY_OPERATION, tmp_path / "killed")))
    assert operations > 20, "the kills cover every write, rename and removal"
    finished_already, partials_seen = 0, 0
    for k in range(1, operations):
        root = tmp_path / "killed" / str(k)
        folder, store = root / "round-00000", RoundStore(root)
        kept = identities(folder)
        partials_seen += len(list(folder.glob(".*.partial")))
        if store.rounds():
            finished_already += 1
        else:
            with pytest.raises(CorruptRoundError, match=r"unfinished|does not exist"):
                store.read(0)
            write_round(root, 2, data).finish()
            assert {p.name: p.read_bytes() for p in folder.iterdir()} == wanted, k
        after = identities(folder)
        assert {name: after[name] for name in kept} == kept, "a completed shard is not rewritten"
        assert store.read(0).data.to_arrow().equals(data.to_arrow())
    assert finished_already >= 2 and partials_seen >= 3


def test_killed_at_any_moment_of_a_long_write(tmp_path):
    """Kills from outside, at times that fall within writing and flushing as well as between."""
    data, shards, kills = batch(3000, tokens=400), 20, 0
    program = "write_round(Path(sys.argv[1]), 20, batch(3000, tokens=400)).finish()"
    folder = tmp_path / "round-00000"
    for attempt in range(8):
        kept = identities(folder)
        process = child(program, tmp_path)
        aim = min(shards - 1, len(kept) + 2)
        while process.poll() is None and len(identities(folder)) < aim:
            time.sleep(0.001)
        time.sleep(0.004 * attempt)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        after = identities(folder)
        assert {name: after[name] for name in kept} == kept, "a completed shard is not rewritten"
        if process.returncode == 0:
            break
    if not RoundStore(tmp_path).rounds():
        write_round(tmp_path, shards, data).finish()
    assert kills >= 3
    assert RoundStore(tmp_path).read(0).data.to_arrow().equals(data.to_arrow())
    assert not list(folder.glob(".*"))


def test_processes_share_a_round(tmp_path):
    program = "write_round(Path(sys.argv[1]), 7, batch(40), rank=int(sys.argv[2]), world=3)"
    processes = [child(program, tmp_path, rank) for rank in range(3)]
    for process in processes:
        finish(process)
    RoundStore(tmp_path).writer(0, 7, METADATA).finish()
    write_round(tmp_path / "alone", 7, batch(40)).finish()
    alone, shared = RoundStore(tmp_path / "alone"), RoundStore(tmp_path)
    assert shared.manifest(0) == alone.manifest(0)
    assert shared.read(0).data.to_arrow().equals(batch(40).to_arrow())


def test_a_round_is_not_finished_before_every_process_is(tmp_path):
    writer = write_round(tmp_path, 4, batch(8), rank=1, world=2)
    with pytest.raises(CorruptRoundError, match=r"shards \[0, 2\] are not written yet"):
        writer.finish()
    assert RoundStore(tmp_path).rounds() == []


@pytest.fixture
def finished(tmp_path):
    store = RoundStore(tmp_path)
    for index in (0, 1):
        writer = store.writer(index, 3, METADATA)
        for shard in writer.missing():
            data = batch(9).take(range(9) if index == 0 else range(8, -1, -1))
            writer.write(shard, data.take(shard_rows(9, 3, shard)))
        writer.finish()
    return store


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


MISCHIEF = {
    "torn shard": (lambda f: truncate(f / "shard-00001.parquet"), "00001.parquet: torn or altered"),
    "empty shard": (lambda f: os.truncate(f / "shard-00000.parquet", 0), "00000.parquet: torn"),
    "missing shard": (lambda f: (f / "shard-00002.parquet").unlink(), "00002.parquet: missing"),
    "swapped shards": (
        lambda f: shutil.copy(f / "shard-00000.parquet", f / "shard-00001.parquet"),
        "00001.parquet: torn or altered",
    ),
    "shard of another round": (
        lambda f: shutil.copy(f.parent / "round-00001/shard-00000.parquet", f),
        "00000.parquet: torn or altered",
    ),
    "torn manifest": (lambda f: truncate(f / "manifest.json"), "manifest.json: torn or not a"),
    "empty manifest": (lambda f: os.truncate(f / "manifest.json", 0), "manifest.json: torn"),
    "missing manifest": (lambda f: (f / "manifest.json").unlink(), "round 0 is unfinished"),
    "manifest of another round": (
        lambda f: shutil.copy(f.parent / "round-00001/manifest.json", f),
        "is the manifest of round 1; restore round 0's own",
    ),
    "another schema version": (
        lambda f: change(f / "manifest.json", schema_version=99),
        r"schema version 99, this code reads 1; .* \(abc\)",
    ),
    "manifest with another policy": (
        lambda f: change(f / "manifest.json", policy="q" * 64),
        "manifest.json: altered after it was written",
    ),
    "manifest with fewer rows": (
        lambda f: change(f / "manifest.json", rows=3),
        "manifest.json: altered after it was written",
    ),
}


@pytest.mark.parametrize("what", MISCHIEF)
def test_what_was_tampered_with_is_not_read(finished, what):
    tamper, message = MISCHIEF[what]
    tamper(finished.path(0))
    with pytest.raises(CorruptRoundError, match=message):
        finished.read(0)
    assert finished.verify()[0] is not None and finished.verify()[1] is None
    assert len(finished.read(1).data) == 9, "the other round is as sound as before"


def test_every_altered_byte_is_noticed(finished):
    for path in sorted(finished.path(0).iterdir()):
        whole = path.read_bytes()
        for place in [*range(0, len(whole), 97), len(whole) - 1]:
            flip(path, place)
            with pytest.raises(CorruptRoundError):
                finished.read(0)
            path.write_bytes(whole)
    assert len(finished.read(0).data) == 9


@pytest.mark.parametrize("name", ["shard-00000.parquet", "shard-00000.json"])
@pytest.mark.parametrize("fault", ["torn", "altered", "missing"])
def test_a_resumed_round_verifies_the_shards_it_has(tmp_path, name, fault):
    store, data = RoundStore(tmp_path), batch(4)
    store.writer(0, 2, METADATA).write(0, data.take([0, 1]))
    path = store.path(0) / name
    if fault == "missing":
        path.unlink()
    else:
        truncate(path) if fault == "torn" else flip(path, path.stat().st_size // 2)
    writer = store.writer(0, 2, METADATA)
    if (name, fault) == ("shard-00000.parquet", "missing"):
        assert writer.missing() == [0, 1], "a shard that is not there is written"
    else:
        with pytest.raises(CorruptRoundError, match=r"shard-00000.parquet: .*delete"):
            writer.missing()
        # The remedy that the message names.
        (store.path(0) / "shard-00000.parquet").unlink()
        assert writer.missing() == [0, 1]
    write_round(tmp_path, 2, data).finish()
    assert store.read(0).data.to_arrow().equals(data.to_arrow())


def test_a_shard_altered_before_the_manifest_is_noticed_by_finish(tmp_path):
    writer = write_round(tmp_path, 2, batch(4))
    flip(RoundStore(tmp_path).path(0) / "shard-00001.parquet", 100)
    with pytest.raises(CorruptRoundError, match=r"shard-00001.parquet: torn or altered"):
        writer.finish()
    assert RoundStore(tmp_path).rounds() == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("config_sha256", "d" * 64), ("policy", "q" * 64), ("random_state", {"seed": 4})],
)
def test_what_another_run_began_is_not_continued(tmp_path, key, value):
    RoundStore(tmp_path).writer(0, 2, METADATA).write(0, batch(2))
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = RoundStore(tmp_path).writer(0, 2, METADATA | {key: value})
    with pytest.raises(CorruptRoundError, match=rf"{key} is .* there, .* now\. Continue with"):
        other.missing()
    with pytest.raises(CorruptRoundError, match=r"of_shards is 2 there, 3 now"):
        RoundStore(tmp_path).writer(0, 3, METADATA).missing()
    after = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before, "nothing of the other run is lost"


def test_a_process_with_another_policy_cannot_slip_in(tmp_path):
    """Two ranks that began at once with different weights: the round must not be finished."""
    store = RoundStore(tmp_path)
    writers = [store.writer(0, 2, METADATA | {"policy": policy}) for policy in ("p", "q")]
    for rank, writer in enumerate(writers):
        writer.write(writer.missing(rank, 2)[0], batch(2))
    with pytest.raises(CorruptRoundError, match=r"policy is 'q' there, 'p' now"):
        writers[0].finish()


# Both programs write small shards until one does not fit, make room, and go on.
FULL_DISK = """
root = Path(sys.argv[1])
free = {free}
try:
    write_round(root, 3, batch(600, tokens=200))
    raise SystemExit("the disk did not fill up")
except OSError as error:
    print(error.errno, str(error))
folder = root / "round-00000"
assert not list(folder.glob(".*.partial")), "nothing half-written is left"
kept = identities(folder)
assert RoundStore(root).rounds() == []
free()
write_round(root, 3, batch(600, tokens=200)).finish()
assert {{name: identities(folder)[name] for name in kept}} == kept
assert RoundStore(root).read(0).data.to_arrow().equals(batch(600, tokens=200).to_arrow())
print(len(kept))
"""


def check_full_disk(out: str, number: int) -> int:
    first, kept = out.strip().splitlines()
    assert first.startswith(f"{number} ") and "no space left while writing shard-" in first
    assert "nothing already written was lost" in first
    return int(kept)


def test_a_full_disk_loses_nothing(tmp_path):
    """A real file system of 2 MiB, mounted in a namespace of the child's own."""
    mount = f'mount -t tmpfs -o size=2m none {tmp_path} && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, mount, "sh", "true"], capture_output=True).returncode
    ):
        pytest.skip("this machine does not let a process mount a file system of its own")
    program = FULL_DISK.format(free='(Path(sys.argv[1]) / "ballast").unlink')
    program = program.replace(
        "try:", '(Path(sys.argv[1]) / "ballast").write_bytes(bytes(1_600_000))\ntry:', 1
    )
    process = child(program, tmp_path, prefix=(*prefix, mount, "sh"))
    assert check_full_disk(finish(process), errno.ENOSPC) == 1


def test_a_file_size_limit_loses_nothing(tmp_path):
    """The unprivileged stand-in for a full disk: a write fails in the middle of a file."""
    program = FULL_DISK.format(
        free="lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))"
    ).replace(
        "try:",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\ntry:",
        1,
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    assert check_full_disk(finish(child(program, tmp_path)), errno.EFBIG) == 0
