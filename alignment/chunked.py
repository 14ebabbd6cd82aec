r"""ln softmax(W h + b)[a] for many tokens without their logits.

For M tokens with last hidden states h_m (width H) and a vocabulary of V tokens, plain code makes
M x V logits, as many of their logarithms, and as many gradients: 8 x 512 tokens and V = 32,000 are
524 MB each. Here the output layer is applied to a tile of tokens and vocabulary at a time:

    z_m  = ln sum_v exp(W_v h_m + b_v)          slice by slice, by logaddexp
    l_m  = W_{a_m} h_m + b_{a_m} - z_m
    dh_m = g_m (W_{a_m} - sum_v p_mv W_v),      p_mv = exp(W_v h_m + b_v - z_m)
    dW_v = sum_m g_m (1[a_m = v] - p_mv) h_m

with g the gradient of l. Backward makes each tile again, so that nothing of size V is kept but dW
itself. Padding is left out altogether. In float32 the result differs from plain code by the order
of a sum: at most 1e-5 nats a token in the tests.

How it meets the model: for the time of one forward pass the output layer answers with l instead of
logits. So everything runs inside the model's own forward, where DDP, FSDP and ZeRO have their hooks
and hold the layer's weights ready; nothing of the model's code is copied or patched. What follows
the output layer in a model's forward (Gemma 2's capping, Cohere's scale) would act on l: such
models are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reprise.rollout.errors import BadInput

TOKENS, VOCABULARY = 256, 4096  # of a tile: 4 MB of float32 logits, which stay in a cache
# Settings of models that change the logits after the output layer, and what makes them harmless.
AFTER_THE_HEAD = {
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "lm_head_multiplier": (None, 1.0),
    "output_multiplier": (None, 1.0),
}


@contextmanager
def scoring_head(model: nn.Module, token_ids: Tensor, mask: Tensor) -> Iterator[None]:
    """Within the block, `model(...).logits[:, t, 0]` is ln p of `token_ids[:, t]`, not logits.

    Args:
        model: a causal language model, perhaps wrapped for data parallelism.
        token_ids: shape (batch, T); the model has to be asked for T or T + 1 positions.
        mask: 1 where the value is wanted; it is 0 elsewhere.

    Raises:
        BadInput: the model has no plain output layer, or changes logits after it.
    """
    head = output_layer(model)

    def forward(hidden: Tensor) -> Tensor:
        wanted = nn.functional.pad(mask, (0, hidden.shape[1] - mask.shape[1])).bool()
        values = token_logprobs(hidden[wanted], head.weight, head.bias, token_ids[mask.bool()])
        empty = torch.zeros(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
        return empty.masked_scatter(wanted, values)[:, :, None]

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def output_layer(model: nn.Module) -> nn.Linear:
    """The layer that makes logits.

    Raises:
        BadInput: see `scoring_head`.
    """
    while not hasattr(model, "get_output_embeddings") and hasattr(model, "module"):
        model = model.module  # a wrapper
    head = model.get_output_embeddings()
    settings: Any = model.config.get_text_config()
    after = [
        name for name, none in AFTER_THE_HEAD.items() if getattr(settings, name, None) not in none
    ]
    if after or not isinstance(head, nn.Linear):
        reason = f"{', '.join(after)} changes its logits" if after else "it has no plain lm_head"
        raise BadInput(
            f"logits='chunked' does not fit {settings.model_type}: {reason}; set logits=full"
        )
    return head


def token_logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor) -> Tensor:
    """ln softmax(W h + b)[a], in nats, float32, shape (M,).

    Args:
        hidden: h, shape (M, H).
        weight: W, shape (V, H).
        bias: b, shape (V,), or None.
        tokens: a, int64, shape (M,).
    """
    kind = hidden.device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return _TokenLogprobs.apply(hidden, weight, bias, tokens, cast)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Any, tokens: Tensor, cast: Any):
        chosen = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
        normalizer = torch.full_like(chosen, -torch.inf)
        narrow = hidden.to(cast)
        for words, matrix in _slices(weight, cast):
            for rows in _ranges(len(hidden), TOKENS):
                logits = _tile(narrow[rows], matrix, bias, words)
                inside, column = _within(tokens[rows], words)
                chosen[rows] += torch.where(inside, logits.gather(1, column)[:, 0], 0.0)
                normalizer[rows] = torch.logaddexp(normalizer[rows], logits.logsumexp(1))
        ctx.save_for_backward(hidden, weight, bias, tokens, normalizer)
        ctx.cast = cast
        return chosen - normalizer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        hidden, weight, bias, tokens, normalizer = ctx.saved_tensors
        gradient, cast = gradients[0].float(), ctx.cast
        wanted = ctx.needs_input_grad
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wanted[0] else None
        of_weight = torch.empty_like(weight) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] else None
        narrow = hidden.to(cast)
        for words, matrix in _slices(weight, cast):
            slice_gradient = torch.zeros(matrix.shape, dtype=torch.float32, device=weight.device)
            for rows in _ranges(len(hidden), TOKENS):
                logits = _tile(narrow[rows], matrix, bias, words)
                inside, column = _within(tokens[rows], words)
                logits.sub_(normalizer[rows, None]).exp_().mul_(-gradient[rows, None])
                logits.scatter_add_(1, column, (gradient[rows] * inside)[:, None])
                of_logits = logits.to(cast)
                if of_hidden is not None:
                    of_hidden[rows] += of_logits @ matrix
                if of_weight is not None:
                    slice_gradient += of_logits.T @ narrow[rows]
                if of_bias is not None:
                    of_bias[words] += logits.sum(0)
            if of_weight is not None:
                of_weight[words] = slice_gradient.to(weight.dtype)
        return (
            None if of_hidden is None else of_hidden.to(hidden.dtype),
            of_weight,
            None if of_bias is None else of_bias.to(bias.dtype),
            None,
            None,
        )


def _ranges(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _slices(weight: Tensor, cast: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the output matrix, a slice of the vocabulary at a time."""
    return ((words, weight[words].to(cast)) for words in _ranges(len(weight), VOCABULARY))


def _tile(hidden: Tensor, matrix: Tensor, bias: Tensor | None, words: slice) -> Tensor:
    """Logits of a tile of tokens for a slice of the vocabulary, float32."""
    logits = (hidden @ matrix.T).float()
    return logits if bias is None else logits + bias[words].float()


def _within(tokens: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which tokens lie in the slice, and their column in it (0 for the others), shape (rows, 1)."""
    inside = (tokens >= words.start) & (tokens < words.stop)
    return inside, torch.where(inside, tokens - words.start, 0)[:, None]
