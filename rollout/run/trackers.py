"""Where a run is shown while it goes: TensorBoard, Weights & Biases, trackio.

``metrics.jsonl`` and ``evaluations/`` are the record; trackers get the same numbers, and the first
few completions of each round as a table. Weights & Biases stays offline unless WANDB_MODE says
otherwise (`wandb sync DIR/wandb/offline-*` sends it later); trackio writes where TRACKIO_DIR says.
Both go through Accelerate's trackers. TensorBoard does not: Accelerate's brings torch, which costs
a run of the linear experiments two seconds, and its own event writer does not.

The trap: metrics count in optimizer steps and in rounds, and a tracker has one axis that may not
go back. So every number is called ``step/...`` or ``round/...`` and brings its own axis.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from reprise.rollout.errors import BadInput
from reprise.rollout.run.markdown import markdown_table
from reprise.rollout.run.settings import Settings


class Report(Settings):
    """Where a run is shown and pushed. Changes nothing that it computes, nor its config's hash."""

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=lambda: ["tensorboard"],  # type: ignore[arg-type]
        description="tensorboard (DIR/tensorboard, if installed), wandb (offline), trackio",
    )
    project: str = Field("reprise", min_length=1, description="the project in wandb and trackio")
    samples: int = Field(8, ge=0, description="completions of each round shown as a table")
    push: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Hub repository (owner/name) that gets each round's model while the run goes",
    )
    private: bool = Field(True, description="create that repository as a private one")


class Tracker(Protocol):
    """One place where numbers and tables are shown."""

    def log(self, kind: str, index: int, values: dict[str, float]) -> None:
        """Numbers of one step or round."""

    def table(self, name: str, index: int, columns: Sequence[str], rows: list[list[Any]]) -> None:
        """A table of one round."""

    def close(self) -> None:
        """Write what is not yet written."""


def check_trackers(report: Report) -> None:
    """Refuse a tracker that is not installed, before anything expensive.

    Raises:
        BadInput: names it and how to get it. TensorBoard is the default, so it may be missing.
    """
    for name in report.trackers:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise BadInput(
                f"report.trackers={report.trackers}: {name} is not installed; "
                f"`pip install {name}`, or leave it out"
            )


def open_trackers(
    report: Report, folder: Path, name: str, settings: dict[str, Any]
) -> list[Tracker]:
    """Start what `report` asks for.

    Args:
        report: which, and the project.
        folder: the run's directory.
        name: the run's name.
        settings: the resolved config, shown as hyperparameters.
    """
    opened: list[Tracker] = []
    for kind in dict.fromkeys(report.trackers):
        if kind == "wandb":
            opened.append(_WandB(report.project, folder, name, settings))
        elif kind == "trackio":
            opened.append(_Trackio(report.project, folder, name, settings))
        elif importlib.util.find_spec("tensorboard") is not None:
            opened.append(_TensorBoard(folder / "tensorboard"))
    return opened


def run_id(folder: Path) -> str:
    """The same for every continuation of a run, and another for every other directory."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(folder))

    def log(self, kind: str, index: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        entries = [
            Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in values.items()
        ]
        self._write(index, Summary(value=entries))

    def table(self, name: str, index: int, columns: Sequence[str], rows: list[list[Any]]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        text = markdown_table(columns, rows).encode()
        tensor = TensorProto(dtype="DT_STRING", string_val=[text], tensor_shape=shape)
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        metadata = SummaryMetadata(plugin_data=plugin)
        value = Summary.Value(tag=f"{name}/text_summary", metadata=metadata, tensor=tensor)
        self._write(index, Summary(value=[value]))

    def _write(self, index: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(step=index, wall_time=time.time(), summary=summary))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, project: str, folder: Path, name: str, settings: dict[str, Any]) -> None:
        import wandb
        from accelerate import PartialState
        from accelerate.tracking import WandBTracker

        PartialState()  # Accelerate's trackers ask it which process this is
        mode = os.environ.get("WANDB_MODE", "offline")
        self.tracker = WandBTracker(
            project,
            name=name,
            id=run_id(folder),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            mode=mode,
            resume="allow" if mode == "online" else None,
            # No copy of what the terminal shows, no host name, no command line.
            settings=wandb.Settings(console="off", silent=True, x_disable_meta=True),
        )
        self.tracker.start()
        self.tracker.store_init_configuration(settings)
        for axis in ("step", "round"):
            self.tracker.run.define_metric(axis, hidden=True)
            self.tracker.run.define_metric(f"{axis}/*", step_metric=axis)

    def log(self, kind: str, index: int, values: dict[str, float]) -> None:
        self.tracker.log({kind: index, **{f"{kind}/{name}": x for name, x in values.items()}})

    def table(self, name: str, index: int, columns: Sequence[str], rows: list[list[Any]]) -> None:
        # A name for each round: the page of a run shows only the last table of one name.
        self.tracker.log_table(f"{name}/round-{index:05d}", columns=list(columns), data=rows)

    def close(self) -> None:
        self.tracker.finish()


class _Trackio:
    def __init__(self, project: str, folder: Path, name: str, settings: dict[str, Any]) -> None:
        from accelerate import PartialState
        from accelerate.tracking import TrackioTracker

        PartialState()
        self.tracker = TrackioTracker(
            project,
            name=f"{name}-{run_id(folder)[:6]}",
            config=settings,
            resume="allow",
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.tracker.start()

    def log(self, kind: str, index: int, values: dict[str, float]) -> None:
        self.tracker.log({f"{kind}/{name}": x for name, x in values.items()}, step=index)

    def table(self, name: str, index: int, columns: Sequence[str], rows: list[list[Any]]) -> None:
        import pandas
        import trackio

        frame = pandas.DataFrame(rows, columns=list(columns))
        self.tracker.log({name: trackio.Table(dataframe=frame)}, step=index)

    def close(self) -> None:
        self.tracker.finish()
