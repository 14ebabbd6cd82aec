"""Statistics of the offline RL study: the training set is the unit, whatever was done on it."""

import json

import numpy as np
import pytest
import torch

from reprise.distill.banks import Bank, random_networks
from reprise.distill.config import DistillOfflineRL
from reprise.distill.offline_rl import mismatch
from reprise.distill.offline_rl_means import compare, means, paired, paired_means
from reprise.distill.offline_rl_sets import TrainingSet, training_sets
from reprise.distill.predictors import Batch, bellman_losses
from reprise.launch.config import ConfigError, load
from reprise.launch.run import execute
from reprise.rollout.run.intervals import student_quantile

pytestmark = pytest.mark.portable

SETTINGS = {
    "experiment": "distill.offline_rl",
    "data": ["mixed", "random"],
    "data_seeds": [0, 3],
    "sizes": [12],
    "predictors": [5],
    "methods": ["stratified", "start"],
    "seeds": 3,
}


def made():
    """Config and returns whose differences lie in the sets, not in their seeds."""
    config = DistillOfflineRL.model_validate(SETTINGS)
    results = {}
    gaps = {"mixed": 3.0, "mixed-3": -5.0, "random": 60.0, "random-3": 40.0}
    for one in training_sets(config):
        noise = np.array([-1.0, 0.0, 1.0])
        values = {
            "full": 300 + noise,
            "12-stratified": 50 + noise,
            "12-start": 100 + noise,
            "12-distilled-5": 100 + gaps[one.name] + noise[::-1],
        }
        for cell, returns in values.items():
            results[f"{one.name}-{cell}"] = {"returns": returns, "held_out": returns / 100}
    return config, results, np.array([*gaps.values()])


def test_training_sets_have_their_kind_as_name_and_their_seed_where_it_is_not_0():
    config = DistillOfflineRL.model_validate(SETTINGS)
    assert [one.name for one in training_sets(config)] == ["mixed", "mixed-3", "random", "random-3"]
    assert TrainingSet("mixed", 3).about == {"data": "mixed", "data_seed": 3}


def test_over_sets_the_interval_is_that_of_the_sets():
    config, results, gaps = made()
    found = {(one["data"], one["against"]): one for one in paired_means(config, results)}
    one = found["all", "start"]
    half = student_quantile(3) * gaps.std(ddof=1) / 2
    assert one["difference"] == pytest.approx(gaps.mean()) and one["units"] == 4
    assert one["difference_ci95"] == pytest.approx([gaps.mean() - half, gaps.mean() + half])
    # The twelve seeds pooled would have said that it is above zero.
    pooled = compare(
        *(
            np.concatenate([results[f"{s.name}-{m}"]["returns"] for s in training_sets(config)])
            for m in ("12-distilled-5", "12-start")
        )
    )
    assert pooled["p"] < 0.05 < one["p"] and pooled["units"] == 12
    mixed = found["mixed", "start"]
    assert mixed["units"] == 2 and mixed["difference"] == pytest.approx(-1)
    assert found["all", "full"]["difference"] == pytest.approx(gaps.mean() - 200)
    alone = {(o["data"], o["data_seed"], o["against"]): o for o in paired(config, results)}
    assert alone["random", 0, "start"]["difference"] == pytest.approx(60)
    assert alone["random", 0, "start"]["units"] == 3
    assert len(alone) == 4 * 3 and len(found) == 3 * 3
    json.dumps([*found.values(), *alone.values()], allow_nan=False)


def test_means_are_of_sets_with_differences_to_the_stratified_subset():
    config, results, gaps = made()
    found = {(one["data"], one["method"]): one for one in means(config, results)}
    one = found["all", "distilled"]
    assert one["return_mean"] == pytest.approx(100 + gaps.mean()) and one["units"] == 4
    assert one["minus_stratified"] == pytest.approx(50 + gaps.mean())
    half = student_quantile(3) * gaps.std(ddof=1) / 2
    low, high = one["minus_stratified_ci95"]
    assert high - low == pytest.approx(2 * half)
    assert found["mixed", "full"]["minus_stratified"] is None
    assert found["random", "start"]["return_ci95"] == pytest.approx([100, 100])
    assert one["held_out_bellman_error"] == pytest.approx(1 + gaps.mean() / 100)


def test_a_single_set_has_no_interval_over_sets():
    assert compare(np.array([2.0]), np.array([1.0])) == {
        "difference": 1.0, "difference_ci95": [None, None], "t": None, "p": None,
        "wilcoxon_p": None, "units": 1,
    }  # fmt: skip


def test_the_printed_objective_is_the_sum_of_squared_differences_of_losses():
    draw = np.random.default_rng(0)
    ended = torch.arange(10) >= 8
    full = Batch(
        torch.as_tensor(draw.standard_normal((10, 2))),
        torch.as_tensor(draw.integers(0, 2, 10)),
        torch.as_tensor(draw.standard_normal(10)),
        torch.as_tensor(draw.standard_normal((10, 2))),
        ended,
    )
    networks, scales = random_networks(draw, full, 1, 2, units=5, dtype=torch.float64)(4)
    bank = Bank.of(networks, scales.double(), full, 0.9)
    some = full.rows(torch.tensor([0, 1, 8]))
    there = [part[0] for part in bellman_losses(networks, scales.double(), full, 0.9)]
    here = [part[0] for part in bellman_losses(networks, scales.double(), some, 0.9)]
    found = {loss: mismatch(bank, some, 0.9, loss)[:, 0] for loss in ("squared", "huber")}
    for kind in (0, 1):
        gaps = [float(a - b) for a, b in zip(here[kind], there[kind], strict=True)]
        squares = [gap**2 for gap in gaps]
        assert float(found["squared"][kind]) == pytest.approx(sum(squares) / 4, rel=1e-12)
        relative = [abs(gap) / float(b) for gap, b in zip(gaps, there[kind], strict=True)]
        huber = [r * r / 2 if r < 1 else r - 0.5 for r in relative]
        assert float(found["huber"][kind]) == pytest.approx(sum(huber) / 4, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data_seeds=[1,1]", r"data_seeds=\[1, 1\]: each may be given once"),
        ("data=[random,random]", "each may be given once"),
        ("distillation.loss=squared", "distillation.loss=squared with distillation.match=backups"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        load("paper/distill_cartpole", [change])


def test_two_data_seeds_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRISE_CACHE", str(tmp_path / "cache"))
    small = {"backups": 2, "steps": 2, "ensemble": 1, "units": 8}
    config = {
        **SETTINGS, "data": ["random"], "data_size": 400, "seeds": 2, "downstream": small,
        "episodes": 1, "held_out": 5,
        "distillation": {"loss": "squared", "learn_rewards": True, "steps": 3, "units": 8},
    }  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    execute(file, out=tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    sets = summary["data"]
    assert [(one["data"], one["data_seed"]) for one in sets.values()] == [
        ("random", 0),
        ("random", 3),
    ]
    kept = [np.load(tmp_path / "run" / "checkpoints" / f"{name}-12-start" / "arrays.npz")
            for name in sets]  # fmt: skip
    assert not np.array_equal(*(one["weights_states"] for one in kept))
    distilled = [one for one in summary["cells"] if one["method"] == "distilled"]
    assert [one["data_seed"] for one in distilled] == [0, 3]
    mean = next(o for o in summary["means"] if (o["data"], o["method"]) == ("all", "distilled"))
    assert mean["return_mean"] == pytest.approx(np.mean([o["return_mean"] for o in distilled]))
    assert [one["round"] for one in summary["rounds"]] == [0, 1]
    card = (tmp_path / "run" / "rounds" / "README.md").read_text()
    assert "data seeds\n0, 3" in card and "squared differences" in card
