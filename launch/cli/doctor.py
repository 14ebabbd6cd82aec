"""What this machine can run, and what is missing for the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from reprise.launch.config import configs_folder
from reprise.launch.provenance import PACKAGES, cores, cpu_features, cpu_name, instruction_set

GIB = 2**30
HUB_SECONDS = 4.0
# Instructions that decide how fast bf16 is on a processor.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def examine() -> dict[str, Any]:
    """Every finding, as plain values; ``can`` says what they add up to, each with its reason."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "memory_gib": _memory_gib(),
        "disk_free_gib": round(shutil.disk_usage(".").free / GIB, 1),
        "cpu_features": cpu_features(FEATURES),
        "instruction_set": instruction_set(),
        **_torch(),
        "hub": _hub(),
        "packages": _packages(),
        "optional": {
            name: importlib.util.find_spec(name) is not None
            for name in ("tensorboard", "trackio", "wandb", "lm_eval", "openai", "ray", "deepspeed")
        },
    }
    found["can"] = _verdicts(found)
    return found


def _verdicts(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    missing = [name for name, state in found["packages"].items() if not state["installed"]]
    lacking = []
    if missing:
        lacking.append(f"packages {', '.join(missing)} (make setup)")
    base = list(lacking)
    if found["memory_gib"] is not None and found["memory_gib"] < 4:
        lacking.append("4 GiB of memory")
    if found["disk_free_gib"] < 2:
        lacking.append("2 GiB of free disk")
    gpu = [] if found["cuda"] else ["a CUDA GPU"]
    hub = [] if found["hub"]["reachable"] else [f"the Hub ({found['hub']['reason']})"]
    several = [] if found["cores"] > 1 else ["a second core"]
    if not found["gloo"]:
        several.append("a torch with gloo")
    wanted = {
        "quickstart": lacking,
        "several processes (launch/accelerate/cpu.yaml)": base + several,
        "paper configs (configs/paper)": base + gpu + hub,
    }
    return {name: {"possible": not lack, "lacks": lack} for name, lack in wanted.items()}


def _torch() -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {"cuda": [], "bf16": False, "gloo": False}
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cuda": gpus,
        "bf16": torch.cuda.is_bf16_supported() if gpus else "avx512_bf16" in cpu_features(FEATURES),
        "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
    }


def _memory_gib() -> float | None:
    """Memory of the machine, or of the container if that is less."""
    sizes = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        sizes.append(int(text))
    return round(min(sizes) / GIB, 1) if sizes else None


def _packages() -> dict[str, dict[str, Any]]:
    """Installed version of each package that matters, beside the tested one."""
    tested = {}
    file = configs_folder().parent / "constraints.txt"  # not in an installed wheel
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            name, equals, version = line.strip().partition("==")
            if equals:
                tested[name.lower().replace("_", "-")] = version
    result = {}
    for name in PACKAGES:
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = ""
        wanted = tested.get(name, "")
        result[name] = {
            "installed": installed,
            "tested": wanted,
            # 2.13.0+cpu is the tested 2.13.0, built for another device.
            "as_tested": not wanted or installed.partition("+")[0] == wanted,
        }
    return result


def _hub() -> dict[str, Any]:
    """Whether the Hugging Face Hub answers, given `HUB_SECONDS` and no more."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return {"reachable": False, "reason": "HF_HUB_OFFLINE is set"}
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answer = {"reachable": False, "reason": f"no answer in {HUB_SECONDS:.0f} s"}

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
            answer.update(reachable=True, reason="")
        except urllib.error.HTTPError as error:  # it answered, if only to say no
            # 403 and 407 come from proxies that let nothing through.
            if error.code in (403, 407):
                answer["reason"] = f"refused with status {error.code}"
            else:
                answer.update(reachable=True, reason="")
            error.close()
        except (OSError, ValueError) as error:
            answer["reason"] = str(getattr(error, "reason", error))

    # In a thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS + 1)
    return dict(answer)


def lines(found: dict[str, Any]) -> list[str]:
    """The findings for a reader."""
    gpu = ", ".join(found["cuda"]) or "none"
    unlike = [
        f"{name} {state['installed'] or 'missing'} (tested with {state['tested']})"
        for name, state in found["packages"].items()
        if not state["as_tested"] or not state["installed"]
    ]
    memory = "unknown" if found["memory_gib"] is None else f"{found['memory_gib']} GiB"
    extras = [name for name, there in found["optional"].items() if there]
    hub = found["hub"]
    threads = found["threads"] or f"{found['cores']} (OMP_NUM_THREADS is not set)"
    text = [
        f"python    {found['python']} on {found['platform']}",
        f"cpu       {found['cpu']}, {found['cores']} cores, {' '.join(found['cpu_features'])}",
        f"computes  with {found['instruction_set']}; threads: {threads}",
        f"memory    {memory}, {found['disk_free_gib']} GiB of disk free here",
        f"gpu       {gpu}; fast bf16: {'yes' if found['bf16'] else 'no'}",
        f"hub       {'reachable' if hub['reachable'] else 'not reachable: ' + hub['reason']}",
        f"packages  {'; '.join(unlike) or 'all as tested'}",
        f"optional  {', '.join(extras) or 'none'}",
        "",
    ]
    for name, verdict in found["can"].items():
        state = "yes" if verdict["possible"] else "no, lacks " + "; ".join(verdict["lacks"])
        text.append(f"{name}: {state}")
    return text
