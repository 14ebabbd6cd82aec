"""Trainer checkpoints that are whole or ignored, and from which a killed run continues exactly.

A checkpoint is complete once its marker, which lists the size of each file, is written: after
everything else has been flushed to disk. transformers alone would resume from a torn one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from reprise.rollout import files

MARKER = "complete.json"  # the last file written into a Trainer checkpoint; torn ones lack it


def mark_complete(checkpoint: str | os.PathLike[str]) -> None:
    """Flush every file of a checkpoint to disk, then write its marker, which lists their sizes."""
    folder = Path(checkpoint)
    sizes = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name != MARKER:
            files.sync(file)
            sizes[str(file.relative_to(folder))] = file.stat().st_size
    files.write_json(folder / MARKER, sizes)


def last_complete_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest `checkpoint-N` in `folder` with a marker and all files it lists, or None."""
    found = files.numbered(Path(folder), "checkpoint")
    for checkpoint in reversed(found.values()):
        if not (checkpoint / MARKER).is_file():
            continue
        sizes = json.loads((checkpoint / MARKER).read_text())
        if all(
            (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
            for name, size in sizes.items()
        ):
            return str(checkpoint)
    return None
