"""From trained policies to expert data to agreement, by command line and without a network."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reprise.launch.cli.main import main
from reprise.rl.config import Quantization
from reprise.rl.finished_runs import load_finished, q_values
from reprise.rl.networks import Metadata, build, greedy, save_policy
from reprise.rl.quantize import Quantizer
from reprise.rollout.environments.base import make
from reprise.rollout.minari_atari import held_out
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.run.settings import EnvironmentSettings
from reprise.rollout.weights import weights_sha256

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "minari"


def finished(path, environment, seed, step=None, **changes):
    """A finished run of rl.pqn with new weights: what `run` leaves, without the training."""
    settings = EnvironmentSettings(**changes)
    copies = make(environment, 1, settings)
    quantization = Quantization(step=step)
    network = build(copies.observation_shape, copies.actions, (16,), Quantizer(quantization), seed)
    run_dir = RunDir(path, experiment="rl.pqn", seed=seed)
    for number in range(1, 4):
        run_dir.log(step=100 * number, churn=0.1 * number)
    with run_dir.checkpoint("final") as folder:
        metadata = Metadata(
            copies.name,
            settings.model_dump(mode="json"),
            list(copies.observation_shape),
            copies.actions,
            [16],
            quantization.model_dump(mode="json"),
        )
        save_policy(network, folder, metadata)
    run_dir.finish(
        steps=300,
        mean_return_last_3=10.0 + seed,
        evaluation_return_mean=20.0 + seed,
        weights_sha256=weights_sha256(network.state_dict()),
    )
    return path


def status(*arguments):
    try:
        main([str(each) for each in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def report(capsys, *arguments):
    capsys.readouterr()
    assert status("agreement", *arguments, "--format", "json") == 0
    return json.loads(capsys.readouterr().out)


def test_breakout_recorded_and_compared(tmp_path, capsys, datasets):
    runs = [finished(tmp_path / f"run-{seed}", "breakout", seed) for seed in range(3)]
    arguments = ("collect", runs[0], "to=breakout/pqn-v0", "episodes=2", "epsilon=1.0")
    assert status(*arguments, "longest=100") == 0
    summary = json.loads((tmp_path / "runs/collect/breakout/pqn-v0/summary.json").read_text())
    assert summary["games"] == 2 and summary["frames"] == "raw"
    assert summary["path"] == str(datasets / "breakout/pqn-v0")

    import minari

    dataset = minari.load_dataset("breakout/pqn-v0")
    assert dataset.total_steps == summary["observations"] and dataset.total_episodes == 2
    episode = dataset[0]
    assert episode.observations.shape == (len(episode.actions) + 1, 210, 160, 3)
    # Lossless: an Atari has at most 128 colours. No two steps show the same ball.
    assert len(np.unique(episode.observations.reshape(-1, 3), axis=0)) <= 128
    assert (episode.observations[-1] != episode.observations[-2]).any()
    assert episode.terminations.sum() + episode.truncations.sum() == 1
    assert dataset.storage.metadata["recorded"]["epsilon"] == 1.0

    told = report(capsys, *runs, "--data", "breakout/pqn-v0", "--observations", "50")
    assert (told["runs"], told["pairs"], told["observations"]) == (3, 3, 50)
    # The same by hand.
    data = held_out("breakout/pqn-v0", "breakout", 4, 4, 50)
    actions = [greedy(load_finished(run).network, data.observations)[0] for run in runs]
    pairs = [(actions[i] == actions[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert told["agreement_mean"] == pytest.approx(np.mean(pairs))
    assert told["agreement_se"] > 0 and told["frames"] == "raw" and not told["frames_lossy"]

    assert status("agreement", *runs, "--data", datasets / "breakout/pqn-v0") == 0
    assert "agreement of greedy actions" in capsys.readouterr().out


def test_exact_frames_are_what_the_policy_saw(tmp_path):
    run = finished(tmp_path / "run", "ms_pacman", 0)
    arguments = ("collect", run, "to=ms_pacman/pqn-v0", "observations=60", "epsilon=0.0")
    assert status(*arguments, "frames=exact", "copies=2", "format=hdf5") == 0
    data = held_out("ms_pacman/pqn-v0", "ms_pacman", 9, 4, None)
    assert data.frames == "exact" and data.observations.shape == (60, 4, 84, 84)
    # Greedy: its actions are those of the policy on what was recorded.
    network = load_finished(run).network
    assert (greedy(network, data.observations)[0] == data.taken).all()
    # The same games, recorded raw: same actions; most observations differ by the maximum.
    assert status("collect", run, "to=ms_pacman/raw-v0", "observations=60", "epsilon=0.0") == 0
    raw = held_out("ms_pacman/raw-v0", "ms_pacman", 9, 4, None)
    assert (raw.taken == data.taken).all()
    close = np.abs(raw.observations.astype(int) - data.observations).mean()
    assert 0 < close < 2


def test_quantized_policies_act_on_rounded_values(tmp_path):
    network = load_finished(finished(tmp_path / "run", "CartPole-v1", 0, step=0.5)).network
    states = np.random.default_rng(0).normal(size=(700, 4)).astype(np.float32)
    rounded, raw = q_values(network, states)
    actions, values = greedy(network, states)
    assert (rounded == values).all() and (rounded.argmax(1) == actions).all()
    assert (rounded % 0.5 == 0).all() and (raw % 0.5 != 0).any()
    assert np.abs(rounded - raw).max() <= 0.25 + 1e-6


def test_figure_two(tmp_path, capsys):
    for variant, step in (("baseline", None), ("quantized", 2.0)):
        for seed in range(3):
            path = tmp_path / f"pqn/cartpole_{variant}/seed-{seed}"
            finished(path, "CartPole-v1", seed, step)
    one = tmp_path / "pqn/cartpole_baseline/seed-0"
    assert status("collect", one, "to=cartpole/pqn-v0", "episodes=6", "frames=exact") == 0
    (tmp_path / "two.yaml").write_text(
        "experiment: rl.figure_two\n"
        "runs: pqn/{game}_{variant}/seed-{seed}\n"
        "games: {cartpole: {environment: CartPole-v1, data: cartpole/pqn-v0}}\n"
        "variants: {baseline: baseline, quantized: quantized, quantized_regularized: both}\n"
        "seeds: [0, 1, 2, 3]\n"
    )
    assert status("run", "two.yaml", "--out", "two") == 0
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    baseline, quantized, absent = summary["cells"]
    assert baseline["runs"] == 3 and baseline["missing"] == ["pqn/cartpole_baseline/seed-3"]
    assert baseline["return_mean"] == 11 and baseline["evaluation_mean"] == 21
    assert baseline["return_se"] == pytest.approx(1 / 3**0.5)
    assert baseline["churn_mean"] == pytest.approx(0.2)
    assert baseline["return_degrees"] == 2 and baseline["agreement_degrees"] == 2
    assert baseline["evaluation_difference_mean"] is None  # it is what the others are minus
    assert quantized["evaluation_difference_mean"] == 0  # the same returns, seed by seed
    same, gone = (
        [one for one in summary["differences"] if one["variant"] == variant]
        for variant in ("quantized", "quantized_regularized")
    )
    assert [one["measure"] for one in same] == ["return", "evaluation"]
    assert all(one["pairs"] == 3 and one["difference_mean"] == 0 for one in same)
    assert all(one["pairs"] == 0 and one["difference_mean"] is None for one in gone)
    assert summary["scores"] == []  # nobody's score of CartPole
    assert absent["runs"] == 0 and absent["agreement_mean"] is None and len(absent["missing"]) == 4
    # Untrained values round to few points of a coarse grid: they tie, and so agree.
    assert quantized["tied_share"] > 0.2 > baseline["tied_share"]
    paths = [tmp_path / f"pqn/cartpole_quantized/seed-{seed}" for seed in range(3)]
    told = report(capsys, *paths, "--data", "cartpole/pqn-v0")
    assert quantized["agreement_mean"] == told["agreement_mean"]
    assert quantized["agreement_se"] == told["agreement_se"]
    text = (tmp_path / "two/table.md").read_text()
    assert "| cartpole | quantized_regularized | 0 | missing |" in text
    for suffix in ("png", "svg"):
        assert (tmp_path / f"two/figure_2.{suffix}").stat().st_size > 5000


def test_bad_input_is_refused_with_status_2(tmp_path, capsys):
    runs = [finished(tmp_path / f"run-{seed}", "CartPole-v1", seed) for seed in range(2)]
    other = finished(tmp_path / "acrobot", "Acrobot-v1", 0)
    few, full = (
        finished(tmp_path / name, "breakout", 0, full_action_space=bool(number))
        for number, name in enumerate(("few", "full"))
    )
    assert status("collect", runs[0], "to=cartpole/pqn-v0", "episodes=2", "frames=exact") == 0
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("experiment: rl.pqn\n")
    data = ("--data", "cartpole/pqn-v0")
    for arguments, told in [
        (("agreement", runs[0], *data), "1 run"),
        (("agreement", runs[0], runs[0], *data), "given twice"),
        (("agreement", runs[0], unfinished, *data), "reprise resume"),
        (("agreement", runs[0], tmp_path / "nowhere", *data), "no run is there"),
        (("agreement", runs[0], other, *data), "environment is Acrobot-v1"),
        (("agreement", few, full, *data), "actions is 18"),
        (("agreement", runs[0], tmp_path / "runs/collect/cartpole/pqn-v0", *data), "rl.collect"),
        (("agreement", *runs, "--data", "atari/breakout/expert-v0"), "minari download"),
        (("agreement", *runs, "--data", "nonsense"), "neither a Minari data set"),
        (("collect", runs[0], "episodes=2"), "to=ID"),
        (("collect", runs[0], "to=cartpole/raw-v0"), "frames=raw"),
        (("collect", runs[0], "to=nothing"), "to = 'nothing'"),
        (("collect", runs[0], "to=a/b-v0", "observations=4", "episodes=1"), "exactly one"),
        (("collect", unfinished, "to=cartpole/raw-v0"), "not finished"),
        (("collect", runs[1], "to=cartpole/pqn-v0", "frames=exact", "--out", "o"), "already in"),
        (("collect", "quickstart/sft"), "`reprise collect` takes rl.collect"),
    ]:
        capsys.readouterr()
        assert status(*arguments) == 2, arguments
        assert told in capsys.readouterr().err, arguments
    assert not (tmp_path / "o" / "config.yaml").exists()


def test_a_killed_recording_ends_the_same(tmp_path, datasets):
    run = finished(tmp_path / "run", "breakout", 0)
    settings = ["to=breakout/pqn-v0", "episodes=3", "epsilon=1.0", "longest=60"]
    command = [sys.executable, "-m", "reprise.launch.cli", "collect", str(run), *settings]
    command += ["--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    metrics = tmp_path / "out" / "metrics.jsonl"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while not metrics.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (datasets / "breakout/pqn-v0").exists()
    assert status("collect", run, *settings, "--out", "out") == 0
    first = json.loads((tmp_path / "out/summary.json").read_text())
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [record["game"] for record in records] == [1, 2, 3]
    # Killed between the data set's last byte and summary.json: nothing is recorded again.
    (tmp_path / "out/summary.json").unlink()
    written = (datasets / "breakout/pqn-v0/data/metadata.json").stat().st_mtime_ns
    assert status("resume", "out") == 0
    timed = {"seconds": 0, "seal": ""}
    assert json.loads((tmp_path / "out/summary.json").read_text()) | timed == first | timed
    assert (datasets / "breakout/pqn-v0/data/metadata.json").stat().st_mtime_ns == written
    # Uninterrupted, elsewhere: the same bits.
    other = ["to=breakout/other-v0", *settings[1:], "--out", "other"]
    assert status("collect", run, *other) == 0
    second = json.loads((tmp_path / "other/summary.json").read_text())
    assert second["data_sha256"] == first["data_sha256"]
