"""The hybrid sampler, round-size schedules, coverage of finished runs: on real tiny models."""

import json

import numpy as np
import pytest
import torch

from reprise.alignment import on_policy
from reprise.alignment.collector import stream_keys
from reprise.alignment.config import HybridDesign, Offline, OnPolicy, RoundSizes
from reprise.alignment.features import bounded, hidden_features, projection
from reprise.alignment.hybrid import DesignedPairs
from reprise.alignment.logprobs import pad_completions
from reprise.alignment.models import load_policy
from reprise.alignment.theory import coverage
from reprise.alignment.theory.config import CoverageOfRun
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.store import RoundStore

DESIGN = {"share": 0.5, "prompts": 6, "candidates": 4, "dimension": 3, "tolerance": 0.05}


def run(config, path):
    settings = (OnPolicy if config["experiment"].endswith("on_policy") else Offline)(**config)
    run_dir = RunDir(path, experiment=settings.experiment, seed=settings.seed)
    summary = on_policy.run(settings, run_dir)
    run_dir.finish(**summary)
    return json.loads((path / "summary.json").read_text())


@pytest.fixture(scope="module")
def hybrid(neox_lab, tmp_path_factory):
    path = tmp_path_factory.mktemp("hybrid") / "run"
    config = neox_lab.config(design=DESIGN, rounds=2, sampling__samples_per_prompt=2)
    return config, path, run(config, path)


def test_actions_are_the_designs_or_the_policys(hybrid):
    _, path, _ = hybrid
    with np.load(path / "design.npz") as arrays:
        design = DesignedPairs(**arrays)
    assert design.prompt_weights.sum() == pytest.approx(1)
    assert design.response_weights.shape == (6, 4)
    assert 3 <= float(design.value) <= 9 * 1.1
    candidates = {
        int(row): [tuple(design.candidate(i, j)) for j in range(4)]
        for i, row in enumerate(design.rows)
    }
    kinds = set()
    for k in range(2):
        data = RoundStore(path / "rounds").read(k).data
        assert len(data) == 8
        assert len(set(data.prompt_index[:4].tolist())) == 4
        assert design.untouched(data.prompt_index[4:]).sum() == 0  # x ~ mu
        for row in range(8):
            allowed = candidates.get(int(data.prompt_index[row]), [])
            of_design = [tuple(ids) in allowed for ids in data.completion_ids[row]]
            kinds.add(sum(of_design))
            if design.untouched(data.prompt_index[row : row + 1])[0]:
                assert not any(of_design)
        # Scored and measured like any other completion.
        assert np.isfinite(data.rewards).all()
        if k:
            assert (data.policy_logprobs[4:] != data.reference_logprobs[4:]).any()
    assert {0, 2} <= kinds


def test_a_prompt_that_comes_again_is_sampled_apart():
    rows = np.array([4, 7, 4, 7, 1, 4])
    keys, again = stream_keys(rows, 10)
    assert again.tolist() == [False, False, True, True, False, True]
    assert keys.tolist() == [4, 7, 12, 13, 1, 15]


def test_a_resumed_hybrid_run_is_the_same(hybrid, tmp_path):
    config, path, summary = hybrid
    again = run(config, tmp_path / "again")
    assert again["weights_sha256"] == summary["weights_sha256"]
    assert (tmp_path / "again" / "design.npz").stat().st_size == (
        path / "design.npz"
    ).stat().st_size


def test_both_actions_are_drawn_from_the_mixture():
    lengths = np.array([[1, 2], [3, 4]])
    design = DesignedPairs(
        rows=np.array([7, 9]),
        tokens=np.arange(10, dtype=np.int32),
        lengths=lengths,
        terminated=np.array([[True, False], [True, True]]),
        prompt_weights=np.array([0.25, 0.75]),
        response_weights=np.array([[0.5, 0.5], [0.1, 0.9]]),
        value=np.array(2.0),
    )
    assert [design.candidate(*at).tolist() for at in ((0, 0), (0, 1), (1, 0), (1, 1))] == [
        [0],
        [1, 2],
        [3, 4, 5],
        [6, 7, 8, 9],
    ]
    # D is uniform on 12 prompts, each of which comes 2,000 times; as many are drawn from mu.
    count = 24_000
    of_data = np.repeat(np.arange(12), count // 12)
    rows, given = design.append(of_data, count, 12, np.random.default_rng(0))
    assert rows[:count].tolist() == of_data.tolist()
    assert np.mean(rows[count:] == 9) == pytest.approx(0.75, abs=0.01)
    for row, mu, long in ((7, 0.25, 0.5), (9, 0.75, 0.9)):
        w = mu / (mu + 1 / 12)
        here = [
            [None] * 2 if given.completion_ids[i] is None else given.completion_ids[i]
            for i in np.flatnonzero(rows == row)
        ]
        of_design = np.array([[ids is not None for ids in pair] for pair in here])
        assert of_design.mean() == pytest.approx(w, abs=0.01)
        # Each action by itself, whichever part the prompt came from.
        assert of_design.all(axis=1).mean() == pytest.approx(w * w, abs=0.015)
        assert of_design[:2000].mean() == pytest.approx(w, abs=0.02)
        longer = len(design.candidate(design.rows.tolist().index(row), 1))
        drawn = [len(ids) == longer for pair in here for ids in pair if ids is not None]
        assert np.mean(drawn) == pytest.approx(long, abs=0.01)
        ended = given.terminated[rows == row]
        expected = [[ids is not None and (row == 9 or len(ids) == 1) for ids in p] for p in here]
        np.testing.assert_array_equal(ended, expected)
    others = ~np.isin(rows, (7, 9))
    np.testing.assert_array_equal(design.untouched(rows), others)
    assert all(given.completion_ids[i] is None for i in np.flatnonzero(others))


def test_round_sizes_shrink_and_end_large(neox_lab, tmp_path):
    sizes = RoundSizes(first=512, decay=0.5, last=384)
    assert sizes.sizes(4, 32) == [512, 256, 128, 384]
    assert RoundSizes(first=64, decay=0.1).sizes(3, 32) == [64, 32, 32]
    config = neox_lab.config(prompts_per_round={"first": 16, "decay": 0.5, "last": 12}, rounds=3)
    run(config, tmp_path / "run")
    store = RoundStore(tmp_path / "run" / "rounds")
    assert [len(store.read(k).data) for k in range(3)] == [16, 8, 12]


def test_a_design_needs_pairs_and_enough_prompts(neox_lab, tmp_path):
    with pytest.raises(ValueError, match=r"samples_per_prompt=3.*set it to 2"):
        OnPolicy(**neox_lab.config(design=DESIGN, sampling__samples_per_prompt=3))
    config = neox_lab.config(design={**DESIGN, "prompts": 1000})
    with pytest.raises(ValueError, match=r"design\.prompts=1000 exceeds the 40 prompts"):
        run(config, tmp_path / "many")
    config = neox_lab.config(design={**DESIGN, "dimension": 17})
    with pytest.raises(ValueError, match="dimension=17 exceeds the 16 hidden features"):
        run(config, tmp_path / "wide")
    config = neox_lab.config(design={**DESIGN, "prompts": 1, "candidates": 2})
    with pytest.raises(ValueError, match=r"design: .*span only.*lower design\.dimension=3"):
        run(config, tmp_path / "few")
    assert HybridDesign().share == 0.5


@pytest.mark.parametrize("lab", ["neox_lab", "llama_lab"])
def test_features_are_the_mean_hidden_state_whatever_the_batch(lab, request):
    model = load_policy(str(request.getfixturevalue(lab).policy), "policy", attention="eager")
    generator = np.random.default_rng(0)
    prompts = [generator.integers(5, 100, size=n).astype(np.int32) for n in (3, 7, 5)]
    completions = [generator.integers(5, 100, size=n).astype(np.int32) for n in (4, 1, 6)]
    together = hidden_features(model, prompts, completions, 0, 8)
    for row, (x, a) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.from_numpy(np.concatenate([x, a]).astype(np.int64))[None]
        with torch.inference_mode():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(together[row], hidden[len(x) :].mean(0), atol=1e-5)
    assert pad_completions(prompts, completions, 0)["prompt_ids"].shape == (3, 7)


def test_projections_are_shared_and_features_bounded():
    p = projection(16, 4, Streams(1))
    np.testing.assert_array_equal(p, projection(16, 4, Streams(1)))
    np.testing.assert_allclose(p.T @ p, np.eye(4), atol=1e-12)
    phi = bounded(np.random.default_rng(0).normal(size=(5, 3, 4)))
    assert np.linalg.norm(phi, axis=-1).max() == pytest.approx(1)


# -- coverage of a finished run ------------------------------------------------------------------


def test_within_prompt_covariance_is_unbiased_and_coverage_knows_scale():
    generator = np.random.default_rng(0)
    phi = generator.normal(size=(20_000, 2, 3)) * [1, 2, 3] + generator.normal(size=(20_000, 1, 3))
    parts = coverage.within_prompt(phi)
    np.testing.assert_allclose(parts.mean(0), np.diag([1, 4, 9]), atol=0.25)
    wide = coverage.within_prompt(phi * [2, 1, 1])
    ratio, mean = coverage.coverage(parts, wide)
    assert ratio == pytest.approx(4, rel=0.05)
    assert mean == pytest.approx(2, rel=0.05)
    assert 1 < coverage.noise_level(parts, np.random.default_rng(1)) < 1.1


def test_coverage_of_a_finished_run(hybrid, tmp_path):
    _, path, _ = hybrid
    config = CoverageOfRun(
        experiment="alignment.coverage", run=str(path), dimension=2, bootstrap=20
    )
    summary = coverage.run(config, RunDir(tmp_path, experiment=config.experiment, seed=0))
    held_out = [row for row in summary["rounds"] if row["samples"] == "held out"]
    assert [row["round"] for row in held_out] == [0, 1, 2]
    assert held_out[-1]["coverage"] == pytest.approx(1)  # of itself
    assert len(summary["rounds"]) == 5
    assert (tmp_path / "figure.png").exists()
    with pytest.raises(ValueError, match=r"evaluations/.*finished"):
        bad = config.model_copy(update={"run": str(tmp_path)})
        coverage.run(bad, RunDir(tmp_path / "x", experiment=config.experiment, seed=0))
