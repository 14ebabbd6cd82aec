"""Where D_k comes from: sampled in every round, once, from another run, or mixed with a design.

| source   | experiment                | D_k                                                       |
|----------|---------------------------|-----------------------------------------------------------|
| Fresh    | on-policy                 | sampled from pi_k                                         |
| Designed | on-policy with a `design` | prompts of D, then the design's; actions of either        |
| Once     | offline                   | D_0, sampled from pi_0, in every round                    |
| Replayed | offline with `replay`     | a round that another run stored; pi_0 must have drawn it  |
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from reprise.alignment import adapters
from reprise.alignment.collector import Collector, Prompts, Request, rows_of_round
from reprise.alignment.config import HybridDesign, Offline, OnPolicy
from reprise.alignment.hybrid import DesignedPairs, designed_pairs
from reprise.rollout.errors import BadInput
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions


class Fresh:
    """D_k sampled from pi_k.

    Args:
        prompts: the data set D.
        sizes: n_0, n_1, ..., prompts of each round.
        store: where the run's rounds are.
    """

    def __init__(self, prompts: Prompts, sizes: list[int], store: RoundStore) -> None:
        self.prompts, self.sizes, self.store = prompts, sizes, store

    def stored_as(self, k: int) -> int:
        """The number under which D_k is stored."""
        return k

    def is_stored(self, k: int) -> bool:
        """Whether D_k is there, so that nothing needs to be sampled for it."""
        return self.stored_as(k) in self.store.rounds()

    def drawn_by(self, k: int) -> int:
        """Which policy drew D_k."""
        return self.stored_as(k)

    def check(self, initial: PreTrainedModel) -> None:
        """Refuse data that does not go with pi_0."""

    def prepare(self, collector: Collector, run_dir: RunDir) -> None:
        """What has to be made before the first round."""

    def collect(self, k: int, collector: Collector) -> Completions:
        """D_k; what is stored is not sampled again."""
        index = self.stored_as(k)
        rows = rows_of_round(len(self.prompts), self.sizes, index, collector.streams)
        return collector.collect(Request(self.prompts, rows, index, "collect"), self.store)

    def of_policy(self, k: int, completions: Completions) -> np.ndarray:
        """Rows whose prompts are D's and whose completions are pi_k's: means over them estimate."""
        return np.arange(len(completions))


class Once(Fresh):
    """D_0 in every round: offline learning as the on-policy loop sees it."""

    def stored_as(self, k: int) -> int:
        """D_0's number."""
        return 0


class Replayed(Once):
    """A round of another run in every round."""

    def __init__(self, run: str, index: int, policy: str) -> None:
        super().__init__(Prompts([], [], []), [], RoundStore(Path(run) / "rounds"))
        self.run, self.index, self.policy = run, index, policy

    def is_stored(self, k: int) -> bool:
        """It is, or `check` refuses."""
        return True

    def check(self, initial: PreTrainedModel) -> None:
        """Refuse a round that is not there, or that another policy drew.

        Raises:
            BadInput: it is one of these.
        """
        if self.index not in self.store.rounds():
            raise BadInput(
                f"replay={self.run!r}, replay_round={self.index}: no such finished round; finished "
                f"ones there: {self.store.rounds() or 'none'}. Name a run directory that holds the "
                "round"
            )
        drawn_by = self.store.manifest(self.index)["policy"]
        ours = adapters.identity(initial)
        if drawn_by != ours:
            raise BadInput(
                f"replay={self.run!r}, replay_round={self.index}: drawn by a policy with weights "
                f"{drawn_by[:12]}, while policy={self.policy!r} has {ours[:12]}; name the "
                "policy that drew it"
            )

    def collect(self, k: int, collector: Collector) -> Completions:
        """The round, read."""
        completions = self.store.read(self.index).data
        assert isinstance(completions, Completions)
        return completions


class Designed(Fresh):
    """D_k mixed with a preferential G-optimal design (2601.08421, Algorithm 2)."""

    design: DesignedPairs

    def __init__(
        self, prompts: Prompts, sizes: list[int], store: RoundStore, settings: HybridDesign
    ) -> None:
        # What is drawn from D; the rest of a round, `whole - sizes`, is the design's.
        super().__init__(prompts, [n - round(settings.share * n) for n in sizes], store)
        self.whole, self.settings = sizes, settings

    def prepare(self, collector: Collector, run_dir: RunDir) -> None:
        """Make the design, or read it back."""
        self.design = designed_pairs(self.settings, collector, self.prompts, run_dir)

    def collect(self, k: int, collector: Collector) -> Completions:
        """Prompts of D, then the design's; completions that the design gives are not sampled."""
        rows = rows_of_round(len(self.prompts), self.sizes, k, collector.streams)
        count, draw = self.whole[k] - self.sizes[k], collector.streams.data("design", k)
        rows, given = self.design.append(rows, count, len(self.prompts), draw)
        return collector.collect(Request(self.prompts, rows, k, "collect", given), self.store)

    def of_policy(self, k: int, completions: Completions) -> np.ndarray:
        """The first part, without prompts that the design draws too."""
        own = np.arange(self.sizes[k])
        return own[self.design.untouched(completions.prompt_index[own])]


def source_of(config: OnPolicy | Offline, prompts: Prompts, store: RoundStore) -> Fresh:
    """The source that a config asks for.

    Raises:
        BadInput: a round is larger than the data, or smaller than an optimizer step.
    """
    sizes = [config.prompts_in_round(k) or len(prompts) for k in range(config.rounds)]
    if max(sizes) > len(prompts):
        raise BadInput(
            f"prompts_per_round={max(sizes)} exceeds the {len(prompts)} prompts of "
            f"data.name={config.data.name!r}; lower it, or use more data"
        )
    if min(sizes) < config.batch_size:
        raise BadInput(
            f"batch_size={config.batch_size} exceeds the {min(sizes)} pairs of a round; "
            "lower batch_size or raise prompts_per_round"
        )
    if isinstance(config, OnPolicy):
        if config.design is not None:
            return Designed(prompts, sizes, store, config.design)
        return Fresh(prompts, sizes, store)
    if config.replay:
        return Replayed(config.replay, config.replay_round, config.policy)
    return Once(prompts, sizes, store)
