"""Q(lambda) returns: hand-worked windows, a recursive definition, and the definition's limits."""

import numpy as np
import pytest

from reprise.rollout.returns import q_lambda

pytestmark = pytest.mark.portable

NONE = np.zeros((5, 1), dtype=bool)


def column(*numbers):
    return np.array(numbers, dtype=np.float64)[:, None]


def at(step):
    flags = NONE.copy()
    flags[step] = True
    return flags


# gamma = lambda = 1/2, rewards 1 2 3 4 5, values V_1..V_5 = 8 4 2 6 10 (V_0, 99, is never used).
REWARDS, VALUES = column(1, 2, 3, 4, 5), column(99, 8, 4, 2, 6, 10)


def returns(terminated=NONE, truncated=NONE, final=None, bootstrap=False, gamma=0.5, lam=0.5):
    found = q_lambda(REWARDS, VALUES, terminated, truncated, final, gamma, lam, bootstrap)
    assert found.dtype == np.float32 and found.shape == (5, 1)
    return found[:, 0].tolist()


def test_five_steps_by_hand():
    # G4 = 5 + 10/2 = 10;              G3 = 4 + (10 + 6)/4 = 8;       G2 = 3 + (8 + 2)/4 = 5.5;
    # G1 = 2 + (5.5 + 4)/4 = 4.375;    G0 = 1 + (4.375 + 8)/4 = 4.09375
    assert returns() == [4.09375, 4.375, 5.5, 8.0, 10.0]


def test_termination_in_the_window_by_hand():
    # G2 = 3; G1 = 2 + (3 + 4)/4 = 3.75; G0 = 1 + (3.75 + 8)/4 = 3.9375; after it as before.
    assert returns(terminated=at(2)) == [3.9375, 3.75, 3.0, 8.0, 10.0]
    # A step that is both terminated, whatever final value is given.
    assert returns(at(2), at(2), column(*[77] * 5), True) == [3.9375, 3.75, 3.0, 8.0, 10.0]


def test_truncation_by_hand():
    # Without bootstrapping like a termination; with it, F_2 = 20: G2 = 3 + 20/2 = 13;
    # G1 = 2 + (13 + 4)/4 = 6.25; G0 = 1 + (6.25 + 8)/4 = 4.5625.
    assert returns(truncated=at(2)) == [3.9375, 3.75, 3.0, 8.0, 10.0]
    final = column(-1, -1, 20, -1, np.nan)  # read only where truncated
    assert returns(NONE, at(2), final, True) == [4.5625, 6.25, 13.0, 8.0, 10.0]


def test_ends_at_the_last_step_by_hand():
    # G4 = 5; G3 = 4 + (5 + 6)/4 = 6.75; G2 = 3 + (6.75 + 2)/4 = 5.1875;
    # G1 = 2 + (5.1875 + 4)/4 = 4.296875; G0 = 1 + (4.296875 + 8)/4 = 4.07421875
    last = [4.07421875, 4.296875, 5.1875, 6.75, 5.0]
    assert returns(terminated=at(4)) == returns(truncated=at(4)) == last
    # F_4 = 10 is the V_5 of the open window.
    assert returns(NONE, at(4), column(0, 0, 0, 0, 10), True) == returns()


def test_the_limits_of_lambda():
    # lambda 0: r_t + V_{t+1}/2. lambda 1: r_t + G_{t+1}/2, from G4 = 10.
    assert returns(lam=0.0) == [5.0, 4.0, 4.0, 7.0, 10.0]
    assert returns(lam=1.0) == [3.875, 5.75, 7.5, 9.0, 10.0]
    assert returns(gamma=0.0) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert returns(gamma=1.0, lam=1.0) == [25.0, 24.0, 22.0, 19.0, 15.0]


def recursive(t, n, rewards, values, terminated, truncated, final, gamma, lam, bootstrap):
    """The definition as a sum over n-step returns, without a running total.

    G = sum over n of (1 - lam) lam^(n-1) R_n plus the rest on the longest, where R_n bootstraps
    after n steps and the longest goes to the end of the episode or the window.
    """
    total, weights, discounted, k = 0.0, 1.0, 0.0, 0
    while True:
        here = t + k
        discounted += gamma**k * rewards[here, n]
        if terminated[here, n]:
            tail, longest = 0.0, True
        elif truncated[here, n]:
            tail, longest = (final[here, n] if bootstrap else 0.0), True
        else:
            tail, longest = values[here + 1, n], here + 1 == len(rewards)
        full = discounted + gamma ** (k + 1) * tail
        if longest:
            return total + weights * full
        total += weights * (1 - lam) * full
        weights *= lam
        k += 1


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.65), (0.9, 0.95), (1.0, 0.3)])
def test_returns_are_mixtures_of_n_step_returns(bootstrap, gamma, lam):
    generator = np.random.default_rng(5)
    rewards, values = generator.normal(size=(32, 6)), generator.normal(size=(33, 6)) * 5
    terminated, truncated = generator.random((2, 32, 6)) < 0.08
    final = np.where(truncated, generator.normal(size=(32, 6)) * 9, np.nan)
    assert (terminated & truncated).any() or (truncated & ~terminated).sum() > 5
    found = q_lambda(rewards, values, terminated, truncated, final, gamma, lam, bootstrap)
    expected = [
        [
            recursive(t, n, rewards, values, terminated, truncated, final, gamma, lam, bootstrap)
            for n in range(6)
        ]
        for t in range(32)
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-5)


def test_bad_input_is_refused():
    good = [REWARDS, VALUES, NONE, NONE, None, 0.5, 0.5, False]
    for place, value, message in (
        (0, REWARDS[:, 0], r"rewards: has shape \[5\]"),
        (1, VALUES[1:], r"values: has shape \[5, 1\], must have \[6, 1\]"),
        (2, NONE[:4], r"terminated: has shape \[4, 1\]"),
        (3, NONE.astype(np.float32), "truncated: is float32"),
        (5, 1.5, r"gamma=1\.5"),
        (6, -0.1, r"lam=-0\.1"),
        (7, True, "final_values=None"),
    ):
        with pytest.raises(ValueError, match=message):
            q_lambda(*[value if i == place else each for i, each in enumerate(good)])
