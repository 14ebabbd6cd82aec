"""A killed distillation ends with the bits of one that was never interrupted."""

import json

from tests.system.kill_driver import kill_and_continue

REGRESSION = {
    "experiment": "distill.regression",
    "data": {"name": "synthetic", "synthetic": {"dimension": 4, "points": 100}},
    "routes": ["sampled", "sampled_gauss_newton", "closed_form"],
    "sizes": [8, 12],
    "regressors": [10, 20],
    "trials": 3,
}
REGRESSION_KILLS = [
    "RunDir.log#1:half",  # a torn line; its cell is not there
    "RunDir.log#2:after",  # a cell logged and not kept
    "replace#1:before",
    "RunDir.finish#1:before",
]
OFFLINE_RL = {
    "experiment": "distill.offline_rl",
    "data": ["random"],
    "data_size": 400,
    "sizes": [12],
    "predictors": [3, "fresh"],
    "methods": ["stratified", "start", "cloning"],
    "seeds": 2,
    "downstream": {"backups": 3, "steps": 3, "ensemble": 1, "units": 8},
    "episodes": 1,
    "held_out": 5,
    "distillation": {"match": "backups", "start": "medoids", "terminal_share": 0.3, "steps": 4},
}
OFFLINE_RL_KILLS = [
    "RunDir.log#1:half",  # a torn line; its cell is not there
    "RunDir.log#2:after",  # a cell logged and not kept
    "RoundWriter.write#1:after",  # a distilled set stored, its round unfinished
    "RunDir.finish#1:before",
]


def killed_again_and_again(running, tmp_path, settings, kills):
    """The summary of the uninterrupted run, which the killed one equals."""
    config, reference = tmp_path / "config.json", tmp_path / "reference"
    config.write_text(json.dumps(settings))
    result = running.run(config, reference)
    assert result.status == 0, result.said
    assert kill_and_continue(running, config, tmp_path / "run", reference, kills) == []
    return json.loads((reference / "summary.json").read_text())


def test_regression(running, tmp_path):
    killed_again_and_again(running, tmp_path, REGRESSION, REGRESSION_KILLS)


def test_offline_rl(running, tmp_path):
    summary = killed_again_and_again(running, tmp_path, OFFLINE_RL, OFFLINE_RL_KILLS)
    methods = [(cell["method"], cell["predictors"]) for cell in summary["cells"]]
    assert methods == [
        ("full", None),
        ("stratified", None),
        ("start", None),
        ("cloning", None),
        ("distilled", 3),
        ("distilled", "fresh"),
    ]
    card = (tmp_path / "reference" / "rounds" / "README.md").read_text()
    assert "**Training sets**" in card and "**Loss.**" in card and "| distilled K=fresh |" in card
