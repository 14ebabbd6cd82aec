"""Baselines: leverage scores, medoids, subsets, and cloning by gradient matching."""

import numpy as np
import pytest
import torch

from reprise.distill import baselines
from reprise.distill.baselines import SUBSETS, clone, distill_cloning, leverage, medoids, subset
from reprise.distill.offline_rl import gather, starting_rows, terminal_count
from reprise.distill.predictors import Scaling
from reprise.rollout.types import Transitions


def plane(size=300, seed=0) -> Transitions:
    """Random states in the plane; an expert's action is where the first number points."""
    draw = np.random.default_rng(seed)
    states = draw.standard_normal((size, 2)).astype(np.float32)
    actions = (states[:, 0] > 0).astype(np.int64)
    return Transitions(
        states,
        actions,
        np.ones(size, dtype=np.float32),
        states + 0.1,
        np.arange(size) % 10 == 0,
        np.zeros(size, dtype=bool),
    )


def test_leverage_scores_are_the_hat_matrix():
    matrix = np.random.default_rng(0).standard_normal((30, 4))
    matrix[:, 3] = matrix[:, 0] + matrix[:, 1]  # rank 3
    hat = matrix @ np.linalg.pinv(matrix.T @ matrix) @ matrix.T
    found = leverage(matrix)
    np.testing.assert_allclose(found, np.diag(hat), atol=1e-10)
    assert found.sum() == pytest.approx(3)


def test_leverage_subsets_prefer_what_stands_out():
    data = plane()
    data.observations[7] = 40.0
    data.next_observations[7] = -40.0
    full = Scaling.of(data).batch(data)
    drawn = [
        subset("leverage", data, full, 20, None, np.random.default_rng(seed)) for seed in range(40)
    ]
    often = np.mean([7 in rows for rows in drawn])
    plain = np.mean([8 in rows for rows in drawn])
    assert often > 0.95 > 0.5 > plain


@pytest.mark.parametrize("method", SUBSETS)
def test_subsets_are_distinct_rows_with_ends_last(method):
    data = plane()
    full = Scaling.of(data).batch(data)
    rows = subset(method, data, full, 50, 0.3, np.random.default_rng(1))
    assert len(set(rows.tolist())) == 50
    ended = data.terminated[rows]
    assert not (np.diff(ended.astype(int)) < 0).any()
    wanted = {"stratified": 5, "balanced": 15}
    if method in wanted:
        assert ended.sum() == wanted[method]
    again = subset(method, data, full, 50, 0.3, np.random.default_rng(1))
    np.testing.assert_array_equal(rows, again)


def test_medoids_cover_every_cluster_with_both_actions():
    draw = np.random.default_rng(0)
    centres = np.array([[-9.0, 0], [9, 0], [0, 9]])
    kind = np.arange(600) % 3
    states = (centres[kind] + 0.1 * draw.standard_normal((600, 2))).astype(np.float32)
    data = Transitions(
        states, (np.arange(600) // 3 % 2).astype(np.int64), np.ones(600, dtype=np.float32),
        states, np.arange(600) % 7 == 0, np.zeros(600, dtype=bool),
    )  # fmt: skip
    full = Scaling.of(data).batch(data)
    rows = medoids(data, full, 18, 6, draw)
    seen = {(kind[row], data.actions[row], data.terminated[row]) for row in rows}
    assert len(rows) == 18 and data.terminated[rows].sum() == 6
    assert {(k, a, False) for k in range(3) for a in range(2)} <= seen
    assert {(k, a, True) for k in range(3) for a in range(2)} == {one for one in seen if one[2]}


def test_medoids_take_from_others_what_a_small_class_lacks():
    data = plane(60)
    data.terminated[:] = False
    data.terminated[:3] = True
    full = Scaling.of(data).batch(data)
    rows = medoids(data, full, 30, 3, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 30 and data.terminated[rows].sum() == 3


def test_cloning_gradients_are_autograds():
    draw = np.random.default_rng(3)
    first = torch.tensor(draw.standard_normal((1, 1, 3, 5)), requires_grad=True)
    head = torch.tensor(draw.standard_normal((1, 1, 5, 2)), requires_grad=True)
    states = torch.as_tensor(draw.standard_normal((1, 9, 2)))
    actions = torch.as_tensor(draw.integers(0, 2, (1, 9)))
    found = baselines._cloning_gradient(first, head, states, actions)[0, 0]
    inputs = torch.cat([states, torch.ones(1, 9, 1, dtype=torch.float64)], -1)
    logits = torch.tanh(inputs @ first[0, 0]) @ head[0, 0]
    loss = torch.nn.functional.cross_entropy(logits[0], actions[0])
    wanted = torch.cat([one.flatten() for one in torch.autograd.grad(loss, (first, head))])
    torch.testing.assert_close(found, wanted)


def test_cloning_distilled_states_teach_the_expert():
    data = plane(2000)
    scaling = Scaling.of(data)
    full = scaling.batch(data)
    ends = terminal_count(data, 10, None)
    rows = [starting_rows(data.terminated, 10, ends, np.random.default_rng(s)) for s in range(4)]
    start = gather(full, np.stack(rows))
    made = distill_cloning(full, start, 2, np.random.default_rng(0), steps=50)
    wrong = []
    for sets in (start, made):
        policies = clone(sets, 2, np.random.default_rng(1), 1, steps=80)
        chosen = policies.values(full.states).mean(1).argmax(-1)
        wrong.append(float((chosen != full.actions).double().mean()))
    assert wrong[1] < wrong[0] * 0.8
