"""Rejected answers, made from references: what a reward model learns to tell from the real thing.

Each kind spoils one thing. `other` and `related` are fluent and about something else (relevance);
`truncated` ends too early, but with a period and EOS; `unfinished` stops without EOS; `dropped`
and `repeated` are ungrammatical; `sampled` is what the language model itself writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reprise.alignment.config import Corruptions
from reprise.rollout.errors import BadInput


@dataclass(frozen=True)
class Rejected:
    """A spoiled answer: its text, its kind, and whether it is complete (ends with EOS)."""

    text: str
    kind: str
    complete: bool = True


class Corruptor:
    """Makes a rejected answer for each row.

    Args:
        references: the real answers.
        groups: rows of one group (a module's docstrings) are `related`; None: no groups.
        samples: for each row, (text, complete) of a language model's answer, or None.
    """

    def __init__(
        self,
        references: Sequence[str],
        groups: Sequence[str] | None = None,
        samples: Sequence[tuple[str, bool] | None] | None = None,
    ) -> None:
        self.references = references
        self.groups = groups
        self.samples = samples
        self._members: dict[str, list[int]] = defaultdict(list)
        for row, group in enumerate(groups or ()):
            self._members[group].append(row)

    def draw(self, row: int, shares: Corruptions, generator: np.random.Generator) -> Rejected:
        """One rejected answer for `row`, of a kind drawn by `shares`."""
        named = shares.model_dump()
        weights = np.array(list(named.values()))
        kind = list(named)[generator.choice(len(named), p=weights / weights.sum())]
        return self.make(row, kind, generator)

    def make(self, row: int, kind: str, generator: np.random.Generator) -> Rejected:
        """One rejected answer of `kind`; where that kind is impossible, another row's reference.

        Impossible are: related in a group of one, a sample equal to the reference, and spoiling
        an answer of fewer than three words.
        """
        reference = self.references[row]
        words = reference.split(" ")
        lead = 1 if words and words[0] == "" else 0  # a reference may start with a space
        if kind == "sampled" and self.samples is not None and self.samples[row] is not None:
            text, complete = self.samples[row]  # type: ignore[misc]
            if text.strip() != reference.strip():
                return Rejected(text, kind, complete)
        elif kind == "related" and self.groups is not None:
            return self._other(row, self._members[self.groups[row]], kind, generator)
        elif kind in _SPOILERS and len(words) - lead >= 3:
            spoiled, complete = _SPOILERS[kind](words, lead, generator)
            if spoiled != words or not complete:
                return Rejected(" ".join(spoiled), kind, complete)
        return self._other(row, range(len(self.references)), "other", generator)

    def _other(
        self, row: int, rows: Sequence[int], kind: str, generator: np.random.Generator
    ) -> Rejected:
        for _ in range(20):
            text = self.references[rows[generator.integers(len(rows))]]
            if text != self.references[row]:
                return Rejected(text, kind)
        if kind == "related":
            return self._other(row, range(len(self.references)), "other", generator)
        raise BadInput(
            f"the reference of row {row} is that of nearly every other row too; a reward model "
            "cannot be trained on these references alone: give preferences (chosen, rejected)"
        )


def _truncated(
    words: list[str], lead: int, generator: np.random.Generator
) -> tuple[list[str], bool]:
    cut = int(generator.integers(lead + 1, len(words)))
    return [*words[: cut - 1], words[cut - 1].rstrip(".,;:") + "."], True


def _unfinished(
    words: list[str], lead: int, generator: np.random.Generator
) -> tuple[list[str], bool]:
    return words[: int(generator.integers(lead + 1, len(words)))], False


def _dropped(words: list[str], lead: int, generator: np.random.Generator) -> tuple[list[str], bool]:
    most = min(3, len(words) - lead - 2)
    count = int(generator.integers(1, most + 1))
    gone = set(generator.choice(np.arange(lead, len(words) - 1), size=count, replace=False))
    return [word for index, word in enumerate(words) if index not in gone], True


def _repeated(
    words: list[str], lead: int, generator: np.random.Generator
) -> tuple[list[str], bool]:
    start = int(generator.integers(lead, len(words) - 1))
    stop = min(start + int(generator.integers(1, 4)), len(words) - 1)
    return [*words[:stop], *words[start:stop], *words[stop:]], True


_SPOILERS = {
    "truncated": _truncated,
    "unfinished": _unfinished,
    "dropped": _dropped,
    "repeated": _repeated,
}
