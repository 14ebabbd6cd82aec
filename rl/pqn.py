"""PQN with quantized Q-values (2509.08660, Section 5.2 and Appendix E), after CleanRL's PQN.

Each iteration, with Q(s, a) rounded to a fixed grid wherever it acts or is a target:

    act        T steps in N copies: a_t = argmax_a Q(s_t, a), with probability epsilon a random one;
               V_t = max_a Q(s_t, a) is kept
    returns    G_t = r_t + gamma (lambda G_{t+1} + (1 - lambda) V_{t+1}), V alone at the last step,
               nothing after an end; r is the sign of the reward
    update     E epochs of M minibatches: one step on the mean of (Q(s_t, a_t) - G_t)^2 each, with
               the norm of the gradient clipped and the learning rate annealed

No replay buffer, no target network: layer normalization and lambda-returns keep it stable.

Several processes learn as one. Each has its share of the copies; all draw the same coins and
permutations and take what concerns their copies. A minibatch is T N / M rows of all T N, of which
each process computes those that it owns, and gradients are summed: the same sum in another order.

The trap: a network in training mode for one thing and another layout for the next. Here the float32
parameters in the reference layout are the only weights; see `rl.arranged`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from reprise.rl.arranged import Arranged, Forward, decide_precision
from reprise.rl.config import PQN, Optimizer
from reprise.rl.networks import QNetwork, build
from reprise.rl.pqn_checkpoint import restore, save
from reprise.rl.pqn_result import WORK, result
from reprise.rl.quantize import Quantizer
from reprise.rl.workers import Clock, Workers
from reprise.rollout.environments.base import Environments, Episode, make
from reprise.rollout.randomness import Streams
from reprise.rollout.returns import q_lambda
from reprise.rollout.run.run_dir import RunDir

PROBE = 64  # observations whose greedy action is compared before and after an update


def run(config: PQN, run_dir: RunDir) -> dict[str, Any]:
    """Train, save the policy, play."""
    learner = Learner(config, run_dir)
    learner.resume()
    left = config.iterations - learner.iteration
    with run_dir.progress("training", left * config.batch, "steps") as progress:
        while learner.iteration < config.iterations:
            clock = Clock(learner.workers.device)
            rollout = learner.act(clock)
            returns = learner.returns(rollout)
            measured = learner.update(rollout, returns, clock)
            learner.finish_iteration(rollout, measured, clock)
            progress.advance(config.batch)
    return result(learner)


@dataclass
class Rollout:
    """T steps of this process's n copies, [T, n] each; observations as `Forward.encode` gives."""

    observations: torch.Tensor
    actions: torch.Tensor
    values: np.ndarray  # [T + 1, n]: also of what comes after the last step
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_values: np.ndarray  # of what a time limit cut off, else 0
    episodes: list[tuple[int, Episode]]  # step, and an episode with its copy numbered over all


class Learner:
    """The learner's state, and the parts of an iteration.

    Args:
        config: settings.
        run_dir: where metrics and checkpoints go.
        environments: this process's copies, in place of those that the config names.

    Raises:
        BadInput: an unknown game, or copies that cannot be shared out.
    """

    def __init__(
        self, config: PQN, run_dir: RunDir, environments: Environments | None = None
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.workers = Workers.meet(run_dir.rank, run_dir.world)
        self.own = self.workers.share_of(config.copies)
        self.streams = Streams(config.seed, config.internal_seed)
        self.environments = environments or make(
            config.environment,
            self.own.stop - self.own.start,
            config.environment_settings,
            self.own.start,
        )
        self.quantizer = Quantizer(config.quantization)
        self.network = build(
            self.environments.observation_shape,
            self.environments.actions,
            tuple(config.hidden),
            self.quantizer,
            self.streams.internal_seed_for("weights"),
        ).to(self.workers.device)
        self.optimizer = make_optimizer(config.optimizer, self.network, config.learning_rate)
        self.precision = decide_precision(config, self.network, run_dir, self.workers)
        self.forward = Forward(self.network, config.arrangement, getattr(torch, self.precision))
        self.iteration, self.games = 0, 0
        self.recent: deque[float] = deque(maxlen=100)
        self.acting: Arranged | None = None
        self.observations = np.zeros(0)

    @property
    def step(self) -> int:
        """Environment steps so far, over all copies."""
        return self.iteration * self.config.batch

    # -- the four parts ----------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, clock: Clock) -> Rollout:
        """T epsilon-greedy steps in every copy; the copies stay where they then are."""
        config, device = self.config, self.workers.device
        coins = self.streams.internal("exploration", self.iteration)
        chance = coins.random((config.steps, config.copies))[:, self.own]
        shape = (config.steps, config.copies)
        random = coins.integers(0, self.environments.actions, shape)[:, self.own]
        rollout = self._empty_rollout(chance.shape)
        for t in range(config.steps):
            with clock("acting"):
                encoded = self.forward.encode(self.observations, device)
                values, best = self._value(encoded)
                epsilon = epsilon_at(config, self.step + t * config.copies)
                actions = np.where(chance[t] < epsilon, random[t], best)
                rollout.observations[t] = encoded
                rollout.actions[t] = torch.from_numpy(actions)
                rollout.values[t] = values
            with clock("environment"):
                step = self.environments.step(actions)
            self.observations = step.observations
            rollout.rewards[t] = np.sign(step.rewards) if config.clip_rewards else step.rewards
            rollout.terminated[t], rollout.truncated[t] = step.terminated, step.truncated
            for episode in step.episodes:
                numbered = replace(episode, copy=self.own.start + episode.copy)
                rollout.episodes.append((t, numbered))
            cut = np.flatnonzero(step.truncated).tolist()
            if cut and config.bootstrap_on_truncation:
                last = np.stack([step.final_observations[copy] for copy in cut])
                rollout.final_values[t, cut] = self._value(self.forward.encode(last, device))[0]
        with clock("acting"):
            rollout.values[-1] = self._value(self.forward.encode(self.observations, device))[0]
        return rollout

    def returns(self, rollout: Rollout) -> torch.Tensor:
        """Q(lambda) targets G, float32 [T, n]."""
        config = self.config
        return torch.from_numpy(
            q_lambda(
                rollout.rewards,
                rollout.values,
                rollout.terminated,
                rollout.truncated,
                rollout.final_values,
                config.gamma,
                config.q_lambda,
                config.bootstrap_on_truncation,
            )
        ).to(self.workers.device)

    def minibatches(self) -> Iterator[torch.Tensor]:
        """Rows of this process's [T n] in each minibatch of each epoch.

        One permutation of all T N rows an epoch, the same in every process.
        """
        config, own = self.config, self.own
        shuffle = self.streams.internal("minibatches", self.iteration)
        for _ in range(config.epochs):
            for rows in np.split(shuffle.permutation(config.batch), config.minibatches):
                t, copy = np.divmod(rows, config.copies)
                mine = (copy >= own.start) & (copy < own.stop)
                index = t[mine] * (own.stop - own.start) + copy[mine] - own.start
                yield torch.from_numpy(index).to(self.workers.device)

    def update(self, rollout: Rollout, returns: torch.Tensor, clock: Clock) -> dict[str, float]:
        """All epochs over the batch; returns what was measured on the way.

        Raises:
            FloatingPointError: the loss or the gradient is not finite.
        """
        config = self.config
        observations, actions = rollout.observations.flatten(0, 1), rollout.actions.flatten()
        targets, parameters = returns.flatten(), list(self.network.parameters())
        rate = config.learning_rate * (
            1 - self.iteration / config.iterations if config.anneal_learning_rate else 1
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        probe = observations[:: max(1, len(observations) * self.workers.world // PROBE)]
        before = self._greedy(probe)
        sums = torch.zeros(5, device=self.workers.device)
        norm = torch.zeros((), device=self.workers.device)
        for rows in self.minibatches():
            with clock("forward"):
                values = self.forward(self.forward.weights(), observations.index_select(0, rows))
                taken = values.gather(1, actions[rows, None])[:, 0]
                error = self.quantizer.learned(taken) - targets[rows]
                loss = error.square().sum() * (config.minibatches / config.batch)
            with clock("backward"):
                self.optimizer.zero_grad()
                loss.backward()
                self.workers.add_up([_gradient(parameter) for parameter in parameters])
            with clock("optimizer"):
                norm += torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
                self.optimizer.step()
            with torch.no_grad():
                outside = self.quantizer.saturated(taken) * len(rows)
                sums[:3] += torch.stack([loss, taken.sum(), outside])
        self.acting = self._weights()
        sums[3] = (self._greedy(probe) != before).sum()
        sums[4] = len(probe)
        self.workers.add_up([sums])
        loss_sum, q_sum, outside_sum, changed, probed = sums.tolist()
        updates, seen = config.epochs * config.minibatches, config.epochs * config.batch
        return self._finite(
            {
                "loss": loss_sum / updates,
                "gradient_norm": norm.item() / updates,
                "q_mean": q_sum / seen,
                "quantizer_saturated": outside_sum / seen,
                "churn": changed / probed,
                "learning_rate": rate,
            }
        )

    # -- around them -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that decides what follows, but for weights and environments: optimizer, counters."""
        return {
            "iteration": self.iteration,
            "games": self.games,
            "recent": list(self.recent),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.games = state["iteration"], state["games"]
        self.recent.extend(state["recent"])

    def resume(self) -> None:
        """Continue from the newest checkpoint, or start."""
        newest = self.run_dir.newest("step")
        if newest is None:
            self.observations = self.environments.reset(self.streams.data_seed("environment"))
        else:
            restore(self, newest[1])
        step = self.step
        self.run_dir.cut_metrics(lambda record: record["step"] <= step)
        self.acting = self._weights()

    def finish_iteration(self, rollout: Rollout, measured: dict[str, float], clock: Clock) -> None:
        """Count, write the metrics, and a checkpoint when one is due."""
        gathered = [one for part in self.workers.gather(rollout.episodes) for one in part]
        gathered.sort(key=lambda one: (one[0], one[1].copy))
        totals = [episode.total for _, episode in gathered]
        self.recent.extend(totals)
        self.games += len(totals)
        epsilon = epsilon_at(self.config, self.step)
        self.iteration += 1
        self.run_dir.log(
            step=self.step,
            episodes=self.games,
            episode_returns=totals,
            mean_return=float(np.mean(self.recent)) if self.recent else None,
            **measured,
            epsilon=epsilon,
            steps_per_second=self.config.batch / clock.total(),
            **{f"{name}_seconds": clock.seconds[name] for name in WORK},
        )
        last = self.iteration == self.config.iterations
        if last or self.iteration % self.config.checkpoint_every == 0:
            save(self)

    # -- details -----------------------------------------------------------------------------------

    def _weights(self) -> Arranged | None:
        with torch.no_grad():
            return self.forward.weights()

    def _value(self, encoded: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """max_a and argmax_a of the rounded Q-values; of equal ones the lowest action."""
        values, actions = self.quantizer(self.forward(self.acting, encoded)).max(1)
        return values.cpu().numpy(), actions.cpu().numpy()

    @torch.no_grad()
    def _greedy(self, encoded: torch.Tensor) -> torch.Tensor:
        return self.quantizer(self.forward(self.acting, encoded)).argmax(1)

    def _empty_rollout(self, shape: tuple[int, int]) -> Rollout:
        steps, copies = shape
        device = self.workers.device
        encoded = self.forward.encode(self.observations[:1], device)
        return Rollout(
            torch.empty((*shape, *encoded.shape[1:]), dtype=encoded.dtype, device=device),
            torch.empty(shape, dtype=torch.int64, device=device),
            np.empty((steps + 1, copies), dtype=np.float32),
            np.empty(shape, dtype=np.float32),
            np.empty(shape, dtype=bool),
            np.empty(shape, dtype=bool),
            np.zeros(shape, dtype=np.float32),
            [],
        )

    def _finite(self, measured: dict[str, float]) -> dict[str, float]:
        bad = [name for name, value in measured.items() if not np.isfinite(value)]
        if bad:
            newest = self.run_dir.newest("step")
            kept = newest[1].name if newest else "no checkpoint"
            raise FloatingPointError(
                f"{bad[0]} is {measured[bad[0]]} in the update after step {self.step}; nothing "
                f"of it was saved, and {kept} is the newest "
                "checkpoint. Start anew with a lower learning_rate or max_gradient_norm, or with "
                "precision=float32"
            )
        return measured


def epsilon_at(config: PQN, step: int) -> float:
    """The share of random actions at a step counted over all copies."""
    exploration = config.exploration
    done = min(1.0, step / (exploration.fraction * config.total_steps))
    return exploration.start + done * (exploration.end - exploration.start)


def make_optimizer(
    settings: Optimizer, network: QNetwork, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW, or RAdam; weight decay is decoupled in both, and of all parameters."""
    common: dict[str, Any] = {
        "lr": learning_rate,
        "betas": settings.betas,
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.name == "radam":
        return torch.optim.RAdam(network.parameters(), decoupled_weight_decay=True, **common)
    return torch.optim.AdamW(network.parameters(), fused=True, **common)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad
