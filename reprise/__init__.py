"""Reprise: on-policy preference learning, replicable reinforcement learning, dataset distillation.

The packages are folders of their own at the top of the repository, and one import name here:
`reprise.rollout`, `reprise.alignment`, `reprise.rl`, `reprise.distill`, `reprise.launch`. A wheel
carries them inside this folder; in a clone they lie beside it.
"""

from importlib import metadata
from pathlib import Path

_beside = Path(__file__).resolve().parent.parent
if (_beside / "pyproject.toml").is_file():
    __path__.append(str(_beside))

try:
    __version__ = metadata.version("reprise-rl")
except metadata.PackageNotFoundError:  # a clone that was never installed
    __version__ = "0+unknown"
