"""Variants against the first: paired by seed, by hand; over games; and the transcribed records."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from reprise.launch.tables import records
from reprise.rl.compared import at_step, differences, mean_entry, paired, scores
from reprise.rl.human_scores import human_normalized
from reprise.rollout.run.intervals import interquartile_mean, student
from reprise.rollout.run.run_dir import RunDir

ROOT = Path(__file__).parents[2]


def finished(folder, seed, returned, game="breakout", curve=()):
    path = folder / f"{game}-{returned}-{seed}"
    run_dir = RunDir(path, experiment="rl.pqn", seed=seed)
    for step, value in curve:
        run_dir.log(step=step, mean_return=value)
    score = human_normalized(game, returned)
    return SimpleNamespace(
        path=path,
        summary={
            "seed": seed,
            "mean_return_last_3": returned + 1,
            "evaluation_return_mean": returned,
            "evaluation_human_normalized": score,
            "greedy_human_normalized": score,
        },
    )


def test_a_mean_brings_its_error_and_its_degrees():
    entry = mean_entry("return", [1.0, 2.0, 6.0])
    assert entry["return_mean"] == 3 and entry["return_degrees"] == 2
    assert entry["return_se"] == pytest.approx(math.sqrt(7 / 3))
    assert mean_entry("return", [])["return_mean"] is None
    assert mean_entry("return", [4.0])["return_degrees"] == 0


def test_pairs_are_the_seeds_that_both_have():
    entry = paired([{1: 5.0, 2: 7.0, 3: 9.0}], [{2: 4.0, 3: 2.0, 4: 0.0}])
    assert entry["pairs"] == 2 and entry["difference_mean"] == 5.0
    assert entry["difference_se"] == pytest.approx(2.0) and entry["difference_degrees"] == 1
    with pytest.raises(ValueError, match="shorter"):
        paired([{1: 5.0}, {1: 5.0}], [{1: 4.0}])


def test_differences_are_from_the_first_variant_and_of_the_step_that_was_asked_for(tmp_path):
    def run(seed, base, late):
        return finished(tmp_path, seed, base, curve=[(100, base / 2), (200, late)])

    found = {
        "breakout": {
            "slow": [run(1, 4.0, 3.0), run(2, 6.0, 5.0), run(3, 5.0, 9.0)],
            "quick": [run(1, 3.0, 1.0), run(2, 3.5, 1.0), run(3, 4.5, 8.0)],
        }
    }
    entries = differences(found, [100, 200])
    assert {entry["variant"] for entry in entries} == {"quick"}
    by = {(entry["measure"], entry["step"]): entry for entry in entries}
    assert set(by) == {
        *(("return", None), ("evaluation", None)),
        *(("mean_return", 100), ("mean_return", 200)),
    }
    late = by["mean_return", 200]
    mean, half = student([-2.0, -4.0, -1.0])
    assert late["difference_mean"] == pytest.approx(mean)
    assert late["difference_se"] * 4.302652729911275 == pytest.approx(half)
    assert late["baseline_mean"] == pytest.approx(17 / 3) and late["difference_degrees"] == 2
    assert by["return", None]["variant_mean"] == pytest.approx(14 / 3)  # the last 3 episodes
    with pytest.raises(ValueError, match=r"checkpoints: 150, .*nearest is"):
        at_step(found["breakout"]["slow"], 150)


def test_scores_are_over_all_games_and_of_each(tmp_path):
    returns = {
        "breakout": {"baseline": [4.0, 6.0, 5.0], "other": [8.0, 7.0, 9.0]},
        "ms_pacman": {"baseline": [900.0, 1000.0, 700.0], "other": [1500.0, 900.0, 1600.0]},
    }
    found = {
        game: {
            variant: [finished(tmp_path, seed, value, game) for seed, value in enumerate(values)]
            for variant, values in variants.items()
        }
        for game, variants in returns.items()
    }
    by = {(one["games"], one["variant"]): one for one in scores(found)}
    assert len(by) == 6
    normalized = {
        variant: [human_normalized(g, value) for g in returns for value in returns[g][variant]]
        for variant in ("baseline", "other")
    }
    both = by["both", "other"]
    assert both["score_iqm"] == pytest.approx(interquartile_mean(np.array(normalized["other"])))
    gains = np.subtract(normalized["other"], normalized["baseline"])
    assert both["difference_mean"] == pytest.approx(gains.mean()) and both["pairs"] == 6
    assert both["difference_se"] == pytest.approx(gains.std(ddof=1) / math.sqrt(6))
    assert both["difference_degrees"] == 5 and by["breakout", "other"]["pairs"] == 3
    assert by["both", "baseline"]["pairs"] == 0
    assert by["both", "baseline"]["difference_mean"] is None
    low, high = both["score_iqm_interval"]
    assert min(normalized["other"]) <= low < both["score_iqm"] < high <= max(normalized["other"])


def test_games_without_a_human_score_have_none(tmp_path):
    found = {"cart": {"baseline": [finished(tmp_path, 0, 400.0, "CartPole-v1")]}}
    assert scores(found) == []


def test_transcribed_records_are_what_the_file_of_copied_numbers_says(tmp_path, monkeypatch):
    shutil.copy(ROOT / ".github/results/pqn_transcribed.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    made = records.transcribe(Path("pqn_transcribed.yaml"))
    compared = 0
    for record in made:
        there = ROOT / record
        origin = json.loads((there / "provenance.json").read_text())
        if "transcribed" in origin:  # else the run was made anew
            compared += 1
            assert "not made anew" in origin["transcribed"] and "32df7a1" in origin["transcribed"]
            for file in records.FILES:
                assert (record / file).read_bytes() == (there / file).read_bytes()
    assert compared >= 2
