"""How a run has to be launched, as a config says it; no torch, so that it is checked at once.

Launchers fall back without a word: to one process, to plain data parallelism (FSDP on CPU), to
nothing sharded. A run of weeks that was meant for eight processes must not begin on one. The number
and the launcher's intention are compared before anything loads (`launch.processes`), what
Accelerate makes of it before the first sample is drawn, and the shards that parameters really are
in before the first step (`alignment.sharding`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from reprise.rollout.errors import BadInput
from reprise.rollout.run.settings import Settings

Strategy = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
SHARDED = ("fsdp2", "zero3")  # those that split parameters; zero2 splits gradients and moments


class Parallelism(Settings):
    """What the launch must provide; null: whatever it provides.

    Every process samples with a whole policy; the strategy is about the update.
    """

    processes: int | None = Field(None, ge=1, description="processes, over all nodes")
    strategy: Strategy | None = Field(
        None, description="single, ddp, or what parameters (fsdp2, zero3) or moments are sharded by"
    )
    shards: int | None = Field(
        None,
        ge=2,
        description="pieces of each parameter; null: with fsdp2 and zero3 one for each process",
    )

    @model_validator(mode="after")
    def _only_sharded_parameters_have_shards(self) -> Parallelism:
        if self.shards is not None and self.strategy not in (*SHARDED, None):
            raise BadInput(
                f"shards={self.shards}: {self.strategy} does not shard parameters; leave it out, "
                f"or choose one of {', '.join(SHARDED)}"
            )
        if self.strategy == "single" and (self.processes or 1) > 1:
            raise BadInput(f"strategy=single cannot have processes={self.processes}")
        return self


def launched_strategy(environment: Mapping[str, str], world: int) -> str:
    """The strategy that Accelerate's launcher asks for in the environment of its processes."""
    if environment.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return f"fsdp{environment.get('FSDP_VERSION', '1')}"
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if file != "none":
            written = json.loads(Path(file).read_text(encoding="utf-8"))
            stage = written.get("zero_optimization", {}).get("stage", 0)
        return f"zero{stage}"
    return "ddp" if world > 1 else "single"
