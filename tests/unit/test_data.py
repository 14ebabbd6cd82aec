"""Data sets in every shape they come in; docstrings as they are read, cleaned and split."""

import json

import datasets
import pytest

from reprise.alignment import models
from reprise.alignment.config import Data
from reprise.alignment.text import docstrings
from reprise.alignment.text.data import (
    load_preferences,
    load_prompts,
    tokenize_answers,
    tokenize_prompts,
)

ROWS = [{"prompt": f"Q{n}?", "completion": f" A{n}."} for n in range(10)]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def tokenizer():
    return models.train_tokenizer(["question and answer " * 3] * 9, 300)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- local files -------------------------------------------------------------------------------


def test_every_kind_of_local_data_gives_the_same_rows(tmp_path):
    wanted = [{"prompt": row["prompt"], "reference": row["completion"]} for row in ROWS]
    made = datasets.Dataset.from_list(ROWS)
    made.to_parquet(tmp_path / "x.parquet")
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", ROWS)
    write(tmp_path / "folder" / "test.jsonl", ROWS[:3])
    names = [write(tmp_path / "x.jsonl", ROWS), tmp_path / "x.parquet", tmp_path / "saved"]
    for name in [*names, tmp_path / "splits", tmp_path / "folder"]:
        assert list(load_prompts(Data(name=str(name)))) == wanted, name
    assert len(load_prompts(Data(name=str(tmp_path / "folder")), "test")) == 3


def test_slices_and_limits(tmp_path):
    data = Data(name=write(tmp_path / "x.jsonl", ROWS), split="train[:80%]", max_examples=5)
    assert load_prompts(data)["prompt"][:] == [f"Q{n}?" for n in range(5)]
    assert load_prompts(data, "train[80%:]")["prompt"][:] == ["Q8?", "Q9?"]
    assert load_prompts(data, "train[2:4]")["prompt"][:] == ["Q2?", "Q3?"]
    with pytest.raises(ValueError, match="slice"):
        load_prompts(data, "train[nine]")
    with pytest.raises(ValueError, match="no rows"):
        load_prompts(data, "train[4:4]")


def test_what_is_not_there_is_named_and_quickly(tmp_path, offline):
    name = write(tmp_path / "x.jsonl", ROWS)
    cases = {
        "no split 'test'.*it has train": (Data(name=name), "test"),
        "no column 'answer'.*completion": (Data(name=name, reference_column="answer"), None),
        "no such file": (Data(name=str(tmp_path / "y.jsonl")), None),
        "HF_HUB_OFFLINE is set: .*hf download trl-lib/tldr": (Data(name="trl-lib/tldr"), None),
        "check the path": (Data(name="./nowhere"), None),
        "splits train and test": (Data(name="docstrings"), "validation"),
    }
    for message, (data, split) in cases.items():
        with pytest.raises(ValueError, match=message):
            load_prompts(data, split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"without \.json"):
        load_prompts(Data(name=str(tmp_path / "empty")))
    blank = write(tmp_path / "blank.jsonl", [*ROWS, {"prompt": " ", "completion": "x"}])
    with pytest.raises(ValueError, match="row 10 is empty"):
        load_prompts(Data(name=blank))


# --- conversations -----------------------------------------------------------------------------


def test_ultrafeedback_goes_through_the_chat_template_once(tmp_path, tokenizer):
    question = {"role": "user", "content": "Why?"}
    row = {
        "prompt": "Why?",
        "chosen": [question, {"role": "assistant", "content": "Because."}],
        "rejected": [question, {"role": "assistant", "content": "No."}],
    }
    data = Data(name=write(tmp_path / "u.jsonl", [row]))
    chat = models.train_tokenizer(["x"], 300)
    chat.chat_template = TEMPLATE
    [templated] = load_preferences(data, tokenizer=chat)
    assert templated["prompt"] == "<user>Why?<assistant>"
    assert (templated["chosen"], templated["rejected"]) == ("Because.", "No.")
    assert templated["messages"] == [question]
    [plain] = load_preferences(data, tokenizer=tokenizer)
    assert plain["prompt"].strip() == "Why?"
    [asked] = load_prompts(data, tokenizer=chat)
    assert asked["prompt"] == "<user>Why?<assistant>" and asked["reference"] == "Because."


def test_plain_prompts_stay_plain_even_with_a_template(tmp_path):
    chat = models.train_tokenizer(["x"], 300)
    chat.chat_template = TEMPLATE
    [row] = load_prompts(Data(name=write(tmp_path / "x.jsonl", ROWS[:1])), tokenizer=chat)
    assert row == {"prompt": "Q0?", "reference": " A0."}


# --- token ids ---------------------------------------------------------------------------------


def test_long_prompts_are_refused_cut_at_the_front_or_left_out(tokenizer):
    texts = ["question", "question and answer question and answer", "answer"]
    full, rows = tokenize_prompts(texts, tokenizer, 50)
    assert rows == [0, 1, 2] and [tokenizer.decode(ids) for ids in full] == texts
    limit = len(full[1]) - 2
    with pytest.raises(ValueError, match=f"prompt 1 has {limit + 2} tokens.*on_long_prompt"):
        tokenize_prompts(texts, tokenizer, limit)
    cut, rows = tokenize_prompts(texts, tokenizer, limit, "truncate")
    assert rows == [0, 1, 2] and cut[1] == full[1][2:]
    kept, rows = tokenize_prompts(texts, tokenizer, limit, "drop")
    assert rows == [0, 2] and kept == [full[0], full[2]]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        tokenize_prompts(["question", ""], tokenizer, 9)


def test_eos_is_there_exactly_if_the_answer_is_complete(tokenizer):
    whole = len(tokenizer(" answer")["input_ids"])
    eos = tokenizer.eos_token_id
    for limit, complete in ((whole + 1, True), (whole, False)):
        [ids], [ended] = tokenize_answers([" answer"], tokenizer, limit)
        assert ended is complete and (ids[-1] == eos) is complete and len(ids) <= limit


# --- docstrings ----------------------------------------------------------------------------------

SOURCE = b'''
class PageReader:
    """Reads pages. Slowly."""
    def get_title(self, page_number, *, HTMLOnly=False):
        """Return the title of :class:`~web.Page` ``page_number``.

        The title is guessed if there is none.

        Parameters
        ----------
        page_number : int
        """
    def nothing(self): pass
    def todo(self):
        """TODO: write this some day."""

if True:
    def save(path):
        """
        save(path)

        Save the page, e.g. to a file. It is overwritten.
        """
    def short():
        """Too short."""
'''


def test_reading_a_source_file():
    pairs = {pair["name"]: pair for pair in docstrings.read_source(SOURCE, "web.pages")}
    assert set(pairs) == {"get_title", "save"}
    title = pairs["get_title"]
    assert title["summary"] == "Return the title of Page page_number."
    assert title["body"] == "The title is guessed if there is none."
    assert (title["owner"], title["arguments"]) == ("PageReader", "page_number, HTMLOnly")
    assert pairs["save"]["summary"] == "Save the page, e.g. to a file."
    assert docstrings.render(title)["prompt"] == (
        "Class: page reader\nArgs: page number, html only\n"
        "Body: The title is guessed if there is none.\nName: Get title\nSummary:"
    )
    assert "Body" not in docstrings.render(title, body_words=0)["prompt"]


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("read_HTMLTable2", "read html table 2"),
        ("__init__", "init"),
        ("getURL", "get url"),
        ("DataFrame", "data frame"),
    ],
)
def test_identifiers_become_words(identifier, words):
    assert docstrings.split_words(identifier) == words


def test_overlap_counts_words_of_the_name_that_the_summary_uses():
    pair = {"name": "get_page_titles", "summary": "Return the titles of a page."}
    assert docstrings.overlap(pair) == 1.0
    assert docstrings.overlap({**pair, "summary": "Return the title of a book."}) == 0.5
    assert docstrings.overlap({**pair, "summary": "Do it at once."}) == 0.0


def test_the_standard_library_alone_gives_a_clean_split_set(tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "PACKAGES", {})
    monkeypatch.setenv("REPRISE_CACHE", str(tmp_path))
    said = []
    pairs = docstrings.load_pairs(said.append)
    assert len(said) == 1 and len(pairs) > 3000
    assert docstrings.load_pairs(said.append) == pairs and len(said) == 1  # from the cache
    assert len(list(tmp_path.iterdir())) == 1  # and nothing half-written beside it
    modules = {
        split: {p["module"] for p in pairs if p["split"] == split} for split in ("train", "test")
    }
    assert modules["test"] and not modules["train"] & modules["test"]
    summaries = [pair["summary"].lower() for pair in pairs]
    assert len(set(summaries)) == len(summaries)
    assert all(s.endswith(".") and 3 <= len(s.split()) <= 16 and s.isascii() for s in summaries)
    assert 0.02 < sum(pair["split"] == "test" for pair in pairs) / len(pairs) < 0.15
