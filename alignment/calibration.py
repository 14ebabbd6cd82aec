"""What repeated rounds of reward calibration do, before anything runs. No torch in this file.

A linear softmax policy that minimizes RDRC's loss exactly in every round moves by

    theta_{k+1} = (1 - gamma_c / gamma) theta_k + theta_r

(2601.08421, Section 5.1): a contraction towards theta_r gamma / gamma_c for 0 < gamma_c < 2 gamma,
and only then. gamma_c = 0 is REBEL, whose theta grows by theta_r in every round.
"""

from __future__ import annotations

from collections.abc import Sequence


def calibration_factor(gamma: float, gamma_c: float) -> float:
    """|1 - gamma_c / gamma|, by which the distance to the fixed point shrinks in a round.

    Below 1 rounds converge, at 1 they swing between two points (or, at gamma_c = 0, drift), above
    1 they diverge: of a network trained for a few steps it says where its rounds are headed.
    """
    return abs(1 - gamma_c / gamma)


def calibration_warnings(gammas: Sequence[float], gamma_c: float) -> list[str]:
    """A sentence for each round after the first whose step does not contract.

    Round 1 starts at theta_0, from which distance is measured, so that it has nothing to shrink.

    Args:
        gammas: gamma of each round.
        gamma_c: the calibration level.
    """
    warnings = [(k, calibration_warning(gamma, gamma_c)) for k, gamma in enumerate(gammas, 1)]
    return [f"round {k}: {text}" for k, text in warnings[1:] if text is not None]


def calibration_warning(gamma: float, gamma_c: float) -> str | None:
    """What to tell a user whose rounds do not contract; None where they do, and for REBEL."""
    factor = calibration_factor(gamma, gamma_c)
    if factor < 1 or gamma_c == 0:
        return None
    does = "swing between two points" if factor == 1 else f"diverge, {factor:.3g} times a round"
    return (
        f"gamma_c / gamma = {gamma_c / gamma:.3g}: under exact minimization RDRC's rounds {does} "
        "(theta_{k+1} = (1 - gamma_c/gamma) theta_k + theta_r); they converge for gamma_c below "
        f"2 gamma = {2 * gamma:.3g}"
    )
