"""benchmarks/gpu.py in its small mode: every part runs, on whatever there is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "round_on_cpu float32 bfloat16 compiled fsdp2 lora qlora resume supervised chunked update "
    "sampling attention whole_round pqn_arranged pqn pqn_workers"
).split()


def small(*arguments):
    command = [sys.executable, "benchmarks/gpu.py", "--small", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole():
    done = small()
    return done, json.loads(done.stdout.splitlines()[-1])


def test_every_part_is_ok(whole):
    done, told = whole
    assert [part["name"] for part in told["parts"]] == PARTS
    assert [part for part in told["parts"] if not part["ok"]] == [], done.stderr[-3000:]
    assert done.returncode == 0


def test_the_figures_are_of_work_that_was_done(whole):
    found = {part["name"]: part for part in whole[1]["parts"]}
    assert all(part["seconds"] >= 0 and part["unit"] for part in found.values())
    for name in ("round_on_cpu", "lora", "update", "sampling", "pqn", "pqn_workers"):
        assert found[name]["figure"] > 0, name
    for name in ("float32", "bfloat16", "compiled", "fsdp2"):
        assert 0 <= found[name]["figure"] < 0.05, name
    assert found["chunked"]["figure"] > 1.2
    assert found["resume"]["figure"] == 1


def test_a_part_that_fails_is_told_and_stops_no_other():
    done = small("--only", "fsdp2", "qlora")  # fsdp2 compares with float32, which is not there
    told = json.loads(done.stdout.splitlines()[-1])
    assert [(part["name"], part["ok"]) for part in told["parts"]] == [
        ("fsdp2", False),
        ("qlora", True),
    ]
    assert told["parts"][0]["note"] and done.returncode == 1
