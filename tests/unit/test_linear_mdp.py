"""Linear MDPs: known values, exact sampling by counts, and what is not one."""

import itertools

import numpy as np
import pytest

from reprise.rl.replicable.linear_mdp import LinearMDP, chain, random_finite, simplex

pytestmark = pytest.mark.portable

DRAW = np.random.default_rng


def test_optimal_value_by_trying_every_policy():
    mdp = simplex(3, 2, 3, 2, DRAW(0))
    policies = np.array(list(itertools.product(range(2), repeat=6))).reshape(-1, 2, 3)
    values = mdp.policy_value(policies)
    assert values.shape == (64,)
    assert mdp.optimal()[1] == pytest.approx(values.max(), abs=1e-12)


def test_the_chain_is_worth_what_it_says():
    assert chain(4, 4).optimal()[1] == pytest.approx(1.0)
    # Right three times with probability .9 each, then paid; from a slip there is no way back
    # in time but the small reward.
    value = chain(4, 4, slip=0.1).optimal()[1]
    assert 0.9**3 < value < 0.9**3 + 0.04
    left = np.zeros((4, 4), dtype=int)
    assert chain(4, 4).policy_value(left) == pytest.approx(0.04)


@pytest.mark.parametrize("family", [simplex, random_finite])
def test_families_are_low_dimensional_linear_mdps(family):
    mdp = family(12, 4, 5, 3, DRAW(1))
    assert mdp.transitions.shape == (3, 12, 4, 12)
    assert np.linalg.matrix_rank(mdp.features.reshape(-1, 5)) == 5
    assert np.allclose(mdp.transitions.sum(-1), 1)


def test_turned_features_are_signed_and_change_nothing_else():
    plain, turned = simplex(6, 3, 4, 3, DRAW(2)), random_finite(6, 3, 4, 3, DRAW(2))
    assert turned.features.min() < -0.1 and turned.mu.min() < -0.01
    assert np.allclose(plain.transitions, turned.transitions)
    assert plain.optimal()[1] == pytest.approx(turned.optimal()[1])


def test_from_tables_finds_the_measures_again():
    mdp = random_finite(7, 3, 4, 2, DRAW(3))
    again = LinearMDP.from_tables(mdp.features, mdp.rewards, mdp.transitions, mdp.initial)
    assert np.allclose(again.theta, mdp.theta) and np.allclose(again.mu, mdp.mu)


def test_generative_samples_have_the_right_frequencies():
    mdp = random_finite(5, 2, 3, 2, DRAW(4))
    pairs, samples = np.array([0, 7, 3]), np.array([200_000, 100_000, 0])
    counts = mdp.next_counts(1, pairs, samples, DRAW(5))
    assert counts.sum(1).tolist() == samples.tolist()
    expected = mdp.transitions[1].reshape(10, 5)[pairs[:2]]
    assert np.abs(counts[:2] / samples[:2, None] - expected).max() < 0.01


def test_episodes_by_counts_are_distributed_as_episodes():
    mdp = random_finite(4, 2, 3, 3, DRAW(6))
    policy = DRAW(7).integers(0, 2, (3, 4))
    counts = mdp.episode_counts(policy, 300_000, DRAW(8))
    assert counts.sum((1, 2)).tolist() == [300_000] * 3
    # Who arrives at a step leaves from there.
    assert (counts[0].sum(0) == counts[1].sum(1)).all()
    occupancy = mdp.initial
    for h in range(3):
        step = mdp.transitions[h][np.arange(4), policy[h]]
        assert np.abs(counts[h] / 300_000 - occupancy[:, None] * step).max() < 0.006
        occupancy = occupancy @ step


def parts(**changes):
    mdp = simplex(4, 2, 3, 2, DRAW(9))
    fields = {name: getattr(mdp, name) for name in ("features", "theta", "mu", "initial")}
    return {**fields, **{name: change(fields[name]) for name, change in changes.items()}}


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"features": lambda x: 1.5 * x}, r"phi\(s, a\)\| <= 1"),
        ({"mu": lambda x: 0.9 * x}, "sum_s' P_h"),
        ({"mu": lambda x: x - 0.2 + 0.4 * np.eye(4)[:3] * 2}, "P_h"),
        ({"theta": lambda x: 3 + x}, "R_h"),
        ({"theta": lambda x: x - 1}, "R_h"),
        ({"initial": lambda x: x / 2}, "q"),
        ({"theta": lambda x: np.full_like(x, np.nan)}, "theta: must be finite"),
        ({"theta": lambda x: x[:, :2]}, "shapes"),
    ],
)
def test_what_is_not_a_linear_mdp_is_refused(changes, match):
    LinearMDP(**parts())
    with pytest.raises(ValueError, match=match):
        LinearMDP(**parts(**changes))


def test_tables_that_are_not_linear_are_refused():
    mdp = random_finite(5, 2, 3, 2, DRAW(10))
    for rewards, transitions, match in (
        (mdp.rewards**2, mdp.transitions, "rewards: not linear"),
        (mdp.rewards, mdp.transitions[:, ::-1], "transitions: not linear"),
    ):
        with pytest.raises(ValueError, match=match):
            LinearMDP.from_tables(mdp.features, rewards, transitions, mdp.initial)


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="d at most"):
        simplex(3, 2, 7, 2, DRAW(0))
    with pytest.raises(ValueError, match="horizon"):
        chain(5, 4)
    with pytest.raises(ValueError, match="slip"):
        chain(4, 4, slip=1.0)
