"""What a distilled regression set is compared with: subsets, and all of the data.

Every one is points Z [N, q] and weights [N] or None, for second moments and least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reprise.rollout.errors import BadInput


@dataclass(frozen=True)
class Subset:
    """Rows of the training points, with weights that make their second moment unbiased."""

    points: np.ndarray
    weights: np.ndarray | None = None


def random_subset(training: np.ndarray, size: int, draw: np.random.Generator) -> Subset:
    """`size` rows without replacement: also where distillation starts.

    Raises:
        BadInput: there are not so many rows.
    """
    if size > len(training):
        raise BadInput(f"sizes: {size} is more than the {len(training)} training points")
    return Subset(training[draw.choice(len(training), size, replace=False)])


def leverage_scores(features: np.ndarray) -> np.ndarray:
    """l_i = x_i^T (X^T X)^+ x_i, [n]; they sum to the rank of X."""
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    rank = int((values > values[0] * max(features.shape) * np.finfo(float).eps).sum())
    return np.square(left[:, :rank]).sum(1)


def leverage_subset(training: np.ndarray, size: int, draw: np.random.Generator) -> Subset:
    """`size` rows with replacement, row i with probability p_i = l_i / sum l, weight 1 / (n p_i).

    The scores are the features': without the target, the last column.
    """
    scores = leverage_scores(training[:, :-1])
    shares = scores / scores.sum()
    rows = draw.choice(len(training), size, p=shares)
    return Subset(training[rows], 1 / (len(training) * shares[rows]))


def least_squares(points: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """w minimizing sum_i weight_i (w . x_i - y_i)^2, of least length where several do; [q - 1]."""
    scaled = points if weights is None else points * np.sqrt(weights)[:, None]
    return np.linalg.lstsq(scaled[:, :-1], scaled[:, -1], rcond=None)[0]


def mean_squared_error(weights: np.ndarray, points: np.ndarray) -> float:
    """Mean of (w . x - y)^2."""
    return float(np.square(points[:, :-1] @ weights - points[:, -1]).mean())
