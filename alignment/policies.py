"""The policies of a run: pi_0, the pi_k that is trained, how each is saved, and the last one.

With LoRA one base serves both: pi_0 is the base with its adapter off. With shards (FSDP2, ZeRO) the
policy is whole while a round is collected, in shards while it is updated, and made whole again.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reprise.alignment import adapters
from reprise.alignment.config import Offline, OnPolicy
from reprise.alignment.limits import check_tokenizer, without_dropout
from reprise.alignment.models import (
    load_policy,
    load_tokenizer,
    load_weights_strictly,
    weights_sha256,
)
from reprise.alignment.training import sharding
from reprise.alignment.training.update import remove_update_checkpoints
from reprise.rollout import files
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir


class Policies:
    """pi_0 and pi_k.

    Args:
        config: the experiment's settings.
        run_dir: where policies are saved.
        streams: of the run; a fresh adapter draws from them.

    Attributes:
        saved: number of the newest policy that was saved; 0 without one.
        initial: pi_0, None until `load_initial` and `start_from`, and where nothing needs it.
        current: pi_k, None until `start_from`.
        tokenizer: theirs.
        device: where they are.
    """

    def __init__(self, config: OnPolicy | Offline, run_dir: RunDir, streams: Streams) -> None:
        self.config, self.run_dir, self.streams = config, run_dir, streams
        self.device = PartialState().device
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(config.policy, "policy")
        newest = run_dir.newest("round")
        self.saved = 0 if newest is None else newest[0]
        self.initial: Any = None
        self.current: Any = None

    def load_initial(self) -> PreTrainedModel:
        """The model that `policy` names; it is pi_0 once `start_from` has it.

        Raises:
            BadInput: its tokenizer has tokens that it has no row for.
        """
        model = load(self.config.policy, self.config, self.device)
        check_tokenizer(model, self.tokenizer, f"policy={self.config.policy!r}")
        return model

    def start_from(self, initial: PreTrainedModel | None) -> None:
        """Set pi_0, and pi_k to the newest policy that was saved.

        Args:
            initial: from `load_initial`; None where pi_0 is not needed, to save its memory.
        """
        if self.saved:
            self.run_dir.say(f"continuing after round {self.saved}")
        if self.config.lora is not None:
            self.current = self._attach(self.load_initial() if initial is None else initial)
            self.initial = None if initial is None else adapters.Reference(self.current)
            if self.saved:
                load_weights_strictly(self.current, self._folder(self.saved))
            return
        self.initial = initial
        if self.saved:
            self.current = load(str(self._folder(self.saved)), self.config, self.device)
        else:
            self.current = self.load_initial() if initial is None else copy.deepcopy(initial)

    def make_whole(self) -> None:
        """Put a whole pi_{k+1} in the place of the one in shards."""
        whole: Any = self.load_initial()
        if self.config.lora is not None:
            whole = self._attach(whole)
            if self.initial is not None:  # it shared the base that is in shards now
                self.initial = adapters.Reference(whole)
        sharding.copy_whole(self.current, whole)
        self.current = whole

    def save(self, k: int) -> None:
        """Save pi_k; the round is then behind us."""
        if self.run_dir.is_main:
            with self.run_dir.checkpoint(self._folder(k).name) as folder:
                self.current.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
            remove_update_checkpoints(self.run_dir, through=k)
        PartialState().wait_for_everyone()

    def finish(self) -> dict[str, str]:
        """Make `checkpoints/final` of the last policy; returns hashes for the summary."""
        PartialState().wait_for_everyone()
        last = self._folder(self.config.rounds).name
        if self.config.lora is not None:
            return self._save_merged(last)
        if self.run_dir.is_main:
            files.link(self.run_dir.checkpoints / "final", last)
        return {"weights_sha256": weights_sha256(self.current.state_dict())}

    def _save_merged(self, last: str) -> dict[str, str]:
        """`checkpoints/final`: base plus adapter; `checkpoints/adapter`: the adapter alone."""
        lora, fresh = self.config.lora, None
        assert lora is not None
        if lora.quantization is not None:  # 4-bit codes cannot hold the sums
            attention = self.config.attention
            fresh = load_policy(self.config.policy, "policy", lora.base_dtype, attention)
        if self.run_dir.is_main:
            with self.run_dir.checkpoint("final") as folder:
                adapters.save_merged(self.current, folder, fresh)
                self.tokenizer.save_pretrained(folder)
            files.link(self.run_dir.checkpoints / "adapter", last)
        return {
            "weights_sha256": weights_sha256(dict(adapters.merged_onto(self.current, fresh))),
            "adapter_sha256": weights_sha256(adapters.adapter_state(self.current)),
        }

    def _attach(self, base: PreTrainedModel) -> Any:
        """`base` with a fresh adapter, which changes nothing yet."""
        assert self.config.lora is not None
        train = self.config.train
        checkpointing = train.get("activation_checkpointing") or train.get("gradient_checkpointing")
        seed = self.streams.internal_seed_for("adapter")
        return adapters.attach(base, self.config.lora, seed, bool(checkpointing))

    def _folder(self, k: int) -> Path:
        return self.run_dir.checkpoints / f"round-{k:05d}"


def load(name: str, config: OnPolicy | Offline, device: torch.device) -> PreTrainedModel:
    """A policy without dropout, on its device; with LoRA, a base in its own precision.

    With dropout, ln pi in training would not be the stored ln pi_k at the first step. And no token
    is padding to the embedding: there it would take no gradient, in a policy that was saved and
    read back only, for saving writes the tokenizer's PAD into a config that had none.
    """
    lora = config.lora
    quantized = adapters.quantization_config(lora.quantization if lora else None)
    dtype = lora.base_dtype if lora else "float32"
    model = load_policy(name, "policy", dtype, config.attention, **quantized)
    model = model if quantized else model.to(device)
    without_dropout(model)
    embedding = model.get_input_embeddings()
    if isinstance(embedding, torch.nn.Embedding):
        embedding.padding_idx = None
    return model.eval()
