"""From a table file to its numbers, by the real commands: made, killed, damaged, made again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from reprise.launch import strict_yaml
from reprise.rollout.run.intervals import bootstrap, interquartile_mean, stratified_student, student
from tests.system.commands import reprise
from tests.system.leaderboard_tasks import write_tasks

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(tmp_path):
    """A table of two small bandit studies in two seeds."""
    config = "paper/theory_convergence"
    small = ["replicas=2", "study.rounds=2", "study.pairs_per_round=[100]"]
    runs = {
        "on": {"config": config, "overrides": small},
        "other": {"config": config, "overrides": [*small, "instance.radius=4.0"]},
    }
    cell = "curves[method=on-policy DPO,pairs_per_round=100,round=2]"
    contents = {
        "title": "Small",
        "source": "a test",
        "about": "Two bandits.",
        "budgets": {"laptop": {"note": "tiny", "seeds": [0, 1], "runs": runs}},
        "rows": [
            {"name": "R = 8", "run": "on", "cell": cell, "paper": {"kl": 1.25}},
            {"name": "R = 4", "run": "other", "cell": cell},
        ],
        "columns": {"kl": {"label": "KL", "path": "kl_mean"}},
        "claims": [
            {
                "text": "larger R is harder",
                "left": {"row": "R = 8", "column": "kl"},
                "relation": ">",
                "right": {"row": "R = 4", "column": "kl"},
            }
        ],
        "figure": {"kind": "bars", "y": ["kl"]},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(contents))
    return tmp_path


def values(folder):
    return json.loads(reprise(folder, "table", "small.yaml", "--format", "json").stdout)


def test_sweep_table_delete_and_sweep_again(table):
    plan = json.loads(reprise(table, "sweep", "small.yaml", "--dry-run", "--format", "json").stdout)
    assert plan["runs"] == 4 and not (table / "runs").exists()
    empty = values(table)
    assert {run["state"] for run in empty["runs"]} == {"missing"}
    assert empty["claims"][0]["verdict"] == "undecided"

    reprise(table, "sweep", "small.yaml")
    first = values(table)
    assert [row["values"]["kl"]["paper"] for row in first["rows"]] == [1.25, None]
    assert all(len(row["values"]["kl"]["by_seed"]) == 2 for row in first["rows"])
    for cell in (row["values"]["kl"] for row in first["rows"]):
        mean, half = student(list(cell["by_seed"].values()))
        assert (cell["low"], cell["high"]) == pytest.approx((mean - half, mean + half))
    [claim] = first["claims"]  # of two seeds: one degree of freedom, and no other claim to correct
    assert claim["degrees"] == 1.0 and claim["p"] == claim["holm_p"]
    assert first["processors"] and first["runs"][0]["processors"] == first["processors"]

    # One run deleted: only it is made again, to the same numbers.
    runs = [table / run["directory"] for run in first["runs"]]
    stamps = {run: (run / "summary.json").stat().st_mtime_ns for run in runs}
    shutil.rmtree(runs[0])
    gone = values(table)
    assert gone["runs"][0]["state"] == "missing"
    assert list(gone["rows"][0]["values"]["kl"]["by_seed"]) == ["1"]
    reprise(table, "sweep", "small.yaml")
    again = values(table)
    assert [row["values"] for row in again["rows"]] == [row["values"] for row in first["rows"]]
    assert {run: (run / "summary.json").stat().st_mtime_ns for run in runs[1:]} == {
        run: stamps[run] for run in runs[1:]
    }

    # A changed number is found and named, not averaged.
    file = runs[1] / "summary.json"
    summary = json.loads(file.read_text())
    summary["curves"][-1]["kl_mean"] = 123.0
    file.write_text(json.dumps(summary))
    damaged = values(table)
    assert damaged["runs"][1]["state"] == "corrupt"
    assert "seal" in damaged["runs"][1]["problem"]
    shown = reprise(table, "table", "small.yaml", "--out", "tables").stdout
    assert "corrupt: `reprise run paper/theory_convergence" in shown and "123" not in shown
    made = {file.name for file in (table / "tables").iterdir()}
    assert made == {f"small.{suffix}" for suffix in ("md", "csv", "json", "tex", "svg", "png")}


def test_a_killed_sweep_goes_on(table):
    command = [sys.executable, "-m", "reprise.launch.cli", "sweep", "small.yaml", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=table, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(table.glob("runs/paper/*/summary.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # the sweep and the run that it has started
    process.wait()
    kept = {f: f.stat().st_mtime_ns for f in table.glob("runs/paper/*/summary.json")}
    assert 1 <= len(kept) < 4
    reprise(table, "sweep", "small.yaml")
    found = values(table)
    assert {run["state"] for run in found["runs"]} == {"finished"}
    assert {f: f.stat().st_mtime_ns for f in kept} == kept


def test_latex_and_csv_hold_the_same_numbers(table):
    reprise(table, "sweep", "small.yaml")
    number = values(table)["rows"][0]["values"]["kl"]["value"]
    tex = reprise(table, "table", "small.yaml", "--format", "latex").stdout
    assert f"{number:.3f}" in tex and r"\toprule" in tex and "1.250" in tex
    rows = reprise(table, "table", "small.yaml", "--format", "csv").stdout.splitlines()
    assert f"R = 8,kl,all,{number!r}" in "\n".join(rows)


def test_strata_and_lines_of_json(table):
    contents = yaml.safe_load((table / "small.yaml").read_text())
    both = {"name": "both", "run": "on", "strata": ["other"], "cell": contents["rows"][0]["cell"]}
    contents["rows"].append(both)
    contents["columns"]["iqm"] = {"label": "I", "path": "kl_mean", "aggregate": "iqm"}
    (table / "small.yaml").write_text(yaml.safe_dump(contents))
    reprise(table, "sweep", "small.yaml")
    first, second, both = values(table)["rows"]
    strata = [list(row["values"]["kl"]["by_seed"].values()) for row in (first, second)]
    found = both["values"]["kl"]
    assert found["by_seed"] == {
        f"{k}:{seed}": value for k, of in enumerate(strata) for seed, value in enumerate(of)
    }
    assert found["value"] == pytest.approx(sum(strata[0] + strata[1]) / 4)
    mean, half, degrees = stratified_student(strata)
    assert (found["low"], found["high"]) == pytest.approx((mean - half, mean + half))
    assert found["degrees"] == pytest.approx(degrees) and not found["bootstrapped"]
    drawn = both["values"]["iqm"]
    assert (drawn["low"], drawn["high"]) == bootstrap(strata, interquartile_mean)
    assert drawn["bootstrapped"]
    middle = sorted(strata[0] + strata[1])[1:3]
    assert both["values"]["iqm"]["value"] == pytest.approx(sum(middle) / 2)

    # A number from the lines of a .jsonl file: of a run that has one.
    for summary in table.glob("runs/paper/*/summary.json"):
        summary.with_name("extra.jsonl").write_text(
            '{"step": 1, "x": 2.5}\n{"step": 2, "x": 3.5}\n'
        )
    contents["columns"] = {"x": {"label": "x", "file": "extra.jsonl", "path": "records[step=2].x"}}
    contents["rows"] = [{"name": "R = 8", "run": "on"}]
    curves = {"kind": "curves", "file": "extra.jsonl", "entries": "records", "x": "step"}
    contents |= {"claims": [], "figure": {**curves, "y": ["x"]}}
    (table / "small.yaml").write_text(yaml.safe_dump(contents))
    [row] = values(table)["rows"]
    assert row["values"]["x"]["value"] == 3.5
    reprise(table, "table", "small.yaml", "--out", "drawn")
    assert (table / "drawn/small.svg").stat().st_size > 5000


def test_a_sweep_makes_evaluations_too(llama_lab, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "chat.yaml").write_text(strict_yaml.write(llama_lab.config(rounds=1)))
    rows = [
        {"question": q, "choices": ["name", "value"], "answer": 0} for q in ("get the", "set a")
    ]
    tasks = write_tasks(tmp_path / "tasks", rows, "words")
    suite = [f"include={tasks}", "tasks={words: 0}", "bootstrap=10"]
    run = {
        "config": "chat.yaml",
        "evaluate": [{"suite": "openllm", "rounds": [0, 1], "overrides": suite}],
    }
    contents = {
        "title": "Chat",
        "source": "a test",
        "about": "One run.",
        "budgets": {"laptop": {"note": "tiny", "runs": {"chat": run}}},
        "rows": [{"name": "round {round}", "run": "chat", "each": {"round": [0, 1]}}],
        "columns": {
            "words": {
                "label": "words",
                "file": "suites/openllm/round-0000{round}.json",
                "path": "result.words",
            }
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(contents))
    plan = reprise(tmp_path, "sweep", "small.yaml", "--dry-run", "--format", "json").stdout
    assert json.loads(plan)["runs"] == 3
    out = json.loads(plan)["jobs"][0]["directory"]
    reprise(tmp_path, "run", "chat.yaml", "seed=0", "--out", out)
    shown = reprise(tmp_path, "table", "small.yaml").stdout
    assert "| round 1 | missing |" in shown and "--suite openllm --round 1`" in shown
    reprise(tmp_path, "sweep", "small.yaml")
    for row in values(tmp_path)["rows"]:
        assert row["values"]["words"]["value"] in (0.0, 50.0, 100.0)


def test_bad_input(table):
    assert "laptop" in reprise(table, "table", "small.yaml", "--budget", "desk", check=2).stderr
    assert "shipped" in reprise(table, "sweep", "smal", check=2).stderr
