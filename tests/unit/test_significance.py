"""p-values, families and Holm's correction, by numbers worked out here."""

import math

import pytest

from reprise.launch.tables.significance import (
    NOTHING,
    Difference,
    Outcome,
    family,
    holm,
    outcome_of,
)

pytestmark = pytest.mark.portable

INF = math.inf


def of(value, error, degrees=INF, above=None):
    return Difference(value, error, error if above is None else above, degrees, degrees, "")


def test_holm_on_a_known_example():
    # Sorted .005, .01, .03, .04: times 4, 3, 2, 1, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.04]) == [0.04] and holm([]) == []
    # A claim that could not be tested counts as one of the tests.
    corrected = holm([0.02, math.nan])
    assert corrected[0] == pytest.approx(0.04) and math.isnan(corrected[1])


def test_p_is_students_and_agrees_with_the_interval():
    # t = 3 with 4 degrees of freedom: p = .03994 (tables: .04 at 2.999).
    outcome = outcome_of(of(3.0, 1.0, 4), ">", 0.0)
    assert outcome.favours and outcome.degrees == 4
    assert outcome.p == pytest.approx(0.0399, abs=1e-4)
    for margin in (0.223, 0.224):  # 3 - 2.7764 = .2236
        low = of(3.0, 1.0, 4).low
        assert (outcome_of(of(3.0, 1.0, 4), ">", margin).p < 0.05) == (low > margin)
    assert outcome_of(of(1.959963984540054, 1.0), ">", 0.0).p == pytest.approx(0.05)


def test_the_side_that_faces_the_margin_counts():
    # Above the margin the lower error, 1; below it the upper, 2.
    assert outcome_of(of(3.0, 1.0, above=2.0), ">", 0.0).p == pytest.approx(0.0027, abs=1e-4)
    against = outcome_of(of(-3.0, 1.0, above=2.0), ">", 0.0)
    assert against.favours is False and against.p == pytest.approx(0.1336, abs=1e-4)
    # The other way round for <: right - left.
    assert outcome_of(of(-3.0, 1.0, above=2.0), "<", 0.0).p == pytest.approx(0.1336, abs=1e-4)
    assert outcome_of(of(-3.0, 1.0, above=2.0), "<", 0.0).favours
    assert outcome_of(of(3.0, 1.0), "<", 1.0).favours is False


def test_equivalence_is_two_one_sided_tests():
    # Distances 1.5 and 2.5 errors to the ends: the nearer one decides, 2 P(Z > 1.5) = .1336.
    outcome = outcome_of(of(0.5, 1.0), "within", 2.0)
    assert outcome.favours and outcome.p == pytest.approx(0.1336, abs=1e-4)
    assert outcome_of(of(0.5, 0.7), "within", 2.0).p < 0.05  # [-.87, 1.87] is inside
    outside = outcome_of(of(-4.5, 1.0), "within", 2.0)
    assert outside.favours is False and outside.p == pytest.approx(0.0124, abs=1e-4)


def test_exact_numbers_are_decided_and_unknown_ones_are_not():
    assert outcome_of(of(1e-9, 0.0), ">", 0.0) == Outcome(True, 0.0, INF)
    assert outcome_of(of(0.0, 0.0), ">", 0.0).favours is False
    assert outcome_of(of(0.1, 0.0), "within", 0.1).favours is False
    for unknown in (of(math.nan, 1.0), of(1.0, math.nan)):
        found = outcome_of(unknown, ">", 0.0)
        assert found.favours is None and math.isnan(found.p)


def test_a_family_holds_where_every_cell_does_and_fails_by_the_worst():
    fine = [Outcome(True, p) for p in (0.001, 0.03, 0.02)]
    # Every cell must be beyond the margin: the largest p, uncorrected.
    assert family(fine) == (fine[1], 1)
    # One on the other side: no longer can it hold; p of failing is Holm's, 4 x .01.
    outcome, place = family([*fine, Outcome(False, 0.01)])
    assert (outcome.favours, place) == (False, 3) and outcome.p == pytest.approx(0.04)
    assert family([Outcome(False, 0.4)] * 4)[0].p == 1.0
    assert family([*fine, NOTHING]) == (NOTHING, 3)  # a run is missing
    assert family([NOTHING, Outcome(False, 0.01)])[0].p == pytest.approx(0.02)
