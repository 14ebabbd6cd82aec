"""A killed distillation of offline RL data ends with the bits of one that was never interrupted."""

import json

from tests.system.kill_driver import kill_and_continue

CONFIG = {
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
KILLS = [
    "RunDir.log#1:half",  # a torn line; its cell is not there
    "RunDir.log#2:after",  # a cell logged and not kept
    "RoundWriter.write#1:after",  # a distilled set stored, its round unfinished
    "RunDir.finish#1:before",
]


def test_a_distillation_killed_again_and_again(running, tmp_path):
    config, reference = tmp_path / "config.json", tmp_path / "reference"
    config.write_text(json.dumps(CONFIG))
    result = running.run(config, reference)
    assert result.status == 0, result.said
    summary = json.loads((reference / "summary.json").read_text())
    methods = [(cell["method"], cell["predictors"]) for cell in summary["cells"]]
    assert methods == [
        ("full", None),
        ("stratified", None),
        ("start", None),
        ("cloning", None),
        ("distilled", 3),
        ("distilled", "fresh"),
    ]
    card = (reference / "rounds" / "README.md").read_text()
    assert "**Training sets**" in card and "**Loss.**" in card and "| distilled K=fresh |" in card
    assert kill_and_continue(running, config, tmp_path / "run", reference, KILLS) == []
