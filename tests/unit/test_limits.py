"""What a model cannot take is told at the start: token ids, positions; and no dropout stays on."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from reprise.alignment.adapters import attach, identity
from reprise.alignment.config import LoRA
from reprise.alignment.limits import check_length, check_tokenizer, without_dropout
from reprise.alignment.models import load_reward_model
from reprise.alignment.rewards.config import RewardTerm
from reprise.alignment.rewards.remote import check_scores
from reprise.alignment.rewards.reward import RewardModel
from reprise.alignment.text.data import tokenize_answers
from reprise.alignment.training.arguments import make_training_arguments
from reprise.launch.run import execute
from reprise.rollout.errors import BadInput
from reprise.rollout.generate import generate
from reprise.rollout.randomness import Streams
from reprise.rollout.requests import positions_of, rows_of
from reprise.rollout.run.settings import Sampling

COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def model(kind="llama", **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()


def llama(vocabulary, **settings):
    return model(vocab_size=vocabulary, intermediate_size=32, **COMMON, **settings)


@pytest.fixture(scope="module")
def tokenizer(llama_lab):
    return AutoTokenizer.from_pretrained(llama_lab.policy)


def test_tokens_without_a_row_are_refused(tokenizer):
    count = len(tokenizer)
    check_tokenizer(llama(count), tokenizer, "policy='p'")
    check_tokenizer(llama(count + 5), tokenizer, "policy='p'")
    with pytest.raises(BadInput, match=rf"policy='p'.* 2 tokens beyond the {count - 2} rows"):
        check_tokenizer(llama(count - 2), tokenizer, "policy='p'")


def test_a_pad_that_was_added_to_the_tokenizer_alone_is_named(llama_lab):
    tokenizer = AutoTokenizer.from_pretrained(llama_lab.policy)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    with pytest.raises(BadInput, match=r"'\[NEW\]' = \d+; PAD among them"):
        check_tokenizer(llama(rows), tokenizer, "policy='p'")


@pytest.mark.parametrize(
    ("kind", "settings", "positions"),
    [
        ("llama", {"max_position_embeddings": 77}, 77),
        ("gpt2", {"n_positions": 55}, 55),
        ("opt", {"max_position_embeddings": 44}, 44),
        ("bloom", {}, None),
        ("falcon", {"alibi": True}, None),
    ],
)
def test_positions_by_whatever_name(kind, settings, positions):
    assert positions_of(AutoConfig.for_model(kind, **settings)) == positions


def test_texts_beyond_the_positions_are_refused():
    small = llama(300, max_position_embeddings=32)
    check_length(small, 32, "model='m'", "cut them")
    with pytest.raises(BadInput, match="model='m' has 32 positions, and texts of up to 33 tokens"):
        check_length(small, 33, "model='m'", "cut them")


def test_ids_without_a_token_are_never_drawn():
    padded = llama(400)
    with torch.no_grad():
        padded.lm_head.weight[300:] = 10 * padded.lm_head.weight[:100].sign()
    settings = Sampling(samples_per_prompt=4, max_new_tokens=32, batch_size=64)
    keys = {"round_index": 0, "eos_ids": 1}
    free = generate(padded, [[4, 5]] * 8, settings, Streams(0), **keys)
    bound = generate(padded, [[4, 5]] * 8, settings, Streams(0), vocabulary=300, **keys)
    largest = [
        max(int(ids.max()) for row in drawn.completion_ids for ids in row)
        for drawn in (free, bound)
    ]
    assert largest[0] >= 300 > largest[1]


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama", "bloom"])
def test_dropout_is_off_whether_module_or_number(kind):
    settings = {"vocab_size": 300, "dropout": 0.3, "attention_dropout": 0.3, "hidden_dropout": 0.3}
    settings |= COMMON if kind != "gpt2" else {"n_embd": 16, "n_layer": 2, "n_head": 2}
    settings |= {"opt": {"word_embed_proj_dim": 16, "ffn_dim": 32}}.get(kind, {})
    made = without_dropout(model(kind, **settings)).train()
    ids = torch.arange(2, 30)[None]
    assert torch.equal(made(input_ids=ids).logits, made(input_ids=ids).logits)


def test_an_adapter_on_the_embedding_changes_the_identity_once_it_is_trained():
    adapted = attach(
        llama(300), LoRA(rank=2, target_modules=["embed_tokens"]), seed=0, checkpointing=False
    )
    assert rows_of(adapted) == 300
    assert identity(adapted) == identity(llama(300))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_embedding_A" in name:
                parameter.add_(0.1)
    assert identity(adapted) != identity(llama(300))


def test_eos_stands_once_at_the_end_of_an_answer(tokenizer):
    plain, closed = tokenize_answers([" get set", f" get set{tokenizer.eos_token}"], tokenizer, 16)[
        0
    ]
    assert plain == closed and plain.count(tokenizer.eos_token_id) == 1


def test_a_schedule_that_lacks_its_arguments_is_refused_at_the_start(tmp_path):
    def made(**train):
        return make_training_arguments(
            {"per_device_train_batch_size": 2, **train},
            batch_size=2,
            seed=0,
            folder=tmp_path,
            world=1,
            defaults={},
            length={"max_steps": 3},
        )

    with pytest.raises(BadInput, match=r"lr_scheduler_type='warmup_stable_decay'.*num_decay_steps"):
        made(lr_scheduler_type="warmup_stable_decay")
    made(lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": 2})
    assert np.isfinite(made(lr_scheduler_type="cosine").learning_rate)


def test_rewards_that_float32_cannot_tell_apart_are_refused():
    assert check_scores([1.0, 1.0], 2, "f") == [1.0, 1.0]  # equal as given: no fault of ours
    assert check_scores([1e8, 1e8 + 64], 2, "f") == [1e8, 1e8 + 64]
    with pytest.raises(BadInput, match="all equal in float32"):
        check_scores([1e8, 1e8 + 0.5], 2, "f")


def test_a_reward_model_with_another_template_reads_the_chat_through_its_own(llama_lab, tmp_path):
    policy = AutoTokenizer.from_pretrained(llama_lab.policy)
    policy.chat_template = "{% for m in messages %}{{ m['content'] }}:{% endfor %}"
    own = AutoTokenizer.from_pretrained(llama_lab.reward)
    own.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}:{% endfor %}"
    made = load_reward_model(str(llama_lab.reward))
    made.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    cpu = torch.device("cpu")
    model = RewardModel(RewardTerm(model=str(tmp_path)), 4, policy, "eager", cpu)
    prompt = np.array(policy("get set:")["input_ids"], np.int32)
    answer = np.array([*policy(" read")["input_ids"], policy.eos_token_id], np.int32)
    plain = model.input_ids(prompt, answer, True, None)
    assert plain.tolist() == [*prompt, *answer]
    chat = model.input_ids(prompt, answer, True, [{"role": "user", "content": "get set"}])
    assert own.decode(chat).startswith("user get set:assistant")


def test_pairs_that_are_equal_once_they_are_cut_are_told_or_refused(llama_lab, tmp_path, capsys):
    (tmp_path / "data").mkdir()

    def trained(rejected):
        rows = [{"prompt": "get:", "chosen": " set read a", "rejected": text} for text in rejected]
        for split in ("train", "test"):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / "data" / f"{split}.jsonl").write_text(lines)
        config = {
            **{"experiment": "alignment.reward_training", "model": str(llama_lab.policy)},
            **{"data": {"name": str(tmp_path / "data")}, "attention": "eager", "heldout": 2},
            **{"batch_size": 2, "max_completion_tokens": 2, "max_prompt_tokens": 16},
            "train": {"per_device_train_batch_size": 2, "save_strategy": "no"},
        }
        (tmp_path / "c.json").write_text(json.dumps(config))
        execute(tmp_path / "c.json", out=tmp_path / f"run-{len(set(rejected))}")

    with pytest.raises(BadInput, match="equal once they are cut at max_completion_tokens=2"):
        trained([" set read file"] * 4)
    trained([" set read file", " file", " name", " list"])
    assert "warning: 1 of 4 pairs are equal once they are cut" in capsys.readouterr().err
