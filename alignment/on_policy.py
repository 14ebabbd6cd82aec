"""On-policy preference learning, and its offline twin (2601.08421, Algorithms 1 and 3).

    for k = 0, ..., K-1:
        D_k     = pairs sampled from pi_k, scored by the reward model         (collect)
        z       = targets of the objective                                    (pairs)
        pi_k+1  = argmin over pi of sum over D_k of loss(y(pi), z)            (update)
        measure pi_k+1 on held-out prompts                                    (evaluate)

``alignment.on_policy`` collects every round; ``alignment.offline`` collects D_0 and replays it, one
epoch per "round", optimizer and schedule restarted just the same: they differ in their data only.

A run killed anywhere continues: finished shards are kept, an unfinished update restarts from its
own last checkpoint or from pi_k, and every random draw is keyed by what it is for.

The staged mode (`reprise run CONFIG --staged`) puts that to use. A process ends after it has
measured pi_k and stored D_k, or saved pi_{k+1}; the next continues from the directory. Sampling and
training never share memory, and the bits are the same: a run may change modes wherever it stopped.
"""

from __future__ import annotations

import time
from typing import Any

from reprise.alignment.collector import Collector, load_prompts
from reprise.alignment.config import Offline, OnPolicy
from reprise.alignment.diagnostics import data_diagnostics, throughput, update_diagnostics
from reprise.alignment.evaluate import HeldOutPrompts
from reprise.alignment.objectives import is_label
from reprise.alignment.pairs import Targets, make_targets, select_pairs
from reprise.alignment.policies import Policies
from reprise.alignment.rewards.check import checked_rewards
from reprise.alignment.sources import source_of
from reprise.alignment.training.update import (
    RoundData,
    check_training,
    order_of_round,
    padding_of,
    remove_update_checkpoints,
    update,
)
from reprise.rollout.randomness import Streams
from reprise.rollout.run import interruption
from reprise.rollout.run.run_dir import HandedOver, RunDir
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions, Pairs


def run(config: OnPolicy | Offline, run_dir: RunDir) -> dict[str, Any] | None:
    """Run or continue the experiment; returns what goes into ``summary.json``.

    None in staged mode, when a phase has ended and another one is to follow.
    """
    loop = _Loop(config, run_dir)
    scale = loop.held_out.scale(loop.collector)  # of rewards
    for k in range(loop.policies.saved, config.rounds + 1):
        loop.held_out.measure(k, loop.collector, scale)  # pi_k
        if k < config.rounds:
            completions = loop.collect(k)  # D_k
            if loop.phase == "collect":
                return None
            pairs = select_pairs(completions, config.selection)
            targets = make_targets(pairs, config.objective, config.gamma(k), scale[1])
            with interruption.deferred():  # to the end of an optimizer step, or of the round
                loop.update(k, completions, pairs, targets)  # pi_k -> pi_{k+1}
                loop.policies.save(k + 1)
            if loop.phase == "update":
                return None
    return loop.summary()


class _Loop:
    """A run's parts, checked and loaded in the order in which they fail cheapest."""

    def __init__(self, config: OnPolicy | Offline, run_dir: RunDir) -> None:
        self.config, self.run_dir = config, run_dir
        self.strategy = check_training(config, run_dir)
        self.rounds = RoundStore(run_dir.rounds)
        evaluations = RoundStore(run_dir.path / "evaluations")
        for store in (self.rounds, evaluations):
            for index in store.rounds():
                store.read(index)  # a run that continues builds on these: refuse damage now
        self.streams = Streams(config.seed)
        self.policies = Policies(config, run_dir, self.streams)
        tokenizer = self.policies.tokenizer
        prompts = load_prompts(config, config.data.split, tokenizer)
        held_out = load_prompts(config, config.evaluation.split, tokenizer)
        self.source = source_of(config, prompts, self.rounds)
        self.held_out = HeldOutPrompts(config, held_out, evaluations, run_dir)
        self.phase = self._phase()
        # An update reads what is stored, and needs the memory of pi_0 and of the reward model.
        initial = None if self.phase == "update" else self.policies.load_initial()
        rewards = None
        if initial is not None:
            for some in (prompts, held_out):
                some.check(initial, config.sampling)
            self.source.check(initial)
            rewards = checked_rewards(config, self.policies, prompts, run_dir)
        self.policies.start_from(initial)
        self.collector = Collector(config, self.policies, rewards, run_dir)
        self.source.prepare(self.collector, run_dir)
        first = self.policies.saved
        remove_update_checkpoints(run_dir, through=first)
        # The next phase of the same command continues, but nothing was interrupted.
        before = run_dir.stage.before if run_dir.stage else None
        self.resumed = bool(run_dir.metrics()) if before is None else before.resumed
        run_dir.cut_metrics(lambda r: r["round"] <= first or "step" in r)

    def _phase(self) -> str:
        """What this process does: "both", or in staged mode "collect" or "update"."""
        k = self.policies.saved
        if self.run_dir.stage is None:
            return "both"
        stored = k < self.config.rounds and self.source.is_stored(k)
        return "update" if stored and k in self.held_out.measured() else "collect"

    def collect(self, k: int) -> Completions:
        """D_k, and how long it took: in staged mode the other phase has to be told."""
        started, stage = time.monotonic(), self.run_dir.stage
        completions = self.source.collect(k, self.collector)
        self.collect_seconds = time.monotonic() - started
        if stage and self.phase == "collect":
            stage.after = HandedOver(self.collect_seconds, self.resumed)
        elif stage:
            self.collect_seconds = stage.before.collect_seconds if stage.before else 0.0
        return completions

    def update(self, k: int, completions: Completions, pairs: Pairs, targets: Targets) -> None:
        """Train the policy on D_k, and log what the round did to it."""
        config, policies, started = self.config, self.policies, time.monotonic()
        if not targets.weight.any():
            self.run_dir.say(
                f"warning: round {k + 1}: no pair carries a preference (equal rewards, or equal "
                "texts): the loss is 0 and the policy stays; look at the reward"
            )
        order = order_of_round(pairs, config, self.streams, k)
        steps = update(
            policies.current,
            policies.tokenizer,
            RoundData(pairs, targets, order),
            config,
            self.run_dir,
            round=k + 1,
            first_step=sum(r.get("optimizer_steps", 0) for r in self.run_dir.metrics()),
            check_first_step=self.source.drawn_by(k) == k,
        )
        if self.strategy not in ("single", "ddp"):
            policies.make_whole()
        updated = time.monotonic()
        both = list(pairs.prompt_ids) * 2, [*pairs.first_ids, *pairs.second_ids]
        logprobs = self.collector.score(policies.current, *both).reshape(2, -1).T
        own, diagnostics = self.source.of_policy(k, completions), {}
        if len(own):
            mine = pairs.take(own), targets.take(own), logprobs[own]
            of_data = data_diagnostics(completions.take(own), mine[0])
            of_update = update_diagnostics(*mine, is_label(config.objective))
            diagnostics = {f"data/{name}": value for name, value in of_data.items()}
            diagnostics |= {f"update/{name}": value for name, value in of_update.items()}
        micro_batch = config.train.get("per_device_train_batch_size", 8)
        self.run_dir.log(
            round=k + 1,
            optimizer_steps=steps,
            gamma=targets.gamma,
            pairs=len(order),
            completions_sampled=completions.rewards.size if self.source.drawn_by(k) == k else 0,
            collect_seconds=self.collect_seconds,
            update_seconds=updated - started,
            resumed=self.resumed,
            **diagnostics,
            **{"update/padding_share": padding_of(order, pairs, micro_batch)},
        )
        self.resumed = False

    def summary(self) -> dict[str, Any]:
        """The fields of ``summary.json`` that belong to this experiment."""
        hashes = self.policies.finish()
        measured = self.held_out.measured()
        return {
            "objective": self.config.objective.name,
            "rounds": [measured[k] for k in range(self.config.rounds + 1)],
            **hashes,
            "throughput": throughput(self.run_dir.metrics()),
        }
