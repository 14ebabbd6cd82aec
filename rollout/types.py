"""What experience is: frozen columnar batches whose shapes, dtypes and finiteness are checked.

Token ids are int32, rewards and log-probabilities (natural log, summed over a completion's
tokens) float32, uniforms float64. Text never appears: ids go from the sampler to the trainer.
Ragged columns are lists of arrays, which after `from_arrow` are views of one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa

from reprise.rollout.errors import BadInput


@dataclass(frozen=True, eq=False)
class Completions:
    """N prompts with n sampled completions each: one round of experience, D_k.

    A completion includes its EOS exactly if the model emitted one, and then `terminated` is true.
    `policy_logprobs` are under pi_k, the policy that drew the samples; `reference_logprobs` under
    pi_0; both from the forward pass that training uses, not from the sampler. `label_uniform` is
    the draw that decides a sampled preference label, so that a replay draws the same labels.
    `sampler_logprobs`, where there are any, are the sampler's own ln pi_k at temperature 1: kept to
    measure how far it is from the trainer, NaN for completions that were not sampled, and never
    trained on.
    """

    prompt_index: np.ndarray  # int64 [N], position in the prompt data set
    prompt_ids: Sequence[np.ndarray]  # N x int32 [any length >= 1]
    completion_ids: Sequence[Sequence[np.ndarray]]  # N x n x int32 [any length >= 1]
    terminated: np.ndarray  # bool [N, n]
    rewards: np.ndarray  # float32 [N, n]
    policy_logprobs: np.ndarray  # float32 [N, n], nats
    reference_logprobs: np.ndarray  # float32 [N, n], nats
    label_uniform: np.ndarray  # float64 [N], in [0, 1)
    sampler_logprobs: np.ndarray | None = None  # float32 [N, n], nats

    def __post_init__(self) -> None:
        """Check every column; the first wrong one raises a BadInput."""
        count = len(self.prompt_ids)
        _check_array("prompt_index", self.prompt_index, np.int64, (count,))
        _check_tokens("prompt_ids", self.prompt_ids, "prompt")
        _check_count("completion_ids", self.completion_ids, count)
        _check_array("terminated", self.terminated, np.bool_, (count, None))
        shape = self.terminated.shape
        for row, samples in enumerate(self.completion_ids):
            if len(samples) != shape[1]:
                raise BadInput(
                    f"completion_ids: prompt {row} has {len(samples)} completions, terminated has "
                    f"{shape[1]} columns; every prompt of a round needs the same number"
                )
            _check_tokens("completion_ids", samples, f"prompt {row}, sample")
        for name in ("rewards", "policy_logprobs", "reference_logprobs"):
            _check_array(name, getattr(self, name), np.float32, shape)
            _check_finite(name, getattr(self, name), "prompt", "sample", rows=self.prompt_index)
        _check_array("label_uniform", self.label_uniform, np.float64, (count,))
        _check_uniform("label_uniform", self.label_uniform)
        if self.sampler_logprobs is not None:
            _check_array("sampler_logprobs", self.sampler_logprobs, np.float32, shape)

    def __len__(self) -> int:
        """Return N, the number of prompts."""
        return len(self.prompt_ids)

    @property
    def samples_per_prompt(self) -> int:
        """n, the number of completions of each prompt."""
        return self.terminated.shape[1]

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Return the prompts at `rows`, in that order."""
        return _take(self, rows)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join batches with the same number of samples per prompt."""
        return _concatenate(cls, parts)

    def to_arrow(self) -> pa.Table:
        """Columns as an Arrow table; `from_arrow` gives back the same bits."""
        flat = [ids for samples in self.completion_ids for ids in samples]
        outer: np.ndarray = np.arange(len(self) + 1, dtype=np.int32) * self.samples_per_prompt
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        columns["prompt_ids"] = _ragged(self.prompt_ids)
        columns["completion_ids"] = pa.ListArray.from_arrays(outer, _ragged(flat))
        return _table(columns)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """Read what `to_arrow` wrote."""
        columns = _columns(cls, table)
        n = columns["terminated"].shape[1]
        flat = _lists(_joined(table["completion_ids"]).flatten())
        columns["completion_ids"] = [
            flat[start : start + n] for start in range(0, len(table) * n, n)
        ]
        columns["prompt_ids"] = _lists(_joined(table["prompt_ids"]))
        return cls(**columns)


@dataclass(frozen=True, eq=False)
class Pairs:
    """M pairs of completions of the same prompt, chosen from one or more rounds.

    "First" and "second" are not an order of preference. `weight` 0 takes a pair (a tie, an
    identical pair) out of the loss without dropping it from the counts.
    """

    prompt_index: np.ndarray  # int64 [M]
    prompt_ids: Sequence[np.ndarray]  # M x int32
    first_ids: Sequence[np.ndarray]  # M x int32
    second_ids: Sequence[np.ndarray]  # M x int32
    terminated: np.ndarray  # bool [M, 2]
    rewards: np.ndarray  # float32 [M, 2]
    policy_logprobs: np.ndarray  # float32 [M, 2], nats
    reference_logprobs: np.ndarray  # float32 [M, 2], nats
    label_uniform: np.ndarray  # float64 [M], in [0, 1)
    weight: np.ndarray  # float32 [M], >= 0

    def __post_init__(self) -> None:
        """Check every column; the first wrong one raises a BadInput."""
        count = len(self.prompt_ids)
        _check_array("prompt_index", self.prompt_index, np.int64, (count,))
        for name in ("prompt_ids", "first_ids", "second_ids"):
            _check_count(name, getattr(self, name), count)
            _check_tokens(name, getattr(self, name), "pair")
        _check_array("terminated", self.terminated, np.bool_, (count, 2))
        for name in ("rewards", "policy_logprobs", "reference_logprobs"):
            _check_array(name, getattr(self, name), np.float32, (count, 2))
            _check_finite(name, getattr(self, name), "pair", "side")
        _check_array("label_uniform", self.label_uniform, np.float64, (count,))
        _check_uniform("label_uniform", self.label_uniform)
        _check_array("weight", self.weight, np.float32, (count,))
        _check_finite("weight", self.weight, "pair")
        if (self.weight < 0).any():
            row = int(np.argmax(self.weight < 0))
            raise BadInput(f"weight: {self.weight[row]} at pair {row}; it must be at least 0")

    def __len__(self) -> int:
        """Return M, the number of pairs."""
        return len(self.prompt_ids)

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Return the pairs at `rows`, in that order."""
        return _take(self, rows)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join batches of pairs."""
        return _concatenate(cls, parts)


@dataclass(frozen=True, eq=False)
class Transitions:
    """T environment steps (s, a, r, s'), as Gymnasium names them.

    `terminated`: the environment ended in s', its value is 0. `truncated`: a time limit cut the
    episode, s' still has a value. Both may be true.
    """

    observations: np.ndarray  # [T, ...]
    actions: np.ndarray  # [T] or [T, ...]
    rewards: np.ndarray  # float32 [T]
    next_observations: np.ndarray  # [T, ...], dtype and shape of observations
    terminated: np.ndarray  # bool [T]
    truncated: np.ndarray  # bool [T]

    def __post_init__(self) -> None:
        """Check every column; the first wrong one raises a BadInput."""
        count = len(self.rewards)
        _check_array("rewards", self.rewards, np.float32, (count,))
        _check_finite("rewards", self.rewards, "step")
        for name in ("terminated", "truncated"):
            _check_array(name, getattr(self, name), np.bool_, (count,))
        for name in ("observations", "actions"):
            array = getattr(self, name)
            _check_array(name, array, array.dtype, (count, *[None] * (array.ndim - 1)))
        like = self.observations
        _check_array("next_observations", self.next_observations, like.dtype, like.shape)
        for name in ("observations", "actions", "next_observations"):
            _check_finite(name, getattr(self, name), "step")

    def __len__(self) -> int:
        """Return T, the number of steps."""
        return len(self.rewards)

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Return the steps at `rows`, in that order."""
        return _take(self, rows)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join batches of steps."""
        return _concatenate(cls, parts)

    def to_arrow(self) -> pa.Table:
        """Columns as an Arrow table; `from_arrow` gives back the same bits."""
        return _table({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """Read what `to_arrow` wrote."""
        return cls(**_columns(cls, table))


def _check_array(name: str, array: np.ndarray, dtype, shape: tuple[int | None, ...]) -> None:
    """Dtype and shape; None in `shape` stands for any length."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise BadInput(
            f"{name}: is {got}, must be a numpy array of {np.dtype(dtype)}; convert it with "
            f"np.asarray({name}, dtype=np.{np.dtype(dtype)})"
        )
    agrees = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not agrees:
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        raise BadInput(
            f"{name}: has shape {list(array.shape)}, must have {wanted}; every column describes "
            "the same rows"
        )


def _check_count(name: str, column: Sequence, count: int) -> None:
    if len(column) != count:
        raise BadInput(
            f"{name}: has {len(column)} entries, prompt_ids has {count}; every column describes "
            "the same rows"
        )


def _check_tokens(name: str, column: Sequence[np.ndarray], what: str) -> None:
    for row, ids in enumerate(column):
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int32 or ids.ndim != 1:
            got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, np.ndarray) else type(ids)
            raise BadInput(
                f"{name}: {what} {row} is {got}, must be a one-dimensional int32 array; convert "
                "it with np.asarray(ids, dtype=np.int32)"
            )
        if len(ids) == 0:
            raise BadInput(
                f"{name}: {what} {row} is empty, must hold at least one token; drop it from the "
                "data or give the model something to start from"
            )


def _check_finite(name: str, array: np.ndarray, *axes: str, rows: np.ndarray | None = None) -> None:
    """`rows` says what the rows are called: a shard's row 0 is not the data set's prompt 0."""
    if not np.issubdtype(array.dtype, np.floating):
        return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = list(bad[0])
        if rows is not None:
            index[0] = rows[index[0]]
        where = ", ".join(f"{axis} {at}" for axis, at in zip(axes, index, strict=False))
        raise BadInput(
            f"{name}: {array[tuple(bad[0])]} at {where}; must be finite ({len(bad)} in all are "
            "not). Look at what produced it: overflow in half precision is the usual cause"
        )


def _check_uniform(name: str, array: np.ndarray) -> None:
    bad = ~((array >= 0) & (array < 1))
    if bad.any():
        row = int(np.argmax(bad))
        raise BadInput(f"{name}: {array[row]} at row {row}; a uniform draw lies in [0, 1)")


def _take(batch, rows):
    rows = np.asarray(rows, dtype=np.int64)
    taken: dict[str, Any] = {}
    for field in fields(batch):
        column = getattr(batch, field.name)
        if isinstance(column, np.ndarray):
            taken[field.name] = column[rows]
        else:
            taken[field.name] = None if column is None else [column[row] for row in rows]
    return type(batch)(**taken)


def _concatenate(cls, parts):
    assert parts, "nothing to concatenate"
    joined: dict[str, Any] = {}
    for field in fields(cls):
        columns = [getattr(part, field.name) for part in parts]
        if any(column is None for column in columns):  # an optional one, not known for all
            joined[field.name] = None
        elif isinstance(columns[0], np.ndarray):
            joined[field.name] = np.concatenate(columns)
        else:
            joined[field.name] = [item for column in columns for item in column]
    return cls(**joined)


def _ragged(column: Sequence[np.ndarray]) -> pa.ListArray:
    offsets: np.ndarray = np.zeros(len(column) + 1, dtype=np.int32)
    np.cumsum([len(ids) for ids in column], out=offsets[1:])
    values = np.concatenate(column) if len(column) else np.zeros(0, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values, type=pa.int32()))


def _lists(array: pa.ListArray) -> list[np.ndarray]:
    values = np.array(array.values)
    offsets = array.offsets.to_numpy()
    return [values[start:stop] for start, stop in pairwise(offsets)]


def _joined(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    # pyarrow gives back a ChunkedArray of no chunks for a table without rows.
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def _table(columns: dict[str, np.ndarray | pa.Array]) -> pa.Table:
    """Arrays of more than one dimension become nested lists of fixed size."""
    arrays = {}
    for name, column in columns.items():
        if column is None:  # an optional one that nobody measured
            continue
        if isinstance(column, np.ndarray):
            array = pa.array(np.ascontiguousarray(column).reshape(-1))
            for size in column.shape[:0:-1]:
                array = pa.FixedSizeListArray.from_arrays(array, size)
            column = array
        arrays[name] = column
    return pa.table(arrays)


def _columns(cls, table: pa.Table) -> dict[str, Any]:
    """Inverse of `_table` for the columns that are arrays."""
    optional = {field.name for field in fields(cls) if field.default is None}
    names = [f.name for f in fields(cls) if f.name not in optional - set(table.column_names)]
    if table.column_names != names:
        raise BadInput(
            f"{cls.__name__}: columns are {table.column_names}, must be {names}; the table is of "
            "another kind or schema version"
        )
    columns = {}
    for name in names:
        array, shape = _joined(table[name]), [len(table)]
        while pa.types.is_fixed_size_list(array.type):
            shape.append(array.type.list_size)
            array = array.flatten()
        if not pa.types.is_list(array.type):
            # A copy, since torch.from_numpy warns about arrays that cannot be written.
            columns[name] = np.array(array.to_numpy(zero_copy_only=False)).reshape(shape)
    return columns
