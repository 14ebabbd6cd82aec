"""A PQN run killed anywhere, by SIGKILL, ends with the bits of one that was never interrupted."""

import json
import random
import time

import pytest

from tests.system.kill_driver import kill_and_continue, unlike

CARTPOLE = {
    "experiment": "rl.pqn",
    "seed": 3,
    "environment": "CartPole-v1",
    "total_steps": 10 * 128,
    "copies": 4,
    "steps": 32,
    "quantization": {"step": 0.25},
    "optimizer": {"weight_decay": 0.1},
    "checkpoint_every": 2,
    "evaluation": {"episodes": 2, "copies": 2},
}
# bfloat16 by name: what `auto` measures may differ from one run to the next.
BREAKOUT = {
    **CARTPOLE,
    "environment": "breakout",
    "environment_settings": {"max_episode_frames": 120, "noop_max": 3},
    "total_steps": 3 * 32,
    "copies": 2,
    "steps": 16,
    "minibatches": 2,
    "epochs": 1,
    "precision": "bfloat16",
    "checkpoint_every": 1,
    "evaluation": {"episodes": 1, "copies": 1, "film": False},
}
CASES = {"cartpole": CARTPOLE, "breakout": BREAKOUT}
# One kill each, in the order in which a run comes to them; `#1` counts from the latest start.
KILLS = {
    "cartpole": [
        "Learner.act#1:after",  # nothing is saved yet
        "RunDir.log#2:half",
        "save_file#1:half",  # torn weights of the first checkpoint
        "save#1:half",  # torn state of the optimizer and the environments
        "save#1:after",  # written, not yet renamed
        "Learner.update#3:before",  # the checkpoint after the second iteration is there
        "AdamW.step#3:after",  # continued from it, inside an update
        "Learner.act#3:after",  # continued from it, past the one after the fourth
        "save_file#1:half",
        "save#1:half",
        "rmtree#1:half",  # of three checkpoints the oldest is half removed
        "Learner.update#2:after",
        "RunDir.log#2:after",
        "save#1:after",
        "save_policy#1:after",  # the final policy, not yet renamed
        "play_games#1:before",
        "RunDir.finish#1:before",
    ],
    "breakout": [
        "AdamW.step#2:after",
        "save#1:half",
        "Learner.act#2:after",
        "RunDir.log#1:half",
        "play_games#1:after",
    ],
}


@pytest.fixture(scope="module")
def uninterrupted(running, tmp_path_factory):
    """Name of a case -> its config and the folder of an uninterrupted run."""
    done = {}

    def get(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            config = folder / "config.json"
            config.write_text(json.dumps(CASES[name]))
            result = running.run(config, folder / "reference")
            assert result.status == 0, result.said
            done[name] = config, folder / "reference"
        return done[name]

    return get


@pytest.mark.parametrize("case", CASES)
def test_killed_in_every_phase(case, running, uninterrupted, tmp_path):
    config, reference = uninterrupted(case)
    assert kill_and_continue(running, config, tmp_path / "run", reference, KILLS[case]) == []


def test_killed_at_random_moments(running, uninterrupted, tmp_path):
    config, reference = uninterrupted("cartpole")
    start = time.monotonic()
    assert running.run(config, tmp_path / "timed").status == 0
    seconds = time.monotonic() - start
    assert unlike(tmp_path / "timed", reference) == []
    moments = [random.Random(7 + number).uniform(0, seconds) for number in range(4)]
    assert kill_and_continue(running, config, tmp_path / "run", reference, moments) == []
