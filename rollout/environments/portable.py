"""Classic control whose every bit is the same on every machine, for data that are published.

Gymnasium's dynamics (`rollout.classic_control`) call sin, cos and pow of numpy and of the C
library, which pick their code by the processor and differ in the last bit. An unstable system
makes that a different trajectory: along CartPole's upright pole an error grows by about e^4.5 a
second. IEEE 754 fixes the result of +, -, * and / and of rounding to a whole number, so here
nothing else is used:

    k = round(2 x / pi),  r = x - k pi / 2 in [-pi/4, pi/4],  pi / 2 in three parts (Cody and Waite)
    sin r = r + r^3 (S_1 + S_2 r^2 + ...),   cos r = 1 - r^2 / 2 + r^4 (C_1 + C_2 r^2 + ...)

with the coefficients of FreeBSD's msun (k_sin.c, k_cos.c), good to one unit in the last place for
|x| < 10^5. Every operation is a numpy call of its own, in the order written, so that no compiler
fuses a product with a sum. Initial states are `low + (high - low) * random()`, two calls too.

A step from the same state agrees with Gymnasium's to about 1e-15; whole episodes do not.
"""

from __future__ import annotations

import math

import numpy as np

from reprise.rollout.environments.classic_control import (
    Acrobot,
    CartPole,
    ClassicControl,
    MountainCar,
)
from reprise.rollout.errors import BadInput
from reprise.rollout.run.settings import EnvironmentSettings

HALF_PI = tuple(  # the first two have 33 bits, so that k times them is exact
    float.fromhex(part) for part in ("0x1.921fb544p+0", "0x1.0b4611a6p-34", "0x1.3198a2e037073p-69")
)
SINE = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
COSINE = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)


def sine(x: np.ndarray) -> np.ndarray:
    """Sine of |x| < 10^5, float64, the same bits everywhere."""
    return _turned(x, 0)


def cosine(angles: np.ndarray) -> np.ndarray:
    """Cosine of |angles| < 10^5, float64, the same bits everywhere."""
    return _turned(angles, 1)


def _turned(x: np.ndarray, quarters: int) -> np.ndarray:
    """Sine of x + quarters * pi / 2."""
    x = np.asarray(x, dtype=np.float64)
    turns = np.rint(x * (2.0 / math.pi))
    rest = x
    for part in HALF_PI:
        rest = rest - turns * part
    square = rest * rest
    sin = rest + rest * square * _polynomial(SINE, square)
    half = 0.5 * square
    whole = 1.0 - half
    cos = whole + (((1.0 - whole) - half) + square * square * _polynomial(COSINE, square))
    quarter = (turns.astype(np.int64) + quarters) & 3
    value = np.where(quarter & 1, cos, sin)
    return np.where(quarter & 2, -value, value)


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def between(generator: np.random.Generator, low: float, high: float, count: int) -> np.ndarray:
    """Uniform numbers from whole multiples of 2^-53, scaled here rather than by compiled code."""
    return low + (high - low) * generator.random(count)


class PortableCartPole(CartPole):
    """CartPole in exact arithmetic."""

    sine, cosine = staticmethod(sine), staticmethod(cosine)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Position, velocity, angle and angular velocity, each uniform in +-0.05."""
        return between(generator, -0.05, 0.05, 4)


class PortableMountainCar(MountainCar):
    """MountainCar in exact arithmetic."""

    sine, cosine = staticmethod(sine), staticmethod(cosine)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Position uniform in [-0.6, -0.4], at rest."""
        return np.append(between(generator, -0.6, -0.4, 1), 0.0)


class PortableAcrobot(Acrobot):
    """Acrobot in exact arithmetic; its first observation is computed like every other."""

    sine, cosine, squared = staticmethod(sine), staticmethod(cosine), staticmethod(np.square)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Both angles and angular velocities uniform in +-0.1, rounded to float32."""
        return between(generator, -0.1, 0.1, 4).astype(np.float32).astype(np.float64)

    def observe_start(self, states: np.ndarray) -> np.ndarray:
        """The same as `observe`."""
        return self.observe(states)


KINDS: dict[str, type[ClassicControl]] = {
    "CartPole-v1": PortableCartPole,
    "MountainCar-v0": PortableMountainCar,
    "Acrobot-v1": PortableAcrobot,
}


def make_portable(name: str, copies: int) -> ClassicControl:
    """Copies of CartPole-v1, MountainCar-v0 or Acrobot-v1 with portable dynamics."""
    if copies < 1:
        raise BadInput(f"copies={copies}; must be at least 1")
    return KINDS[name](name, copies, EnvironmentSettings())
