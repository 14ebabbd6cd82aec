"""Runs on a real Ray cluster of two nodes."""

import sys

import pytest

from reprise.launch.parallel import Job

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'reprise-rl[scale]'")

WORK = (
    "import json, os, sys, pathlib, time\n"
    "p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True)\n"
    "tries = p / 'tries'; tries.write_text(tries.read_text() + 'x' if tries.exists() else 'x')\n"
    "time.sleep(1)\n"
    "if 'flaky' in p.name and len(tries.read_text()) == 1: sys.exit(1)\n"
    "(p / 'node').write_text(os.environ['RAY_NODE_NAME'])\n"
    "(p / 'gpus').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', ''))\n"
    "(p / 'summary.json').write_text('{}')\n"
)


class Shell(Job):
    @property
    def command(self):
        return [sys.executable, "-c", self.config, str(self.out)]


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_of_two_nodes_makes_the_runs(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    from reprise.launch.tables.ray_executor import run_on_ray

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cluster = Cluster(initialize_head=False)
    try:
        for name, gpus in (("first", 0), ("second", 2)):
            cluster.add_node(
                num_cpus=1, num_gpus=gpus, env_vars={"RAY_NODE_NAME": name},
                object_store_memory=80_000_000, include_dashboard=False,
            )  # fmt: skip
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        jobs = [
            Shell(WORK, (), tmp_path / "a"),
            Shell(WORK, (), tmp_path / "flaky"),
            Shell(WORK, (), tmp_path / "on-gpu", gpus=1),
            Shell(WORK, (), tmp_path / "late", after=(tmp_path / "a",)),
            Shell("import sys; sys.exit(3)", (), tmp_path / "broken"),
        ]
        run_on_ray(jobs, lambda: None, retries=1)
        assert [job.status for job in jobs] == ["done", "done", "done", "done", "failed"]
        assert (tmp_path / "flaky" / "tries").read_text() == "xx"
        assert jobs[4].attempts == 2
        assert (tmp_path / "on-gpu" / "node").read_text() == "second"  # only it has GPUs
        assert (tmp_path / "on-gpu" / "gpus").read_text() in {"0", "1"}
        nodes = {(tmp_path / name / "node").read_text() for name in ("a", "flaky", "late")}
        assert nodes <= {"first", "second"}
    finally:
        if ray.is_initialized():
            ray.shutdown()
        cluster.shutdown()
