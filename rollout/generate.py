"""Completions from a causal language model: our own decode loop over any `transformers` model.

Token t of sample s is drawn by inverting the cumulative distribution at a uniform,

    y_t = min { v : sum_{w <= v} p(w | x, y_<t) > u_st },    p = filter(softmax(logits / tau))

where u [n, max_new_tokens] comes from the prompt's own stream, `streams.data("tokens", round,
prompt)`. So what a prompt gets does not depend on the other prompts, the batch size, the order
or the number of processes, beyond the last-bit differences of a matrix product's shape.

Where the time goes, and what is done about it: a prompt is run through the model once and its
key-value cache repeated for its n samples; the cache grows by blocks instead of being copied at
each token; finished rows leave the batch; prompts of like length share one, so that there is
little padding; of a prompt only the last position's logits are computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.requests import Generated, SamplingRequest, check_prompts
from reprise.rollout.run.settings import Sampling

# Copying the cache to drop rows costs about as much as one decoding step of those that stay.
KEEP_WHILE_ALIVE = 0.75
CACHE_BLOCK = 32
# Probabilities are counted in units of 2^-40: whole numbers add up alike in any order, so that
# a parallel scan on a GPU gives the same cumulative distribution as a loop.
UNITS = float(2**40)


def attend_without_plans() -> None:
    """Take cuDNN's attention out of PyTorch's choice, for good, in this process.

    It plans anew, in about a tenth of a second, for each shape that it meets. Text has a new shape
    at every token and in every batch; `benchmarks/gpu.py` measures both ways.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def generate(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int] | np.ndarray],
    sampling: Sampling,
    streams: Streams,
    *,
    on_batch: Callable[[int], None] | None = None,
    **keys: Any,
) -> Generated:
    """Sample `sampling.samples_per_prompt` completions of each prompt.

    Args:
        model: see `complete`.
        prompt_ids: see `SamplingRequest`, and for `sampling`, `streams` and `keys`.
        sampling: see there.
        streams: see there.
        on_batch: called with the number of completions a batch has finished.
        keys: ``round_index``, ``eos_ids``, and perhaps ``prompt_index`` and ``stream``.

    Raises:
        BadInput: see `complete`.
    """
    return complete(model, SamplingRequest(prompt_ids, sampling, streams, **keys), on_batch)


def complete(
    model: nn.Module, request: SamplingRequest, on_batch: Callable[[int], None] | None = None
) -> Generated:
    """Sample what is asked for from a model.

    Args:
        model: causal language model, not wrapped; left in the mode it came in. The precision is
            the model's own: see `sampling_model`.
        request: prompts and settings.
        on_batch: called with the number of completions a batch has finished.

    Raises:
        BadInput: a prompt is empty, longer than `max_prompt_tokens`, or holds a token that the
            model does not have; prompt and completion exceed the model's positions; or the
            model's logits are NaN or infinite.
    """
    attend_without_plans()
    sampling, keys = request.sampling, request.keys
    prompts = [torch.as_tensor(np.asarray(ids, dtype=np.int64)) for ids in request.prompt_ids]
    check_prompts(model, prompts, sampling)
    n, device = sampling.samples_per_prompt, next(model.parameters()).device
    eos = torch.as_tensor(request.ends, dtype=torch.int64, device=device)
    completions: list[list[np.ndarray]] = [[np.zeros(0, np.int32)] * n for _ in prompts]
    terminated = np.zeros((len(prompts), n), dtype=bool)
    logprobs = np.zeros((len(prompts), n), dtype=np.float32) if sampling.logprobs else None
    with evaluating(model), torch.inference_mode():
        for rows, samples in _batches([len(prompt) for prompt in prompts], sampling):
            uniforms = np.empty((len(rows), len(samples), sampling.max_new_tokens))
            for index, row in enumerate(rows):
                draws = request.streams.data(request.stream, request.round_index, keys[row])
                uniforms[index] = draws.random((n, sampling.max_new_tokens))[samples]
            tokens, ended, spoken = _decode(
                model,
                [prompts[row] for row in rows],
                torch.as_tensor(uniforms.reshape(-1, sampling.max_new_tokens), device=device),
                request,
                eos,
            )
            flat = [(row, sample) for row in rows for sample in samples]
            ids = tokens.to("cpu", torch.int32).numpy()
            for (row, sample), drawn, last in zip(flat, ids, ended.tolist(), strict=True):
                completions[row][sample] = drawn[: last + 1 if last >= 0 else None].copy()
                terminated[row, sample] = last >= 0
            if logprobs is not None:
                logprobs[tuple(np.array(flat).T)] = spoken.float().cpu().numpy()
            if on_batch is not None:
                on_batch(len(flat))
    return Generated(completions, terminated, logprobs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off within the block; every module's mode is put back after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def sampling_model(model: nn.Module, dtype: str) -> Iterator[nn.Module]:
    """Yield the model in `Sampling.dtype`: itself if it is in that already, or else a copy.

    Casting every weight once is cheaper, and on CPUs with bfloat16 units far faster, than
    autocast. The copy is gone after the block.
    """
    wanted = None if dtype == "auto" else getattr(torch, dtype)
    if wanted is None or all(parameter.dtype == wanted for parameter in model.parameters()):
        yield model
    else:
        # Not .to(dtype) on the model: rotary frequencies and other buffers keep their precision.
        twin = copy.deepcopy(model).requires_grad_(False)
        for parameter in twin.parameters():
            parameter.data = parameter.data.to(wanted)
        yield twin


class BlockCacheLayer(DynamicLayer):
    """Keys and values in a buffer with room to grow.

    `DynamicLayer` copies the whole cache at each token; this one does at each CACHE_BLOCK-th, and
    writes a token's keys and values where they stay.
    """

    keys: Tensor
    values: Tensor
    _store: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Append along the sequence, and return all keys and values [rows, heads, length, dim]."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._store is None or stop > self._store[0].shape[-2]:
            grown = []
            for old, new in ((self.keys, key_states), (self.values, value_states)):
                shape = (*new.shape[:2], stop + CACHE_BLOCK, new.shape[-1])
                grown.append(new.new_empty(shape))
                if start:
                    grown[-1][:, :, :start] = old
            self._store = (grown[0], grown[1])
        keys, values = self._store
        keys[:, :, start:stop] = key_states
        values[:, :, start:stop] = value_states
        self.keys, self.values = keys[:, :, :stop], values[:, :, :stop]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows at `beam_idx`, repeated or left out; room to grow is taken along."""
        length = self.get_seq_length()
        if self._store is None or length == 0:
            return
        keys, values = (buffer.index_select(0, beam_idx) for buffer in self._store)
        self._store = (keys, values)
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]


def sample_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Draw one token a row by the inverse cumulative distribution. [B, V], [B] -> int64 [B].

    The token drawn always has nonzero probability, also at uniforms next to 0 and 1.

    Raises:
        BadInput: a row's largest logit is NaN or infinite.
    """
    if not logits.amax(-1).isfinite().all():
        raise BadInput(
            "the model's logits are NaN or infinite; its weights have diverged (lower the "
            "learning rate) or overflow in half precision (set sampling.dtype=float32)"
        )
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = filtered(logits.float() / sampling.temperature, sampling).softmax(-1)
    cumulative = (probabilities.double() * UNITS).long().cumsum(-1)
    total = cumulative[:, -1:]
    # Stays below the total, rounded too, since a uniform is at most 1 - 2^-53.
    target = (uniforms[:, None] * total).long()
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Set logits outside the top k, then outside the nucleus, to -inf. [B, V] -> [B, V].

    The nucleus is the smallest set of likeliest tokens with probability at least top_p. Ties with
    the k-th logit all stay, as in `transformers`.
    """
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ascending, order = logits.sort(-1)
        outside = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        outside[:, -1] = False
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits


def _decode(
    model: nn.Module,
    prompts: list[Tensor],
    uniforms: Tensor,
    request: SamplingRequest,
    eos: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode one batch: tokens [B, <= T], the place of each row's EOS [B], -1 where none, and, if
    `sampling.logprobs`, ln p of each row at temperature 1 [B], float64.

    `uniforms` [B, T] holds the samples of the first prompt, then those of the second, and so on.
    """
    (rows, steps), device, sampling = uniforms.shape, uniforms.device, request.sampling
    repeat = torch.arange(len(prompts), device=device).repeat_interleave(rows // len(prompts))
    logits, cache, mask, positions = _prefill(model, prompts, steps, device)
    prompt_length = mask.shape[1] - steps
    # One row of logits serves all samples of its prompt; so does, repeated, its cache.
    logits, mask, positions = logits[repeat], mask[repeat], positions[repeat]
    if rows > len(prompts):
        cache.reorder_cache(repeat)
    tokens = torch.zeros((rows, steps), dtype=torch.long, device=device)
    ended = torch.full((rows,), -1, dtype=torch.long, device=device)
    spoken = torch.zeros((rows,), dtype=torch.float64, device=device)
    batch = torch.arange(rows, device=device)  # rows still in the batch
    for step in range(steps):
        # Ids without a token stand last; an embedding is often padded to a round number of rows.
        drawn = sample_tokens(logits[:, : request.vocabulary], uniforms[batch, step], sampling)
        tokens[batch, step] = drawn
        if sampling.logprobs:
            own = logits.float().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
            spoken[batch] += torch.where(ended[batch] < 0, own.double(), 0.0)
        ended[batch] = torch.where((ended[batch] < 0) & torch.isin(drawn, eos), step, ended[batch])
        alive = (ended[batch] < 0).nonzero()[:, 0]
        if len(alive) == 0 or step == steps - 1:
            return tokens[:, : step + 1], ended, spoken
        if len(alive) <= KEEP_WHILE_ALIVE * len(batch):
            batch, drawn = batch[alive], drawn[alive]
            mask, positions = mask[alive], positions[alive]
            cache.reorder_cache(alive)
        logits = _forward(
            model,
            cache,
            drawn[:, None],
            mask[:, : prompt_length + step + 1],
            positions[:, None] + step,
        )
    raise AssertionError("unreachable: max_new_tokens is at least 1")


def _prefill(
    model: nn.Module, prompts: list[Tensor], steps: int, device: torch.device
) -> tuple[Tensor, Cache, Tensor, Tensor]:
    """Run the prompts, padded on the left, through the model.

    Returns the next token's logits [P, V], the cache, the attention mask with room for the
    completions [P, L + steps] and each next token's position [P].
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)  # padding is masked: any id does
    mask = torch.ones((len(prompts), longest + steps), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, : longest - len(prompt)] = 0
    positions = (mask[:, :longest].cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    cache.layers = [
        BlockCacheLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    mask = mask.to(device)
    logits = _forward(model, cache, ids.to(device), mask[:, :longest], positions.to(device))
    return logits, cache, mask, lengths.to(device)


def _forward(
    model: nn.Module, cache: Cache, ids: Tensor, mask: Tensor, positions: Tensor
) -> Tensor:
    """Logits of the last position [B, V]; the cache grows by the tokens given."""
    # By its index, not as the number 1: the slice that gives is not contiguous, and a linear
    # layer then copies its weight once a row.
    last = torch.tensor([ids.shape[1] - 1], device=ids.device)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last,
    )
    return output.logits[:, -1]


def _batches(lengths: list[int], sampling: Sampling) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts and sample numbers of each batch; the longest first, so that memory runs out early.

    A prompt's samples share a batch, unless there are more of them than a batch may hold.
    """
    n, size = sampling.samples_per_prompt, sampling.batch_size
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    at_once = max(1, size // n)
    for start in range(0, len(order), at_once):
        for first in range(0, n, size):
            yield order[start : start + at_once], list(range(first, min(first + size, n)))
