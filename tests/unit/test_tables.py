"""Table files: every shipped one is sound, and mistakes are named before anything runs."""

import pytest
import yaml

from reprise.launch.config import ConfigError, configs_folder
from reprise.launch.tables.schema import Row, load_table, shipped_tables

SHIPPED = 30
GOOD = {
    "title": "t",
    "source": "paper",
    "about": "a",
    "budgets": {
        "laptop": {"note": "small", "runs": {"one": {"config": "paper/theory_collapse"}}}
    },
    "rows": [{"name": "{m}", "run": "one", "cell": "curves[method={m},round=8]",
              "each": {"m": ["REBEL", "PDFR"]}}],
    "columns": {"kl": {"label": "KL", "path": "kl_mean"}},
}  # fmt: skip


def write(folder, **changes):
    file = folder / "table.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}))
    return file


def test_every_shipped_table_is_sound():
    names = list(shipped_tables())
    assert len(names) == SHIPPED
    assert len(list((configs_folder() / "tables").glob("*"))) == SHIPPED
    for name in names:
        stem, table = load_table(name)
        assert stem == name and table.lines(), name
        for claim in table.claims:  # a reason that no row shows is an opinion
            assert not claim.reason or claim.shown_by, claim.text


def test_rows_expand_in_order(tmp_path):
    _, table = load_table(write(tmp_path))
    assert [line.name for line in table.lines()] == ["REBEL", "PDFR"]
    assert table.lines()[1].cell == "curves[method=PDFR,round=8]"
    both = Row(name="{a}-{b}", run="one", each={"a": [1, 2], "b": ["x", "y"]})
    assert [line.name for line in both.expanded()] == ["1-x", "1-y", "2-x", "2-y"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": [{"name": "a", "run": "on"}]}, "run 'on' is not among .'one'.; nearest: 'one'"),
        ({"rows": [{"name": "a", "run": "one"}, {"name": "a", "run": "one"}]}, "given twice"),
        ({"rows": [{"name": "a{b}", "run": "one"}]}, "without values"),
        (
            {"rows": [{"name": "a", "run": "one", "paper": {"kk": 1.0}}]},
            "column 'kk'.*nearest: 'kl'",
        ),
        ({"columns": {"kl": {"label": "KL", "path": "a..b"}}}, "path 'a..b'"),
        (
            {"columns": {"kl": {"label": "K", "path": "a", "exact": True, "trials": "n"}}},
            "at most",
        ),
        (
            {"columns": {"kl": {"label": "K", "path": "a", "standard_error": "s"}}},
            "standard_error needs degrees",
        ),
        (
            {"columns": {"kl": {"label": "K", "path": "a", "degrees": 3}}},
            "degrees are those of an interval or a standard_error",
        ),
        (
            {"columns": {"kl": {"label": "K", "path": "a", "interval": "i", "degrees": 0}}},
            "degrees=0 must be at least 1",
        ),
        (
            {"columns": {"kl": {"label": "K", "path": "a", "interval": "i", "degrees": "a..b"}}},
            "path 'a..b'",
        ),
        (
            {"paper_prints": False, "rows": [{"name": "a", "run": "one", "paper": {"kl": 1.0}}]},
            "paper_prints=false, but",
        ),
        ({"paper_prints": False, "paper_numbers": "Table 1"}, "paper_prints=false, but"),
        (
            {"claims": [{"text": "c", "left": {"row": "{m}", "column": "kl"}, "relation": ">",
                         "right": {"value": 0.0}, "each": {"m": ["REBEL", "PDFX"]}}]},
            "claim 'c': row 'PDFX'.*nearest: 'PDFR'",
        ),
        (
            {"claims": [{"text": "c", "left": {"row": "REBEL", "column": "kl"}, "relation": ">",
                         "right": {"value": 0.0}, "each": {"m": ["REBEL"]}}]},
            "each.m: no row or column holds {m}",
        ),
        (
            {"claims": [{"text": "c", "left": {"row": "{m}", "column": "kl"}, "relation": ">",
                         "right": {"value": 0.0}, "each": {"m": []}}]},
            "each.m needs at least one value",
        ),
        (
            {"claims": [{"text": "c", "left": {"row": "REBEL", "column": "kl"}, "relation": ">",
                         "right": {"value": 0.0}, "shown_by": "PDFR"}]},
            "shown_by needs the reason",
        ),
        ({"colums": {}}, "colums.*unknown key.*columns"),
        (
            {"claims": [{"text": "c", "left": {"row": "REBL", "column": "kl"}, "relation": ">",
                         "right": {"value": 0.0}}]},
            "row 'REBL'.*nearest: 'REBEL'",
        ),
        (
            {"claims": [{"text": "c", "left": {"row": "REBEL"}, "relation": ">",
                         "right": {"value": 0.0}}]},
            "either row and column, or value",
        ),
        (
            {"claims": [{"text": "c", "left": {"value": 1.0}, "relation": "within",
                         "right": {"value": 0.0}}]},
            "needs a margin",
        ),
        (
            {"budgets": {"laptop": {"note": "n", "runs": {
                "one": {"config": "paper/theory_colapse"}}}}},
            "did you mean 'paper/theory_collapse'",
        ),
        (
            {"budgets": {"laptop": {"note": "n", "runs": {
                "one": {"config": "paper/theory_collapse", "overrides": ["replicas=0"]}}}}},
            "replicas",
        ),
        (
            {"budgets": {**GOOD["budgets"], "desk": "labtop"}},
            "budgets.desk='labtop' should be a mapping.*or the name of a budget.*laptop",
        ),
        (
            {"rows": [{"name": "a", "run": "one", "strata": ["on"]}]},
            "run 'on' is not among .'one'.",
        ),
        (
            {"columns": {"kl": {"label": "K", "path": "a", "file": "round-{round}.json"}}},
            "row 'REBEL': a {key} without values",
        ),
        (
            {"budgets": {"laptop": {"note": "n", "runs": {"one": {
                "config": "paper/theory_collapse",
                "evaluate": [{"suite": "judge", "rounds": [1],
                              "overrides": ["judge.modle=x"]}]}}}}},
            "did you mean 'judge.model'",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        load_table(write(tmp_path, **changes))


def test_a_budget_may_be_the_same_as_another(tmp_path):
    _, table = load_table(write(tmp_path, budgets={**GOOD["budgets"], "paper": "laptop"}))
    assert table.budgets["paper"] == table.budgets["laptop"]


def test_a_column_of_one_budget_takes_its_claims_along(tmp_path):
    columns = {**GOOD["columns"], "judged": {"label": "J", "path": "j", "budgets": ["paper"]}}
    side = {"row": "REBEL", "column": "judged"}
    claim = {"text": "c", "left": side, "relation": ">", "right": {"value": 0.0}}
    _, table = load_table(
        write(
            tmp_path, columns=columns, claims=[claim, {**claim, "left": {**side, "column": "kl"}}]
        )
    )
    assert {*table.at("laptop").columns} == {"kl"} and len(table.at("laptop").claims) == 1
    assert {*table.at("paper").columns} == {"kl", "judged"}
    assert len(table.at("paper").claims) == 2


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'theory_collapse'"):
        load_table("theory_colapse")


def test_a_family_is_a_claim_about_every_cell(tmp_path):
    side = {"row": "{m}", "column": "{c}"}
    claim = {"text": "c", "left": side, "relation": ">", "right": {**side, "times": 0.5}}
    claim["each"] = {"m": ["REBEL", "PDFR"], "c": ["kl"]}
    [loaded] = load_table(write(tmp_path, claims=[claim]))[1].claims
    cells = [(cell.left.row, cell.right.row, cell.right.column) for cell in loaded.cells()]
    assert cells == [("REBEL", "REBEL", "kl"), ("PDFR", "PDFR", "kl")]
    assert {cell.right.times for cell in loaded.cells()} == {0.5}
