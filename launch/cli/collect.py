"""`reprise collect CONFIG`: a trained policy's games as a Minari data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from reprise.launch.config import ConfigError, load
from reprise.launch.run import execute

BASE = "quickstart/collect_breakout"


def collect(config: str, overrides: Sequence[str], out: Path | None) -> Path:
    """Run a config of rl.collect, or record the run directory `config`.

    Args:
        config: a YAML file, a shipped name, or a run directory of rl.pqn; the latter needs at
            least ``to=ID`` among the overrides.
        overrides: ``key.path=value``.
        out: the run's directory [default: for a run directory runs/collect/ID].

    Returns:
        The directory of the recording run; the data set itself is where Minari keeps its own.

    Raises:
        ConfigError: bad input.
    """
    if Path(config).is_dir():
        named = [text.removeprefix("to=") for text in overrides if text.startswith("to=")]
        if not named:
            raise ConfigError(
                f"{config} is a run directory: say what to call the data set, to=ID, "
                "e.g. to=breakout/pqn-v0"
            )
        instead = ["needs=[]", f"policy={json.dumps(config)}"]
        if any(text.startswith("observations=") for text in overrides):
            instead.append("episodes=null")
        overrides = [*instead, *overrides]
        config, out = BASE, out or Path("runs/collect") / named[-1]
    settings = load(config, overrides)
    if settings.experiment != "rl.collect":
        raise ConfigError(
            f"{config}: experiment is {settings.experiment}; `reprise collect` takes rl.collect, "
            "`reprise run` any"
        )
    return execute(config, overrides, out)
