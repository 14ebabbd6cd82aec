"""What the config of every experiment has, whatever its family."""

from __future__ import annotations

from pydantic import Field

from reprise.rollout.run.settings import Settings
from reprise.rollout.run.trackers import Report


class Experiment(Settings):
    """Base of every experiment's config; a subclass says its name, and adds its settings.

    Attributes:
        experiment: its name, a key of `launch.config.EXPERIMENTS`; a Literal in a subclass.
        seed: of its random streams; a subclass may say of which.
        needs: shipped configs whose finished runs it starts from.
        report: trackers and pushes; no part of the config's hash.
    """

    experiment: str
    seed: int = Field(0, ge=0, description="seed of every random stream")
    needs: list[str] = Field(
        default_factory=list, description="configs whose runs this one uses; made first if missing"
    )
    report: Report = Field(Report(), description="where the run is shown and pushed")
