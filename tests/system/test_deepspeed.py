"""ZeRO-2 and ZeRO-3 on CPU: the policies that plain training makes."""

import importlib.util
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

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


@pytest.mark.parametrize("stage", [2, 3])
def test_one_process_trains_as_without_deepspeed(stage, running, llama_lab, one, tmp_path):
    config = tmp_path / "config.json"
    asked = {"processes": 1, "strategy": f"zero{stage}"}
    config.write_text(json.dumps(llama_lab.config(**SETTINGS, parallelism=asked)))
    environment = environment_of(f"deepspeed_zero{stage}.yaml")
    result = running.run(config, tmp_path / "run", environment=environment, shim=True)
    assert result.status == 0, result.said
    ours, theirs = policies(tmp_path / "run"), policies(one)
    assert set(ours) == set(theirs) == {"round-00001", "round-00002"}
    for name, weights in theirs.items():
        for key, tensor in weights.items():
            np.testing.assert_allclose(ours[name][key], tensor, atol=1e-5, rtol=0, err_msg=key)
