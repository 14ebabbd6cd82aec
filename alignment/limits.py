"""What a model can take: how many token ids, and how long a text. Told before anything runs.

A PAD token that was added to a tokenizer and not to the embedding, or a text beyond the positions
that were trained, ends in an IndexError in the middle of a run, or, with rotary positions, in
scores that mean nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reprise.rollout.errors import BadInput
from reprise.rollout.requests import positions_of, rows_of


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Refuse a tokenizer with tokens that the model has no row for.

    Args:
        model: any model with input embeddings.
        tokenizer: the one it is used with.
        what: the config's name for the model, e.g. ``policy='m/llama'``.

    Raises:
        BadInput: names the tokens.
    """
    rows = rows_of(model)
    outside = {token: id for token, id in tokenizer.get_vocab().items() if id >= rows}
    if outside:
        named = sorted(outside.items(), key=lambda item: item[1])
        shown = ", ".join(f"{token!r} = {id}" for token, id in named[:5])
        special = {tokenizer.pad_token_id: "PAD", tokenizer.eos_token_id: "EOS"}
        roles = sorted({special[id] for id in outside.values() if id in special})
        among = f"; {' and '.join(roles)} among them" if roles else ""
        raise BadInput(
            f"{what}: its tokenizer has {len(outside)} tokens beyond the {rows} rows of its "
            f"embedding ({shown}{', ...' if len(named) > 5 else ''}{among}); resize the model with "
            "`resize_token_embeddings`, or take a PAD token that it has"
        )


def check_length(model: PreTrainedModel, longest: int, what: str, remedy: str) -> None:
    """Refuse texts beyond a model's positions, learned or rotary.

    Args:
        model: the model.
        longest: tokens of the longest text that it will be given.
        what: the config's name for the model.
        remedy: what to change.

    Raises:
        BadInput: it is too long.
    """
    positions = positions_of(model.config)
    if positions is not None and longest > positions:
        raise BadInput(
            f"{what} has {positions} positions, and texts of up to {longest} tokens come to it; "
            f"{remedy}, or take a model for longer texts"
        )


def without_dropout(model: Any) -> Any:
    """`model`, in place, with every dropout 0: as a module, or as a number that a module keeps."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model
