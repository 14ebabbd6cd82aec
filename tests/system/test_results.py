"""RESULTS.md says what the runs say: one small table is made anew and compared."""

from pathlib import Path

from launch.tables import load_table, shipped_tables
from tests.system.commands import reprise

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "RESULTS.md").read_text(encoding="utf-8")


def test_a_table_made_anew_is_the_one_on_the_page(tmp_path):
    for command in (["sweep", "theory_schedule"], ["table", "theory_schedule"]):
        done = reprise(tmp_path, *command)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 6
    for row in rows:
        assert row in PAGE


def test_every_laptop_table_and_its_figure_is_on_the_page():
    for name in shipped_tables():
        _, table = load_table(name)
        if "laptop" not in table.budgets:
            continue
        assert f"### {table.title}\n" in PAGE and f"`reprise sweep {name} --budget laptop`" in PAGE
        if table.figure is not None:
            picture = ROOT / ".github" / "results" / f"{name}.svg"
            assert f"({picture.relative_to(ROOT)})" in PAGE and picture.is_file()
