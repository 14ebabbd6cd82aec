"""Policies of many architectures: read back they train alike, and each goes through all trainings.

One process and one for each phase end alike, also where the config names no PAD and PAD is a token
that occurs in the text: an embedding that takes it for padding would not learn it.
"""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from reprise.alignment import models
from reprise.launch.run import execute
from tests.system.kill_driver import NEXT_PHASE

SIZES = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 32},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 32},
    "gemma2": {"num_key_value_heads": 2, "intermediate_size": 32, "head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64},
    "gpt_neox": {"intermediate_size": 32},
}
COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def policy(lab, kind, pad, folder):
    """A policy whose tokenizer pads with what every prompt ends in."""
    tokenizer = AutoTokenizer.from_pretrained(lab.policy)
    tokenizer.pad_token = ":"
    settings = SIZES[kind] if kind == "gpt2" else {**COMMON, **SIZES[kind]}
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer) + 9,  # Qwen2 adds a token of its own to any tokenizer
        pad_token_id=tokenizer.pad_token_id if pad else None,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **settings,
    )
    for name in ("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "pad"), [*((kind, False) for kind in SIZES), ("llama", True)])
def test_a_policy_read_back_trains_as_the_one_in_memory(running, llama_lab, tmp_path, kind, pad):
    settings = llama_lab.config(
        rounds=2, objective={"name": "rdrc", "gamma": 0.1, "reference": "previous", "gamma_c": 0.1}
    )
    settings["policy"] = str(policy(llama_lab, kind, pad, tmp_path / "policy"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings))
    whole = running.run(file, tmp_path / "whole")
    assert whole.status == 0, whole.said
    while True:
        phase = running.run(file, tmp_path / "staged", staged=True)
        assert phase.status in (0, NEXT_PHASE), phase.said
        if phase.status == 0:
            break
    hashes = [
        json.loads((tmp_path / name / "summary.json").read_text())["weights_sha256"]
        for name in ("whole", "staged")
    ]
    assert hashes[0] == hashes[1]


# -- every architecture through every kind of training ---------------------------------------------

MORE = {
    "bloom": {"n_layer": 2, "n_head": 2, "hidden_size": 16},
    "falcon": {**COMMON, "alibi": False, "max_position_embeddings": 64},
    "qwen3": {**COMMON, "num_key_value_heads": 2, "intermediate_size": 32, "head_dim": 8},
    "mistral": {**COMMON, "num_key_value_heads": 2, "intermediate_size": 32},
    "gemma3_text": {**COMMON, "num_key_value_heads": 2, "intermediate_size": 32, "head_dim": 8},
    "phi": {**COMMON, "intermediate_size": 32},
}
TRAIN = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_strategy": "no"}


def small(kind, lab, folder):
    """A tiny policy of an architecture, with its own defaults for dropout and padding."""
    tokenizer = AutoTokenizer.from_pretrained(lab.policy)
    settings = MORE.get(kind) or (SIZES[kind] if kind == "gpt2" else {**COMMON, **SIZES[kind]})
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": None, "bos_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer) + 9, **ids, **settings)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences")
    words = "get set read write file name value list".split()
    for split in ("train", "test"):
        rows = [
            {"prompt": f"{a} {b}:", "chosen": f" {a} {b}.", "rejected": f" {b}"}
            for a in words
            for b in words[:3]
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return folder


@pytest.mark.parametrize("kind", [*SIZES, *MORE])
def test_an_architecture_goes_through_all_of_it(llama_lab, preferences, tmp_path, kind):
    start = small(kind, llama_lab, tmp_path / "start")
    common = {"data": {"name": str(preferences)}, "heldout": 4, "batch_size": 8, "train": TRAIN}
    common |= {"max_prompt_tokens": 24, "max_completion_tokens": 8, "attention": "eager"}

    def made(name, **config):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(config))
        execute(file, out=tmp_path / name)
        return json.loads((tmp_path / name / "summary.json").read_text())

    sft = made("sft", experiment="alignment.sft", model=str(start), **common)
    reward = made(
        "reward", experiment="alignment.reward_training", model=str(tmp_path / "sft"), **common
    )
    assert sft["parameters"] > 0 and 0 <= reward["accuracy"] <= 1
    policy = {"policy": str(tmp_path / "sft"), "reward": {"model": str(tmp_path / "reward")}}
    policy["data"] = {"name": str(preferences)}
    settings = llama_lab.config(rounds=1, evaluation={"prompts": 4, "bootstrap": 100}) | policy
    full = made("full", **settings)
    adapted = made("adapted", **settings, lora={"rank": 2})
    assert full["weights_sha256"] != sft["weights_sha256"] != adapted["weights_sha256"]
    for name in ("full", "adapted"):
        read = AutoModelForCausalLM.from_pretrained(tmp_path / name / "checkpoints/final")
        found = models.weights_sha256(read.state_dict())
        assert found == {"full": full, "adapted": adapted}[name]["weights_sha256"]
