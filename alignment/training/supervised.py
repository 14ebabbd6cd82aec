"""The training loop that supervised and reward training share: `transformers.Trainer`, resumable.

`fit` minimizes sum_i loss_i / sum_i items_i, both sums over the whole optimizer step: over
micro-batches and over processes. So batch 8 x accumulation 1 trains as batch 1 x accumulation 8,
which an average of micro-batch means does not when the micro-batches differ in tokens.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
)

from reprise.alignment.config import SFT, RewardTraining
from reprise.alignment.training.arguments import make_training_arguments
from reprise.alignment.training.checkpoints import StrictCheckpoints, last_complete_checkpoint
from reprise.alignment.training.muon import MuonAdamW
from reprise.alignment.training.sharding import check_strategy
from reprise.rollout.errors import BadInput
from reprise.rollout.run.run_dir import RunDir

BUCKET = 32  # optimizer steps whose examples are sorted by length together
PEEKS = 8  # looks at held-out data during training

Batch = dict[str, Tensor]
Loss = Callable[[torch.nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]


def training_order(
    lengths: Sequence[int], batch_size: int, epochs: float, shuffle: np.random.Generator
) -> np.ndarray:
    """Row numbers in the order of training, whole optimizer steps only.

    Each epoch is a fresh permutation, cut into stretches of `BUCKET` steps; a stretch is sorted by
    length, so that a step pads little, and its steps are shuffled again. What would not fill a
    step is left out, another remainder each epoch.

    Raises:
        BadInput: fewer examples than one step needs.
    """
    count = len(lengths)
    if count < batch_size:
        raise BadInput(
            f"batch_size={batch_size} exceeds the {count} examples; lower batch_size or raise "
            "data.max_examples"
        )
    steps_per_epoch = count // batch_size
    total = max(1, round(epochs * steps_per_epoch))
    by_length = np.asarray(lengths)
    order: list[np.ndarray] = []
    while sum(map(len, order)) < total * batch_size:
        rows = shuffle.permutation(count)[: steps_per_epoch * batch_size]
        for start in range(0, len(rows), BUCKET * batch_size):
            stretch = rows[start : start + BUCKET * batch_size]
            stretch = stretch[np.argsort(by_length[stretch], kind="stable")]
            steps = stretch.reshape(-1, batch_size)
            order.append(shuffle.permutation(steps).reshape(-1))
    return np.concatenate(order)[: total * batch_size]


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    order: np.ndarray,
    collate: Callable[[list[int]], Batch],
    loss: Loss,
    peek: Callable[[], dict[str, float]],
    config: SFT | RewardTraining,
    run_dir: RunDir,
) -> int:
    """Train `model` in place on the rows of `order`; continue a killed attempt to the same bits.

    Args:
        model: trained in place.
        tokenizer: saved beside every checkpoint.
        order: from `training_order`.
        collate: row numbers -> a batch; its "items" counts what the loss is averaged over.
        loss: (model, batch) -> sum of losses, and metrics, one value per item or example.
        peek: held-out metrics, asked for `PEEKS` times; must leave no trace in the model.
        config: the experiment's settings.
        run_dir: where metrics and checkpoints go.

    Returns:
        The number of optimizer steps.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    folder = run_dir.checkpoints / "training"
    steps = len(order) // config.batch_size
    arguments = make_training_arguments(
        config.train,
        batch_size=config.batch_size,
        seed=config.seed,
        folder=folder,
        world=run_dir.world,
        defaults={"logging_steps": 10, "save_steps": 200},
        length={"max_steps": steps},
    )
    check_strategy(config.parallelism, run_dir.world, ("single", "ddp"))
    trainer = SupervisedTrainer(
        model=model,
        args=arguments,
        train_dataset=_Rows(order),
        data_collator=collate,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.with_muon = config.optimizer == "muon"
    trainer.loss, trainer.peek, trainer.run_dir = loss, peek, run_dir
    trainer.peek_every = max(1, steps // PEEKS)
    resumable = last_complete_checkpoint(folder)
    done = int(resumable.rsplit("-", 1)[1]) if resumable else 0
    run_dir.cut_metrics(lambda record: record.get("step", 0) <= done)
    if done:
        run_dir.say(f"continuing after step {done} of {steps}")
    with run_dir.progress("training", total=len(order), unit="examples") as trainer.progress:
        trainer.progress.advance(done * config.batch_size)
        trainer.train(resume_from_checkpoint=resumable)
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    return trainer.state.global_step


def save_final(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run_dir: RunDir) -> None:
    """Keep the result as `checkpoints/final`; the checkpoints on the way there are not needed."""
    if run_dir.is_main:
        with run_dir.checkpoint("final") as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        shutil.rmtree(run_dir.checkpoints / "training", ignore_errors=True)


class SupervisedTrainer(StrictCheckpoints, Trainer):
    """`transformers.Trainer` on rows in a given order, with a loss that is a function."""

    optimizer: torch.optim.Optimizer | None

    loss: Loss
    peek: Callable[[], dict[str, float]]
    peek_every: int
    run_dir: RunDir
    progress: Any
    with_muon: bool

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.loss_is_scaled_for_ga = True  # `compute_loss` divides by the whole step's items
        self._watched: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum of losses here over the number of items in the whole optimizer step."""
        total, watched = self.loss(model, inputs)
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"the loss is not finite at step {self.state.global_step + 1}; lower "
                "train.learning_rate. The last complete checkpoint is untouched"
            )
        for name, values in watched.items():
            self._watched[name].append(values.detach().float().reshape(-1))
        # Data parallelism averages gradients over processes; the objective is one sum over all.
        return total * (self.accelerator.num_processes / num_items_in_batch)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, shown on the progress bar."""
        loss = super().training_step(*args, **kwargs)
        self.progress.advance(self.args.per_device_train_batch_size * self.run_dir.world)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Send the Trainer's numbers and our own to ``metrics.jsonl``."""
        super().log(logs, start_time)
        if "loss" not in logs:
            return
        values = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate")}
        for name, parts in self._watched.items():
            values[name] = torch.cat(parts).mean().item()
        self._watched.clear()
        step = self.state.global_step
        if step // self.peek_every > (step - self.args.logging_steps) // self.peek_every:
            self.model.eval()
            with torch.no_grad():
                values |= self.peek()
            self.model.train()
        self.run_dir.log(step=step, **values)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW as the library makes it, or Muon."""
        if self.with_muon and self.optimizer is None:
            arguments = self.args
            self.optimizer = MuonAdamW(
                model or self.model,
                arguments.learning_rate,
                (arguments.adam_beta1, arguments.adam_beta2),
                arguments.weight_decay,
            )
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        here = torch.stack([batch["items"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(here).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the inputs are not the model's own."""
        return 0


class _Rows(Dataset):
    """Row numbers, in training order; the collator fetches the rows."""

    def __init__(self, order: np.ndarray) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> int:
        return int(self.order[position])
