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

import copy
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel

from reprise.alignment import adapters, policies
from reprise.alignment.collect import Collector, load_prompts, rows_of_round
from reprise.alignment.config import Offline, OnPolicy
from reprise.alignment.diagnostics import data_diagnostics, throughput, update_diagnostics
from reprise.alignment.evaluate import evaluate, samples_table
from reprise.alignment.hybrid import DesignedPairs, designed_pairs
from reprise.alignment.models import load_tokenizer, load_weights_strictly, weights_sha256
from reprise.alignment.pairs import Targets, make_targets, select_pairs
from reprise.alignment.rewards.check import check_rewards
from reprise.alignment.rewards.reward import Rewards
from reprise.alignment.training import sharding
from reprise.alignment.training.update import (
    RoundData,
    bucketed,
    minibatch_order,
    padding_of,
    remove_update_checkpoints,
    training_arguments,
    update,
)
from reprise.rollout import files
from reprise.rollout.errors import BadInput
from reprise.rollout.generate import check_prompts
from reprise.rollout.randomness import Streams
from reprise.rollout.run import interruption
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions, Pairs

STRATEGIES = ("single", "ddp", "fsdp2", "zero2", "zero3")
POLICY_OF_ROUND = "round-{:05d}"


def run(config: OnPolicy | Offline, run_dir: RunDir) -> dict[str, Any] | None:
    """Run or continue the experiment; returns what goes into ``summary.json``.

    None in staged mode, when a phase has ended and another one is to follow.
    """
    loop = _Loop(config, run_dir)
    for k in range(loop.first_round, config.rounds + 1):
        loop.measure(k)  # pi_k on held-out prompts
        if k < config.rounds:
            completions = loop.collect(k)  # D_k
            if loop.phase == "collect":
                return None
            pairs = select_pairs(completions, config.selection)
            targets = make_targets(pairs, config.objective, config.gamma(k), loop.scale[1])
            with interruption.deferred():  # to the end of an optimizer step, or of the round
                loop.update(k, completions, pairs, targets)  # pi_k -> pi_{k+1}
                loop.save(k + 1)
            if loop.phase == "update":
                return None
    return loop.summary()


class _Loop:
    """The state of a run: the policy, and what every round needs beside it."""

    def __init__(self, config: OnPolicy | Offline, run_dir: RunDir) -> None:
        self.config, self.run_dir = config, run_dir
        self.offline = isinstance(config, Offline)
        self.streams = Streams(config.seed)
        self.device = PartialState().device
        training_arguments(config, run_dir.checkpoints, run_dir.world)  # refuses what is wrong
        self.strategy = sharding.check_strategy(config.parallelism, run_dir.world, STRATEGIES)
        self.rounds = RoundStore(run_dir.rounds)
        self.evaluations = RoundStore(run_dir.path / "evaluations")
        for store in (self.rounds, self.evaluations):
            for index in store.rounds():
                store.read(index)  # a run that continues builds on these: refuse damage now
        self.tokenizer = load_tokenizer(config.policy, "policy")
        self.train_prompts = load_prompts(config, config.data.split, self.tokenizer)
        self.held_out = load_prompts(config, config.evaluation.split, self.tokenizer)
        self.sizes = self._round_sizes()
        self.first_round = self._last_saved()
        self.phase = self._phase()
        self.initial: PreTrainedModel | None = None
        self.reward: Rewards | None = None
        if self.phase != "update":  # which reads what is stored, and needs the memory
            self.initial, self.reward = self._load_what_collecting_needs()
        self.collector = Collector(
            config, self.initial, self.reward, self.tokenizer, self.streams, run_dir
        )
        self.design: DesignedPairs | None = None
        self.sampled = self.sizes
        if isinstance(config, OnPolicy) and config.design is not None:
            self.sampled = [n - round(config.design.share * n) for n in self.sizes]
            self.design = designed_pairs(
                config.design, self.collector, self.initial, self.train_prompts, run_dir
            )
        self.policy = self._policy_of(self.first_round)
        remove_update_checkpoints(run_dir, through=self.first_round)
        # The next phase of the same command continues, but nothing was interrupted.
        before = run_dir.handed_over
        self.resumed = bool(run_dir.metrics()) if before is None else before.get("resumed", False)
        run_dir.cut_metrics(lambda r: r["round"] <= self.first_round or "step" in r)

    # -- the four steps ----------------------------------------------------------------------

    def measure(self, k: int) -> None:
        """Evaluate pi_k, unless that was done before the run was interrupted."""
        if k in self._measured():
            return
        completions = self._held_out_samples(k)
        result = evaluate(
            completions,
            self._held_out_samples(0),
            [self.held_out.references[row] for row in completions.prompt_index],
            self.tokenizer,
            self.scale,
            self.config.evaluation.bootstrap,
            self.streams.data("bootstrap", k),
        )
        self.run_dir.log(round=k, **result)
        self._tell(k, result, completions)

    def collect(self, k: int) -> Completions:
        """D_k: sampled from pi_k on-policy; offline always D_0, perhaps another run's."""
        started = time.monotonic()
        if isinstance(self.config, Offline) and self.config.replay:
            store = RoundStore(Path(self.config.replay) / "rounds")
            completions = store.read(self.config.replay_round).data
        else:
            source = self._source(k)
            # Prompts of D; with a design, only the first part of the round.
            rows = rows_of_round(len(self.train_prompts), self.sampled, source, self.streams)
            given = None
            if self.design is not None:
                count, draw = self.sizes[k] - self.sampled[k], self.streams.data("design", k)
                rows, given = self.design.append(rows, count, len(self.train_prompts), draw)
            completions = self.collector.collect(
                self.policy, self.train_prompts, rows, self.rounds, source, "collect", given
            )
        assert isinstance(completions, Completions)
        self.collect_seconds = time.monotonic() - started
        if self.phase == "collect":
            self.run_dir.hand_over(collect_seconds=self.collect_seconds, resumed=self.resumed)
        elif self.phase == "update":
            self.collect_seconds = (self.run_dir.handed_over or {}).get("collect_seconds", 0.0)
        return completions

    def update(self, k: int, completions: Completions, pairs: Pairs, targets: Targets) -> None:
        """Train the policy on D_k, and log what the round did to it."""
        config, started = self.config, time.monotonic()
        order = minibatch_order(
            len(pairs),
            config.batch_size,
            1 if isinstance(config, Offline) else config.epochs,
            lambda epoch: self.streams.data("minibatches", k, epoch),
        )
        if config.bucket_by_length:
            order = bucketed(order, pairs, config.batch_size)
        steps = update(
            self.policy,
            self.tokenizer,
            RoundData(pairs, targets, order),
            config,
            self.run_dir,
            round=k + 1,
            first_step=sum(r.get("optimizer_steps", 0) for r in self.run_dir.metrics()),
            check_first_step=not self.offline or k == 0,
        )
        if self.strategy not in ("single", "ddp"):
            self._make_whole()
        updated = time.monotonic()
        micro_batch = config.train.get("per_device_train_batch_size", 8)
        both = list(pairs.prompt_ids) * 2, [*pairs.first_ids, *pairs.second_ids]
        logprobs = self.collector.score(self.policy, *both).reshape(2, -1).T
        soft = config.objective.name in ("dpo", "pdfr")
        # What they estimate are means under pi_k: over prompts of D that the design never draws.
        own = np.arange(len(pairs) if self.design is None else self.sampled[k])
        if self.design is not None:
            own = own[self.design.untouched(completions.prompt_index[own])]
        of_data, of_update = {}, {}
        if len(own):
            of_data = data_diagnostics(completions.take(own), pairs.take(own))
            of_update = update_diagnostics(pairs.take(own), targets.take(own), logprobs[own], soft)
        self.run_dir.log(
            round=k + 1,
            optimizer_steps=steps,
            gamma=targets.gamma,
            pairs=len(order),
            completions_sampled=0 if self.offline and k else completions.rewards.size,
            collect_seconds=self.collect_seconds,
            update_seconds=updated - started,
            resumed=self.resumed,
            **{f"data/{name}": value for name, value in of_data.items()},
            **{f"update/{name}": value for name, value in of_update.items()},
            **{"update/padding_share": padding_of(order, pairs, micro_batch)},
        )
        self.resumed = False

    def _make_whole(self) -> None:
        """Put a whole pi_{k+1} in the place of the one in shards."""
        whole: Any = self._load(self.config.policy)
        if self.config.lora is not None:
            whole = self._attach(whole)
            if self.initial is not None:  # it shared the base that is in shards now
                self.initial = self.collector.initial = adapters.Reference(whole)
        sharding.copy_whole(self.policy, whole)
        self.policy = whole

    def save(self, k: int) -> None:
        """Save pi_k; the round is then behind us."""
        if self.run_dir.is_main:
            with self.run_dir.checkpoint(POLICY_OF_ROUND.format(k)) as folder:
                self.policy.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
            remove_update_checkpoints(self.run_dir, through=k)
        PartialState().wait_for_everyone()

    def summary(self) -> dict[str, Any]:
        """The fields of ``summary.json`` that belong to this experiment."""
        PartialState().wait_for_everyone()  # the last measurement is the main process's to write
        measured = self._measured()
        final, last = self.run_dir.checkpoints / "final", POLICY_OF_ROUND.format(self.config.rounds)
        if self.config.lora is not None:
            weights = policies.save_merged(
                self.policy, self.tokenizer, self.config, self.run_dir, last
            )
        else:
            weights = {"weights_sha256": weights_sha256(self.policy.state_dict())}
            if self.run_dir.is_main:
                files.link(final, last)
        return {
            "objective": self.config.objective.name,
            "rounds": [measured[k] for k in range(self.config.rounds + 1)],
            **weights,
            "throughput": throughput(self.run_dir.metrics()),
        }

    # -- what they need ------------------------------------------------------------------------

    @functools.cached_property
    def scale(self) -> tuple[float, float]:
        """Mean and deviation of pi_0's rewards on held-out prompts; (0, 1) if not standardized."""
        if not self.config.reward.standardize:
            return 0.0, 1.0
        rewards = self._held_out_samples(0).rewards
        mean, deviation = float(rewards.mean()), float(rewards.std())
        if deviation == 0:
            raise BadInput(
                f"reward.standardize=true, but {self.config.reward.title} gives all of the initial "
                f"policy's samples the reward {mean:g}; train the reward model, or choose another"
            )
        return mean, deviation

    def _held_out_samples(self, k: int) -> Completions:
        # The same prompts for every seed, so that seeds can be compared.
        order = Streams(0).internal("held out").permutation(len(self.held_out))
        rows = order[: self.config.evaluation.prompts]
        return self.collector.collect(
            self.policy, self.held_out, rows, self.evaluations, k, "evaluate"
        )

    def _measured(self) -> dict[int, dict[str, Any]]:
        return {
            record["round"]: {name: record[name] for name in record if name != "seconds"}
            for record in self.run_dir.metrics()
            if "reward_mean" in record
        }

    def _round_sizes(self) -> list[int]:
        available = len(self.train_prompts)
        sizes = [self.config.prompts_in_round(k) or available for k in range(self.config.rounds)]
        if max(sizes) > available:
            raise BadInput(
                f"prompts_per_round={max(sizes)} exceeds the {available} prompts of "
                f"data.name={self.config.data.name!r}; lower it, or use more data"
            )
        if min(sizes) < self.config.batch_size:
            raise BadInput(
                f"batch_size={self.config.batch_size} exceeds the {min(sizes)} pairs of a round; "
                "lower batch_size or raise prompts_per_round"
            )
        if self.config.evaluation.prompts > len(self.held_out):
            raise BadInput(
                f"evaluation.prompts={self.config.evaluation.prompts} exceeds the "
                f"{len(self.held_out)} prompts of evaluation.split="
                f"{self.config.evaluation.split!r}; lower it, or use a larger split"
            )
        return sizes

    def _check_replay(self, replay: str, index: int, initial: PreTrainedModel) -> None:
        store = RoundStore(Path(replay) / "rounds")
        if index not in store.rounds():
            raise BadInput(
                f"replay={replay!r}, replay_round={index}: no such finished round; finished ones "
                f"there: {store.rounds() or 'none'}. Name a run directory that holds the round"
            )
        drawn_by, ours = store.manifest(index)["policy"], adapters.identity(initial)
        if drawn_by != ours:
            raise BadInput(
                f"replay={replay!r}, replay_round={index}: drawn by a policy with weights "
                f"{drawn_by[:12]}, while policy={self.config.policy!r} has {ours[:12]}; name the "
                "policy that drew it"
            )

    def _last_saved(self) -> int:
        names = [path.name for path in self.run_dir.checkpoints.glob("round-*")]
        return max((int(name.split("-")[1]) for name in names), default=0)

    def _phase(self) -> str:
        """What this process does: "both", or in staged mode "collect" or "update"."""
        k = self.first_round
        if not self.run_dir.staged:
            return "both"
        replayed = isinstance(self.config, Offline) and self.config.replay
        stored = k < self.config.rounds and (replayed or self._source(k) in self.rounds.rounds())
        return "update" if stored and k in self._measured() else "collect"

    def _source(self, k: int) -> int:
        """Which stored round is D_k."""
        return 0 if self.offline else k

    def _load_what_collecting_needs(self) -> tuple[PreTrainedModel, Rewards]:
        """pi_0, with which the prompts and a replayed round have to agree, and the reward model."""
        config = self.config
        initial = self._load(config.policy)
        for prompts in (self.train_prompts, self.held_out):
            check_prompts(initial, prompts.ids, config.sampling)
        if isinstance(config, Offline) and config.replay:
            self._check_replay(config.replay, config.replay_round, initial)
        if config.lora is not None:
            initial = adapters.Reference(self._attach(initial))
        bf16 = bool(config.train.get("bf16", False))
        rewards = Rewards(config.reward, self.tokenizer, config.attention, self.device, bf16)
        ranked = check_rewards(rewards, self.train_prompts.ids, self.train_prompts.conversations)
        if ranked is not None:
            self.run_dir.say(f"reward: {ranked:.0%} of the known pairs are ranked right")
        return initial, rewards

    def _attach(self, base: PreTrainedModel) -> Any:
        return policies.attach(base, self.config, self.streams)

    def _policy_of(self, k: int) -> PreTrainedModel:
        if self.config.lora is not None:
            return self._adapted_policy_of(k)
        if k == 0:
            made = self.initial is not None
            return copy.deepcopy(self.initial) if made else self._load(self.config.policy)
        self.run_dir.say(f"continuing after round {k}")
        return self._load(str(self.run_dir.checkpoints / POLICY_OF_ROUND.format(k)))

    def _adapted_policy_of(self, k: int) -> Any:
        # One base for pi_k and, with the adapter off, for pi_0.
        initial: Any = self.initial
        shared = isinstance(initial, adapters.Reference)
        adapted = initial.policy if shared else self._attach(self._load(self.config.policy))
        if k > 0:
            self.run_dir.say(f"continuing after round {k}")
            load_weights_strictly(adapted, self.run_dir.checkpoints / POLICY_OF_ROUND.format(k))
        return adapted

    def _load(self, name: str) -> PreTrainedModel:
        return policies.load(name, self.config, self.device)

    def _tell(self, k: int, result: dict[str, Any], completions: Completions) -> None:
        self.run_dir.say(
            f"round {k}: reward {result['reward_mean']:+.3f}, win rate "
            f"{result['win_rate_vs_initial']:.0%}, ROUGE-L {result['rouge_l']:.3f}, "
            f"KL {result['kl_to_initial']:.2f}"
        )
        prompt = self.tokenizer.decode(completions.prompt_ids[0], skip_special_tokens=True)
        answer = self.tokenizer.decode(completions.completion_ids[0][0], skip_special_tokens=True)
        self.run_dir.say(f"    ...{prompt[-60:]!r} -> {answer!r}")
        references = [self.held_out.references[row] for row in completions.prompt_index]
        table = samples_table(completions, references, self.tokenizer, self.run_dir.report.samples)
        self.run_dir.log_table("completions", *table, round=k)
