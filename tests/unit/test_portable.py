"""Portable dynamics: sine and cosine to the last place, and Gymnasium's step to rounding."""

import math

import numpy as np
import pytest

from reprise.rollout.environments.base import make
from reprise.rollout.environments.portable import KINDS, cosine, make_portable, sine
from reprise.rollout.run.settings import EnvironmentSettings

pytestmark = pytest.mark.portable


@pytest.mark.parametrize("ours, exact", [(sine, math.sin), (cosine, math.cos)])
def test_within_a_unit_in_the_last_place(ours, exact):
    draw = np.random.default_rng(0)
    x = np.concatenate([draw.uniform(-0.3, 0.3, 5000), draw.uniform(-40, 40, 5000), [0.0]])
    wanted = np.array([exact(value) for value in x])
    assert (np.abs(ours(x) - wanted) <= np.spacing(np.abs(wanted)) + 1e-18).all()


@pytest.mark.parametrize("name", list(KINDS))
def test_a_step_is_gymnasiums_to_rounding(name):
    portable, usual = make_portable(name, 64), make(name, 64)
    observations = portable.reset(3)
    usual.reset(3)
    draw = np.random.default_rng(1)
    for _ in range(60):
        usual.states = portable.states.copy()
        actions = draw.integers(0, portable.actions, 64)
        states, rewards, terminated = portable.advance(portable.states, actions)
        others = usual.advance(usual.states, actions)
        np.testing.assert_allclose(states, others[0], rtol=0, atol=1e-13)
        np.testing.assert_array_equal(rewards, others[1])
        np.testing.assert_array_equal(terminated, others[2])
        observations = portable.step(actions).observations
    assert np.isfinite(observations).all()


def test_no_copies_are_refused():
    with pytest.raises(ValueError, match="copies=0"):
        make_portable("CartPole-v1", 0)


def test_kinds_are_those_that_have_settings():
    assert EnvironmentSettings() is not None and set(KINDS) == {
        "CartPole-v1",
        "MountainCar-v0",
        "Acrobot-v1",
    }
