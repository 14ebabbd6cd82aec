"""ZeRO-2 and ZeRO-3 on CPU, in one and two processes: the policies that plain training makes."""

import importlib.util
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.system.kill_driver import kill_and_continue
from tests.system.sharding_on_cpu import environment_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
SETTINGS = {"rounds": 2, "prompts_per_round": 8, "shard_size": 4}


def policies(out):
    return {
        file.parent.name: load_file(file) for file in out.glob("checkpoints/round-*/*.safetensors")
    }


@pytest.fixture(scope="module")
def one(running, llama_lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    (folder / "config.json").write_text(json.dumps(llama_lab.config(**SETTINGS)))
    result = running.run(folder / "config.json", folder / "one")
    assert result.status == 0, result.said
    return folder / "one"


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [2, 3])
def test_it_trains_as_one_process_without_deepspeed(
    stage, world, running, llama_lab, one, tmp_path
):
    config = tmp_path / "config.json"
    asked = {"processes": world, "strategy": f"zero{stage}"}
    config.write_text(json.dumps(llama_lab.config(**SETTINGS, parallelism=asked)))
    environment = environment_of(f"deepspeed_zero{stage}.yaml")
    result = running.run(config, tmp_path / "run", world=world, environment=environment, shim=True)
    assert result.status == 0, result.said
    ours, theirs = policies(tmp_path / "run"), policies(one)
    assert set(ours) == set(theirs) == {"round-00001", "round-00002"}
    for name, weights in theirs.items():
        for key, tensor in weights.items():
            np.testing.assert_allclose(ours[name][key], tensor, atol=1e-5, rtol=0, err_msg=key)


@pytest.mark.parametrize("stage", [2, 3])
def test_killed_within_a_round_it_continues_to_the_same_bits(stage, running, llama_lab, tmp_path):
    config = tmp_path / "config.json"
    saving = {"train__save_strategy": "steps", "train__save_steps": 1}
    config.write_text(json.dumps(llama_lab.config(**{**SETTINGS, "rounds": 1}, **saving)))
    how = {"environment": environment_of(f"deepspeed_zero{stage}.yaml"), "shim": True, "world": 2}
    result = running.run(config, tmp_path / "whole", **how)
    assert result.status == 0, result.said
    kill = "RoundTrainer._save_checkpoint#1:after"
    problems = kill_and_continue(
        running, config, tmp_path / "run", tmp_path / "whole", [kill], **how
    )
    assert problems == []
