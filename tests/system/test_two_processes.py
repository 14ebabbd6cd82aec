"""Two gloo processes make what one makes: `accelerate launch` with the shipped configuration."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from reprise.rollout.store import RoundStore
from tests.system.commands import accelerate
from tests.system.kill_driver import kill_and_continue, timeless, unlike

SETTINGS = {
    "rounds": 2,
    "prompts_per_round": 12,
    "shard_size": 3,
    "train__save_strategy": "steps",
    "train__save_steps": 1,
    "train__logging_steps": 1,
}


@pytest.fixture(scope="module")
def config(llama_lab, tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "config.json"
    path.write_text(json.dumps(llama_lab.config(**SETTINGS)))
    return path


@pytest.fixture(scope="module")
def one(running, config):
    """A run by one process: two micro-batches an optimizer step."""
    result = running.run(config, config.parent / "one")
    assert result.status == 0, result.said
    return config.parent / "one"


@pytest.fixture(scope="module")
def two(config):
    """A run by two processes: one micro-batch each an optimizer step; and what they said."""
    out = config.parent / "two"
    done = accelerate("cpu.yaml", "-m", "reprise.launch.run", config, "--out", out, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, done.stderr


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def policies(out):
    return {
        file.parent.name: load_file(file) for file in out.glob("checkpoints/round-*/*.safetensors")
    }


def test_they_make_the_policies_that_one_makes(one, two):
    ours, theirs = policies(two[0]), policies(one)
    assert set(ours) == set(theirs) == {"round-00001", "round-00002"}
    for name, weights in theirs.items():
        for key, tensor in weights.items():
            np.testing.assert_allclose(ours[name][key], tensor, atol=1e-5, rtol=0, err_msg=key)
    initial = load_file(
        json.loads((one.parent / "config.json").read_text())["policy"] + "/model.safetensors"
    )
    moved = max(np.abs(theirs["round-00002"][key] - initial[key]).max() for key in initial)
    assert moved > 1e-3  # a hundred times the tolerance


def test_they_store_the_same_prompts_and_completions(one, two):
    for folder in ("rounds", "evaluations"):
        ours, theirs = RoundStore(two[0] / folder), RoundStore(one / folder)
        assert ours.rounds() == theirs.rounds() != []
        for index in theirs.rounds():
            a, b = ours.read(index).data, theirs.read(index).data
            np.testing.assert_array_equal(a.prompt_index, b.prompt_index)
            for x, y in zip(a.completion_ids, b.completion_ids, strict=True):
                for first, second in zip(x, y, strict=True):
                    np.testing.assert_array_equal(first, second)
            np.testing.assert_allclose(a.rewards, b.rewards, atol=1e-5)
            np.testing.assert_allclose(a.policy_logprobs, b.policy_logprobs, atol=1e-4)
            np.testing.assert_array_equal(a.label_uniform, b.label_uniform)


def test_metrics_and_summary_are_written_once(one, two):
    ours, theirs = records(two[0]), records(one)
    assert [(r["round"], r.get("step")) for r in ours] == [
        (r["round"], r.get("step")) for r in theirs
    ]
    for a, b in zip(timeless(ours), timeless(theirs), strict=True):
        assert a.keys() == b.keys()
        if "step" in a:
            assert a == pytest.approx(b, abs=1e-4)
    assert json.loads((two[0] / "provenance.json").read_text())["world_size"] == 2
    assert two[1].count("starting alignment.on_policy") == 1
    assert two[1].count("finished alignment.on_policy") == 1
    summary = json.loads((two[0] / "summary.json").read_text())
    assert [entry["round"] for entry in summary["rounds"]] == [0, 1, 2]


def test_each_writes_its_own_shards_and_the_first_the_rest(running, config, two, tmp_path):
    result = running.run(config, tmp_path / "run", world=2)
    assert result.status == 0, result.said
    assert unlike(tmp_path / "run", two[0]) == []
    written = [
        {event.split("#")[0] for event in events if event.endswith(":after")}
        for events in result.events
    ]
    shards = [sum(e.startswith("RoundWriter.write#") for e in events) for events in result.events]
    # Two rounds of four shards, three evaluations of two; an event before and one after each.
    assert shards == [2 * (2 * 2 + 3), 2 * (2 * 2 + 3)]
    alone = {"RoundWriter.finish", "PreTrainedModel.save_pretrained", "link"}
    assert alone <= written[0] and not alone & written[1]


@pytest.mark.parametrize(
    "kill",
    [
        "RoundWriter.write#2:before",  # the other one's shard may be there
        "AdamW.step#2:after",
        "RoundTrainer._save_checkpoint#4:before",
        "RoundTrainer._save_checkpoint#6:after",
        0.7,
    ],
)
def test_both_killed_then_continued(kill, running, config, two, tmp_path):
    assert kill_and_continue(running, config, tmp_path / "run", two[0], [kill], world=2) == []
