"""RESULTS.md says what the records say, and a table made anew agrees with its record.

Exact numbers are the same on every processor. A sampled number may differ there by the last bit of
a draw: it must lie within the recorded interval, and the verdicts must be the recorded ones.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprise.launch.tables.schema import load_table, shipped_tables
from tests.system.commands import reprise

pytestmark = pytest.mark.portable

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
LAPTOP = [name for name in shipped_tables() if "laptop" in load_table(name)[1].budgets]


@pytest.fixture
def records(tmp_path):
    """A folder with the records, without a single run."""
    folder = tmp_path / "recorded"
    folder.mkdir()
    (folder / "results").symlink_to(ROOT / "results")
    return folder


def values(folder, name):
    return json.loads(reprise(folder, "table", name, "--format", "json").stdout)


def test_the_page_is_what_the_records_give(records):
    done = subprocess.run(
        [sys.executable, "-m", "reprise.launch.tables.results"],
        cwd=records,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == ("Not in the table:" in PAGE), done.stderr
    assert (records / "RESULTS.md").read_text(encoding="utf-8") == PAGE
    drawn = {file.name for file in (records / ".github/results").glob("*.svg")}
    assert drawn == {f"{name}.svg" for name in LAPTOP if load_table(name)[1].figure is not None}


def test_a_table_made_anew_agrees_with_its_record(records, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    reprise(new, "sweep", "theory_schedule")
    made, recorded = values(new, "theory_schedule"), values(records, "theory_schedule")
    assert {run["state"] for run in recorded["runs"]} == {"finished"}
    assert not any(run["recorded"] for run in made["runs"])
    compared = 0
    for here, there in zip(made["rows"], recorded["rows"], strict=True):
        assert here["name"] == there["name"]
        for column, number in here["values"].items():
            known = there["values"][column]
            if known["low"] is not None and known["low"] < known["high"]:
                assert known["low"] <= number["value"] <= known["high"], (here["name"], column)
                compared += 1
            elif float(known["value"]).is_integer():  # a count, or computed
                assert number["value"] == known["value"], (here["name"], column)
    assert compared >= len(recorded["rows"]) > 2
    told = [(one["text"], one["verdict"]) for one in made["claims"]]
    assert told == [(one["text"], one["verdict"]) for one in recorded["claims"]]


def test_every_laptop_table_and_its_figure_is_on_the_page():
    for name in LAPTOP:
        _, table = load_table(name)
        assert f"### {table.title}\n" in PAGE and f"`reprise sweep {name} --budget laptop`" in PAGE
        if table.figure is not None:
            picture = ROOT / ".github" / "results" / f"{name}.svg"
            assert f"({picture.relative_to(ROOT)})" in PAGE and picture.is_file()


def test_the_page_names_processors_and_the_rules():
    assert PAGE.count("core-minutes; processor: ") == len(LAPTOP)
    for word in ("Student", "Holm", "*identity*", "decides nothing"):
        assert word in PAGE
    assert "Likely reason" not in PAGE and "1.96 standard errors" not in PAGE
