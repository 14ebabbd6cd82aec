"""Offline RL distillation: losses, gradients, the convex case, backups, sets, rounds, errors."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from reprise.distill.backups import (
    agreement,
    backup,
    choose,
    distill_backups,
    feature_maps,
    regressed,
)
from reprise.distill.banks import Bank, near_iterates, random_networks
from reprise.distill.config import Downstream
from reprise.distill.data import training_set
from reprise.distill.decomposable import convex as decomposable
from reprise.distill.evaluate import d3rlpy_return, fitted_q, greedy_returns
from reprise.distill.offline_rl import (
    Domain,
    Dynamics,
    Points,
    check,
    distill,
    gather,
    held_out_error,
    starting_rows,
    terminal_count,
)
from reprise.distill.offline_rl_means import compare
from reprise.distill.predictors import Scaling, bellman_losses, draw_networks, training_losses
from reprise.rollout.offline import export_transitions, from_d3rlpy, from_minari, to_d3rlpy
from reprise.rollout.types import Transitions

GAMMA = 0.9


def transitions(size=40, seed=0, ends=8, actions=3) -> Transitions:
    """Points of a smooth made-up system with three numbers and `actions` actions."""
    draw = np.random.default_rng(seed)
    states = draw.standard_normal((size, 3)).astype(np.float32)
    taken = draw.integers(0, actions, size)
    moved = 0.1 * np.sin(states + taken[:, None]) + 0.3
    ended = np.zeros(size, dtype=bool)
    ended[draw.permutation(size)[:ends]] = True
    return Transitions(
        states,
        taken,
        draw.standard_normal(size).astype(np.float32),
        (states + moved).astype(np.float32),
        ended,
        np.zeros(size, dtype=bool),
    )


def one_by_one(networks, scales, data: Transitions, scaling: Scaling) -> np.ndarray:
    """L_on and L_end [2, G, K] of every predictor, a transition and an action at a time."""
    groups, count, _, _ = networks.first.shape
    actions = networks.action.shape[2]

    def value(g, k, state, action):
        x = (state.astype(np.float64) - scaling.centre) / scaling.scale
        h = x @ networks.first[g, k].double().numpy() + networks.action[g, k, action].numpy()
        h = np.tanh(h)
        for weight, bias in networks.hidden:
            h = np.tanh(h @ weight[g, k].double().numpy() + bias[g, k, 0].double().numpy())
        return float(h @ networks.head[g, k].double().numpy() + networks.offset[g, k].item())

    losses = np.zeros((2, groups, count))
    for g in range(groups):
        for k in range(count):
            seen = {0: [], 1: []}
            for i in range(len(data)):
                scale = float(scales[g, k])
                error = value(g, k, data.observations[i], data.actions[i])
                error -= scale * float(data.rewards[i])
                if not data.terminated[i]:
                    following = [value(g, k, data.next_observations[i], a) for a in range(actions)]
                    error -= GAMMA * max(following)
                seen[int(data.terminated[i])].append(error**2)
            losses[:, g, k] = np.mean(seen[0]), np.mean(seen[1])
    return losses


@pytest.mark.parametrize("depth", [1, 2])
def test_bellman_losses_equal_a_loop_over_transitions(depth):
    data = transitions()
    scaling = Scaling.of(data)
    draw = np.random.default_rng(1)
    networks = draw_networks(draw, 2, 3, 3, 3, units=7, depth=depth, dtype=torch.float64)
    scales = torch.as_tensor(draw.standard_normal((2, 3)))
    wanted = one_by_one(networks, scales, data, scaling)
    batch = scaling.batch(data, torch.float64)
    found = torch.stack(bellman_losses(networks, scales, batch, GAMMA)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    bank = torch.stack(training_losses(networks, scales, batch, GAMMA)).numpy()
    np.testing.assert_allclose(bank, wanted, rtol=1e-10)
    # Sets of their own for each group give each group's own losses.
    rows = np.stack([np.arange(40), np.arange(40)])
    grouped = torch.stack(bellman_losses(networks, scales, gather(batch, rows), GAMMA)).numpy()
    np.testing.assert_allclose(grouped, wanted, rtol=1e-10)


def test_terminated_and_other_transitions_are_matched_apart():
    data = transitions()
    batch = Scaling.of(data).batch(data, torch.float64)
    draw = random_networks(np.random.default_rng(2), batch, 1, 3, units=8, dtype=torch.float64)
    bank = Bank.of(*draw(5), batch, GAMMA)
    # Each terminated point three times: the means of both kinds are what they were.
    ends = np.flatnonzero(data.terminated)
    more = batch.rows(torch.as_tensor(np.concatenate([np.arange(40), ends, ends])))
    assert bank.error(more, GAMMA).abs().max() < 1e-12
    # Next states of terminated points say nothing; other rewards of theirs change L_end alone.
    nonsense = replace(batch, following=batch.following + 9.0 * batch.terminated[:, None])
    assert bank.error(nonsense, GAMMA).abs().max() < 1e-12
    richer = replace(batch, rewards=batch.rewards + 1.0 * batch.terminated)
    error = bank.error(richer, GAMMA)[:, 0]
    assert error[0].abs().max() < 1e-12 < error[1].abs().min()


def finite_difference(function, tensor, place, step=1e-6):
    values = []
    for sign in (1, -1):
        moved = tensor.detach().clone()
        moved[place] += sign * step
        values.append(float(function(moved)))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("kind", ["free", "dynamics"])
def test_gradients_of_the_objective_by_finite_differences(kind):
    data = transitions()
    batch = Scaling.of(data).batch(data, torch.float64)
    draw = random_networks(np.random.default_rng(3), batch, 2, 3, units=8, dtype=torch.float64)
    bank = Bank.of(*draw(4), batch, GAMMA)
    inner = np.argsort(batch.states.abs().amax(1).numpy() + 99 * data.terminated)[:10]
    rows = np.concatenate([inner, np.flatnonzero(data.terminated)[:2]])
    start = gather(batch, np.stack([rows, rows]))
    dynamics = Dynamics.of(batch, 3) if kind == "dynamics" else None
    points = Points.of(start, Domain.of(batch), dynamics)
    learned = points.learned(dynamics is None, True)
    bank.error(points.batch(), GAMMA).square().sum().backward()
    names = ["states", "displacements", "rewards"] if dynamics is None else ["states", "rewards"]
    for name, tensor in zip(names, learned, strict=True):
        place = (1, 3, 2)[: tensor.dim()]

        def objective(moved, name=name):
            other = replace(points, **{name: moved})
            return bank.error(other.batch(), GAMMA).square().sum().detach()

        wanted = finite_difference(objective, tensor, place)
        assert abs(wanted) > 1e-3
        assert float(tensor.grad[place]) == pytest.approx(wanted, rel=1e-6)


def test_distilling_lowers_the_mismatch_of_predictors_it_saw_and_of_others():
    data = transitions(600, ends=60)
    batch = Scaling.of(data).batch(data)
    rows = [starting_rows(data.terminated, 30, 6, np.random.default_rng(s)) for s in range(3)]
    start = gather(batch, np.stack(rows))
    draw = random_networks(np.random.default_rng(4), batch, 3, 3, units=16)
    bank = Bank.of(*draw(80), batch, GAMMA)
    others = Bank.of(
        *random_networks(np.random.default_rng(5), batch, 1, 3, units=16)(50), batch, GAMMA
    )
    made = distill(
        batch, start, draw, bank, GAMMA, steps=100, minibatch=40, learning_rate=0.05,
        learn_rewards=True,
    )  # fmt: skip
    before, after = bank.error(start, GAMMA).abs().mean(), bank.error(made, GAMMA).abs().mean()
    assert after < before / 2
    held_out = [held_out_error(sets, others, GAMMA).mean() for sets in (start, made)]
    assert held_out[1] < held_out[0] / 2
    assert torch.equal(made.actions, start.actions)
    low, high = Domain.of(batch).low, Domain.of(batch).high
    assert (made.states >= low).all() and (made.following <= high).all()
    # Fresh predictors in every step: another route, the same purpose.
    fresh = distill(
        batch, start, draw, None, GAMMA, steps=100, minibatch=20, learning_rate=0.05,
        learn_rewards=True, rows=np.random.default_rng(6),
    )  # fmt: skip
    assert held_out_error(fresh, others, GAMMA).mean() < held_out[0] / 2


def test_every_predictor_of_a_bank_has_its_turn():
    data = transitions()
    batch = Scaling.of(data).batch(data)
    bank = Bank.of(*random_networks(np.random.default_rng(4), batch, 1, 3)(10), batch, GAMMA)
    seen = torch.cat([bank.turn(step, 4).scales for step in range(2)], 1)
    assert torch.equal(seen, bank.scales)


def test_predictors_near_iterates_are_the_iterates_plus_a_network():
    data = transitions()
    batch = Scaling.of(data).batch(data)
    iterates = draw_networks(np.random.default_rng(7), 2, 1, 3, 3, units=5)
    draw = near_iterates(np.random.default_rng(8), iterates, 0.1, (1e-9, 1e-8), units=6)
    networks, scales = draw(4)
    assert networks.first.shape == (2, 4, 3, 11) and float(scales[0, 0]) == pytest.approx(0.1)
    q = iterates.values(batch.states).expand(2, 4, 40, 3)
    torch.testing.assert_close(networks.values(batch.states), q, atol=1e-5, rtol=0)
    wide, _ = near_iterates(np.random.default_rng(8), iterates, 0.1, (1.0, 2.0), units=6)(4)
    assert (wide.values(batch.states) - q).abs().mean() > 0.1


def test_dynamics_carry_a_moved_point_along():
    data = transitions(2000, ends=20)
    batch = Scaling.of(data).batch(data, torch.float64)
    dynamics = Dynamics.of(batch, 3)
    alive = batch.rows(~batch.terminated)
    moved = alive.following - alive.states
    found = dynamics(alive.states[None], alive.actions[None])[0]
    assert (found - moved).square().mean() < 0.2 * moved.var(0).mean()
    start = gather(batch, np.arange(10)[None])
    points = Points.of(start, Domain.of(batch), dynamics)
    torch.testing.assert_close(points.batch().following, start.following)


# -- backups --


def test_the_dual_regression_is_the_ridge_solution():
    draw = np.random.default_rng(9)
    features = torch.as_tensor(draw.standard_normal((2, 9, 5)), dtype=torch.float32)
    targets = torch.as_tensor(draw.standard_normal((2, 9)), dtype=torch.float32)
    for group in range(2):
        phi = features[group].double().numpy()
        gram = phi.T @ phi / 9 + 0.1 * np.eye(5)
        wanted = np.linalg.solve(gram, phi.T @ targets[group].double().numpy() / 9)
        found = regressed(features, targets, 0.1)[group].numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_matching_backups_brings_regressions_nearer_on_maps_never_used():
    data = transitions(600, ends=60, actions=2)
    batch = Scaling.of(data).batch(data)
    rows = [starting_rows(data.terminated, 25, 5, np.random.default_rng(s)) for s in range(2)]
    start = gather(batch, np.stack(rows))
    learner = Downstream(gamma=GAMMA, backups=15, units=24)
    q = fitted_q(batch, 2, learner, np.random.default_rng(10), groups=2)
    shape = {"units": 48, "gains": [0.5, 1.0]}
    made = distill_backups(
        batch, start, q, feature_maps(np.random.default_rng(11), None, 2, 3, 2, **shape), GAMMA,
        np.random.default_rng(12), steps=150,
    )  # fmt: skip
    wanted = q.values(batch.states).mean(1)
    errors = []
    for sets in (start, made):
        total = 0.0
        maps = feature_maps(np.random.default_rng(13), 6, 2, 3, 2, **shape)
        for step in range(6):
            phi = maps(step).features(sets.states, sets.actions)[:, 0] / math.sqrt(48)
            phi = torch.cat([phi, torch.full_like(phi[..., :1], 0.5)], -1)
            weights = regressed(phi, backup(q, sets, GAMMA), 1e-3)
            for action, seen in enumerate(maps(step).all_features(batch.states)):
                at = torch.cat([seen[:, 0] / math.sqrt(48), torch.full((2, 600, 1), 0.5)], -1)
                found = (at @ weights[..., None])[..., 0]
                total += float((found - wanted[..., action]).square().mean())
        errors.append(total)
    assert errors[1] < errors[0] / 2


def test_a_bank_of_maps_is_used_in_turn():
    maps = feature_maps(np.random.default_rng(0), 2, 1, 3, 2, units=4, gains=[1.0])
    assert torch.equal(maps(0).first, maps(2).first)
    assert not torch.equal(maps(0).first, maps(1).first)
    fresh = feature_maps(np.random.default_rng(0), None, 1, 3, 2, units=4, gains=[1.0])
    assert not torch.equal(fresh(0).first, fresh(2).first)


# -- the decomposable case --


def linear_case(size=400, seed=0):
    """phi1(s) = (s, 0), phi2(a) = (0, e_a): d = 5; q = 6 with the reward."""
    data = transitions(size, seed, ends=1, actions=2)
    one_hot = np.eye(2)[data.actions]
    zeros = np.zeros((size, 2))
    phi1 = np.column_stack([data.observations, zeros]).astype(np.float64)
    ahead = np.column_stack([data.next_observations, zeros]).astype(np.float64)
    phi2 = np.column_stack([np.zeros((size, 3)), one_hot])
    full = decomposable.Linear.of(phi1, phi2, data.rewards.astype(np.float64), ahead, GAMMA)
    return data, full


def predictors(count, seed):
    """u = (v, -lambda), and max_a <v, phi2(a)>."""
    u = np.random.default_rng(seed).standard_normal((count, 6))
    return u, u[:, 3:5].max(1)


def test_decomposable_loss_is_the_bellman_loss():
    data, full = linear_case()
    u, alphas = predictors(4, 1)
    found = decomposable.bellman_loss(full, u, alphas, GAMMA)
    for row in range(4):
        v, scale = u[row, :5], -u[row, 5]
        value = lambda s, a, v=v: s @ v[:3] + v[3 + a]  # noqa: E731
        errors = [
            value(data.observations[i], data.actions[i])
            - scale * data.rewards[i]
            - GAMMA * max(value(data.next_observations[i], a) for a in range(2))
            for i in range(len(data))
        ]
        assert found[row] == pytest.approx(np.mean(np.square(errors)), rel=1e-6)


def test_decomposable_programme_meets_its_constraint_and_its_guarantee():
    _, full = linear_case()
    needed = decomposable.predictors_needed(6)
    assert needed == 21
    candidates = np.random.default_rng(3).permutation(400)[:120]
    held_out, alphas_out = predictors(500, 9)
    wanted = decomposable.bellman_loss(full, held_out, alphas_out, GAMMA)
    gaps = {}
    for count in (2 * needed, 4):
        u, alphas = predictors(count, 2)
        found = decomposable.solve(full, candidates, u, alphas, GAMMA)
        assert found.moment_error < 1e-6 and found.weights.min() >= 0
        assert found.weights.sum() == pytest.approx(1, abs=1e-9)
        part = decomposable.Linear(full.residual[candidates], full.moments[candidates])
        means = found.weights @ part.moments - full.moments.mean(0)
        assert np.abs(means).max() < 1e-6
        losses = decomposable.bellman_loss(part, held_out, alphas_out, GAMMA, found.weights)
        errors = np.abs(losses - wanted)
        bound = np.square(held_out).sum(1) * found.gap
        assert (errors <= bound + 1e-5).all()
        gaps[count] = np.median(errors / wanted)
    # Above q(q+1)/2 predictors no linear predictor tells the sets apart; below, some do.
    assert gaps[2 * needed] < 1e-5 < 1e-3 < gaps[4]


def test_decomposable_refuses_too_few_points():
    _, full = linear_case()
    u, alphas = predictors(30, 2)
    needed = decomposable.points_needed(full)
    assert needed == 9  # s, s', r, one of two actions, and the sum of the weights
    with pytest.raises(ValueError, match=f"size={needed - 1}: .*at least {needed} points"):
        decomposable.solve(full, np.arange(needed - 1), u, alphas, GAMMA)
    far = np.argsort(full.moments[:, 0])[-40:]
    with pytest.raises(ValueError, match="convex hull"):
        decomposable.solve(full, far, u, alphas, GAMMA)


# -- learners --


def test_fitted_q_finds_the_values_of_a_chain():
    # Three states in a row, reward 1 for going right from the last, which terminates.
    places = np.array([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]], dtype=np.float32)
    rows = [(s, a) for s in range(3) for a in range(2)] * 4
    data = Transitions(
        np.stack([places[s] for s, _ in rows]),
        np.array([a for _, a in rows]),
        np.array([float(s == 2 and a == 1) for s, a in rows], dtype=np.float32),
        np.stack([places[min(2, max(0, s + 2 * a - 1))] for s, a in rows]),
        np.array([s == 2 and a == 1 for s, a in rows]),
        np.zeros(len(rows), dtype=bool),
    )
    scaling = Scaling.of(data)
    batch = gather(scaling.batch(data), np.arange(len(rows))[None])
    learner = Downstream(gamma=0.5, backups=30, steps=40, weight_decay=0.0, average=0.5)
    q = fitted_q(batch, 2, learner, np.random.default_rng(0))
    states = torch.as_tensor((places - scaling.centre) / scaling.scale, dtype=torch.float32)
    wanted = torch.tensor([[0.125, 0.25], [0.125, 0.5], [0.25, 1.0]])
    found = q.values(states).mean(1)[0] / (1 - 0.5)
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)


@pytest.mark.parametrize("environment", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_returns_are_of_each_groups_own_policy(environment):
    width, actions = {"CartPole-v1": (4, 2), "MountainCar-v0": (2, 3), "Acrobot-v1": (6, 3)}[
        environment
    ]
    networks = draw_networks(np.random.default_rng(0), 2, 1, width, actions)
    networks.head[:] = 0.0
    networks.first[:] = 0.0
    networks.first[0, 0, 2 if environment == "CartPole-v1" else width - 1, 0] = 1.0
    networks.action[:] = 0.0
    networks.action[:, 0, actions - 1, 0] = 1e-3
    # Group 0 pushes right whatever it sees; group 1 left.
    networks.head[0, 0, 0], networks.head[1, 0, 0] = 1.0, -1.0
    scaling = Scaling(np.zeros(width), np.ones(width))
    returns = greedy_returns(networks, scaling, environment, 3, 5)
    if environment == "CartPole-v1":
        assert (returns > 7).all() and (returns < 11).all()
    else:
        assert (returns >= -500).all() and (returns <= -50).all()


def test_d3rlpy_learns_from_single_transitions():
    data = transitions(60, actions=2)
    wide = np.zeros((60, 1), dtype=np.float32)
    data = Transitions(
        np.hstack([data.observations, wide]), data.actions, data.rewards,
        np.hstack([data.next_observations, wide]), data.terminated, ~data.terminated,
    )  # fmt: skip
    state = np.random.get_state()[1].copy()
    found = d3rlpy_return(data, "CartPole-v1", 0.98, 3, 2, 0)
    assert 7 < found < 501
    assert (np.random.get_state()[1] == state).all()


# -- rounds for others --


def test_single_transitions_survive_minari_d3rlpy_and_datasets(tmp_path):
    data = transitions(12, ends=4)
    data = replace(data, truncated=~data.terminated)
    export_transitions(data, tmp_path / "m", "minari", "CartPole-v1")
    from minari import MinariDataset

    again = from_minari(MinariDataset(tmp_path / "m" / "data"))
    for name in ("observations", "actions", "rewards", "next_observations", "terminated"):
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))

    export_transitions(data, tmp_path / "d.h5", "d3rlpy", "CartPole-v1")
    import d3rlpy

    with open(tmp_path / "d.h5", "rb") as file:
        buffer = d3rlpy.dataset.ReplayBuffer.load(file, d3rlpy.dataset.InfiniteBuffer())
    assert buffer.transition_count == 12
    again = from_d3rlpy(buffer.episodes)
    np.testing.assert_array_equal(again.observations, data.observations)
    alive = ~data.terminated
    np.testing.assert_array_equal(again.next_observations[alive], data.next_observations[alive])
    assert [bool(one.terminated) for one in to_d3rlpy(data)] == data.terminated.tolist()

    export_transitions(data, tmp_path / "h", "datasets", "CartPole-v1")
    from datasets import load_from_disk

    assert load_from_disk(tmp_path / "h").num_rows == 12
    with pytest.raises(ValueError, match="exists"):
        export_transitions(data, tmp_path / "h", "datasets", "CartPole-v1")


# -- tests of differences, and what cannot be distilled --


def test_paired_differences():
    ours, theirs = np.array([3.0, 5, 4, 8]), np.array([1.0, 4, 4, 5])
    found = compare(ours, theirs)
    gap = ours - theirs
    t = gap.mean() / (gap.std(ddof=1) / 2)
    assert found["difference"] == 1.5 and found["t"] == pytest.approx(t)
    assert compare(ours, ours)["p"] is None
    json.dumps(found)


def test_what_cannot_be_distilled_is_refused():
    data = transitions()
    check(data, 20, 4, 3)
    with pytest.raises(ValueError, match="no terminal transition"):
        check(replace(data, terminated=np.zeros(40, dtype=bool)), 20, 1, 3)
    with pytest.raises(ValueError, match=r"size=20 with 9 terminated: .* have 8 terminated"):
        check(data, 20, 9, 3)
    with pytest.raises(ValueError, match="must be integers"):
        check(replace(data, actions=data.rewards), 20, 4, 3)
    with pytest.raises(ValueError, match=r"not all in 0\.\.1"):
        check(data, 20, 4, 2)
    broken = replace(data)
    broken.rewards[7] = np.nan
    with pytest.raises(ValueError, match="rewards: row 7 is nan"):
        check(broken, 20, 4, 3)
    assert terminal_count(data, 20, None) == 4 and terminal_count(data, 4, 0.5) == 2


def test_data_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRISE_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="the kinds are replay, mixed, random"):
        training_set("CartPole-v1", "expert", 100, 0)
    with pytest.raises(ValueError, match="none of 100 transitions of MountainCar-v0 terminates"):
        training_set("MountainCar-v0", "random", 100, 0)
    assert not list(tmp_path.iterdir())
    made = training_set("MountainCar-v0", "replay", 400, 0)
    again = training_set("MountainCar-v0", "replay", 400, 0)
    assert len(made) == 400 and made.terminated.any()
    np.testing.assert_array_equal(made.observations, again.observations)


def test_candidates_are_chosen_by_agreement():
    data = transitions(50, actions=2)
    batch = Scaling.of(data).batch(data)
    q = draw_networks(np.random.default_rng(0), 2, 1, 3, 2)
    other = draw_networks(np.random.default_rng(1), 2, 1, 3, 2)
    same = agreement(q, q, batch, 1.0)
    torch.testing.assert_close(same, torch.ones(2))
    weights = torch.softmax(
        (lambda v: (v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True))(
            q.values(batch.states).mean(1).amax(-1)
        ),
        1,
    )
    alike = q.values(batch.states).mean(1).argmax(-1) == other.values(batch.states).mean(1).argmax(
        -1
    )
    torch.testing.assert_close(agreement(other, q, batch, 1.0), (weights * alike).sum(1))
    ends = np.flatnonzero(data.terminated)[:1]
    sets = [gather(batch, np.stack([np.append(rows, ends)] * 2)) for rows in ([0, 1], [2, 3])]
    sets = [replace(one, terminated=sets[0].terminated) for one in sets]
    chosen = choose(sets, torch.tensor([1, 0]))
    assert torch.equal(chosen.states[0], sets[1].states[0])
    assert torch.equal(chosen.states[1], sets[0].states[1])
