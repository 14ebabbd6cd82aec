"""The Trainer that rounds and supervised runs share: sums of losses, whole checkpoints, same bits.

It minimizes sum_i loss_i / sum_i items_i, both sums over the whole optimizer step: over
micro-batches and over processes. So batch 8 x accumulation 1 trains as batch 1 x accumulation 8,
which an average of micro-batch means does not when the micro-batches differ in items.

The rows and their order are given (`order`), never drawn by the library. A killed run continues
from `last_complete_checkpoint` to the same bits; keep `save_total_limit` at 2 or more, for the old
checkpoint is deleted before the marker of the new one is written. A request to end (SIGTERM) is
granted after the optimizer step in progress, with a checkpoint, in the same step in every process.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from reprise.alignment.models import load_weights_strictly
from reprise.alignment.training.checkpoints import last_complete_checkpoint, mark_complete
from reprise.rollout import files
from reprise.rollout.run import interruption
from reprise.rollout.run.run_dir import Progress, RunDir

Batch = dict[str, Tensor]


class ResumableTrainer(Trainer):
    """`transformers.Trainer` on rows in a given order; subclasses say what a batch and a loss are.

    Args:
        model: trained in place.
        arguments: from `make_training_arguments`; its folder holds the checkpoints.
        tokenizer: saved beside every checkpoint.
        order: row numbers in the order of training, int64, whole optimizer steps only.
        run_dir: where metrics go.
    """

    model: PreTrainedModel
    progress: Progress
    unit = "examples"

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        order: np.ndarray,
        run_dir: RunDir,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=_Rows(order),
            data_collator=self._collate,
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True  # `compute_loss` divides by the whole step's items
        self.run_dir = run_dir
        self._watched: dict[str, list[Tensor]] = defaultdict(list)
        self._ended = False

    # -- what a subclass says ----------------------------------------------------------------------

    def _collate(self, rows: list[int]) -> Batch:
        """The batch of these rows."""
        raise NotImplementedError

    def losses(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the batch's losses, and what to watch: a value for each item or example."""
        raise NotImplementedError

    def items(self, batch: Batch) -> Tensor | int:
        """How many items the losses of a batch are averaged over."""
        raise NotImplementedError

    def record(self, logs: dict[str, float], watched: dict[str, float]) -> None:
        """Write the numbers of the steps since the last record to ``metrics.jsonl``."""
        raise NotImplementedError

    def here(self) -> str:
        """Where training is, and what helps there, for an error."""
        return f"at step {self.state.global_step + 1}; lower train.learning_rate"

    # -- training ----------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def fit(self, label: str) -> int:
        """Train to the end, from the last complete checkpoint if there is one.

        Returns:
            The number of optimizer steps.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        assert self.train_dataset is not None
        total = len(self.train_dataset)
        with self.run_dir.progress(label, total, self.unit) as self.progress:
            accumulated = self.args.gradient_accumulation_steps
            self.progress.advance(steps_done(self.folder) * accumulated * self._rows_of_all())
            self.train(resume_from_checkpoint=last_complete_checkpoint(self.folder))
        # Mixed precision wraps `forward`; without this each round would wrap it once more.
        self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        return self.state.global_step

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train to the end, or until asked to end; raises `Preempted` after a checkpoint then."""
        with interruption.deferred():
            result = super().train(*args, **kwargs)
            if self._ended:
                raise interruption.Preempted
        return result

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum of losses here over the number of items in the whole optimizer step."""
        assert num_items_in_batch is not None
        total, watched = self.losses(model, inputs)
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"the loss is not finite {self.here()}. The last complete checkpoint is untouched"
            )
        for name, values in watched.items():
            self._watched[name].append(values.detach().float().reshape(-1))
        # Data parallelism averages gradients over processes; the objective is one sum over all.
        return total * (self.accelerator.num_processes / num_items_in_batch)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, shown on the progress bar."""
        loss = super().training_step(*args, **kwargs)
        self.progress.advance(self._rows_of_all())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Send the library's numbers and our own to ``metrics.jsonl``."""
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        watched = {name: self._mean(torch.cat(parts)) for name, parts in self._watched.items()}
        self._watched.clear()
        kept = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate")}
        self.record(kept, watched)

    def _rows_of_all(self) -> int:
        """Rows of a micro-batch, over all processes."""
        return self.args.per_device_train_batch_size * self.run_dir.world

    def _mean(self, values: Tensor) -> float:
        """The mean over all processes, of those that are not NaN."""
        if self.accelerator.num_processes == 1:
            return values.nanmean().item()
        here = torch.stack([values.nansum(), (~values.isnan()).sum()])
        total, count = self.accelerator.reduce(here, reduction="sum").tolist()
        return total / count if count else float("nan")

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        here = sum(torch.as_tensor(self.items(batch)) for batch in batch_samples)
        return self.accelerator.gather(torch.as_tensor(here).to(device)).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the inputs are not the model's own."""
        return 0

    # -- checkpoints -------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if not self._ended and self._any_is_asked_to_end():
            self._ended = True
            self.control.should_save = True
            self.control.should_training_stop = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _any_is_asked_to_end(self) -> bool:
        """Whether any process was asked: the signal may reach them in different steps."""
        requested = interruption.asked()
        if self.args.world_size == 1:
            return requested
        here = torch.tensor([requested], device=self.args.device)
        return bool(self.accelerator.gather(here).any())

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            explained = files.explain_full_disk(error, self.folder)
            if explained is error:
                raise
            raise explained from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(self.folder / f"checkpoint-{self.state.global_step}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights_strictly(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        load_weights_strictly(self.model, self.state.best_model_checkpoint)


def steps_done(folder: Path) -> int:
    """Optimizer steps behind the last complete checkpoint in `folder`; 0 without one."""
    checkpoint = last_complete_checkpoint(folder)
    return int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0


class _Rows(Dataset):
    """Row numbers, in training order; the collator fetches the rows."""

    def __init__(self, order: np.ndarray) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> int:
        return int(self.order[position])
