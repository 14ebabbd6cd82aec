"""Policy and vector environment in, transitions or returns out.

A policy is a function from observations [N, ...] to actions [N]. An observation that ends an
episode is kept as `next_observations`; the reset step that follows it is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rollout.types import Transitions

Policy = Callable[[np.ndarray], np.ndarray]


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


def _check(environment: VectorEnv, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}; must be at least 1")
    mode = environment.metadata.get("autoreset_mode")
    if mode != AutoresetMode.NEXT_STEP:
        raise ValueError(
            f"the environment resets by {mode}; collecting counts on AutoresetMode.NEXT_STEP, "
            "where the observation that ends an episode is seen"
        )
