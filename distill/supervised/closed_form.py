"""N points with given second moments, all of one norm: no optimizer, no starting points.

With M = U L U^T (q x q) and any Q (N x q) with orthonormal columns, Z = sqrt(N) Q L^(1/2) U^T has

    Z^T Z / N = M,

so every linear loss r^T M r is reproduced exactly. Rotations of the *rows* of Z keep Z^T Z, and by
the Schur-Horn theorem some make all row norms equal: |z_i|^2 = tr M, the mean square norm of the
original points. So the distilled points lie in every ball around 0 that holds the original ones.

With an intercept the mean must be kept too: Q's columns orthogonal to the ones vector, and row
rotations that fix it. Equal distances from the mean are then N - 1 equations without a finite
algorithm, and not always solvable (three points whose covariance is not a circle's; an odd number
of points on a line): solved by Newton's method on the rotations.
"""

from __future__ import annotations

import warnings

import numpy as np

from reprise.rollout.errors import BadInput

TOLERANCE = 1e-13


class UnequalNorms(UserWarning):
    """Points with the given moments and mean, but not at one distance from it, were found."""


def closed_form(
    moment: np.ndarray, size: int, draw: np.random.Generator, truncate: bool = False
) -> np.ndarray:
    """Points Z [size, q] with Z^T Z / size = moment [q, q] and all row norms equal.

    Args:
        moment: M, symmetric and positive semidefinite.
        size: N, at least the rank of M.
        draw: for Q.
        truncate: with too few points keep the `size` largest eigenvalues instead of refusing:
            the best approximation in spectral norm (Eckart and Young), off by the next one.

    Raises:
        BadInput: N is below the rank of M.
    """
    root = _root(moment, size, truncate)
    basis = np.linalg.qr(draw.standard_normal((size, root.shape[0])))[0]
    return equal_rows(np.sqrt(size) * basis @ root)


def closed_form_centred(
    mean: np.ndarray, covariance: np.ndarray, size: int, draw: np.random.Generator
) -> np.ndarray:
    """Points [size, q] with this mean [q] and covariance [q, q], all at one distance from the mean.

    The covariance is over N, not N - 1. Some start Q can lead Newton's method astray; 20 are tried.

    Raises:
        BadInput: N is at most the rank of the covariance.

    Warns:
        UnequalNorms: no equal distances were found; mean and covariance are right all the same.
    """
    root = _root(covariance, size - 1, truncate=False, also="one more for the mean")
    best, least = np.zeros((size, len(mean))), np.inf
    for _ in range(20):
        start = draw.standard_normal((size, root.shape[0]))
        basis = np.linalg.qr(start - start.mean(0))[0]
        points, spread = _equal_rows_centred(np.sqrt(size) * basis @ root)
        if spread < least:
            best, least = points, spread
        if spread <= TOLERANCE:
            break
    else:
        warnings.warn(
            f"{size} points: squared distances from the mean differ by {least:.2g} of their mean "
            "(an even number of points, or a few more, usually admits equal ones)",
            UnequalNorms,
            stacklevel=2,
        )
    return best + mean


def equal_rows(points: np.ndarray) -> np.ndarray:
    """Rotate pairs of rows until all norms are equal; Z^T Z stays. At most N - 1 turns.

    Rows a, b with |a|^2 < c < |b|^2, c the mean: a' = cos a + sin b has |a'|^2 = c where t = tan
    solves (|b|^2 - c) t^2 + 2 (a.b) t + (|a|^2 - c) = 0, which has real roots. Each turn settles a
    row for good (the proof of Schur and Horn's theorem for this case).
    """
    points = points.copy()
    target = np.square(points).sum() / len(points)
    for _ in range(len(points) - 1):
        norms = np.square(points).sum(1)
        low, high = int(norms.argmin()), int(norms.argmax())
        under, over = norms[low] - target, norms[high] - target
        if max(-under, over) <= 1e-15 * target:
            break
        inner = points[low] @ points[high]
        root = np.sqrt(inner**2 - under * over)
        turn = -under / (inner + np.copysign(root, inner))
        cosine = 1 / np.sqrt(1 + turn * turn)
        sine = turn * cosine
        points[[low, high]] = (
            cosine * points[low] + sine * points[high],
            cosine * points[high] - sine * points[low],
        )
    return points


def _equal_rows_centred(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Rotate rows, keeping Z^T Z and 1^T Z = 0, towards equal norms; and how far they are apart.

    For skew S with S 1 = 0 the norms move by 2 (S A)_ii, with A = Z Z^T. Steps of least size are
    S = P (D A - A D) P with D = diag(mu), P = I - 11^T/N; they move the norms by K mu, with
    K = 2 (P o A^2 - A o A). Newton's step solves K mu = target - norms, and the Cayley transform
    (I - S/2)^-1 (I + S/2) makes it an exact rotation.
    """
    count = len(points)
    identity = np.eye(count)
    centring = identity - 1 / count
    target = np.square(points).sum() / count
    missing = target - np.square(points).sum(1)
    for _ in range(40):
        if np.abs(missing).max() <= TOLERANCE * target:
            break
        gram = points @ points.T
        slope = 2 * (centring * (gram @ gram) - gram * gram)
        weights = np.linalg.lstsq(slope, missing, rcond=1e-12)[0]
        skew = centring @ (weights[:, None] * gram - gram * weights) @ centring
        length = np.linalg.norm(skew, 2)
        if not length > 0:
            break
        share = min(1.0, 1 / length)
        for _ in range(30):
            half = share / 2 * skew
            turned = np.linalg.solve(identity - half, (identity + half) @ points)
            left = target - np.square(turned).sum(1)
            if np.linalg.norm(left) < (1 - 0.1 * share) * np.linalg.norm(missing):
                break
            share /= 2
        else:
            break
        points, missing = turned, left
    # Rounding: what S 1 = 0 promises is made so to the last bit that matters.
    points = points - points.mean(0)
    return points, float(np.abs(missing).max() / target) if target > 0 else 0.0


def _root(moment: np.ndarray, most: int, truncate: bool, also: str = "") -> np.ndarray:
    """R [rank, q] with R^T R = moment, or its best approximation of rank `most`."""
    values, vectors = np.linalg.eigh(moment)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = int((values > len(values) * np.finfo(float).eps * max(values[0], 0.0)).sum())
    if rank > most and not truncate:
        size = most + 1 if also else most
        raise BadInput(
            f"size={size} is below the size bound: moments of rank {rank} need at least {rank} "
            f"points{', and ' + also if also else ''}"
        )
    rank = min(rank, most)
    return np.sqrt(values[:rank, None]) * vectors[:, :rank].T
