"""SIGTERM, as a scheduler sends it: a checkpoint of the step in progress, and an exit to resume."""

import json
import signal

import pytest

from tests.system.kill_driver import SMALL, finished_work, unlike

TERMINATED = 143
# Three optimizer steps a round, and no checkpoint but what preemption leaves.
SETTINGS = {**SMALL, "train__save_strategy": "no"}


@pytest.fixture(scope="module")
def config(llama_lab, tmp_path_factory):
    path = tmp_path_factory.mktemp("preemption") / "config.json"
    path.write_text(json.dumps(llama_lab.config(**SETTINGS)))
    return path


@pytest.fixture(scope="module")
def whole(running, config):
    """Uninterrupted runs of one process and of two."""
    made = {}
    for world in (1, 2):
        out = config.parent / f"whole-{world}"
        result = running.run(config, out, world=world)
        assert result.status == 0, result.said
        made[world] = out
    return made


def steps(result):
    """Optimizer steps of each process."""
    return [
        sum(e.startswith("AdamW.step#") and e.endswith(":after") for e in events)
        for events in result.events
    ]


def complete(out):
    """Checkpoints inside a round that can be continued from."""
    return sorted(
        path.parent.relative_to(out / "checkpoints").as_posix()
        for path in out.glob("checkpoints/update-*/checkpoint-*/complete.json")
    )


@pytest.mark.parametrize("world", [1, 2])  # of two processes, only the last one is told
@pytest.mark.parametrize(
    ("moment", "kept", "left"),
    [
        ("AdamW.step#2:before", "update-00001/checkpoint-2", 4),
        ("RoundTrainer.training_step#1:before", "update-00001/checkpoint-1", 5),
        ("AdamW.step#6:after", "update-00002/checkpoint-3", 0),
    ],
)
def test_within_an_update_the_step_is_kept(
    world, moment, kept, left, running, config, whole, tmp_path
):
    if world == 2 and left == 5:
        pytest.skip("the other moments say the same")
    out = tmp_path / "run"
    result = running.run(config, out, kill=moment, world=world, number=signal.SIGTERM)
    assert result.status == TERMINATED, result.said
    assert result.said.count("`reprise resume DIR` continues the run") == 1
    assert "Traceback" not in result.said
    assert complete(out) == [kept]
    result = running.run(config, out, world=world)
    assert result.status == 0, result.said
    assert steps(result) == [left] * world
    assert unlike(out, whole[world]) == []


def test_after_training_the_policy_is_saved(running, config, whole, tmp_path):
    # In the scoring that follows the last step: the round is not lost.
    out = tmp_path / "run"
    result = running.run(config, out, kill="Collector.score#5:before", number=signal.SIGTERM)
    first = result.events[0]
    assert result.status == TERMINATED, result.said
    assert first.index("AdamW.step#3:after") < first.index("Collector.score#5:before")
    assert "PreTrainedModel.save_pretrained#1:after" in first
    assert [path.name for path in out.glob("checkpoints/round-*")] == ["round-00001"]
    result = running.run(config, out)
    assert steps(result) == [3]
    assert unlike(out, whole[1]) == []


def test_while_collecting_it_ends_at_once_and_keeps_what_is_stored(
    running, config, whole, tmp_path
):
    out = tmp_path / "run"
    # Shard 1 of the evaluation and the first of the round are there; the second one is not.
    result = running.run(config, out, kill="RoundWriter.write#3:after", number=signal.SIGTERM)
    assert result.status == TERMINATED, result.said
    assert "AdamW.step#1:before" not in result.events[0]
    shards = finished_work(out)
    assert any("rounds/" in name for name in shards)
    assert running.run(config, out).status == 0
    assert shards.items() <= finished_work(out).items()
    assert unlike(out, whole[1]) == []
