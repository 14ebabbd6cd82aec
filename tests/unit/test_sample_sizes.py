"""The bounds of 2601.08421 against their own formulas, worked out here."""

import dataclasses
import itertools
import math

import pytest

from reprise.alignment.calibration import (
    calibration_factor,
    calibration_warning,
    calibration_warnings,
)
from reprise.alignment.theory import sample_sizes
from reprise.alignment.theory.sample_sizes import Setting, least
from reprise.launch.run import execute

pytestmark = pytest.mark.portable

S = Setting(
    dimension=6,
    radius=8.0,
    gamma=0.125,
    norm=2.0,
    coverage=4820.0,
    eigenvalue=1 / 6,
    epsilon=0.25,
    delta=0.01,
    eta=0.5,
)
A = 52 * math.exp(4) * 6 / (1 / 6 * 0.125**2)  # gamma R = 1, d^(2/p) = d


def xi(n, rounds):
    return A * math.log(9 * rounds * n / 0.01) / n


@pytest.mark.parametrize(
    ("b", "a"), [(1e6, 3.0), (50.0, 900.0), (1e12, 1e5), (2.0, 1.0), (0.5, 0.1)]
)
def test_the_least_n_is_the_least(b, a):
    n = least(b, a)
    assert n >= b * math.log(a * n) * (1 - 1e-11)
    assert n <= max(b, 1) + 1 or n * (1 - 1e-9) - 1 < b * math.log(a * (n * (1 - 1e-9) - 1))


def test_equation_5_with_its_constant():
    assert S.scale == pytest.approx(A)
    n = sample_sizes.one_round(S)
    # 1 / (2 gamma) = 4 = R / 2 is the radius that a round must reach.
    assert 4820 * xi(n, 1) == pytest.approx(4.0**2, rel=1e-9)
    one = dataclasses.replace(S, norm=1.0)
    assert one.scale == pytest.approx(6 * A)  # d^2 in place of d


def test_equation_6_is_explicit():
    assert sample_sizes.rounds(S) == 5  # 8 / 2^5 = .25
    n = sample_sizes.threshold(S)
    tightest = min(0.25 * 64 / 4820, 1 / (4 * 0.125**2 * 4820), 0.25 / math.e**2)
    assert xi(n, 5) == pytest.approx(tightest, rel=1e-9)
    floor = sample_sizes.precise(S)
    # e^2 xi_n / gamma^2 with xi_n = gamma^2 xi / eta^2.
    assert math.e**2 * xi(floor, 5) / 0.25 == pytest.approx(0.25**2, rel=1e-9)
    assert sample_sizes.constant_batches(S) == 5 * max(n, floor)


def test_the_recursion_of_theorem_3_2_contracts_at_the_threshold():
    # r_{k+1}^2 = xi C(r_k) with the bound C(r) = e^(2r): down by eta a round, to the floor.
    s = dataclasses.replace(S, coverage=math.exp(16))
    n = max(sample_sizes.threshold(s), sample_sizes.precise(s))
    r = s.radius
    for k in range(sample_sizes.rounds(s)):
        r = math.sqrt(xi(n, 5) * math.exp(2 * r))
        floor = math.e * math.sqrt(xi(n, 5)) / s.eta
        assert r <= max(s.radius * s.eta ** (k + 1), floor) * (1 + 1e-9)
    assert r <= s.epsilon * (1 + 1e-9)


def test_corollary_3_6_ends_large_and_costs_less():
    sizes = sample_sizes.schedule(S, alpha=1.0)
    assert len(sizes) == 5  # 8 / 2^4 < 1 after four rounds, and the last
    assert sizes[0] == sample_sizes.threshold(S)
    for before, after in itertools.pairwise(sizes[:4]):
        assert after == pytest.approx(before / 2, abs=1)
    last = A * math.e**2 * math.log(9 * 5 * sizes[-1] / 0.01) / sizes[-1]
    assert last == pytest.approx(0.25**2, rel=1e-9)
    assert sum(sizes) < sample_sizes.constant_batches(S)


def test_orders_without_constants():
    assert sample_sizes.offline(S) == pytest.approx(6 * 4820 / 0.0625)
    assert sample_sizes.offline(dataclasses.replace(S, norm=1.0)) == pytest.approx(
        36 * 4820 / 0.0625
    )
    assert sample_sizes.two_rounds(S) == pytest.approx(6 * 64 / 0.0625 * math.log(100))


def test_calibration_contracts_below_twice_gamma():
    assert calibration_factor(0.1, 0.1) == 0
    assert calibration_factor(0.1, 0.0) == 1
    assert calibration_factor(0.1, 0.3) == pytest.approx(2)
    assert calibration_warning(0.1, 0.15) is None and calibration_warning(0.1, 0.0) is None
    assert "diverge, 2 times a round" in calibration_warning(0.1, 0.3)
    assert "swing between two points" in calibration_warning(0.5, 1.0)


def test_rounds_that_do_not_contract_are_told_before_anything_runs(capsys, tmp_path):
    assert calibration_warnings([0.1, 0.1], 0.1) == []
    # Round 1 starts where distance is measured from.
    assert [text[:8] for text in calibration_warnings([1e-6, 1e-4, 1e-2], 3e-4)] == ["round 2:"]
    execute("paper/ultrafeedback_onpolicy_rdrc", dry_run=True)
    told = capsys.readouterr().err
    assert "warning: round 2: gamma_c / gamma = 3" in told and "round 3:" not in told
    execute("paper/ultrafeedback_onpolicy_rebel", dry_run=True)
    assert "warning" not in capsys.readouterr().err
