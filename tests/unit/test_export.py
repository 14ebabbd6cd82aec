"""Preferences for other trainers: the text, the scores, the ties; read back by the real readers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import load_dataset, load_from_disk
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from reprise.rollout.export import export_preferences, preference_rows
from reprise.rollout.types import Completions

TEXTS = ["Return the name.", "Set é value — now", "<|user|>hi<|assistant|>"]


@pytest.fixture(scope="module", params=["with BOS", "without BOS"])
def tokenizer(request):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    if request.param == "with BOS":
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def completions(tokenizer, prompts, samples, rewards) -> Completions:
    """`samples` are texts; one that ends in <eos> is terminated."""

    def ids(text: str, special: bool) -> np.ndarray:
        return np.array(tokenizer(text, add_special_tokens=special).input_ids, dtype=np.int32)

    shape = np.shape(rewards)
    return Completions(
        prompt_index=np.arange(len(prompts)),
        prompt_ids=[ids(prompt, True) for prompt in prompts],
        completion_ids=[[ids(text, False) for text in row] for row in samples],
        terminated=np.array([[text.endswith("<eos>") for text in row] for row in samples]),
        rewards=np.array(rewards, dtype=np.float32),
        policy_logprobs=-np.ones(shape, dtype=np.float32),
        reference_logprobs=-np.ones(shape, dtype=np.float32),
        label_uniform=np.zeros(len(prompts)),
    )


@pytest.fixture
def round_of_three(tokenizer):
    return completions(
        tokenizer,
        TEXTS,
        [
            [" good.<eos>", " bad.<eos>", " middling<eos>"],
            [" tie", " tie<eos>", " tie too"],
            [" worst, unfinished", " no<eos>", " best — é<eos>"],
        ],
        [[0.5, -1.25, 0.1], [2.0, 2.0, 2.0], [-3.0, 0.0, 7.0]],
    )


WANTED = [
    {
        "prompt": TEXTS[0],
        "chosen": " good.",
        "rejected": " bad.",
        "score_chosen": 0.5,
        "score_rejected": -1.25,
    },
    {
        "prompt": TEXTS[2],
        "chosen": " best — é",
        "rejected": " worst, unfinished",
        "score_chosen": 7.0,
        "score_rejected": -3.0,
    },
]


def test_best_against_worst_and_ties_are_counted(tokenizer, round_of_three):
    assert preference_rows(round_of_three, tokenizer) == (WANTED, 1)


def test_text_tokenizes_to_the_stored_ids(tokenizer, round_of_three):
    rows, _ = preference_rows(round_of_three, tokenizer)
    assert tokenizer(rows[1]["prompt"]).input_ids == round_of_three.prompt_ids[2].tolist()
    chosen = tokenizer(rows[1]["chosen"] + "<eos>", add_special_tokens=False).input_ids
    assert chosen == round_of_three.completion_ids[2][2].tolist()


def test_a_final_eos_goes_only_if_the_model_ended_there(tokenizer):
    # Cut by the length limit right after a token that happens to be EOS-like text: kept.
    data = completions(tokenizer, [TEXTS[0]], [[" a<|user|>", " b<eos>"]], [[1.0, 0.0]])
    rows, _ = preference_rows(data, tokenizer)
    assert (rows[0]["chosen"], rows[0]["rejected"]) == (" a<|user|>", " b")


def test_datasets_reads_the_folder(tokenizer, round_of_three, tmp_path):
    folder = tmp_path / "out" / "preferences"
    summary = export_preferences([round_of_three, round_of_three], tokenizer, folder)
    assert summary == {"preferences": 4, "ties": 2}
    assert load_from_disk(str(folder)).to_list() == WANTED + WANTED
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preferences"]


def test_datasets_reads_the_lines(tokenizer, round_of_three, tmp_path):
    file = tmp_path / "new" / "preferences.jsonl"
    assert export_preferences([round_of_three], tokenizer, file) == {"preferences": 2, "ties": 1}
    assert [json.loads(line) for line in file.read_text().splitlines()] == WANTED
    read = load_dataset("json", data_files=str(file), cache_dir=str(tmp_path / "cache"))
    assert read["train"].to_list() == WANTED


def test_what_cannot_be_exported_is_refused(tokenizer, round_of_three, tmp_path):
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=r"there.jsonl: exists; export elsewhere"):
        export_preferences([round_of_three], tokenizer, tmp_path / "there.jsonl")
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    with pytest.raises(ValueError, match=r"nothing to export: all 1 prompts tied"):
        export_preferences([round_of_three.take([1])], tokenizer, tmp_path / "ties.jsonl")
    single = completions(tokenizer, [TEXTS[0]], [[" a"]], [[1.0]])
    with pytest.raises(ValueError, match=r"samples_per_prompt: 1; a preference needs at least 2"):
        export_preferences([single], tokenizer, tmp_path / "single.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]
