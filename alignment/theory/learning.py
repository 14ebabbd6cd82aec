"""Learning in a bandit: sample pairs, label them, fit; once or for many rounds, all seeds at once.

Batches of pairs are stored as counts of each unordered pair of responses, so that ten pairs and ten
million cost the same. Targets come from `alignment.pairs` and losses from `alignment.objectives`:
the functions that train language models, in double precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from reprise.alignment.config import DPO, PDFR, RDRC, REBEL
from reprise.alignment.objectives import Scores, pair_losses, target_of
from reprise.alignment.theory.bandit import Bandit
from reprise.alignment.theory.constrained import kkt_residual, minimize_in_ball
from reprise.alignment.theory.design import preferential_design
from reprise.rollout import draws
from reprise.rollout.randomness import Streams

Sampler = Literal["on_policy", "offline", "design", "hybrid", "hybrid_pairs"]
AnyObjective = DPO | PDFR | REBEL | RDRC


@dataclass(frozen=True, eq=False)
class PairTable:
    """Every unordered pair of different responses: `prompt`, `first`, `second`, int64 (pairs,)."""

    prompt: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, bandit: Bandit) -> PairTable:
        """The pairs of `bandit`."""
        prompts, responses = bandit.base.shape
        first, second = np.triu_indices(responses, k=1)
        return cls(
            torch.from_numpy(np.repeat(np.arange(prompts), len(first))),
            torch.from_numpy(np.tile(first, prompts)),
            torch.from_numpy(np.tile(second, prompts)),
        )

    def both(self, values: Tensor) -> Tensor:
        """Values of shape (..., prompts, responses) at both sides, shape (..., pairs, 2)."""
        sides = [values[..., self.prompt, side] for side in (self.first, self.second)]
        return torch.stack(sides, dim=-1)

    def difference(self, values: Tensor) -> Tensor:
        """First minus second of values of shape (..., prompts, responses), shape (..., pairs)."""
        return values[..., self.prompt, self.first] - values[..., self.prompt, self.second]

    def probabilities(self, prompts: Tensor, policy: Tensor) -> Tensor:
        """P(x, {a, b}) when x ~ prompts and a, b ~ policy(x) independently; shape (..., pairs).

        What is missing to 1 is the chance of drawing one response twice, which tells nothing.
        """
        return 2 * prompts[self.prompt] * self.both(policy).prod(-1)

    def of_joint(self, joint: Tensor) -> Tensor:
        """The same when (x, a) ~ joint, shape (..., prompts, responses), and b ~ joint(.|x)."""
        marginal = joint.sum(-1)[..., self.prompt].clamp_min(1e-300)
        return 2 * self.both(joint).prod(-1) / marginal


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs drawn in one round by each replica.

    Attributes:
        counts: how often each pair was drawn, shape (replicas, pairs).
        wins: in how many of them the first response won.
        size: pairs drawn by each replica, those of one response with itself included.
    """

    counts: Tensor
    wins: Tensor
    size: int

    def __add__(self, other: Batch) -> Batch:
        return Batch(self.counts + other.counts, self.wins + other.wins, self.size + other.size)


def draw(
    probabilities: Tensor, win_probability: Tensor, size: int, generator: np.random.Generator
) -> Batch:
    """Draw `size` pairs for each replica, and their Bradley-Terry labels.

    Args:
        probabilities: of each pair, shape (replicas, pairs).
        win_probability: P(first beats second), shape (pairs,).
        size: n.
        generator: randomness.
    """
    p = probabilities.numpy()
    rest = np.maximum(1 - p.sum(axis=1, keepdims=True), 0)
    counts = draws.multinomial(generator, size, np.concatenate([p, rest], axis=1))[:, :-1]
    wins = draws.binomial(generator, counts, win_probability.numpy())
    return Batch(torch.from_numpy(counts).double(), torch.from_numpy(wins).double(), size)


def expected(probabilities: Tensor, win_probability: Tensor) -> Batch:
    """The batch of infinitely many pairs: counts are probabilities."""
    return Batch(probabilities, probabilities * win_probability, 1)


def fit(
    bandit: Bandit,
    table: PairTable,
    batch: Batch,
    objective: AnyObjective,
    theta_k: Tensor,
    rewards: Tensor | None = None,
) -> Tensor:
    """argmin over the ball of the objective on `batch`, for every replica.

    Args:
        bandit: the instance.
        table: its pairs.
        batch: D_k of each replica.
        objective: DPO (sampled labels: the batch's wins), PDFR, REBEL or RDRC; its gamma counts.
        theta_k: parameters of pi_k, shape (replicas, d); the search begins there.
        rewards: what a reward model says, shape (prompts, responses); None for the true rewards.

    Returns:
        theta_{k+1}, shape (replicas, d).
    """
    derivatives = _Derivatives(bandit, table, batch, objective, theta_k, rewards)
    return minimize_in_ball(derivatives, theta_k, bandit.radius, bandit.norm)


def kkt(
    bandit: Bandit,
    table: PairTable,
    batch: Batch,
    objective: AnyObjective,
    theta_k: Tensor,
    theta: Tensor,
    rewards: Tensor | None = None,
) -> Tensor:
    """How far each `theta` is from satisfying KKT for what `fit` minimizes; shape (replicas,)."""
    derivatives = _Derivatives(bandit, table, batch, objective, theta_k, rewards)
    _, gradient, hessian = derivatives(theta, torch.arange(len(theta)))
    curvature = torch.linalg.eigvalsh(hessian)[:, -1]
    return kkt_residual(theta, gradient, curvature, bandit.radius, bandit.norm)


class _Derivatives:
    """The objective of every replica, with its derivatives in theta.

    y is linear in theta, dy/dtheta = gamma (phi(x, a1) - phi(x, a2)), so that the loss's own first
    and second derivatives, which autograd takes through `pair_losses`, are all there is to it.
    """

    def __init__(
        self,
        bandit: Bandit,
        table: PairTable,
        batch: Batch,
        objective: AnyObjective,
        theta_k: Tensor,
        rewards: Tensor | None,
    ) -> None:
        assert isinstance(objective.gamma, float)
        self.bandit, self.table, self.objective = bandit, table, objective
        self.gamma: float = objective.gamma
        # Pairs that no replica drew cost time and change nothing.
        drawn = (batch.counts > 0).any(0)
        self.table = PairTable(table.prompt[drawn], table.first[drawn], table.second[drawn])
        table, counts = self.table, batch.counts[:, drawn]
        sides = (
            bandit.features[table.prompt, table.first],
            bandit.features[table.prompt, table.second],
        )
        self.difference = sides[0] - sides[1]
        self.weight = counts / batch.size
        initial = table.both(bandit.base).expand(*counts.shape, 2)
        previous = table.both(bandit.log_policy(theta_k))
        self.reference = initial if objective.reference == "initial" else previous
        if isinstance(objective, DPO) and objective.labels == "sampled":
            # The loss is linear in the label: the frequency of wins stands for all labels.
            self.target = batch.wins[:, drawn] / counts.clamp_min(1e-300)
        else:
            difference = table.difference(bandit.rewards if rewards is None else rewards)
            self.target = torch.from_numpy(
                target_of(
                    objective,
                    Scores(
                        difference.expand(counts.shape).reshape(-1).numpy(),
                        previous.reshape(-1, 2).numpy(),
                        initial.reshape(-1, 2).numpy(),
                        np.zeros(counts.numel()),
                    ),
                )
            ).reshape(counts.shape)

    def __call__(self, theta: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, gradient and Hessian at theta of the problems `which`."""
        shape = len(which), self.difference.shape[0]
        logprobs = self.table.both(self.bandit.log_policy(theta)).reshape(-1, 2)
        logprobs = logprobs.requires_grad_(True)
        losses, _ = pair_losses(
            self.objective.name,
            logprobs,
            self.reference[which].reshape(-1, 2),
            self.target[which].reshape(-1),
            self.weight[which].reshape(-1),
            self.gamma,
        )
        (first,) = torch.autograd.grad(losses.sum(), logprobs, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), logprobs)
        slope = first[:, 0].detach().reshape(shape)
        bend = second[:, 0].reshape(shape)
        delta = self.difference
        hessian = ((bend[:, :, None] * delta).transpose(1, 2) @ delta).contiguous()
        return losses.detach().reshape(shape).sum(1), slope @ delta, hessian


# -- rounds --------------------------------------------------------------------------------------


def win_probability(bandit: Bandit, table: PairTable) -> Tensor:
    """P(first beats second) under Bradley-Terry: the soft label of preference distillation."""
    soft = PDFR(name="pdfr", gamma=bandit.gamma, reference="initial", beta=1.0)
    difference, unused = table.difference(bandit.rewards).numpy(), np.zeros(0)
    return torch.from_numpy(target_of(soft, Scores(difference, unused, unused, unused)))


def design_of(bandit: Bandit, tolerance: float = 0.01) -> Tensor:
    """pi^g(x, a), the preferential G-optimal design; shape (prompts, responses), sum 1."""
    features = (bandit.features @ bandit.span).numpy()
    return torch.from_numpy(preferential_design(features, tolerance).joint)


def pair_probabilities(
    bandit: Bandit, table: PairTable, sampler: Sampler, log_policy: Tensor, design: Tensor | None
) -> Tensor:
    """P(x, {a, b}) in a round, shape (..., pairs).

    ``hybrid`` is line 7 of Algorithm 2: prompts and *both* actions come from the mixture

        pi'_k(x, a) = D(x) pi_k(a|x) / 2 + pi^g(x, a) / 2,

    whose covariance is at least V(pi_k) / 2 + V(pi^g) / 2 (Lemma C.2). ``hybrid_pairs`` mixes whole
    pairs, half of them from pi_k and half from pi^g: then the information is exactly that sum, and
    what lies between a policy's responses and the design's is never compared.

    Args:
        bandit: the instance.
        table: its pairs.
        sampler: where pairs come from.
        log_policy: ln pi_k, shape (..., prompts, responses).
        design: pi^g, for the samplers that have it.
    """
    own = bandit.prompts[:, None] * log_policy.exp()
    if design is None:
        return table.of_joint(own)
    if sampler == "hybrid":
        return table.of_joint((own + design) / 2)
    if sampler == "hybrid_pairs":
        return (table.of_joint(own) + table.of_joint(design)) / 2
    assert sampler == "design"
    return table.of_joint(design).expand(*log_policy.shape[:-2], -1)


def learn(
    bandit: Bandit,
    objective: AnyObjective,
    sampler: Sampler,
    sizes: list[int],
    replicas: int,
    streams: Streams,
    name: str,
    rewards: Tensor | None = None,
) -> Tensor:
    """Run K rounds in `replicas` independent copies (Algorithms 1 to 3).

    Args:
        bandit: the instance.
        objective: what each round minimizes.
        sampler: where round k's pairs come from: ``on_policy`` pi_k; ``offline`` pi_0, where round
            k fits all pairs drawn so far; ``design`` the preferential design; ``hybrid`` the
            mixture of pi_k and the design (Algorithm 2); ``hybrid_pairs`` whole pairs of either.
        sizes: n_0, ..., n_{K-1}.
        replicas: number of copies.
        streams: randomness.
        name: names the random streams.
        rewards: a reward model's, shape (prompts, responses); None for the true rewards.

    Returns:
        theta_0 = 0, ..., theta_K, shape (K + 1, replicas, d).
    """
    table = PairTable.of(bandit)
    wins = win_probability(bandit, table)
    design = None if sampler in ("on_policy", "offline") else design_of(bandit)
    theta = torch.zeros(replicas, bandit.features.shape[2], dtype=torch.float64)
    path, batch = [theta], None
    for k, size in enumerate(sizes):
        policy = bandit.log_policy(torch.zeros_like(theta) if sampler == "offline" else theta)
        probabilities = pair_probabilities(bandit, table, sampler, policy, design)
        new = draw(probabilities, wins, size, streams.data("pairs", name, k))
        batch = new if batch is None or sampler != "offline" else batch + new
        theta = fit(bandit, table, batch, objective, theta, rewards)
        path.append(theta)
    return torch.stack(path)


def objective_of(
    name: str, gamma: float, reference: str = "initial", calibration: float = 1.0
) -> AnyObjective:
    """An objective's settings for a bandit whose rewards are r = gamma theta* . phi.

    Args:
        name: ``dpo`` (sampled labels), ``pdfr`` (beta 1), ``rebel`` or ``rdrc``.
        gamma: KL regularization.
        reference: ``initial`` or ``previous``, for DPO and REBEL.
        calibration: gamma_c / gamma, for RDRC.
    """
    assert math.isfinite(calibration)
    if name == "dpo":
        return DPO(name="dpo", gamma=gamma, reference=reference, labels="sampled")
    if name == "pdfr":
        return PDFR(name="pdfr", gamma=gamma, reference="initial", beta=1.0)
    if name == "rebel":
        return REBEL(name="rebel", gamma=gamma, reference=reference)
    return RDRC(name="rdrc", gamma=gamma, reference="previous", gamma_c=calibration * gamma)
