"""Models are found, made, identified and loaded strictly; torn checkpoints are not resumed."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from reprise.alignment import models
from reprise.alignment.config import FromScratch
from reprise.alignment.training import checkpoints

SHAPE = {"layers": 2, "width": 16, "heads": 2, "feedforward": 32, "vocabulary": 300}
ARCHITECTURES = ["gpt_neox", "llama"]


@pytest.fixture(scope="module")
def tokenizer():
    return models.train_tokenizer([" get the title of a page."] * 50, 300)


def make(tokenizer, architecture, seed=0, **changes):
    shape = FromScratch(architecture=architecture, **{**SHAPE, **changes})
    return models.new_policy(shape, tokenizer, seed)


def drop_weight(folder: Path, ending: str) -> str:
    """Remove one tensor from a saved model; returns its name."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    [name] = [name for name in tensors if name.endswith(ending)]
    del tensors[name]
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    return name


def test_tokenizer_has_distinct_ends_and_returns_every_byte(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    for text in (" get the title.", "naïve \u2014 tab\t and\nline", "<a & b>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.bos_token_id is None
    # " get the title" was seen often enough to be three tokens
    assert len(tokenizer(" get the title")["input_ids"]) == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_policy_comes_back_bit_for_bit(tokenizer, architecture, tied, tmp_path):
    policy = make(tokenizer, architecture, tie_embeddings=tied)
    policy.save_pretrained(tmp_path)
    wanted = models.weights_sha256(policy.state_dict())
    assert models.weights_sha256(models.load_policy(str(tmp_path)).state_dict()) == wanted
    other = make(tokenizer, architecture, seed=1, tie_embeddings=tied)
    assert models.weights_sha256(other.state_dict()) != wanted
    models.load_weights_strictly(other, tmp_path)
    assert models.weights_sha256(other.state_dict()) == wanted


def test_gpt_neox_is_saved_under_another_name_for_its_head(tokenizer, tmp_path):
    """The trap that strict loading is for: if this changes, the tests above test less."""
    policy = make(tokenizer, "gpt_neox")
    policy.save_pretrained(tmp_path)
    saved = set(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert "embed_out.weight" in saved and "lm_head.weight" not in saved
    assert "lm_head.weight" in policy.state_dict()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_missing_weight_is_an_error_not_a_fresh_weight(tokenizer, architecture, tmp_path):
    policy = make(tokenizer, architecture)
    policy.save_pretrained(tmp_path)
    before = models.weights_sha256(policy.state_dict())
    drop_weight(tmp_path, "embed_out.weight" if architecture == "gpt_neox" else "lm_head.weight")
    with pytest.raises(ValueError, match=r"missing .*lm_head\.weight"):
        models.load_policy(str(tmp_path))
    with pytest.raises(ValueError, match=r"missing .*lm_head\.weight"):
        models.load_weights_strictly(policy, tmp_path)
    assert models.weights_sha256(policy.state_dict()) == before


def test_a_weight_left_over_is_an_error(tokenizer, tmp_path):
    make(tokenizer, "llama", layers=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layers\.2"):
        models.load_weights_strictly(make(tokenizer, "llama", layers=2), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"unexpected .*layers\.2"):
        models.load_policy(str(tmp_path))


def test_hash_sees_name_dtype_shape_and_value():
    weight = torch.arange(4, dtype=torch.float32)
    wanted = models.weights_sha256({"a": weight, "b": weight})
    assert models.weights_sha256({"b": weight.clone(), "a": weight}) == wanted
    for changed in (
        {"a": weight, "c": weight},
        {"a": weight, "b": weight.view(2, 2)},
        {"a": weight, "b": weight.view(torch.int32)},
        {"a": weight, "b": weight + torch.tensor([0.0, 0.0, 0.0, 1e-6])},
    ):
        assert models.weights_sha256(changed) != wanted
    assert models.weights_sha256({"a": torch.tensor(1.0, dtype=torch.bfloat16)})


def test_reward_model_starts_with_the_body_of_the_policy_and_reads_the_last_real_token(tokenizer):
    policy = make(tokenizer, "gpt_neox")
    reward = models.reward_model_from(policy, seed=3)
    body = models.weights_sha256(policy.base_model.state_dict())
    assert models.weights_sha256(reward.base_model.state_dict()) == body
    torch.nn.init.normal_(reward.score.weight)
    ids = torch.tensor([[5, 6, 7, 1, 0, 0], [5, 6, 7, 0, 0, 0]])
    mask = (ids != 0).long()
    scores = reward(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    alone = [reward(input_ids=row[row != 0][None]).logits.item() for row in ids]
    assert scores.tolist() == pytest.approx(alone, abs=1e-5)
    assert abs(alone[0] - alone[1]) > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_extra_layers_change_nothing_at_first_and_are_trained(tokenizer, architecture, tmp_path):
    policy = make(tokenizer, architecture)
    ids = torch.arange(2, 12)[None]
    plain, deeper = (models.reward_model_from(policy, 3, extra) for extra in (0, 2))
    assert len(deeper.base_model.layers) == len(plain.base_model.layers) + 2
    states = [model.base_model(ids).last_hidden_state for model in (plain, deeper)]
    torch.testing.assert_close(states[0], states[1])
    torch.nn.init.normal_(deeper.score.weight)
    deeper(input_ids=ids).logits.sum().backward()
    top = deeper.base_model.layers[-1]
    assert sum(p.grad.abs().sum().item() for p in top.parameters()) > 0
    deeper.save_pretrained(tmp_path)
    assert models.load_reward_model(str(tmp_path)).config.num_hidden_layers == 4


def test_reward_model_with_two_outputs_is_refused(tokenizer, tmp_path):
    reward = models.reward_model_from(make(tokenizer, "llama"), seed=3)
    reward.save_pretrained(tmp_path)
    assert models.load_reward_model(str(tmp_path)).config.num_labels == 1
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "bad", "1": "good"}
    config["label2id"] = {"bad": 0, "good": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has 2 outputs"):
        models.load_reward_model(str(tmp_path))


def test_models_are_found_in_runs_and_folders_or_refused_with_the_reason(
    tokenizer, tmp_path, monkeypatch
):
    final = tmp_path / "run" / "checkpoints" / "final"
    make(tokenizer, "llama").save_pretrained(final)
    assert models.resolve_model(str(tmp_path / "run")) == str(final)
    assert models.resolve_model(str(final)) == str(final)
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match="reprise resume"):
        models.resolve_model(str(tmp_path / "unfinished"))
    for path in ("./nowhere", str(tmp_path / "gone"), "a/b/c"):
        with pytest.raises(ValueError, match=r"policy=.*check the path"):
            models.resolve_model(path, "policy")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        models.resolve_model("nobody/nothing-at-all")


def test_only_whole_checkpoints_are_resumed(tmp_path):
    assert checkpoints.last_complete_checkpoint(tmp_path) is None
    for step in (5, 10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * step)
        checkpoints.mark_complete(folder)
    assert checkpoints.last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
    (tmp_path / "checkpoint-20" / "weights").write_bytes(b"x" * 19)  # torn
    assert checkpoints.last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10" / checkpoints.MARKER).unlink()  # killed before its marker
    assert checkpoints.last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    shutil.rmtree(tmp_path / "checkpoint-5")
    assert checkpoints.last_complete_checkpoint(tmp_path) is None
