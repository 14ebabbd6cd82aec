"""Where a result comes from: code, packages, machine, command. No names, no home folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rollout.remote import HIDDEN, is_secret_name, redact

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
    return f"reprise-{_version('reprise')}", False


def provenance(threads: int, world: int) -> dict[str, Any]:
    """What `provenance.json` holds about one start of a run."""
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
