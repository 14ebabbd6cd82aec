"""Matching Bellman backups instead of Bellman losses: distilling by closed-form regression.

Fitted Q-iteration on a set D repeats Q -> T_D Q, the regression of r + gamma max_a' Q(s', a') on
(s, a). Equal losses of sampled predictors say little about where the minimum of that regression
lies. So this matches the minimum: for features phi of a random network and Q fitted to the
training set,

    T_syn Q (s, a) = phi(s, a)^T Phi^T (Phi Phi^T + N rho I)^-1 y,
    y_i = r_i + gamma (1 - terminated_i) V(s'_i)

    minimize over the points   E_s [ mean_a (T_syn Q - Q)^2 / Var Q
                                     + mean_a (tanh(A_syn / tau) - tanh(A / tau))^2 ]

over states s of the training set with every action a. A(s, a) = Q(s, a) - mean_a Q(s, a) is what a
greedy policy reads, a hundredth of Q's variance in CartPole, and tau its median: states about to
fail, with large gaps that no policy can get wrong, would count for everything in a plain square.
States are drawn with probability proportional to exp(beta (V(s) - mean V) / std V): where the
greedy policy goes values are high, so this stands in for its discounted visitation. Phi [N, D] are
the points' features. If every backup errs by less than e, fitted Q-iteration on the small set ends
within e / (1 - gamma) of the training set's. In place of K predictors there are K feature maps.

The traps. Without the gap's own term the greedy policy is noise. Too small a ridge rho lets points
carry targets that only interpolation can read: networks cannot, and returns fall below the
starting subset's. Q comes from fitted Q-iteration on the training set: one model is trained on it,
before distilling, unlike in Algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from reprise.distill.offline_rl import Descent, Domain, Dynamics, Points
from reprise.distill.predictors import Batch, Networks, draw_networks
from reprise.rollout.draws import categorical

Maps = Callable[[int], Networks]


def feature_maps(
    generator: np.random.Generator,
    count: int | None,
    groups: int,
    state_width: int,
    actions: int,
    **shape: object,
) -> Maps:
    """Step -> one feature map a group [G, 1]: of K drawn once, in turn, or fresh in every step.

    A fresh map's gain is that of its step, in turn too.
    """
    gains = list(shape.pop("gains"))  # type: ignore[call-overload]

    def draw(number: int, gain: list[float]) -> Networks:
        return draw_networks(
            generator,
            groups,
            number,
            state_width,
            actions,
            gains=gain,
            **shape,  # type: ignore[arg-type]
        )

    if count is None:
        return lambda step: draw(1, [gains[step % len(gains)]])
    bank = draw(count, gains)
    return lambda step: bank.part(step % count, step % count + 1)


def with_constant(features: torch.Tensor) -> torch.Tensor:
    """Features [G, 1, N, H] -> [G, N, H + 1], of norm about 1, and a constant 1/2."""
    scaled = features[:, 0] / math.sqrt(features.shape[-1])
    return torch.cat([scaled, torch.full_like(scaled[..., :1], 0.5)], -1)


def regressed(features: torch.Tensor, targets: torch.Tensor, ridge: float) -> torch.Tensor:
    """Ridge weights [G, D] for features [G, N, D], targets [G, N]: (Phi^T Phi / N + rho I)^-1 ...

    in the dual form Phi^T (Phi Phi^T + N rho I)^-1 y, since there are fewer points than features.
    """
    points = features.shape[1]
    kernel = features @ features.transpose(1, 2) + points * ridge * torch.eye(points)
    dual = torch.linalg.solve(kernel, targets[..., None])
    return (features.transpose(1, 2) @ dual)[..., 0]


def backup(q: Networks, batch: Batch, gamma: float) -> torch.Tensor:
    """y [G, N], in the units of `distill.evaluate.fitted_q`, of the mean of a group's networks."""
    ahead = q.values(batch.following).mean(1).amax(-1)
    alive = 1.0 - batch.terminated.to(ahead.dtype)
    return (1 - gamma) * batch.rewards + gamma * alive * ahead


def mismatch(
    maps: Networks,
    batch: Batch,
    q: Networks,
    states: torch.Tensor,
    wanted: torch.Tensor,
    gamma: float,
    ridge: float,
    unit: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared errors of T_syn Q and of tanh(gap / unit), each [G].

    Args:
        maps: a feature map for each group [G, 1].
        batch: the points.
        q: Q, [G, E].
        states: where to compare [B, d].
        wanted: Q there [G, B, A].
        gamma: discount.
        ridge: rho.
        unit: tau [G, 1, 1].
    """
    features = with_constant(maps.features(batch.states, batch.actions))
    weights = regressed(features, backup(q, batch, gamma), ridge)[..., None]
    found = torch.cat([with_constant(part) @ weights for part in maps.all_features(states)], -1)
    between = torch.tanh(gap(found) / unit) - torch.tanh(gap(wanted) / unit)
    return (found - wanted).square().mean((1, 2)), between.square().mean((1, 2))


def gap(values: torch.Tensor) -> torch.Tensor:
    """Q(s, a) - mean_a Q(s, a)."""
    return values - values.mean(-1, keepdim=True)


def distill_backups(
    full: Batch,
    start: Batch,
    q: Networks,
    maps: Maps,
    gamma: float,
    generator: np.random.Generator,
    ridge: float = 1e-3,
    value_weight: float = 1.0,
    steps: int = 200,
    rows: int = 200,
    learning_rate: float = 0.03,
    dynamics: Dynamics | None = None,
    learn_rewards: bool = False,
) -> Batch:
    """Optimize G sets at once from `start`.

    Args:
        full: the training set.
        start: G starting subsets.
        q: fitted to the training set, E networks with one mean for each group [G, E].
        maps: feature map of each step.
        gamma: discount.
        generator: of the training states of each step.
        ridge: rho.
        value_weight: beta.
        steps: of Adam.
        rows: training states in a step.
        learning_rate: in standard deviations a step.
        dynamics: next states follow the states by these; None: they are optimized freely.
        learn_rewards: optimize rewards too.
    """
    points = Points.of(start, Domain.of(full), dynamics)
    minimize = Descent(points.learned(dynamics is None, learn_rewards), learning_rate, steps)
    with torch.no_grad():
        wanted = q.values(full.states).mean(1)
        variance = wanted.var((1, 2)).clamp(min=1e-12)
        unit = gap(wanted).abs().flatten(1).median(1).values.clamp(min=1e-8)[:, None, None]
        best = wanted.amax(-1)
        best = (best - best.mean(1, keepdim=True)) / best.std(1, keepdim=True).clamp(min=1e-8)
        # One distribution for all groups, whose Q-functions are of one training set.
        likely = torch.exp(value_weight * best).mean(0).double().numpy()
        likely /= likely.sum()
    for step in range(steps):
        chosen = torch.as_tensor(categorical(generator, likely, rows))
        values, between = mismatch(
            maps(step),
            points.batch(),
            q,
            full.states[chosen],
            wanted[:, chosen],
            gamma,
            ridge,
            unit,
        )
        minimize((values / variance + between).sum())
    return points.result()


@torch.no_grad()
def agreement(fitted: Networks, q: Networks, full: Batch, value_weight: float) -> torch.Tensor:
    """Share [G] of the training set's states where both greedy actions are the same.

    States count exp(beta V(s)), as in the matching. What tells how good a set is without playing:
    `fitted` was learned from the set, `q` from all of the training set.
    """
    wanted = q.values(full.states).mean(1)
    best = wanted.amax(-1)
    best = (best - best.mean(1, keepdim=True)) / best.std(1, keepdim=True).clamp(min=1e-8)
    likely = torch.softmax(value_weight * best, 1)
    found = fitted.values(full.states).mean(1)
    return ((found.argmax(-1) == wanted.argmax(-1)) * likely).sum(1)


def choose(sets: list[Batch], best: torch.Tensor) -> Batch:
    """Of several batches with the same terminated rows, group g of number best[g]."""
    assert all(torch.equal(one.terminated, sets[0].terminated) for one in sets)
    groups = torch.arange(len(best))
    return Batch(
        torch.stack([one.states for one in sets])[best, groups],
        torch.stack([one.actions for one in sets])[best, groups],
        torch.stack([one.rewards for one in sets])[best, groups],
        torch.stack([one.following for one in sets])[best, groups],
        sets[0].terminated,
    )
