"""What a sampler is asked for and what it gives, and which prompts a model can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run.settings import Sampling


@dataclass(frozen=True)
class Generated:
    """Completions of N prompts; each ends in its EOS exactly if `terminated`.

    `logprobs`, where the sampler gives them, are its own ln p(y|x) at temperature 1, unfiltered.
    """

    completion_ids: list[list[np.ndarray]]  # N x n x int32 [1 .. max_new_tokens]
    terminated: np.ndarray  # bool [N, n]
    logprobs: np.ndarray | None = None  # float32 [N, n], nats


@dataclass(frozen=True)
class SamplingRequest:
    """Prompts to complete, and what keys their random streams.

    Attributes:
        prompt_ids: N prompts as token ids.
        sampling: temperature (0 is greedy), filters, lengths, sequences per batch.
        streams: the run's random streams.
        round_index: keys the streams, so that each round draws anew.
        eos_ids: token or tokens that end a completion.
        prompt_index: keys each prompt's stream; its row here unless given.
        stream: name of the data streams, so that training and evaluation draw apart.
        vocabulary: ids from this one on have no token, and are never drawn; None: all have one.
    """

    prompt_ids: Sequence[Sequence[int] | np.ndarray]
    sampling: Sampling
    streams: Streams
    round_index: int
    eos_ids: int | Sequence[int]
    prompt_index: Sequence[int] | np.ndarray | None = None
    stream: str = "tokens"
    vocabulary: int | None = None

    @property
    def keys(self) -> list[int]:
        """Of the prompts' streams."""
        given = range(len(self.prompt_ids)) if self.prompt_index is None else self.prompt_index
        keys = [int(key) for key in given]
        assert len(keys) == len(self.prompt_ids), "one stream index per prompt"
        return keys

    @property
    def ends(self) -> list[int]:
        """Tokens that end a completion."""
        return [int(end) for end in np.atleast_1d(np.asarray(self.eos_ids, dtype=np.int64))]


class Sampler(Protocol):
    """What completes prompts: our decode loop on a model, or an engine that holds its weights."""

    def __call__(
        self, request: SamplingRequest, on_batch: Callable[[int], None] | None = None
    ) -> Generated:
        """Completions; `on_batch` is called with the number of those that a batch has finished."""


def rows_of(model: nn.Module) -> int:
    """Token ids that a model has an embedding for; one with LoRA has its base's."""
    embedding = model.get_input_embeddings()
    return getattr(embedding, "base_layer", embedding).weight.shape[0]


def positions_of(config: Any) -> int | None:
    """Tokens of the longest text that a model is made for; None: it sets no limit."""
    settings = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if (found := getattr(settings, name, None)) and not getattr(settings, "alibi", False):
            return int(found)
    return None


def check_prompts(
    model: nn.Module, prompts: Sequence[Tensor | np.ndarray], sampling: Sampling
) -> None:
    """Refuse, before anything is sampled, prompts that `generate` would refuse.

    Raises:
        BadInput: see `generate`; the message has the prompt's row in `prompts`.
    """
    vocabulary, positions = rows_of(model), positions_of(model.config)
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise BadInput(
                f"prompt {row}: is empty, must hold at least one token; drop it, or start it with "
                "the tokenizer's BOS"
            )
        if len(prompt) > sampling.max_prompt_tokens:
            raise BadInput(
                f"prompt {row}: has {len(prompt)} tokens, sampling.max_prompt_tokens is "
                f"{sampling.max_prompt_tokens}; raise the limit, or shorten or drop the prompt"
            )
        if positions is not None and len(prompt) + sampling.max_new_tokens > positions:
            raise BadInput(
                f"prompt {row}: its {len(prompt)} tokens and sampling.max_new_tokens = "
                f"{sampling.max_new_tokens} exceed the model's {positions} positions; lower one"
            )
        if not 0 <= int(prompt.min()) <= int(prompt.max()) < vocabulary:
            raise BadInput(
                f"prompt {row}: token ids span {int(prompt.min())} to {int(prompt.max())}, the "
                f"model has 0 to {vocabulary - 1}; use the model's own tokenizer"
            )
