"""Records of runs: a page without a run, an altered record refused, lost runs transcribed."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from reprise.launch.config import ConfigError, config_sha256, load, to_yaml
from reprise.launch.tables import records, results
from reprise.launch.tables.claims import verdicts
from reprise.launch.tables.evidence import files_read
from reprise.launch.tables.render import as_values, make, markdown, render
from reprise.launch.tables.sweep import directory_of
from reprise.rollout.files import seal_of
from reprise.rollout.run.intervals import bootstrap, interquartile_mean, student, student_half

CONFIG = "paper/theory_collapse"
TABLE = {
    "title": "Small",
    "source": "a test",
    "about": "Two rows.",
    "budgets": {
        "laptop": {
            "note": "tiny",
            "seeds": [0, 1, 2],
            "first": [{"config": "paper/theory_coverage", "seeds": [0]}],
            "runs": {"on": {"config": CONFIG}, "one": {"config": CONFIG, "seeds": [7]}},
        }
    },
    "rows": [{"name": "many", "run": "on"}, {"name": "single", "run": "one"}],
    "columns": {
        "kl": {"label": "KL", "path": "kl"},
        "middle": {"label": "IQM", "path": "kl", "aggregate": "iqm"},
        "own": {"label": "own", "path": "kl", "standard_error": "error", "degrees": "runs - 1"},
        "share": {"label": "share", "path": "share", "trials": "runs"},
        "last": {"label": "last", "file": "metrics.jsonl", "path": "records[step=2].x"},
    },
    "claims": [
        {
            "text": "above 1",
            "left": {"row": "many", "column": "kl"},
            "relation": ">",
            "right": {"value": 1.0},
        }
    ],
    "figure": {
        "kind": "curves",
        "file": "metrics.jsonl",
        "entries": "records",
        "x": "step",
        "y": ["x"],
    },
}


def finish(directory, config, seed, numbers, **made):
    """A run as the experiments leave it, sealed, with two lines of metrics and a checkpoint."""
    settings = load(config, [f"seed={seed}"])
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(settings))
    provenance = {"cpu": "Some CPU", "threads": 1, "code_dirty": False, **made}
    (directory / "provenance.json").write_text(json.dumps(provenance))
    lines = [{"step": step, "x": seed + step / 10, "long": "y" * 50} for step in (1, 2)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "weights.bin").write_bytes(b"w" * 1000)
    summary = {
        **{"experiment": settings.experiment, "status": "complete", "seed": seed},
        **{"config_sha256": config_sha256(settings), "code_revision": "abcdef0123456789"},
        **{"seconds": 60.0, **numbers},
    }
    summary["seal"] = seal_of(summary)
    (directory / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A folder with a table file and its runs, all finished."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(TABLE))
    for seed, value in ((0, 1.0), (1, 3.0), (2, 8.0), (7, 5.0)):
        numbers = {"kl": value, "error": 0.5, "runs": 4, "share": 0.5}
        finish(directory_of(CONFIG, [], seed), CONFIG, seed, numbers)
    made = {"instruction_set": "AVX2", "threads": 2}
    first = directory_of("paper/theory_coverage", [], 0)
    finish(first, "paper/theory_coverage", 0, {}, **made)
    return "small.yaml"


def record(table):
    made = make(table, "laptop")
    runs = {s.directory: files_read(made[1])[s.directory] for s in made[1].finished()}
    return records.write(runs)


def test_cells_have_students_intervals_and_name_the_bootstrap(table):
    numbers = make(table, "laptop")[1].numbers
    mean, half = student([1.0, 3.0, 8.0])
    many = numbers["many"]
    assert (many["kl"].low, many["kl"].high) == pytest.approx((mean - half, mean + half))
    assert many["kl"].degrees == 2 and not many["kl"].bootstrapped
    middle = bootstrap([[1.0, 3.0, 8.0]], interquartile_mean)
    assert (many["middle"].low, many["middle"].high) == middle and many["middle"].bootstrapped
    # A single run's own: 4 runs, so t(.975, 3) = 3.1824 times .5; and Wilson's of 2 of 4.
    own = numbers["single"]["own"]
    assert (own.low, own.high) == pytest.approx((5 - 1.5912, 5 + 1.5912), abs=1e-4)
    assert own.high == 5 + student_half(0.5, 3)
    share = numbers["single"]["share"]
    assert (share.low, share.high) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    text = markdown(make(table, "laptop")[1])
    assert "means with Student's 95% interval" in text
    assert "interquartile means with a 95% percentile bootstrap, which is narrow" in text


def test_the_table_is_the_same_from_the_records_alone(table):
    before = make(table, "laptop")
    assert record(table) == []
    shutil.move("runs", "elsewhere")
    after = make(table, "laptop")
    assert {source.recorded for source in after[1].all_sources()} == {True}
    assert markdown(after[1]) == markdown(before[1])
    for form in ("csv", "latex"):
        assert render(after[1], form) == render(before[1], form)
    assert verdicts(after[1])[0].statistic == verdicts(before[1])[0].statistic
    from reprise.launch.tables.figure import draw

    drawn = [draw(made[1], Path(name), [".svg"])[0] for made, name in ((before, "b"), (after, "a"))]
    assert drawn[1].stat().st_size > 5000
    # Small files only: no checkpoint, and of each line of metrics what the table reads.
    folder = records.record_of(directory_of(CONFIG, [], 1))
    kept = sorted(file.name for file in folder.iterdir())
    assert kept == ["config.yaml", "metrics.jsonl", "provenance.json", "summary.json"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "x": 1.1}, {"step": 2, "x": 1.2}]


@pytest.mark.parametrize("file", ["summary.json", "metrics.jsonl", "provenance.json"])
def test_an_altered_record_is_refused(table, file):
    record(table)
    shutil.move("runs", "elsewhere")
    altered = records.record_of(directory_of(CONFIG, [], 1)) / file
    altered.write_bytes(altered.read_bytes().replace(b"1", b"2"))
    _, evidence = make(table, "laptop")
    states = [source.state for source in evidence.sources["many"]]
    assert states == ["finished", "corrupt", "finished"]
    assert list(evidence.numbers["many"]["kl"].by_seed) == [0, 2]
    assert f"{altered} was altered after it was recorded" in markdown(evidence)


def test_a_record_with_a_file_more_or_less_is_refused(table):
    record(table)
    shutil.move("runs", "elsewhere")
    folder = records.record_of(directory_of(CONFIG, [], 1))
    (folder / "more.json").write_text("{}")
    assert "is not in results/index.json" in markdown(make(table, "laptop")[1])
    (folder / "more.json").unlink()
    (folder / "metrics.jsonl").unlink()
    assert "metrics.jsonl is gone" in markdown(make(table, "laptop")[1])


def test_a_damaged_run_is_not_excused_by_its_record(table):
    record(table)
    file = directory_of(CONFIG, [], 1) / "summary.json"
    file.write_text(file.read_text().replace("3.0", "30.0"))
    assert make(table, "laptop")[1].sources["many"][1].state == "corrupt"
    shutil.rmtree(file.parent)
    assert make(table, "laptop")[1].sources["many"][1].state == "finished"


def test_the_record_of_another_config_is_refused(table):
    record(table)
    shutil.move("runs", "elsewhere")
    changed = json.loads(json.dumps(TABLE))
    changed["budgets"]["laptop"]["runs"]["one"]["overrides"] = ["replicas=3"]
    Path(table).write_text(yaml.safe_dump(changed))
    own = records.record_of(directory_of(CONFIG, [], 7))
    other = records.record_of(directory_of(CONFIG, ["replicas=3"], 7))
    assert make(table, "laptop")[1].sources["single"][0].state == "missing"
    index = json.loads((records.RECORDS / "index.json").read_text())
    renamed = {k.replace(own.name, other.name): v for k, v in index["sha256"].items()}
    (records.RECORDS / "index.json").write_text(json.dumps({"sha256": renamed}))
    own.rename(other)
    [source] = make(table, "laptop")[1].sources["single"]
    assert source.state == "corrupt" and "replicas: 3 here" in source.problem


def test_the_page_names_processors_code_and_time(table):
    record(table)
    shutil.move("runs", "elsewhere")
    evidence = make(table, "laptop")[1]
    text = results._commands("small", evidence)
    # Four runs of the rows and the one that they read, a minute each.
    assert "5 runs, 5.0 core-minutes; processor: Some CPU, 1 thread; Some CPU, AVX2, 2 threads" in (
        text
    )
    assert "code abcdef012345." in text and "theory_coverage" in text
    told = as_values(evidence)
    assert told["processors"] == ["Some CPU, 1 thread", "Some CPU, AVX2, 2 threads"]
    [claim] = told["claims"]
    assert claim["degrees"] == 2.0 and claim["p"] == claim["holm_p"] > 0.05
    assert claim["verdict"] == "undecided" and claim["identity"] is False
    assert told["rows"][0]["values"]["kl"]["degrees"] == 2.0


def test_a_lost_run_is_transcribed_and_the_page_says_so(table):
    lost = directory_of(CONFIG, [], 1)
    entry = {
        **{"config": CONFIG, "overrides": [], "seed": 1, "where": "the page of version 0.1"},
        **{"cpu": None, "seconds": 30.0, "code_revision": "0.1"},
        "summary": {"kl": 3.25, "error": 0.5, "runs": 4, "share": 0.5},
    }
    Path("lost.yaml").write_text(yaml.safe_dump({"runs": [entry]}))
    with pytest.raises(ConfigError, match=r"theory_collapse-seed1 is there; record it instead"):
        records.transcribe(Path("lost.yaml"))
    shutil.rmtree(lost)
    del entry["where"]
    Path("short.yaml").write_text(yaml.safe_dump({"runs": [entry]}))
    with pytest.raises(ConfigError, match=r"runs.0.where: required"):
        records.transcribe(Path("short.yaml"))
    assert records.transcribe(Path("lost.yaml")) == [records.record_of(lost)]
    changed = json.loads(json.dumps(TABLE))
    del changed["columns"]["last"], changed["figure"]
    Path(table).write_text(yaml.safe_dump(changed))
    _, evidence = make(table, "laptop")
    assert evidence.numbers["many"]["kl"].by_seed == {0: 1.0, 1: 3.25, 2: 8.0}
    text = results._commands("small", evidence)
    assert (
        "*1 run is lost, its numbers transcribed from the page of version 0.1:* "
        "theory_collapse-seed1." in text
    )
    assert "unknown processor" in text


def test_large_files_are_named_and_folders_of_this_machine_refused(table):
    directory = directory_of(CONFIG, [], 0)
    summary = json.loads((directory / "summary.json").read_text()) | {"list": ["x" * 250_000]}
    summary["seal"] = seal_of(summary)
    (directory / "summary.json").write_text(json.dumps(summary))
    [remark] = record(table)
    assert "theory_collapse-seed0/summary.json has 250 kB" in remark
    provenance = {"command": [f"{Path.cwd()}/config.yaml"]}
    (directory / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ConfigError, match="a folder of this machine"):
        record(table)


def test_records_that_no_table_names_are_removed(table):
    record(table)
    kept = directory_of(CONFIG, [], 0)
    removed = records.prune([kept])
    assert [name.rpartition("-seed")[2] for name in removed] == ["1", "2", "7", "0"]
    assert [path.name for path in records.RECORDS.glob("*/*")] == [kept.name]
    assert records.problems(records.record_of(kept)) == []
    index = json.loads((records.RECORDS / "index.json").read_text())["sha256"]
    assert {Path(file).parts[1] for file in index} == {kept.name}
