"""What a run leaves behind: metrics, checkpoints, the summary."""

import json
import math

import numpy as np
import pytest
import torch

from reprise.rollout.files import seal_of
from reprise.rollout.run.run_dir import Progress, RunDir


def open_run(path, **changes):
    settings = {"experiment": "alignment.on_policy", "seed": 3, "config_sha256": "c0ffee"}
    return RunDir(path, **{**settings, "code_revision": "abc", **changes})


def test_metrics_are_lines_of_json(tmp_path):
    run = open_run(tmp_path / "run")
    run.log(step=1, loss=0.5, note="a")
    run.log(round=2, interval=[0.1, 0.2])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.metrics()
    first, second = run.metrics()
    assert first.pop("seconds") >= 0 and second.pop("seconds") >= 0
    assert first == {"step": 1, "loss": 0.5, "note": "a"}
    assert second == {"round": 2, "interval": [0.1, 0.2]}


def test_metrics_need_a_place(tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(ValueError, match="'step' or a 'round'"):
        run.log(loss=1.0)
    assert run.metrics() == []


def test_what_is_not_a_number_is_null(tmp_path):
    run = open_run(tmp_path)
    run.log(
        step=np.int64(4),
        a=math.nan,
        b=[1.0, math.inf],
        c={"d": -math.inf, "e": 2},
        f=np.float32("nan"),
        g=torch.tensor(1.5),
        h=np.float64(0.25),
    )
    [record] = run.metrics()
    del record["seconds"]
    expected = {"a": None, "b": [1.0, None], "c": {"d": None, "e": 2}, "f": None}
    assert record == {"step": 4, **expected, "g": 1.5, "h": 0.25}


def test_a_torn_last_line_is_left_out_and_cut(tmp_path):
    run = open_run(tmp_path)
    run.log(step=1)
    run.log(step=2)
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 3, "lo')
    resumed = open_run(tmp_path)
    assert [record["step"] for record in resumed.metrics()] == [1, 2]
    resumed.cut_metrics(lambda record: True)
    resumed.log(step=3)
    assert [record["step"] for record in resumed.metrics()] == [1, 2, 3]


def test_a_line_after_a_torn_one_is_not_lost(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "seconds": 1}\n{"step": 2, "lo')
    run = open_run(tmp_path)
    run.log(step=2)
    assert [record["step"] for record in open_run(tmp_path).metrics()] == [1, 2]


def test_what_lies_past_the_checkpoint_is_cut(tmp_path):
    run = open_run(tmp_path)
    for step in range(1, 6):
        run.log(step=step, loss=step / 2)
    before = run.metrics()
    run.cut_metrics(lambda record: record["step"] <= 3)
    assert run.metrics() == before[:3]
    run.log(step=4)
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4]


def test_cutting_nothing_creates_nothing(tmp_path):
    run = open_run(tmp_path)
    run.cut_metrics(lambda record: False)
    assert run.metrics() == [] and list(tmp_path.iterdir()) == []


def test_seconds_count_those_before_an_interruption(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 1000.0}\n')
    run = open_run(tmp_path)
    assert 1000 <= run.seconds < 1060
    run.log(step=2)
    assert run.metrics()[-1]["seconds"] >= 1000


def test_the_summary(tmp_path):
    run = open_run(tmp_path)
    run.log(round=0, reward_mean=1.0)
    assert not (tmp_path / "summary.json").exists()
    run.finish(weights_sha256="ff", reward=np.float32(0.5), gap=math.nan)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seal"] == seal_of(summary) == seal_of({**summary, "seal": "other"})
    assert summary["seal"] != seal_of({**summary, "reward": 0.25})
    assert summary.pop("seconds") >= 0 and summary.pop("seal")
    assert summary == {
        "experiment": "alignment.on_policy",
        "status": "complete",
        "seed": 3,
        "config_sha256": "c0ffee",
        "code_revision": "abc",
        "weights_sha256": "ff",
        "reward": 0.5,
        "gap": None,
        "files": {},
    }


def test_other_processes_write_nothing(tmp_path, capsys):
    run = open_run(tmp_path / "run", rank=1, world=2)
    run.log(step=1)
    run.cut_metrics(lambda record: False)
    run.say("hello")
    run.finish(x=1)
    with run.progress("work", 3) as progress:
        progress.interval = -1.0
        progress.advance()
    assert not (tmp_path / "run").exists()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert not run.is_main


def test_checkpoints_are_whole(tmp_path):
    run = open_run(tmp_path)
    with run.checkpoint("round-00001") as folder:
        (folder / "weights").write_text("w")
        assert not (run.checkpoints / "round-00001").exists()
    assert (tmp_path / "checkpoints" / "round-00001" / "weights").read_text() == "w"
    with pytest.raises(RuntimeError), run.checkpoint("round-00002") as folder:
        (folder / "weights").write_text("w")
        raise RuntimeError
    assert [path.name for path in run.checkpoints.iterdir()] == ["round-00001"]


def test_words_for_humans_go_to_standard_error(tmp_path, capsys):
    run = open_run(tmp_path)
    run.say("round 1")
    with run.progress("update", 4, "batches") as progress:
        assert type(progress) is Progress  # no terminal here
        progress.advance()
        progress.interval = -1.0
        progress.advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first == "round 1"
    assert second.startswith("update: 3/4 batches, ")


def test_tensorboard_shows_the_same_numbers(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = open_run(tmp_path)
    for step in (1, 2):
        run.log(step=step, loss=step / 4, note="text", gap=math.nan)
    run.log(round=1, reward_mean=2.0)
    run.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["round/reward_mean", "step/loss"]
    found = [(event.step, event.value) for event in events.Scalars("step/loss")]
    assert found == [(1, 0.25), (2, 0.5)]
