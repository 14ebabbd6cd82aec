"""A reward model from preferences, by the Bradley-Terry likelihood.

    minimize  - ln sigmoid( r(x, y_chosen) - r(x, y_rejected) )

r is a linear read-out of the last real token's state. Text goes in as it will at scoring time:
prompt ids, completion ids, and EOS exactly if the completion is complete, padded on the right.
Preferences come with the data (chosen, rejected), or are made: the reference is preferred to a
spoiled answer (`alignment.corruptions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reprise.alignment.config import RewardTraining
from reprise.alignment.limits import check_length, check_tokenizer
from reprise.alignment.models import (
    load_policy,
    load_reward_model,
    load_tokenizer,
    reward_model_from,
    weights_sha256,
)
from reprise.alignment.rewards.corruptions import Corruptor
from reprise.alignment.sft import EVALUATION_BATCH, write
from reprise.alignment.text.data import (
    has_preferences,
    load_preferences,
    load_prompts,
    tokenize_answers,
    tokenize_prompts,
)
from reprise.alignment.training.supervised import Task, fit, save_final, training_order
from reprise.alignment.training.trainer import Batch
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir


@dataclass(frozen=True)
class Preferences:
    """Pairs as token ids, prompt included; `kind` says what is wrong with the rejected one."""

    chosen_ids: list[np.ndarray]
    rejected_ids: list[np.ndarray]
    kind: list[str]

    def __len__(self) -> int:
        return len(self.kind)


def run(config: RewardTraining, run_dir: RunDir) -> dict[str, Any]:
    """Train, measure on held-out pairs, and leave `checkpoints/final`.

    Returns:
        The summary: held-out accuracy, overall and for each kind of rejected answer, and the
        held-out loss in nats per pair.
    """
    streams = Streams(config.seed)
    final = run_dir.checkpoints / "final"
    tokenizer = load_tokenizer(config.model)
    if final.is_dir():
        model = load_reward_model(str(final), attention=config.attention)
        _, heldout = _pairs(config, tokenizer, streams, run_dir, training=False)
    else:
        policy = load_policy(config.model, attention=config.attention)
        training, heldout = _pairs(config, tokenizer, streams, run_dir, policy=policy)
        assert training is not None
        model = reward_model_from(
            policy, streams.internal_seed_for("reward head"), config.extra_layers
        )
        model.set_attn_implementation(config.attention)
        model.config.pad_token_id = tokenizer.pad_token_id
        what = f"model={config.model!r}"
        check_tokenizer(model, tokenizer, what)
        sequences = [
            *training.chosen_ids,
            *training.rejected_ids,
            *heldout.chosen_ids,
            *heldout.rejected_ids,
        ]
        remedy = "lower max_prompt_tokens (with on_long_prompt truncate or drop)"
        check_length(model, max(map(len, sequences)), what, remedy)
        _train(model, tokenizer, training, heldout, config, run_dir, streams)
        save_final(model, tokenizer, run_dir)
    model.eval()
    margins = reward_margins(model, heldout, tokenizer.pad_token_id)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **accuracies(margins, heldout.kind),
        "heldout_loss": float(np.logaddexp(0, -margins).mean()),
        "weights_sha256": weights_sha256(model.state_dict()),
    }


# --- pairs -------------------------------------------------------------------------------------


def _pairs(
    config: RewardTraining,
    tokenizer: PreTrainedTokenizerBase,
    streams: Streams,
    run_dir: RunDir,
    policy: PreTrainedModel | None = None,
    training: bool = True,
) -> tuple[Preferences | None, Preferences]:
    """(training pairs, held-out pairs); made from references where the data has no rejected."""
    if has_preferences(config.data):
        rows = load_preferences(config.data, config.heldout_split, tokenizer)
        rows = rows.select(range(min(config.heldout, len(rows))))
        heldout = _given(rows, tokenizer, config, run_dir)
        if not training:
            return None, heldout
        rows = load_preferences(config.data, None, tokenizer)
        return _given(rows, tokenizer, config, run_dir), heldout
    if policy is None:
        policy = load_policy(config.model, attention=config.attention)
    rows = load_prompts(config.data, config.heldout_split, tokenizer)
    rows = rows.select(range(min(config.heldout, len(rows))))
    heldout = _made(rows, tokenizer, config, policy, streams, run_dir, heldout=True)
    if not training:
        return None, heldout
    rows = load_prompts(config.data, None, tokenizer)
    return _made(rows, tokenizer, config, policy, streams, run_dir), heldout


def _given(
    rows: Any, tokenizer: PreTrainedTokenizerBase, config: RewardTraining, run_dir: RunDir
) -> Preferences:
    prompts, kept = tokenize_prompts(
        list(rows["prompt"]), tokenizer, config.max_prompt_tokens, config.on_long_prompt
    )
    sides = []
    for column in ("chosen", "rejected"):
        texts = [rows[column][row] for row in kept]
        answers, _ = tokenize_answers(texts, tokenizer, config.max_completion_tokens)
        sides.append([_join(*both) for both in zip(prompts, answers, strict=True)])
    chosen, rejected = sides
    alike = sum(np.array_equal(a, b) for a, b in zip(chosen, rejected, strict=True))
    if alike == len(kept):
        raise BadInput(
            f"data.name={config.data.name!r}: the answers of every pair are equal, or equal once "
            f"they are cut at max_completion_tokens={config.max_completion_tokens}; raise it, or "
            "take other data"
        )
    if alike:
        run_dir.say(f"warning: {alike} of {len(kept)} pairs are equal once they are cut: no signal")
    return Preferences(chosen, rejected, ["given"] * len(kept))


def _made(
    rows: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: RewardTraining,
    policy: PreTrainedModel,
    streams: Streams,
    run_dir: RunDir,
    heldout: bool = False,
) -> Preferences:
    """Pairs of a reference and a spoiled answer.

    Held out, each prompt meets every kind that has a share; in training, `pairs_per_prompt` of
    them, of kinds drawn by the shares.
    """
    prompts, kept = tokenize_prompts(
        list(rows["prompt"]), tokenizer, config.max_prompt_tokens, config.on_long_prompt
    )
    references = [rows["reference"][row] for row in kept]
    answers, _ = tokenize_answers(references, tokenizer, config.max_completion_tokens)
    groups = [rows["group"][row] for row in kept] if "group" in rows.column_names else None
    samples = None
    if config.corruptions.sampled > 0:
        samples = _samples(prompts, tokenizer, config, policy, streams, run_dir, heldout)
    corruptor = Corruptor(references, groups, samples)
    shares = config.corruptions
    split = "heldout" if heldout else "train"
    chosen, texts, complete, kinds = [], [], [], []
    for row in range(len(prompts)):
        generator = streams.data("corruptions", split, row)
        wanted: Sequence[str | None] = [None] * config.pairs_per_prompt
        if heldout:
            wanted = [kind for kind, share in shares.model_dump().items() if share > 0]
        for kind in wanted:
            rejected = (
                corruptor.make(row, kind, generator)
                if kind is not None
                else corruptor.draw(row, shares, generator)
            )
            chosen.append(row)
            texts.append(rejected.text)
            complete.append(rejected.complete)
            kinds.append(rejected.kind)
    spoiled, _ = tokenize_answers(texts, tokenizer, config.max_completion_tokens)
    return Preferences(
        [_join(prompts[row], answers[row]) for row in chosen],
        [
            _join(prompts[row], ids if whole else ids[:-1])
            for row, ids, whole in zip(chosen, spoiled, complete, strict=True)
        ],
        kinds,
    )


def _samples(
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    config: RewardTraining,
    policy: PreTrainedModel,
    streams: Streams,
    run_dir: RunDir,
    heldout: bool,
) -> list[tuple[str, bool] | None]:
    """The language model's own answers to as many prompts as their share asks for."""
    shares = config.corruptions
    part = 1.0 if heldout else shares.sampled / sum(shares.model_dump().values())
    count = min(len(prompts), round(len(prompts) * min(1.0, part * config.pairs_per_prompt)))
    ids = [np.array(prompt, dtype=np.int32) for prompt in prompts[:count]]
    with run_dir.progress("sampling", total=count, unit="completions") as progress:
        drawn = write(
            policy,
            tokenizer,
            ids,
            config.max_completion_tokens,
            1.0,
            streams,
            round_index=1 if heldout else 2,
            on_batch=progress.advance,
        )
    return [*drawn, *[None] * (len(prompts) - count)]


def _join(prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    return np.array([*prompt, *answer], dtype=np.int32)


# --- training and measuring --------------------------------------------------------------------


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Preferences,
    heldout: Preferences,
    config: RewardTraining,
    run_dir: RunDir,
    streams: Streams,
) -> int:
    pad_id = tokenizer.pad_token_id

    def collate(rows: list[int]) -> Batch:
        return batch_of(pairs, rows, pad_id)

    def peek() -> dict[str, float]:
        margins = reward_margins(model, heldout, pad_id)
        measured = accuracies(margins, heldout.kind)
        run_dir.say(
            "held-out accuracy: "
            + ", ".join(f"{name.removeprefix('accuracy_')} {v:.2f}" for name, v in measured.items())
        )
        return {"heldout_loss": float(np.logaddexp(0, -margins).mean()), **measured}

    lengths = [
        max(len(chosen), len(rejected))
        for chosen, rejected in zip(pairs.chosen_ids, pairs.rejected_ids, strict=True)
    ]
    order = training_order(lengths, config.batch_size, config.epochs, streams.data("order", 0))
    run_dir.say(f"{len(pairs)} pairs, {len(order) // config.batch_size} steps")
    return fit(model, tokenizer, order, Task(collate, bradley_terry_loss, peek), config, run_dir)


def batch_of(pairs: Preferences, rows: Sequence[int], pad_id: int) -> Batch:
    """Chosen above rejected, padded on the right: shape (2 * pairs, longest)."""
    sequences = [pairs.chosen_ids[row] for row in rows] + [pairs.rejected_ids[row] for row in rows]
    width = max(map(len, sequences))
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for line, sequence in enumerate(sequences):
        ids[line, : len(sequence)] = sequence
        mask[line, : len(sequence)] = 1
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "items": torch.ones(len(rows), dtype=torch.int64),
    }


def bradley_terry_loss(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """-ln sigmoid(r_chosen - r_rejected), summed over pairs, in nats; and the accuracy."""
    margin = margins_of(model, batch)
    return -F.logsigmoid(margin).sum(), {"accuracy": margin > 0, "margin": margin}


def margins_of(model: torch.nn.Module, batch: Batch) -> Tensor:
    """r_chosen - r_rejected, shape (pairs,)."""
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    chosen, rejected = output.logits.float().squeeze(-1).chunk(2)
    return chosen - rejected


@torch.no_grad()
def reward_margins(model: PreTrainedModel, pairs: Preferences, pad_id: int) -> np.ndarray:
    """r_chosen - r_rejected of every pair, shape (pairs,)."""
    lengths = [len(ids) for ids in pairs.chosen_ids]
    order = np.argsort(lengths, kind="stable")
    margins = np.zeros(len(pairs))
    for start in range(0, len(order), EVALUATION_BATCH):
        rows = order[start : start + EVALUATION_BATCH]
        batch = {
            name: column.to(model.device) for name, column in batch_of(pairs, rows, pad_id).items()
        }
        margins[rows] = margins_of(model, batch).cpu().numpy()
    return margins


def accuracies(margins: np.ndarray, kinds: Sequence[str]) -> dict[str, float]:
    """Share of pairs ranked rightly, a tie counting one half: overall, and for each kind."""
    right = (margins > 0) + 0.5 * (margins == 0)
    result = {"accuracy": float(right.mean())}
    for kind in sorted(set(kinds)):
        result[f"accuracy_{kind}"] = float(right[np.array(kinds) == kind].mean())
    return result
