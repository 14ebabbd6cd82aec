"""Runs from Python: `reprise.run("quickstart/bandit", seed=1).summary`.

A run from Python is a run: the same directory, checks and resumption as `reprise run`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprise.launch.config import EXPERIMENTS, config_sha256, description, load, read, shipped
from reprise.launch.run import execute
from reprise.rollout.run.run_dir import metrics_of

if TYPE_CHECKING:
    import pandas

    from reprise.rollout.store import RoundStore


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        path: its directory.
    """

    path: Path

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` says."""
        return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> pandas.DataFrame:
        """The lines of ``metrics.jsonl``, a column for each number."""
        import pandas

        return pandas.DataFrame(metrics_of(self.path))

    @property
    def rounds(self) -> RoundStore:
        """The experience that the run stored."""
        from reprise.rollout.store import RoundStore

        return RoundStore(self.path / "rounds")

    def load_model(self) -> Any:
        """The final policy, reward model or Q-network, evaluated.

        Raises:
            BadInput: the run leaves no model.
        """
        final = self.path / "checkpoints" / "final"
        if (final / "network.json").is_file():
            from reprise.rl.networks import load_policy as load_network

            return load_network(final)[0]
        from reprise.alignment.models import load_policy, load_reward_model

        kind = json.loads((final / "config.json").read_text(encoding="utf-8"))
        is_reward = any("Classification" in name for name in kind.get("architectures") or ())
        return (load_reward_model if is_reward else load_policy)(str(self.path)).eval()


def run(
    config: str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Result:
    """Run a config to its end, or as far as it still has to go.

    Args:
        config: path of a YAML file, name of a shipped config, or the settings themselves.
        out: the run's directory; by default that of `reprise run`, and of settings
            ``runs/python/<experiment>-<the first of their hash>``.
        overrides: keys of the config, with ``__`` for a point: ``sampling__temperature=0.5``.

    Returns:
        The finished run.

    Raises:
        ConfigError: the config is wrong; every problem at once.
        BadInput: something that it names cannot be used.
    """
    given = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in overrides.items()]
    if not isinstance(config, Mapping):
        return Result(execute(config, given, out))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        settings = load(file, given)
        name = f"{settings.experiment}-{config_sha256(settings)[:12]}"
        return Result(execute(file, given, out or Path("runs") / "python" / name))


def listed() -> dict[str, dict[str, Any]]:
    """Experiments with their descriptions; shipped configs with experiment and description."""
    configs = {
        name: {"experiment": read(path).get("experiment"), "description": description(path)}
        for name, path in shipped().items()
    }
    return {
        "experiments": {name: entry.description for name, entry in EXPERIMENTS.items()},
        "configs": configs,
    }
