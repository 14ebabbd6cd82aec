"""One round's update: minimize the objective on the fixed data D_k.

A `transformers.Trainer` whose loss is a pure function of stored columns, so that accumulation,
mixed precision, data parallelism and resumption inside a round are the library's. One `train()`
per round: the optimizer, the warm-up and the decay start afresh (2601.08421, Section 6.1).

Two traps. A Trainer by default averages micro-batch means, so that ties (weight 0) would count
differently under accumulation; here the sum of losses is divided by the number of pairs in the
whole optimizer step (`trainer.py`). And a policy that is not the one that drew the data would train
silently on wrong ratios; the first step compares ln pi with the stored ln pi_k and refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from reprise.alignment.config import Offline, OnPolicy
from reprise.alignment.logprobs import completion_logprobs, pad_completions, padding_share
from reprise.alignment.objectives import loss_function, loss_name, pair_losses
from reprise.alignment.pairs import Targets
from reprise.alignment.training.arguments import make_training_arguments
from reprise.alignment.training.sharding import check_shards, check_strategy, forget_deepspeed
from reprise.alignment.training.trainer import Batch, ResumableTrainer, steps_done
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.types import Pairs

STRATEGIES = ("single", "ddp", "fsdp2", "zero2", "zero3")


def minibatch_order(
    pairs: int, batch_size: int, epochs: int, shuffle: Callable[[int], np.random.Generator]
) -> np.ndarray:
    """Row numbers in the order of training, whole optimizer steps only.

    Each epoch is a fresh permutation; the remainder that would not fill a step is left out, a
    different one each time.

    Args:
        pairs: number of pairs in D_k.
        batch_size: pairs per optimizer step.
        epochs: passes over D_k.
        shuffle: epoch -> the generator of its permutation.

    Returns:
        int64, shape (epochs * (pairs // batch_size) * batch_size,).

    Raises:
        BadInput: fewer pairs than one step needs.
    """
    if pairs < batch_size:
        raise BadInput(
            f"batch_size={batch_size} exceeds the {pairs} pairs of this round; lower batch_size "
            "or raise prompts_per_round"
        )
    usable = pairs // batch_size * batch_size
    return np.concatenate([shuffle(epoch).permutation(pairs)[:usable] for epoch in range(epochs)])


def bucketed(order: np.ndarray, pairs: Pairs, batch_size: int) -> np.ndarray:
    """The same optimizer steps, each with its pairs in the order of their lengths.

    A step sums over all of its pairs, in whatever order; micro-batches of pairs of like length hold
    less padding. The longest come first, so that memory runs out early.

    Args:
        order: from `minibatch_order`.
        pairs: D_k.
        batch_size: pairs per optimizer step.
    """
    longest = np.array(
        [
            len(prompt) + max(len(first), len(second))
            for prompt, first, second in zip(
                pairs.prompt_ids, pairs.first_ids, pairs.second_ids, strict=True
            )
        ]
    )
    steps = order.reshape(-1, batch_size)
    inner = np.argsort(-longest[steps], axis=1, kind="stable")
    return np.take_along_axis(steps, inner, axis=1).ravel()


def padding_of(order: np.ndarray, pairs: Pairs, micro_batch: int) -> float:
    """Share of padding among the tokens of an update's micro-batches."""
    count = len(pairs)
    batches = [np.concatenate([rows, rows + count]) for rows in order.reshape(-1, micro_batch)]
    prompts = [*pairs.prompt_ids, *pairs.prompt_ids]
    return padding_share(prompts, [*pairs.first_ids, *pairs.second_ids], batches)


def order_of_round(
    pairs: Pairs, config: OnPolicy | Offline, streams: Streams, k: int
) -> np.ndarray:
    """The order in which round k trains on its pairs; see `minibatch_order` and `bucketed`."""
    order = minibatch_order(
        len(pairs),
        config.batch_size,
        config.epochs,
        lambda epoch: streams.data("minibatches", k, epoch),
    )
    return bucketed(order, pairs, config.batch_size) if config.bucket_by_length else order


def check_training(config: OnPolicy | Offline, run_dir: RunDir) -> str:
    """Refuse settings and launches that cannot train, before anything expensive.

    Returns:
        The strategy in use.
    """
    PartialState()  # the processes meet before Accelerate is asked what it makes of the launch
    training_arguments(config, run_dir.checkpoints, run_dir.world)
    return check_strategy(config.parallelism, run_dir.world, STRATEGIES)


def training_arguments(config: OnPolicy | Offline, folder: Path, world: int) -> TrainingArguments:
    """The config's ``train:`` section with what follows from the rest of the config.

    Raises:
        BadInput: `batch_size` cannot be split over the processes, `train:` is refused, or there
            is no such loss.
    """
    loss_function(loss_name(config.objective))
    return make_training_arguments(
        config.train,
        batch_size=config.batch_size,
        seed=config.seed,
        folder=folder,
        world=world,
        defaults={"logging_steps": 1},
        length={"num_train_epochs": 1},
    )


@dataclass(frozen=True)
class RoundData:
    """What a round's update trains on.

    Attributes:
        pairs: D_k.
        targets: what the objective regresses on.
        order: from `minibatch_order`.
    """

    pairs: Pairs
    targets: Targets
    order: np.ndarray


def update(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: RoundData,
    config: OnPolicy | Offline,
    run_dir: RunDir,
    *,
    round: int,
    first_step: int,
    check_first_step: bool = True,
) -> int:
    """Train `policy` in place on one round; continue from a checkpoint inside the round if any.

    Args:
        policy: pi_k on entry, pi_{k+1} on return; under FSDP2 and ZeRO in shards then.
        tokenizer: supplies the padding token.
        data: D_k, its targets, and the order of its rows.
        config: the experiment's settings.
        run_dir: where metrics and checkpoints go.
        round: number of the policy this makes, k + 1.
        first_step: optimizer steps of all rounds before, for the metrics.
        check_first_step: refuse to train unless ln pi equals the stored ln pi_k.

    Returns:
        The number of optimizer steps of this round.

    Raises:
        FloatingPointError: the loss is not finite.
        BadInput: the policy is not the one that the stored log-probabilities belong to.
    """
    trainer = RoundTrainer(policy, tokenizer, data, config, run_dir, round, first_step)
    trainer.check_first_step = check_first_step
    reached = first_step + steps_done(trainer.folder)
    run_dir.cut_metrics(lambda r: r["round"] < round or ("step" in r and r["step"] <= reached))
    steps = trainer.fit(f"round {round}: update")
    if trainer.is_deepspeed_enabled:
        forget_deepspeed()
    return steps


def remove_update_checkpoints(run_dir: RunDir, through: int) -> None:
    """Delete the checkpoints inside rounds up to `through`: those rounds' policies are saved."""
    run_dir.prune("update", lambda rounds: [k for k in rounds if k <= through])


class RoundTrainer(ResumableTrainer):
    """`ResumableTrainer` on pairs, with an objective of `alignment.objectives`."""

    unit = "pairs"

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: RoundData,
        config: OnPolicy | Offline,
        run_dir: RunDir,
        round: int,
        first_step: int,
    ) -> None:
        self.pairs, self.targets = data.pairs, data.targets
        self.pad_id = tokenizer.pad_token_id
        self.objective = loss_name(config.objective)
        self.tolerance = config.first_step_tolerance
        self.chunked = config.logits == "chunked"
        self.round, self.first_step = round, first_step
        self.check_first_step = True
        self.parallelism = config.parallelism
        self.shards_checked = False
        folder = run_dir.checkpoints / f"update-{round:05d}"
        arguments = training_arguments(config, folder, run_dir.world)
        super().__init__(policy, arguments, tokenizer, data.order, run_dir)

    def _collate(self, rows: list[int]) -> Batch:
        """Pairs `rows`, first completions above second ones: shape (2 * pairs, ...)."""
        prompts = [self.pairs.prompt_ids[row] for row in rows]
        completions = [self.pairs.first_ids[row] for row in rows]
        completions += [self.pairs.second_ids[row] for row in rows]
        columns = {
            "target": self.targets.target,
            "weight": self.targets.weight,
            "reference_logprobs": self.targets.reference_logprobs,
            "policy_logprobs": self.pairs.policy_logprobs,
        }
        return pad_completions(prompts * 2, completions, self.pad_id) | {
            name: torch.from_numpy(column[rows]) for name, column in columns.items()
        }

    def losses(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the pair losses; y and whether it agrees, for each pair."""
        stored = batch.pop("policy_logprobs")
        columns = {name: batch.pop(name) for name in ("reference_logprobs", "target", "weight")}
        total, _ = completion_logprobs(model, **batch, chunked=self.chunked)
        logprobs = torch.stack(total.chunk(2), dim=1)
        if self.check_first_step and self.state.global_step == 0:
            self._refuse_another_policy(logprobs.detach(), stored)
        losses, watched = pair_losses(self.objective, logprobs, gamma=self.targets.gamma, **columns)
        return losses.sum(), watched

    def items(self, batch: Batch) -> int:
        """Pairs; ties count."""
        return len(batch["weight"])

    def here(self) -> str:
        """The round and its step."""
        return (
            f"in round {self.round}, step {self.state.global_step + 1}; lower "
            "train.learning_rate, or look at the targets' range"
        )

    def training_step(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, once the parameters are seen to be in the shards that were asked for."""
        if not self.shards_checked:
            check_shards(model, self.parallelism, self.run_dir.world)
            self.shards_checked = True
        return super().training_step(model, *args, **kwargs)

    def record(self, logs: dict[str, float], watched: dict[str, float]) -> None:
        """One line for each optimizer step, counted over all rounds."""
        step = self.first_step + self.state.global_step
        self.run_dir.log(round=self.round, step=step, **logs, **watched)

    def _refuse_another_policy(self, logprobs: Tensor, stored: Tensor) -> None:
        gap = (logprobs - stored).abs().max().item()
        if not gap <= self.tolerance:
            raise BadInput(
                f"round {self.round}: before its first step the policy's log-probabilities differ "
                f"from the stored ones of pi_k by up to {gap:.3g} nats, more than "
                f"first_step_tolerance={self.tolerance:g}. The data was drawn by another policy, "
                "or training runs in another precision or with dropout. Collect the round again, "
                "or raise first_step_tolerance if bf16 rounding explains the gap"
            )
