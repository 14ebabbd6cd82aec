"""What one round of data says about training: computed from stored columns and one forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from reprise.alignment.pairs import Targets, identical
from reprise.rollout.types import Completions, Pairs


def data_diagnostics(completions: Completions, pairs: Pairs) -> dict[str, float]:
    """Diagnostics of D_k alone.

    * ``tie_rate``, ``identical_rate``: share of pairs with equal rewards / equal tokens.
    * ``no_eos_rate``, ``length_mean``: share of completions cut off; tokens, EOS included.
    * ``length_reward_correlation``: Pearson's, over completions.
    * ``reward_margin``: mean |r1 - r2| over pairs, in the reward model's units.
    * ``entropy``: -E[ln pi_k(a|x)] in nats a completion, and ``entropy_per_token``.
    * ``kl_to_initial``: mean of ln pi_k/pi_0 at temperature 1, nats a completion. It estimates
      KL(pi_k || pi_0) where the samples were drawn at temperature 1, and is only near it else.
    * ``effective_sample_size``: (sum w)^2 / (N sum w^2) with w = pi_0/pi_k on samples of pi_k:
      the share of D_k's samples that would count if they were to stand for pi_0's.
    * ``sampler_gap``, ``sampler_gap_max``: mean and largest |ln pi_k as the sampler had it - as the
      trainer has it| in nats a completion, and ``sampler_kl``, the mean of the difference, which
      estimates KL(sampler || pi_k); where the sampler's were stored.
    """
    lengths = completion_lengths(completions)
    log_ratio = (completions.policy_logprobs - completions.reference_logprobs).astype(np.float64)
    return {
        "tie_rate": float(np.mean(pairs.rewards[:, 0] == pairs.rewards[:, 1])),
        "identical_rate": float(np.mean(identical(pairs.first_ids, pairs.second_ids))),
        "no_eos_rate": float(np.mean(~completions.terminated)),
        "length_mean": float(lengths.mean()),
        "length_reward_correlation": correlation(lengths, completions.rewards),
        "reward_margin": float(np.abs(pairs.rewards[:, 0] - pairs.rewards[:, 1]).mean()),
        "entropy": float(-completions.policy_logprobs.mean()),
        "entropy_per_token": float(-completions.policy_logprobs.sum() / lengths.sum()),
        "kl_to_initial": float(log_ratio.mean()),
        "effective_sample_size": effective_sample_size(-log_ratio.ravel()),
        **_sampler_gap(completions),
    }


def _sampler_gap(completions: Completions) -> dict[str, float]:
    if completions.sampler_logprobs is None:
        return {}
    gap = (completions.sampler_logprobs - completions.policy_logprobs).astype(np.float64)
    gap = gap[np.isfinite(gap)]  # given completions were not sampled
    return {
        "sampler_gap": float(np.abs(gap).mean()),
        "sampler_gap_max": float(np.abs(gap).max()),
        "sampler_kl": float(gap.mean()),
    }


def update_diagnostics(
    pairs: Pairs, targets: Targets, logprobs: np.ndarray, soft_labels: bool
) -> dict[str, float]:
    """Diagnostics of the update that was made on D_k.

    * ``kl_from_previous``: E_{a ~ pi_k}[ln pi_k/pi_{k+1}], the KL divergence of the step seen from
      the policy that drew the data (the one direction that D_k can estimate without weights).
    * ``implicit_target_correlation``: Pearson's between y and z over the pairs that count, and
      ``implicit_margin``, ``target_margin``: mean |y| and mean |z| (|z - 1/2| for labels).
    * ``saturation``: share of soft labels within 1% of 0 or 1 (labels only).

    Args:
        pairs: D_k.
        targets: what the objective regressed on.
        logprobs: ln pi_{k+1}(a_i|x), shape (pairs, 2), nats.
        soft_labels: whether the targets are labels in [0, 1].
    """
    log_ratio = logprobs - targets.reference_logprobs
    y = targets.gamma * (log_ratio[:, 0] - log_ratio[:, 1])
    counts = targets.weight > 0
    centred = targets.target - 0.5 if soft_labels else targets.target
    result = {
        "kl_from_previous": float((pairs.policy_logprobs - logprobs).mean()),
        "implicit_target_correlation": correlation(y[counts], targets.target[counts]),
        "implicit_margin": float(np.abs(y).mean()),
        "target_margin": float(np.abs(centred).mean()),
        "pairs_with_weight": int(counts.sum()),
    }
    if soft_labels:
        result["saturation"] = float(np.mean(np.abs(centred) > 0.49))
    return result


def completion_lengths(completions: Completions) -> np.ndarray:
    """Tokens of each completion, EOS included; shape (prompts, samples)."""
    return np.array([[len(ids) for ids in row] for row in completions.completion_ids])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation, NaN where one side does not vary."""
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    if a.size < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def effective_sample_size(log_weights: np.ndarray) -> float:
    """(sum w)^2 / (N sum w^2) in (0, 1], from log weights, without overflow."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (weights.size * np.square(weights).sum()))


def throughput(metrics: list[dict[str, Any]]) -> dict[str, float | None]:
    """Completions per second of collecting, pairs per second of collecting and updating.

    Rounds that an interruption cut in two are left out, evaluation is not counted.
    """
    rounds = [r for r in metrics if "update_seconds" in r and not r["resumed"]]
    collecting = sum(r["collect_seconds"] for r in rounds if r["completions_sampled"])
    working = sum(r["collect_seconds"] + r["update_seconds"] for r in rounds)
    sampled = sum(r["completions_sampled"] for r in rounds)
    return {
        "completions_per_second": sampled / collecting if collecting else None,
        "pairs_per_second": sum(r["pairs"] for r in rounds) / working if working else None,
    }
