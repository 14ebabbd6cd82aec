"""CartPole, MountainCar and Acrobot as arrays: a step of N copies costs about what few cost.

The dynamics are those of Gymnasium's `CartPole-v1`, `MountainCar-v0` and `Acrobot-v1`, bit for bit
(float64 inside, float32 observations). Three places need care for that: MountainCar uses the C
library's cosine, which is not always numpy's; Acrobot squares with the C library's `pow`, which is
not always x * x; and Acrobot's first observation of an episode is computed in float32.

Those functions are attributes of the classes (`sine`, `cosine`, `squared`): `rollout.portable` has
the same dynamics with others, whose bits do not depend on the processor.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from reprise.rollout.environments.base import Environments, Episode, Step
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run.settings import EnvironmentSettings

HEIGHT, WIDTH = 240, 360  # of a rendered picture
Function = Callable[[np.ndarray], np.ndarray]
# x, y of both ends in units of the picture's height (origin bottom left), half width, grey
Segment = tuple[float, float, float, float, float, int]


class ClassicControl(Environments):
    """State of all copies, time limit, accounts and saving; a subclass adds the dynamics."""

    actions: int
    limit: int  # steps
    observation_dtype = np.dtype(np.float32)
    sine: Function = staticmethod(np.sin)
    cosine: Function = staticmethod(np.cos)

    def __init__(
        self, name: str, copies: int, settings: EnvironmentSettings, first_copy: int = 0
    ) -> None:
        changed = {
            key for key, value in settings if value != EnvironmentSettings.model_fields[key].default
        } - {"threads", "max_episode_frames"}
        if changed:
            raise BadInput(
                f"{', '.join(sorted(changed))}: {name} has no such setting, only Atari games do; "
                "leave it out"
            )
        self.name, self.copies, self.first_copy = name, copies, first_copy
        self.limit = min(type(self).limit, settings.max_episode_frames)
        self.lengths = np.zeros(copies, dtype=np.int64)
        self.totals = np.zeros(copies)
        self.generators: list[np.random.Generator] = []
        self.states = np.zeros((copies, 0))
        self.observations = np.zeros((copies, *self.observation_shape), dtype=np.float32)

    @abstractmethod
    def start(self, generator: np.random.Generator) -> np.ndarray:
        """State at the start of an episode, float64 [D]."""

    @abstractmethod
    def advance(
        self, states: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States [N, D] and actions [N] -> next states, rewards, terminated."""

    def observe(self, states: np.ndarray) -> np.ndarray:
        """States [N, D] -> observations float32 [N, ...]."""
        return states.astype(np.float32)

    def observe_start(self, states: np.ndarray) -> np.ndarray:
        """Like `observe`, for states at the start of an episode."""
        return self.observe(states)

    @abstractmethod
    def segments(self, state: np.ndarray) -> list[Segment]:
        """Lines that draw a state."""

    def reset(self, seed: int) -> np.ndarray:
        """Start every copy anew from generators keyed by (seed, copy)."""
        self.generators = [
            Streams(seed).data("environment", self.first_copy + copy) for copy in range(self.copies)
        ]
        self.states = np.stack([self.start(generator) for generator in self.generators])
        self.observations = self.observe_start(self.states)
        self.lengths[:] = 0
        self.totals[:] = 0.0
        return self.observations.copy()

    def step(self, actions: np.ndarray, running: np.ndarray | None = None) -> Step:
        """Act once in every running copy; see `Environments.step`."""
        assert self.generators, "reset or load_state_dict comes before step"
        actions, running = self._check_actions(actions, running)
        states, rewards, terminated = self.advance(self.states, actions)
        rewards = np.where(running, rewards, 0.0)
        self.lengths += running
        self.totals += rewards
        terminated = terminated & running
        truncated = (self.lengths >= self.limit) & running & ~terminated
        self.states = np.where(running[:, None], states, self.states)
        self.observations = np.where(
            running.reshape(-1, *[1] * len(self.observation_shape)),
            self.observe(states),
            self.observations,
        )
        final, episodes = {}, []
        for copy in np.flatnonzero(terminated | truncated).tolist():
            final[copy] = self.observations[copy].copy()
            episodes.append(
                Episode(
                    copy,
                    float(self.totals[copy]),
                    int(self.lengths[copy]),
                    bool(truncated[copy]),
                )
            )
            self.states[copy] = self.start(self.generators[copy])
            self.observations[copy] = self.observe_start(self.states[copy : copy + 1])[0]
            self.lengths[copy], self.totals[copy] = 0, 0.0
        return Step(
            self.observations.copy(),
            rewards.astype(np.float32),
            terminated,
            truncated,
            final,
            episodes,
        )

    def state_dict(self) -> dict[str, Any]:
        """States, observations, accounts and generators of all copies."""
        assert self.generators, "reset or load_state_dict comes before state_dict"
        return {
            **self._identity(),
            "states": self.states.copy(),
            "observations": self.observations.copy(),
            "lengths": self.lengths.copy(),
            "totals": self.totals.copy(),
            "generators": [generator.bit_generator.state for generator in self.generators],
        }

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Continue exactly where `state_dict` was taken."""
        self._check_state(state, self._identity())
        self.generators = []
        for saved in state["generators"]:
            generator = np.random.Generator(np.random.Philox())
            generator.bit_generator.state = saved
            self.generators.append(generator)
        self.states, self.observations = state["states"].copy(), state["observations"].copy()
        self.lengths, self.totals = state["lengths"].copy(), state["totals"].copy()
        return self.observations.copy()

    def close(self) -> None:
        """Forget the generators: nothing else is held."""
        self.generators = []

    def _identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "copies": self.copies,
            "first_copy": self.first_copy,
            "limit": self.limit,
        }

    def render(self, copy: int) -> np.ndarray:
        """Draw the state of `copy` with lines."""
        rows, columns = np.mgrid[HEIGHT:0:-1, 0:WIDTH] / HEIGHT
        picture = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
        for x0, y0, x1, y1, width, grey in self.segments(self.states[copy]):
            dx, dy = x1 - x0, y1 - y0
            along = ((columns - x0) * dx + (rows - y0) * dy) / (dx * dx + dy * dy)
            along = np.clip(along, 0.0, 1.0)
            picture[np.hypot(columns - x0 - along * dx, rows - y0 - along * dy) <= width] = grey
        return np.repeat(picture[:, :, None], 3, axis=2)


class CartPole(ClassicControl):
    """A pole on a cart; reward 1 a step; over at 12 degrees or 2.4 units from the centre."""

    actions, limit, observation_shape = 2, 500, (4,)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Position, velocity, angle and angular velocity, each uniform in +-0.05."""
        return generator.uniform(-0.05, 0.05, 4)

    def advance(
        self, states: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One Euler step of 0.02 s under a force of 10 to the left or right."""
        x, speed, angle, turning = states.T
        force = np.where(actions == 1, 10.0, -10.0)
        cos, sin = self.cosine(angle), self.sine(angle)
        total, pole = 0.1 + 1.0, 0.1 * 0.5
        push = (force + pole * np.square(turning) * sin) / total
        turn = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * np.square(cos) / total))
        pull = push - pole * turn * cos / total
        x, speed = x + 0.02 * speed, speed + 0.02 * pull
        angle, turning = angle + 0.02 * turning, turning + 0.02 * turn
        over = (np.abs(x) > 2.4) | (np.abs(angle) > 12 * 2 * math.pi / 360)
        return np.stack([x, speed, angle, turning], axis=1), np.ones(len(states)), over

    def segments(self, state: np.ndarray) -> list[Segment]:
        """Track, cart and pole."""
        x, angle = 0.75 + state[0] / 4.0, state[2]
        tip = (x + 0.5 * math.sin(angle), 0.3 + 0.5 * math.cos(angle))
        return [
            (0.0, 0.25, 1.5, 0.25, 0.004, 160),
            (x - 0.06, 0.27, x + 0.06, 0.27, 0.03, 0),
            (x, 0.3, *tip, 0.015, 120),
        ]


def _cosine_of_c(angles: np.ndarray) -> np.ndarray:
    return np.array([math.cos(angle) for angle in angles.tolist()])


class MountainCar(ClassicControl):
    """A car too weak for the hill; reward -1 a step; over at position 0.5."""

    actions, limit, observation_shape = 3, 200, (2,)
    cosine = staticmethod(_cosine_of_c)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Position uniform in [-0.6, -0.4], at rest."""
        return np.array([generator.uniform(-0.6, -0.4), 0.0])

    def advance(
        self, states: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Velocity changes by 0.001 (action - 1) - 0.0025 cos(3 position)."""
        position, velocity = states.T
        slope = self.cosine(3 * position)
        velocity = velocity + ((actions - 1) * 0.001 + slope * (-0.0025))
        velocity = np.clip(velocity, -0.07, 0.07)
        position = np.clip(position + velocity, -1.2, 0.6)
        velocity = np.where((position == -1.2) & (velocity < 0), 0.0, velocity)
        goal = (position >= 0.5) & (velocity >= 0)
        return np.stack([position, velocity], axis=1), np.full(len(states), -1.0), goal

    def segments(self, state: np.ndarray) -> list[Segment]:
        """Hill, car and flag."""
        across = np.linspace(-1.2, 0.6, 40)
        x, y = (across + 1.2) / 1.8 * 1.5, 0.1 + 0.6 * (np.sin(3 * across) * 0.45 + 0.55)
        hill = [(x[i], y[i], x[i + 1], y[i + 1], 0.004, 160) for i in range(39)]
        car = (state[0] + 1.2) / 1.8 * 1.5
        height = 0.14 + 0.6 * (math.sin(3 * state[0]) * 0.45 + 0.55)
        flag, foot = 1.7 / 1.8 * 1.5, 0.1 + 0.6 * (math.sin(1.5) * 0.45 + 0.55)
        return [
            *hill,
            (car - 0.03, height, car + 0.03, height, 0.025, 0),
            (flag, foot, flag, foot + 0.12, 0.006, 120),
        ]


def _squared(x: np.ndarray) -> np.ndarray:
    return np.float_power(x, 2.0)  # the C library's pow; x**2 would be x * x


class Acrobot(ClassicControl):
    """Two links, torque at the joint between; reward -1 a step, 0 at the goal above the line."""

    actions, limit, observation_shape = 3, 500, (6,)
    squared: Function = staticmethod(_squared)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """Both angles and angular velocities uniform in +-0.1, rounded to float32."""
        return generator.uniform(-0.1, 0.1, 4).astype(np.float32).astype(np.float64)

    def advance(
        self, states: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One Runge-Kutta step of 0.2 s under a torque of -1, 0 or 1."""
        torque = actions - 1.0
        y = states.T
        k1 = self._derivatives(y, torque)
        k2 = self._derivatives(y + 0.2 / 2.0 * k1, torque)
        k3 = self._derivatives(y + 0.2 / 2.0 * k2, torque)
        k4 = self._derivatives(y + 0.2 * k3, torque)
        y = y + 0.2 / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        for row in (0, 1):
            while (y[row] > math.pi).any():
                y[row] = np.where(y[row] > math.pi, y[row] - 2 * math.pi, y[row])
            while (y[row] < -math.pi).any():
                y[row] = np.where(y[row] < -math.pi, y[row] + 2 * math.pi, y[row])
        y[2] = np.clip(y[2], -4 * math.pi, 4 * math.pi)
        y[3] = np.clip(y[3], -9 * math.pi, 9 * math.pi)
        goal = -self.cosine(y[0]) - self.cosine(y[1] + y[0]) > 1.0
        return y.T.copy(), np.where(goal, 0.0, -1.0), goal

    def _derivatives(self, y: np.ndarray, torque: np.ndarray) -> np.ndarray:
        """Time derivatives [4, N] of both angles and angular velocities (Sutton and Barto's form).

        Links of length and mass 1, centres of mass at 0.5, moments of inertia 1, gravity 9.8.
        """
        one, two, speed_one, speed_two = y
        cos_two, sin_two = self.cosine(two), self.sine(two)
        d1 = 0.25 + (1.0 + 0.25 + 2 * 0.5 * cos_two) + 1.0 + 1.0
        d2 = (0.25 + 0.5 * cos_two) + 1.0
        phi2 = 0.5 * 9.8 * self.cosine(one + two - math.pi / 2.0)
        phi1 = (
            -0.5 * self.squared(speed_two) * sin_two
            - 2 * 0.5 * speed_two * speed_one * sin_two
            + (0.5 + 1.0) * 9.8 * self.cosine(one - math.pi / 2)
            + phi2
        )
        bend = (torque + d2 / d1 * phi1 - 0.5 * self.squared(speed_one) * sin_two - phi2) / (
            0.25 + 1.0 - self.squared(d2) / d1
        )
        return np.stack([speed_one, speed_two, -(d2 * bend + phi1) / d1, bend])

    def observe(self, states: np.ndarray) -> np.ndarray:
        """Cosine and sine of both angles, then both angular velocities."""
        one, two = states[:, 0], states[:, 1]
        columns = [
            self.cosine(one),
            self.sine(one),
            self.cosine(two),
            self.sine(two),
            states[:, 2],
            states[:, 3],
        ]
        return np.stack(columns, axis=1).astype(np.float32)

    def observe_start(self, states: np.ndarray) -> np.ndarray:
        """Like `observe`, computed in float32."""
        return self.observe(states.astype(np.float32))

    def segments(self, state: np.ndarray) -> list[Segment]:
        """Line to reach, and the two links."""
        one, both, length = state[0], state[0] + state[1], 0.22
        elbow = (0.75 + length * math.sin(one), 0.5 - length * math.cos(one))
        hand = (elbow[0] + length * math.sin(both), elbow[1] - length * math.cos(both))
        return [
            (0.0, 0.5 + length, 1.5, 0.5 + length, 0.004, 160),
            (0.75, 0.5, *elbow, 0.02, 0),
            (*elbow, *hand, 0.02, 120),
        ]


KINDS: dict[str, type[ClassicControl]] = {
    "CartPole-v1": CartPole,
    "MountainCar-v0": MountainCar,
    "Acrobot-v1": Acrobot,
}
