"""Win rates from a judge's verdicts, plain and controlled for length.

A preference p in [0, 1] is the judge's probability that the model's answer beats the baseline's:
1 a win, 0 a loss, 1/2 a tie. The win rate is 100 times its mean.

Length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475, and its published code): fit

    P(m beats b on x) = sigmoid(theta + phi tanh((len m - len b) / s) + psi gamma_x)

where len is in characters, s is the standard deviation of the differences (n - 1), and gamma_x is
the instruction's difficulty, fitted once over all models of the leaderboard and published. The
fit is a logistic regression on the preferences themselves as soft labels, without an intercept
beside theta, with an L1 penalty whose strength 1/C is chosen among ten values 1e-4 ... 1e4 by
5-fold cross-validation of the log-loss. Then

    LC win rate = 100 mean over x of sigmoid(theta + psi gamma_x),

what the model would have won with answers as long as the baseline's. On the leaderboard the fit is
also pulled to the baseline: the baseline's own answers, prompted to be concise or verbose
(``df_gamed.csv``), join the training data with weight 0.2 / 2 and without theta.

The traps. The leaderboard's code takes tanh of the baseline's length less the model's; only the
sign of phi depends on that, not the rate. And with no difficulty and no gamed baseline (another
instruction set) this is the same regression with fewer terms: comparable within one study, not
with the leaderboard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reprise.rollout.errors import BadInput
from reprise.rollout.run.intervals import variance_of

STRENGTHS = np.logspace(-4, 4, 10)  # C, the inverse of the penalty
FOLDS = 5
GROUPS = 20  # of prompts, for the standard error of the LC win rate
CONTROLLED = np.array([1.0, 0.0, 1.0])  # theta and psi gamma_x are kept, phi's term is not
GAMED_WEIGHT = 0.2 / 2  # lambda over the two gamed versions of the baseline


@dataclass(frozen=True)
class Gamed:
    """The baseline's answers made concise or verbose on purpose, and difficulties.

    Attributes:
        preference: of the gamed answer over the plain one, shape (G,), in [0, 1].
        length: standardized length differences, shape (G,).
        difficulty: gamma_x of each, shape (G,).
    """

    preference: np.ndarray
    length: np.ndarray
    difficulty: np.ndarray


def win_rate(preferences: np.ndarray) -> tuple[float, float]:
    """The win rate and its standard error, both in percent."""
    p = np.asarray(preferences, dtype=np.float64)
    error = p.std(ddof=1) / np.sqrt(len(p)) if len(p) > 1 else 0.0
    return 100 * float(p.mean()), 100 * float(error)


def length_controlled_win_rate(
    preferences: np.ndarray,
    lengths: np.ndarray,
    baseline_lengths: np.ndarray,
    difficulty: np.ndarray | None = None,
    gamed: Gamed | None = None,
) -> dict[str, float]:
    """LC win rate in percent, and the fitted terms.

    Args:
        preferences: p, shape (N,), in [0, 1].
        lengths: characters of the model's answers, shape (N,).
        baseline_lengths: characters of the baseline's, shape (N,).
        difficulty: gamma_x, shape (N,); None leaves the term out.
        gamed: what regularizes the fit; needs `difficulty`.

    Returns:
        ``length_controlled_winrate``, ``theta``, ``phi`` (positive: longer answers win), ``psi``,
        and ``lc_standard_error``, over prompts, where there are 200 or more.

    The error is a delete-a-group jackknife's: the fit, with the penalty of the whole, without each
    of G = 20 groups, s^2 = (G - 1) / G sum_g (theta_(g) - mean)^2, 19 degrees of freedom.

    Raises:
        BadInput: fewer than ten comparisons: five folds need two each.
    """
    p = np.asarray(preferences, dtype=np.float64)
    if len(p) < 2 * FOLDS:
        raise BadInput(
            f"{len(p)} judged pairs are too few for a length-controlled win rate; judge at least "
            f"{2 * FOLDS}"
        )
    assert gamed is None or difficulty is not None, "the gamed baseline comes with difficulties"
    difference = np.asarray(lengths, dtype=np.float64) - np.asarray(baseline_lengths)
    spread = difference.std(ddof=1)
    controlled = np.tanh(difference / spread) if spread > 0 else np.zeros_like(p)
    columns = [np.ones_like(p), controlled]
    if difficulty is not None:
        columns.append(np.asarray(difficulty, dtype=np.float64))
    features, weight = np.stack(columns, axis=1), np.ones_like(p)
    labels = p
    if gamed is not None:
        theirs = [np.zeros_like(gamed.length), np.tanh(gamed.length), gamed.difficulty]
        features = np.concatenate([np.stack(theirs, axis=1), features])
        labels = np.concatenate([gamed.preference, p])
        weight = np.concatenate([np.full(len(gamed.length), GAMED_WEIGHT), weight])
    strength = _penalty(features, labels, weight)
    # Whose group a row is in; the gamed baseline's rows are in none.
    groups = np.append(np.full(len(labels) - len(p), -1), np.arange(len(p)) % GROUPS)

    def rate(kept: np.ndarray) -> tuple[np.ndarray, float]:
        terms = _regress(features[kept], labels[kept], weight[kept], strength)
        ours = features[kept & (groups >= 0)]
        return terms, 100 * float(_sigmoid(ours @ (terms * CONTROLLED[: len(terms)])).mean())

    terms, whole = rate(groups >= -1)
    without = [rate(groups != group)[1] for group in range(GROUPS) if len(p) >= 10 * GROUPS]
    error = (GROUPS - 1) * math.sqrt(variance_of(without) / GROUPS) if without else None
    return {
        "length_controlled_winrate": whole,
        **({} if error is None else {"lc_standard_error": error}),
        "theta": float(terms[0]),
        "phi": float(terms[1]),
        "psi": float(terms[2]) if difficulty is not None else 0.0,
    }


def _penalty(features: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """C, the inverse of the L1 penalty, that cross-validation chooses."""
    from sklearn.model_selection import GroupKFold

    folds = list(GroupKFold(FOLDS).split(features, groups=np.arange(len(labels))))
    scores = []
    for strength in STRENGTHS:
        losses = []
        for train, test in folds:
            terms = _regress(features[train], labels[train], weight[train], strength)
            q = np.clip(_sigmoid(features[test] @ terms), 1e-15, 1 - 1e-15)
            y = labels[test]
            losses.append(np.mean(-weight[test] * (y * np.log(q) + (1 - y) * np.log(1 - q))))
        scores.append(np.mean(losses))
    return float(STRENGTHS[int(np.argmin(scores))])


def _regress(
    features: np.ndarray, labels: np.ndarray, weight: np.ndarray, strength: float
) -> np.ndarray:
    """min over w of ||w||_1 + C sum_i weight_i CE(labels_i, sigmoid(features_i w))."""
    from sklearn.linear_model import LogisticRegression

    # A soft label is a win of weight p and a loss of weight 1 - p.
    model = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123
    )
    model.fit(
        np.concatenate([features, features]),
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([labels * weight, (1 - labels) * weight]),
    )
    return model.coef_[0]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
