"""Trainer checkpoints that are whole or ignored, and from which a killed run continues exactly.

A checkpoint is complete once its marker, which lists the size of each file, is written: after
everything else has been flushed to disk. transformers alone would resume from a torn one.

A request to end (SIGTERM) is granted after the optimizer step in progress, with a checkpoint, in
the same step in every process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from reprise.alignment.models import load_weights_strictly
from reprise.rollout import files
from reprise.rollout.run import interruption

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
    newest = sorted(
        Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    for checkpoint in reversed(newest):
        if not (checkpoint / MARKER).is_file():
            continue
        sizes = json.loads((checkpoint / MARKER).read_text())
        if all(
            (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
            for name, size in sizes.items()
        ):
            return str(checkpoint)
    return None


class StrictCheckpoints:
    """Mix in before `transformers.Trainer`: checkpoints are whole, and loaded strictly.

    `train(resume_from_checkpoint=last_complete_checkpoint(output_dir))` then continues a killed
    run to the same bits. Keep `save_total_limit` at 2 or more: the old checkpoint is deleted
    before the marker of the new one is written.
    """

    _ended = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train to the end, or until asked to end; raises `Preempted` after a checkpoint then."""
        with interruption.deferred():
            result = super().train(*args, **kwargs)  # type: ignore[misc]
            if self._ended:
                raise interruption.Preempted
        return result

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if not self._ended and self._all_are_asked_to_end():
            self._ended = True
            self.control.should_save = True  # type: ignore[attr-defined]
            self.control.should_training_stop = True  # type: ignore[attr-defined]
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _all_are_asked_to_end(self) -> bool:
        """Whether any process was asked: the signal may reach them in different steps."""
        asked = interruption.asked()
        if self.args.world_size == 1:  # type: ignore[attr-defined]
            return asked
        here = torch.tensor([asked], device=self.args.device)  # type: ignore[attr-defined]
        return bool(self.accelerator.gather(here).any())  # type: ignore[attr-defined]

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except (OSError, RuntimeError, SafetensorError) as error:
            explained = files.explain_full_disk(error, Path(self.args.output_dir))  # type: ignore[attr-defined]
            if explained is error:
                raise
            raise explained from error
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]
        if self.args.should_save:  # type: ignore[attr-defined]
            step = self.state.global_step  # type: ignore[attr-defined]
            mark_complete(Path(self.args.output_dir) / f"checkpoint-{step}")  # type: ignore[attr-defined]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # type: ignore[attr-defined]
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            load_weights_strictly(self.model, resume_from_checkpoint)  # type: ignore[attr-defined]

    def _load_best_model(self) -> None:
        load_weights_strictly(self.model, self.state.best_model_checkpoint)  # type: ignore[attr-defined]
