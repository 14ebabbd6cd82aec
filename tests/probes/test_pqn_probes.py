"""Environments whose values are known in closed form, at least five steps long, and CartPole."""

import numpy as np
import pytest
import torch

from reprise.launch.config import load
from reprise.rl.config import PQN
from reprise.rl.pqn import Learner, run
from reprise.rl.workers import Clock
from reprise.rollout.environments.base import Environments, Episode, Step
from reprise.rollout.run.run_dir import RunDir

LENGTH, GAMMA, COPIES = 6, 0.9, 8


class Corridor(Environments):
    """Cells 0..5, one-hot. Action 1 goes on, action 0 stays; leaving cell 5 pays 1 and ends.

    Args:
        forced: both actions go on.
        limit: steps after which it is truncated; it then pays 1 each step, and never terminates.
    """

    name, copies, actions = "corridor", COPIES, 2
    observation_shape, observation_dtype = (LENGTH,), np.dtype(np.float32)

    def __init__(self, forced=False, limit=None):
        self.forced, self.limit = forced, limit
        self.cells = np.zeros(COPIES, dtype=np.int64)

    def reset(self, seed):
        return self.seen()

    def seen(self):
        return np.eye(LENGTH, dtype=np.float32)[self.cells]

    def step(self, actions, running=None):
        moves = np.ones(COPIES, dtype=np.int64) if self.forced else actions
        self.cells = self.cells + moves
        rewards = np.ones(COPIES) if self.limit else (self.cells == LENGTH) * 1.0
        ended = self.cells == (self.limit or LENGTH)
        final, episodes = {}, []
        for copy in np.flatnonzero(ended).tolist():
            final[copy] = np.eye(LENGTH, dtype=np.float32)[self.cells[copy] % LENGTH]
            episodes.append(Episode(copy, 1.0, 1, bool(self.limit)))
        self.cells = np.where(ended, 0, self.cells)
        terminated = ended & (self.limit is None)
        return Step(
            self.seen(),
            rewards.astype(np.float32),
            terminated,
            ended & ~terminated,
            final,
            episodes,
        )

    def state_dict(self):
        return {"cells": self.cells.copy()}

    def load_state_dict(self, state):
        self.cells = state["cells"].copy()
        return self.seen()

    def close(self):
        pass

    def render(self, copy):
        raise NotImplementedError


def learned(path, corridor, **changes):
    """Q-values [6, 2] after training."""
    config = PQN.model_validate(
        {
            "experiment": "rl.pqn",
            "environment": "CartPole-v1",  # only its name: the corridor takes its place
            "total_steps": 200 * 128,
            "copies": COPIES,
            "steps": 16,
            "gamma": GAMMA,
            "learning_rate": 3e-3,
            "hidden": [64],
            "exploration": {"start": 1.0, "end": 0.5, "fraction": 1.0},
            "checkpoint_every": 1000,
            **changes,
        }
    )
    learner = Learner(config, RunDir(path, experiment="rl.pqn", seed=0), corridor)
    learner.resume()
    while learner.iteration < config.iterations:
        clock = Clock(torch.device("cpu"))
        rollout = learner.act(clock)
        learner.update(rollout, learner.returns(rollout), clock)
        learner.iteration += 1
    with torch.no_grad():
        return learner.quantizer(learner.network(torch.eye(LENGTH))).numpy()


ON = GAMMA ** np.arange(LENGTH - 1, -1, -1.0)  # .9^5 ... 1


def test_one_step_targets_find_the_optimal_values_of_both_actions(tmp_path):
    """Q*(k, on) = gamma^(5-k), Q*(k, stay) = gamma Q*(k, on): off-policy, so lambda is 0."""
    q = learned(tmp_path, Corridor(), q_lambda=0.0)
    assert np.abs(q[:, 1] - ON).max() < 0.03
    assert np.abs(q[:, 0] - GAMMA * ON).max() < 0.03
    assert (q.argmax(1) == 1).all()


@pytest.mark.parametrize("lam", [0.65, 1.0])
def test_lambda_returns_find_the_values_where_actions_do_not_matter(lam, tmp_path):
    q = learned(tmp_path, Corridor(forced=True), q_lambda=lam)
    assert np.abs(q - ON[:, None]).max() < 0.03


@pytest.mark.parametrize("bootstrap", [True, False])
def test_a_time_limit_is_an_end_or_not_as_asked(bootstrap, tmp_path):
    """Reward 1 for ever round a ring of 6 cells, cut after each round.

    Valued as going on, every cell is worth 1 / (1 - gamma) = 10. As an end, cell k is worth the
    discounted sum of the 6 - k steps that are left.
    """
    ring = Corridor(forced=True, limit=LENGTH)
    q = learned(tmp_path, ring, bootstrap_on_truncation=bootstrap, q_lambda=0.9)
    left = (1 - GAMMA ** np.arange(LENGTH, 0, -1.0)) / (1 - GAMMA)
    assert np.abs(q - (10.0 if bootstrap else left[:, None])).max() < 0.15


@pytest.mark.parametrize("gradient", ["straight_through", "targets_only"])
def test_rounded_values_are_within_a_step_of_the_true_ones(gradient, tmp_path):
    step = 0.05
    q = learned(
        tmp_path,
        Corridor(forced=True),
        quantization={"step": step, "range": 2.0, "gradient": gradient},
    )
    assert np.abs(q / step - np.round(q / step)).max() < 1e-4
    assert np.abs(q - ON[:, None]).max() < 1.5 * step


def test_the_quickstart_learns_to_balance(tmp_path):
    config = load("quickstart/pqn_cartpole", ["evaluation.film=false"])
    summary = run(config, RunDir(tmp_path, experiment="rl.pqn", seed=0))
    assert summary["evaluation_return_mean"] > 400
    assert summary["quantization_step"] is not None
