"""The cells of a grid, each computed once: a killed run continues with the next one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from reprise.rollout.run.run_dir import RunDir

Arrays = dict[str, np.ndarray]


def each(
    run_dir: RunDir, names: Sequence[str], work: Callable[[int], Arrays], what: str
) -> list[Arrays]:
    """Compute `work(i)` for every cell and keep its arrays in ``checkpoints/<name>``.

    Arrays whose names start with "weights" are results; `seal` hashes them.
    """
    results = []
    with run_dir.progress(what, len(names), "cells") as progress:
        for index, name in enumerate(names):
            if not (run_dir.checkpoints / name / "arrays.npz").exists():
                run_dir.cut_metrics(lambda record, index=index: record["step"] < index)  # type: ignore[misc]
                arrays = work(index)
                numbers = {
                    key: float(value) for key, value in arrays.items() if np.ndim(value) == 0
                }
                run_dir.log(step=index, cell=name, **numbers)
                with run_dir.checkpoint(name) as folder:
                    np.savez(folder / "arrays.npz", **arrays)
            results.append(_load(run_dir.checkpoints / name / "arrays.npz"))
            progress.advance()
    return results


def seal(run_dir: RunDir, names: Sequence[str], results: Sequence[Mapping[str, np.ndarray]]) -> str:
    """Gather all weights in ``checkpoints/final/weights.npz``; return their SHA-256."""
    weights = {
        f"{name}/{key}": value
        for name, arrays in zip(names, results, strict=True)
        for key, value in arrays.items()
        if key.startswith("weights")
    }
    with run_dir.checkpoint("final") as folder:
        np.savez(folder / "weights.npz", **weights)
    return arrays_sha256(weights)


def arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over each array's name, dtype, shape and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _load(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
