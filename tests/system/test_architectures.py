"""Saving and reading a policy back changes nothing: one process and one for each phase end alike.

Policies of six kinds, with and without a PAD token in their config, where PAD is a token that
occurs in the text: an embedding that takes it for padding would not learn it.
"""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

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
        vocab_size=len(tokenizer),
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


@pytest.mark.parametrize("pad", [False, True], ids=["no-pad-id", "pad-id"])
@pytest.mark.parametrize("kind", SIZES)
def test_a_policy_read_back_trains_as_the_one_in_memory(running, llama_lab, tmp_path, kind, pad):
    settings = llama_lab.config(
        rounds=3, objective={"name": "rdrc", "gamma": 0.1, "reference": "previous", "gamma_c": 0.1}
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
