"""Before a run starts: does the reward read what it was trained on, and rank what it should?

For each reward model, on the run's own prompts:
 1. BOS at most once, and once where its tokenizer writes one.
 2. The chat template once: of a chat, every message's text occurs in what the model reads as often
    as in the chat; and a chat goes through the reward model's own template, never the policy's.
 3. The last token, where the score is read, is `read_at`; by default EOS for a complete answer and
    not for a cut one, and in a chat the same closing token whatever the answer says.
 4. Padding and batching do not change a score.
Then, for the weighted sum: the pairs of `reward.check.file` are ranked right.

Each of these has gone wrong in a widely used trainer without an error (2601.08421 used a model read
at `<|eot_id|>`; scored one token off, it still gives plausible numbers).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from reprise.alignment.collector import Prompts
from reprise.alignment.config import Offline, OnPolicy
from reprise.alignment.limits import check_length
from reprise.alignment.policies import Policies
from reprise.alignment.rewards.reward import Conversation, RewardModel, Rewards
from reprise.alignment.text.data import tokenize_answers, tokenize_prompts
from reprise.rollout.errors import BadInput
from reprise.rollout.run.run_dir import RunDir

PROBES = ("A short answer.", "Another one, which ends in another token and is longer")
LONGEST = 256  # prompts whose length in the reward model's own tokens is looked at
NOTHING = np.zeros(0, dtype=np.int32)
TOLERANCE, TOLERANCE_BF16 = 1e-3, 0.1  # of a score under padding, relative to 1 + |score|


def checked_rewards(
    config: OnPolicy | Offline, policies: Policies, prompts: Prompts, run_dir: RunDir
) -> Rewards:
    """What scores a run's completions, held to all of this on the first of its prompts.

    Raises:
        BadInput: what is wrong, and the remedy.
    """
    bf16 = bool(config.train.get("bf16", False))
    rewards = Rewards(config.reward, policies.tokenizer, config.attention, policies.device, bf16)
    for _, term in rewards.terms:
        if isinstance(term, RewardModel):
            longest = np.argsort([-len(ids) for ids in prompts.ids], kind="stable")[:LONGEST]
            read = [
                len(term.input_ids(prompts.ids[row], NOTHING, False, prompts.conversations[row]))
                for row in longest
            ]
            check_length(
                term.model,
                max(read) + config.sampling.max_new_tokens,
                f"reward.model={term.source.model!r}",
                "lower sampling.max_prompt_tokens and on_long_prompt=drop, or max_new_tokens",
            )
    ranked = check_rewards(rewards, prompts.ids, prompts.conversations)
    if ranked is not None:
        run_dir.say(f"reward: {ranked:.0%} of the known pairs are ranked right")
    return rewards


def check_rewards(
    rewards: Rewards, prompts: Sequence[np.ndarray], conversations: Sequence[Conversation | None]
) -> float | None:
    """Hold the reward to all of this; returns the share of known pairs that it ranks right.

    Args:
        rewards: the reward of the run.
        prompts: token ids of some of the run's prompts, at least one.
        conversations: those prompts as messages, where the data is a chat; else None.

    Raises:
        BadInput: what is wrong, and the remedy.
    """
    for _, term in rewards.terms:
        if isinstance(term, RewardModel):
            _check_model(term, prompts[0], conversations[0])
    if rewards.config.check is None:
        return None
    return _check_pairs(rewards, rewards.config.check.file, rewards.config.check.accuracy)


def _check_model(model: RewardModel, prompt: np.ndarray, conversation: Conversation | None) -> None:
    name = f"reward.model={model.source.model!r}"
    answers, _ = tokenize_answers(PROBES, model.policy_tokenizer, 10**6)
    whole = [np.asarray(ids, dtype=np.int32) for ids in answers]
    read = [model.input_ids(prompt, ids, True, conversation) for ids in whole]
    cut = model.input_ids(prompt, whole[0][:-1], False, conversation)
    _check_bos(model.tokenizer, read[0], name)
    if conversation is not None and not model.reads_as_the_policy(conversation):
        _check_template(model, conversation, read[0], name)
    _check_last_token(model, read, cut, conversation, name)
    alone = np.concatenate([model.forward([ids]) for ids in read])
    together = model.forward(read)
    tolerance = TOLERANCE_BF16 if model.autocast else TOLERANCE
    if np.any(np.abs(alone - together) > tolerance * (1 + np.abs(alone))):  # NaN is found later
        raise BadInput(
            f"{name}: two answers score {alone.tolist()} alone and {together.tolist()} padded into "
            "one batch: it does not find the last real token behind its padding; set its config's "
            "pad_token_id, or use a model that handles padding on the right"
        )


def _check_bos(tokenizer: PreTrainedTokenizerBase, read: np.ndarray, name: str) -> None:
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    count = int((read == bos).sum()) if bos != tokenizer.eos_token_id else 1
    wanted = tokenizer("a")["input_ids"][:1] == [bos]
    if count > 1 or (wanted and count == 0):
        raise BadInput(
            f"{name}: it would read {count} BOS tokens ({tokenizer.bos_token}), and was trained on "
            f"one: {tokenizer.convert_ids_to_tokens(read[:8].tolist())}...; look at its chat "
            "template and at its tokenizer's add_bos_token"
        )


def _check_template(
    model: RewardModel, conversation: Conversation, read: np.ndarray, name: str
) -> None:
    if not model.tokenizer.chat_template:
        raise BadInput(
            f"{name} has no chat template, and the data is a chat: it would read the policy's "
            "template; save its tokenizer with the chat_template that it was trained with"
        )
    text = model.tokenizer.decode(read)
    said = [message["content"] for message in conversation] + [PROBES[0]]
    for content in {part.strip() for part in said}:
        expected = sum(other.count(content) for other in said)
        if content and text.count(content) != expected:
            raise BadInput(
                f"{name}: its chat template gives {content[:40]!r} {text.count(content)} times, "
                f"and the chat has it {expected} times; every message has to be there once"
            )


def _check_last_token(
    model: RewardModel,
    read: list[np.ndarray],
    cut: np.ndarray,
    conversation: Conversation | None,
    name: str,
) -> None:
    tokenizer, last = model.tokenizer, [int(ids[-1]) for ids in read]
    seen = tokenizer.convert_ids_to_tokens(last)
    chat = conversation is not None and not model.reads_as_the_policy(conversation)
    if model.source.read_at is not None:
        wanted = tokenizer.convert_tokens_to_ids(model.source.read_at)
        if set(last) != {wanted}:
            raise BadInput(
                f"{name}: it is read at {seen[0]!r}, and read_at says {model.source.read_at!r}; "
                "correct read_at, or the template that ends the text"
            )
    elif chat and len(set(last)) > 1:
        raise BadInput(
            f"{name}: its chat template leaves an answer open: two answers end in {seen}, so the "
            "score would be read at whatever word comes last; set read_at to the token that it was "
            "trained to be read at, and use a template that writes it"
        )
    elif not chat and (set(last) != {tokenizer.eos_token_id} or cut[-1] == tokenizer.eos_token_id):
        raise BadInput(
            f"{name}: complete answers end in {seen} and a cut one in "
            f"{tokenizer.convert_ids_to_tokens([int(cut[-1])])}; EOS ({tokenizer.eos_token}) has "
            "to end the complete ones and no other, or set read_at"
        )


def _check_pairs(rewards: Rewards, file: str, accuracy: float) -> float:
    tokenizer = rewards.policy_tokenizer
    rows = _read_pairs(file)
    chats = [row["prompt"] if isinstance(row["prompt"], list) else None for row in rows]
    texts = [
        row["prompt"]
        if chat is None
        else tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for row, chat in zip(rows, chats, strict=True)
    ]
    ids, _ = tokenize_prompts(texts, tokenizer, 10**6)
    prompts = [np.asarray(prompt, dtype=np.int32) for prompt in ids]
    scores = []
    for side in ("better", "worse"):
        answers, _ = tokenize_answers([row[side] for row in rows], tokenizer, 10**6)
        tokens = [np.asarray(answer, dtype=np.int32) for answer in answers]
        scores.append(rewards.score(prompts, tokens, [True] * len(rows), chats))
    right = scores[0] > scores[1]
    if right.mean() < accuracy:
        row = int(np.argmin(right))
        raise BadInput(
            f"reward.check.file={file!r}: {int(right.sum())} of {len(rows)} known pairs are ranked "
            f"right, fewer than accuracy={accuracy:g}. Line {row + 1}: "
            f"{rows[row]['better'][:40]!r} gets {scores[0][row]:.4g}, "
            f"{rows[row]['worse'][:40]!r} gets {scores[1][row]:.4g}. "
            "The reward is not what it should be, or reads something else than it was trained on"
        )
    return float(right.mean())


def _read_pairs(file: str) -> list[dict[str, Any]]:
    if not Path(file).is_file():
        raise BadInput(f"reward.check.file={file!r} does not exist; give a .jsonl file")
    rows = []
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"reward.check.file={file!r}, line {number}: {error}") from error
        if not isinstance(row, dict) or not {"prompt", "better", "worse"} <= row.keys():
            raise BadInput(
                f"reward.check.file={file!r}, line {number}: should have prompt, better and worse"
            )
        rows.append(row)
    if not rows:
        raise BadInput(f"reward.check.file={file!r} holds no pairs")
    return rows
