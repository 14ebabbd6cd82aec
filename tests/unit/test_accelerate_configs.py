"""The launcher files: read by the launcher, and DeepSpeed's part by DeepSpeed's own parser."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import torch

from reprise.alignment.config import OnPolicy
from reprise.alignment.training.parallelism import Parallelism, launched_strategy
from tests.system.sharding_on_cpu import environment_of

ROOT = Path(__file__).parents[2]
STRATEGIES = {
    "cpu.yaml": "ddp",
    "multi_gpu.yaml": "ddp",
    "multi_node.yaml": "ddp",
    "fsdp2.yaml": "fsdp2",
    "deepspeed_zero2.yaml": "zero2",
    "deepspeed_zero3.yaml": "zero3",
}
with_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


def test_every_file_is_looked_at():
    assert {file.name for file in (ROOT / "launch/accelerate").iterdir()} == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_launcher_reads_it_as_the_strategy_that_its_name_says(name):
    environment = environment_of(name)  # raises on keys that it does not know
    assert launched_strategy(environment, world=2) == STRATEGIES[name]
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert environment.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false") == "false"
    assert environment.get("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false").lower() == "false"


def test_without_a_launcher_one_process_is_single():
    assert launched_strategy({}, 1) == "single"
    assert launched_strategy({"ACCELERATE_USE_FSDP": "true"}, 2) == "fsdp1"


@with_deepspeed
@pytest.mark.parametrize(
    ("name", "stage"), [("deepspeed_zero2.yaml", 2), ("deepspeed_zero3.yaml", 3)]
)
def test_deepspeed_reads_what_accelerate_makes_of_it(name, stage, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for key, value in environment_of(name).items():
        monkeypatch.setenv(key, value)
    from accelerate.utils import DeepSpeedPlugin
    from deepspeed.runtime.config import DeepSpeedConfig

    from reprise.alignment.training.sharding import check_deepspeed_keys

    config = DeepSpeedPlugin().deepspeed_config
    automatic = {key for key, value in config.items() if value == "auto"}
    # What the Trainer fills in from `train:`; a number in the file could contradict it.
    assert automatic == {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    }
    filled = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
    }
    parsed = DeepSpeedConfig({**config, **filled})
    assert parsed.zero_optimization_stage == stage
    assert parsed.gradient_clipping == 1.0
    check_deepspeed_keys(config)


@with_deepspeed
def test_a_key_that_deepspeed_would_pass_over_is_refused():
    from reprise.alignment.training.sharding import check_deepspeed_keys

    with pytest.raises(ValueError, match="'gradient_cliping', did you mean 'gradient_clipping'"):
        check_deepspeed_keys({"zero_optimization": {"stage": 2}, "gradient_cliping": 1.0})


def test_whole_parameters_are_refused_where_shards_were_asked_for(monkeypatch):
    from reprise.alignment.training.sharding import check_shards, shares

    model = torch.nn.Linear(10, 10)
    assert shares(model) == (110, 110)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="2 shards, but this process holds 110 of 110"):
        check_shards(model, Parallelism(), world=2)
    check_shards(model, Parallelism(), world=1)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    check_shards(model, Parallelism(), world=2)  # data parallelism keeps whole ones


def test_every_parameter_is_copied_out_of_its_shards(neox_lab):
    from reprise.alignment.models import load_policy
    from reprise.alignment.training.sharding import copy_whole

    one, other = (load_policy(str(neox_lab.policy)) for _ in range(2))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1.0)
    copy_whole(one, other)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    del one.gpt_neox.layers[1]
    with pytest.raises(AssertionError, match="different parameters"):
        copy_whole(one, other)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"strategy": "fsdp"}, "fsdp2"),
        ({"shards": 2, "strategy": "ddp"}, "does not shard parameters"),
        ({"processes": 2, "strategy": "single"}, "cannot have processes=2"),
        ({"processes": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_asked_for(asked, told, neox_lab):
    with pytest.raises(ValueError, match=told):
        OnPolicy.model_validate(neox_lab.config(parallelism=asked))


@pytest.mark.parametrize("name", ["one_node", "several_nodes"])
def test_a_batch_script_is_bash_and_names_files_that_exist(name):
    script = ROOT / "launch/slurm" / f"{name}.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    for file in re.findall(r"launch/accelerate/\w+\.yaml", text):
        assert (ROOT / file).is_file()
    assert "#SBATCH --requeue" in text and "#SBATCH --signal=B:USR1@600" in text


STANDINS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo node-1; else echo "$@" >>"$TOLD"; fi',
    "scancel": 'echo "$@" >>"$TOLD"; kill -TERM "$(cat "$RUNNING")"',
}


@pytest.mark.parametrize("name", ["one_node", "several_nodes"])
@pytest.mark.parametrize("ending", ["finished", "failed", "preempted"])
def test_only_a_preempted_job_goes_back_to_the_queue(name, ending, tmp_path):
    # Slurm's commands and the run are stand-ins; what is looked at is the script between them.
    run = {
        "finished": 'touch "$OUT/summary.json"',
        "failed": "exit 1",
        "preempted": 'kill -USR1 "$PPID"; sleep 20 >/dev/null 2>&1 & wait; exit 143',
    }[ending]
    commands = {f"bin/{key}": text for key, text in STANDINS.items()}
    commands[".venv/bin/accelerate"] = f'echo $$ >"$RUNNING"; trap "exit 143" TERM; {run}'
    for file, text in commands.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "out").mkdir()
    script = ROOT / "launch/slurm" / f"{name}.sbatch"
    slurm = {"JOB_ID": "7", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node-[1-2]", "NODEID": "0"}
    done = subprocess.run(
        ["bash", str(script), "quickstart/onpolicy_dpo", "out", "seed=1"],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            **{f"SLURM_{key}": value for key, value in slurm.items()},
            **{"TOLD": "told", "RUNNING": "running", "OUT": "out"},
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = tmp_path / "told"
    said = told.read_text().splitlines() if told.exists() else []
    assert said == (["--signal=TERM 7.0", "requeue 7"] if ending == "preempted" else []), (
        done.stderr
    )
    # The trap may end `wait` when the step has ended too: 128 + SIGUSR1.
    assert done.returncode in {"finished": [0], "failed": [1], "preempted": [143, 138]}[ending]
