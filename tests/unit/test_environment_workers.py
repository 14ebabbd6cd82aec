"""Copies in worker processes: the same bits, the same saved states, and no process left behind."""

import contextlib
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reprise.launch.config import config_sha256, differences, load
from reprise.rl.config import PQN
from reprise.rl.pqn import run
from reprise.rollout.environments.base import make
from reprise.rollout.environments.workers import InWorkers, joined, part_of
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.run.settings import EnvironmentSettings

ROOT = Path(__file__).parents[2]
# Short games: game over, lost lives and time limits all come within 200 steps.
GAMES = {
    "CartPole-v1": {"max_episode_frames": 25},
    "breakout": {"max_episode_frames": 360, "sticky_actions": 0.25, "noop_max": 5},
}


@contextlib.contextmanager
def made(name="CartPole-v1", copies=3, workers=2, first_copy=0, **settings):
    environments = make(name, copies, EnvironmentSettings(workers=workers, **settings), first_copy)
    yield environments
    environments.close()


def actions_of(environments, count, seed=0):
    shape = (count, environments.copies)
    return np.random.default_rng(seed).integers(0, environments.actions, shape)


def as_bytes(step):
    arrays = (step.observations, step.rewards, step.terminated, step.truncated)
    final = [(copy, value.tobytes()) for copy, value in step.final_observations.items()]
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays], final, step.episodes


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, np.ndarray):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    else:
        assert ours == theirs


def alive(process):
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(processes, seconds=20.0):
    end = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, processes))


def processes_of(environments):
    return [process.pid for process in environments.processes]


# -- the same bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GAMES)
def test_workers_change_no_bit(name):
    with (
        made(name, first_copy=4, **GAMES[name]) as ours,
        made(name, workers=0, first_copy=4, **GAMES[name]) as alone,
    ):
        assert isinstance(ours, InWorkers) and not isinstance(alone, InWorkers)
        for key in ("name", "copies", "first_copy", "actions", "observation_shape"):
            assert getattr(ours, key) == getattr(alone, key), key
        assert ours.observation_dtype == alone.observation_dtype
        ends = np.zeros(2, dtype=int)
        for seed in (1, 2):  # the second starts anew in the middle of games
            first = ours.reset(seed)
            np.testing.assert_array_equal(first, alone.reset(seed), strict=True)
            kept = first.copy()
            running = np.random.default_rng(seed).random((110, 3)) < 0.9
            for t, actions in enumerate(actions_of(alone, 110, seed)):
                some = running[t] if t % 2 else None
                step, expected = ours.step(actions, some), alone.step(actions, some)
                assert as_bytes(step) == as_bytes(expected), t
                ends += [step.terminated.sum(), step.truncated.sum()]
            assert np.array_equal(first, kept), "what was returned is overwritten"
        assert (ends > 0).all()
        for copy in (0, 1, 2, -1):
            np.testing.assert_array_equal(ours.render(copy), alone.render(copy), strict=True)
        if name == "breakout":
            np.testing.assert_array_equal(ours.last_screen(2), alone.last_screen(2), strict=True)


@pytest.mark.parametrize("name", GAMES)
def test_a_state_is_the_same_and_goes_on_with_any_number_of_workers(name):
    settings = GAMES[name]
    with made(name, workers=2, **settings) as two, made(name, workers=0, **settings) as alone:
        acts = actions_of(alone, 60)
        two.reset(3), alone.reset(3)
        for row in acts[:30]:
            two.step(row)
            last = alone.step(row)
        states = [pickle.loads(pickle.dumps(each.state_dict())) for each in (two, alone)]
        assert_same(*states)
        expected = [as_bytes(alone.step(row)) for row in acts[30:]]
        for environments, state in ((alone, states[0]), (two, states[1]), (two, states[0])):
            seen = environments.load_state_dict(state)
            np.testing.assert_array_equal(seen, last.observations, strict=True)
            assert [as_bytes(environments.step(row)) for row in acts[30:]] == expected
        with made(name, workers=3, **settings) as three:
            three.load_state_dict(states[1])
            assert_same(three.state_dict(), states[0])


def test_a_state_of_other_copies_or_settings_is_refused_as_by_one_process():
    with made(workers=0) as alone:
        alone.reset(0)
        state = alone.state_dict()
    for changes, key in (
        ({"copies": 4}, "copies"),
        ({"max_episode_frames": 7}, "limit"),
    ):
        said = []
        for workers in (0, 2):
            with made(workers=workers, **changes) as other:
                with pytest.raises(ValueError, match=f"^{key}: the saved environments have") as e:
                    other.load_state_dict(state)
                said.append(str(e.value))
        assert said[0] == said[1]


def test_states_are_joined_and_shared_out_by_copy():
    whole = {
        "copies": 3,
        "first_copy": 2,
        "rows": np.arange(6).reshape(3, 2),
        "each": ["a", "b", "c"],
        "set": {"limit": 9},
        "one": np.float64(2.0),
    }
    parts = [part_of(whole, share, 3) for share in (slice(0, 2), slice(2, 3))]
    assert [(part["copies"], part["first_copy"]) for part in parts] == [(2, 2), (1, 4)]
    assert [part["each"] for part in parts] == [["a", "b"], ["c"]]
    assert_same(joined(parts, [2, 1]), whole)
    with pytest.raises(ValueError, match=r"^clock of the state differs.*workers=0"):
        joined([{"clock": 1}, {"clock": 2}], [2, 1])


def pqn(path, workers, steps=640):
    config = PQN.model_validate(
        {
            "experiment": "rl.pqn",
            "environment": "CartPole-v1",
            "environment_settings": {"max_episode_frames": 40, "workers": workers},
            "total_steps": steps,
            "copies": 4,
            "steps": 32,
            "checkpoint_every": 2,
            "evaluation": {"episodes": 3, "copies": 1, "film": True},
        }
    )
    return run(config, RunDir(path, experiment="rl.pqn", seed=0))


def test_pqn_learns_the_same_weights_and_continues_with_other_workers(tmp_path):
    alone, ours = pqn(tmp_path / "0", 0), pqn(tmp_path / "2", 2)
    for key in set(alone) - {"steps_per_second"}:
        assert ours[key] == alone[key], key
    policies = [(tmp_path / n / "checkpoints/final/network.json").read_text() for n in "02"]
    assert policies[0] == policies[1]
    for made_with, workers in (("0", 2), ("2", 0)):  # from the checkpoint of four iterations
        folder = tmp_path / made_with
        (folder / "checkpoints" / "step-000000000640").rename(folder / "moved")
        again = pqn(folder, workers)
        assert again["weights_sha256"] == alone["weights_sha256"]


def test_a_run_with_other_workers_is_a_run_of_the_same_config():
    alone, ours = (
        load("paper/pqn_breakout_quantized", [f"environment_settings.workers={n}"]) for n in (0, 8)
    )
    assert ours.environment_settings.workers == 8
    assert config_sha256(alone) == config_sha256(ours)
    assert differences(*(each.model_dump(mode="json") for each in (alone, ours))) == []
    other = load("paper/pqn_breakout_quantized", ["environment_settings.threads=2"])
    assert config_sha256(alone) != config_sha256(other)


# -- refusals and failures -------------------------------------------------------------------------


def test_more_workers_than_copies_are_refused():
    with pytest.raises(
        ValueError,
        match=r"workers=3; must be at most the copies .*, 2, .*lower it, or raise copies",
    ):
        make("CartPole-v1", 2, EnvironmentSettings(workers=3))


def test_what_cannot_be_made_is_refused_before_any_worker_starts():
    with pytest.raises(ValueError, match=r"environment='braekout'.*'breakout'"):
        make("braekout", 2, EnvironmentSettings(workers=2))
    with pytest.raises(ValueError, match="noop_max: CartPole-v1 has no such setting"):
        make("CartPole-v1", 2, EnvironmentSettings(workers=2, noop_max=3))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_killed_worker_is_named_and_the_others_end():
    with made() as environments:
        environments.reset(0)
        processes = processes_of(environments)
        assert all(map(alive, processes))
        os.kill(processes[1], signal.SIGKILL)
        with pytest.raises(
            RuntimeError,
            match=rf"environment worker 1 of 2 \(process {processes[1]}, copies 2 to 2 of "
            r"CartPole-v1\) ended with exit code -9 \(SIGKILL\).*fewer than "
            r"environment_settings.workers=2",
        ):
            for row in actions_of(environments, 3):
                environments.step(row)
        assert gone(processes)
        with pytest.raises(RuntimeError, match="CartPole-v1: these environments are closed"):
            environments.reset(0)


FRAGILE = '''
import os
import numpy as np
from reprise.rollout.environments.classic_control import ClassicControl

class Odd(ArithmeticError):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

class Fragile(ClassicControl):
    """A counter; action 1 fails, 2 fails with what cannot travel, 3 ends the process."""

    actions, limit, observation_shape = 4, 40, (1,)

    def start(self, generator):
        if self.first_copy == 99:
            raise OverflowError("no copy 99")
        return np.zeros(1)

    def advance(self, states, actions):
        if (actions == 1).any():
            raise ZeroDivisionError("nothing by nothing")
        if (actions == 2).any():
            raise Odd("this", "that")
        if (actions == 3).any():
            os._exit(7)
        return states + 1, np.zeros(len(states)), np.zeros(len(states), dtype=bool)

    def segments(self, state):
        return []

class Narrow(Fragile):
    observation_shape = (2,)

class Unmade(Fragile):
    def __init__(self, name, copies, settings, first_copy=0):
        if first_copy:
            raise LookupError("only the first")
        super().__init__(name, copies, settings, first_copy)
'''


@pytest.fixture
def fragile(tmp_path, monkeypatch):
    (tmp_path / "fragile_environments.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    return "fragile_environments:Fragile"


def test_an_exception_in_a_worker_is_raised_here(fragile):
    with made(fragile) as environments:
        with pytest.raises(AssertionError, match="reset or load_state_dict comes before step"):
            environments.step(np.zeros(3, dtype=int))
        environments.reset(0)
        with pytest.raises(ZeroDivisionError, match="nothing by nothing") as e:
            environments.step(np.array([0, 0, 1]))
        assert str(e.value) == "nothing by nothing"
        assert "in environment worker 1" in e.value.__notes__[0]
        assert "line" in e.value.__notes__[0]
        with pytest.raises(RuntimeError, match=r"^Odd in environment worker 0: this and that"):
            environments.step(np.array([2, 0, 0]))
        with pytest.raises(ValueError, match=r"actions\[2\]=4; .* 0\.\.3"):
            environments.step(np.array([0, 0, 4]))
        # An answer of before is not taken for that of now.
        assert environments.reset(1).tolist() == [[0.0]] * 3
        assert environments.step(np.zeros(3, dtype=int)).observations.tolist() == [[1.0]] * 3
        with pytest.raises(RuntimeError, match=r"worker 1 of 2 .*exit code 7\."):
            environments.step(np.array([0, 0, 3]))
    module = fragile.partition(":")[0]
    with pytest.raises(LookupError, match="only the first"):
        make(f"{module}:Unmade", 2, EnvironmentSettings(workers=2))
    with made(f"{module}:Narrow") as environments:
        with pytest.raises(ValueError, match=r"observations: float32 \[2, 1\].*observation_shape"):
            environments.reset(0)


def test_answers_of_a_call_that_was_interrupted_are_not_taken_for_others(monkeypatch):
    with made() as environments:
        environments.reset(0)
        answers = environments._answers
        monkeypatch.setattr(environments, "_answers", lambda: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            environments.reset(1)
        monkeypatch.setattr(environments, "_answers", answers)
        with pytest.raises(RuntimeError, match="an earlier call was interrupted"):
            environments.state_dict()


# -- no process is left ----------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_close_and_as_garbage_and_leave_signals_to_us():
    environments = make("CartPole-v1", 2, EnvironmentSettings(workers=2))
    environments.reset(0)
    processes = processes_of(environments)
    for process in processes:
        os.kill(process, signal.SIGINT)
        os.kill(process, signal.SIGTERM)
    environments.step(np.zeros(2, dtype=int))
    assert all(map(alive, processes))
    environments.close()
    environments.close()
    assert gone(processes, 0)
    environments = make("CartPole-v1", 2, EnvironmentSettings(workers=2))
    processes = processes_of(environments)
    assert all(map(alive, processes))
    del environments
    gc.collect()
    assert gone(processes, 0)


PARENT = """
import sys, time
from reprise.rollout.environments.base import make
from reprise.rollout.run.settings import EnvironmentSettings

environments = make("CartPole-v1", 2, EnvironmentSettings(workers=2))
environments.reset(0)
print(*(process.pid for process in environments.processes), flush=True)
if sys.argv[1] == "fail":
    raise ValueError("on purpose")
if sys.argv[1] == "wait":
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", ["killed", "end", "fail"])
def test_workers_end_with_the_process_that_made_them(how):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, "wait" if how == "killed" else how],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes = [int(word) for word in parent.stdout.readline().split()]
    assert len(processes) == 2
    if how == "killed":
        assert all(map(alive, processes))
        parent.kill()
    said = parent.communicate(timeout=60)[1]  # until all that hold its pipes have ended
    assert parent.returncode == {"killed": -signal.SIGKILL, "end": 0, "fail": 1}[how]
    assert gone(processes)
    assert re.sub(r"(?s)Traceback.*ValueError: on purpose\n", "", said) == ""
