"""An environment whose copies are stepped by processes of their own, as if by this one.

    make(name, copies, EnvironmentSettings(workers=8))

Emulators hold Python's lock, so that one process steps them one after another. Here each of W
worker processes has its share of the copies, made as `make` makes them, with its `first_copy`. A
copy is a world of its own, so every bit is that of one process, and a saved state is too: it may be
loaded with any number of workers, or none.

Observations, actions, rewards and flags go through memory that all share, which has no name and is
gone with the last process that maps it. Calls, final observations, episodes and states go through a
pipe for each worker. A worker ends when its pipe does: on `close`, when these environments are
garbage, and with this process however that ends, SIGKILL included. SIGINT and SIGTERM are this
process's business and are blocked in workers. They start by "spawn", since this process may have
CUDA and threads; a script that makes them needs the usual `if __name__ == "__main__":`.
"""

from __future__ import annotations

import math
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from reprise.rollout.environments.base import Environments, Episode, Step, make
from reprise.rollout.errors import BadInput
from reprise.rollout.run.settings import EnvironmentSettings

PATIENCE = 5.0  # seconds to wait for a worker to end by itself
SHOWN = ("observations", "rewards", "terminated", "truncated")  # of a step, through the memory
BLOCKED = (signal.SIGINT, signal.SIGTERM)


class InWorkers(Environments):
    """N copies of `name`, shared out over `settings.workers` processes, at most one more in each.

    Arguments are those of `make`, which also checks them.
    """

    def __init__(
        self, name: str, copies: int, settings: EnvironmentSettings, first_copy: int = 0
    ) -> None:
        alone = settings.model_copy(update={"workers": 0})
        sample = make(name, 1, alone, first_copy)  # what cannot be made is refused before any start
        self.name, self.actions = sample.name, sample.actions
        self.observation_shape = tuple(sample.observation_shape)
        self.observation_dtype = np.dtype(sample.observation_dtype)
        sample.close()
        self.copies, self.first_copy, self.busy = copies, first_copy, False
        parts = np.array_split(np.arange(copies), settings.workers)
        self.shares = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
        context = multiprocessing.get_context("spawn")
        memory = _Memory(context, copies, self.observation_shape, self.observation_dtype)
        self.rows = memory.rows(slice(0, copies))
        self.processes: list[BaseProcess] = []
        self.connections: list[Connection] = []
        self.finalizer = util.Finalize(
            self, _end, (self.processes, self.connections), exitpriority=10
        )
        try:
            resource_tracker.ensure_running()  # starting it unblocks signals
            before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)  # which workers inherit
            try:
                for number, share in enumerate(self.shares):
                    ours, theirs = context.Pipe()
                    process = context.Process(
                        target=_work,
                        args=(theirs, name, alone, first_copy, share, memory),
                        name=f"environment worker {number}",
                        daemon=True,
                    )
                    process.start()
                    theirs.close()  # or its end would not be seen here
                    self.processes.append(process)
                    self.connections.append(ours)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._answers()
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int) -> np.ndarray:
        """Start every copy anew."""
        self._ask("reset", [(seed,)] * len(self.shares))
        return self.rows["observations"].copy()

    def step(self, actions: np.ndarray, running: np.ndarray | None = None) -> Step:
        """Act once in every running copy; see `Environments.step`."""
        self.rows["actions"][:], self.rows["running"][:] = self._check_actions(actions, running)
        final: dict[int, np.ndarray] = {}
        episodes: list[Episode] = []
        answers = self._ask("step", [(running is not None,)] * len(self.shares))
        for share, (last, ended) in zip(self.shares, answers, strict=True):
            final |= {share.start + copy: seen for copy, seen in last.items()}
            episodes += [replace(one, copy=share.start + one.copy) for one in ended]
        rows = {name: self.rows[name].copy() for name in SHOWN}
        return Step(**rows, final_observations=final, episodes=episodes)

    def state_dict(self) -> dict[str, Any]:
        """What one process with all copies would give."""
        states = self._ask("of_environments", [("state_dict",)] * len(self.shares))
        return joined(states, [share.stop - share.start for share in self.shares])

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Continue exactly where `state_dict` was taken, with workers or without."""
        own = {"name": self.name, "copies": self.copies, "first_copy": self.first_copy}
        self._check_state(state, {key: value for key, value in own.items() if key in state})
        self._ask("load_state_dict", [(part_of(state, one, self.copies),) for one in self.shares])
        return self.rows["observations"].copy()

    def render(self, copy: int) -> np.ndarray:
        """Picture of what `copy` is in now."""
        return self._ask_one("render", copy)

    def last_screen(self, copy: int) -> np.ndarray:
        """The screen that the latest finished game of `copy` ended on, of Atari."""
        return self._ask_one("last_screen", copy)

    def close(self) -> None:
        """End the workers."""
        self.finalizer()

    # -- calls -------------------------------------------------------------------------------------

    def _ask_one(self, method: str, copy: int) -> Any:
        copy = range(self.copies)[copy]  # as in an array, from the end too
        [number] = [n for n, share in enumerate(self.shares) if share.start <= copy < share.stop]
        self._begin()
        self._send(number, ("of_environments", (method, copy - self.shares[number].start)))
        return self._answers([number])[0]

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Every worker's answer to the call with its `arguments`.

        Raises:
            RuntimeError: a worker has ended, or these environments are closed.
            Exception: what the call raised in the first worker where it did.
        """
        self._begin()
        for number, given in enumerate(arguments):
            self._send(number, (method, given))
        return self._answers()

    def _begin(self) -> None:
        if not self.finalizer.still_active():
            raise RuntimeError(f"{self.name}: these environments are closed; make them anew")
        if self.busy:
            self.close()
            raise RuntimeError(
                f"{self.name}: an earlier call was interrupted, and its answers would be taken for "
                "those of this one; make the environments anew and load a saved state"
            )
        self.busy = True

    def _send(self, number: int, call: tuple[str, tuple[Any, ...]]) -> None:
        try:
            self.connections[number].send(call)
        except OSError:
            raise self._lost(number) from None

    def _answers(self, numbers: Sequence[int] | None = None) -> list[Any]:
        answers = []
        for number in range(len(self.shares)) if numbers is None else numbers:
            try:
                answers.append(self.connections[number].recv())
            except (EOFError, OSError):
                raise self._lost(number) from None
        self.busy = False
        for well, answer in answers:
            if not well:
                raise answer
        return [answer for _, answer in answers]

    def _lost(self, number: int) -> RuntimeError:
        """What to say of a worker that has ended by itself; ends the others."""
        process, share = self.processes[number], self.shares[number]
        process.join(PATIENCE)
        code = process.exitcode
        named = f" ({signal.Signals(-code).name})" if code is not None and code < 0 else ""
        self.close()
        return RuntimeError(
            f"environment worker {number} of {len(self.shares)} (process {process.pid}, copies "
            f"{share.start} to {share.stop - 1} of {self.name}) ended with exit code {code}{named}."
            " What it said, if anything, is above; a worker that was killed without a word was "
            "usually one too many for the memory. Continue the run, from its last checkpoint, with "
            f"fewer than environment_settings.workers={len(self.shares)}, or with 0 for none: the "
            "results are the same"
        )


def _end(processes: list[BaseProcess], connections: list[Connection]) -> None:
    """End the workers, which do so by themselves once their pipes are closed."""
    for connection in connections:
        connection.close()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():  # in a step without end
            process.kill()
            process.join()


# -- states ----------------------------------------------------------------------------------------


def joined(states: Sequence[dict[str, Any]], copies: Sequence[int]) -> dict[str, Any]:
    """The state of all copies from those of shares of so many `copies`.

    Arrays and lists with an entry for each copy are put together, `copies` is added up,
    `first_copy` is the first's, and all else must be the same in every share.

    Raises:
        BadInput: it is not, so that the state cannot be put together.
    """
    whole: dict[str, Any] = {}
    for key, first in states[0].items():
        parts = [state[key] for state in states]
        if key == "copies":
            whole[key] = sum(parts)
        elif key == "first_copy":
            whole[key] = first
        elif all(_by_copy(part, count) for part, count in zip(parts, copies, strict=True)):
            is_array = isinstance(first, np.ndarray)
            whole[key] = np.concatenate(parts) if is_array else [one for p in parts for one in p]
        elif all(pickle.dumps(part) == pickle.dumps(first) for part in parts):
            whole[key] = first
        else:
            raise BadInput(
                f"{key} of the state differs between workers and is no array or list with an "
                "entry for each copy; make it one, or use environment_settings.workers=0"
            )
    return whole


def part_of(state: dict[str, Any], share: slice, copies: int) -> dict[str, Any]:
    """The state of the copies in `share` from that of all `copies`: the reverse of `joined`."""
    part = {key: value[share] if _by_copy(value, copies) else value for key, value in state.items()}
    if "copies" in state:
        part["copies"] = share.stop - share.start
    if "first_copy" in state:
        part["first_copy"] = state["first_copy"] + share.start
    return part


def _by_copy(value: Any, copies: int) -> bool:
    """Whether `value` has an entry for each of so many copies."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0 and len(value) == copies
    return isinstance(value, list) and len(value) == copies


# -- in the workers --------------------------------------------------------------------------------


class _Memory:
    """Arrays with a row for each copy, the same memory in every process."""

    def __init__(
        self,
        context: multiprocessing.context.SpawnContext,
        copies: int,
        observation_shape: tuple[int, ...],
        observation_dtype: np.dtype,
    ) -> None:
        self.kinds: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            "observations": ((copies, *observation_shape), observation_dtype),
            "actions": ((copies,), np.dtype(np.int64)),
            "running": ((copies,), np.dtype(bool)),
            "rewards": ((copies,), np.dtype(np.float32)),
            "terminated": ((copies,), np.dtype(bool)),
            "truncated": ((copies,), np.dtype(bool)),
        }
        self.blocks = {
            name: context.RawArray("B", math.prod(shape) * dtype.itemsize)
            for name, (shape, dtype) in self.kinds.items()
        }

    def rows(self, share: slice) -> dict[str, np.ndarray]:
        """The rows of the copies in `share`."""
        return {
            name: np.frombuffer(self.blocks[name], dtype).reshape(shape)[share]
            for name, (shape, dtype) in self.kinds.items()
        }


class _Worker:
    """The copies of a worker, and their rows of the memory."""

    def __init__(self, environments: Environments, rows: dict[str, np.ndarray]) -> None:
        self.environments, self.rows = environments, rows

    def reset(self, seed: int) -> None:
        self._show(self.environments.reset(seed))

    def step(self, some: bool) -> tuple[dict[int, np.ndarray], list[Episode]]:
        """Act in all copies, or in `some`, those that run."""
        rows = self.rows
        step = self.environments.step(
            rows["actions"].copy(), rows["running"].copy() if some else None
        )
        self._show(step.observations)
        rows["rewards"][:] = step.rewards
        rows["terminated"][:], rows["truncated"][:] = step.terminated, step.truncated
        return step.final_observations, step.episodes

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._show(self.environments.load_state_dict(state))

    def of_environments(self, method: str, *arguments: Any) -> Any:
        return getattr(self.environments, method)(*arguments)

    def _show(self, observations: np.ndarray) -> None:
        rows = self.rows["observations"]
        if (observations.shape, observations.dtype) != (rows.shape, rows.dtype):
            raise BadInput(
                f"observations: {observations.dtype} {list(observations.shape)}; "
                f"{self.environments.name} says that they are {rows.dtype} {list(rows.shape)}: "
                "correct its observation_shape or observation_dtype"
            )
        rows[:] = observations


def _work(
    connection: Connection,
    name: str,
    settings: EnvironmentSettings,
    first_copy: int,
    share: slice,
    memory: _Memory,
) -> None:
    """Make the copies in `share`, then answer calls until the pipe is closed."""
    threadpool_limits(1)  # the other cores have workers of their own
    environments = None
    try:
        try:
            environments = make(name, share.stop - share.start, settings, first_copy + share.start)
            worker, answer = _Worker(environments, memory.rows(share)), _answer(True, None)
        except Exception as error:
            return connection.send_bytes(_failure(error))
        while True:
            connection.send_bytes(answer)
            method, arguments = connection.recv()
            try:
                answer = _answer(True, getattr(worker, method)(*arguments))
            except Exception as error:
                answer = _failure(error)
    except (EOFError, OSError):  # closed, or the other process has ended
        pass
    finally:
        if environments is not None:
            environments.close()


def _answer(well: bool, value: Any) -> bytes:
    return pickle.dumps((well, value), protocol=pickle.HIGHEST_PROTOCOL)


def _failure(error: Exception) -> bytes:
    """The answer that raises `error` where it is read, or what it says if it cannot travel."""
    name = multiprocessing.current_process().name
    error.add_note(f"in {name}:\n{traceback.format_exc()}")
    try:
        answer = _answer(False, error)
        if repr(pickle.loads(answer)[1]) == repr(error):
            return answer
    except Exception:
        pass
    return _answer(False, RuntimeError(f"{type(error).__name__} in {name}: {error}"))
