"""Columnar batches: what they refuse, and that Arrow gives back the same bits."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest

from reprise.rollout.types import Completions, Pairs, Transitions


def completions(prompts: int = 5, samples: int = 3, seed: int = 0) -> Completions:
    draws = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return draws.integers(0, 2**31, size=draws.integers(1, 6), dtype=np.int32)

    shape = (prompts, samples)
    return Completions(
        prompt_index=draws.integers(0, 2**40, size=prompts),
        prompt_ids=[ids() for _ in range(prompts)],
        completion_ids=[[ids() for _ in range(samples)] for _ in range(prompts)],
        terminated=draws.random(shape) < 0.5,
        rewards=draws.standard_normal(shape).astype(np.float32),
        policy_logprobs=-draws.random(shape).astype(np.float32),
        reference_logprobs=-draws.random(shape).astype(np.float32),
        label_uniform=draws.random(prompts),
    )


def pairs(count: int = 4) -> Pairs:
    some = completions(count, 2)
    return Pairs(
        prompt_index=some.prompt_index,
        prompt_ids=some.prompt_ids,
        first_ids=[samples[0] for samples in some.completion_ids],
        second_ids=[samples[1] for samples in some.completion_ids],
        terminated=some.terminated,
        rewards=some.rewards,
        policy_logprobs=some.policy_logprobs,
        reference_logprobs=some.reference_logprobs,
        label_uniform=some.label_uniform,
        weight=np.ones(count, dtype=np.float32),
    )


def transitions(steps: int = 6) -> Transitions:
    draws = np.random.default_rng(1)
    return Transitions(
        observations=draws.integers(0, 256, size=(steps, 4, 3), dtype=np.uint8),
        actions=draws.integers(0, 5, size=steps),
        rewards=draws.standard_normal(steps).astype(np.float32),
        next_observations=draws.integers(0, 256, size=(steps, 4, 3), dtype=np.uint8),
        terminated=draws.random(steps) < 0.5,
        truncated=draws.random(steps) < 0.5,
    )


def assert_same_bits(one, other) -> None:
    for field in fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype and left.shape == right.shape, field.name
            assert left.tobytes() == right.tobytes(), field.name
            continue
        if left is None:
            assert right is None, field.name
            continue
        assert len(left) == len(right), field.name
        for mine, yours in zip(left, right, strict=True):
            nested = isinstance(mine, np.ndarray)
            for a, b in zip([mine] if nested else mine, [yours] if nested else yours, strict=True):
                assert a.dtype == b.dtype == np.int32 and a.tolist() == b.tolist(), field.name


@pytest.mark.parametrize("prompts", [0, 1, 7])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_completions_survive_arrow(prompts, samples):
    batch = completions(prompts, samples)
    assert_same_bits(Completions.from_arrow(batch.to_arrow()), batch)


def test_the_samplers_own_logprobs_are_kept_where_there_are_any():
    plain = completions(4, 2)
    own = plain.policy_logprobs + np.float32(0.25)
    own[2] = np.nan  # not sampled
    batch = replace(plain, sampler_logprobs=own)
    assert_same_bits(Completions.from_arrow(batch.to_arrow()), batch)
    assert "sampler_logprobs" not in plain.to_arrow().column_names
    assert np.array_equal(batch.take([3, 0]).sampler_logprobs, own[[3, 0]])
    joined = Completions.concatenate([batch, batch]).sampler_logprobs
    assert joined is not None and joined.tobytes() == own.tobytes() * 2
    assert Completions.concatenate([batch, plain]).sampler_logprobs is None
    with pytest.raises(ValueError, match="sampler_logprobs: is float64"):
        replace(plain, sampler_logprobs=own.astype(np.float64))


def test_float_bits_survive_arrow():
    # Negative zero, the smallest subnormal and the largest float32 among them.
    rewards = np.array([[-0.0, 1e-45], [3.4028235e38, 0.1]], dtype=np.float32)
    batch = replace(completions(2, 2), rewards=rewards)
    assert Completions.from_arrow(batch.to_arrow()).rewards.tobytes() == rewards.tobytes()


def test_slices_and_chunks_of_a_table_are_read_right():
    batch = completions(9, 2)
    table = batch.to_arrow()
    assert_same_bits(Completions.from_arrow(table.slice(3, 4)), batch.take(range(3, 7)))
    chunked = pa.concat_tables([table.slice(5), table.slice(0, 2)])
    assert_same_bits(Completions.from_arrow(chunked), batch.take([5, 6, 7, 8, 0, 1]))


def test_transitions_survive_arrow():
    batch = transitions()
    assert_same_bits(Transitions.from_arrow(batch.to_arrow()), batch)
    continuous = replace(batch, actions=np.ones((6, 2), dtype=np.float32))
    assert_same_bits(Transitions.from_arrow(continuous.to_arrow()), continuous)


def test_arrays_read_back_can_be_written():
    # torch.from_numpy warns about read-only memory, and would let it be written all the same.
    batch = Completions.from_arrow(completions().to_arrow())
    assert batch.rewards.flags.writeable and batch.prompt_ids[0].flags.writeable


@pytest.mark.parametrize("make", [completions, pairs, transitions])
def test_take_and_concatenate_are_inverse(make):
    batch = make()
    rows = np.random.default_rng(0).permutation(len(batch))
    shuffled = type(batch).concatenate([batch.take(rows[:2]), batch.take(rows[2:])])
    assert len(shuffled) == len(batch)
    assert_same_bits(shuffled.take(np.argsort(rows)), batch)
    assert len(batch.take([])) == 0


def test_take_gives_exactly_the_rows():
    batch = completions()
    taken = batch.take([4, 1])
    assert taken.prompt_index.tolist() == batch.prompt_index[[4, 1]].tolist()
    assert taken.prompt_ids[0] is batch.prompt_ids[4]
    assert taken.completion_ids[1] is batch.completion_ids[1]
    assert taken.rewards.tolist() == batch.rewards[[4, 1]].tolist()


EMPTY = np.zeros(0, dtype=np.int32)
ONE = np.ones(1, dtype=np.int32)


def with_value(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt_ids", [ONE, ONE, EMPTY, ONE, ONE], r"prompt_ids: prompt 2 is empty.*drop it"),
        ("prompt_ids", [ONE, [1], ONE, ONE, ONE], r"prompt_ids: prompt 1 is .*list.*int32"),
        ("prompt_ids", [np.ones(2)] * 5, r"prompt_ids: prompt 0 is float64 \[2\], must be"),
        ("prompt_index", np.arange(4), r"prompt_index: has shape \[4\], must have \[5\]"),
        ("prompt_index", list(range(5)), r"prompt_index: is list, must be a numpy array of int64"),
        ("completion_ids", [[ONE] * 3] * 4, r"completion_ids: has 4 entries, prompt_ids has 5"),
        ("completion_ids", [[ONE] * 3] * 4 + [[ONE] * 2], r"prompt 4 has 2 completions.*3"),
        ("completion_ids", [[ONE, ONE, EMPTY]] * 5, r"prompt 0, sample 2 is empty"),
        ("terminated", np.zeros((5, 3)), r"terminated: is float64, must be .* bool"),
        ("terminated", np.zeros(5, dtype=bool), r"terminated: has shape \[5\].*\[5, any\]"),
        ("rewards", np.zeros((5, 3)), r"rewards: is float64.*np.asarray\(rewards, dtype=np.float"),
        ("rewards", np.zeros((3, 5), np.float32), r"rewards: has shape \[3, 5\].*\[5, 3\]"),
        ("label_uniform", np.full(5, 1.0), r"label_uniform: 1.0 at row 0.*\[0, 1\)"),
        ("label_uniform", np.full(5, np.nan), r"label_uniform: nan at row 0"),
    ],
)
def test_bad_completions_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(completions(), **{field: value})


@pytest.mark.parametrize("name", ["rewards", "policy_logprobs", "reference_logprobs"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_prompt_and_sample(name, value):
    batch = completions()
    changed = with_value(getattr(batch, name), (3, 1), value)
    where = f"prompt {batch.prompt_index[3]}, sample 1"
    with pytest.raises(ValueError, match=rf"{name}: {value} at {where}; .*1 in all"):
        replace(batch, **{name: changed})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("first_ids", [ONE, ONE, ONE], r"first_ids: has 3 entries, prompt_ids has 4"),
        ("second_ids", [ONE, ONE, ONE, EMPTY], r"second_ids: pair 3 is empty"),
        ("rewards", np.zeros((4, 3), np.float32), r"rewards: has shape \[4, 3\].*\[4, 2\]"),
        ("weight", np.array([1, 0, -1, 1], np.float32), r"weight: -1.0 at pair 2; .* least 0"),
        ("weight", np.array([1, np.inf, 1, 1], np.float32), r"weight: inf at pair 1"),
        ("policy_logprobs", np.full((4, 2), np.nan, np.float32), r"nan at pair 0, side 0; .*8 in"),
    ],
)
def test_bad_pairs_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(pairs(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rewards", np.zeros(6), r"rewards: is float64, must be .* float32"),
        ("rewards", np.full(6, np.inf, np.float32), r"rewards: inf at step 0"),
        ("terminated", np.zeros(5, bool), r"terminated: has shape \[5\], must have \[6\]"),
        ("next_observations", np.zeros((6, 4, 3)), r"next_observations: is float64.*uint8"),
        ("next_observations", np.zeros((6, 3, 4), np.uint8), r"shape \[6, 3, 4\].*\[6, 4, 3\]"),
        ("actions", np.zeros(7, np.int64), r"actions: has shape \[7\], must have \[6\]"),
        ("actions", np.full((6, 2), np.nan, np.float32), r"actions: nan at step 0"),
    ],
)
def test_bad_transitions_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(transitions(), **{field: value})


def test_batches_are_frozen():
    with pytest.raises(AttributeError):
        completions().rewards = np.zeros((5, 3), dtype=np.float32)


def test_a_table_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"Transitions: columns are \['prompt_index'.*another"):
        Transitions.from_arrow(completions().to_arrow())
