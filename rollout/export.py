"""Rounds for other people's tools: a preference data set in the schema that TRL reads.

    prompt, chosen, rejected: str       score_chosen, score_rejected: float

Of n samples the best and the worst by reward make the pair. Prompts whose best and worst tie are
left out and counted. Text is decoded from the stored ids without the BOS that the tokenizer adds
and without the final EOS, because trainers put both back; chat markers in between stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprise.rollout.errors import BadInput
from reprise.rollout.files import atomic_directory, write_text
from reprise.rollout.types import Completions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


def preference_rows(
    completions: Completions, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Row], int]:
    """Best against worst completion of each prompt, and the number of ties left out."""
    if completions.samples_per_prompt < 2:
        raise BadInput(
            f"samples_per_prompt: {completions.samples_per_prompt}; a preference needs at least "
            "2. Sample the round again with sampling.samples_per_prompt=2"
        )
    rows: list[Row] = []
    for index, (prompt, samples) in enumerate(
        zip(completions.prompt_ids, completions.completion_ids, strict=True)
    ):
        rewards = completions.rewards[index]
        best, worst = int(rewards.argmax()), int(rewards.argmin())
        if rewards[best] == rewards[worst]:
            continue
        ended = completions.terminated[index]
        rows.append(
            {
                "prompt": _prompt_text(prompt, tokenizer),
                "chosen": _completion_text(samples[best], bool(ended[best]), tokenizer),
                "rejected": _completion_text(samples[worst], bool(ended[worst]), tokenizer),
                "score_chosen": float(rewards[best]),
                "score_rejected": float(rewards[worst]),
            }
        )
    return rows, len(completions) - len(rows)


def export_preferences(
    rounds: Iterable[Completions], tokenizer: PreTrainedTokenizerBase, path: str | Path
) -> dict[str, int]:
    """Write the preferences of some rounds to `path`; return how many, and how many tied.

    A path that ends in .jsonl becomes one JSON object a line; any other a folder for
    `datasets.load_from_disk`. Both appear whole or not at all.

    Raises:
        BadInput: `path` exists, a round has one sample a prompt, or every prompt tied.
    """
    path, ties = Path(path), 0
    rows: list[Row] = []
    if path.exists():
        raise BadInput(f"{path}: exists; export elsewhere or remove it first")
    for completions in rounds:
        more, tied = preference_rows(completions, tokenizer)
        rows, ties = rows + more, ties + tied
    if not rows:
        raise BadInput(f"{path}: nothing to export: all {ties} prompts tied on reward")
    if path.suffix == ".jsonl":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        from datasets import Dataset

        with atomic_directory(path) as folder:
            Dataset.from_list(rows).save_to_disk(folder)
    return {"preferences": len(rows), "ties": ties}


def _prompt_text(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    tokens = ids.tolist()
    adds_bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    if adds_bos and tokens[0] == tokenizer.bos_token_id:
        tokens = tokens[1:]
    return tokenizer.decode(tokens)


def _completion_text(ids: np.ndarray, terminated: bool, tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(ids.tolist()[: -1 if terminated else None])
