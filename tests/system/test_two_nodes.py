"""Two nodes with a launcher each: network namespaces, or else two loopback addresses."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from tests.system.kill_driver import ROOT, unlike

SETTINGS = {"rounds": 1, "prompts_per_round": 12, "shard_size": 3}


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@contextlib.contextmanager
def two_namespaces():
    """Yield (command prefix, address, interface) of two nodes joined by a virtual cable."""
    names = [f"reprise-{os.getpid()}-{side}" for side in "ab"]
    cables = [f"rp{os.getpid() % 100000}{side}" for side in "ab"]
    try:
        for name in names:
            if ip("netns", "add", name).returncode:
                raise PermissionError
        if ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1]).returncode:
            raise PermissionError
        for side in (0, 1):
            ip("link", "set", cables[side], "netns", names[side])
            within = ("-n", names[side])
            ip(*within, "addr", "add", f"10.77.0.{side + 1}/24", "dev", cables[side])
            ip(*within, "link", "set", cables[side], "up")
            ip(*within, "link", "set", "lo", "up")
        yield [
            (["ip", "netns", "exec", names[side]], f"10.77.0.{side + 1}", cables[side])
            for side in (0, 1)
        ]
    finally:
        for name in names:
            ip("netns", "del", name)  # the cable goes with them


@contextlib.contextmanager
def nodes():
    """Namespaces where we may make them (root), two loopback addresses elsewhere."""
    with contextlib.ExitStack() as stack:
        try:
            if shutil.which("ip") is None:
                raise PermissionError
            made = stack.enter_context(two_namespaces())
        except PermissionError:
            made = [([], "127.0.0.2", "lo"), ([], "127.0.0.3", "lo")]
        yield made


def test_two_nodes_make_the_bits_of_two_processes_on_one(running, llama_lab, tmp_path):
    config, out = tmp_path / "config.json", tmp_path / "run"
    asked = {"processes": 2, "strategy": "ddp"}
    config.write_text(json.dumps(llama_lab.config(**SETTINGS, parallelism=asked)))
    with socket.create_server(("", 0)) as free:
        port = str(free.getsockname()[1])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    with nodes() as two:
        launchers = [
            subprocess.Popen(
                [
                    *prefix,
                    *(sys.executable, "-m", "accelerate.commands.launch"),
                    *("--config_file", "launch/accelerate/multi_node.yaml"),
                    *("--num_processes", "2", "--machine_rank", str(rank)),
                    *("--main_process_ip", two[0][1], "--main_process_port", port),
                    *("-m", "reprise.launch.run", str(config), "--out", str(out)),
                ],
                cwd=ROOT,
                env={
                    **inherited,
                    "OMP_NUM_THREADS": "1",
                    "HF_HUB_OFFLINE": "1",
                    "ACCELERATE_USE_CPU": "true",
                    "GLOO_SOCKET_IFNAME": interface,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, (prefix, _, interface) in enumerate(two)
        ]
        said = [launcher.communicate(timeout=900)[0] for launcher in launchers]
        if two[0][0]:  # what a node says of itself
            assert two[0][2] != two[1][2]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert ["finished alignment.on_policy" in text for text in said] == [True, False]
    assert json.loads((out / "provenance.json").read_text())["world_size"] == 2
    result = running.run(config, tmp_path / "one-node", world=2)
    assert result.status == 0, result.said
    assert unlike(out, tmp_path / "one-node") == []


def test_a_node_short_is_refused(running, llama_lab, tmp_path):
    config = tmp_path / "config.json"
    asked = {"processes": 4, "strategy": "ddp"}
    config.write_text(json.dumps(llama_lab.config(**SETTINGS, parallelism=asked)))
    result = running.run(config, tmp_path / "run", world=2)
    assert result.status == 2
    assert "parallelism.processes=4, but 2 were started" in result.said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "world", "told"),
    [
        ({"processes": 2}, 1, "parallelism.processes=2, but 1 was started"),
        ({"strategy": "ddp"}, 1, "parallelism.strategy='ddp', but the launch is for 'single'"),
        ({"strategy": "zero3"}, 2, "parallelism.strategy='zero3', but the launch is for 'ddp'"),
        ({"shards": 2, "strategy": "zero2"}, 1, "zero2 does not shard parameters"),
    ],
)
def test_less_than_asked_for_is_refused_before_anything_is_written(
    asked, world, told, running, llama_lab, tmp_path
):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(llama_lab.config(**SETTINGS, parallelism=asked)))
    result = running.run(config, tmp_path / "run", world=world)
    assert result.status == 2, result.said
    assert told in result.said and "Traceback" not in result.said
    assert not (tmp_path / "run").exists()
