"""Runs from Python: the same runs, and what they leave at hand."""

import json

import numpy as np
import pytest
import torch

import reprise
from reprise.rollout.errors import BadInput


def test_settings_run_and_give_summary_metrics_rounds_and_model(llama_lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = llama_lab.config(rounds=1)
    result = reprise.run(settings, seed=5, sampling__temperature=0.9)
    assert result.path.parts[:2] == ("runs", "python") and result.summary["seed"] == 5
    stored = json.loads(json.dumps(reprise.load(result.path / "config.yaml").model_dump()))
    assert stored["sampling"]["temperature"] == 0.9
    assert len(result.metrics) > 3 and result.metrics["loss"].notna().any()
    assert result.rounds.rounds() == [0]
    model = result.load_model()
    assert not model.training and model(torch.tensor([[5, 6]])).logits.shape[:2] == (1, 2)
    before = (result.path / "summary.json").stat().st_mtime_ns
    again = reprise.run(settings, seed=5, sampling__temperature=0.9)  # finished: left alone
    assert again.path == result.path
    assert (again.path / "summary.json").stat().st_mtime_ns == before


def test_a_shipped_config_by_name(tmp_path):
    result = reprise.run("quickstart/pqn_cartpole", out=tmp_path / "run", total_steps=4096)
    assert result.summary["steps"] == 4096
    values = result.load_model()(torch.zeros(3, 4))
    assert values.shape == (3, 2)


def test_a_wrong_key_is_refused_as_on_the_command_line(tmp_path):
    with pytest.raises(BadInput, match="sede"):
        reprise.run("quickstart/pqn_cartpole", out=tmp_path / "run", sede=1)
    assert not (tmp_path / "run").exists()


def test_pieces_stand_alone():
    assert reprise.__version__
    assert "quickstart/sft" in reprise.list()["configs"]
    draws = reprise.Streams(0).data("x").random(3)
    assert np.array_equal(draws, reprise.Streams(0).data("x").random(3))
    for name in (
        "RoundStore",
        "q_lambda",
        "pair_losses",
        "hypergrid_rounding",
        "ridge",
        "Quantizer",
    ):
        assert callable(getattr(reprise, name)) and name in dir(reprise)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = reprise.nothing
