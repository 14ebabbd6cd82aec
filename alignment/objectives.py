r"""The objectives, as pure functions of stored columns.

Every method regresses one scalar per pair (x, a1, a2),

    y = gamma * [ ln pi(a1|x)/pi(a2|x) - ln pi'(a1|x)/pi'(a2|x) ],

onto a target z, with a reference pi' that is pi_0 or pi_k:

| method | loss(y, z)                  | z                                     | pi'          |
|--------|-----------------------------|---------------------------------------|--------------|
| DPO    | cross_entropy(sigmoid y, z) | 1 if a1 wins, else 0                  | pi_0         |
| PDFR   | cross_entropy(sigmoid y, z) | sigmoid(beta (r1 - r2))               | pi_0         |
| REBEL  | (y - z)^2                   | r1 - r2                               | pi_k         |
| RDRC   | (y - z)^2                   | r1 - r2 - gamma_c ln [pi_k/pi_0] diff | pi_k         |
| custom | f(y, z), yours              | r1 - r2                               | either       |

Source: 2601.08421, Algorithms 1 and 3, Eqs. 9-11. The trap: Eq. 11 prints the binary KL divergence
with its arguments the other way round from Eq. 10. Eq. 10, where the soft label is the target, is
what is minimized here; up to the target's entropy it is KL(Bern(z) || Bern(sigmoid y)).

Which is a row of `RECIPES`; pi' is the config's `reference`, and nothing else knows a method by its
name. A loss of your own is named by its import path (``objective: {name: custom, function: m:f}``):

    def hinge(y, z):                                  # y [pairs] with gradient, z [pairs]
        return torch.relu(1 - y * z.sign())           # losses [pairs]
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reprise.alignment.calibration import (
    calibration_factor as calibration_factor,  # RDRC's, re-exported
)
from reprise.alignment.config import DPO, PDFR, RDRC, REBEL, Custom
from reprise.rollout.errors import BadInput
from reprise.rollout.functions import load_function

Loss = Callable[[Tensor, Tensor], Tensor]


def implicit_reward_difference(
    logprobs: Tensor, reference_logprobs: Tensor, gamma: float
) -> Tensor:
    """y = gamma [ln pi(a1|x)/pi(a2|x) - ln pi'(a1|x)/pi'(a2|x)].

    Args:
        logprobs: ln pi(a_i|x), summed over the completion's tokens, in nats; shape (pairs, 2).
        reference_logprobs: the same under pi'; shape (pairs, 2).
        gamma: KL regularization.

    Returns:
        y, shape (pairs,).
    """
    log_ratio = logprobs - reference_logprobs
    return gamma * (log_ratio[:, 0] - log_ratio[:, 1])


def preference_loss(y: Tensor, z: Tensor) -> Tensor:
    """-z ln sigmoid(y) - (1 - z) ln sigmoid(-y), per pair (2601.08421, Eqs. 3 and 10).

    With a hard label z this is DPO's loss, with a soft one preference distillation.
    """
    return F.binary_cross_entropy_with_logits(y, z, reduction="none")


def distillation_loss(y: Tensor, z: Tensor) -> Tensor:
    """(y - z)^2, per pair (2601.08421, Eq. 9)."""
    return (y - z).square()


# -- targets ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """What a target is made of, a row for each pair.

    Attributes:
        difference: r(x, a1) - r(x, a2), shape (pairs,).
        policy_logprobs: ln pi_k(a_i|x), shape (pairs, 2), nats.
        reference_logprobs: ln pi_0(a_i|x), shape (pairs, 2), nats.
        label_uniform: the draw behind a sampled label, shape (pairs,).
    """

    difference: np.ndarray
    policy_logprobs: np.ndarray
    reference_logprobs: np.ndarray
    label_uniform: np.ndarray


def winner(settings: DPO, scores: Scores) -> np.ndarray:
    """1 if a1 wins, else 0: by higher reward, or drawn from Bradley-Terry."""
    if settings.labels == "ranked":
        return np.where(scores.difference > 0, 1.0, 0.0)
    probability = sigmoid(settings.beta * scores.difference)
    return np.where(scores.label_uniform < probability, 1.0, 0.0)


def win_probability(settings: PDFR, scores: Scores) -> np.ndarray:
    """sigmoid(beta (r1 - r2))."""
    return sigmoid(settings.beta * scores.difference)


def reward_difference(settings: REBEL | Custom, scores: Scores) -> np.ndarray:
    """r1 - r2."""
    return scores.difference


def calibrated_difference(settings: RDRC, scores: Scores) -> np.ndarray:
    """The difference of r_hat = r - gamma_c ln(pi_k / pi_0)."""
    shift = scores.policy_logprobs - scores.reference_logprobs
    return scores.difference - settings.gamma_c * (shift[:, 0] - shift[:, 1])


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow; with beta = 100, x reaches into the hundreds."""
    return np.exp(-np.logaddexp(0, -x.astype(np.float64)))


# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A row of the table above.

    Attributes:
        loss: of y and z.
        target: z.
        centre: the z that asks for no preference: 1/2 of a label, 0 of a difference of rewards.
    """

    loss: Loss
    target: Callable[[Any, Scores], np.ndarray]
    centre: float


RECIPES = {
    "dpo": Recipe(preference_loss, winner, 0.5),
    "pdfr": Recipe(preference_loss, win_probability, 0.5),
    "rebel": Recipe(distillation_loss, reward_difference, 0.0),
    "rdrc": Recipe(distillation_loss, calibrated_difference, 0.0),
}


def recipe_of(objective: str) -> Recipe:
    """An objective by its config name, or a user's by the import path of its loss.

    Raises:
        BadInput: there is no such function, or it does not take y and z.
    """
    known = RECIPES.get(objective)
    return known or Recipe(loss_function(objective), reward_difference, 0.0)


def target_of(objective: DPO | PDFR | REBEL | RDRC | Custom, scores: Scores) -> np.ndarray:
    """The target z of each pair (2601.08421, Section 5.1)."""
    return recipe_of(loss_name(objective)).target(objective, scores)


def is_label(objective: DPO | PDFR | REBEL | RDRC | Custom) -> bool:
    """Whether the targets are labels in [0, 1], hard or soft."""
    return centre_of(loss_name(objective)) > 0


@functools.cache  # asked for in every step
def loss_function(objective: str) -> Loss:
    """The loss of an objective by its config name, or a user's by its import path.

    Raises:
        BadInput: there is no such function, or it does not take y and z.
    """
    if objective in RECIPES:
        return RECIPES[objective].loss
    function = load_function(objective, "objective.function")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise BadInput(
            f"objective.function={objective!r} does not take two arguments ({error}); define it as "
            "f(y, z) -> losses, one for each pair"
        ) from error
    return function


def centre_of(objective: str) -> float:
    """The target that asks for no preference: 1/2 of a label, 0 of a difference of rewards."""
    return recipe_of(objective).centre


def loss_name(objective: DPO | PDFR | REBEL | RDRC | Custom) -> str:
    """What `loss_function` knows the config's objective by."""
    return objective.function if isinstance(objective, Custom) else objective.name


def pair_losses(
    objective: str,
    logprobs: Tensor,
    reference_logprobs: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted loss of each pair, and what to watch while it falls.

    Args:
        objective: ``dpo``, ``pdfr``, ``rebel``, ``rdrc``, or the import path of a loss.
        logprobs: ln pi(a_i|x), with gradient; shape (pairs, 2), nats.
        reference_logprobs: ln pi'(a_i|x); shape (pairs, 2), nats.
        target: z; shape (pairs,). Hard or soft label, or difference of rewards.
        weight: 1, or 0 for a tie or two identical completions; shape (pairs,).
        gamma: KL regularization.

    Returns:
        Losses, shape (pairs,): their sum over a batch, divided by the number of pairs in it, is
        the objective. Metrics, each of shape (pairs,): ``implicit_reward_difference`` (y) and
        ``agreement`` (1 where y has the sign that the target asks for; NaN where a pair has no
        weight and so asks for nothing).
    """
    y = implicit_reward_difference(logprobs, reference_logprobs, gamma)
    each = loss_function(objective)(y, target)
    if each.shape != y.shape:
        raise BadInput(
            f"objective.function={objective!r} returned shape {list(each.shape)} for "
            f"{list(y.shape)}; return a loss for each pair"
        )
    losses = weight * each
    with torch.no_grad():
        agrees = (y.sign() == (target - centre_of(objective)).sign()).float()
        agreement = torch.where(weight > 0, agrees, torch.nan)
    return losses, {"implicit_reward_difference": y.detach(), "agreement": agreement}
