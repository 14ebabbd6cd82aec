"""Supervised training on what people wrote: the policy pi_0.

    minimize  - sum_t ln pi(y_t | x, y_<t)   over the tokens of the reference y, its EOS included

averaged over tokens; the prompt's tokens x carry no loss. A reference cut at
`max_completion_tokens` ends without EOS. From a checkpoint, or a small model from scratch with a
tokenizer of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reprise.alignment.collector import eos_ids, vocabulary_of
from reprise.alignment.config import SFT
from reprise.alignment.evaluate import rouge_l
from reprise.alignment.limits import check_length, check_tokenizer
from reprise.alignment.logprobs import completion_logprobs, pad_completions
from reprise.alignment.models import (
    load_policy,
    load_tokenizer,
    new_policy,
    train_tokenizer,
    weights_sha256,
)
from reprise.alignment.text.data import load_prompts, tokenize_answers, tokenize_prompts
from reprise.alignment.training.supervised import Task, fit, save_final, training_order
from reprise.alignment.training.trainer import Batch
from reprise.rollout.generate import generate
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.run.settings import Sampling

if TYPE_CHECKING:
    from datasets import Dataset

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Examples:
    """Prompts and references as token ids, one entry per example."""

    prompt_ids: list[np.ndarray]
    completion_ids: list[np.ndarray]
    prompts: list[str]
    references: list[str]

    def __len__(self) -> int:
        return len(self.prompt_ids)


def run(config: SFT, run_dir: RunDir) -> dict[str, Any]:
    """Train, measure on held-out examples, and leave `checkpoints/final`.

    Returns:
        The summary: steps, parameters, losses (nats per token), ROUGE-L of greedy and sampled
        held-out summaries against their own references and against shuffled ones, samples.
    """
    streams = Streams(config.seed)
    final = run_dir.checkpoints / "final"
    start = str(final) if final.is_dir() else config.model
    policy, tokenizer, training = _start(config, start, streams)
    heldout = load_prompts(config.data, config.heldout_split, tokenizer)
    heldout = heldout.select(range(min(config.heldout, len(heldout))))
    measured = encode(heldout, tokenizer, config)
    if not final.is_dir():
        examples = encode(training, tokenizer, config)
        _check(policy, tokenizer, examples, measured, config)
        _train(policy, tokenizer, examples, measured, config, run_dir, streams)
        save_final(policy, tokenizer, run_dir)
    policy.eval()
    return {
        "examples": len(training),
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "heldout_loss": heldout_loss(policy, measured, tokenizer.pad_token_id),
        **prompt_use(policy, tokenizer, measured, config, streams),
        "weights_sha256": weights_sha256(policy.state_dict()),
    }


def _start(
    config: SFT, model: str | None, streams: Streams
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Dataset]:
    if model is not None:
        tokenizer = load_tokenizer(model)
        policy = load_policy(model, attention=config.attention)
        return policy, tokenizer, load_prompts(config.data, tokenizer=tokenizer)
    assert config.from_scratch is not None
    training = load_prompts(config.data)
    texts = (text for row in training for text in (row["prompt"], row["reference"]))
    tokenizer = train_tokenizer(texts, config.from_scratch.vocabulary)
    policy = new_policy(config.from_scratch, tokenizer, streams.internal_seed_for("weights"))
    policy.set_attn_implementation(config.attention)
    return policy, tokenizer, training


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: Any) -> Examples:
    """Token ids within the config's limits; rows whose prompt was dropped are left out."""
    texts, references = list(rows["prompt"]), list(rows["reference"])
    prompts, kept = tokenize_prompts(
        texts, tokenizer, config.max_prompt_tokens, config.on_long_prompt
    )
    answers, _ = tokenize_answers(references, tokenizer, config.max_completion_tokens)
    return Examples(
        [np.array(ids, dtype=np.int32) for ids in prompts],
        [np.array(answers[row], dtype=np.int32) for row in kept],
        [texts[row] for row in kept],
        [references[row] for row in kept],
    )


def _check(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    measured: Examples,
    config: SFT,
) -> None:
    """Refuse what the model cannot take, before it is trained."""
    what = f"model={config.model!r}" if config.model else "from_scratch"
    check_tokenizer(policy, tokenizer, what)
    learned = [
        len(prompt) + len(answer)
        for some in (examples, measured)
        for prompt, answer in zip(some.prompt_ids, some.completion_ids, strict=True)
    ]
    written = [len(prompt) + config.max_completion_tokens for prompt in measured.prompt_ids]
    remedy = "lower max_prompt_tokens (with on_long_prompt truncate or drop), max_completion_tokens"
    check_length(policy, max(learned + written), what, remedy)


def _train(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    heldout: Examples,
    config: SFT,
    run_dir: RunDir,
    streams: Streams,
) -> int:
    pad_id = tokenizer.pad_token_id

    def collate(rows: list[int]) -> Batch:
        return batch_of(examples, rows, pad_id)

    def peek() -> dict[str, float]:
        loss = heldout_loss(policy, heldout, pad_id)
        first = heldout.prompt_ids[:1]
        [(text, _)] = write(policy, tokenizer, first, config.max_completion_tokens, 0.0, streams)
        run_dir.say(f"held-out loss {loss:.3f}, greedy: {text.strip()!r}")
        return {"heldout_loss": loss}

    lengths = [
        len(prompt) + len(answer)
        for prompt, answer in zip(examples.prompt_ids, examples.completion_ids, strict=True)
    ]
    order = training_order(lengths, config.batch_size, config.epochs, streams.data("order", 0))
    run_dir.say(
        f"{len(examples)} examples, {len(order) // config.batch_size} steps. Held out: "
        f"{heldout.prompts[0]!r}, where a person wrote {heldout.references[0].strip()!r}"
    )
    return fit(policy, tokenizer, order, Task(collate, token_loss, peek), config, run_dir)


def batch_of(examples: Examples, rows: Sequence[int], pad_id: int) -> Batch:
    """Padded columns of `rows`, and the number of completion tokens as "items"."""
    batch = pad_completions(
        [examples.prompt_ids[row] for row in rows],
        [examples.completion_ids[row] for row in rows],
        pad_id,
    )
    return batch | {"items": batch["completion_mask"].sum(dim=1)}


def token_loss(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum_t ln pi(y_t | x, y_<t) over a batch, in nats."""
    columns = {name: column for name, column in batch.items() if name != "items"}
    total, _ = completion_logprobs(model, **columns)
    return -total.sum(), {}


@torch.no_grad()
def heldout_loss(policy: PreTrainedModel, examples: Examples, pad_id: int) -> float:
    """Mean loss per completion token, in nats."""
    loss, tokens = 0.0, 0
    for start in range(0, len(examples), EVALUATION_BATCH):
        rows = range(start, min(start + EVALUATION_BATCH, len(examples)))
        batch = {
            name: column.to(policy.device)
            for name, column in batch_of(examples, rows, pad_id).items()
        }
        loss += token_loss(policy, batch)[0].item()
        tokens += int(batch["items"].sum())
    return loss / tokens


def prompt_use(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    config: SFT,
    streams: Streams,
) -> dict[str, Any]:
    """ROUGE-L against each prompt's own reference and against another prompt's.

    A model that ignores its prompt scores the same on both.
    """
    count = len(examples)
    texts = {
        kind: [
            text
            for text, _ in write(
                policy,
                tokenizer,
                examples.prompt_ids,
                config.max_completion_tokens,
                temperature,
                streams,
            )
        ]
        for kind, temperature in (("greedy", 0.0), ("sampled", 1.0))
    }
    result: dict[str, Any] = {}
    for kind, written in texts.items():
        for name, shift in (("rouge_l", 0), ("rouge_l_shuffled", count // 2)):
            scores = [
                rouge_l(text, examples.references[(row + shift) % count])
                for row, text in enumerate(written)
            ]
            result[f"{name}_{kind}"] = float(np.mean(scores))
    result["samples"] = [
        {
            "prompt": examples.prompts[row],
            "reference": examples.references[row].strip(),
            **{kind: written[row].strip() for kind, written in texts.items()},
        }
        for row in range(min(8, count))
    ]
    return result


def write(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[np.ndarray],
    max_new_tokens: int,
    temperature: float,
    streams: Streams,
    round_index: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> list[tuple[str, bool]]:
    """One completion of each prompt as text, and whether it ended by itself."""
    sampling = Sampling(
        samples_per_prompt=1,
        max_prompt_tokens=max(map(len, prompt_ids)),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=EVALUATION_BATCH,
        dtype="auto",
    )
    drawn = generate(
        policy,
        prompt_ids,
        sampling,
        streams,
        round_index=round_index,
        eos_ids=eos_ids(policy, tokenizer),
        vocabulary=vocabulary_of(tokenizer),
        on_batch=on_batch,
    )
    texts = tokenizer.batch_decode(
        [ids[0] for ids in drawn.completion_ids], skip_special_tokens=True
    )
    return list(zip(texts, drawn.terminated[:, 0].tolist(), strict=True))
