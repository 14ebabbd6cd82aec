"""Our commands in processes of their own, as a user starts them."""

import os
import subprocess
import sys

from tests.system.kill_driver import ROOT


def launch(*arguments, timeout=900):
    """``python -m ARGUMENTS`` in the repository, with one thread, as if outside pytest."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def accelerate(file, *arguments, timeout=900):
    """``accelerate launch`` with a shipped file on a free port."""
    return launch(
        *("accelerate.commands.launch", "--main_process_port", "0"),
        *("--config_file", f"launch/accelerate/{file}", *arguments),
        timeout=timeout,
    )


def reprise(folder, *arguments, check=0):
    """``reprise ARGUMENTS`` in `folder`; its exit status must be `check`."""
    done = subprocess.run(
        [sys.executable, "-m", "reprise.launch.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == check, done.stderr
    return done
