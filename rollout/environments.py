"""Vector environments, many copies stepped as one array.

Only CartPole so far. `CartPoleVectorEnv` of Gymnasium is numpy throughout: a step of a thousand
copies costs about what ten steps of one cost. Its dynamics are those of `CartPole-v1`.

The trap (autoreset NEXT_STEP): the step *after* an episode's end only resets. It ignores the
action and its reward 0 belongs to no transition; `rollout.collect` leaves it out.
"""

from __future__ import annotations

from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

CARTPOLE_STEPS = 500  # time limit of CartPole-v1


def cartpole(copies: int, max_episode_steps: int = CARTPOLE_STEPS) -> CartPoleVectorEnv:
    """`copies` of CartPole-v1: reward 1 a step, truncated after `max_episode_steps`.

    Raises:
        ValueError: no copies, or episodes of no steps.
    """
    for key, value in (("copies", copies), ("max_episode_steps", max_episode_steps)):
        if value < 1:
            raise ValueError(f"{key}={value}; must be at least 1")
    return CartPoleVectorEnv(num_envs=copies, max_episode_steps=max_episode_steps)
