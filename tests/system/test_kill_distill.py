"""A killed distillation of regression data ends with the bits of one that was never interrupted."""

import json

from tests.system.kill_driver import kill_and_continue

CONFIG = {
    "experiment": "distill.regression",
    "data": {"name": "synthetic", "synthetic": {"dimension": 4, "points": 100}},
    "routes": ["sampled", "sampled_gauss_newton", "closed_form"],
    "sizes": [8, 12],
    "regressors": [10, 20],
    "trials": 3,
}
KILLS = [
    "RunDir.log#1:half",  # a torn line; its cell is not there
    "RunDir.log#2:after",  # a cell logged and not kept
    "replace#1:before",
    "RunDir.finish#1:before",
]


def test_a_distillation_killed_again_and_again(running, tmp_path):
    config, reference = tmp_path / "config.json", tmp_path / "reference"
    config.write_text(json.dumps(CONFIG))
    result = running.run(config, reference)
    assert result.status == 0, result.said
    assert kill_and_continue(running, config, tmp_path / "run", reference, KILLS) == []
