"""Bounded domains by construction: a point is a smooth function of a free vector u.

    ball   z = B u / sqrt(1 + |u|^2)                   |z| < B
    box    z_i = b_i u_i / sqrt(1 + u_i^2)             |z_i| < b_i
    none   z = u

An unconstrained optimizer over u never leaves the domain; there is no penalty and no projection.
Rows are points: u and z are float64 [N, q].
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Bounded(Protocol):
    """A parametrization of a domain."""

    def points(self, u: np.ndarray) -> np.ndarray:
        """z(u)."""

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """u(z), for points strictly inside."""

    def pull_back(self, u: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """df/du of df/dz = slope [..., N, q]; dz/du of a row is symmetric."""

    def contains(self, z: np.ndarray) -> bool:
        """Whether all points are in the (closed) domain."""


class Ball:
    """|z| < radius."""

    def __init__(self, radius: float) -> None:
        assert radius > 0
        self.radius = radius

    def points(self, u: np.ndarray) -> np.ndarray:
        """z = B u / sqrt(1 + |u|^2)."""
        return self.radius * u / np.sqrt(1 + np.square(u).sum(1, keepdims=True))

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """u = z / sqrt(B^2 - |z|^2)."""
        rest = self.radius**2 - np.square(z).sum(1, keepdims=True)
        assert (rest > 0).all(), "a point on or outside the sphere has no u"
        return z / np.sqrt(rest)

    def pull_back(self, u: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """dz/du = (B / s) (I - u u^T / s^2), with s^2 = 1 + |u|^2."""
        square = 1 + np.square(u).sum(1, keepdims=True)
        along = (slope * u).sum(-1, keepdims=True)
        return self.radius / np.sqrt(square) * (slope - along / square * u)

    def contains(self, z: np.ndarray) -> bool:
        """Whether all |z| <= B."""
        return bool((np.square(z).sum(1) <= self.radius**2 * (1 + 1e-12)).all())


class Box:
    """|z_i| < limits_i."""

    def __init__(self, limits: np.ndarray) -> None:
        assert (limits > 0).all()
        self.limits = limits

    def points(self, u: np.ndarray) -> np.ndarray:
        """z_i = b_i u_i / sqrt(1 + u_i^2)."""
        return self.limits * u / np.sqrt(1 + u * u)

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """u_i = z_i / sqrt(b_i^2 - z_i^2)."""
        rest = self.limits**2 - z * z
        assert (rest > 0).all(), "a point on or outside the box's faces has no u"
        return z / np.sqrt(rest)

    def pull_back(self, u: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """dz_i/du_i = b_i / (1 + u_i^2)^(3/2), on a diagonal."""
        return self.limits * (1 + u * u) ** -1.5 * slope

    def contains(self, z: np.ndarray) -> bool:
        """Whether all |z_i| <= b_i."""
        return bool((np.abs(z) <= self.limits * (1 + 1e-12)).all())


class Unbounded:
    """All of R^q."""

    def points(self, u: np.ndarray) -> np.ndarray:
        """z = u."""
        return u

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """u = z."""
        return z.copy()

    def pull_back(self, u: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """dz/du = I."""
        return slope

    def contains(self, z: np.ndarray) -> bool:
        """Always."""
        return True


def around(points: np.ndarray, shape: str, margin: float) -> Bounded:
    """The domain of `shape` that holds `points` [n, q] with room: `margin` > 1 times the largest.

    Distilled points can always reproduce the moments of what lies in a ball: their common norm in
    the closed form is the root mean square of the points' norms.
    """
    assert margin > 1
    if shape == "none":
        return Unbounded()
    if shape == "ball":
        return Ball(margin * float(np.sqrt(np.square(points).sum(1).max())))
    assert shape == "box", shape
    largest = np.abs(points).max(0)
    # A column of zeros needs some room of its own for the parametrization to be defined.
    return Box(margin * np.where(largest > 0, largest, 1.0))
