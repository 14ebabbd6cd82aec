"""What distillation is compared with: subsets of the training set, and behaviour cloning distilled.

    random      a uniform subset
    stratified  a uniform subset with the training set's share of terminated transitions
    balanced    a uniform subset with the share that the distilled sets have: their starting point
    leverage    drawn without replacement, with probability proportional to leverage scores
    kmeans      the transitions next to the centres of k-means, clustered apart by action and end
    cloning     states optimized so that gradients of behaviour cloning match (offline data
                distilled by gradient matching, as in the dataset-distillation literature); judged
                by a cloned policy, since it says nothing about rewards

The trap: a random subset of 50 may hold no terminated transition at all; it is kept as it is drawn.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from distill.offline_rl import Domain, starting_rows, terminal_count
from distill.predictors import Batch, Networks, draw_networks
from rollout.types import Transitions

SUBSETS = ("random", "stratified", "balanced", "leverage", "kmeans")


def subset(
    method: str,
    data: Transitions,
    full: Batch,
    size: int,
    share: float | None,
    generator: np.random.Generator,
) -> np.ndarray:
    """Rows of one subset, others first and terminated last.

    Args:
        method: one of SUBSETS.
        data: the training set.
        full: the same, standardized.
        size: N.
        share: terminated share of "balanced".
        generator: of the draw.
    """
    terminated = data.terminated
    if method == "random":
        rows = generator.permutation(len(data))[:size]
    elif method == "leverage":
        scores = leverage(_columns(full))
        rows = generator.choice(len(data), size, replace=False, p=scores / scores.sum())
    elif method == "kmeans":
        rows = _medoids(data, full, size, generator)
    else:
        assert method in ("stratified", "balanced")
        ends = terminal_count(data, size, share if method == "balanced" else None)
        return starting_rows(terminated, size, ends, generator)
    return np.concatenate([rows[~terminated[rows]], rows[terminated[rows]]])


def leverage(matrix: np.ndarray) -> np.ndarray:
    """h_i = z_i^T (Z^T Z)^+ z_i, the squared row norms of an orthonormal basis of Z's columns.

    They sum to the rank.
    """
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return np.square(left[:, values > 1e-10 * values.max()]).sum(1)


def _columns(full: Batch) -> np.ndarray:
    """(s, one-hot a, r, s') of every transition; the one-hot actions are its intercept."""
    one_hot = torch.nn.functional.one_hot(full.actions).to(full.states.dtype)
    parts = [full.states, one_hot, full.rewards[:, None], full.following]
    return torch.cat(parts, 1).double().numpy()


def _medoids(
    data: Transitions, full: Batch, size: int, generator: np.random.Generator
) -> np.ndarray:
    """Next transitions to k-means centres of (s, s'); each class gets its share of `size`."""
    from sklearn.cluster import KMeans

    points = torch.cat([full.states, full.following], 1).double().numpy()
    classes = data.actions * 2 + data.terminated
    kinds, counts = np.unique(classes, return_counts=True)
    shares = np.maximum(1, np.floor(size * counts / counts.sum())).astype(int)
    shares[counts.argmax()] += size - shares.sum()
    chosen = []
    for kind, share in zip(kinds, shares, strict=True):
        rows = np.flatnonzero(classes == kind)
        seed = int(generator.integers(2**31))
        centres = KMeans(int(share), n_init=1, random_state=seed).fit(points[rows]).cluster_centers_
        free = points[rows].copy()
        for centre in centres:  # each centre its own transition
            nearest = int(np.square(free - centre).sum(1).argmin())
            chosen.append(rows[nearest])
            free[nearest] = np.inf
    return np.array(chosen)


# -- behaviour cloning -----------------------------------------------------------------------------


def distill_cloning(
    full: Batch,
    start: Batch,
    actions: int,
    generator: np.random.Generator,
    steps: int = 200,
    policies: int = 8,
    learning_rate: float = 0.02,
    rows: int = 512,
    units: int = 64,
) -> Batch:
    """States whose gradients of behaviour cloning are the training set's.

    In every step fresh random policies pi (tanh networks, one hidden layer), and

        minimize over states   sum_j (1 - cos(grad_j(syn), grad_j(train))),
        grad_j = gradient of mean -log pi_j(a | s) by the weights of pi_j.

    The gradient by the logits is softmax - onehot(a), so both layers' gradients are products of
    matrices and nothing is differentiated twice. Next states move along with the states.
    """
    domain, width = Domain.of(full), full.states.shape[-1]
    states = start.states.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([states], lr=learning_rate)
    groups = len(states)
    for step in range(steps):
        first = _normal(generator, groups, policies, width + 1, units) / math.sqrt(width)
        head = _normal(generator, groups, policies, units, actions) / math.sqrt(units)
        some = torch.as_tensor(generator.integers(0, len(full.actions), rows))
        wanted = _cloning_gradient(first, head, full.states[some][None], full.actions[some][None])
        found = _cloning_gradient(first, head, domain.inside(states), start.actions)
        cosine = torch.nn.functional.cosine_similarity(found, wanted, dim=-1)
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - 0.95 * step / steps)
        optimizer.zero_grad(set_to_none=True)
        (1 - cosine).sum().backward()
        optimizer.step()
    with torch.no_grad():
        inside = domain.inside(states)
        following = domain.inside(inside + start.following - start.states)
    return Batch(inside.detach(), start.actions, start.rewards, following, start.terminated)


def _normal(generator: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.as_tensor(generator.standard_normal(shape, dtype=np.float32))


def _cloning_gradient(
    first: torch.Tensor, head: torch.Tensor, states: torch.Tensor, actions: torch.Tensor
) -> torch.Tensor:
    """Gradients [G, J, parameters] of the mean cross-entropy, written out."""
    one = torch.ones_like(states[..., :1])
    inputs = torch.cat([states, one], -1)[:, None]
    hidden = torch.tanh(inputs @ first)
    wrong = torch.softmax(hidden @ head, -1)
    wrong = wrong - torch.nn.functional.one_hot(actions, head.shape[-1])[:, None]
    wrong = wrong / states.shape[-2]
    back = (wrong @ head.transpose(-1, -2)) * (1 - hidden.square())
    by_first = inputs.transpose(-1, -2) @ back
    by_head = hidden.transpose(-1, -2) @ wrong
    return torch.cat([by_first.flatten(2), by_head.flatten(2)], -1)


def clone(
    sets: Batch, actions: int, generator: np.random.Generator, ensemble: int, steps: int = 600
) -> Networks:
    """Policies cloned from G sets: `ensemble` networks each, by cross-entropy of their actions.

    Returns:
        Networks whose mean values, maximized over actions, are the policies.
    """
    networks = draw_networks(
        generator, len(sets.states), ensemble, sets.states.shape[-1], actions
    )
    parameters = networks.parameters()
    for tensor in parameters:
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.3)
    index = sets.actions[:, None, :, None].expand(-1, ensemble, -1, 1)
    for _ in range(steps):
        values = networks.values(sets.states).log_softmax(-1)
        optimizer.zero_grad(set_to_none=True)
        (-values.gather(-1, index).mean((2, 3)).sum()).backward()
        optimizer.step()
    for tensor in parameters:
        tensor.requires_grad_(False)
    return networks
