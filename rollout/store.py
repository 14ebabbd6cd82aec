"""RoundStore: where experience lives. Rounds are immutable, checksummed and written once.

    root/round-00003/shard-00000.parquet   columns of `rollout.types`, one file a shard
                     shard-00000.json      its SHA-256 and identity, until the manifest has them
                     ...
                     manifest.json         written last; a round without one is unfinished

A file is flushed under a temporary name and renamed, and a shard's description precedes it, so a
shard with its name is a whole one that can be checked. A run killed at any moment goes on with
the next shard. A shard of another config, policy or seed is refused, not mixed in. The same data
gives the same Parquet bytes: nothing in them depends on time, process or host.

Under several processes, shard i belongs to rank i % world: no two write the same file, and there
is nothing to lock. The manifest is the main process's, after the caller's barrier.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reprise.rollout.errors import BadInput
from reprise.rollout.files import numbered, seal_of, write_bytes, write_json
from reprise.rollout.types import Completions, Transitions

SCHEMA_VERSION = 1
KINDS: dict[str, type[Completions] | type[Transitions]] = {
    "completions": Completions,
    "transitions": Transitions,
}
REQUIRED_METADATA = ("config_sha256", "code_revision", "policy", "reward_model", "random_state")
RESERVED = {"schema_version", "kind", "round", "of_shards", "rows", "counts", "shards", "seal"}
# A run may continue under another commit; under another config, policy or seed it may not.
NOT_IDENTITY = ("code_revision",)


class CorruptRoundError(BadInput):
    """A stored file is torn, altered, missing, or belongs to something else."""


@dataclass(frozen=True)
class Round:
    """A verified round: its number, its columns and its manifest."""

    index: int
    data: Completions | Transitions
    manifest: dict[str, Any]


def shard_rows(rows: int, shards: int, index: int) -> range:
    """Rows of shard `index` when `rows` are dealt out in order, as evenly as can be."""
    return range(index * rows // shards, (index + 1) * rows // shards)


class RoundStore:
    """All rounds under `root`. Opening a round verifies it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, index: int) -> Path:
        """Folder of a round, whether it exists or not."""
        return self.root / f"round-{index:05d}"

    def rounds(self) -> list[int]:
        """Finished rounds, in order."""
        return [index for index in self._all() if (self.path(index) / "manifest.json").exists()]

    def unfinished(self) -> list[int]:
        """Rounds that have begun and have no manifest yet."""
        return sorted(set(self._all()) - set(self.rounds()))

    def manifest(self, index: int) -> dict[str, Any]:
        """Return the manifest of a finished round, checked by itself but not against the shards.

        Raises:
            CorruptRoundError: missing, torn or altered, or of another schema version.
        """
        path = self.path(index) / "manifest.json"
        if not path.exists():
            state = "is unfinished" if path.parent.exists() else "does not exist"
            raise CorruptRoundError(
                f"{path.parent}: round {index} {state}: it has no manifest.json; finish the run "
                f"that writes it (finished rounds here: {self.rounds()})"
            )
        try:
            manifest = json.loads(path.read_bytes())
            version, seal = manifest["schema_version"], manifest["seal"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptRoundError(f"{path}: torn or not a manifest ({error})") from error
        if version != SCHEMA_VERSION:
            raise CorruptRoundError(
                f"{path}: schema version {version}, this code reads {SCHEMA_VERSION}; read it "
                f"with the code revision that wrote it ({manifest.get('code_revision')})"
            )
        if seal != seal_of(manifest):
            raise CorruptRoundError(f"{path}: altered after it was written; restore it")
        if manifest["round"] != index:
            raise CorruptRoundError(
                f"{path}: is the manifest of round {manifest['round']}; restore round {index}'s own"
            )
        return manifest

    def read(self, index: int) -> Round:
        """Read and verify a finished round.

        Raises:
            CorruptRoundError: the manifest or a shard is missing, torn, altered or misplaced.
        """
        manifest = self.manifest(index)
        tables = [
            _read_shard(self.path(index) / shard["file"], shard["sha256"])
            for shard in manifest["shards"]
        ]
        data = KINDS[manifest["kind"]].from_arrow(pa.concat_tables(tables))
        if len(data) != manifest["rows"]:
            raise CorruptRoundError(
                f"{self.path(index)}: {len(data)} rows, the manifest says {manifest['rows']}"
            )
        return Round(index, data, manifest)

    def verify(self) -> dict[int, str | None]:
        """Check every round: None for a sound one, otherwise what is wrong with it."""
        result: dict[int, str | None] = {}
        for index in self._all():
            try:
                self.read(index)
                result[index] = None
            except CorruptRoundError as error:
                result[index] = str(error)
        return result

    def writer(
        self, index: int, shards: int, metadata: dict[str, Any], kind: str = "completions"
    ) -> RoundWriter:
        """Begin a round, or continue an unfinished one.

        Args:
            index: number of the round.
            shards: number of files; more than processes, so that little is lost when killed.
            metadata: JSON values; REQUIRED_METADATA at least, None where not applicable. All but
                `code_revision` is the round's identity and must be the same to continue it.
            kind: "completions" or "transitions".

        Raises:
            BadInput: the round is finished, or metadata lacks a key.
        """
        assert kind in KINDS and shards >= 1 and not RESERVED & metadata.keys()
        lacking = [key for key in REQUIRED_METADATA if key not in metadata]
        if lacking:
            raise BadInput(
                f"metadata: lacks {', '.join(lacking)}; a round records what made it, give None "
                "for what does not apply"
            )
        if (self.path(index) / "manifest.json").exists():
            raise BadInput(f"{self.path(index)}: finished; rounds are immutable, read it instead")
        return RoundWriter(self.path(index), index, shards, metadata, kind)

    def _all(self) -> list[int]:
        return list(numbered(self.root, "round"))


class RoundWriter:
    """Writes the shards of one round, in any order, then the manifest. See `RoundStore.writer`."""

    def __init__(
        self, path: Path, index: int, shards: int, metadata: dict[str, Any], kind: str
    ) -> None:
        self.path, self.shards, self.kind, self.metadata = path, shards, kind, metadata
        self.identity = {
            "schema_version": SCHEMA_VERSION,
            "kind": kind,
            "round": index,
            "of_shards": shards,
            **{key: value for key, value in metadata.items() if key not in NOT_IDENTITY},
        }
        # As it reads after a trip through JSON, where tuples become lists.
        self.identity = json.loads(_canonical(self.identity))
        path.mkdir(parents=True, exist_ok=True)

    def missing(self, rank: int = 0, world: int = 1) -> list[int]:
        """Shards that `rank` still has to write, after verifying the ones it already has.

        Raises:
            CorruptRoundError: a shard is torn, altered, or of another config, policy or seed.
        """
        absent = []
        for shard in range(rank, self.shards, world):
            self._remove_partial(self._file(shard).stem)
            if self._file(shard).exists():
                self._verified(shard)
            else:
                absent.append(shard)
        return absent

    def write(self, shard: int, batch: Completions | Transitions) -> None:
        """Write one shard; once this returns it survives a kill and a power cut.

        Raises:
            BadInput: the shard exists; it is never written twice.
            OSError: the disk is full or not writable; nothing half-written is left.
        """
        assert 0 <= shard < self.shards and isinstance(batch, KINDS[self.kind])
        file = self._file(shard)
        if file.exists():
            raise BadInput(f"{file}: exists; ask missing() what is left to write")
        data = _parquet(batch.to_arrow())
        description = {
            "file": file.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "rows": len(batch),
            "identity": self.identity,
        }
        description["seal"] = seal_of(description)
        write_json(file.with_suffix(".json"), description)
        write_bytes(file, data)

    def finish(self, **counts: Any) -> dict[str, Any]:
        """Verify every shard, then write the manifest: the round is finished and immutable.

        For the main process alone, after a barrier. `counts` (JSON values, such as ties or
        truncated completions) go into the manifest.
        """
        missing = [shard for shard in range(self.shards) if not self._file(shard).exists()]
        if missing:
            raise CorruptRoundError(
                f"{self.path}: shards {missing} are not written yet; every process has to write "
                "its own before the round can be finished"
            )
        shards = [self._verified(shard) for shard in range(self.shards)]
        manifest = {
            **self.identity,
            **{key: self.metadata[key] for key in NOT_IDENTITY},
            "rows": sum(shard["rows"] for shard in shards),
            "counts": counts,
            "shards": shards,
        }
        manifest["seal"] = seal_of(manifest)
        self._remove_partial("manifest")
        write_json(self.path / "manifest.json", manifest)
        for shard in range(self.shards):
            self._file(shard).with_suffix(".json").unlink()
        return manifest

    def _file(self, shard: int) -> Path:
        return self.path / f"shard-{shard:05d}.parquet"

    def _remove_partial(self, stem: str) -> None:
        """Remove what a killed process left half-written under its temporary name."""
        for leftover in self.path.glob(f".{stem}.*.partial"):
            leftover.unlink()

    def _verified(self, shard: int) -> dict[str, Any]:
        """Return the manifest's entry of a shard that is whole, unaltered and of this round."""
        file = self._file(shard)
        try:
            description = json.loads(file.with_suffix(".json").read_bytes())
            seal = description.pop("seal")
            if seal != seal_of(description):
                raise BadInput("altered after it was written")
            identity = description.pop("identity")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptRoundError(
                f"{file}: its description {file.stem}.json is unusable ({error}); delete "
                "the shard, and the run makes it again"
            ) from error
        if identity != self.identity:
            raise CorruptRoundError(_difference(file, identity, self.identity))
        _check_sha256(file, file.read_bytes(), description["sha256"])
        return description


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", version="2.6")
    return sink.getvalue().to_pybytes()


def _read_shard(path: Path, sha256: str) -> pa.Table:
    if not path.exists():
        raise CorruptRoundError(f"{path}: missing, though the manifest lists it; restore it")
    data = path.read_bytes()
    _check_sha256(path, data, sha256)
    return pq.read_table(pa.BufferReader(data), use_threads=False)


def _check_sha256(path: Path, data: bytes, sha256: str) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptRoundError(
            f"{path}: torn or altered: its SHA-256 is not the one noted when it was written; "
            "restore it from a copy, or delete it to have it made again"
        )


def _difference(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    changes = "; ".join(
        f"{key} is {stored.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key) != wanted.get(key)
    )
    return (
        f"{path}: belongs to something else: {changes}. Continue with what began the round, or "
        f"delete {path.parent} to make it anew"
    )
