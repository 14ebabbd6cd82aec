"""Where a result comes from: code, packages, machine, command. No names, no home folders."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reprise.rollout.run.remote import HIDDEN, is_secret_name, redact

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "pydantic",
    "gymnasium",
    "ale-py",
    "d3rlpy",
    "minari",
)


def code_revision() -> tuple[str, bool]:
    """The commit of the source tree and whether tracked files differ from it.

    An installed package has no commit: its version stands in, and it cannot be dirty.
    """
    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    return "reprise-" + _version("reprise-rl"), False


def provenance(threads: int, world: int) -> dict[str, Any]:
    """What `provenance.json` holds about one start of a run. Loads torch: pin the threads first."""
    revision, dirty = code_revision()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "code_revision": revision,
        "code_dirty": dirty,
        "command": command_line(sys.argv),
        "world_size": world,
        "threads": threads,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "instruction_set": instruction_set(),
        "cores": cores(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def command_line(arguments: list[str]) -> list[str]:
    """The command as given, with secrets blanked and the home folder as ``~``."""
    home = str(Path.home())
    shown = [Path(arguments[0]).name]
    hide_next = False
    for argument in arguments[1:]:
        key, equals, _ = argument.partition("=")
        if hide_next:
            argument = HIDDEN
        elif equals and is_secret_name(key):
            argument = f"{key}={HIDDEN}"
        hide_next = not equals and key.startswith("-") and is_secret_name(key)
        if len(home) > 1:
            argument = argument.replace(home, "~")
        shown.append(redact(argument))
    return shown


def cores() -> int:
    """Cores that this process may use, which a container or `taskset` may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_features(wanted: tuple[str, ...]) -> list[str]:
    """Which of the instructions `wanted` the processor has, by the kernel's names for them."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return []
    words = set(information.read_text(encoding="utf-8", errors="replace").split())
    return [feature for feature in wanted if feature in words]


def instruction_set() -> str:
    """``torch AVX512, OpenBLAS SkylakeX, avx512_bf16``: whose kernels compute in this process.

    Torch and NumPy's BLAS choose by the processor, or as ATEN_CPU_CAPABILITY and
    OPENBLAS_CORETYPE say. Other kernels add in another order, so the last bits differ. Loads both.
    """
    parts = []
    if importlib.util.find_spec("torch") is not None:
        import torch

        parts.append(f"torch {torch.backends.cpu.get_cpu_capability()}")
    parts.append(_blas())
    return ", ".join([part for part in parts if part] + cpu_features(("avx512_bf16", "amx_bf16")))


def _blas() -> str:
    """NumPy's BLAS and the core that it computes for, where it tells; another's has no say."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return ""
    import numpy  # noqa: F401 (loads the library that is asked)
    from threadpoolctl import threadpool_info

    found = [one for one in threadpool_info() if one["user_api"] == "blas"]
    found.sort(key=lambda one: "numpy" not in one["filepath"])
    if not found:
        return ""
    name = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS"}.get(
        found[0]["internal_api"], found[0]["internal_api"]
    )
    return f"{name} {found[0].get('architecture') or ''}".strip()


def starts(run: Path) -> list[dict[str, Any]]:
    """Every start of a run, the first one first; none where it was not started here."""
    file = run / "provenance.json"
    if not file.is_file():
        return []
    first = json.loads(file.read_text(encoding="utf-8"))
    return [first, *first.get("resumed", [])]


def unlike(earlier: dict[str, Any], here: str, when: str = "the earlier start") -> str | None:
    """What to tell of a start with another instruction set than `here`; None: the same.

    A start that an older version recorded has none, and nothing can be said.
    """
    there = earlier.get("instruction_set")
    if there is None or there == here:
        return None
    return f"{there} at {when}, {here} now; bits may differ"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # git is not installed
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
