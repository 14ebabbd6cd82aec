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

from reprise.alignment.collector import Collector, Prompts, Request
from reprise.alignment.config import Offline, OnPolicy
from reprise.alignment.diagnostics import completion_lengths
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions


class HeldOutPrompts:
    """The held-out prompts on which every pi_k is measured, and what was measured.

    Args:
        config: the experiment's settings.
        prompts: the evaluation split.
        store: where the samples are kept.
        run_dir: where the measurements are.

    Raises:
        BadInput: fewer prompts than asked for.
    """

    def __init__(
        self, config: OnPolicy | Offline, prompts: Prompts, store: RoundStore, run_dir: RunDir
    ) -> None:
        count, split = config.evaluation.prompts, config.evaluation.split
        if count > len(prompts):
            raise BadInput(
                f"evaluation.prompts={count} exceeds the {len(prompts)} prompts of "
                f"evaluation.split={split!r}; lower it, or use a larger split"
            )
        self.config, self.prompts, self.store, self.run_dir = config, prompts, store, run_dir
        # The same prompts for every seed, so that seeds can be compared.
        self.rows = Streams(0).internal("held out").permutation(len(prompts))[:count]

    def measured(self) -> dict[int, dict[str, Any]]:
        """What is known of each pi_k that was measured."""
        return {
            record["round"]: {name: record[name] for name in record if name != "seconds"}
            for record in self.run_dir.metrics()
            if "reward_mean" in record
        }

    def scale(self, collector: Collector) -> tuple[float, float]:
        """Mean and deviation of pi_0's rewards here; (0, 1) if they are not standardized.

        Samples from pi_0, which has to be the current policy, unless that was done before.

        Raises:
            BadInput: all its samples have the same reward.
        """
        if not self.config.reward.standardize:
            return 0.0, 1.0
        rewards = self.samples(0, collector).rewards
        mean, deviation = float(rewards.mean()), float(rewards.std())
        if deviation == 0:
            raise BadInput(
                f"reward.standardize=true, but {self.config.reward.title} gives all of the initial "
                f"policy's samples the reward {mean:g}; train the reward model, or choose another"
            )
        return mean, deviation

    def samples(self, k: int, collector: Collector) -> Completions:
        """Completions of pi_k."""
        return collector.collect(Request(self.prompts, self.rows, k, "evaluate"), self.store)

    def measure(self, k: int, collector: Collector, scale: tuple[float, float]) -> None:
        """Evaluate pi_k, unless that was done before the run was interrupted."""
        if k in self.measured():
            return
        completions, tokenizer = self.samples(k, collector), collector.tokenizer
        references = [self.prompts.references[row] for row in completions.prompt_index]
        result = evaluate(
            completions,
            self.samples(0, collector),
            references,
            tokenizer,
            scale,
            self.config.evaluation.bootstrap,
            collector.streams.data("bootstrap", k),
        )
        self.run_dir.log(round=k, **result)
        self.run_dir.say(
            f"round {k}: reward {result['reward_mean']:+.3f}, win rate "
            f"{result['win_rate_vs_initial']:.0%}, ROUGE-L {result['rouge_l']:.3f}, "
            f"KL {result['kl_to_initial']:.2f}"
        )
        prompt = tokenizer.decode(completions.prompt_ids[0], skip_special_tokens=True)
        answer = tokenizer.decode(completions.completion_ids[0][0], skip_special_tokens=True)
        self.run_dir.say(f"    ...{prompt[-60:]!r} -> {answer!r}")
        table = samples_table(completions, references, tokenizer, self.run_dir.report.samples)
        self.run_dir.log_table("completions", *table, round=k)


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
