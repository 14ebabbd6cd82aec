"""Text: prompts with references, prompts with preferences, and their token ids.

    load_prompts      -> columns prompt, reference
    load_preferences  -> columns prompt, chosen, rejected
    tokenize_prompts, tokenize_answers -> token ids

A prompt is text exactly as the model will see it: a conversation goes through the tokenizer's chat
template here, once, with the generation prompt. Plain prompts stay as they are, also when the
tokenizer has a template. Nothing is fetched before the name is known to exist.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reprise.alignment.config import Data, Docstrings
from reprise.alignment.text import docstrings
from reprise.alignment.text.conversations import prompt_and_answers, rendered
from reprise.rollout.errors import BadInput

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

REFERENCE_COLUMNS = ("reference", "completion", "chosen")
FILE_KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_prompts(
    data: Data, split: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Dataset:
    """Prompts and their references: columns prompt, reference; messages where they are a chat.

    `split` is a split's name or a slice of one (`test`, `train[95%:]`); None is `data.split`.
    `data.max_examples` cuts `data.split` alone, so that held-out sets keep their size.

    Raises:
        BadInput: no such data set, split or column, or an empty prompt (by its row).
    """
    rows = _load(data, split)
    reference = data.reference_column or next(
        (name for name in REFERENCE_COLUMNS if name in rows.column_names), REFERENCE_COLUMNS[0]
    )
    return _shape(rows, data, {"reference": reference}, tokenizer)


def load_preferences(
    data: Data, split: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Dataset:
    """Preferences, with columns prompt, chosen and rejected; otherwise as `load_prompts`."""
    rows = _load(data, split)
    return _shape(rows, data, {"chosen": "chosen", "rejected": "rejected"}, tokenizer)


def has_preferences(data: Data, split: str | None = None) -> bool:
    """Whether the data set comes with rejected answers."""
    return data.name != "docstrings" and "rejected" in _load(data, split).column_names


# --- reading -----------------------------------------------------------------------------------


def _load(data: Data, split: str | None) -> Dataset:
    name, start, stop = _parse_slice(split or data.split)
    rows = (
        _read_docstrings(name, data.docstrings)
        if data.name == "docstrings"
        else _read(data.name, name)
    )
    first, last = (_row(bound, len(rows)) for bound in (start, stop))
    rows = rows.select(range(first or 0, len(rows) if last is None else last))
    if data.max_examples is not None and split in (None, data.split):
        rows = rows.select(range(min(data.max_examples, len(rows))))
    if len(rows) == 0:
        raise BadInput(f"data.name={data.name!r}: split {split or data.split!r} has no rows")
    return rows


def _parse_slice(split: str) -> tuple[str, str | None, str | None]:
    match = re.fullmatch(r"(\w+)(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if match is None:
        raise BadInput(
            f"split {split!r} is neither a name nor a slice of one: write it like test, "
            "train[:1000] or train[95%:]"
        )
    return match[1], match[2], match[3]


def _row(bound: str | None, rows: int) -> int | None:
    if bound is None:
        return None
    return rows * int(bound[:-1]) // 100 if bound.endswith("%") else min(int(bound), rows)


def _read_docstrings(split: str, choice: Docstrings) -> Dataset:
    from datasets import Dataset

    pairs = [pair for pair in docstrings.load_pairs(_say) if pair["split"] == split]
    if not pairs:
        raise BadInput(f"data.name='docstrings' has the splits train and test, not {split!r}")
    kept = [
        pair
        for pair in pairs
        if len(pair["summary"].split()) <= choice.summary_words
        and docstrings.overlap(pair) >= choice.overlap
    ]
    # Shuffled once by a hash: neighbours in a file are alike, and slices should be fair samples.
    kept.sort(key=docstrings.shuffle_key)
    return Dataset.from_list(
        [{**docstrings.render(pair, choice.body_words), "group": pair["module"]} for pair in kept]
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read(name: str, split: str) -> Dataset:
    """A split of a local file or folder, or of a data set on the Hub."""
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError

    from reprise.alignment.models import require_on_hub

    path = Path(name)
    if path.is_dir() and any((path / mark).exists() for mark in _SAVED):
        saved = load_from_disk(name)
        splits = saved if isinstance(saved, dict) else {"train": saved}
        return splits[_known(split, list(splits), name)]
    if path.exists():
        found = _files_by_split(path)
        first = found[_known(split, list(found), name)]
        kind = FILE_KINDS[Path(first[0]).suffix]
        try:
            return load_dataset(kind, data_files={split: first}, split=split)
        except DatasetGenerationError as error:
            raise BadInput(
                f"data.name={name!r}: {', '.join(first)} cannot be read as {kind}: "
                f"{error.__cause__ or error}"
            ) from error
    if path.suffix in FILE_KINDS:
        raise BadInput(f"data.name={name!r}: there is no such file; check the path")
    require_on_hub(name, "dataset", "data.name")
    splits = load_dataset(name)
    return splits[_known(split, list(splits), name)]


_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


def _files_by_split(path: Path) -> dict[str, list[str]]:
    """One file is a split `train`; in a folder, train.jsonl or test-00000.parquet name theirs."""
    if path.is_file():
        if path.suffix not in FILE_KINDS:
            raise BadInput(
                f"data.name={str(path)!r} ends in {path.suffix!r}; files are read as "
                f"{', '.join(FILE_KINDS)}"
            )
        return {"train": [str(path)]}
    splits: dict[str, list[str]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix in FILE_KINDS:
            splits.setdefault(re.split(r"[-.]", file.name)[0], []).append(str(file))
    if not splits:
        raise BadInput(
            f"data.name={str(path)!r} is a folder without .json, .jsonl or .parquet files; give a "
            "folder with files named after their splits, or one written by save_to_disk"
        )
    return splits


def _known(split: str, splits: Sequence[str], name: str) -> str:
    if split not in splits:
        raise BadInput(
            f"data.name={name!r} has no split {split!r}; it has {', '.join(map(str, splits))}. "
            "A slice such as train[95%:] can stand in for a held-out split"
        )
    return split


# --- shaping -----------------------------------------------------------------------------------


def _shape(
    rows: Dataset,
    data: Data,
    columns: dict[str, str],
    tokenizer: PreTrainedTokenizerBase | None,
) -> Dataset:
    """Keep and rename the wanted columns; conversations become text."""
    from datasets import Dataset

    wanted = {"prompt": data.prompt_column or "prompt", **columns}
    absent = sorted(set(wanted.values()) - set(rows.column_names))
    if absent:
        raise BadInput(
            f"data.name={data.name!r} has no column {', '.join(map(repr, absent))}; it has "
            f"{', '.join(rows.column_names)}. Name others with data.prompt_column and "
            "data.reference_column"
        )
    tools = {"tools"} & set(rows.column_names)
    kept = rows.select_columns(sorted({*wanted.values(), *tools}))
    if data.name == "docstrings":  # text already, and `group` says which rows are related
        return rows.select_columns([*wanted, "group"])
    for index, row in enumerate(kept):
        for column in wanted.values():
            if not isinstance(row[column], str | list) or row[column] == []:
                raise BadInput(
                    f"data.name={data.name!r}: row {index} has {row[column]!r} as {column!r}; "
                    "it should be text or a conversation: correct or drop the row"
                )
    name = f"data.name={data.name!r}: row"
    shaped = Dataset.from_list(
        [_as_text(row, wanted, tokenizer, f"{name} {index}") for index, row in enumerate(kept)]
    )
    for index, prompt in enumerate(shaped["prompt"]):
        if not prompt.strip():
            raise BadInput(
                f"data.name={data.name!r}: the prompt of row {index} is empty; drop the row"
            )
    return shaped


def _as_text(
    row: dict[str, Any],
    wanted: dict[str, str],
    tokenizer: PreTrainedTokenizerBase | None,
    where: str,
) -> dict[str, Any]:
    """One row as text; messages keeps the prompt as it was, if it was a conversation."""
    answers = {new: row[old] for new, old in wanted.items() if new != "prompt"}
    prompt = row[wanted["prompt"]]
    conversation, texts = prompt_and_answers(prompt, answers, where)
    if conversation is None:
        return {"prompt": prompt, **texts}
    if getattr(tokenizer, "chat_template", None):
        prompt = rendered(tokenizer, conversation, row.get("tools"), where)
    else:
        prompt = "\n\n".join(message["content"] for message in conversation) + "\n\n"
    return {"prompt": prompt, **texts, "messages": conversation}


# --- token ids ---------------------------------------------------------------------------------


def tokenize_prompts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    on_long: Literal["error", "truncate", "drop"] = "error",
) -> tuple[list[list[int]], list[int]]:
    """Token ids of prompts, and the rows they belong to; BOS once if the tokenizer adds one.

    A prompt above `max_tokens` is an error, loses its beginning (truncate: the question stands at
    the end) or is left out (drop).

    Raises:
        BadInput: a prompt is empty, or too long; the message names its row.
    """
    out, rows = [], []
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded = tokenizer(list(texts), return_attention_mask=False)["input_ids"] if texts else []
    for row, ids in enumerate(encoded):
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]  # the chat template wrote one already
        if ids and ids[-1] == eos and not texts[row].endswith(str(tokenizer.eos_token)):
            ids = ids[:-1]  # some tokenizers close every text
        if not ids or ids == [bos]:
            raise BadInput(f"prompt {row} is empty: every prompt needs at least one token")
        if len(ids) > max_tokens:
            if on_long == "drop":
                continue
            if on_long == "error":
                raise BadInput(
                    f"prompt {row} has {len(ids)} tokens, more than max_prompt_tokens="
                    f"{max_tokens}: raise it, or set on_long_prompt to truncate or drop"
                )
            start = [bos] if bos is not None and ids[0] == bos and max_tokens > 1 else []
            ids = start + ids[len(start) - max_tokens :]
        out.append(list(ids))
        rows.append(row)
    return out, rows


def tokenize_answers(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of answers, and whether each is complete.

    A complete answer ends with EOS, once, also where its text has it already; one cut at
    `max_tokens` does not: EOS present iff complete.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
    eos = tokenizer.eos_token_id
    whole = [[*(ids[:-1] if ids[-1:] == [eos] else ids), eos] for ids in encoded["input_ids"]]
    return [ids[:max_tokens] for ids in whole], [len(ids) <= max_tokens for ids in whole]
