"""Reprise: on-policy preference learning, replicable reinforcement learning, dataset distillation.

The packages are folders of their own at the top of the repository, and one import name here:
`reprise.rollout`, `reprise.alignment`, `reprise.rl`, `reprise.distill`, `reprise.launch`. A wheel
carries them inside this folder; in a clone they lie beside it.

From Python: `reprise.run(config, out=..., **overrides)` gives a `Result`; `reprise.load` checks a
config, `reprise.list` names them; and some pieces that stand alone. Each is imported when it is
asked for.
"""

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any

_beside = Path(__file__).resolve().parent.parent
if (_beside / "pyproject.toml").is_file():
    __path__.append(str(_beside))

try:
    __version__ = metadata.version("reprise-rl")
except metadata.PackageNotFoundError:  # a clone that was never installed
    __version__ = "0+unknown"

_LAZY = {
    "run": ("reprise.launch.python", "run"),
    "Result": ("reprise.launch.python", "Result"),
    "list": ("reprise.launch.python", "listed"),
    "load": ("reprise.launch.config", "load"),
    "RoundStore": ("reprise.rollout.store", "RoundStore"),
    "Streams": ("reprise.rollout.randomness", "Streams"),
    "q_lambda": ("reprise.rollout.returns", "q_lambda"),
    "pair_losses": ("reprise.alignment.objectives", "pair_losses"),
    "hypergrid_rounding": ("reprise.rl.replicable.rounding", "hypergrid_rounding"),
    "ridge": ("reprise.rl.replicable.regression", "ridge"),
    "Quantizer": ("reprise.rl.quantize", "Quantizer"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'reprise' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """Names that there are, those not yet imported too."""
    return sorted([*globals(), *_LAZY])
