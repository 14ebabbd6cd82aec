"""An environment of one's own, named by its import path, under PQN."""

import json

import numpy as np
import pytest

from reprise.launch.run import execute
from reprise.rollout.environments.base import canonical_name, make

CODE = '''
import numpy as np
from reprise.rollout.environments.classic_control import ClassicControl

class Corridor(ClassicControl):
    """Ten cells; -1 a step; over at the right end."""

    actions, limit, observation_shape = 2, 40, (1,)

    def start(self, generator):
        return np.array([generator.uniform(0.0, 0.5)])

    def advance(self, states, actions):
        following = np.clip(states + 0.1 * (2 * actions[:, None] - 1), 0.0, 1.0)
        return following, np.full(len(states), -1.0), following[:, 0] >= 0.999

    def segments(self, state):
        return [(0.0, 0.5, 1.5, 0.5, 0.004, 160), (state[0], 0.5, state[0] + 0.05, 0.5, 0.05, 0)]

class NoEnvironment:
    pass
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_environments.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)


def test_it_is_saved_and_continued_as_the_others_are(module):
    name = "my_environments:Corridor"
    one = make(name, 3)
    one.reset(0)
    one.step(np.array([1, 0, 1]))
    other = make(name, 3)
    assert np.array_equal(other.load_state_dict(one.state_dict()), one.observations)
    steps = [env.step(np.array([1, 1, 0])) for env in (one, other)]
    assert np.array_equal(steps[0].observations, steps[1].observations)
    assert canonical_name(name) == name and one.render(0).dtype == np.uint8


def test_pqn_learns_it(module, tmp_path):
    changes = ["environment=my_environments:Corridor", "total_steps=32768", "copies=16"]
    execute("quickstart/pqn_cartpole", changes, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["greedy_return_mean"] > -11  # right from anywhere: 5 to 10 steps


@pytest.mark.parametrize(
    "name, told",
    [
        ("my_environments:Nowhere", "has no function Nowhere"),
        ("my_environments:NoEnvironment", "is not a subclass"),
        ("no_such_module:Corridor", "there is no module no_such_module"),
    ],
)
def test_what_is_none_is_refused(name, told, module):
    with pytest.raises(ValueError, match=told):
        make(name, 1)
