"""Recorded inputs of published tables: the same bytes on every machine, or refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reprise.distill import data as distill_data
from reprise.rollout import cartpole
from reprise.rollout.randomness import Streams
from tests.processors import OLD

ROOT = Path(__file__).parents[2]
CODE = """
import hashlib, json
from reprise.distill.data import PUBLISHED, training_set
from reprise.rollout import cartpole
from reprise.rollout.randomness import Streams
found = {"fresh": cartpole.transitions_sha256(
    cartpole.fresh(cartpole.behaviour(seed=1), 3000, Streams(5), 2))}
for environment, kind in (("CartPole-v1", "mixed"), ("MountainCar-v0", "mixed")):
    training_set(environment, kind, 4000, 0)  # which checks itself
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(code, cache, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "REPRISE_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_same_bytes_under_another_instruction_set(cache, tmp_path):
    assert run(CODE, tmp_path, **OLD) == run(CODE, cache)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_recorded_learners_end_well_and_every_transition_is_the_published_one(
    seed, cache, monkeypatch
):
    monkeypatch.setenv("REPRISE_CACHE", str(cache))
    data = cartpole.replay(seed=seed)
    assert cartpole.transitions_sha256(data) == cartpole.SHA256[seed]
    ends = np.flatnonzero(data.terminated | data.truncated)
    lengths = np.diff(ends, prepend=-1)
    assert lengths[ends < 20_000].mean() < 100  # from random play
    assert lengths[ends >= 80_000].mean() > 400  # to nearly the time limit
    about = json.loads((cartpole.replay_folder(seed=seed) / "about.json").read_text())
    assert about["source"] == "shipped recording"


def test_a_damaged_recording_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRISE_CACHE", str(tmp_path / "cache"))
    with np.load(cartpole.RECORDINGS / "cartpole-0.npz") as stored:
        recording = {name: stored[name] for name in stored.files}
    recording["actions"][7_000] ^= 1
    np.savez(tmp_path / "cartpole-0.npz", **recording)
    monkeypatch.setattr(cartpole, "RECORDINGS", tmp_path)
    with pytest.raises(ValueError, match=r"other transitions .* no published table"):
        cartpole.replay()
    assert not (tmp_path / "cache").exists() or not any((tmp_path / "cache").glob("*/rounds"))


def test_a_training_set_that_comes_out_otherwise_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRISE_CACHE", str(tmp_path))
    published = {"MountainCar-v0-mixed-4000-0": "0" * 64}
    monkeypatch.setattr(distill_data, "_published", lambda: published)
    with pytest.raises(ValueError, match="the mixed data of MountainCar-v0, seed 0"):
        distill_data.training_set("MountainCar-v0", "mixed", 4_000, 0)


def test_other_replays_are_recorded_here_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRISE_CACHE", str(tmp_path))
    data = cartpole.replay(600, 7)
    assert len(data) == 600
    about = json.loads((cartpole.replay_folder(600, 7) / "about.json").read_text())
    assert about["source"] == "recorded on this machine"


def test_sums_that_would_round_are_refused():
    snapshots = cartpole.behaviour()
    snapshots["weight1"] = snapshots["weight1"] + 2.0**-9
    with pytest.raises(AssertionError, match="not on the grid"):
        cartpole.epsilon_greedy(snapshots, 1, Streams(0).data("x"))
