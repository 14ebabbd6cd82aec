"""Curves over seeds: gathering, intervals, the table, the figure."""

import json
import math

import pytest

from reprise.launch.tables.curves import draw, markdown, paired_difference, rounds_so_far
from reprise.rollout.run.intervals import student


def _record(round: int, reward: float) -> dict[str, float]:
    return {
        "round": round,
        "reward_mean": reward,
        "win_rate_vs_initial": 0.5,
        "rouge_l": 0.2,
        "kl_to_initial": 1.0,
    }


CURVES = {
    "on": [{0: _record(0, 0.0), 1: _record(1, 3.0)}, {0: _record(0, 0.0), 1: _record(1, 5.0)}],
    "offline": [{0: _record(0, 0.0), 1: _record(1, 1.0)}, {0: _record(0, 0.0)}],
}


def test_interval_is_students_t():
    # Values 3 and 5: deviation sqrt(2), error 1, and t(0.975, 1 degree of freedom) = 12.706.
    mean, half = student([3.0, 5.0])
    assert mean == 4.0
    assert half == pytest.approx(12.706, abs=1e-3)
    assert math.isnan(student([1.0])[1])


def test_difference_pairs_only_the_seeds_that_both_have():
    mean, half, seeds = paired_difference(CURVES, "on", "offline", "reward_mean", 1)
    assert (mean, seeds) == (2.0, 1)
    assert math.isnan(half)


def test_table_counts_the_seeds_behind_each_cell():
    lines = markdown(CURVES).splitlines()
    assert lines[0].startswith(
        "| method | round | reward | win rate | ROUGE-L | ln π/π₀ (nats) | seeds"
    )
    assert "| on | 1 | 4.000 ± 12.706 |" in lines[3]
    assert lines[5].endswith("| 1 |")


def test_a_running_run_is_read_up_to_its_last_whole_line(tmp_path):
    lines = [json.dumps(_record(0, 0.0)), json.dumps({"round": 1, "step": 3, "loss": 0.1})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"round": 1, "rew')
    assert list(rounds_so_far(tmp_path)) == [0]
    assert rounds_so_far(tmp_path / "absent") == {}


def test_figure_is_the_same_file_for_the_same_curves(tmp_path):
    draw(CURVES, tmp_path / "a", "caption")
    draw(CURVES, tmp_path / "b", "caption")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
