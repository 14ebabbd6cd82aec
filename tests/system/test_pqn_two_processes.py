"""Two processes, each with half of the copies, learn what one process learns."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.system.kill_driver import kill_and_continue, timeless, unlike

SETTINGS = {
    "experiment": "rl.pqn",
    "seed": 1,
    "environment": "CartPole-v1",
    "total_steps": 4 * 256,
    "copies": 8,
    "steps": 32,
    "optimizer": {"weight_decay": 0.1},
    "checkpoint_every": 2,
    "evaluation": {"episodes": 2, "copies": 2, "film": False},
}


@pytest.fixture(scope="module")
def runs(running, tmp_path_factory):
    """The config, a run by one process and one by two."""
    folder = tmp_path_factory.mktemp("two")
    config = folder / "config.json"
    config.write_text(json.dumps(SETTINGS))
    for world, name in ((1, "one"), (2, "two")):
        result = running.run(config, folder / name, world=world)
        assert result.status == 0, result.said
    return config, folder / "one", folder / "two"


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [timeless(json.loads(line)) for line in lines]


def test_two_processes_learn_what_one_learns(runs):
    _, one, two = runs
    ours, theirs = (load_file(run / "checkpoints/final/model.safetensors") for run in (two, one))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
    start, end = (
        load_file(one / f"checkpoints/step-{step:012d}/model.safetensors") for step in (512, 1024)
    )
    assert max(np.abs(end[name] - start[name]).max() for name in start) > 1e-3


def test_metrics_are_those_of_all_copies(runs):
    _, one, two = runs
    assert len(metrics(two)) == 4
    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        assert ours["episode_returns"] == theirs["episode_returns"]
        assert len(ours["episode_returns"]) >= 2
        for name in ("loss", "q_mean", "gradient_norm", "epsilon", "churn"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def test_two_processes_resume_bit_for_bit(running, runs, tmp_path):
    config, _, two = runs
    kills = ["Learner.update#3:before", "AdamW.step#2:after"]
    assert kill_and_continue(running, config, tmp_path / "again", two, kills, world=2) == []
    assert unlike(tmp_path / "again", two) == []


def test_copies_that_cannot_be_shared_out_are_refused(running, runs, tmp_path):
    odd = tmp_path / "config.json"
    odd.write_text(json.dumps({**SETTINGS, "copies": 5, "minibatches": 4}))
    result = running.run(odd, tmp_path / "run", world=2)
    assert result.status == 2
    assert "copies=5 cannot be shared out evenly over 2 processes" in result.said
