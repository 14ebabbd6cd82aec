"""A run killed anywhere, by SIGKILL, ends with the bits of one that was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.system.kill_driver import (
    ROOT,
    SMALL,
    finished_work,
    kill_and_continue,
    unlike,
)

# One kill each, in the order in which a run comes to them; `#1` counts from the latest start, so
# what is done is behind us: the first shard generated is the first one missing.
EVALUATING = [
    "complete#1:before",
    "RewardModel.score#1:after",
    "RoundWriter.write#1:after",
    "RoundWriter.finish#1:before",
    "evaluate#1:after",
    "RunDir.log#1:half",
]
COLLECTING = [
    "complete#1:after",
    "RoundWriter.write#1:after",  # the first shard is there
    "RoundWriter.write#1:before",  # the second one is ready, but lost
    "RoundWriter.finish#1:before",
    "RoundWriter.finish#1:after",
]
UPDATING = [
    "RoundTrainer.training_step#2:before",
    "AdamW.step#1:after",
    "safe_save_file#1:half",  # torn weights
    "mark_complete#1:before",  # everything of the checkpoint but its marker
    "RoundTrainer._save_checkpoint#1:after",
    "AdamW.step#1:before",
    "save#1:half",  # torn state of the optimizer
    "mark_complete#1:before",
    "RoundTrainer._save_checkpoint#2:after",  # the last step's
    "Collector.score#1:after",
    "RunDir.log#1:half",
]
SAVING = [
    "safe_save_file#1:half",
    "PreTrainedTokenizerBase.save_pretrained#1:after",  # written, not yet renamed
    "rmtree#1:half",  # of the checkpoints inside the round
]
ENDING = [
    "weights_sha256#1:after",
    "symlink#1:before",
    "link#1:after",
    "RunDir.finish#1:before",
]
ROUND = [*EVALUATING, *COLLECTING, *UPDATING, *SAVING]


# Several epochs and sampled labels; a checkpoint after every second step.
EPOCHS = {
    **SMALL,
    "epochs": 2,
    "train__save_steps": 2,
    "objective": {"name": "dpo", "gamma": 0.1, "reference": "previous", "labels": "sampled"},
}
CALIBRATED = {"name": "rdrc", "gamma": 0.1, "reference": "previous", "gamma_c": 0.05}
CASES = {
    "neox": ("neox_lab", "alignment.on_policy", SMALL),
    "llama": ("llama_lab", "alignment.on_policy", SMALL),
    "epochs": ("llama_lab", "alignment.on_policy", EPOCHS),
    "offline": ("neox_lab", "alignment.offline", {**SMALL, "objective": CALIBRATED}),
}


@pytest.fixture(scope="module")
def uninterrupted(running, tmp_path_factory, request):
    """name of a case -> its config, the folder of an uninterrupted run, and the run's events."""
    done = {}

    def get(name):
        if name not in done:
            lab, experiment, changes = CASES[name]
            folder = tmp_path_factory.mktemp(name)
            config, reference = folder / "config.json", folder / "reference"
            changed = request.getfixturevalue(lab).config(experiment, **changes)
            config.write_text(json.dumps(changed))
            result = running.run(config, reference)
            assert result.status == 0, result.said
            done[name] = config, reference, result.events[0]
        return done[name]

    return get


def test_two_uninterrupted_runs_are_equal_in_every_bit(running, uninterrupted, tmp_path):
    config, reference, events = uninterrupted("neox")
    again = running.run(config, tmp_path / "again")
    assert again.status == 0 and again.events == [events]
    assert unlike(tmp_path / "again", reference) == []


@pytest.mark.parametrize("case", ["neox", "llama"])
def test_a_run_killed_in_every_phase_of_every_round(case, running, uninterrupted, tmp_path):
    config, reference, _ = uninterrupted(case)
    # Two rounds and the last policy's evaluation; one run, killed and continued again and again.
    kills = [*ROUND, *ROUND, *EVALUATING, *ENDING]
    if case == "llama":  # GPT-NeoX meets all of them, Llama every other one, in turn
        kills = [kill for place, kill in enumerate(kills) if place % 2 == place // len(ROUND) % 2]
    assert kill_and_continue(running, config, tmp_path / "run", reference, kills) == []


@pytest.mark.parametrize(
    ("case", "kill"),
    [
        ("neox", "replace#1:before"),  # nothing of the run is there yet but a leftover
        ("neox", "replace#2:before"),  # config.yaml is not there yet
        ("llama", "RoundTrainer._save_checkpoint#5:after"),  # a whole checkpoint in round 2
        ("llama", "PreTrainedModel.save_pretrained#8:after"),  # the last policy, not yet renamed
        ("epochs", "RoundTrainer._save_checkpoint#2:after"),  # second epoch
        ("epochs", "AdamW.step#11:before"),
        ("offline", "RoundTrainer._save_checkpoint#4:after"),  # second pass over D_0
        ("offline", "RoundWriter.write#3:after"),
    ],
)
def test_one_kill(case, kill, running, uninterrupted, tmp_path):
    config, reference, _ = uninterrupted(case)
    assert kill_and_continue(running, config, tmp_path / "run", reference, [kill]) == []


@pytest.mark.parametrize("case", ["neox", "llama", "epochs"])
def test_killed_twice_at_random_moments(case, running, uninterrupted, tmp_path):
    config, reference, _ = uninterrupted(case)
    start = time.monotonic()
    assert running.run(config, tmp_path / "timed").status == 0
    whole = time.monotonic() - start
    moments = [random.uniform(0.1, 0.9) * whole for _ in range(2)]
    problems = kill_and_continue(running, config, tmp_path / "run", reference, moments)
    assert problems == [], f"killed after {moments} s of {whole} s"


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_every_event(case, running, uninterrupted, tmp_path):
    config, reference, events = uninterrupted(case)
    traces = {}
    for event in events:
        problems = kill_and_continue(running, config, tmp_path / "run", reference, [event])
        if problems:
            traces[event] = problems
    print(f"{case}: {len(events)} kills, {len(traces)} left a trace")
    assert traces == {}


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_end_it_says_how_to_go_on(sent, status, running, uninterrupted, tmp_path):
    config, reference, _ = uninterrupted("llama")
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "reprise.launch.cli", "run", str(config), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    # In the middle of the first update: a checkpoint is there and the policy is not saved.
    while not list(out.glob("checkpoints/update-00001/checkpoint-1/complete.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "reprise resume" in errors and "Traceback" not in errors
    shards = finished_work(out)
    assert running.run(config, out).status == 0
    assert shards.items() <= finished_work(out).items()
    assert unlike(out, reference) == []
