"""Rejected answers spoil what their kind says they spoil, and nothing else."""

import numpy as np
import pytest

from reprise.alignment.config import Corruptions
from reprise.alignment.rewards.corruptions import Corruptor

REFERENCES = [" Return the title of a page.", " Save a table.", " Read one line.", " Make a graph."]
GROUPS = ["web", "web", "io", "io"]


@pytest.fixture
def corruptor():
    samples = [(" Return a", False), None, (" Read one line.", True), None]
    return Corruptor(REFERENCES, GROUPS, samples)


def many(corruptor, row, kind, times=200):
    return [corruptor.make(row, kind, np.random.default_rng(seed)) for seed in range(times)]


def test_other_and_related_are_references_of_other_rows(corruptor):
    assert {made.text for made in many(corruptor, 0, "other")} == set(REFERENCES[1:])
    assert {made.text for made in many(corruptor, 0, "related")} == {REFERENCES[1]}
    assert {made.text for made in many(corruptor, 3, "related")} == {REFERENCES[2]}


def test_truncations_end_in_a_period_or_without_eos(corruptor):
    whole = REFERENCES[0].rstrip(".")
    for made in many(corruptor, 0, "truncated"):
        assert made.complete and made.text.endswith(".") and made.text != REFERENCES[0]
        assert whole.startswith(made.text[:-1])
    for made in many(corruptor, 0, "unfinished"):
        assert not made.complete and REFERENCES[0].startswith(made.text)
        assert made.text.strip() and made.text != REFERENCES[0]


def test_words_are_left_out_or_repeated(corruptor):
    words = REFERENCES[0].split(" ")
    for made in many(corruptor, 0, "dropped"):
        left = iter(words)
        assert all(word in left for word in made.text.split(" "))  # a subsequence
        assert 1 <= len(words) - len(made.text.split(" ")) <= 3 and made.text.endswith(" page.")
    for made in many(corruptor, 0, "repeated"):
        assert len(made.text.split(" ")) > len(words) and made.text.endswith(" page.")
        assert set(made.text.split(" ")) == set(words)


def test_a_sample_equal_to_the_reference_is_replaced(corruptor):
    [made] = many(corruptor, 0, "sampled", 1)
    assert (made.text, made.kind, made.complete) == (" Return a", "sampled", False)
    for row in (1, 2):  # none was drawn; equal to the reference
        assert {made.kind for made in many(corruptor, row, "sampled")} == {"other"}


def test_kinds_come_in_their_shares(corruptor):
    none = dict.fromkeys(Corruptions.model_fields, 0.0)
    shares = Corruptions(**{**none, "other": 3.0, "dropped": 1.0})
    generator = np.random.default_rng(0)
    kinds = [corruptor.draw(0, shares, generator).kind for _ in range(2000)]
    assert set(kinds) == {"other", "dropped"}
    assert kinds.count("other") / 2000 == pytest.approx(0.75, abs=0.03)


def test_equal_references_are_refused():
    with pytest.raises(ValueError, match="nearly every other row"):
        Corruptor(["Same."] * 5).make(0, "other", np.random.default_rng(0))
