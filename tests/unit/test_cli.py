"""The command line: exit statuses, standard output for programs alone, clear words for people."""

import errno
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from reprise.launch import config, processes, provenance
from reprise.launch.cli import doctor, ending
from reprise.launch.cli import main as cli
from reprise.launch.run import default_out
from reprise.rollout.errors import BadInput
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions


@pytest.fixture
def reprise(capsys):
    """Call the command in this process; returns exit status, output, errors."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


# -- list, run -----------------------------------------------------------------------------------


def test_list_for_people_and_for_programs(reprise):
    code, output, _ = reprise("list")
    assert code == 0
    for name in [*config.EXPERIMENTS, *config.shipped()]:
        assert f"  {name} " in output
    code, output, errors = reprise("list", "--format", "json")
    assert code == 0 and errors == ""
    listed = json.loads(output)
    assert listed["experiments"].keys() == config.EXPERIMENTS.keys()
    assert listed["configs"].keys() == config.shipped().keys()
    assert all(entry["description"] for entry in listed["configs"].values())


def test_help_names_every_command(reprise):
    code, output, _ = reprise("--help")
    assert code == 0
    for name in ("list", "run", "resume", "store", "doctor"):
        assert f" {name} " in output


def test_dry_run_of_a_shipped_config(reprise, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(iter(config.shipped()))
    code, output, errors = reprise("run", name, "seed=11", "--dry-run")
    assert code == 0
    assert f"runs/{name} is free" in errors
    (tmp_path / "resolved.yaml").write_text(output)
    assert config.load("resolved.yaml") == config.load(name, ["seed=11"])
    assert [file.name for file in tmp_path.iterdir()] == ["resolved.yaml"]


def test_bad_input_is_one_message_and_status_2(reprise, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(iter(config.shipped()))
    code, output, errors = reprise("run", name, "sede=1", "seed=x")
    assert code == 2 and output == ""
    assert errors.startswith("error: ") and "2 problems" in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    assert reprise("run", "no/such/config")[0] == 2
    assert reprise("run", name, "--no-such-option")[0] == 2


def test_several_processes_do_not_make_what_a_run_needs(reprise, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, errors = reprise("run", "quickstart/reward_model")
    assert code == 2
    assert "first `reprise run quickstart/sft`" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_is_not_a_config(reprise, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    code, _, errors = reprise("run", tmp_path)
    assert code == 2
    assert f"reprise resume {tmp_path}" in errors


def test_default_directory_mirrors_the_configs(tmp_path):
    for name, file in config.shipped().items():
        assert default_out(file) == Path("runs") / name
    mine = tmp_path / "studies" / "mine.yaml"
    assert default_out(mine) == Path("runs/studies/mine")


# -- how a command ends --------------------------------------------------------------------------


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    "error, status, said",
    [
        (OSError(errno.ENOSPC, "no space left while writing a"), 1, "error: no space left"),
        (OSError(errno.EACCES, "not allowed"), 1, "Traceback"),
        (RuntimeError("bug"), 1, "Traceback"),
        (ValueError("bug in another package"), 1, "Traceback"),
        (KeyboardInterrupt(), 130, "reprise resume"),
    ],
)
def test_exit_statuses(capsys, error, status, said):
    assert ending.exit_status(raising(error)) == status
    errors = capsys.readouterr().err
    assert said in errors
    assert ("Traceback" in errors) == (said == "Traceback")


def is_bad_input(error):
    return isinstance(error, BadInput)


def test_only_a_raise_of_our_own_is_bad_input():
    def caught(work):
        try:
            work()
        except ValueError as error:
            return error

    assert is_bad_input(caught(lambda: config.find("no/such/config")))
    # A bug: numpy complains, on a line of ours or elsewhere.
    lists = [np.zeros(2), np.zeros(3)]
    assert not is_bad_input(caught(lambda: np.array(lists)))
    assert not is_bad_input(caught(lambda: cli.show(float("nan"), list, cli.Format.json)))
    assert not is_bad_input(caught(raising(ValueError("not from our packages"))))


def test_a_c_call_that_fails_on_a_line_of_ours_is_a_bug(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError) as caught:
        processes.asked_for()  # int() raises in C: the innermost frame is ours, without a `raise`
    assert not is_bad_input(caught.value)


def test_sigterm_becomes_143_and_the_old_handler_returns(capsys):
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)

    assert ending.exit_status(work) == 143
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


# -- provenance, processes -----------------------------------------------------------------------


def test_secrets_and_home_folders_stay_out_of_the_record():
    home = str(Path.home())
    shown = provenance.command_line(
        [
            f"{home}/.venv/bin/reprise",
            "run",
            "train.hub_token=hf_abc",
            "--api-key",
            "sk-123",
            f"data.name={home}/data.jsonl",
            "seed=1",
            "sampling.max_new_tokens=8",
        ]
    )
    assert shown[:3] == ["reprise", "run", "train.hub_token=***"]
    assert shown[3:5] == ["--api-key", "***"]
    assert shown[6] == "seed=1"
    text = " ".join(shown)
    assert "hf_abc" not in text and "sk-123" not in text
    assert "sampling.max_new_tokens=8" in text
    assert home not in text or home == "/"


def test_the_code_revision_is_the_commit_of_the_source_tree():
    revision, dirty = provenance.code_revision()
    if (Path(__file__).parents[2] / ".git").exists():
        assert len(revision) == 40 and set(revision) <= set("0123456789abcdef")
    assert isinstance(dirty, bool)


def test_the_instruction_set_is_that_of_the_kernels_that_compute():
    asked = "from reprise.launch.provenance import instruction_set; print(instruction_set())"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Nehalem"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("torch DEFAULT, ")
    if "OpenBLAS" in done.stdout:  # NumPy may be built with another BLAS
        assert "OpenBLAS Nehalem" in done.stdout


def test_only_a_known_other_instruction_set_is_told():
    assert provenance.unlike({}, "torch AVX2") is None  # an older version recorded none
    assert provenance.unlike({"instruction_set": "torch AVX2"}, "torch AVX2") is None
    told = provenance.unlike({"instruction_set": "torch DEFAULT"}, "torch AVX2")
    assert "torch DEFAULT at the earlier start, torch AVX2 now; bits may differ" in told


def test_threads_follow_the_environment_and_must_make_sense(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes.threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert processes.threads() == provenance.cores()
    for wrong in ("0", "-1", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", wrong)
        with pytest.raises(config.ConfigError, match=f"OMP_NUM_THREADS = '{wrong}'"):
            processes.threads()


def test_one_process_where_several_were_asked_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert processes.asked_for() == (0, 1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(config.ConfigError, match="started one"):
        processes.asked_for()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert processes.asked_for() == (1, 2)


# -- store ---------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """A run directory with a finished round, and one that has only begun."""
    store = RoundStore(tmp_path / "rounds")
    metadata = {
        "config_sha256": "c",
        "code_revision": "r",
        "policy": "p",
        "reward_model": "m",
        "random_state": {"seed": 0},
    }
    writer = store.writer(0, 2, metadata)
    for shard in range(2):
        writer.write(shard, batch(3))
    writer.finish(ties=1)
    store.writer(1, 2, metadata).write(0, batch(3))
    return tmp_path


def batch(n):
    ids = [np.array([5, 6, 7], np.int32)] * n
    return Completions(
        prompt_index=np.arange(n, dtype=np.int64),
        prompt_ids=ids,
        completion_ids=[[np.array([8, 1], np.int32), np.array([9, 9, 9, 9], np.int32)]] * n,
        terminated=np.array([[True, False]] * n),
        rewards=np.array([[1.0, -3.0]] * n, np.float32),
        policy_logprobs=np.zeros((n, 2), np.float32),
        reference_logprobs=np.zeros((n, 2), np.float32),
        label_uniform=np.full(n, 0.5),
    )


def test_store_verify(reprise, stored):
    code, output, _ = reprise("store", "verify", stored)
    assert (code, output) == (0, "round 0: sound\nround 1: unfinished\n")
    shard = stored / "rounds" / "round-00000" / "shard-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, output, _ = reprise("store", "verify", stored / "rounds", "--format", "json")
    assert code == 1
    result = json.loads(output)
    assert result["sound"] is False
    assert "shard-00001.parquet" in result["rounds"]["0"]
    code, output, errors = reprise("store", "show", stored)
    assert code == 2 and output == "" and "shard-00001.parquet" in errors


def test_store_show(reprise, stored):
    code, output, errors = reprise("store", "show", stored, "--format", "json", "--samples", "1")
    assert code == 0 and errors == ""
    shown = json.loads(output)
    assert shown["unfinished"] == [1]
    [entry] = shown["rounds"]
    assert (entry["rows"], entry["shards"], entry["counts"]) == (6, 2, {"ties": 1})
    assert entry["rewards"]["mean"] == -1.0
    assert entry["rewards"]["std"] == 2.0
    assert entry["completion_tokens_mean"] == 3.0
    assert entry["no_eos_rate"] == 0.5
    assert entry["samples"] == [
        {"prompt": [5, 6, 7], "completions": [[8, 1], [9, 9, 9, 9]], "rewards": [1.0, -3.0]}
    ]
    code, output, _ = reprise("store", "show", stored)
    assert code == 0
    assert "reward mean -1" in output and "round 1: unfinished" in output


def test_store_show_and_export_decode_with_the_policy_of_the_run(reprise, stored, neox_lab):
    (stored / "config.yaml").write_text(f"policy: {neox_lab.policy}\n")
    code, output, _ = reprise("store", "show", stored, "--format", "json")
    assert code == 0
    assert isinstance(json.loads(output)["rounds"][0]["samples"][0]["prompt"], str)
    out = stored / "pairs.jsonl"
    code, output, errors = reprise("store", "export", stored, out)
    assert code == 0, errors
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 6
    assert (rows[0]["score_chosen"], rows[0]["score_rejected"]) == (1.0, -3.0)
    assert "6 preferences" in errors
    code, _, errors = reprise("store", "export", stored, out)
    assert code == 2 and "exists" in errors
    code, _, errors = reprise("store", "export", stored, stored / "b.jsonl", "--round", "1")
    assert code == 2 and "not finished" in errors


def test_store_export_without_a_tokenizer_says_what_is_missing(reprise, stored):
    code, _, errors = reprise("store", "export", stored, stored / "pairs.jsonl")
    assert code == 2 and "--tokenizer" in errors
    assert not (stored / "pairs.jsonl").exists()


def test_store_of_nothing(reprise, tmp_path):
    code, _, errors = reprise("store", "show", tmp_path)
    assert code == 2 and "holds no rounds" in errors


# -- doctor --------------------------------------------------------------------------------------


def test_doctor_says_what_can_run(reprise, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, output, errors = reprise("doctor", "--format", "json")
    assert errors == ""
    found = json.loads(output)
    assert code == (0 if found["can"]["quickstart"]["possible"] else 1)
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["packages"]["torch"]["installed"].startswith(found["packages"]["torch"]["tested"])
    assert found["hub"] == {"reachable": False, "reason": "HF_HUB_OFFLINE is set"}
    paper = found["can"]["paper configs (configs/paper)"]
    assert not paper["possible"] and any("Hub" in lack for lack in paper["lacks"])
    code, output, _ = reprise("doctor")
    assert "quickstart: " in output
    assert found["instruction_set"].startswith("torch ")
    assert f"computes  with {found['instruction_set']}; threads: " in output


def test_doctor_reaches_a_hub_that_answers(monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert doctor._hub() == {"reachable": True, "reason": ""}
        server.shutdown()
        thread.join()


def test_doctor_does_not_wait_for_a_hub_that_says_nothing(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        hub = doctor._hub()
        assert time.monotonic() - started < 3
    assert not hub["reachable"] and hub["reason"]
