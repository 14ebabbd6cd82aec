"""Policy and vector environment in, transitions or returns out.

A policy is a function from observations [N, ...] to actions [N]. An observation that ends an
episode is kept as `next_observations`.

`collect_transitions` and `first_episode_returns` act in `rollout.environments.Environments`, where
every step is a transition. `collect` and `episode_returns` act in a vector environment of Gymnasium
with NEXT_STEP autoreset, and leave its reset steps out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from reprise.rollout.environments.base import Environments
from reprise.rollout.errors import BadInput
from reprise.rollout.types import Transitions

Policy = Callable[[np.ndarray], np.ndarray]


def collect_transitions(
    policy: Policy, environments: Environments, steps: int, seed: int
) -> Transitions:
    """Reset, then act for `steps` steps in every copy.

    Args:
        policy: observations [N, ...] -> actions [N].
        environments: N copies.
        steps: T, agent steps of each copy.
        seed: of the environments.

    Returns:
        N * T transitions, one copy's after another's, each copy's in order of time. Where a copy's
        last episode has no end, its last step is truncated: more was not seen. In Atari a lost life
        that cuts is an end (`terminated`), whose next observation is that of the loss.
    """
    _check_steps(steps)
    observations = environments.reset(seed)
    rows: list[tuple[np.ndarray, ...]] = []
    for _ in range(steps):
        actions = np.asarray(policy(observations), dtype=np.int64)
        step = environments.step(actions)
        following = step.observations
        if step.final_observations:
            following = following.copy()
            for copy, final in step.final_observations.items():
                following[copy] = final
        rows.append(
            (observations, actions, step.rewards, following, step.terminated, step.truncated)
        )
        observations = step.observations
    columns = [np.stack(column, axis=1) for column in zip(*rows, strict=True)]
    columns[5][:, -1] |= ~columns[4][:, -1]
    return Transitions(*(column.reshape(-1, *column.shape[2:]) for column in columns))


def first_episode_returns(policy: Policy, environments: Environments, seed: int) -> np.ndarray:
    """Undiscounted raw return of the first whole game of every copy, float64 [N].

    A copy whose game is over stands still: it is neither stepped nor shown to the policy, which
    sees observations [n, ...] of the n copies still playing.
    """
    observations = environments.reset(seed)
    returns = np.zeros(environments.copies)
    playing = np.ones(environments.copies, dtype=bool)
    while playing.any():
        actions = np.zeros(environments.copies, dtype=np.int64)
        actions[playing] = policy(observations[playing])
        step = environments.step(actions, playing)
        observations = step.observations
        for episode in step.episodes:
            returns[episode.copy], playing[episode.copy] = episode.total, False
    return returns


def collect(policy: Policy, environment: VectorEnv, steps: int, seed: int) -> Transitions:
    """Act for `steps` steps in every copy.

    Args:
        policy: observations [N, ...] -> actions [N].
        environment: N copies, with NEXT_STEP autoreset.
        steps: environment steps of each copy, reset steps included.
        seed: of the initial states.

    Returns:
        At most N * steps transitions, one copy's after another's, each copy's in order of time.
        Where a copy's last episode has no end, its last step is truncated: more was not seen.
    """
    _check(environment, steps)
    observation, _ = environment.reset(seed=seed)
    resetting = np.zeros(environment.num_envs, dtype=bool)
    rows: list[tuple[np.ndarray, ...]] = []
    for _ in range(steps):
        action = np.asarray(policy(observation), dtype=np.int64)
        following, reward, terminated, truncated, _ = environment.step(action)
        rows.append((observation, action, reward, following, terminated, truncated, ~resetting))
        resetting = terminated | truncated
        observation = following
    columns = [np.stack(column, axis=1) for column in zip(*rows, strict=True)]
    real = columns.pop()
    columns[5][:, -1] |= ~columns[4][:, -1]
    observations, actions, rewards, following, terminated, truncated = (
        column[real] for column in columns
    )
    return Transitions(
        observations, actions, rewards.astype(np.float32), following, terminated, truncated
    )


def episode_returns(policy: Policy, environment: VectorEnv, seed: int) -> np.ndarray:
    """Sum of rewards of the first episode of every copy, float64 [N].

    The policy sees all copies at every step, also those whose episode is over.
    """
    _check(environment, 1)
    observation, _ = environment.reset(seed=seed)
    returns = np.zeros(environment.num_envs)
    running = np.ones(environment.num_envs, dtype=bool)
    while running.any():
        action = np.asarray(policy(observation), dtype=np.int64)
        observation, reward, terminated, truncated, _ = environment.step(action)
        returns += np.where(running, reward, 0.0)
        running &= ~(terminated | truncated)
    return returns


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise BadInput(f"steps={steps}; must be at least 1")


def _check(environment: VectorEnv, steps: int) -> None:
    _check_steps(steps)
    mode = environment.metadata.get("autoreset_mode")
    if mode != AutoresetMode.NEXT_STEP:
        raise BadInput(
            f"the environment resets by {mode}; collecting counts on AutoresetMode.NEXT_STEP, "
            "where the observation that ends an episode is seen"
        )
