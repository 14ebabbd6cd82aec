"""FSDP2 in two gloo processes: parameters in shards, and the policies that one process makes."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.system.commands import accelerate
from tests.system.kill_driver import kill_and_continue
from tests.system.sharding_on_cpu import environment_of

SETTINGS = {
    "rounds": 2,
    "prompts_per_round": 12,
    "shard_size": 3,
    "train__save_strategy": "steps",
    "train__save_steps": 1,
}
ASKED = {"processes": 2, "strategy": "fsdp2"}


@pytest.fixture(scope="module")
def folder(llama_lab, tmp_path_factory):
    path = tmp_path_factory.mktemp("fsdp2")
    (path / "one.json").write_text(json.dumps(llama_lab.config(**SETTINGS)))
    asked = llama_lab.config(**SETTINGS, parallelism=ASKED)
    (path / "two.json").write_text(json.dumps(asked))
    return path


@pytest.fixture(scope="module")
def environment():
    return environment_of("fsdp2.yaml")


@pytest.fixture(scope="module")
def two(folder):
    """A run of two processes under the shipped launcher file."""
    done = accelerate(
        *("fsdp2.yaml", "--num_processes", "2"),
        *("tests/system/sharding_on_cpu.py", folder / "two.json", "--out", folder / "two"),
    )
    assert done.returncode == 0, done.stderr
    return folder / "two"


def policies(out):
    return {
        file.parent.name: load_file(file) for file in out.glob("checkpoints/round-*/*.safetensors")
    }


def test_they_make_the_policies_that_one_makes(running, folder, two):
    result = running.run(folder / "one.json", folder / "one")
    assert result.status == 0, result.said
    ours, theirs = policies(two), policies(folder / "one")
    assert set(ours) == set(theirs) == {"round-00001", "round-00002"}
    for name, weights in theirs.items():
        assert set(ours[name]) == set(weights)
        for key, tensor in weights.items():
            np.testing.assert_allclose(ours[name][key], tensor, atol=1e-5, rtol=0, err_msg=key)
    moved = max(
        np.abs(theirs["round-00002"][key] - theirs["round-00001"][key]).max()
        for key in theirs["round-00001"]
    )
    assert moved > 1e-3  # a hundred times the tolerance


@pytest.mark.parametrize(
    "changes",
    [{"logits": "chunked"}, {"lora": {"rank": 4, "alpha": 8}, "train__learning_rate": 3e-2}],
    ids=["chunked", "lora"],
)
def test_settings_that_touch_the_model(changes, running, llama_lab, environment, tmp_path):
    # The output layer answers with log-probabilities; the adapter lies on a base in shards.
    made = []
    for world in (1, 2):
        asked = {"parallelism": ASKED} if world == 2 else {}
        config, out = tmp_path / f"{world}.json", tmp_path / str(world)
        config.write_text(json.dumps(llama_lab.config(**SETTINGS, **changes, **asked)))
        how = {"environment": environment, "shim": True} if world == 2 else {}
        result = running.run(config, out, world=world, **how)
        assert result.status == 0, result.said
        made.append(policies(out))
    assert made[0].keys() == made[1].keys() != set()
    for name, weights in made[0].items():
        for key, tensor in weights.items():
            np.testing.assert_allclose(made[1][name][key], tensor, atol=1e-5, rtol=0, err_msg=key)


@pytest.mark.parametrize("kill", ["AdamW.step#2:after", "RoundTrainer._save_checkpoint#5:after"])
def test_killed_then_continued_to_the_same_bits(kill, running, folder, two, environment, tmp_path):
    how = {"world": 2, "environment": environment, "shim": True}
    problems = kill_and_continue(running, folder / "two.json", tmp_path / "run", two, [kill], **how)
    assert problems == []


def test_a_checkpoint_holds_a_shard_of_each_process(running, folder, environment, tmp_path):
    result = running.run(
        folder / "two.json",
        tmp_path / "run",
        kill="RoundTrainer._save_checkpoint#1:after",
        world=2,
        environment=environment,
        shim=True,
    )
    assert result.status < 0, result.said
    [model] = tmp_path.glob("run/checkpoints/update-00001/checkpoint-1/pytorch_model_fsdp_*")
    sizes = [file.stat().st_size for file in sorted(model.glob("*.distcp"))]
    assert len(sizes) == 2
    assert max(sizes) < 0.75 * sum(sizes)


def test_plain_data_parallelism_in_its_place_is_refused(running, folder, environment, tmp_path):
    # Without the shim: what Accelerate does on CPU, without a word.
    for config in ("one.json", "two.json"):
        result = running.run(folder / config, tmp_path / "run", world=2, environment=environment)
        assert result.status == 2, result.said
        assert "strategy='fsdp2' was asked for, but Accelerate runs 'ddp'" in result.said
        assert [path.name for path in tmp_path.glob("run/*")] in ([], [".lock"])
