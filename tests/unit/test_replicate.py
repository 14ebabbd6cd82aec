"""`reprise replicate` and `reprise bounds`: how often results agree, and what theory asks for."""

import json

import numpy as np
import pytest
import yaml

from reprise.launch import replicate
from reprise.launch.cli import bounds
from reprise.launch.cli.main import main
from reprise.launch.config import ConfigError, load

CONFIG = {
    "experiment": "rl.lsvi",
    "mdp": {"family": "simplex", "states": 4, "actions": 2, "dimension": 3, "horizon": 2},
    "alphas": [0.5],
    "samples": [1_000_000_000],
    "runs": 1,
    "baseline": False,
    "regularization": 1e-4,
}


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text("# Tiny.\n" + yaml.safe_dump(CONFIG))
    return str(file)


def run(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_runs_share_internal_randomness_and_have_their_own_data(config, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["replicate", config, "--runs", "3", "--out", str(out), "--format", "json"]
    assert run(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "replicate.json").read_text())
    assert [result["seed"] for result in report["results"]] == [0, 1, 2]
    assert report["most_common_share"] == report["pairwise_identity"] == 1.0
    assert report["distinct_results"] == 1 and report["distance_mean"] == 0.0
    low, high = report["pairwise_identity_ci95"]
    assert low < 0.9 and high == 1.0  # one disjoint pair proves little
    configs = [yaml.safe_load((out / f"run-00{i}" / "config.yaml").read_text()) for i in range(3)]
    assert {one["internal_seed"] for one in configs} == {0}


def test_unrounded_results_differ_and_the_distance_says_how_much(config, tmp_path, capsys):
    out = tmp_path / "out"
    # The first of the runs is made in this process's stead and found finished.
    arguments = ["replicate", config, "alphas=[1.0e-6]", "seed=5", "--runs", "2"]
    assert run([*arguments, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "2 runs of rl.lsvi; internal randomness: seed 0, shared" in told
    report = json.loads((out / "replicate.json").read_text())
    assert report["pairwise_identity"] == 0.0 and report["most_common_share"] == 0.5
    assert [result["seed"] for result in report["results"]] == [5, 6]
    weights = []
    for i in range(2):
        with np.load(out / f"run-00{i}" / "checkpoints" / "final" / "weights.npz") as arrays:
            [name] = arrays.files
            weights.append(arrays[name])
    assert report["distance_mean"] == pytest.approx(np.linalg.norm(weights[0] - weights[1]))
    assert 0 < report["relative_distance_mean"] < 1e-2
    assert report["metric"] == "cells.-1.suboptimality"


def finished(path, seed, digest, value, weights):
    (path / "checkpoints" / "final").mkdir(parents=True)
    np.savez(path / "checkpoints" / "final" / "weights.npz", w=np.array(weights))
    summary = {"seed": seed, "weights_sha256": digest, "cells": [{"return_mean": value}]}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_numbers_worked_out_by_hand(config, tmp_path):
    paths = [
        finished(tmp_path / str(i), i, digest, value, weights)
        for i, (digest, value, weights) in enumerate(
            [
                ("a", 1.0, [3.0, 4.0]),
                ("a", 2.0, [3.0, 4.0]),
                ("b", 3.0, [0.0, 5.0]),
                ("a", 4.0, [3.0, 1.0]),
            ]
        )
    ]
    report = replicate.compare(load(config), paths, "cells.0.return_mean")
    assert report["most_common_share"] == 0.75
    assert report["pairwise_identity"] == 0.5  # 3 of 6 pairs
    # The most common result is chosen by looking: its share is no binomial one.
    assert "most_common_share_ci95" not in report
    # Without b: 1; without an a: 1/3. s^2 = 3/4 (3 (1/6)^2 + (1/2)^2) = 1/4, half 3.182 / 2 > .5.
    assert report["pairwise_identity_ci95"] == [0.0, 1.0]
    assert report["distance_mean"] == 2.5  # 0 and 5
    assert report["largest_difference"] == 4.0
    assert report["return_mean"] == 2.5
    # Student's t with 3 degrees of freedom: 3.182 * 1.291 / 2
    assert report["return_ci95"] == pytest.approx([2.5 - 2.0541, 2.5 + 2.0541], abs=1e-3)
    with pytest.raises(ConfigError, match="there are return_mean"):
        replicate.compare(load(config), paths, "cells.0.reward")
    with pytest.raises(ConfigError, match="should be a number"):
        replicate.compare(load(config), paths, "cells.0")


def test_the_interval_of_identical_pairs_is_a_jackknife_over_runs():
    # 40 runs, 38 alike: 703 of 780 pairs. Without a common one 666 of 741, without another 703/741.
    low, high = replicate.identity_interval(["a"] * 38 + ["b", "c"])
    common, other, mean = 666 / 741, 703 / 741, 703 / 780
    spread = 38 * (common - mean) ** 2 + 2 * (other - mean) ** 2
    half = 2.0227 * (39 / 40 * spread) ** 0.5  # t(.975, 39)
    assert (low, high) == pytest.approx((mean - half, 1.0), abs=1e-4) and mean + half > 1
    # All alike: twenty independent pairs refuse a share below .025^(1/20).
    assert replicate.identity_interval(["a"] * 40) == [pytest.approx(0.025**0.05), 1.0]
    assert replicate.identity_interval(["a", "b"]) == [0.0, pytest.approx(0.975)]


def test_a_failed_run_is_reported_with_its_log(config, tmp_path, capsys):
    code = run(["replicate", config, "weight_bound=0.001", "--out", str(tmp_path / "out")])
    assert code == 2
    assert "run-000.log" in capsys.readouterr().err
    assert "widen the bounds" in (tmp_path / "out" / "run-000.log").read_text()


def test_every_experiment_says_where_its_return_is():
    from reprise.launch.config import EXPERIMENTS

    assert all(experiment.headline for experiment in EXPERIMENTS.values())
    assert [name for name, experiment in EXPERIMENTS.items() if experiment.staged] == [
        "alignment.on_policy",
        "alignment.offline",
    ]


# -- bounds ----------------------------------------------------------------------------------------


PAPERS = ("2509.08660", "2601.08421")


def test_bounds_prints_every_theorem(capsys):
    assert run(["bounds", "--format", "json", "--dimension", "3"]) == 0
    rows = json.loads(capsys.readouterr().out)["theorems"]
    of = {paper: [row for row in rows if row["paper"] == paper] for paper in PAPERS}
    assert [row["theorem"] for row in of["2509.08660"]] == ["3.1", "3.2", "3.3", "4.1", "4.2"]
    theorems = [f"{row['kind']} {row['theorem']}" for row in of["2601.08421"]]
    assert theorems == [
        "Theorem 2.2",
        "Proposition 3.1",
        *["Theorem 3.2"] * 3,
        "Corollary 3.3",
        "Corollary 3.6",
        "Theorem 4.4",
    ]
    assert all(row["samples"] > 1e3 for row in rows if row["unit"] != "rounds")
    assert run(["bounds"]) == 0
    assert "R-LSVI-UCB" in capsys.readouterr().out


def test_bounds_refuses_what_no_theorem_covers(capsys):
    assert run(["bounds", "--rho", "0.02", "--delta", "0.01"]) == 2
    assert "rho must exceed 2 delta" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--coverage", "0.5", "coverage=0.5 must be at least 1"),
        ("--norm", "3", "norm=3.0 must lie in"),
        ("--eta", "1", "eta=1.0 must lie between 0 and 1"),
        ("--alpha", "0", "alpha=0.0 and r_0=1.0 must be above 0"),
        ("--radius", "0", "radius"),
    ],
)
def test_bounds_refuses_what_no_theorem_of_preferences_covers(capsys, option, value, words):
    assert run(["bounds", option, value]) == 2
    assert words in capsys.readouterr().err


def summary_with(tmp_path, agreement):
    (tmp_path / "run").mkdir()
    theory = {"epsilon": 0.1, "delta": 0.01, "rho": 0.2, "theorem": "4.1", "samples": 1e20}
    cells = [
        {"samples": n, "alpha": 0.2, "agreement_weights": a, "suboptimality": 0.01}
        for n, a in agreement
    ]
    summary = {"experiment": "rl.lsvi", "theory": theory, "cells": cells}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "run"


def test_bounds_beside_what_a_run_needed(tmp_path, capsys):
    path = summary_with(tmp_path, [(100, 0.1), (1000, 0.85), (10000, 1.0)])
    assert bounds.needed(path)["needed"] == 1000
    assert bounds.needed(path)["ratio"] == pytest.approx(1e17)
    assert run(["bounds", "--run", str(path)]) == 0
    assert "reached with 1e+03 samples" in capsys.readouterr().out


def test_bounds_says_when_no_cell_was_good_enough(tmp_path):
    path = summary_with(tmp_path, [(100, 0.1)])
    assert bounds.needed(path)["needed"] is None
    assert "no cell reached" in bounds.lines([], bounds.needed(path))[-1]
    with pytest.raises(ConfigError, match="no finished run"):
        bounds.needed(tmp_path)


def test_a_study_without_weights_is_compared_by_the_numbers_it_reports(tmp_path):
    for name, kl, seed in (("a", 0.5, 1), ("b", 0.5, 2), ("c", 0.75, 3)):
        (tmp_path / name).mkdir()
        summary = {"experiment": "x", "seed": seed, "seconds": seed, "curves": [{"kl_mean": kl}]}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    a, b, c = (replicate._summary(tmp_path / name)["weights_sha256"] for name in "abc")
    assert a == b != c
    assert replicate._distance(tmp_path / "a", tmp_path / "c")[0] == 0.25
