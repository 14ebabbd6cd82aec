"""A reward model with a vocabulary of its own."""

import torch
from tokenizers import processors

from reprise.alignment import models
from reprise.alignment.config import FromScratch


def foreign_reward(folder, template=None, special="", where="$A"):
    """Save a small one; its tokenizer adds `special` to every text as `where` says.

    Args:
        folder: where it is saved.
        template: chat template.
        special: a special token, "" for none.
        where: a `tokenizers` template, e.g. "$A <eos>".

    Returns:
        Its tokenizer.
    """
    tokenizer = models.train_tokenizer(["the value of the path to a file name"] * 9, 310)
    if special:
        if special != tokenizer.eos_token:
            tokenizer.add_special_tokens({"bos_token": special})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=where,
            special_tokens=[(special, tokenizer.convert_tokens_to_ids(special))],
        )
    tokenizer.chat_template = template
    shape = FromScratch(
        architecture="llama", layers=1, width=16, heads=2, feedforward=16, vocabulary=310
    )
    model = models.reward_model_from(models.new_policy(shape, tokenizer, seed=4), seed=5)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(6))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer
