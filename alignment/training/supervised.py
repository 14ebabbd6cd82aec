"""The training that SFT and reward models share: like lengths together, looks on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reprise.alignment.config import SFT, RewardTraining
from reprise.alignment.training.arguments import make_training_arguments
from reprise.alignment.training.muon import MuonAdamW
from reprise.alignment.training.sharding import check_strategy
from reprise.alignment.training.trainer import Batch, ResumableTrainer, steps_done
from reprise.rollout.errors import BadInput
from reprise.rollout.run.run_dir import RunDir

BUCKET = 32  # optimizer steps whose examples are sorted by length together
PEEKS = 8  # looks at held-out data during training


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


@dataclass(frozen=True)
class Task:
    """What a supervised run learns.

    Attributes:
        collate: row numbers -> a batch; its "items" counts what the loss is averaged over.
        loss: (model, batch) -> sum of losses, and metrics, one value per item or example.
        peek: held-out metrics, asked for `PEEKS` times; must leave no trace in the model.
    """

    collate: Callable[[list[int]], Batch]
    loss: Callable[[torch.nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]
    peek: Callable[[], dict[str, float]]


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    order: np.ndarray,
    task: Task,
    config: SFT | RewardTraining,
    run_dir: RunDir,
) -> int:
    """Train `model` in place on the rows of `order`; continue a killed attempt to the same bits.

    Args:
        model: trained in place.
        tokenizer: saved beside every checkpoint.
        order: from `training_order`.
        task: what is learned from a row.
        config: the experiment's settings.
        run_dir: where metrics and checkpoints go.

    Returns:
        The number of optimizer steps.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    trainer = SupervisedTrainer(model, tokenizer, order, task, config, run_dir)
    done = steps_done(trainer.folder)
    run_dir.cut_metrics(lambda record: record.get("step", 0) <= done)
    if done:
        run_dir.say(f"continuing after step {done} of {trainer.args.max_steps}")
    return trainer.fit("training")


def save_final(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run_dir: RunDir) -> None:
    """Keep the result as `checkpoints/final`; the checkpoints on the way there are not needed."""
    if run_dir.is_main:
        with run_dir.checkpoint("final") as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        shutil.rmtree(run_dir.checkpoints / "training", ignore_errors=True)


class SupervisedTrainer(ResumableTrainer):
    """`ResumableTrainer` on a `Task`, with Muon where the config asks for it."""

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        order: np.ndarray,
        task: Task,
        config: SFT | RewardTraining,
        run_dir: RunDir,
    ) -> None:
        steps = len(order) // config.batch_size
        arguments = make_training_arguments(
            config.train,
            batch_size=config.batch_size,
            seed=config.seed,
            folder=run_dir.checkpoints / "training",
            world=run_dir.world,
            defaults={"logging_steps": 10, "save_steps": 200},
            length={"max_steps": steps},
        )
        check_strategy(config.parallelism, run_dir.world, ("single", "ddp"))
        self.task, self.with_muon = task, config.optimizer == "muon"
        self.peek_every = max(1, steps // PEEKS)
        super().__init__(model, arguments, tokenizer, order, run_dir)

    def _collate(self, rows: list[int]) -> Batch:
        return self.task.collate(rows)

    def losses(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's."""
        return self.task.loss(model, batch)

    def items(self, batch: Batch) -> Tensor:
        """What the task's loss is averaged over."""
        return batch["items"].sum()

    def record(self, logs: dict[str, float], watched: dict[str, float]) -> None:
        """A line, `PEEKS` times with held-out metrics."""
        step, measured = self.state.global_step, {}
        if step // self.peek_every > (step - self.args.logging_steps) // self.peek_every:
            self.model.eval()
            with torch.no_grad():
                measured = self.task.peek()
            self.model.train()
        self.run_dir.log(step=step, **{**logs, **watched, **measured})

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
