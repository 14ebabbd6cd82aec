"""How good a policy is, on prompts it was never trained on.

Rewards and win rates come from the reward model that training used, so they can be hacked;
ROUGE-L against what people wrote is beside them so that it shows when they are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from reprise.alignment.diagnostics import completion_lengths
from reprise.rollout.types import Completions


def evaluate(
    completions: Completions,
    initial: Completions,
    references: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    scale: tuple[float, float],
    resamples: int,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """Measure one policy; every interval is a 95% percentile bootstrap over prompts.

    Args:
        completions: samples of the policy on the held-out prompts.
        initial: samples of pi_0 on the same prompts.
        references: what people wrote for these prompts.
        tokenizer: decodes the completions.
        scale: (mean, deviation): rewards are reported as (r - mean) / deviation.
        resamples: bootstrap resamples.
        generator: their randomness.

    Returns:
        The fields of a round in ``summary.json``: ``reward_mean``, ``reward_ci95``,
        ``win_rate_vs_initial`` (reward model as the judge, a tie counts one half),
        ``win_rate_ci95``, ``kl_to_initial`` (mean of ln pi/pi_0 at temperature 1,
        nats a completion: KL only if sampled at temperature 1), ``rouge_l``, ``rouge_l_ci95``,
        ``length_mean`` (tokens), ``tie_rate`` (two samples of the policy, same reward),
        ``no_eos_rate``.
    """
    mean, deviation = scale
    rewards = ((completions.rewards - mean) / deviation).mean(axis=1)
    wins = win_rates(completions.rewards, initial.rewards)
    texts = [
        [tokenizer.decode(ids, skip_special_tokens=True) for ids in samples]
        for samples in completions.completion_ids
    ]
    overlap = np.array(
        [
            np.mean([rouge_l(text, reference) for text in samples])
            for samples, reference in zip(texts, references, strict=True)
        ]
    )
    rows = generator.integers(len(rewards), size=(resamples, len(rewards)))
    first, second = completions.rewards[:, 0], completions.rewards[:, 1]
    return {
        "reward_mean": float(rewards.mean()),
        "reward_ci95": percentile_interval(rewards, rows),
        "win_rate_vs_initial": float(wins.mean()),
        "win_rate_ci95": percentile_interval(wins, rows),
        "kl_to_initial": float(
            (completions.policy_logprobs - completions.reference_logprobs).mean()
        ),
        "rouge_l": float(overlap.mean()),
        "rouge_l_ci95": percentile_interval(overlap, rows),
        "length_mean": float(completion_lengths(completions).mean()),
        "tie_rate": float(np.mean(first == second)),
        "no_eos_rate": float(np.mean(~completions.terminated)),
    }


def win_rates(rewards: np.ndarray, initial_rewards: np.ndarray) -> np.ndarray:
    """Share of all (policy, pi_0) pairs of samples that the policy wins, a tie counting one half.

    Args:
        rewards: of the policy, shape (prompts, n).
        initial_rewards: of pi_0, shape (prompts, m).

    Returns:
        Win rate on each prompt, shape (prompts,).
    """
    difference = rewards[:, :, None] - initial_rewards[:, None, :]
    return (0.5 + 0.5 * np.sign(difference)).mean(axis=(1, 2))


def percentile_interval(values: np.ndarray, rows: np.ndarray) -> list[float]:
    """[2.5%, 97.5%] of the means over bootstrap resamples `rows`, shape (resamples, N)."""
    return [float(bound) for bound in np.quantile(values[rows].mean(axis=1), [0.025, 0.975])]


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F1 with stemming (Lin 2004), in [0, 1]."""
    return _scorer().score(reference, text)["rougeL"].fmeasure


def samples_table(
    completions: Completions,
    references: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the first `count` prompts, one completion each, for a reader."""

    def text(ids: np.ndarray) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    columns = ["prompt", "completion", "written by people", "reward", "ended"]
    rows: list[list[Any]] = [
        [
            text(completions.prompt_ids[row]),
            text(completions.completion_ids[row][0]),
            references[row],
            float(completions.rewards[row, 0]),
            bool(completions.terminated[row, 0]),
        ]
        for row in range(min(len(completions), count))
    ]
    return columns, rows


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
