"""Lambda-returns of greedy Q-learning, Q(lambda), over a window of T steps of N copies."""

from __future__ import annotations

import numpy as np

from reprise.rollout.errors import BadInput


def q_lambda(
    rewards: np.ndarray,
    values: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    final_values: np.ndarray | None,
    gamma: float,
    lam: float,
    bootstrap_on_truncation: bool,
) -> np.ndarray:
    """Targets G_t of Q(s_t, a_t), computed backwards from the end of the window.

    With V_t = max_a Q(s_t, a) and an end where terminated or truncated,

        G_t = r_t + gamma (lam G_{t+1} + (1 - lam) V_{t+1})    inside the window
        G_{T-1} = r_{T-1} + gamma V_T                          at its end
        G_t = r_t                                              where step t terminated
        G_t = r_t + gamma F_t                                  where it was truncated

    F_t = max_a Q(final observation of step t) if `bootstrap_on_truncation`, else 0: a time limit is
    then an end like any other, as in CleanRL's PQN. Nothing crosses an end. With lam = 0 this is
    one-step Q-learning, with lam = 1 the discounted sum to the end of the episode or window.

    The traps: V_{t+1} after an autoreset belongs to the *next* episode, so a truncated step must
    never use it; and the (1 - lam) term takes V_{t+1}, the value of where step t led, not V_t.

    Args:
        rewards: [T, N].
        values: V_0 .. V_T, [T + 1, N]; of the observations acted on, and after the last step.
            V_0 is not used.
        terminated: bool [T, N].
        truncated: bool [T, N]; where a step is both, it terminated.
        final_values: F, [T, N], read only at truncated steps; None unless bootstrapping.
        gamma: discount, in [0, 1].
        lam: lambda, in [0, 1].
        bootstrap_on_truncation: as above.

    Returns:
        G, float32 [T, N]; computed in float32.

    Raises:
        BadInput: shapes that do not fit, gamma or lam outside [0, 1], or final values missing.
    """
    rewards, values = np.asarray(rewards, np.float32), np.asarray(values, np.float32)
    steps = len(rewards)
    arrays = {"terminated": terminated, "truncated": truncated}
    if bootstrap_on_truncation:
        if final_values is None:
            raise BadInput(
                "final_values=None; bootstrap_on_truncation needs max_a Q of the observations that "
                "truncated episodes ended with"
            )
        arrays["final_values"] = final_values
    _check(rewards, values, arrays, gamma, lam)
    if bootstrap_on_truncation:
        at_end = np.where(truncated & ~terminated, final_values, 0).astype(np.float32)
    else:
        at_end = np.zeros_like(rewards)
    ended = terminated | truncated
    discount, trace, rest = np.float32(gamma), np.float32(lam), np.float32(1 - lam)
    returns = np.empty_like(rewards)
    following = values[steps]
    for t in reversed(range(steps)):
        returns[t] = rewards[t] + discount * np.where(ended[t], at_end[t], following)
        following = trace * returns[t] + rest * values[t]
    return returns


def _check(
    rewards: np.ndarray,
    values: np.ndarray,
    arrays: dict[str, np.ndarray],
    gamma: float,
    lam: float,
) -> None:
    if rewards.ndim != 2 or len(rewards) == 0:
        raise BadInput(f"rewards: has shape {list(rewards.shape)}, must have [T >= 1, N]")
    after = [len(rewards) + 1, rewards.shape[1]]
    if list(values.shape) != after:
        raise BadInput(
            f"values: has shape {list(values.shape)}, must have {after}"
            ": one row more than rewards, for what follows the last step"
        )
    for name, array in arrays.items():
        if array.shape != rewards.shape:
            raise BadInput(
                f"{name}: has shape {list(array.shape)}, must have that of rewards, "
                f"{list(rewards.shape)}"
            )
        if name != "final_values" and array.dtype != np.bool_:
            raise BadInput(f"{name}: is {array.dtype}, must be bool")
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise BadInput(f"{name}={value}; must be within [0, 1]")
