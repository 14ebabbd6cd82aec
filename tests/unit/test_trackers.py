"""The same numbers and tables in TensorBoard, Weights & Biases and trackio; each really written."""

import json
import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from reprise.rollout.run.markdown import markdown_table
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.run.trackers import Report, check_trackers

ROOT = Path(__file__).parents[2]
ROWS = [["get a|b:", "Get\nit.", 0.5], ["set:", "Set it.", math.nan]]


def open_run(path, *trackers, **changes):
    report = Report(trackers=list(trackers), project="proj", **changes)
    settings = {"seed": 3, "objective": {"name": "dpo"}}
    return RunDir(path, experiment="alignment.on_policy", seed=3, report=report, settings=settings)


def log_a_little(run):
    run.log(round=0, reward_mean=1.0, note="text", gap=math.nan)
    for step in (1, 2):
        run.log(round=1, step=step, loss=step / 4)
    run.log_table("completions", ["prompt", "completion", "reward"], ROWS, round=1)
    run.log(round=1, reward_mean=2.0)


def test_tensorboard(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = open_run(tmp_path / "run", "tensorboard")
    log_a_little(run)
    run.finish()
    events = accumulators.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["round/reward_mean", "step/loss"]
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [(1, 0.25), (2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("round/reward_mean")] == [(0, 1.0), (1, 2.0)]
    [table] = events.Tensors("completions/text_summary")
    assert table.step == 1
    text = table.tensor_proto.string_val[0].decode()
    assert text == markdown_table(
        ["prompt", "completion", "reward"], [ROWS[0], ["set:", "Set it.", None]]
    )


def test_tensorboard_brings_no_torch(tmp_path):
    code = (
        "import sys\nfrom reprise.rollout.run.run_dir import RunDir\n"
        f"run = RunDir({str(tmp_path)!r}, experiment='rl.fqi', seed=0)\n"
        "run.log(step=1, loss=1.0)\nrun.finish()\n"
        "print(*[name for name in ('torch', 'tensorflow', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_cell_does_not_end_its_table():
    assert markdown_table(["a", "b"], [["x|y", "1\n2"], [0.123456, 3]]) == (
        "| a | b |\n| --- | --- |\n| x\\|y | 1 2 |\n| 0.1235 | 3 |\n"
    )


TRACKED = """
import math, sys
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.run.trackers import Report
from tests.unit.test_trackers import log_a_little, open_run
for _ in range(2):  # the second continues the first
    run = open_run(sys.argv[1], sys.argv[2])
    log_a_little(run)
    run.close()
"""


def track(tmp_path, monkeypatch, name):
    """In a process of its own: both start threads and processes that outlive a run."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", TRACKED, str(tmp_path / "run"), name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    track(tmp_path, monkeypatch, "trackio")
    with sqlite3.connect(tmp_path / "trackio" / "proj.db") as database:
        names = {row[0] for row in database.execute("SELECT DISTINCT run_name FROM metrics")}
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    assert len(names) == 1, "a continued run is the same run"
    logged = [(step, json.loads(values)) for step, values in rows]
    assert (2, {"step/loss": 0.5}) in logged and (1, {"round/reward_mean": 2.0}) in logged
    [table, _] = [values["completions"] for _, values in logged if "completions" in values]
    assert table["_type"] == "trackio.table"


def test_wandb_stays_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789012345678901234567890123456789")
    done = track(tmp_path, monkeypatch, "wandb")
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert folders, done.stderr
    # One id, so that `wandb sync` makes one run of both.
    ids = {folder.name.rpartition("-")[2] for folder in folders}
    assert len(ids) == 1
    stored = b"".join(file.read_bytes() for f in folders for file in f.rglob("*") if file.is_file())
    for expected in (b"step/loss", b"round/reward_mean", b"objective"):
        assert expected in stored
    [table, *_] = [file for f in folders for file in f.rglob("*.table.json")]
    assert json.loads(table.read_text())["data"][0] == ["get a|b:", "Get\nit.", 0.5]
    assert b"01234567890123456789" not in stored


def test_what_is_not_installed_is_refused_at_the_start(tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trackio" else found(name)
    )
    with pytest.raises(ValueError, match="trackio is not installed; `pip install trackio`"):
        open_run(tmp_path / "run", "trackio")
    check_trackers(Report())


def test_other_processes_and_no_samples_show_nothing(tmp_path):
    other = RunDir(tmp_path / "a", experiment="rl.fqi", seed=0, rank=1, world=2)
    other.log(step=1, loss=1.0)
    other.log_table("completions", ["a"], [[1]], round=0)
    assert not (tmp_path / "a").exists()
    run = open_run(tmp_path / "b", "tensorboard", samples=0)
    run.log_table("completions", ["a"], [[1]], round=0)
    run.finish()
    assert not (tmp_path / "b" / "tensorboard").exists()
