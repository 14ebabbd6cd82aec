"""Collect one round: sample completions, score them, store them.

Log-probabilities under pi_k and under pi_0 are columns of the stored data, computed by the same
forward pass that training uses, never by the sampler: a sampler in another precision, or another
engine altogether, then cannot put its own rounding into the loss.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reprise.alignment.adapters import identity, save_plain, tensors
from reprise.alignment.config import Custom, Offline, OnPolicy
from reprise.alignment.logprobs import score_completions
from reprise.alignment.models import resolve_model
from reprise.alignment.objectives import loss_function
from reprise.alignment.policies import Policies
from reprise.alignment.rewards.reward import Conversation, Rewards
from reprise.alignment.text import data
from reprise.rollout.functions import identity as identity_of_function
from reprise.rollout.generate import complete, sampling_model
from reprise.rollout.randomness import Streams
from reprise.rollout.requests import Sampler, SamplingRequest, check_prompts
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.run.settings import Sampling
from reprise.rollout.store import RoundStore, shard_rows
from reprise.rollout.types import Completions


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids, with what people answered.

    Attributes:
        ids: one int32 array per prompt.
        references: the answers that people wrote.
        conversations: the prompts as messages where the data is a chat, else None.
    """

    ids: list[np.ndarray]
    references: list[str]
    conversations: list[Conversation | None]

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.ids)

    def check(self, model: PreTrainedModel, sampling: Sampling) -> None:
        """Refuse prompts that the model or the sampler cannot take; see `check_prompts`."""
        check_prompts(model, self.ids, sampling)


@dataclass(frozen=True)
class Given:
    """Completions that a round takes as they are, instead of sampling them.

    Attributes:
        completion_ids: for each prompt of the round its completions, each None where it is to be
            sampled; None for all of them.
        terminated: whether each ended in EOS; shape (prompts, samples), read where they are given.
    """

    completion_ids: list[list[np.ndarray | None] | None]
    terminated: np.ndarray


@dataclass(frozen=True)
class Request:
    """A round to collect.

    Attributes:
        prompts: the data set.
        rows: which of its prompts, int64; one may come again, and is then sampled apart.
        index: the round's number, under which it is stored.
        purpose: names the random streams, so that training and evaluation draw apart.
        given: completions not to sample.
    """

    prompts: Prompts
    rows: np.ndarray
    index: int
    purpose: str
    given: Given | None = None


class Collector:
    """Samples, scores and stores completions of whatever the policy currently is.

    Args:
        config: the experiment's settings.
        policies: pi_k, which is sampled, and pi_0, for the reference column.
        reward: the reward model; None where everything is stored already.
        run_dir: tells rank and world, and shows progress.
    """

    def __init__(
        self,
        config: OnPolicy | Offline,
        policies: Policies,
        reward: Rewards | None,
        run_dir: RunDir,
    ) -> None:
        self.config, self.sampling = config, config.sampling
        self.policies, self.reward, self.tokenizer = policies, reward, policies.tokenizer
        self.streams, self.run_dir = policies.streams, run_dir
        self.autocast = bool(config.train.get("bf16", False))
        self.vocabulary = vocabulary_of(self.tokenizer)
        self.objective: dict[str, str] = {}
        if isinstance(config.objective, Custom):  # its file decides every policy but the first
            path = config.objective.function
            self.objective = {"objective": identity_of_function(path, loss_function(path))}
        self.engine: Any = None
        if self.sampling.vllm is not None and reward is not None:
            self.engine = _open_vllm(self.sampling, config.policy)

    @contextmanager
    def sampler(self, policy: PreTrainedModel) -> Iterator[Sampler]:
        """What draws completions from `policy`: itself, a copy of it, or vLLM with its weights."""
        if self.engine is None:
            with sampling_model(policy, self.sampling.dtype) as model:
                yield functools.partial(complete, model)
            return
        if self.run_dir.is_main or self.sampling.vllm.mode == "colocate":  # type: ignore[union-attr]
            self.engine.load(
                identity(policy),
                functools.partial(save_plain, policy),
                functools.partial(tensors, policy),
            )
        PartialState().wait_for_everyone()
        yield self.engine.generate

    def collect(self, request: Request, store: RoundStore) -> Completions:
        """Return the round, pi_k's; whatever is already in the store is not sampled again."""
        if request.index not in store.rounds():
            assert self.policies.initial is not None and self.reward is not None
            rows, index = request.rows, request.index
            shards = -(-len(rows) // self.config.shard_size)
            writer = store.writer(index, shards, self._metadata(request.purpose))
            missing = writer.missing(self.run_dir.rank, self.run_dir.world)
            label = f"round {index}: {request.purpose}"
            to_do = sum(len(shard_rows(len(rows), shards, shard)) for shard in missing)
            with (
                self.sampler(self.policies.current) as sample,
                self.run_dir.progress(label, to_do, "prompts") as progress,
            ):
                for shard in missing:
                    part = shard_rows(len(rows), shards, shard)
                    writer.write(shard, self._sample_and_score(sample, request, part))
                    progress.advance(len(part))
            PartialState().wait_for_everyone()
            if self.run_dir.is_main:
                writer.finish()
            PartialState().wait_for_everyone()
        data = store.read(request.index).data
        assert isinstance(data, Completions)
        return data

    def score(self, model: PreTrainedModel, prompt_ids: list, completion_ids: list) -> np.ndarray:
        """ln pi(a|x) of each sequence, as training computes it; float32, nats."""
        batch_size = 2 * self.config.train.get("per_device_train_batch_size", 8)
        model.eval()
        pad_id = self.tokenizer.pad_token_id
        chunked = self.config.logits == "chunked"
        return score_completions(
            model, prompt_ids, completion_ids, pad_id, batch_size, self.autocast, chunked
        )

    def _sample_and_score(self, sample: Sampler, request: Request, part: range) -> Completions:
        """The places `part` of a round."""
        assert self.reward is not None
        prompts, round, purpose = request.prompts, request.index, request.purpose
        policy, all_rows, given = self.policies.current, request.rows, request.given
        n, rows = self.sampling.samples_per_prompt, all_rows[part]
        ids = [prompts.ids[row] for row in rows]
        nothing: list[list[np.ndarray | None]] = [[None] * n] * len(all_rows)
        fixed = [
            none if taken is None else taken
            for none, taken in zip(nothing, given.completion_ids if given else nothing, strict=True)
        ]
        keys, again = stream_keys(all_rows, len(prompts))
        to_sample = [i for i, at in enumerate(part) if any(one is None for one in fixed[at])]
        sampled = sample(
            SamplingRequest(
                [ids[i] for i in to_sample],
                self.sampling,
                self.streams,
                round_index=round,
                eos_ids=eos_ids(policy, self.tokenizer),
                prompt_index=keys[part][to_sample],
                stream=f"{purpose} tokens",
                vocabulary=self.vocabulary,
            )
        )
        completion_ids, terminated = sampled.completion_ids, sampled.terminated
        sampler_logprobs = sampled.logprobs
        # A prompt draws its label once a round; with given completions, or again, by its place.
        by_place = [again[at] or any(one is not None for one in fixed[at]) for at in part]
        labels = [
            self.streams.data(f"{purpose} given labels", round, at)
            if placed
            else self.streams.data(f"{purpose} labels", round, int(row))
            for row, at, placed in zip(rows, part, by_place, strict=True)
        ]
        if given is not None:
            own = dict(zip(to_sample, completion_ids, strict=True))
            is_given = np.array([[one is not None for one in fixed[at]] for at in part])
            ended = np.zeros_like(is_given)
            ended[to_sample] = terminated
            terminated = np.where(is_given, given.terminated[part], ended)
            if sampler_logprobs is not None:
                own_logprobs, sampler_logprobs = sampler_logprobs, np.full_like(ended, np.nan, "f4")
                sampler_logprobs[to_sample] = own_logprobs
                sampler_logprobs[is_given] = np.nan
            completion_ids = [
                [own[i][j] if one is None else one for j, one in enumerate(fixed[at])]
                for i, at in enumerate(part)
            ]
        repeated = [prompt for prompt in ids for _ in range(n)]
        flat = [completion for samples in completion_ids for completion in samples]
        conversations = [prompts.conversations[row] for row in rows for _ in range(n)]
        rewards = self.reward.score(repeated, flat, terminated.ravel(), conversations)
        policy_logprobs = self.score(policy, repeated, flat)
        # Round 0 is drawn from pi_0 itself: the same weights give the same column.
        reference = (
            policy_logprobs if round == 0 else self.score(self.policies.initial, repeated, flat)
        )
        return Completions(
            prompt_index=np.asarray(rows, dtype=np.int64),
            prompt_ids=ids,
            completion_ids=completion_ids,
            terminated=terminated,
            rewards=rewards.reshape(-1, n),
            policy_logprobs=policy_logprobs.reshape(-1, n),
            reference_logprobs=reference.reshape(-1, n),
            label_uniform=np.array([draw.random() for draw in labels], dtype=np.float64),
            sampler_logprobs=sampler_logprobs,
        )

    def _metadata(self, purpose: str) -> dict:
        return {
            "config_sha256": self.run_dir.config_sha256,
            "code_revision": self.run_dir.code_revision,
            "policy": identity(self.policies.current),
            "reward_model": self.reward.identity if self.reward else None,
            "random_state": {"seed": self.streams.seed, "stream": purpose},
            **self.objective,
            "sampling": self.sampling.model_dump(),
        }


def _open_vllm(sampling: Sampling, policy: str) -> Any:
    assert sampling.vllm is not None
    if sampling.vllm.mode == "colocate":
        from reprise.rollout.engines.vllm_colocated import ColocatedVLLM

        return ColocatedVLLM(sampling.vllm, sampling, resolve_model(policy, "policy"))
    from reprise.rollout.engines.vllm import VLLMServer

    return VLLMServer(sampling.vllm, sampling)


def eos_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: chat models often have more than one."""
    configured = policy.generation_config.eos_token_id if policy.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *(token for token in ids if token is not None)})


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The first id without a token; those of an embedding with more rows come after it."""
    return max(tokenizer.get_vocab().values()) + 1


def stream_keys(rows: np.ndarray, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the random streams of a round's prompts, no two alike, and which come again.

    The key of a prompt is its row; where the row occurred before, `prompts` + its place.
    """
    again = np.ones(len(rows), dtype=bool)
    again[np.unique(rows, return_index=True)[1]] = False
    return np.where(again, prompts + np.arange(len(rows)), rows), again


def rows_of_round(prompts: int, sizes: list[int], round: int, streams: Streams) -> np.ndarray:
    """Rows of round `round`: consecutive pieces of shuffled passes over the data.

    A round that would run past the end of a pass begins the next one, so that no prompt occurs
    twice in a round (its random stream would give the same tokens twice).

    Args:
        prompts: size of the data set.
        sizes: n_0, n_1, ..., each at most `prompts`.
        round: which round.
        streams: random streams of the run.

    Returns:
        int64, shape (sizes[round],).
    """
    epoch, start = 0, 0
    for size in sizes[:round]:
        epoch, start = _next(epoch, start, size, prompts)
        start += size
    epoch, start = _next(epoch, start, sizes[round], prompts)
    order = streams.data("prompts", epoch).permutation(prompts)
    return order[start : start + sizes[round]]


def _next(epoch: int, start: int, size: int, prompts: int) -> tuple[int, int]:
    return (epoch + 1, 0) if start + size > prompts else (epoch, start)


def load_prompts(
    config: OnPolicy | Offline, split: str, tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    """Read a split and encode its prompts.

    Raises:
        BadInput: a prompt is empty, or too long and `on_long_prompt` is "error".
    """
    rows = data.load_prompts(config.data, split, tokenizer)
    ids, kept = data.tokenize_prompts(
        rows["prompt"], tokenizer, config.sampling.max_prompt_tokens, config.on_long_prompt
    )
    conversations = rows["messages"] if "messages" in rows.column_names else [None] * len(rows)
    return Prompts(
        ids=[np.asarray(prompt, dtype=np.int32) for prompt in ids],
        references=[rows["reference"][row] for row in kept],
        conversations=[conversations[row] for row in kept],
    )
