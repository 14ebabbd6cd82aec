"""Downstream learners: what a small set is worth is the return of a policy learned from it.

`fitted_q` trains E networks on each of G sets at once by neural fitted Q-iteration,

    y_i = (1 - gamma) r_i + gamma (1 - terminated_i) max_a' mean_e Q_e(s'_i, a')        (a backup)
    Q_e <- a few Adam steps on mean_i (Q_e(s_i, a_i) - y_i)^2, with decoupled weight decay

and acts greedily on mean_e Qbar_e, where Qbar has weights averaged over backups (Polyak;
targets from these would lag ten backups behind, and fifty points then teach nothing).
Values are in units of 1 / (1 - gamma), so that they are of order 1. One learner for every method.
The trap: without the ensemble, the averaging and the decay, the same 50 points give anything from 9
to 500 over seeds, and then no comparison says anything.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable

import numpy as np
import torch

from reprise.distill.config import Downstream
from reprise.distill.predictors import Batch, Networks, Scaling, draw_networks
from reprise.rollout.environments.base import make
from reprise.rollout.episodes import first_episode_returns
from reprise.rollout.offline import d3rlpy_buffer
from reprise.rollout.types import Transitions

Watch = Callable[[int, Networks], None]


def fitted_q(
    sets: Batch,
    actions: int,
    learner: Downstream,
    generator: np.random.Generator,
    groups: int | None = None,
    watch: Watch | None = None,
) -> Networks:
    """E networks for each of G sets.

    Args:
        sets: standardized transitions [G, N, ...]; or one set [N, ...] for all of `groups`.
        actions: A.
        learner: settings.
        generator: of initial weights and minibatches.
        groups: G, where there is one set for all.
        watch: called with the number of backups done and Qbar after each: the fitted iterates.

    Returns:
        Qbar after all backups, [G, E].
    """
    size = sets.actions.shape[-1]
    alike = sets.actions.dim() == 1
    count = len(sets.actions) if groups is None else groups
    assert alike == (groups is not None)
    networks = draw_networks(
        generator,
        count,
        learner.ensemble,
        sets.states.shape[-1],
        actions,
        learner.units,
        learner.depth,
        activation=learner.activation,
    )
    average = networks.copy()
    parameters = networks.parameters()
    for tensor in parameters:
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        parameters, lr=learner.learning_rate, weight_decay=learner.weight_decay, fused=True
    )
    done, total = 0, learner.backups * learner.steps
    for backup in range(learner.backups):
        for _ in range(learner.steps):
            if done % learner.steps == 0 or size > learner.batch_size:
                part = _minibatch(sets, learner.batch_size, generator)
                targets = _targets(networks, part, learner.gamma)
            rate = learner.learning_rate * (1 - 0.9 * done / total)
            optimizer.param_groups[0]["lr"] = rate
            error = networks.taken(part.states, part.actions) - targets[:, None]
            optimizer.zero_grad(set_to_none=True)
            error.square().mean(-1).sum().backward()
            optimizer.step()
            done += 1
        with torch.no_grad():
            for mean, tensor in zip(average.parameters(), parameters, strict=True):
                mean.lerp_(tensor, 1 - learner.average)
        if watch is not None:
            watch(backup + 1, average)
    return average


def _minibatch(sets: Batch, size: int, generator: np.random.Generator) -> Batch:
    """The set itself, or `size` of its rows, the same in every set."""
    count = sets.actions.shape[-1]
    if count <= size:
        return sets
    return sets.rows(torch.as_tensor(generator.integers(0, count, size)))


@torch.no_grad()
def _targets(networks: Networks, sets: Batch, gamma: float) -> torch.Tensor:
    """y [G, N] (or [1, N] of a set for all, which is then each group's own)."""
    ahead = networks.values(sets.following).mean(1).amax(-1)
    alive = 1.0 - sets.terminated.to(ahead.dtype)
    return (1 - gamma) * sets.rewards + gamma * alive * ahead


def greedy_returns(
    networks: Networks, scaling: Scaling, environment: str, episodes: int, seed: int
) -> np.ndarray:
    """Mean return [G] of each group's greedy policy over `episodes` episodes."""
    groups = len(networks.first)
    copies = make(environment, groups * episodes)
    observations = copies.reset(seed)
    returns = np.zeros(copies.copies)
    playing = np.ones(copies.copies, dtype=bool)
    while playing.any():
        states = torch.as_tensor(
            (observations - scaling.centre) / scaling.scale, dtype=networks.first.dtype
        )
        with torch.no_grad():
            values = networks.values(states.view(groups, episodes, -1)).mean(1)
        step = copies.step(values.argmax(-1).reshape(-1).numpy(), playing)
        observations = step.observations
        for episode in step.episodes:
            returns[episode.copy], playing[episode.copy] = episode.total, False
    copies.close()
    return returns.reshape(groups, episodes).mean(1)


def d3rlpy_return(
    transitions: Transitions,
    environment: str,
    gamma: float,
    steps: int,
    episodes: int,
    seed: int,
) -> float:
    """Mean return of d3rlpy's DQN after `steps` gradient steps on a set.

    d3rlpy draws from the global generators; whoever calls finds theirs as they left them.
    """
    import d3rlpy
    from d3rlpy.algos import DQNConfig
    from d3rlpy.logging import NoopAdapterFactory
    from d3rlpy.models.encoders import VectorEncoderFactory
    from d3rlpy.preprocessing import StandardObservationScaler

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    d3rlpy.seed(seed)
    try:
        copies = make(environment, episodes)
        buffer = d3rlpy_buffer(transitions, copies.actions)
        learner = DQNConfig(
            batch_size=min(32, len(transitions)),
            learning_rate=1e-3,
            gamma=gamma,
            target_update_interval=100,
            observation_scaler=StandardObservationScaler(),
            encoder_factory=VectorEncoderFactory([64, 64]),
        ).create(device="cpu")
        with contextlib.redirect_stdout(sys.stderr):  # d3rlpy logs to standard output
            learner.fit(
                buffer,
                n_steps=steps,
                n_steps_per_epoch=steps,
                logger_adapter=NoopAdapterFactory(),
                show_progress=False,
                save_interval=2,
            )
        returns = first_episode_returns(learner.predict, copies, seed)
        copies.close()
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
    return float(returns.mean())
