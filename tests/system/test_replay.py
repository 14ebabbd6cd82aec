"""A stored round replayed under another objective: nothing is sampled, and D_0 is the same D_0."""

import json

import numpy as np
import pytest

from reprise.rollout.store import RoundStore
from tests.system.kill_driver import SMALL, finished_work, kill_and_continue, timeless

SAMPLED = {"name": "dpo", "gamma": 0.1, "reference": "initial", "labels": "sampled"}
OBJECTIVES = {
    "dpo": SAMPLED,
    "pdfr": {"name": "pdfr", "gamma": 0.1, "reference": "initial", "beta": 2.0},
    "rebel": {"name": "rebel", "gamma": 0.1, "reference": "previous"},
    "rdrc": {"name": "rdrc", "gamma": 0.1, "reference": "previous", "gamma_c": 0.05},
}
SETTINGS = {**SMALL, "evaluation__prompts": 6}


@pytest.fixture(scope="module")
def run(running, neox_lab, tmp_path_factory):
    """(experiment, changes) -> directory of the finished run, and its events."""
    folder = tmp_path_factory.mktemp("replay")

    def run(name, experiment, **changes):
        config, out = folder / f"{name}.json", folder / name
        config.write_text(json.dumps(neox_lab.config(experiment, **{**SETTINGS, **changes})))
        if out.exists():
            return out, []
        result = running.run(config, out)
        assert result.status == 0, result.said
        return out, result.events[0]

    return run


@pytest.fixture(scope="module")
def original(run):
    """On-policy, with sampled labels."""
    return run("original", "alignment.on_policy", objective=SAMPLED)[0]


def summary(out):
    return json.loads((out / "summary.json").read_text())


def bytes_of(out, name):
    return (out / "checkpoints" / name / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_replay_generates_nothing_and_leaves_the_original_alone(name, run, original):
    before = finished_work(original)
    out, events = run(
        f"replay-{name}",
        "alignment.offline",
        objective=OBJECTIVES[name],
        replay=str(original),
    )
    assert finished_work(original) == before
    assert not (out / "rounds").exists()
    # Three policies are measured on six prompts each, one shard each; nothing else is sampled.
    assert sum(event.startswith("complete#") for event in events) == 2 * 3
    assert sum(event.startswith("RoundWriter.write#") for event in events) == 2 * 3
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["gamma"] for r in rounds if "optimizer_steps" in r] == [0.1, 0.1]
    assert summary(out)["objective"] == name
    moved = {r["round"]: r["kl_to_initial"] for r in rounds if "kl_to_initial" in r}
    assert moved[0] == 0 and moved[1] != 0 and moved[2] != moved[1]


def test_labels_drawn_on_replay_are_those_of_the_original(run, original):
    replayed, _ = run("replay-dpo", "alignment.offline", objective=SAMPLED, replay=str(original))
    # Round 1 trains on the same pairs with the same labels in the same order: the same bits.
    assert bytes_of(replayed, "round-00001") == bytes_of(original, "round-00001")
    # Round 2 of the original has fresh data.
    assert bytes_of(replayed, "round-00002") != bytes_of(original, "round-00002")
    # And the labels do matter: ranked ones give another policy.
    ranked = {**SAMPLED, "labels": "ranked"}
    other, _ = run("replay-ranked", "alignment.offline", objective=ranked, replay=str(original))
    assert bytes_of(other, "round-00001") != bytes_of(original, "round-00001")


def test_an_offline_run_that_samples_gives_the_same_data_and_the_same_result(run, original):
    sampling, _ = run("sampling", "alignment.offline", objective=SAMPLED)
    replayed, _ = run("replay-dpo", "alignment.offline", objective=SAMPLED, replay=str(original))
    ours, theirs = (RoundStore(out / "rounds").read(0).data for out in (sampling, original))
    np.testing.assert_array_equal(ours.prompt_index, theirs.prompt_index)
    np.testing.assert_array_equal(ours.rewards, theirs.rewards)
    np.testing.assert_array_equal(ours.label_uniform, theirs.label_uniform)
    np.testing.assert_array_equal(ours.policy_logprobs, theirs.policy_logprobs)
    for a, b in zip(ours.completion_ids, theirs.completion_ids, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert RoundStore(sampling / "rounds").rounds() == [0]
    assert summary(sampling)["weights_sha256"] == summary(replayed)["weights_sha256"]
    assert timeless(summary(sampling)["rounds"]) == timeless(summary(replayed)["rounds"])


def test_a_killed_replay_ends_the_same(run, running, original, tmp_path):
    reference, _ = run(
        "replay-rdrc", "alignment.offline", objective=OBJECTIVES["rdrc"], replay=str(original)
    )
    kills = ["AdamW.step#2:after", "mark_complete#3:before"]
    config = reference.parent / "replay-rdrc.json"
    assert kill_and_continue(running, config, tmp_path / "run", reference, kills) == []


def test_a_round_of_another_policy_is_refused(running, neox_lab, original, tmp_path):
    config = tmp_path / "config.json"
    changes = {"replay": str(original), "replay_round": 1, **SETTINGS}
    config.write_text(json.dumps(neox_lab.config("alignment.offline", **changes)))
    result = running.run(config, tmp_path / "run")
    assert result.status == 2
    assert "replay_round=1: drawn by a policy with weights" in result.said
    assert not (tmp_path / "run/evaluations").exists()

    # The policy that drew it is the one saved after round 1.
    changes["policy"] = str(original / "checkpoints/round-00001")
    config.write_text(json.dumps(neox_lab.config("alignment.offline", **changes)))
    result = running.run(config, tmp_path / "run")
    assert result.status == 0, result.said
