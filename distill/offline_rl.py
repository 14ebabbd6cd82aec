"""Distilling offline RL data: N transitions whose Bellman losses are the training set's.

For a bank of predictors (f_j, lambda_j) with losses L_j on the training set (`distill.predictors`),
minimize over the points by Adam

    squared   sum_j (L_on_j(syn) - L_on_j)^2 + (L_end_j(syn) - L_end_j)^2
    huber     sum_j h(L_on_j(syn) / L_on_j - 1) + h(L_end_j(syn) / L_end_j - 1),  h Huber's function

The first is what 2512.00536, Algorithm 2 prints for general features; the second our variant, since
losses of networks of several gains differ by orders of magnitude. What is optimized are states and
*displacements* s' - s, in units of their standard deviations over the training set, and on request
rewards (Algorithm 2 optimizes whole points); actions are discrete and stay those of the starting
subset, and so does which points are terminated.
States stay within the training set's range by construction: they are clamped where they are used.

The traps. Twenty fixed predictors are matched to nothing while held-out ones get worse: watch
`held_out_error`, not the objective. Random networks say little about the functions that fitted
Q-iteration passes through, so `near_iterates` draws f_j = Q_k + sigma g_j around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reprise.distill.banks import Bank, Draw
from reprise.distill.predictors import Batch
from reprise.rollout.errors import BadInput
from reprise.rollout.types import Transitions


def check(data: Transitions, size: int, ends: int, actions: int) -> None:
    """Refuse what cannot be distilled.

    Raises:
        BadInput: continuous actions, rewards that are not finite, no terminated transitions or
            no others, or too few of either for the size.
    """
    if not np.issubdtype(data.actions.dtype, np.integer) or data.actions.ndim != 1:
        raise BadInput(
            f"actions: of type {data.actions.dtype} and shape {data.actions.shape}; the maximum "
            "over actions is taken by listing them, so they must be integers [N]"
        )
    if data.actions.min() < 0 or data.actions.max() >= actions:
        raise BadInput(f"actions: {np.unique(data.actions)[:9]} are not all in 0..{actions - 1}")
    if not np.isfinite(data.rewards).all():
        row = int(np.argmin(np.isfinite(data.rewards)))
        raise BadInput(f"rewards: row {row} is {data.rewards[row]}; remove or repair that row")
    there = int(data.terminated.sum())
    if there == 0:
        raise BadInput(
            "terminated: no terminal transition in the data; their loss is matched apart from the "
            "others', so collect until some episode terminates"
        )
    if not 0 < ends <= there or not 0 < size - ends <= len(data) - there:
        raise BadInput(
            f"size={size} with {ends} terminated: the data have {there} terminated and "
            f"{len(data) - there} other transitions, and each kind needs at least one point"
        )


def terminal_count(data: Transitions, size: int, share: float | None) -> int:
    """How many of `size` points are terminated: as in the data (at least one), or a share."""
    wanted = float(data.terminated.mean()) if share is None else share
    return min(max(1, round(size * wanted)), int(data.terminated.sum()))


def starting_rows(
    terminated: np.ndarray, size: int, ends: int, generator: np.random.Generator
) -> np.ndarray:
    """Rows of a random subset with `ends` terminated transitions, which come last."""
    others = generator.permutation(np.flatnonzero(~terminated))[: size - ends]
    return np.concatenate([others, generator.permutation(np.flatnonzero(terminated))[:ends]])


def gather(full: Batch, rows: np.ndarray) -> Batch:
    """Sets [G, N] of a batch's points, at `rows` [G, N].

    `terminated` is [N] where it is alike in every set, else [G, N].
    """
    index = torch.as_tensor(rows)
    ends = full.terminated[index]
    alike = bool((ends == ends[:1]).all())
    return Batch(
        full.states[index],
        full.actions[index],
        full.rewards[index],
        full.following[index],
        ends[0] if alike else ends,
    )


# -- optimization ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """The training set's range of states, and the spread of its displacements."""

    low: torch.Tensor
    high: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(cls, full: Batch) -> Domain:
        """Of one set [N, d]."""
        both = torch.cat([full.states, full.following])
        spread = (full.following - full.states).std(0)
        return cls(both.amin(0), both.amax(0), torch.where(spread > 1e-8, spread, 1.0))

    def inside(self, states: torch.Tensor) -> torch.Tensor:
        """States clamped to the range."""
        return torch.minimum(torch.maximum(states, self.low), self.high)


@dataclass(frozen=True)
class Dynamics:
    """Displacement s' - s as a quadratic of s for each action, by least squares on the others.

    Delta_a(s) = B_a [1, s, s s^T], with B [A, p, d]. Exact enough to move a transition a little:
    a moved point keeps the error that its transition had where it started.
    """

    weights: torch.Tensor

    @classmethod
    def of(cls, full: Batch, actions: int, ridge: float = 1e-4) -> Dynamics:
        """Fit to the transitions that are not terminated; an action never taken does not move."""
        moved = (full.following - full.states).double()
        inputs = _quadratic(full.states).double()
        weights = []
        for action in range(actions):
            rows = (full.actions == action) & ~full.terminated
            x = inputs[rows]
            gram = x.T @ x + ridge * max(1, len(x)) * torch.eye(x.shape[1], dtype=x.dtype)
            weights.append(torch.linalg.solve(gram, x.T @ moved[rows]))
        return cls(torch.stack(weights).to(full.states.dtype))

    def __call__(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Displacements [G, N, d]."""
        every = torch.einsum("gnp,apd->gnad", _quadratic(states), self.weights)
        index = actions[..., None, None].expand(*actions.shape, 1, states.shape[-1])
        return every.gather(2, index)[:, :, 0]


def _quadratic(states: torch.Tensor) -> torch.Tensor:
    """[..., d] -> [..., 1 + d + d (d + 1) / 2]: constant, states and their products."""
    first, second = torch.triu_indices(states.shape[-1], states.shape[-1])
    one = torch.ones_like(states[..., :1])
    return torch.cat([one, states, states[..., first] * states[..., second]], -1)


@dataclass
class Points:
    """What is optimized: [G, N] states, displacements in units of `domain.spread`, rewards.

    With `dynamics`, displacements are those of the dynamics at the states, plus what is kept here.
    """

    states: torch.Tensor
    displacements: torch.Tensor
    rewards: torch.Tensor
    start: Batch
    domain: Domain
    dynamics: Dynamics | None = None

    @classmethod
    def of(cls, start: Batch, domain: Domain, dynamics: Dynamics | None = None) -> Points:
        """Begin at `start`."""
        moved = start.following - start.states
        if dynamics is not None:
            moved = moved - dynamics(start.states, start.actions)
        return cls(
            start.states.clone(),
            moved / domain.spread,
            start.rewards.clone(),
            start,
            domain,
            dynamics,
        )

    def learned(self, displacements: bool, rewards: bool) -> list[torch.Tensor]:
        """States, and the others on request, ready for gradients."""
        chosen = [self.states] + [self.displacements] * displacements + [self.rewards] * rewards
        return [tensor.requires_grad_(True) for tensor in chosen]

    @torch.no_grad()
    def result(self) -> Batch:
        """The transitions they stand for, without gradients."""
        made = self.batch()
        return Batch(
            made.states.clone(),
            made.actions,
            made.rewards.detach().clone(),
            made.following.clone(),
            made.terminated,
        )

    def batch(self) -> Batch:
        """The transitions they stand for, differentiably."""
        states = self.domain.inside(self.states)
        moved = self.displacements * self.domain.spread
        if self.dynamics is not None:
            moved = moved + self.dynamics(states, self.start.actions)
        following = self.domain.inside(states + moved)
        return Batch(states, self.start.actions, self.rewards, following, self.start.terminated)


def distill(
    full: Batch,
    start: Batch,
    draw: Draw,
    bank: Bank | None,
    gamma: float,
    steps: int = 300,
    minibatch: int = 25,
    learning_rate: float = 0.02,
    dynamics: Dynamics | None = None,
    learn_rewards: bool = False,
    loss: str = "huber",
    rows: np.random.Generator | None = None,
    row_count: int = 256,
) -> Batch:
    """Optimize G sets at once from `start`, each for its own predictors.

    Args:
        full: the training set.
        start: G starting subsets.
        draw: where fresh predictors come from.
        bank: K predictors, used `minibatch` at a time in turn; None: fresh ones in every step,
            with training losses on the terminated and `row_count` other rows drawn by `rows`.
        gamma: discount.
        steps: of Adam, with the rate falling linearly to a twentieth.
        minibatch: predictors in a step.
        learning_rate: in units of standard deviations a step.
        dynamics: next states follow the states by these dynamics; None: they are optimized freely.
        learn_rewards: optimize rewards too.
        loss: "squared", as printed, or "huber", of relative errors.
        rows: generator for fresh predictors' training rows.
        row_count: see `bank`.

    Returns:
        The distilled points.
    """
    points = Points.of(start, Domain.of(full), dynamics)
    minimize = Descent(points.learned(dynamics is None, learn_rewards), learning_rate, steps)
    for step in range(steps):
        if bank is None:
            assert rows is not None
            part = Bank.of(*draw(minibatch), _some(full, rows, row_count), gamma)
        else:
            part = bank.turn(step, minibatch)
        minimize(mismatch(part, points.batch(), gamma, loss).sum())
    return points.result()


def mismatch(bank: Bank, batch: Batch, gamma: float, loss: str) -> torch.Tensor:
    """The objective of every group, a mean over its predictors, [2, G]: others, terminated."""
    if loss == "squared":
        return bank.difference(batch, gamma).square().mean(2)
    assert loss == "huber", loss
    error = bank.error(batch, gamma)
    # Losses far above the training set's pull no harder than losses far below.
    huber = torch.nn.functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")
    return huber.mean(2)


class Descent:
    """Adam whose rate falls linearly to a twentieth over `steps`."""

    def __init__(self, learned: list[torch.Tensor], rate: float, steps: int) -> None:
        self.optimizer = torch.optim.Adam(learned, lr=rate)
        self.rate, self.steps, self.done = rate, steps, 0

    def __call__(self, loss: torch.Tensor) -> None:
        """One step down `loss`."""
        self.optimizer.param_groups[0]["lr"] = self.rate * (1 - 0.95 * self.done / self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.done += 1


def _some(full: Batch, generator: np.random.Generator, count: int) -> Batch:
    """All terminated rows and `count` of the others."""
    others = torch.nonzero(~full.terminated)[:, 0]
    if len(others) <= count:
        return full
    chosen = others[torch.as_tensor(generator.choice(len(others), count, replace=False))]
    return full.rows(torch.cat([chosen, torch.nonzero(full.terminated)[:, 0]]))


@torch.no_grad()
def held_out_error(sets: Batch, bank: Bank, gamma: float) -> torch.Tensor:
    """Median over predictors never used of |L / L_train - 1|, mean of both kinds, [G].

    A set without terminated transitions has L_end = 0: an error of 1.
    """
    errors = []
    for group in range(len(sets.actions)):
        ends = sets.terminated if sets.terminated.dim() == 1 else sets.terminated[group]
        one = Batch(
            sets.states[group],
            sets.actions[group],
            sets.rewards[group],
            sets.following[group],
            ends,
        )
        errors.append(bank.error(one, gamma).abs().median(2).values.mean(0))
    return torch.cat(errors)
