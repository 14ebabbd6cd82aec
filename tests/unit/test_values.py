"""Paths into a run's summary."""

import math
import re

import pytest

from reprise.launch.tables.values import PathError, interval_at, number_at, parse, value_at

SUMMARY = {
    "value": 3,
    "cells": [
        {"method": "REBEL, pi_0", "size": 50, "mean": 1.5, "ci": [1.0, 2.0], "half": 0.25},
        {"method": "RDRC", "size": 50, "mean": None, "ci": [None, None], "half": None},
        {"method": "RDRC", "size": 0.5, "mean": 7.0, "ci": [6, 8], "half": 1},
    ],
    "offline / on_policy": {"x y": 2.0},
    "flag": True,
    "none": [{"alpha": None, "v": 1.0}],
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("value", 3.0),
        ("cells[-1].mean", 7.0),
        ("cells[method=REBEL, pi_0].mean", 1.5),
        ("cells[method=RDRC,size=.5].mean", 7.0),
        ("cells[method=RDRC,size=5e-1].half", 1.0),
        ("offline / on_policy.x y", 2.0),
        ("none[alpha=null].v", 1.0),
    ],
)
def test_a_path_finds_its_number(path, expected):
    assert number_at(SUMMARY, path) == expected


def test_null_is_undefined_not_missing():
    assert math.isnan(number_at(SUMMARY, "cells[method=RDRC,size=50].mean"))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("cells[method=RDRC].mean", "2 entries"),
        ("cells[method=DPO].mean", "0 entries"),
        ("cells[7].mean", "3 entries"),
        ("cells.mean", "no 'mean'"),
        ("valu", "no 'valu' in {value, cells"),
        ("flag", "not a number"),
        ("cells[nothing].mean", "neither a place nor key=value"),
        ("value[0]", "chooses from a list"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(path, says):
    with pytest.raises(PathError, match=re.escape(says)):
        number_at(SUMMARY, path)


@pytest.mark.parametrize("path", ["", "a..b", "a.", "a[", "1a", "a[x]b"])
def test_what_is_not_a_path_is_refused(path):
    with pytest.raises(PathError, match="path"):
        parse(path)


def test_an_interval_is_two_ends_or_a_half_width():
    assert interval_at(SUMMARY, "cells[0].ci", 1.5) == (1.0, 2.0)
    assert interval_at(SUMMARY, "cells[0].half", 1.5) == (1.25, 1.75)
    assert all(map(math.isnan, interval_at(SUMMARY, "cells[1].ci", 1.5)))
    assert value_at(SUMMARY, "cells[0].method") == "REBEL, pi_0"
