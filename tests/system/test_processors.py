"""Bandit studies come out the same, to ten digits, on a processor without FMA and AVX."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processors import OLD

ROOT = Path(__file__).parents[2]
# Where rounding used to decide: a response that nobody drew (skewed), a box with open directions
# (dyadic), a mixture with a design.
STUDY = """
import json
from reprise.alignment.theory.bandit import dyadic, random_bandit, skewed
from reprise.alignment.theory.learning import learn, objective_of
from reprise.rollout.randomness import Streams
import numpy as np

found = {}
for name, bandit, objective, sampler, size, replicas in (
    ("skewed", skewed(6, 8.0, 2.0), "dpo", "on_policy", 40_000, 60),
    ("offline", skewed(4, 6.0, 1.0), "dpo", "offline", 100_000, 20),
    ("dyadic", dyadic(16, 2.0, 1.0), "pdfr", "on_policy", 256, 40),
    ("hybrid", random_bandit(6, 5, 3, 6.0, np.random.default_rng(0), opposed=True), "dpo",
     "hybrid", 2000, 20),
):
    how = objective_of(objective, bandit.gamma)
    path = learn(bandit, how, sampler, [size] * 4, replicas, Streams(0), name)
    errors = bandit.errors(path)
    found[name] = {key: errors[key].mean(1).tolist() for key in ("kl", "theta_error")}
print(json.dumps(found))
"""


def measured(**environment: str) -> dict:
    finished = subprocess.run(
        [sys.executable, "-c", STUDY],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout)


def test_ten_digits_agree_between_two_instruction_sets():
    here, old = measured(), measured(**OLD)
    if here == old:
        pytest.skip("this machine has no newer instructions to compare the old ones with")
    for name, errors in here.items():
        for key, values in errors.items():
            assert old[name][key] == pytest.approx(values, rel=1e-10, abs=1e-12), (name, key)
