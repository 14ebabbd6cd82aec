"""The policy of a run: pi_0 as its config wants it, with an adapter or without, and its end."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reprise.alignment import adapters
from reprise.alignment.config import Offline, OnPolicy
from reprise.alignment.models import load_policy, weights_sha256
from reprise.rollout import files
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir


def load(name: str, config: OnPolicy | Offline, device: torch.device) -> PreTrainedModel:
    """A policy without dropout, on its device; with LoRA, a base in its own precision.

    With dropout, ln pi in training would not be the stored ln pi_k at the first step.
    """
    lora = config.lora
    quantized = adapters.quantization_config(lora.quantization if lora else None)
    dtype = lora.base_dtype if lora else "float32"
    model = load_policy(name, "policy", dtype, config.attention, **quantized)
    model = model if quantized else model.to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and not isinstance(
            module.attention_dropout, torch.nn.Module
        ):
            module.attention_dropout = 0.0
    return model.eval()


def attach(base: PreTrainedModel, config: OnPolicy | Offline, streams: Streams) -> Any:
    """`base` with a fresh adapter, which changes nothing yet."""
    assert config.lora is not None
    train = config.train
    checkpointing = train.get("activation_checkpointing") or train.get("gradient_checkpointing")
    seed = streams.internal_seed_for("adapter")
    return adapters.attach(base, config.lora, seed, bool(checkpointing))


def save_merged(
    policy: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: OnPolicy | Offline,
    run_dir: RunDir,
    last: str,
) -> dict[str, str]:
    """`checkpoints/final`: base plus adapter; `checkpoints/adapter`: the adapter alone.

    Args:
        policy: the last one.
        tokenizer: its tokenizer.
        config: the run's.
        run_dir: the run's.
        last: name of the checkpoint that holds its adapter.

    Returns:
        Hashes of both, for the summary.
    """
    lora, fresh = config.lora, None
    assert lora is not None
    if lora.quantization is not None:  # 4-bit codes cannot hold the sums
        fresh = load_policy(config.policy, "policy", lora.base_dtype, config.attention)
    if run_dir.is_main:
        with run_dir.checkpoint("final") as folder:
            adapters.save_merged(policy, folder, fresh)
            tokenizer.save_pretrained(folder)
        files.link(run_dir.checkpoints / "adapter", last)
    return {
        "weights_sha256": weights_sha256(dict(adapters.merged_onto(policy, fresh))),
        "adapter_sha256": weights_sha256(adapters.adapter_state(policy)),
    }
