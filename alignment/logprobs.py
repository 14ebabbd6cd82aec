"""Log-probabilities of completions: the only place where logits are shifted and masked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprise.alignment.chunked import scoring_head


def pad_completions(
    prompt_ids: Sequence[np.ndarray], completion_ids: Sequence[np.ndarray], pad_id: int
) -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right, so that they meet at one column.

    Returns:
        ``prompt_ids``, ``prompt_mask`` of shape (batch, longest prompt) and ``completion_ids``,
        ``completion_mask`` of shape (batch, longest completion); int64, masks 1 on real tokens.
    """
    prompt, prompt_mask = _pad(prompt_ids, pad_id, left=True)
    completion, completion_mask = _pad(completion_ids, pad_id, left=False)
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt_mask,
        "completion_ids": completion,
        "completion_mask": completion_mask,
    }


def completion_logprobs(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    chunked: bool = False,
) -> tuple[Tensor, Tensor]:
    """ln pi(a|x) = sum_t ln pi(a_t | x, a_<t), over the completion's tokens, its EOS included.

    The logits at position j predict token j+1, so those of the last prompt token and of all
    completion tokens but the last are read: the last `completion length + 1` positions, without
    the final one. No other logits are computed.

    Args:
        model: a causal language model.
        prompt_ids, prompt_mask: shape (batch, P), padded on the left.
        completion_ids, completion_mask: shape (batch, C), padded on the right.
        chunked: never hold all of these logits at once either (`alignment.chunked`).

    Returns:
        Sequence log-probabilities, shape (batch,), and those of each token, shape (batch, C),
        0 on padding; float32, nats.
    """
    input_ids = torch.cat([prompt_ids, completion_ids], dim=1)
    mask = torch.cat([prompt_mask, completion_mask], dim=1)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        "logits_to_keep": completion_ids.shape[1] + 1,
        "use_cache": False,
    }
    if chunked:
        with scoring_head(model, completion_ids, completion_mask):
            tokens = model(**inputs).logits[:, :-1, 0].float()
        return tokens.sum(dim=1), tokens
    logits = model(**inputs).logits[:, :-1].float()
    tokens = -F.cross_entropy(logits.transpose(1, 2), completion_ids, reduction="none")
    tokens = tokens * completion_mask
    return tokens.sum(dim=1), tokens


@torch.inference_mode()
def score_completions(
    model: nn.Module,
    prompt_ids: Sequence[np.ndarray],
    completion_ids: Sequence[np.ndarray],
    pad_id: int,
    batch_size: int,
    autocast: bool = False,
    chunked: bool = False,
) -> np.ndarray:
    """`completion_logprobs` of many sequences, batched by length; float32, shape (sequences,).

    Args:
        model: a causal language model; evaluated as it trains (dropout off).
        prompt_ids: one int32 array per sequence.
        completion_ids: one int32 array per sequence.
        pad_id: the padding token.
        batch_size: sequences in a forward pass.
        autocast: run in bfloat16 autocast, as training does when ``train.bf16`` is set.
        chunked: as training does when ``logits`` is "chunked".
    """
    device = next(model.parameters()).device
    result = np.zeros(len(prompt_ids), dtype=np.float32)
    for rows, batch in batches_by_length(prompt_ids, completion_ids, pad_id, batch_size):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            total, _ = completion_logprobs(model, **on_device, chunked=chunked)
        result[rows] = total.float().cpu().numpy()
    return result


def batches_by_length(
    prompt_ids: Sequence[np.ndarray],
    completion_ids: Sequence[np.ndarray],
    pad_id: int,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Rows, and what `pad_completions` makes of them, `batch_size` sequences of like length."""
    lengths = [len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield (
            rows,
            pad_completions(
                [prompt_ids[row] for row in rows], [completion_ids[row] for row in rows], pad_id
            ),
        )


def _pad(sequences: Sequence[np.ndarray], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        where = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, where] = sequence
        mask[row, where] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def padding_share(
    prompt_ids: Sequence[np.ndarray],
    completion_ids: Sequence[np.ndarray],
    batches: Sequence[np.ndarray],
) -> float:
    """Share of the tokens that the model computes in these batches and that are padding.

    Args:
        prompt_ids: one array per sequence.
        completion_ids: one array per sequence.
        batches: rows of the sequences that share a batch.
    """
    prompts = np.array([len(ids) for ids in prompt_ids])
    completions = np.array([len(ids) for ids in completion_ids])
    real = sum(int(prompts[rows].sum() + completions[rows].sum()) for rows in batches)
    made = sum(len(rows) * int(prompts[rows].max() + completions[rows].max()) for rows in batches)
    return 1.0 - real / made
