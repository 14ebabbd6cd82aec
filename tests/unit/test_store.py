"""RoundStore without faults: what is written is read, once, in order, and resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reprise.rollout.store import RoundStore, shard_rows
from reprise.rollout.types import Completions, Transitions

METADATA = {
    "config_sha256": "c" * 64,
    "code_revision": "abc",
    "policy": "p" * 64,
    "reward_model": "r" * 64,
    "random_state": {"seed": 3, "range": (1, 2)},
}


def batch(rows: int = 10, seed: int = 0) -> Completions:
    draws = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return draws.integers(0, 50_000, size=draws.integers(1, 9), dtype=np.int32)

    return Completions(
        prompt_index=np.arange(rows),
        prompt_ids=[ids() for _ in range(rows)],
        completion_ids=[[ids(), ids()] for _ in range(rows)],
        terminated=draws.random((rows, 2)) < 0.5,
        rewards=draws.standard_normal((rows, 2)).astype(np.float32),
        policy_logprobs=-draws.random((rows, 2)).astype(np.float32),
        reference_logprobs=-draws.random((rows, 2)).astype(np.float32),
        label_uniform=draws.random(rows),
    )


def write_round(store: RoundStore, index: int, data: Completions, shards: int = 3) -> dict:
    writer = store.writer(index, shards, METADATA)
    for shard in writer.missing():
        writer.write(shard, data.take(shard_rows(len(data), shards, shard)))
    return writer.finish(ties=4)


@pytest.mark.parametrize("rows", [0, 1, 10, 11, 12])
@pytest.mark.parametrize("shards", [1, 3, 7])
def test_shards_deal_out_every_row_once_and_evenly(rows, shards):
    dealt = [shard_rows(rows, shards, shard) for shard in range(shards)]
    assert [row for part in dealt for row in part] == list(range(rows))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_what_is_written_is_read(tmp_path):
    store, data = RoundStore(tmp_path / "rounds"), batch()
    manifest = write_round(store, 2, data)
    stored = store.read(2)
    assert stored.data.to_arrow().equals(data.to_arrow())
    assert stored.index == 2
    assert stored.manifest == json.loads(json.dumps(manifest))
    assert manifest["rows"] == 10 and manifest["counts"] == {"ties": 4}
    assert manifest["kind"] == "completions" and manifest["round"] == 2
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 3, 4]
    for key, value in METADATA.items():
        assert stored.manifest[key] == json.loads(json.dumps(value))
    assert sorted(path.name for path in store.path(2).iterdir()) == [
        "manifest.json",
        "shard-00000.parquet",
        "shard-00001.parquet",
        "shard-00002.parquet",
    ]


def test_transitions_are_stored_too(tmp_path):
    steps = Transitions(
        observations=np.random.default_rng(0).standard_normal((5, 4)),
        actions=np.arange(5),
        rewards=np.ones(5, dtype=np.float32),
        next_observations=np.zeros((5, 4)),
        terminated=np.zeros(5, dtype=bool),
        truncated=np.ones(5, dtype=bool),
    )
    store = RoundStore(tmp_path)
    writer = store.writer(0, 1, METADATA | {"reward_model": None}, kind="transitions")
    writer.write(0, steps)
    writer.finish()
    assert store.read(0).data.to_arrow().equals(steps.to_arrow())


def test_rounds_without_a_manifest_are_unfinished(tmp_path):
    store = RoundStore(tmp_path)
    assert store.rounds() == [] and store.unfinished() == []
    for index in (10, 2):
        write_round(store, index, batch(4), 2)
    store.writer(3, 2, METADATA).write(1, batch(2))
    (tmp_path / "notes").mkdir()
    assert store.rounds() == [2, 10] and store.unfinished() == [3]
    assert store.verify()[2] is None and store.verify()[10] is None
    assert "round 3 is unfinished" in store.verify()[3]


def test_a_round_resumes_at_the_missing_shards(tmp_path):
    data = batch()
    first = RoundStore(tmp_path).writer(0, 4, METADATA)
    assert first.missing() == [0, 1, 2, 3]
    for shard in (0, 2):
        first.write(shard, data.take(shard_rows(10, 4, shard)))
    kept = {path: path.stat() for path in tmp_path.rglob("*.parquet")}
    # Another commit may continue a round; it is not part of the round's identity.
    again = RoundStore(tmp_path).writer(0, 4, METADATA | {"code_revision": "later"})
    assert again.missing() == [1, 3]
    for shard in (3, 1):
        again.write(shard, data.take(shard_rows(10, 4, shard)))
    again.finish()
    for path, before in kept.items():
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    stored = RoundStore(tmp_path).read(0)
    assert stored.data.to_arrow().equals(data.to_arrow())
    assert stored.manifest["code_revision"] == "later"


def test_shards_belong_to_ranks(tmp_path):
    writer = RoundStore(tmp_path).writer(0, 7, METADATA)
    assert [writer.missing(rank, 3) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    writer.write(3, batch(2))
    assert writer.missing(0, 3) == [0, 6]


def test_the_same_data_gives_the_same_bytes_in_another_process(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_store as t;"
        "t.write_round(t.RoundStore(sys.argv[1]), 0, t.batch(), 2)"
    )
    shas = []
    for seed in ("1", "2"):
        root = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", program, str(root), str(Path(__file__).parent)],
            check=True,
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        shas.append([shard["sha256"] for shard in RoundStore(root).manifest(0)["shards"]])
    assert shas[0] == shas[1] and len(set(shas[0])) == 2
    # Nor does it matter how the rows came to be in memory.
    other = Completions.concatenate([batch().take(range(5)), batch().take(range(5, 10))])
    write_round(RoundStore(tmp_path / "3"), 0, other, 2)
    stored = RoundStore(tmp_path / "3").manifest(0)["shards"]
    assert [shard["sha256"] for shard in stored] == shas[0]


def test_a_finished_round_is_immutable(tmp_path):
    store = RoundStore(tmp_path)
    write_round(store, 0, batch(), 2)
    with pytest.raises(ValueError, match=r"round-00000: finished; rounds are immutable"):
        store.writer(0, 2, METADATA)


def test_a_shard_is_not_written_twice(tmp_path):
    writer = RoundStore(tmp_path).writer(0, 2, METADATA)
    writer.write(0, batch(3))
    with pytest.raises(ValueError, match=r"shard-00000.parquet: exists; ask missing"):
        writer.write(0, batch(3, seed=1))


def test_metadata_must_say_what_made_the_round(tmp_path):
    lacking = {key: METADATA[key] for key in ("config_sha256", "code_revision", "policy")}
    with pytest.raises(ValueError, match=r"lacks reward_model, random_state; .*give None"):
        RoundStore(tmp_path).writer(0, 1, lacking)
    assert list(tmp_path.iterdir()) == []
