"""Copies of an environment stepped as one array, with exact save and restore.

    observations = environments.reset(seed)
    step = environments.step(actions)            # actions int64 [N]

Three rules hold for every environment here:

* **Same-step autoreset.** `step.observations` is always what to act on next. Where an episode
  ended, its copy has been reset already, and the observation it ended with is in
  `step.final_observations`. No step is a reset step, so every (s, a, r, s') is a transition.
* **A copy is a world of its own.** Its randomness is keyed by (seed, copy), so its trajectory is
  the same whichever copies, threads or processes run beside it. `first_copy` numbers the copies of
  a process among those of all processes.
* **The whole state can be saved.** `load_state_dict(state_dict())`, in this object or a fresh one,
  continues bit for bit, in the middle of an episode too.

`terminated`: nothing follows, the value of what comes next is 0. `truncated`: the time limit cut an
episode that would have gone on. A step is never both. An `Episode` is a whole game: its total is
the undiscounted sum of the raw rewards of its steps, and never includes those of another.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reprise.rollout.errors import BadInput
from reprise.rollout.functions import load_function
from reprise.rollout.run.settings import EnvironmentSettings

if TYPE_CHECKING:
    from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

CARTPOLE_STEPS = 500  # time limit of CartPole-v1
CLASSIC_CONTROL = ("CartPole-v1", "MountainCar-v0", "Acrobot-v1")


@dataclass(frozen=True)
class Episode:
    """A game that ended: over, at its goal, or at the time limit."""

    copy: int  # position in the arrays of this object
    total: float  # undiscounted sum of raw rewards
    length: int  # agent steps
    truncated: bool  # ended by the time limit


@dataclass(frozen=True, eq=False)
class Step:
    """What one action in every copy led to."""

    observations: np.ndarray  # [N, ...], to act on next
    rewards: np.ndarray  # float32 [N], raw
    terminated: np.ndarray  # bool [N]
    truncated: np.ndarray  # bool [N]
    final_observations: dict[int, np.ndarray]  # of the copies with terminated or truncated
    episodes: list[Episode]  # that ended at this step, by copy; a lost life ends none


class Environments(ABC):
    """N copies of one environment."""

    name: str
    copies: int
    actions: int
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype

    @abstractmethod
    def reset(self, seed: int) -> np.ndarray:
        """Start every copy anew, whatever happened before; return observations [N, ...]."""

    @abstractmethod
    def step(self, actions: np.ndarray, running: np.ndarray | None = None) -> Step:
        """Act once in every copy.

        Args:
            actions: int64 [N], each in 0..actions-1.
            running: bool [N]; a copy where it is false stands still (reward 0, no end, the same
                observation, nothing computed). Without it all run.

        Raises:
            BadInput: an action that is none, or a wrong shape.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what follows, as plain values, bytes and numpy arrays.

        Arrays and lists with an entry for each copy are shared out to workers; `copies` and
        `first_copy` are the numbers; all else is the same for any copies.
        """

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Continue exactly where `state_dict` was taken; return the observations to act on.

        Raises:
            BadInput: the state is of another environment, number of copies or setting.
        """

    @abstractmethod
    def render(self, copy: int) -> np.ndarray:
        """Picture of what `copy` is in now, uint8 [height, width, 3]."""

    @abstractmethod
    def close(self) -> None:
        """Release what the copies hold; nothing may be called afterwards."""

    def _check_actions(
        self, actions: np.ndarray, running: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        actions = np.asarray(actions)
        if actions.shape != (self.copies,) or actions.dtype.kind not in "iu":
            raise BadInput(
                f"actions: {actions.dtype} {list(actions.shape)}; must be whole numbers "
                f"[{self.copies}], one for each copy of {self.name}"
            )
        wrong = (actions < 0) | (actions >= self.actions)
        if wrong.any():
            copy = int(np.flatnonzero(wrong)[0])
            raise BadInput(
                f"actions[{copy}]={actions[copy]}; {self.name} has the actions "
                f"0..{self.actions - 1}"
            )
        if running is None:
            return actions, np.ones(self.copies, dtype=bool)
        running = np.asarray(running)
        if running.shape != (self.copies,) or running.dtype != np.bool_:
            raise BadInput(
                f"running: {running.dtype} {list(running.shape)}; must be bool [{self.copies}]"
            )
        return actions, running

    def _check_state(self, state: dict[str, Any], own: dict[str, Any]) -> None:
        """Refuse a state whose identity differs from `own` (name, copies, settings, ...)."""
        for key, value in own.items():
            if state.get(key) != value:
                raise BadInput(
                    f"{key}: the saved environments have {state.get(key)!r}, these have {value!r}; "
                    "make them as they were when the state was saved"
                )


def make(
    name: str,
    copies: int,
    settings: EnvironmentSettings | None = None,
    first_copy: int = 0,
) -> Environments:
    """Make `copies` of the environment `name`; call `reset` or `load_state_dict` before `step`.

    Args:
        name: "CartPole-v1", "MountainCar-v0", "Acrobot-v1", or an Atari game in any usual spelling:
            "ms_pacman", "MsPacman", "ALE/MsPacman-v5"; or your own, "package.module:Class", a
            subclass of `Environments` that is called with this function's arguments.
        copies: N.
        settings: of Atari; classic control takes only `threads`, `workers` and, as a shorter time
            limit in steps, `max_episode_frames`.
        first_copy: number of the first copy among those of all processes.

    Raises:
        BadInput: an unknown name, no copies, a setting the environment does not have, more
            workers than copies, or a missing ROM.
    """
    settings = settings or EnvironmentSettings()
    if copies < 1:
        raise BadInput(f"copies={copies}; must be at least 1")
    if first_copy < 0:
        raise BadInput(f"first_copy={first_copy}; must be at least 0")
    if settings.workers:
        if settings.workers > copies:
            raise BadInput(
                f"environment_settings.workers={settings.workers}; must be at most the copies of "
                f"this process, {copies}, since each worker steps at least one; lower it, or raise "
                "copies"
            )
        from reprise.rollout.environments.workers import InWorkers

        return InWorkers(name, copies, settings, first_copy)
    if ":" in name:
        return _own(name)(name, copies, settings, first_copy)
    known = canonical_name(name)
    if known in CLASSIC_CONTROL:
        from reprise.rollout.environments.classic_control import KINDS

        return KINDS[known](known, copies, settings, first_copy)
    from reprise.rollout.environments.atari import Atari

    return Atari(known, copies, settings, first_copy)


def _own(path: str) -> Callable[..., Environments]:
    """A user's class.

    Raises:
        BadInput: there is none, or it is no subclass of `Environments`.
    """
    found: Any = load_function(path, "environment")
    if not (isinstance(found, type) and issubclass(found, Environments)):
        raise BadInput(
            f"environment={path!r} is not a subclass of reprise.rollout.environments.base."
            "Environments; derive it from that, or from classic_control.ClassicControl, which "
            "needs only a start, a step and a picture"
        )
    return found


def canonical_name(name: str) -> str:
    """The one spelling of an environment's name: Gymnasium's, or for Atari ale-py's ("ms_pacman").

    An import path is its own.

    Raises:
        BadInput: there is none like it; the nearest are named.
    """
    if ":" in name:
        return name
    from ale_py import roms

    known = {_plain(known): known for known in (*CLASSIC_CONTROL, *roms.get_all_rom_ids())}
    plain = _plain(name)
    if plain not in known:
        near = difflib.get_close_matches(plain, known, n=3)
        hint = " or ".join(repr(known[each]) for each in near)
        raise BadInput(
            f"environment={name!r}: unknown; "
            + (f"did you mean {hint}?" if near else "see ale_py.roms.get_all_rom_ids()")
        )
    return known[plain]


def _plain(name: str) -> str:
    """Lower case without namespace, version or separators: ALE/MsPacman-v5 is mspacman."""
    stem = name.rpartition("/")[2].lower().partition("-v")[0]
    return stem.replace("noframeskip", "").replace("_", "").replace("-", "").replace(" ", "")


def cartpole(copies: int, max_episode_steps: int = CARTPOLE_STEPS) -> CartPoleVectorEnv:
    """Gymnasium's own `copies` of CartPole-v1: reward 1 a step, cut after `max_episode_steps`.

    Kept beside `make("CartPole-v1", ...)` for the fitted-Q experiments, whose recorded data were
    drawn with its one generator for all copies. The trap (autoreset NEXT_STEP): the step *after* an
    episode's end only resets. It ignores the action and its reward 0 belongs to no transition;
    `rollout.episodes.collect` leaves it out.

    Raises:
        BadInput: no copies, or episodes of no steps.
    """
    from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

    for key, value in (("copies", copies), ("max_episode_steps", max_episode_steps)):
        if value < 1:
            raise BadInput(f"{key}={value}; must be at least 1")
    return CartPoleVectorEnv(num_envs=copies, max_episode_steps=max_episode_steps)
