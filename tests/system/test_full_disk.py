"""A full disk: one message, nothing lost, and the same weights once there is space again."""

import json
import os
import shutil
import subprocess

import pytest

from tests.system.kill_driver import SMALL, finished_work, unlike


@pytest.fixture(scope="module")
def uninterrupted(running, neox_lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    config, reference = folder / "config.json", folder / "reference"
    config.write_text(json.dumps(neox_lab.config(**SMALL)))
    result = running.run(config, reference)
    assert result.status == 0, result.said
    return config, reference


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root; the file size limit is tested anyway")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def check(result):
    assert result.status == 1, result.said
    assert "Traceback" not in result.said
    assert "no space left while writing" in result.said
    assert "nothing already written was lost" in result.said and "reprise resume" in result.said


# What is left free, in KiB: enough for nothing, for the shards, for the first weights, for more.
@pytest.mark.parametrize("free", [8, 60, 140, 300, 700])
def test_a_disk_that_fills_up(free, small_disk, running, uninterrupted):
    config, reference = uninterrupted
    out, ballast = small_disk / "run", small_disk / "ballast"
    taken = shutil.disk_usage(small_disk).free - free * 1024
    ballast.write_bytes(b"\0" * taken)
    check(running.run(config, out))
    whole = finished_work(out)
    ballast.unlink()
    result = running.run(config, out)
    assert result.status == 0, result.said
    assert whole.items() <= finished_work(out).items()
    assert unlike(out, reference) == []


# Largest file, in bytes: each limit meets another writer first.
@pytest.mark.parametrize("limit", [3000, 12_000, 60_000])
def test_a_file_that_cannot_grow(limit, running, uninterrupted, tmp_path):
    config, reference = uninterrupted
    out = tmp_path / "run"
    check(running.run(config, out, largest_file=limit))
    whole = finished_work(out)
    result = running.run(config, out)
    assert result.status == 0, result.said
    assert whole.items() <= finished_work(out).items()
    assert unlike(out, reference) == []
