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

from reprise.distill.offline_rl import Domain, starting_rows, terminal_count
from reprise.distill.predictors import Batch, Networks, draw_networks
from reprise.rollout.draws import settled
from reprise.rollout.types import Transitions

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
        shares = settled(scores / scores.sum())
        rows = generator.choice(len(data), size, replace=False, p=shares)
    elif method == "kmeans":
        return medoids(data, full, size, None, generator)
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


def medoids(
    data: Transitions, full: Batch, size: int, ends: int | None, generator: np.random.Generator
) -> np.ndarray:
    """Next transitions to the centres of k-means of (s, s'), clustered apart by action and end.

    Args:
        data: the training set; `full` the same, standardized.
        full: see `data`.
        size: N.
        ends: how many are terminated, each action having half of them and of the others (or its
            share, of any number of actions); None: every class in proportion to its transitions.
        generator: of the clusterings' starts.

    Returns:
        Rows, others first.
    """
    points = torch.cat([full.states, full.following], 1).double().numpy()
    classes = data.actions * 2 + data.terminated
    kinds, there = np.unique(classes, return_counts=True)
    if ends is None:
        wanted = _dealt(size, there / there.sum())
    else:
        final = kinds % 2 == 1
        wanted = np.zeros(len(kinds), dtype=int)
        wanted[~final] = _dealt(size - ends, np.full((~final).sum(), 1 / (~final).sum()))
        wanted[final] = _dealt(ends, np.full(final.sum(), 1 / final.sum()))
    chosen = []
    for kind, count in zip(kinds, np.minimum(wanted, there), strict=True):
        chosen.append(_nearest(points, np.flatnonzero(classes == kind), int(count), generator))
    rows = np.concatenate(chosen)
    # What a small class cannot give comes from the others.
    ended = int(data.terminated[rows].sum())
    lacking = size - len(rows)
    if lacking:
        short = 0 if ends is None else ends - ended
        rest = generator.permutation(np.setdiff1d(np.arange(len(data)), rows))
        ending = data.terminated[rest]
        extra = [rest[ending][:short], rest[~ending][: lacking - short]]
        rows = np.concatenate([rows, *extra])
    return np.concatenate([rows[~data.terminated[rows]], rows[data.terminated[rows]]])


def _dealt(size: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers near size * shares that sum to `size`; at least one each if there is room."""
    least = 1 if size >= len(shares) else 0
    counts = np.maximum(least, np.floor(size * shares)).astype(int)
    order = np.argsort(-shares, kind="stable")
    index = 0
    while counts.sum() != size:
        step = 1 if counts.sum() < size else -1
        at = order[index % len(order)]
        if counts[at] + step >= least:
            counts[at] += step
        index += 1
    return counts


def _nearest(
    points: np.ndarray, rows: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Of `rows`, one for each of `count` centres: the nearest that is not taken yet."""
    from sklearn.cluster import KMeans

    if count == 0:
        return rows[:0]
    seed = int(generator.integers(2**31))
    centres = KMeans(count, n_init=1, random_state=seed).fit(points[rows]).cluster_centers_
    free, chosen = points[rows].copy(), []
    for centre in centres:
        at = int(np.square(free - centre).sum(1).argmin())
        chosen.append(rows[at])
        free[at] = np.inf
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
    networks = draw_networks(generator, len(sets.states), ensemble, sets.states.shape[-1], actions)
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
