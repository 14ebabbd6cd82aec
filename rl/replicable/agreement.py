"""How often do results agree? Identity is equality of bytes: `a.tobytes() == b.tobytes()`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reprise.rl.replicable.rounding import agreement_bound, agreement_probability
from reprise.rollout.errors import BadInput


def identities(results: np.ndarray) -> np.ndarray:
    """Number of the first replica with the same bytes, int64 [R], for results [R, ...]."""
    results = np.ascontiguousarray(results)
    first: dict[bytes, int] = {}
    return np.array(
        [first.setdefault(result.tobytes(), row) for row, result in enumerate(results)], dtype=int
    )


def most_common_share(labels: Sequence[object] | np.ndarray) -> float:
    """Largest fraction of replicas with one result: the paper's measure (Figure 1).

    At least 1/R by construction: with R = 100 replicas that all differ it is .01.
    """
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    return float(counts.max() / counts.sum())


def pairwise_identity(labels: Sequence[object] | np.ndarray) -> float:
    """Fraction of pairs with one result: unbiased for 1 - rho in Definition 2.2.

    sum_c n_c (n_c - 1) / (R (R - 1)) over the classes c of equal results. Needs two replicas.
    """
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    total = int(counts.sum())
    if total < 2:
        raise BadInput(f"{total} run: agreement is between two or more")
    return float((counts * (counts - 1)).sum() / (total * (total - 1)))


def identity_values(labels: np.ndarray) -> np.ndarray:
    """Jackknife pseudo-values [R] of `pairwise_identity`, whose mean it is.

        theta_i = R theta - (R - 1) theta_(-i),     theta_(-i): without run i

    Pairs share runs and are not independent; these values nearly are (Tukey 1958). Two runs: the
    one pair's value, twice.
    """
    count = len(labels)
    whole = pairwise_identity(labels)
    if count == 2:
        return np.full(2, whole)
    without = [pairwise_identity(np.delete(labels, i)) for i in range(count)]
    return count * whole - (count - 1) * np.array(without)


class Trace:
    """Follows replicas through the rounding steps of an algorithm: who still agrees, and why.

    A step rounds estimates [R, ...] to a grid. Before step j the replicas fall into classes of
    equal history. Within a class, steps are comparable: their estimates differ only by their data.
    Over the pairs of all classes the step's exact probability of agreement p_j (the product form)
    and Lemma 2.1's bound b_j are averaged, and the classes refined by what came out. Then

        product = prod_j p_j            bound = 1 - sum_j (1 - b_j)

    predict the share of pairs whose whole history agrees; the second is the paper's union bound.
    Once no pair is left, product is 0 and bound is what it was, minus 1.
    """

    def __init__(self, replicas: int) -> None:
        self.classes = np.zeros(replicas, dtype=int)
        self.product = 1.0
        self.bound = 1.0

    def step(self, before: np.ndarray, after: np.ndarray, alpha: float | None) -> None:
        """Note one rounding step: estimates before and after; `alpha` None: nothing was rounded."""
        count = len(before)
        before = before.reshape(count, -1)
        pairs = [
            (left, right)
            for members in (np.flatnonzero(self.classes == c) for c in np.unique(self.classes))
            for index, left in enumerate(members)
            for right in members[index + 1 :]
        ]
        if not pairs:
            self.product, self.bound = 0.0, self.bound - 1.0
        elif alpha is None:
            same = np.mean([np.array_equal(before[i], before[j]) for i, j in pairs])
            self.product, self.bound = self.product * float(same), self.bound - 1 + float(same)
        else:
            left, right = np.array(pairs).T
            difference = before[left] - before[right]
            self.product *= float(agreement_probability(difference, alpha).mean())
            self.bound -= 1.0 - float(agreement_bound(difference, alpha).mean())
        after = np.ascontiguousarray(after)
        keys: dict[tuple[int, bytes], int] = {}
        self.classes = np.array(
            [
                keys.setdefault((int(old), result.tobytes()), row)
                for row, (old, result) in enumerate(zip(self.classes, after, strict=True))
            ],
            dtype=int,
        )
