"""Real runs of a tiny model by the command line: finished, refused, locked, killed, resumed."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reprise.launch import strict_yaml

ROOT = Path(__file__).parents[2]
CONFIG = """\
# Supervised training of a toy model.
experiment: alignment.sft
data: {name: data.jsonl, split: "train[:300]"}
heldout_split: "train[300:]"
heldout: 8
from_scratch: {layers: 1, width: 16, heads: 2, feedforward: 16, vocabulary: 320, positions: 64}
max_prompt_tokens: 32
max_completion_tokens: 16
batch_size: 8
epochs: 2
train: {per_device_train_batch_size: 4, learning_rate: 1e-2, logging_steps: 2, save_steps: 10}
"""


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "reprise.launch.cli", *map(str, arguments)],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def reprise(folder, *arguments):
    process = start(folder, *arguments)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def accelerate(folder, *arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def contents(path):
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def summary(path):
    return json.loads((path / "summary.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with data and config."""
    folder = tmp_path_factory.mktemp("work")
    draw = random.Random(0)
    words = "get set read write load save parse build close open file name path list node".split()
    with open(folder / "data.jsonl", "w") as file:
        for _ in range(400):
            verb, noun = draw.choice(words), draw.choice(words)
            row = {"prompt": f"def {verb}_{noun}():\n", "reference": f"{verb.title()} the {noun}."}
            file.write(json.dumps(row) + "\n")
    (folder / "sft.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    """One finished run."""
    code, output, errors = reprise(folder, "run", "sft.yaml", "--out", "finished")
    assert code == 0, errors
    assert output == ""
    return folder / "finished"


@pytest.fixture(scope="module")
def terminated(folder):
    """A run ended by SIGTERM, with what it said."""
    process = start(folder, "run", "sft.yaml", "--out", "terminated")
    stop_when_training(process, folder / "terminated", signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert not (folder / "terminated" / "summary.json").exists()
    return folder / "terminated", process.returncode, errors


def stop_when_training(process, path, number):
    deadline = time.monotonic() + 120
    while not list(path.glob("**/checkpoint-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)


def test_a_run_leaves_everything_it_promises(finished):
    result = summary(finished)
    assert result["experiment"] == "alignment.sft"
    assert result["status"] == "complete"
    assert result["seed"] == 0
    assert result["seconds"] > 0
    config = strict_yaml.read((finished / "config.yaml").read_text())
    assert config["from_scratch"]["tie_embeddings"] is False  # a default, written out
    provenance = json.loads((finished / "provenance.json").read_text())
    assert provenance["world_size"] == 1
    assert provenance["threads"] == 1
    assert provenance["instruction_set"].startswith("torch ")
    assert provenance["code_revision"] == result["code_revision"]
    assert provenance["packages"]["torch"]
    assert provenance["command"][1:] == ["run", "sft.yaml", "--out", "finished"]
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    assert all("step" in json.loads(line) for line in lines)


def test_a_finished_run_is_left_alone(folder, finished):
    before = contents(finished)
    for arguments in (["run", "sft.yaml", "--out", "finished"], ["resume", "finished"]):
        code, _, errors = reprise(folder, *arguments)
        assert code == 0
        assert "is finished and was left alone" in errors
    assert contents(finished) == before


def test_the_directory_of_another_config_is_refused_with_what_differs(folder, finished):
    before = contents(finished)
    code, _, errors = reprise(
        folder, "run", "sft.yaml", "seed=3", "from_scratch.layers=2", "--out", "finished"
    )
    assert code == 2
    assert "belongs to another config" in errors
    assert "  - seed: 3 here, 0 there\n" in errors
    assert "  - from_scratch.layers: 2 here, 1 there\n" in errors
    assert errors.count("  - ") == 2
    assert contents(finished) == before


def test_two_processes_on_one_directory(folder, terminated):
    path, _, _ = terminated
    before = contents(path)
    with open(path / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, errors = reprise(folder, "resume", path)
    assert code == 2
    assert "another process" in errors and "is running in" in errors
    assert contents(path) == before


def test_a_folder_with_other_files_is_refused(folder):
    other = folder / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    code, _, errors = reprise(folder, "run", "sft.yaml", "--out", "other")
    assert code == 2
    assert "not a run" in errors
    assert [file.name for file in other.iterdir()] == ["thesis.tex"]


def test_a_config_refused_before_any_work_leaves_its_directory_free(folder):
    code, _, errors = reprise(folder, "run", "sft.yaml", "data.name=nowhere.jsonl", "--out", "free")
    assert code == 2
    assert "nowhere.jsonl" in errors and "Traceback" not in errors
    assert not {file.name for file in (folder / "free").iterdir()} - {".lock"}


def test_dry_run_prints_every_setting_and_writes_nothing(folder):
    before = sorted(folder.iterdir())
    code, output, errors = reprise(folder, "run", "sft.yaml", "epochs=3", "--dry-run")
    assert code == 0
    assert "is free" in errors
    assert strict_yaml.read(output)["epochs"] == 3
    assert "initializer_range: 0.02" in output
    assert sorted(folder.iterdir()) == before


def test_sigterm_ends_cleanly(terminated):
    _, code, errors = terminated
    assert code == 143
    assert "resume" in errors and "Traceback" not in errors


def test_interrupted_by_the_keyboard_then_killed_then_resumed_to_the_same_weights(folder, finished):
    path = folder / "interrupted"
    process = start(folder, "run", "sft.yaml", "--out", path)
    stop_when_training(process, path, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors

    process = start(folder, "resume", path)
    deadline = time.monotonic() + 120
    while len(list(path.glob("**/checkpoint-*"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)

    code, _, errors = reprise(folder, "resume", path)
    assert code == 0, errors
    assert "continuing alignment.sft" in errors
    assert summary(path)["weights_sha256"] == summary(finished)["weights_sha256"]
    assert len(json.loads((path / "provenance.json").read_text())["resumed"]) >= 1


def test_resuming_nothing(folder):
    code, _, errors = reprise(folder, "resume", "nowhere")
    assert code == 2
    assert "nowhere holds no run" in errors
    assert not (folder / "nowhere").exists()


def test_another_number_of_processes_may_not_continue(folder, terminated):
    path = folder / "was-two"
    shutil.copytree(terminated[0], path)
    provenance = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps({**provenance, "world_size": 2}))
    code, _, errors = reprise(folder, "resume", path)
    assert code == 2
    assert "started with 2 processes and cannot continue with 1" in errors


def test_another_instruction_set_continues_and_says_so(folder, terminated):
    path = folder / "elsewhere"
    shutil.copytree(terminated[0], path)
    first = json.loads((path / "provenance.json").read_text())
    here = first["instruction_set"]
    first |= {"instruction_set": "torch OTHER, OpenBLAS Older", "threads": 2}
    (path / "provenance.json").write_text(json.dumps(first))
    code, _, errors = reprise(folder, "resume", path)
    assert code == 0, errors
    told = f"torch OTHER, OpenBLAS Older at the earlier start, {here} now; bits may differ"
    assert told in errors
    assert "threads: 2, as at the start, not 1" in errors
    kept = json.loads((path / "provenance.json").read_text())
    [second] = kept.pop("resumed")
    assert kept == first
    assert (second["instruction_set"], second["threads"]) == (here, 2)


def test_two_processes_train_as_one(folder, finished):
    done = accelerate(
        folder,
        "--config_file",
        ROOT / "launch/accelerate/cpu.yaml",
        "-m",
        "reprise.launch.run",
        "sft.yaml",
        "--out",
        "two",
    )
    assert done.returncode == 0, done.stderr
    two = folder / "two"
    assert json.loads((two / "provenance.json").read_text())["world_size"] == 2
    assert done.stderr.count("starting alignment.sft") == 1
    assert summary(two)["heldout_loss"] == pytest.approx(
        summary(finished)["heldout_loss"], rel=1e-4
    )

    refused = accelerate(
        folder,
        "--config_file",
        ROOT / "launch/accelerate/cpu.yaml",
        "-m",
        "reprise.launch.run",
        "sft.yaml",
        "seed=1",
        "--out",
        "two",
    )
    assert refused.returncode != 0
    assert refused.stderr.count("belongs to another config") == 1


def test_a_launcher_that_silently_starts_one_process_is_refused(folder):
    done = accelerate(
        folder,
        *("--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "-m", "reprise.launch.run", "sft.yaml", "--out", "fallback"),
    )
    assert done.returncode != 0
    assert "asked for several processes but started one" in done.stderr
    assert not (folder / "fallback").exists()
