"""Do independently trained policies act alike? Pairwise agreement of greedy actions.

For runs 1..R and held-out observations x_1..x_M, with a_i(x) = argmax_a Q_i(x, a),

    A_ij = (1/M) sum_m [a_i(x_m) = a_j(x_m)]        agreement = mean of A_ij over the pairs i < j

(2509.08660, Section 5.2: "pairwise action agreement across seeds" on expert observations).

**Error.** Pairs share runs and are not independent: R(R-1)/2 pairs hold R runs' worth of luck. The
agreement is a U-statistic of degree two, and its standard error is the jackknife's, leaving out one
run at a time. With a_i the mean agreement of run i with the others and U the agreement,

    U_(-i) = (R U - 2 a_i) / (R - 2)        se^2 = (R-1)/R sum_i (U_(-i) - U)^2

which is 2 (R-1)/(R-2) times the standard error of the a_i as if they were independent (each is only
half its own run's luck), so at least twice it. An interval is Student's with R - 1 degrees of
freedom (`agreement_degrees`): 1.96 standard errors, which the paper has, of what it does not say,
cover .81 with three runs. The observations are given: the error is that of other runs, not of other
data.

**The trap.** Q-values on a grid tie, and ties go to the lowest index: policies that know nothing
then agree. So the same mean is also given with ties broken at random, for each policy on its own,

    A_ij = (1/M) sum_m sum_a p_i(a|x_m) p_j(a|x_m),     p_i uniform on the maximizing actions,

next to how often there are ties, and beside `chance`, the agreement of policies that act as often
this way or that as these do, but without looking: sum_a p_i(a) p_j(a).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from reprise.rollout.errors import BadInput

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def greedy_actions(q: np.ndarray) -> np.ndarray:
    """argmax over the last axis, the lowest index among equals; int64 [...]."""
    return np.asarray(q.argmax(-1), dtype=np.int64)


def maximizers(q: np.ndarray) -> np.ndarray:
    """Which actions attain the maximum, bool [..., A]."""
    return q == q.max(-1, keepdims=True)


def action_gaps(q: np.ndarray) -> np.ndarray:
    """Best minus second-best value, [...]: 0 where two actions tie (Farahmand 2011)."""
    if q.shape[-1] < 2:
        return np.full(q.shape[:-1], np.inf)
    top = np.partition(q, -2, axis=-1)
    return top[..., -1] - top[..., -2]


def pairwise_agreement(actions: np.ndarray) -> np.ndarray:
    """A_ij for actions [R, M]: float64 [R, R], symmetric, ones on the diagonal."""
    runs = len(actions)
    agreement = np.ones((runs, runs))
    for i in range(runs):
        for j in range(i):
            agreement[i, j] = agreement[j, i] = (actions[i] == actions[j]).mean()
    return agreement


def agreement_random_ties(q: np.ndarray) -> np.ndarray:
    """A_ij if every policy broke its ties at random, for q [R, M, A]: [R, R] (not its diagonal)."""
    best = maximizers(q)
    chosen = best / best.sum(-1, keepdims=True)
    rows = chosen.reshape(len(q), -1)
    return rows @ rows.T / q.shape[1]


def chance_agreement(actions: np.ndarray, count: int) -> np.ndarray:
    """sum_a p_i(a) p_j(a) with each run's own frequencies of the `count` actions, [R, R]."""
    frequencies = np.stack([np.bincount(row, minlength=count) / len(row) for row in actions])
    return frequencies @ frequencies.T


def pairs(matrix: np.ndarray) -> np.ndarray:
    """The entries i < j of a symmetric matrix."""
    return matrix[np.triu_indices(len(matrix), 1)]


def jackknife_error(matrix: np.ndarray) -> float:
    """Standard error of the mean over pairs, leaving out one run at a time; NaN for two runs."""
    runs = len(matrix)
    if runs < 3:
        return math.nan
    with_others = (matrix.sum(1) - np.diag(matrix)) / (runs - 1)
    left_out = (runs * with_others.mean() - 2 * with_others) / (runs - 2)
    return math.sqrt((runs - 1) / runs * float(((left_out - left_out.mean()) ** 2).sum()))


def summarize(q: np.ndarray, taken: np.ndarray | None = None) -> dict[str, Any]:
    """Everything above for q [R, M, A], as plain numbers.

    Args:
        q: the values that the runs act on, rounded where they round.
        taken: actions in the data, [M], if they are from the same action set.

    Raises:
        BadInput: fewer than two runs, no observations, or values that are not finite.
    """
    runs, observations, count = q.shape
    if runs < 2:
        raise BadInput(f"{runs} run: agreement is between two or more")
    if observations < 1:
        raise BadInput("no observations to compare the runs on")
    if not np.isfinite(q).all():
        bad = [i for i in range(runs) if not np.isfinite(q[i]).all()]
        raise BadInput(f"Q-values of run {bad[0]} are not finite: it has diverged; leave it out")
    actions = greedy_actions(q)
    matrix = pairwise_agreement(actions)
    each = pairs(matrix)
    with_others = (matrix.sum(1) - 1) / (runs - 1)
    chance = float(pairs(chance_agreement(actions, count)).mean())
    mean = float(each.mean())
    tied = maximizers(q).sum(-1) > 1
    by_lot = agreement_random_ties(q)
    return {
        "pairs": len(each),
        "observations": observations,
        "actions": count,
        "agreement_mean": mean,
        "agreement_se": jackknife_error(matrix),
        "agreement_degrees": runs - 1,
        "agreement_se_of_run_means": float(with_others.std(ddof=1)) / math.sqrt(runs),
        "agreement_se_of_pairs": (
            float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        ),
        "agreement_random_ties": float(pairs(by_lot).mean()),
        "agreement_random_ties_se": jackknife_error(by_lot),
        "agreement_random_ties_degrees": runs - 1,
        "agreement_without_ties": _without_ties(actions, tied),
        "agreement_chance": chance,
        "kappa": (mean - chance) / (1 - chance) if chance < 1 else math.nan,
        "tied_share": float(tied.mean()),
        "most_common_action_share": float(
            np.mean([np.bincount(row).max() / observations for row in actions])
        ),
        "agreement_with_data": None if taken is None else float((actions == taken).mean()),
        "agreement_by_pair": matrix.tolist(),
        "tied_share_by_run": tied.mean(1).tolist(),
        "action_frequencies_by_run": [
            (np.bincount(row, minlength=count) / observations).tolist() for row in actions
        ],
    }


def _without_ties(actions: np.ndarray, tied: np.ndarray) -> float:
    """Agreement of pairs where neither policy has a tie; NaN if there is no such observation."""
    shares = []
    for i in range(len(actions)):
        for j in range(i):
            clear = ~(tied[i] | tied[j])
            if clear.any():
                shares.append(float((actions[i] == actions[j])[clear].mean()))
    return float(np.mean(shares)) if shares else math.nan


def relative_gaps(q: np.ndarray) -> np.ndarray:
    """Action gaps of q [R, M, A] over each run's standard deviation, over m, of max_a Q: [R, M].

    Values of other games and grids can then be compared. NaN for a run whose values never vary.
    """
    spread = q.max(-1).std(1)
    return action_gaps(q) / np.where(spread > 0, spread, np.nan)[:, None]


def gap_summary(q: np.ndarray) -> dict[str, Any]:
    """Quantiles of the action gaps of q [R, M, A], and of the relative ones."""
    return {
        "action_gap_quantiles": _quantiles(action_gaps(q)),
        "relative_action_gap_quantiles": _quantiles(relative_gaps(q)),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {str(level): math.nan for level in QUANTILES}
    return {str(level): float(np.quantile(known, level)) for level in QUANTILES}


def gap_histogram(gaps: np.ndarray, bins: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Share of gaps in logarithmic bins from 1e-4 to 10; the end bins hold what is beyond.

    Returns:
        shares [bins], which sum to 1, and edges [bins + 1].
    """
    edges = np.geomspace(1e-4, 10.0, bins + 1)
    flat = gaps[np.isfinite(gaps)].ravel()
    counts, _ = np.histogram(np.clip(flat, edges[0], edges[-1]), edges)
    return counts / max(1, len(flat)), edges
