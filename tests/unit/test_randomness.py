"""Random streams: named, keyed, saved, and apart from one another."""

import hashlib
import json

import numpy as np
import pytest
import torch

from reprise.rollout.randomness import Streams


def draws(generator, count=4):
    return generator.random(count).tolist()


def test_an_indexed_stream_is_fresh_each_time():
    streams = Streams(7)
    first = draws(streams.data("tokens", 2, 5))
    assert draws(streams.data("tokens", 2, 5)) == first
    assert draws(Streams(7).data("tokens", 2, 5)) == first


def test_a_stream_without_index_goes_on():
    streams = Streams(7)
    first, second = draws(streams.data("prompts")), draws(streams.data("prompts"))
    assert first != second
    assert draws(Streams(7).data("prompts"), 8) == first + second


def test_every_part_of_the_key_counts():
    streams = Streams(7)
    different = [
        streams.data("tokens"),
        streams.data("tokens", 0),
        streams.data("tokens", 1),
        streams.data("tokens", "1"),
        streams.data("tokens", 0, 1),
        streams.data("tokens", 1, 0),
        streams.data("tokens", 10),
        streams.data("tokens1", 0),
        streams.data("labels", 0),
        streams.internal("tokens", 0),
        streams.internal("tokens"),
        Streams(8).data("tokens", 0),
        Streams(71).data("tokens", 0),
    ]
    assert len({tuple(draws(generator)) for generator in different}) == len(different)


def test_the_key_is_the_hash_of_what_it_is_for():
    """Stored rounds are replayed under these very bits: a change of the key is a new format."""
    text = "data\x1f3\x1ftokens\x1f0\x1f7"
    digest = hashlib.sha256(text.encode()).digest()
    key = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
    expected = np.random.Generator(np.random.Philox(key=key))
    assert draws(Streams(3).data("tokens", 0, 7)) == draws(expected)


def test_a_numpy_integer_is_the_same_index():
    streams = Streams(7)
    for same in (np.int64(5), np.int32(5), np.uint8(5)):
        assert draws(streams.data("tokens", same)) == draws(streams.data("tokens", 5))


def test_another_stream_moves_no_other():
    alone, crowded = Streams(1), Streams(1)
    draws(crowded.data("another"))
    draws(crowded.internal("prompts"), 3)
    assert draws(crowded.data("prompts")) == draws(alone.data("prompts"))


def test_replicas_share_internal_randomness_and_not_the_datas():
    one, other = Streams(1, internal_seed=9), Streams(2, internal_seed=9)
    for index in ((), (3,)):
        assert draws(one.internal("offsets", *index)) == draws(other.internal("offsets", *index))
        assert draws(one.data("states", *index)) != draws(other.data("states", *index))
    assert one.internal_seed_for("library") == other.internal_seed_for("library")
    assert one.data_seed("library") != other.data_seed("library")
    # Unless it is given, the internal seed is the seed.
    assert draws(Streams(4).internal("x")) == draws(Streams(0, internal_seed=4).internal("x"))


def test_streams_continue_from_json():
    streams = Streams(5, internal_seed=6)
    generators = (streams.data("prompts"), streams.internal("offsets"))
    for generator in generators:
        generator.random(3)
        generator.integers(10, size=3, dtype=np.int32)  # leaves half a word in the buffer
    saved = json.loads(json.dumps(streams.state_dict()))
    expected = [draws(generator, 9) for generator in generators]

    resumed = Streams(5, internal_seed=6)
    draws(resumed.data("later"))
    resumed.load_state_dict(saved)
    assert [draws(resumed.data("prompts"), 9), draws(resumed.internal("offsets"), 9)] == expected
    # What had not begun when the state was saved begins at its start.
    assert draws(resumed.data("later")) == draws(Streams(5, 6).data("later"))


def test_a_half_used_word_survives_too():
    streams = Streams(5)
    streams.data("a").integers(2**31, dtype=np.uint32)
    saved = json.loads(json.dumps(streams.state_dict()))
    resumed = Streams(5)
    resumed.load_state_dict(saved)
    expected = streams.data("a").integers(2**31, size=5, dtype=np.uint32).tolist()
    assert resumed.data("a").integers(2**31, size=5, dtype=np.uint32).tolist() == expected


def test_the_state_of_another_seed_is_refused():
    saved = Streams(5, internal_seed=6).state_dict()
    for streams in (Streams(5), Streams(6, internal_seed=6)):
        with pytest.raises(ValueError, match=r"seed 5 \(internal 6\) cannot continue"):
            streams.load_state_dict(saved)


def test_seeds_for_libraries():
    streams = Streams(5)
    seeds = {streams.data_seed("x", k) for k in range(50)}
    seeds |= {streams.internal_seed_for("x", k) for k in range(50)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_torch_generators():
    def drawn(*key):
        return torch.rand(3, generator=Streams(5).torch(*key)).tolist()

    assert drawn("noise", 1) == drawn("noise", 1)
    assert drawn("noise", 1) != drawn("noise", 2)


def test_the_global_generators_are_left_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    streams = Streams(5)
    draws(streams.data("a"))
    torch.rand(2, generator=streams.torch("b"))
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
