"""The bandit's estimator against scikit-learn and KKT; experiments against theory; bad input."""

import json
import math

import numpy as np
import pytest
import torch

from reprise.alignment.config import PDFR, RDRC, RoundSizes
from reprise.alignment.pairs import make_targets
from reprise.alignment.theory import studies as bandit_studies
from reprise.alignment.theory.bandit import Bandit, random_bandit, skewed
from reprise.alignment.theory.config import BanditExperiment, DesignExperiment
from reprise.alignment.theory.constrained import project
from reprise.alignment.theory.learning import (
    Batch,
    PairTable,
    draw,
    fit,
    kkt,
    learn,
    objective_of,
    win_probability,
)
from reprise.alignment.theory.report import quantile_interval, slope
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.types import Pairs


def batch_from(bandit, size, replicas=6, seed=0):
    table = PairTable.of(bandit)
    uniform = table.probabilities(
        bandit.prompts, torch.ones_like(bandit.base) / bandit.base.shape[1]
    )
    wins = win_probability(bandit, table)
    generator = np.random.default_rng(seed)
    return table, draw(uniform.expand(replicas, -1), wins, size, generator)


def zeros(bandit, replicas=6):
    return torch.zeros(replicas, bandit.features.shape[2], dtype=torch.float64)


def test_the_slack_estimator_is_unregularized_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    bandit = random_bandit(4, 5, 3, 4.0, np.random.default_rng(1), gamma=0.7)
    table, batch = batch_from(bandit, 3000)
    theta = fit(bandit, table, batch, objective_of("dpo", 0.7), zeros(bandit))
    assert float(theta.norm(dim=1).max()) < bandit.radius  # slack, or there is nothing to compare
    delta = bandit.features[table.prompt, table.first] - bandit.features[table.prompt, table.second]
    for row in range(len(theta)):
        wins, losses = batch.wins[row], batch.counts[row] - batch.wins[row]
        model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=5000)
        model.fit(
            (0.7 * torch.cat([delta, delta])).numpy(),
            np.repeat([1, 0], len(delta)),
            sample_weight=torch.cat([wins, losses]).numpy(),
        )
        np.testing.assert_allclose(theta[row], model.coef_[0], atol=1e-6)


@pytest.mark.parametrize("norm", [1.0, 1.5, 2.0, math.inf])
@pytest.mark.parametrize("size", [10, 60, 4000])
def test_kkt_holds_wherever_the_constraint_binds(norm, size):
    # With ten pairs the data are separable: only the ball gives a minimizer.
    bandit = random_bandit(3, 4, 3, 1.0, np.random.default_rng(2), gamma=2.0)
    bandit = Bandit(
        bandit.features, bandit.base, bandit.prompts, 0.2 * bandit.theta_star, 2.0, 0.5, norm
    )
    table, batch = batch_from(bandit, size)
    for name in ("dpo", "pdfr", "rebel"):
        objective = objective_of(name, 2.0)
        theta = fit(bandit, table, batch, objective, zeros(bandit))
        lengths = torch.linalg.vector_norm(theta, norm, dim=1)
        assert float(lengths.max()) <= 0.5 * (1 + 1e-9)
        residual = kkt(bandit, table, batch, objective, zeros(bandit), theta)
        assert float(residual.max()) < 1e-6, (name, residual)
        if size == 10 and name == "dpo":
            assert float(lengths.max()) > 0.499


def test_a_wrong_point_does_not_satisfy_kkt():
    bandit = random_bandit(3, 4, 3, 1.0, np.random.default_rng(2), gamma=2.0)
    table, batch = batch_from(bandit, 60)
    objective = objective_of("dpo", 2.0)
    assert float(kkt(bandit, table, batch, objective, zeros(bandit), zeros(bandit)).min()) > 1e-2


@pytest.mark.parametrize("norm", [1.0, 1.5, 2.0, math.inf])
def test_projections_are_nearest_points(norm):
    generator = torch.Generator().manual_seed(0)
    points = 3 * torch.randn(20, 4, generator=generator).double()
    projected = project(points, 1.3, norm)
    assert float(torch.linalg.vector_norm(projected, norm, dim=1).max()) <= 1.3 * (1 + 1e-9)
    others = project(torch.randn(500, 4, generator=generator).double(), 1.3, norm)
    # The angle to every other point of the ball is obtuse.
    inner = (points - projected) @ others.T - ((points - projected) * projected).sum(1)[:, None]
    assert float(inner.max()) <= 1e-8


def test_targets_are_those_of_the_language_model_trainers():
    bandit = random_bandit(2, 4, 3, 2.0, np.random.default_rng(3), gamma=0.5)
    table = PairTable.of(bandit)
    rows = range(len(table.prompt))
    previous = bandit.log_policy(bandit.theta_star / 3)

    def columns(values):
        return table.both(values).numpy().astype(np.float32)

    pairs = Pairs(
        prompt_index=table.prompt.numpy(),
        prompt_ids=[np.array([1], np.int32) for _ in rows],
        first_ids=[np.array([int(a)], np.int32) for a in table.first],
        second_ids=[np.array([int(a)], np.int32) for a in table.second],
        terminated=np.ones((len(rows), 2), dtype=bool),
        rewards=columns(bandit.rewards),
        policy_logprobs=columns(previous),
        reference_logprobs=columns(bandit.base),
        label_uniform=np.full(len(rows), 0.5),
        weight=np.ones(len(rows), np.float32),
    )
    soft = make_targets(pairs, PDFR(name="pdfr", gamma=0.5, reference="initial", beta=1.0), 0.5)
    np.testing.assert_allclose(soft.target, win_probability(bandit, table), atol=1e-6)
    rdrc = objective_of("rdrc", 0.5, calibration=1.0)
    assert isinstance(rdrc, RDRC)
    # With full calibration what is left to learn is r - gamma theta_k . phi.
    left = 2 / 3 * table.difference(bandit.rewards).numpy()
    np.testing.assert_allclose(make_targets(pairs, rdrc, 0.5).target, left, atol=1e-5)


# A round of 40,000 pairs in which response 1 was never drawn: (first, second): (drawn, won).
UNSEEN = {
    (0, 2): (9595, 3314),
    (0, 3): (2940, 1013),
    (0, 4): (1105, 374),
    (0, 5): (905, 319),
    (2, 3): (6153, 3115),
    (2, 4): (2354, 1132),
    (2, 5): (1955, 1002),
    (3, 4): (697, 360),
    (3, 5): (565, 297),
    (4, 5): (251, 139),
}


@pytest.mark.parametrize("length", [8.0, 6.5, 5.0])
def test_what_no_pair_speaks_of_stays_whatever_the_last_bit(length):
    # Where the ball binds on the way the open direction was once left to rounding: 3 apart.
    bandit = skewed(6, 8.0, norm=2.0)
    table, objective = PairTable.of(bandit), objective_of("dpo", bandit.gamma)
    start = torch.tensor([-2.18192, -6.18159, 3.53287, 2.31924, 1.33807, 1.17333]).double()
    start = start * length / start.norm()
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-2, 3, (40, 6), generator=generator).double()
    starts = start * (1 + bits * 2.2e-16)
    drawn = [
        UNSEEN.get((int(a), int(b)), (0, 0)) for a, b in zip(table.first, table.second, strict=True)
    ]
    counts, wins = torch.tensor(drawn).double().T.expand(40, -1, -1).unbind(1)
    batch = Batch(counts, wins, 40_000)
    fitted = fit(bandit, table, batch, objective, starts)
    assert float(kkt(bandit, table, batch, objective, starts, fitted).max()) < 1e-6
    torch.testing.assert_close(fitted, fitted[:1].expand(40, -1), atol=1e-9, rtol=0)
    # Open are e_1, and a shift of all: they keep the start's direction, and its length if it fits.
    open_ = torch.stack([torch.eye(6)[1], torch.ones(6) - torch.eye(6)[1]]).double()
    open_ = open_ / open_.norm(dim=1, keepdim=True)
    before, after = open_ @ start, open_ @ fitted[0]
    seen = fitted[0] - after @ open_
    room = math.sqrt(64 - float(seen.square().sum()))
    kept = min(1.0, room / float(before.norm()))
    torch.testing.assert_close(after, kept * before, atol=1e-9, rtol=0)


# -- what the theorems say -----------------------------------------------------------------------


def median_kl(bandit, sampler, size, rounds, replicas=24):
    path = learn(
        bandit,
        objective_of("dpo", bandit.gamma),
        sampler,
        [size] * rounds,
        replicas,
        Streams(0),
        "",
    )
    return bandit.errors(path)["kl"].median(dim=1).values


def test_rounds_converge_above_the_threshold_and_not_below():
    bandit = skewed(6, 8.0, norm=2.0)
    above, below = (median_kl(bandit, "on_policy", n, 4) for n in (100_000, 50))
    offline = median_kl(bandit, "offline", 100_000, 4)
    assert above[-1] < 0.05 * above[0]
    assert below[-1] > 4 * above[-1]
    assert above[-1] < offline[-1]


def test_a_policy_that_only_repeats_itself_learns_nothing_and_stays():
    bandit = skewed(6, 8.0, norm=2.0)
    table = PairTable.of(bandit)
    theta = torch.zeros(2, 6).double()
    theta[:, 0], theta[:, 1] = 0.6 * 8, -0.8 * 8  # on the sphere, but for rounding
    nothing = draw(
        torch.zeros(2, 15).double(), win_probability(bandit, table), 9, np.random.default_rng(0)
    )
    stayed = fit(bandit, table, nothing, objective_of("dpo", bandit.gamma), theta)
    torch.testing.assert_close(stayed, theta, atol=1e-9, rtol=0)


def test_pairs_have_the_frequencies_they_should():
    bandit = random_bandit(2, 3, 2, 1.0, np.random.default_rng(4))
    table = PairTable.of(bandit)
    p = table.probabilities(bandit.prompts, bandit.base.exp())
    same = (bandit.prompts[:, None] * bandit.base.exp().square()).sum()
    assert float(p.sum() + same) == pytest.approx(1)
    wins = win_probability(bandit, table)
    batch = draw(p[None], wins, 400_000, np.random.default_rng(0))
    np.testing.assert_allclose(batch.counts[0] / 400_000, p, atol=0.003)
    # The rarest pair comes a thousand times.
    np.testing.assert_allclose(batch.wins[0] / batch.counts[0], wins, atol=0.05)


def test_slopes_are_found_with_their_interval():
    generator, x = np.random.default_rng(0), np.array([10, 100, 1000, 10_000])
    values = 3 / np.sqrt(x)[:, None] * generator.gamma(4, 0.25, size=(4, 60))
    fitted, (low, high), degrees = slope(x, values)
    assert low < -0.5 < high
    assert 100 < degrees <= 4 * 59  # of four positions with 59 each
    assert fitted == pytest.approx(-0.5, abs=0.05)
    assert high - low < 0.2


def test_schedules():
    assert RoundSizes(first=512, decay=0.5).sizes(4) == [512, 256, 128, 64]
    assert RoundSizes(first=8, decay=0.1, last=100).sizes(4) == [8, 1, 1, 100]
    # Halves go up, whatever the last bit of a power of a decimal: 250 (.1)^2 is 2.5.
    assert RoundSizes(first=250, decay=0.1).sizes(4) == [250, 25, 3, 1]
    assert RoundSizes(first=5, decay=0.5).sizes(3, least=2) == [5, 3, 2]


def test_theorem_5_1_slopes(tmp_path):
    config = {
        "experiment": "alignment.bandit",
        "instance": {"kind": "dyadic", "responses": 20, "radius": 2.0, "gamma": 1.0},
        "replicas": 60,
        "study": {
            "name": "scaling",
            "methods": [{"name": "DPO"}, {"name": "REBEL", "objective": "rebel"}],
            "pairs_per_round": [128, 1024, 8192],
            "rounds": 2,
            "measure": "deviation",
        },
    }
    summary = run(config, tmp_path)
    noisy, noiseless = (row["slope"] for row in summary["slopes"])
    assert -0.7 < noisy < -0.35
    assert -1.25 < noiseless < -0.8
    assert (tmp_path / "table.md").read_text().startswith("| method | slope | ci95 |")
    assert (tmp_path / "figure.svg").stat().st_size > 1000


def run(config, path):
    settings = BanditExperiment.model_validate(config)
    run_dir = RunDir(path, experiment=settings.experiment, seed=settings.seed)
    summary = bandit_studies.run(settings, run_dir)
    run_dir.finish(**summary)
    return json.loads((path / "summary.json").read_text())


SKEWED = {"kind": "skewed", "dimension": 4, "radius": 4.0}


def test_summary_of_rounds(tmp_path):
    methods = [
        {"name": "on"},
        {"name": "half", "sampler": "hybrid", "schedule": {"first": 400, "decay": 0.5, "last": 9}},
    ]
    study = {"name": "rounds", "methods": methods, "pairs_per_round": [50, 500], "rounds": 3}
    config = {"experiment": "alignment.bandit", "instance": SKEWED, "replicas": 4, "study": study}
    summary = run(config, tmp_path)
    wanted = {"prompts", "responses", "dimension", "radius", "gamma", "coverage"}
    assert wanted <= set(summary["instance"])
    assert len(summary["curves"]) == 3 * 4
    keys = "method pairs_per_round round kl_mean kl_ci95 theta_error_mean seeds".split()
    for curve in summary["curves"]:
        assert set(keys) <= set(curve)
        assert curve["kl_ci95"][0] <= curve["kl_mean"] <= curve["kl_ci95"][1]
    scheduled = [c for c in summary["curves"] if c["method"] == "half"]
    assert scheduled[-1]["pairs_per_round"] == [400, 200, 9]
    assert scheduled[-1]["pairs"] == 609
    again = run(config, tmp_path / "again")
    assert again["curves"] == summary["curves"]


@pytest.mark.parametrize(
    ("instance", "study"),
    [
        (SKEWED, {"name": "coverage", "radii": [2.0, 3.0, 4.0], "dimensions": [4], "norms": [1.0]}),
        (
            {"kind": "skewed", "dimension": 2, "radius": 3.0},
            {"name": "regions", "pairs_per_round": 300, "rounds": 2},
        ),
        (
            SKEWED,
            {
                "name": "complexity",
                "errors": [3.0, 2.0, 1.5],
                "pairs_per_round": [200, 800, 3200],
                "rounds": 2,
            },
        ),
        (
            {"kind": "random", "prompts": 3, "responses": 3, "dimension": 2, "radius": 2.0},
            {
                "name": "network",
                "width": 3,
                "steps": 30,
                "pairs_per_round": [20, 40, 80],
                "rounds": 1,
            },
        ),
    ],
)
def test_every_study_runs_and_leaves_table_and_figure(tmp_path, instance, study):
    config = {"experiment": "alignment.bandit", "instance": instance, "replicas": 3, "study": study}
    summary = run(config, tmp_path)
    assert summary["study"] == study["name"]
    assert (tmp_path / "table.md").read_text().count("\n") > 3
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_slopes_interval_covers_at_its_level():
    x, hits = np.array([10, 100, 1000]), 0
    for trial in range(400):
        generator = np.random.default_rng(trial)
        values = 3 / np.sqrt(x)[:, None] * generator.gamma(4, 0.25, size=(3, 10))
        _, (low, high), _ = slope(x, values)
        hits += low < -0.5 < high
    assert 0.92 <= hits / 400 <= 0.98


def test_intervals_of_the_ratio_of_pairs(tmp_path):
    study = {
        "name": "complexity",
        "errors": [3.0, 2.0, 1.5],
        "pairs_per_round": [200, 800, 3200],
        "rounds": 2,
    }
    config = {"experiment": "alignment.bandit", "instance": SKEWED, "replicas": 30, "study": study}
    summary = run(config, tmp_path)
    for row in summary["pairs"]:
        low, high = row["ratio_ci95"]
        assert row["groups"] == 10
        assert 0 < low < row["ratio"] < high
        # The geometric mean of ten groups' ratios is the ratio of all, to within a factor of two:
        # a group has three replicas.
        assert 0.5 < row["ratio"] / (row["offline"] / row["on_policy"]) < 2


def test_quantiles_have_intervals_over_groups():
    values = np.random.default_rng(0).exponential(size=2000)
    whole, (low, high), groups = quantile_interval(values, 0.95)
    assert groups == 10
    assert whole == pytest.approx(np.quantile(values, 0.95))
    assert low < -math.log(0.05) < high and high - low < 0.6


def test_proposition_2_1_coverage_grows_as_e_to_the_radius(tmp_path):
    study = {"name": "coverage", "radii": [6.0, 8.0, 10.0], "dimensions": [4], "norms": [1.0, 2.0]}
    config = {"experiment": "alignment.bandit", "instance": SKEWED, "study": study}
    for row in run(config, tmp_path)["slopes"]:
        assert row["last slope"] == pytest.approx(row["theory"], rel=0.12)


def test_design_experiment(tmp_path):
    from reprise.alignment.theory import design_study

    config = DesignExperiment(
        experiment="alignment.design",
        prompts=30,
        responses=5,
        dimension=3,
        replicas=1,
        families=["sphere", "axes", "heavy"],
    )
    summary = design_study.run(config, RunDir(tmp_path, experiment=config.experiment, seed=0))
    assert 3 <= summary["value"] <= 3 * 1.01
    assert summary["bound"] == 3
    assert {"dimension", "gap", "support"} <= set(summary)
    for record in summary["designs"]:
        assert record["Eq. 7 at least"] <= record["Eq. 7"] <= record["preferential"] <= 9 * 1.01**2


# -- bad input -----------------------------------------------------------------------------------


def changed(**changes):
    good = random_bandit(2, 3, 2, 1.0, np.random.default_rng(0))
    return Bandit(
        **{**{name: getattr(good, name) for name in good.__dataclass_fields__}, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": 2 * torch.ones(2, 3, 2).double()}, "norm 2.828.*divide all features"),
        ({"gamma": 0.0}, "gamma=0.0: .* above 0"),
        ({"gamma": -1.0}, "gamma=-1.0"),
        ({"radius": 0.1}, "outside the ball .* enlarge radius"),
        ({"norm": 3.0}, r"norm=3.0.*\[1, 2\]"),
        ({"features": torch.zeros(2, 1, 2)}, "two responses"),
    ],
)
def test_bad_instances_say_what_to_do(changes, words):
    with pytest.raises(ValueError, match=words):
        changed(**changes)


def test_an_odd_dimension_has_no_balanced_codeword():
    with pytest.raises(ValueError, match="even dimension"):
        skewed(5, 6.0)
    with pytest.raises(ValueError, match=r"radius above ln\(dimension\)"):
        skewed(6, 2.0)
