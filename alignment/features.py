r"""Feature vectors phi(x, a) of completions, from a policy's own last hidden layer.

The last layer of a language model is a softmax that is linear in its hidden state. The mean of that
state over a completion's tokens, projected to a few dimensions, stands for the phi(x, a) of a
linear softmax policy, so that designs and coverages mean something for a real model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from reprise.alignment.logprobs import batches_by_length
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams


@torch.inference_mode()
def hidden_features(
    model: PreTrainedModel,
    prompt_ids: Sequence[np.ndarray],
    completion_ids: Sequence[np.ndarray],
    pad_id: int,
    batch_size: int,
) -> np.ndarray:
    """Mean of the last hidden layer over each completion's tokens; float64, (sequences, width).

    Args:
        model: a causal language model, not wrapped.
        prompt_ids: one int32 array per sequence.
        completion_ids: one int32 array per sequence.
        pad_id: the padding token.
        batch_size: sequences in a forward pass.
    """
    model.eval()
    device = next(model.parameters()).device
    result = np.zeros((len(prompt_ids), model.config.hidden_size))
    for rows, batch in batches_by_length(prompt_ids, completion_ids, pad_id, batch_size):
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1).to(device)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1).to(device)
        output = model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
        )
        counted = batch["completion_mask"].to(device).double()
        hidden = output.last_hidden_state[:, -counted.shape[1] :].double()
        mean = (hidden * counted[:, :, None]).sum(1) / counted.sum(1, keepdim=True)
        result[rows] = mean.cpu().numpy()
    return result


def projection(width: int, dimension: int, streams: Streams) -> np.ndarray:
    """A random orthonormal projection, shape (width, dimension): the algorithm's own randomness.

    Raises:
        BadInput: more dimensions than the model has.
    """
    if dimension > width:
        raise BadInput(
            f"dimension={dimension} exceeds the {width} hidden features of the model; lower it"
        )
    drawn = streams.internal("feature projection", 0).normal(size=(width, dimension))
    return np.linalg.qr(drawn)[0]


def bounded(features: np.ndarray) -> np.ndarray:
    """Features divided by their largest norm: ||phi(x, a)|| <= 1."""
    return features / np.linalg.norm(features, axis=-1).max()
