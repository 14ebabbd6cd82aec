"""R-LSVI and R-LSVI-UCB: the known optimum, exploration, replication, and the experiment."""

import json

import numpy as np
import pytest

from reprise.launch.run import execute
from reprise.rl.replicable import linear_mdp
from reprise.rl.replicable.agreement import identities, pairwise_identity
from reprise.rl.replicable.lsvi import core_set, lsvi, lsvi_ucb

DRAW = np.random.default_rng
MDP = linear_mdp.random_finite(8, 3, 4, 4, DRAW(0))
CORE = core_set(MDP.features.reshape(-1, 4))


def learn(samples, alpha, replicas=10, seed=0, **options):
    options = {"regularization": 1e-6, **options}
    draws = [DRAW((seed, run, samples)) for run in range(replicas)]
    return lsvi(MDP, CORE, samples, draws, DRAW(99), alpha=alpha, **options)


# -- core sets -------------------------------------------------------------------------------------


def test_the_core_set_is_an_optimal_design():
    phi = MDP.features.reshape(-1, 4)
    chosen = phi[CORE.rows]
    moment = (chosen * CORE.weights[:, None]).T @ chosen
    leverage = np.einsum("nd,de,ne->n", phi, np.linalg.inv(moment), phi)
    assert leverage.max() == pytest.approx(CORE.leverage)
    assert 4 - 1e-9 <= CORE.leverage <= 4 * 1.01
    assert CORE.weights.sum() == pytest.approx(1) and CORE.weights.min() > 0
    assert len(CORE.rows) < len(phi)


def test_a_basis_is_its_own_core_set_and_definition_3_1_wants_the_square():
    core = core_set(np.eye(5))
    assert core.weights == pytest.approx(np.full(5, 0.2))
    assert core.leverage == pytest.approx(5)
    # e_1 = eta_1 nu_1 e_1 needs eta_1 = 5: |eta|^2 = 25, five times the number of vectors.
    assert core.printed == pytest.approx(25)


def test_a_core_set_of_vectors_that_do_not_span():
    vectors = np.array([[1.0, 0, 0], [0, 1.0, 0], [0.5, 0.5, 0]])
    core = core_set(vectors)
    assert core.leverage == pytest.approx(2, rel=0.02)
    assert set(core.rows) == {0, 1}
    with pytest.raises(ValueError, match="not zero"):
        core_set(np.zeros((3, 2)))


# -- generative access -----------------------------------------------------------------------------


def test_lsvi_finds_the_known_optimum_as_samples_grow():
    _, best = MDP.optimal()
    lost = [
        (best - MDP.policy_value(learn(samples, None).policies)).mean()
        for samples in (30, 1000, 1_000_000)
    ]
    assert lost[0] > 5 * lost[1] >= 5 * lost[2]
    assert lost[2] == pytest.approx(0, abs=1e-6)


def test_lsvi_weights_converge_to_those_of_the_optimal_values():
    values, _ = MDP.optimal()
    ahead = np.concatenate([values, np.zeros((1, 8))])
    exact = MDP.theta + np.einsum("hds,hs->hd", MDP.mu, ahead[1:])  # Q* = <phi, theta + mu V*>
    assert np.abs(learn(100_000_000, None).weights - exact).max() < 2e-3


def test_rounded_lsvi_replicates_as_samples_grow_and_unrounded_does_not():
    few, many = (learn(samples, 0.1) for samples in (100, 100_000_000))
    assert pairwise_identity(identities(few.weights)) < 0.3
    assert (identities(many.weights) == 0).all() and (identities(many.policies) == 0).all()
    assert pairwise_identity(identities(learn(100_000_000, None).weights)) == 0
    _, best = MDP.optimal()
    assert (best - MDP.policy_value(many.policies)).max() < 0.1


def test_the_prediction_is_near_what_is_measured():
    outs = []
    for seed in range(25):
        draws = [DRAW((7, seed, run)) for run in range(12)]
        outs.append(lsvi(MDP, CORE, 10_000, draws, DRAW(seed), alpha=0.1, regularization=1e-6))
    measured = [pairwise_identity(identities(out.weights)) for out in outs]
    product = [out.trace.product for out in outs]
    error = np.std(measured) / np.sqrt(len(measured))
    assert 0.1 < np.mean(measured) < 0.95
    assert abs(np.mean(measured) - np.mean(product)) < 4 * error
    assert np.mean([out.trace.bound for out in outs]) < np.mean(product)


# -- episodic access -------------------------------------------------------------------------------


@pytest.mark.parametrize("cap, rounds", [("remaining", 60), ("horizon", 120)])
def test_ucb_explores_the_chain_that_greedy_does_not(cap, rounds):
    chain = linear_mdp.chain(5, 5)
    values = {}
    for beta in (0.0, 0.5):
        out = lsvi_ucb(
            chain,
            rounds,
            50,
            [DRAW(run) for run in range(2)],
            DRAW(0),
            alpha=None,
            alpha_covariance=None,
            beta=beta,
            regularization=1e-3,
            cap=cap,
        )
        values[beta] = chain.policy_value(out.policies)
    assert values[0.0].max() <= 0.05 + 1e-9
    assert values[0.5][:, -1] == pytest.approx(1.0)


def ucb(episodes, alpha, seed=0, **options):
    chain = linear_mdp.chain(3, 3, slip=0.1)
    options = {"alpha_covariance": alpha, "beta": 0.5, "regularization": 1e-3, **options}
    draws = [DRAW((seed, run)) for run in range(5)]
    return lsvi_ucb(chain, 8, episodes, draws, DRAW(1), alpha=alpha, **options)


def test_rounded_ucb_replicates_with_enough_episodes():
    assert pairwise_identity(ucb(100, 0.1).trace.classes) == 0
    many = ucb(10**12, 0.1)
    assert (many.trace.classes == 0).all() and (identities(many.policies) == 0).all()
    assert many.policies.shape == (5, 9, 3, 3)


def test_values_of_the_last_round_carry_rewards_back_one_step_a_round():
    chain = linear_mdp.chain(3, 3)
    learned = {}
    for backup in ("sweep", "previous"):
        out = lsvi_ucb(
            chain,
            1,
            1000,
            [DRAW(0)],
            DRAW(0),
            alpha=None,
            alpha_covariance=None,
            beta=0.0,
            regularization=1e-9,
            backup=backup,
        )
        learned[backup] = out.weights[0, :, 0]  # w of (state 0, left) at each step
    assert learned["previous"] == pytest.approx(np.full(3, 0.01), abs=1e-5)
    assert learned["sweep"] == pytest.approx([0.03, 0.02, 0.01], abs=1e-5)


def test_a_bad_covariance_is_refused_on_request():
    with pytest.raises(ValueError, match="not positive"):
        ucb(1000, 0.5, not_positive="raise")


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="samples=0"):
        learn(0, 0.1)
    with pytest.raises(ValueError, match="episodes=0"):
        ucb(0, 0.1)


# -- the experiments -------------------------------------------------------------------------------

SMALL = [
    "runs=4",
    "internal_seeds=2",
    "mdp.states=6",
    "mdp.horizon=3",
    "alphas=[0.1, theory]",
    "samples=[100, 1000000]",
]


def test_the_lsvi_experiment_and_a_killed_run(tmp_path):
    execute("paper/rlsvi", SMALL, tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert [(c["alpha_from"], c["samples"]) for c in summary["cells"]] == [
        ("config", 100),
        ("config", 1000000),
        ("theory", 100),
        ("theory", 1000000),
    ]
    for cell in summary["cells"]:
        assert {
            "alpha",
            "samples",
            "agreement_weights",
            "agreement_policy",
            "suboptimality",
            "optimal_value",
            "bound",
        } <= cell.keys()
        assert cell["suboptimality"] >= -1e-12
    assert summary["cells"][1]["agreement_weights"] > summary["cells"][0]["agreement_weights"]
    assert [c["agreement_weights"] for c in summary["baseline"]] == [0.0, 0.0]
    assert summary["theory"]["samples"] > 1e20
    assert (tmp_path / "a" / "frontier.svg").stat().st_size > 1000
    # A run that lost its last cells and its summary makes them again, to the last bit.
    execute("paper/rlsvi", SMALL, tmp_path / "b")
    (tmp_path / "b" / "summary.json").unlink()
    for name in ("alpha-None-samples-100", "alpha-None-samples-1000000", "final"):
        folder = tmp_path / "b" / "checkpoints" / name
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    execute("paper/rlsvi", SMALL, tmp_path / "b")
    again = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert again["weights_sha256"] == summary["weights_sha256"]
    assert again["cells"] == summary["cells"]
    lines = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(6))


def test_the_ucb_experiment(tmp_path):
    changes = [
        "runs=3",
        "internal_seeds=1",
        "alphas=[0.1]",
        "samples=[10, 1000000000000]",
        "rounds=4",
        "mdp.states=3",
        "mdp.horizon=3",
    ]
    execute("paper/rlsvi_ucb", changes, tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    few, many = summary["cells"]
    assert few["agreement_weights"] < many["agreement_weights"] == many["product"] or (
        many["agreement_weights"] == 1.0 and many["product"] > 0.5
    )
    assert many["suboptimality_last"] >= -1e-12 and summary["theory"]["theorem"] == "4.2"


def test_the_number_of_threads_changes_no_bit_of_a_weight(said_with_threads):
    code = (
        "import numpy as np\nfrom reprise.rl.replicable import linear_mdp as m, lsvi as l\n"
        "d = np.random.default_rng\n"
        "mdp = m.random_finite(30, 8, 24, 3, d(0))\n"
        "core = l.core_set(mdp.features.reshape(-1, 24))\n"
        "for alpha in (None, .1):\n"
        "    out = l.lsvi(mdp, core, 5000, [d(i) for i in range(3)], d(1), alpha=alpha,"
        " regularization=1e-4)\n    print(out.weights.tobytes().hex())"
    )
    outputs = said_with_threads(code, "1", "3")
    assert len(outputs) == 1 and len(outputs.pop()) > 3000
