"""One iteration of PQN against the algorithm written out; its settings, metrics and refusals."""

import json
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from reprise.rl.arranged import decide_precision
from reprise.rl.config import PQN, Optimizer
from reprise.rl.networks import build, greedy, load_policy
from reprise.rl.pqn import Learner, epsilon_at, make_optimizer, run
from reprise.rl.quantize import Quantizer
from reprise.rl.workers import Clock, Workers
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.weights import weights_sha256

CPU = torch.device("cpu")
SMALL = {
    "experiment": "rl.pqn",
    "environment": "CartPole-v1",
    "total_steps": 640,
    "copies": 4,
    "steps": 32,
    "evaluation": {"episodes": 3, "copies": 2, "film": False},
}


def settings(**changes):
    return PQN.model_validate({**SMALL, **changes})


def run_dir(path, **changes):
    return RunDir(path, experiment="rl.pqn", seed=0, **changes)


def started(path, **changes):
    learner = Learner(settings(**changes), run_dir(path))
    learner.resume()
    return learner


# -- an iteration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["straight_through", "targets_only"])
def test_an_iteration_is_the_algorithm_written_out(gradient, tmp_path):
    quantization = {"step": 0.25, "range": 2.0, "gradient": gradient}
    learner = started(tmp_path, quantization=quantization, epochs=2, seed=5)
    first = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    clock = Clock(CPU)
    rollout = learner.act(clock)
    learner.update(rollout, learner.returns(rollout), clock)

    net = build((4,), 2, (120, 84), Quantizer(learner.config.quantization), 0)
    net.load_state_dict(first)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2.5e-4, weight_decay=0.0)

    def rounded(q):
        return torch.clamp(torch.round(q / 0.25), -8, 8) * 0.25

    with torch.no_grad():
        values = rounded(net(rollout.observations.flatten(0, 1))).amax(1).view(32, 4)
        last = rounded(net(torch.from_numpy(learner.observations))).amax(1)
    ended = torch.from_numpy(rollout.terminated | rollout.truncated).float()
    rewards = torch.from_numpy(rollout.rewards)
    returns = torch.zeros(32, 4)
    for t in reversed(range(32)):
        if t == 31:
            following = last
        else:
            following = 0.65 * returns[t + 1] + 0.35 * values[t + 1]
        returns[t] = rewards[t] + 0.99 * following * (1 - ended[t])
    shuffle = learner.streams.internal("minibatches", 0)
    for _ in range(2):
        order = torch.from_numpy(shuffle.permutation(128))
        for rows in order.split(32):
            raw = net(rollout.observations.flatten(0, 1)[rows])
            q = raw.gather(1, rollout.actions.flatten()[rows, None])[:, 0]
            if gradient == "straight_through":
                q = q + (rounded(q) - q).detach()
            loss = F.mse_loss(q, returns.flatten()[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()
    for name, tensor in learner.network.state_dict().items():
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=1e-4, atol=2e-6)
    moved = max(float((first[n] - t).abs().max()) for n, t in net.state_dict().items())
    assert moved > 1e-3


def test_acting_takes_the_best_rounded_action_and_keeps_its_value(tmp_path):
    learner = started(
        tmp_path,
        quantization={"step": 0.5},
        exploration={"start": 0.0, "end": 0.0, "fraction": 1.0},
    )
    rollout = learner.act(Clock(CPU))
    for t in range(32):
        actions, values = greedy(learner.network, rollout.observations[t].numpy())
        assert actions.tolist() == rollout.actions[t].tolist()
        assert values.max(1).tolist() == rollout.values[t].tolist()
        assert np.array_equal(values, np.round(values / 0.5) * 0.5)
    _, values = greedy(learner.network, learner.observations)
    assert values.max(1).tolist() == rollout.values[32].tolist()


def test_all_actions_are_drawn_while_epsilon_is_one_and_each_seed_draws_its_own(tmp_path):
    always = {"start": 1.0, "end": 1.0, "fraction": 1.0}
    drawn = [
        started(tmp_path / str(seed), exploration=always, seed=seed).act(Clock(CPU)).actions
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert 0.3 < drawn[0].float().mean() < 0.7


def test_a_shared_internal_seed_gives_the_same_weights_and_coins_in_other_worlds(tmp_path):
    one, two = (started(tmp_path / str(seed), seed=seed, internal_seed=9) for seed in (1, 2))
    hashes = [weights_sha256(learner.network.state_dict()) for learner in (one, two)]
    assert hashes[0] == hashes[1]
    assert not np.array_equal(one.observations, two.observations)
    coins = [learner.streams.internal("exploration", 3).random(5) for learner in (one, two)]
    assert np.array_equal(*coins)


def test_rewards_are_clipped_for_learning_and_returns_are_raw(tmp_path):
    # MountainCar pays -1 a step; made seven times as dear, clipped and raw rewards differ.
    learner = started(tmp_path, environment="MountainCar-v0")
    step = learner.environments.step

    def dearer(actions):
        made = step(actions)
        made.rewards[:] *= 7
        return made

    learner.environments.step = dearer
    assert set(np.unique(learner.act(Clock(CPU)).rewards)) == {-1.0}
    raw = started(tmp_path, environment="MountainCar-v0", clip_rewards=False)
    step = raw.environments.step
    raw.environments.step = dearer
    assert set(np.unique(raw.act(Clock(CPU)).rewards)) == {-7.0}


@pytest.mark.parametrize("bootstrap", [True, False])
def test_what_a_time_limit_cuts_off_is_valued_only_if_asked(bootstrap, tmp_path):
    learner = started(
        tmp_path,
        bootstrap_on_truncation=bootstrap,
        environment_settings={"max_episode_frames": 7},
        seed=2,
    )
    with torch.no_grad():
        learner.network.head.bias.fill_(10.0)
    rollout = learner.act(Clock(CPU))
    assert rollout.truncated.sum() >= 12
    assert (rollout.final_values[~rollout.truncated] == 0).all()
    valued = rollout.final_values[rollout.truncated]
    assert (valued > 5).all() if bootstrap else (valued == 0).all()
    returns = learner.returns(rollout).numpy()
    cut = rollout.truncated & ~rollout.terminated
    expected = 1 + 0.99 * rollout.final_values[cut] if bootstrap else np.ones(cut.sum())
    assert np.allclose(returns[cut], expected)


def test_minibatches_are_a_new_permutation_each_epoch_and_shared_out_by_copy(tmp_path):
    whole = started(tmp_path, epochs=3)
    rows = [batch.tolist() for batch in whole.minibatches()]
    assert [len(batch) for batch in rows] == [32] * 12
    for epoch in range(3):
        assert sorted(chain(*rows[4 * epoch : 4 * epoch + 4])) == list(range(128))
    assert rows[0] != rows[4]
    whole.iteration = 1
    assert next(whole.minibatches()).tolist() != rows[0]
    whole.iteration = 0
    together = [[] for _ in rows]
    for rank in range(2):  # rows of two copies each, numbered within the process
        whole.own = Workers(rank, 2, CPU).share_of(4)
        for place, batch in enumerate(whole.minibatches()):
            t, copy = np.divmod(batch.numpy(), 2)
            together[place] += (t * 4 + copy + 2 * rank).tolist()
    assert [sorted(batch) for batch in together] == [sorted(batch) for batch in rows]


# -- schedules and optimizers ----------------------------------------------------------------------


def test_epsilon_falls_linearly_then_stays():
    config = settings(total_steps=1000, exploration={"start": 1.0, "end": 0.1, "fraction": 0.4})
    found = [epsilon_at(config, step) for step in (0, 100, 200, 400, 900)]
    assert found == pytest.approx([1.0, 0.775, 0.55, 0.1, 0.1])


@pytest.mark.parametrize("name", ["adamw", "radam"])
def test_weight_decay_is_decoupled(name):
    """With a gradient of 0 a step shrinks every weight by lr * decay, whatever its moments."""
    network = build((4,), 2, (8,), Quantizer(settings().quantization), 0)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = make_optimizer(Optimizer(name=name, weight_decay=0.5), network, 0.1)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for n, p in network.named_parameters():
        torch.testing.assert_close(p.detach(), before[n] * (1 - 0.1 * 0.5))


# -- a run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    config = settings(quantization={"step": 0.25}, checkpoint_every=2, seed=4)
    directory = run_dir(path)
    summary = run(config, directory)
    return path, directory.metrics(), summary


def test_the_summary_has_its_fields(finished):
    _, metrics, summary = finished
    totals = [total for line in metrics for total in line["episode_returns"]]
    assert summary["environment"] == "CartPole-v1" and summary["steps"] == 640
    assert summary["episodes"] == len(totals) > 10
    assert summary["mean_return_last_3"] == pytest.approx(np.mean(totals[-3:]))
    assert summary["mean_return_last_100"] == pytest.approx(np.mean(totals[-100:]))
    assert summary["quantization_step"] == 0.25 and summary["precision"] == "float32"
    assert summary["steps_per_second"] > 0
    assert summary["evaluation_episodes"] == 3 and summary["evaluation_return_mean"] >= 8
    assert summary["greedy_epsilon"] == 0 and summary["evaluation_epsilon"] == 0.01


def test_metrics_tell_each_iteration(finished):
    _, metrics, _ = finished
    assert [line["step"] for line in metrics] == [128, 256, 384, 512, 640]
    rates = [line["learning_rate"] for line in metrics]
    assert rates == pytest.approx([2.5e-4 * (1 - i / 5) for i in range(5)])
    assert metrics[0]["epsilon"] == 1.0 and metrics[-1]["epsilon"] == pytest.approx(0.01)
    for line in metrics:
        spent = sum(value for key, value in line.items() if key.endswith("_seconds"))
        assert 0 < spent < 128 / line["steps_per_second"]
        assert line["loss"] > 0 and line["gradient_norm"] > 0 and 0 <= line["churn"] <= 1
        assert line["quantizer_saturated"] == 0


def test_the_policy_is_left_with_what_it_needs(finished):
    path, _, summary = finished
    network, metadata = load_policy(path)
    assert weights_sha256(network.state_dict()) == summary["weights_sha256"]
    assert metadata.environment == "CartPole-v1" and metadata.actions == 2
    assert network.quantizer.settings.step == 0.25 and metadata.training["steps"] == 640
    assert (path / "evaluation.csv").read_text().count("\n") == 1 + 3 + 3


def test_only_the_last_two_checkpoints_stay(finished):
    path, _, _ = finished
    kept = sorted(folder.name for folder in (path / "checkpoints").iterdir())
    assert kept == ["final", "step-000000000512", "step-000000000640"]


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(finished, tmp_path):
    _, _, summary = finished
    for seed, same in ((4, True), (5, False)):
        config = settings(quantization={"step": 0.25}, seed=seed)
        again = run(config, run_dir(tmp_path / str(seed)))
        assert (again["weights_sha256"] == summary["weights_sha256"]) is same


def test_churn_is_the_share_of_greedy_actions_that_an_update_changed(tmp_path):
    learner = started(tmp_path, learning_rate=0.05, copies=2, steps=32)
    clock = Clock(CPU)
    rollout = learner.act(clock)
    seen = rollout.observations.flatten(0, 1)
    before = greedy(learner.network, seen.numpy())[0]
    measured = learner.update(rollout, learner.returns(rollout), clock)
    after = greedy(learner.network, seen.numpy())[0]
    assert 0 < measured["churn"] < 1
    assert measured["churn"] == pytest.approx((before != after).mean())


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"minibatches": 3}, r"minibatches=3 must divide the batch, copies=4 x steps=32 = 128"),
        ({"total_steps": 127}, r"total_steps=127 is less than one batch.* = 128; raise"),
        ({"quantization": {"step": 2.0, "range": 1.0}}, r"range=1.0 is less than step=2.0"),
        ({"copies": 0}, r"copies"),
        ({"gamma": 1.0}, r"gamma"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


def test_an_unknown_game_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"environment='braekout'.*'breakout'"):
        Learner(settings(environment="braekout"), run_dir(tmp_path))
    assert not (tmp_path / "precision.json").exists()


def test_copies_must_be_shared_out_evenly():
    assert Workers(1, 2, CPU).share_of(8) == slice(4, 8)
    with pytest.raises(ValueError, match=r"copies=5 cannot be shared out evenly over 2"):
        Workers(0, 2, CPU).share_of(5)


def test_a_loss_that_is_not_finite_ends_the_run_and_loses_nothing(tmp_path):
    config = settings(total_steps=128 * 3, checkpoint_every=1)
    learner = Learner(config, run_dir(tmp_path))
    learner.resume()
    clock = Clock(CPU)
    for ruin in (False, True):
        rollout = learner.act(clock)
        if ruin:
            rollout.rewards[3, 1] = np.nan
        returns = learner.returns(rollout)
        if ruin:
            with pytest.raises(
                FloatingPointError,
                match=r"loss is nan in the update after step 128; .*"
                r"step-000000000128 is the newest.*lower learning_rate",
            ):
                learner.update(rollout, returns, clock)
        else:
            learner.finish_iteration(rollout, learner.update(rollout, returns, clock), clock)
    again = Learner(config, run_dir(tmp_path))
    again.resume()
    assert again.step == 128
    assert all(parameter.isfinite().all() for parameter in again.network.parameters())
    assert [line["step"] for line in run_dir(tmp_path).metrics()] == [128]


def test_a_checkpoint_of_another_action_space_is_refused(tmp_path):
    run(settings(), run_dir(tmp_path))
    with pytest.raises(ValueError, match=r"another network|3 are needed"):
        Learner(settings(environment="MountainCar-v0"), run_dir(tmp_path)).resume()


def test_precision_is_measured_once_and_stays(tmp_path):
    config = settings(precision="auto")
    images = build((4, 36, 36), 2, (8,), Quantizer(config.quantization), 0)
    directory, worker = run_dir(tmp_path), Workers(0, 1, CPU)
    chosen = decide_precision(config, images, directory, worker)
    file = tmp_path / "precision.json"
    recorded = json.loads(file.read_text())
    times = recorded["milliseconds"]
    assert recorded["precision"] == chosen
    assert (chosen == "bfloat16") == (times["bfloat16"] < 0.9 * times["float32"])
    for kept in ("float32", "bfloat16"):
        file.write_text(json.dumps({"precision": kept}))
        assert decide_precision(config, images, directory, worker) == kept
    assert decide_precision(settings(precision="float32"), images, directory, worker) == "float32"
    vectors = build((4,), 2, (8,), Quantizer(config.quantization), 0)
    assert decide_precision(config, vectors, directory, worker) == "float32"
    with pytest.raises(ValueError, match=r"precision=bfloat16: .*vectors"):
        decide_precision(settings(precision="bfloat16"), vectors, directory, worker)
