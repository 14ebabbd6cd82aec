"""Staged runs: a process for each phase, and the bits of a run in one process."""

import json

import pytest

from tests.system.commands import accelerate, launch
from tests.system.kill_driver import KILLED, NEXT_PHASE, SMALL, unlike

COLLECTING = {"complete", "RewardModel.score"}
TRAINING = {"RoundTrainer.training_step", "AdamW.step"}


@pytest.fixture(scope="module")
def config(llama_lab, tmp_path_factory):
    path = tmp_path_factory.mktemp("staged") / "config.json"
    path.write_text(json.dumps(llama_lab.config(**SMALL)))
    return path


@pytest.fixture(scope="module")
def whole(running, config):
    """A run in one process."""
    result = running.run(config, config.parent / "whole")
    assert result.status == 0, result.said
    return config.parent / "whole"


def phases(running, config, out, world=1):
    """Run phase after phase; what happened in each."""
    happened, environment = [], {}
    while True:
        result = running.run(config, out, world=world, staged=True, environment=environment)
        assert result.status in (0, NEXT_PHASE), result.said
        happened.append(result)
        if result.status == 0:
            return happened
        told = (running.folder / "report.phase").read_text()
        environment = {"REPRISE_HANDED_OVER": told}


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_phases_make_the_bits_of_one_process(running, config, whole, tmp_path):
    happened = phases(running, config, tmp_path / "run")
    assert len(happened) == 5  # collect, update, collect, update, measure
    names = [{event.split("#")[0] for event in phase.events[0]} for phase in happened]
    assert [bool(called & COLLECTING) for called in names] == [True, False, True, False, True]
    assert [bool(called & TRAINING) for called in names] == [False, True, False, True, False]
    assert unlike(tmp_path / "run", whole) == []
    rounds = [r for r in records(tmp_path / "run") if "update_seconds" in r]
    assert [r["resumed"] for r in rounds] == [False, False]
    assert all(r["collect_seconds"] > 0 for r in rounds)
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert "resumed" not in provenance  # the next phase is not an interruption


def test_a_staged_run_killed_in_each_phase(running, config, whole, tmp_path):
    out = tmp_path / "run"
    for kill in ("RoundWriter.write#3:after", "AdamW.step#2:before", "replace#5:before"):
        result = running.run(config, out, kill=kill, staged=True)
        while result.status == NEXT_PHASE:
            result = running.run(config, out, kill=kill, staged=True)
        assert result.status == KILLED, result.said
    phases(running, config, out)
    assert unlike(out, whole) == []


def test_a_run_may_change_between_the_modes(running, config, whole, tmp_path):
    out = tmp_path / "run"
    for _ in range(3):  # collect, update, collect
        assert running.run(config, out, staged=True).status == NEXT_PHASE
    assert running.run(config, out).status == 0
    assert unlike(out, whole) == []


def test_two_processes_are_staged_alike(running, config, tmp_path):
    at_once = running.run(config, tmp_path / "at-once", world=2)
    assert at_once.status == 0, at_once.said
    assert len(phases(running, config, tmp_path / "run", world=2)) == 5
    assert unlike(tmp_path / "run", tmp_path / "at-once") == []


def test_the_launcher_sees_one_command_and_each_phase_meets_anew(running, llama_lab, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(llama_lab.config(**{**SMALL, "rounds": 1})))
    at_once = running.run(config, tmp_path / "at-once", world=2)
    assert at_once.status == 0, at_once.said
    done = accelerate(
        *("cpu.yaml", "-m", "reprise.launch.run", config, "--out", tmp_path / "run", "--staged")
    )
    assert done.returncode == 0, done.stderr
    assert unlike(tmp_path / "run", tmp_path / "at-once") == []
    assert done.stderr.count("starting alignment.on_policy") == 1
    assert done.stderr.count("finished alignment.on_policy") == 1


def test_what_has_no_phases_is_refused(tmp_path):
    arguments = ("run", "quickstart/sft", "--staged", "--out", tmp_path / "run")
    done = launch("reprise.launch.cli", *arguments)
    assert done.returncode == 2
    assert "--staged: alignment.sft has no phases" in done.stderr
    assert not (tmp_path / "run").exists()
