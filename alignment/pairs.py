"""From stored completions to pairs, and from pairs to the targets that an objective regresses on.

Nothing is sampled here: the uniform draw behind a sampled label is a stored column, so replaying a
round under the same or another objective gives the same pairs and labels without generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reprise.alignment.config import DPO, PDFR, RDRC, REBEL, Custom
from reprise.alignment.objectives import Scores, target_of
from reprise.rollout.types import Completions, Pairs


@dataclass(frozen=True)
class Targets:
    """What one round's update needs beside the token ids.

    Attributes:
        target: z, shape (pairs,), float32: a label in [0, 1], or a difference of rewards.
        reference_logprobs: ln pi'(a_i|x), shape (pairs, 2), float32, nats.
        weight: shape (pairs,), float32; 0 takes a pair out of the loss.
        gamma: KL regularization of this round.
    """

    target: np.ndarray
    reference_logprobs: np.ndarray
    weight: np.ndarray
    gamma: float

    def take(self, rows: np.ndarray) -> Targets:
        """Return those of the pairs at `rows`."""
        return Targets(
            self.target[rows], self.reference_logprobs[rows], self.weight[rows], self.gamma
        )


def select_pairs(completions: Completions, selection: str) -> Pairs:
    """One pair for each prompt.

    Ties and identical completions carry no preference: they stay in, with weight 0.

    Args:
        completions: n samples for each of N prompts.
        selection: ``first_two`` samples (2601.08421), or ``best_worst`` of n by reward (as
            REBEL's published code does; the first of equals).

    Returns:
        N pairs.
    """
    rows = np.arange(len(completions))
    if selection == "first_two":
        first, second = np.zeros_like(rows), np.ones_like(rows)
    else:
        assert selection == "best_worst"
        first = completions.rewards.argmax(axis=1)
        # Of equals take another one than the best, so that a pair is never a sample with itself.
        worst_last = completions.rewards[:, ::-1].argmin(axis=1)
        second = completions.samples_per_prompt - 1 - worst_last
    both = np.stack([first, second], axis=1)
    first_ids = [completions.completion_ids[row][column] for row, column in enumerate(first)]
    second_ids = [completions.completion_ids[row][column] for row, column in enumerate(second)]
    rewards = np.take_along_axis(completions.rewards, both, axis=1)
    carries_preference = (rewards[:, 0] != rewards[:, 1]) & ~identical(first_ids, second_ids)
    return Pairs(
        prompt_index=completions.prompt_index,
        prompt_ids=completions.prompt_ids,
        first_ids=first_ids,
        second_ids=second_ids,
        terminated=np.take_along_axis(completions.terminated, both, axis=1),
        rewards=rewards,
        policy_logprobs=np.take_along_axis(completions.policy_logprobs, both, axis=1),
        reference_logprobs=np.take_along_axis(completions.reference_logprobs, both, axis=1),
        label_uniform=completions.label_uniform,
        weight=carries_preference.astype(np.float32),
    )


def identical(first_ids: Sequence[np.ndarray], second_ids: Sequence[np.ndarray]) -> np.ndarray:
    """Whether the two completions of each pair are the same tokens; shape (pairs,), bool."""
    return np.array(
        [np.array_equal(a, b) for a, b in zip(first_ids, second_ids, strict=True)], dtype=bool
    )


def make_targets(
    pairs: Pairs,
    objective: DPO | PDFR | REBEL | RDRC | Custom,
    gamma: float,
    reward_scale: float = 1.0,
) -> Targets:
    """The target z and the reference pi' of each objective (2601.08421, Section 5.1).

    Args:
        pairs: scored pairs of round k.
        objective: the objective's settings.
        gamma: KL regularization of this round.
        reward_scale: rewards are divided by it (their standard deviation under pi_0, or 1).
    """
    scores = Scores(
        (pairs.rewards[:, 0] - pairs.rewards[:, 1]) / reward_scale,
        pairs.policy_logprobs,
        pairs.reference_logprobs,
        pairs.label_uniform,
    )
    initial = objective.reference == "initial"
    return Targets(
        target=target_of(objective, scores).astype(np.float32),
        reference_logprobs=pairs.reference_logprobs if initial else pairs.policy_logprobs,
        weight=pairs.weight,
        gamma=gamma,
    )
