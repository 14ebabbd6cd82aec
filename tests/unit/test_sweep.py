"""Plans, order, retries and costs of a sweep, with real processes that take no time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reprise.launch.config import ConfigError
from reprise.launch.parallel import Job, run_side_by_side
from reprise.launch.tables import sweep
from reprise.launch.tables.schema import budget_of, load_table


class Shell(Job):
    """A job whose run is a line of Python in its directory."""

    @property
    def command(self):
        return [sys.executable, "-c", self.config, str(self.out)]


FINISH = (
    "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'summary.json').touch()"
)
FAIL_ONCE = (
    "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True)\n"
    "first = p / 'first'\n"
    "if not first.exists(): first.touch(); sys.exit(1)\n"
    "(p / 'summary.json').touch()"
)
IN_ORDER = (
    "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir()\n"
    "assert (p.parent / 'before' / 'summary.json').exists(); (p / 'summary.json').touch()"
)


def test_a_run_waits_for_those_it_needs(tmp_path):
    late = Shell(IN_ORDER, (), tmp_path / "late", after=(tmp_path / "before",))
    before = Shell("import time; time.sleep(.3)\n" + FINISH, (), tmp_path / "before")
    run_side_by_side([late, before], workers=2, watch=lambda: None, interval=0.05)
    assert (late.status, before.status) == ("done", "done")


def test_a_failed_run_is_tried_once_more_and_its_followers_fail_unstarted(tmp_path):
    flaky = Shell(FAIL_ONCE, (), tmp_path / "flaky")
    broken = Shell("import sys; sys.exit(3)", (), tmp_path / "broken")
    after = Shell(FINISH, (), tmp_path / "after", after=(tmp_path / "broken",))
    jobs = [flaky, broken, after]
    run_side_by_side(jobs, workers=2, watch=lambda: None, interval=0.05, retries=1)
    assert [job.status for job in jobs] == ["done", "failed", "failed"]
    assert [job.attempts for job in jobs] == [2, 2, 0]


def test_each_run_has_a_core_of_its_own(tmp_path):
    import os

    cores = sorted(os.sched_getaffinity(0))
    code = "import os, sys; sys.stdout.write(str(sorted(os.sched_getaffinity(0))))\n"
    jobs = [
        Shell("import time; time.sleep(.5)\n" + code + FINISH, (), tmp_path / name) for name in "ab"
    ]
    run_side_by_side(jobs, workers=2, watch=lambda: None, interval=0.05)
    told = {job.log.read_text() for job in jobs}
    assert told == {str([core]) for core in cores[:2]}


def table_file(folder, first=(), **run):
    file = folder / "small.yaml"
    contents = {
        "title": "t",
        "source": "s",
        "about": "a",
        "budgets": {
            "laptop": {"note": "n", "seeds": [0, 1], "first": list(first), "runs": {"r": run}}
        },
        "rows": [{"name": "a", "run": "r"}],
        "columns": {"x": {"label": "x", "path": "value"}},
    }
    file.write_text(yaml.safe_dump(contents))
    return file


def planned(file):
    name, table = load_table(file)
    return sweep.plan(table, budget_of(name, table, "laptop"))


def test_a_plan_has_what_runs_need_first_and_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = [{"config": "paper/theory_collapse", "overrides": ["replicas=2"], "seeds": [5]}]
    made = planned(table_file(tmp_path, first, config="quickstart/onpolicy_dpo"))
    names = [job.out.as_posix() for job in made.jobs]
    assert names == [
        "runs/paper/theory_collapse-replicas=2-seed5",
        "runs/quickstart/sft",
        "runs/quickstart/reward_model",
        "runs/quickstart/onpolicy_dpo-seed0",
        "runs/quickstart/onpolicy_dpo-seed1",
    ] or names[1:3] == ["runs/quickstart/reward_model", "runs/quickstart/sft"]
    last = made.jobs[-1]
    assert {Path(names[0]), Path("runs/quickstart/sft")} <= set(last.after)
    assert last.overrides == ("seed=1",)


def test_the_directory_follows_from_config_overrides_and_seed():
    plain = sweep.directory_of("paper/theory_collapse", [], 3)
    assert plain == Path("runs/paper/theory_collapse-seed3")
    changed = sweep.directory_of("paper/theory_collapse", ["study.rounds=2", "a=b/c"], 3)
    assert changed.name == "theory_collapse-study.rounds=2-a=b_c-seed3"
    long = [f"key{place}=value{place}" for place in range(20)]
    names = {sweep.directory_of("paper/theory_collapse", long[:n], 0).name for n in (19, 20)}
    assert len(names) == 2 and all(len(name) < 120 for name in names)


def test_the_cost_counts_only_what_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = {"config": "paper/theory_collapse", "minutes": 3.0, "megabytes": 7.0, "gpus": 2}
    made = planned(table_file(tmp_path, **run))
    report = sweep.cost(made, workers=2)
    assert (report["runs"], report["finished"]) == (2, 0)
    assert (report["minutes"], report["megabytes"], report["gpu_minutes"]) == (3.0, 14.0, 12.0)
    assert sweep.cost(made, workers=1)["minutes"] == 6.0
    assert (
        "2 runs, 0 finished; about 3.0 minutes with 2 at a time"
        in (sweep.cost_lines(report, 2)[-1])
    )


def test_a_full_disk_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = planned(table_file(tmp_path, config="paper/theory_collapse", megabytes=1e9))
    with pytest.raises(ConfigError, match="need about 2000000000 MB"):
        sweep.sweep(made)
    assert not Path("runs").exists()


def test_a_second_sweep_is_refused_and_names_the_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "from reprise.launch.tables.sweep import sweep_lock\nwith sweep_lock(): input()"
    root = Path(sweep.__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n" + code],
        stdin=subprocess.PIPE,
    )
    try:
        lock = Path("runs/.sweep.lock")
        while not (lock.exists() and lock.read_text()):
            assert holder.poll() is None
        with (
            pytest.raises(ConfigError, match=f"process {holder.pid} sweeps"),
            sweep.sweep_lock(),
        ):
            pass
    finally:
        holder.communicate(b"\n")
    with sweep.sweep_lock():  # free again
        pass


def test_evaluations_follow_their_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, table = load_table("general_chat_table_2")
    made = sweep.plan(table, budget_of(name, table, "paper"))
    runs = [job for job in made.jobs if not job.suite]
    assert len(runs) == 3 and len(made.jobs) == 3 + 2 * (1 + 6 + 5)
    run = next(job for job in runs if "rdrc" in job.config)
    of_run = [job for job in made.jobs if job.suite and job.after == (run.out,)]
    assert [(job.suite, job.round) for job in of_run] == [
        *(("alpaca", k) for k in range(1, 6)),
        *(("openllm", k) for k in range(1, 6)),
    ]
    assert all(job.gpus == run.gpus == 8 for job in of_run)
    assert of_run[-1].typed == f"reprise evaluate {run.out} --suite openllm --round 5"
    done = run.out / "suites/openllm/round-00005.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    assert of_run[-1].finished_before and not of_run[-2].finished_before


def test_runs_that_were_started_elsewhere_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "instruction_set", lambda: "torch HERE")
    made = sweep.Plan()
    for name, starts in {
        "new": [],
        "same": [{"instruction_set": "torch HERE", "threads": 1}],
        "older": [{"threads": 1}],
        "half": [
            {"instruction_set": "torch HERE", "threads": 2},
            {"instruction_set": "torch THERE", "threads": 2},
        ],
        "done": [{"instruction_set": "torch THERE", "threads": 1}],
    }.items():
        made.add(Job("config", (), tmp_path / name), 1.0, 1.0)
        (tmp_path / name).mkdir()
        if starts:
            record = {**starts[0], "resumed": starts[1:]}
            (tmp_path / name / "provenance.json").write_text(json.dumps(record))
    (tmp_path / "done" / "summary.json").write_text("{}")
    assert sweep.made_elsewhere(made) == [
        "1 unfinished runs: instruction set torch THERE at a start, torch HERE now; "
        "bits may differ",
        "1 unfinished runs: threads 2 at the start, 1 in a sweep; they continue with as many",
        "1 finished runs: instruction set torch THERE at a start, torch HERE now; bits may differ",
    ]
