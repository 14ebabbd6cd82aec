"""A LoRA run killed anywhere ends with the adapter and the merged model of an unbroken one."""

import json

import pytest

from tests.system.kill_driver import SMALL, kill_and_continue

KILLS = [
    "RoundWriter.write#1:after",
    "RoundTrainer.training_step#2:before",
    "AdamW.step#1:after",
    "mark_complete#1:before",  # the adapter is saved, its checkpoint not yet whole
    "RoundTrainer._save_checkpoint#1:after",
    "save#1:half",  # torn state of the optimizer
    "RoundTrainer._save_checkpoint#2:after",
    "PreTrainedTokenizerBase.save_pretrained#1:after",  # pi_1 written, not yet renamed
    "RoundTrainer.training_step#3:before",  # round 2, from the saved adapter
    "PreTrainedModel.save_pretrained#1:after",  # the sum, not yet renamed
    "link#1:after",
    "RunDir.finish#1:before",
]


@pytest.mark.parametrize("lab", ["neox_lab", "llama_lab"])
def test_killed_in_every_phase(running, request, tmp_path, lab):
    lora = {"rank": 4, "alpha": 8}
    changes = {**SMALL, "lora": lora, "logits": "chunked", "bucket_by_length": True}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(request.getfixturevalue(lab).config(**changes)))
    reference = tmp_path / "reference"
    result = running.run(config, reference)
    assert result.status == 0, result.said
    kills = KILLS if lab == "neox_lab" else KILLS[1::3]
    assert kill_and_continue(running, config, tmp_path / "run", reference, kills) == []
    adapter = reference / "checkpoints" / "adapter" / "adapter_model.safetensors"
    assert adapter.is_file() and (reference / "checkpoints" / "final").is_dir()
