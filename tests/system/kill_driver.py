"""Run real experiments and kill them with SIGKILL at any event, cheaply.

A server process imports everything once and forks a child for each run. In the child, functions
of the program and of the libraries are wrapped so that each call counts as an event, before and
after it, and in the middle where it writes (half of the bytes are then on disk). The child kills
itself at the event asked for. Nothing of this is in the program itself.

    python tests/system/kill_driver.py FOLDER [--step N]

kills GPT-NeoX and Llama runs at every N-th event there is, continues each, and prints how many
runs ended differently from the uninterrupted one.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import functools
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KILLED = -signal.SIGKILL
# Which commit ran, where time shows, and whether the run was interrupted; all else is the same.
TIMES = {"code_revision", "seconds", "collect_seconds", "update_seconds", "resumed", "throughput"}
TIMES |= {"seal"}  # which is over the others
TIMES |= {"steps_per_second"} | {
    f"{work}_seconds" for work in ("acting", "environment", "forward", "backward", "optimizer")
}


# -- in the child: events ------------------------------------------------------------------------

CALLS = [
    "reprise.rollout.store:RoundWriter.write",
    "reprise.rollout.store:RoundWriter.finish",
    "reprise.rollout.store:RoundStore.read",
    "reprise.rollout.run.run_dir:RunDir.cut_metrics",
    "reprise.rollout.run.run_dir:RunDir.log",
    "reprise.rollout.run.run_dir:RunDir.finish",
    "reprise.rollout.files:link",
    "reprise.alignment.collector:complete",
    "reprise.alignment.collector:Collector.collect",
    "reprise.alignment.collector:Collector.score",
    "reprise.alignment.rewards.reward:RewardModel.score",
    "reprise.alignment.evaluate:evaluate",
    "reprise.alignment.on_policy:select_pairs",
    "reprise.alignment.on_policy:make_targets",
    "reprise.alignment.policies:remove_update_checkpoints",
    "reprise.alignment.policies:weights_sha256",
    "reprise.alignment.training.trainer:mark_complete",
    "reprise.alignment.training.update:RoundTrainer.training_step",
    "reprise.alignment.training.update:RoundTrainer._save_checkpoint",
    "transformers:Trainer._save_checkpoint",
    "transformers:Trainer.save_model",
    "transformers:Trainer._save_optimizer_and_scheduler",
    "transformers:Trainer._save_rng_state",
    "transformers:TrainerState.save_to_json",
    "transformers:PreTrainedModel.save_pretrained",
    "transformers:PreTrainedTokenizerBase.save_pretrained",
    "torch.optim:AdamW.step",
    "reprise.rl.pqn:Learner.act",
    "reprise.rl.pqn:Learner.update",
    "reprise.rl.pqn_result:save_policy",
    "reprise.rl.pqn_result:play_games",
]
# Those that change files: name -> which argument is the path.
WRITES = {
    "os:replace": 1,
    "os:symlink": 1,
    "os:mkdir": 0,
    "os:unlink": 0,
    "shutil:rmtree": 0,
    "pathlib:Path.write_bytes": 0,
    "pathlib:Path.unlink": 0,
    "safetensors.torch:save_file": 1,
    "transformers.modeling_utils:safe_save_file": 1,
    "torch:save": 1,
}


class Events:
    """Counts calls of the wrapped functions, and signals the process at one of them."""

    def __init__(self, out: Path, kill: str | None, number: int) -> None:
        self.out, self.kill, self.number = str(out), kill, number
        self.counts: Counter[str] = Counter()
        self.seen: list[str] = []

    def at(self, event: str) -> bool:
        self.seen.append(event)
        return event == self.kill

    def signal(self) -> None:
        """Send the signal, and after SIGKILL do nothing more."""
        os.kill(os.getpid(), self.number)
        if self.number == signal.SIGKILL:
            time.sleep(60)

    def wrap(self, target: str, path: int | None = None) -> None:
        """Replace `module:function` or `module:Class.method`; only calls on files under `out`."""
        module, _, dotted = target.partition(":")
        *owners, name = dotted.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            place = ""
            if path is not None:
                value = args[path] if path < len(args) else kwargs.get("filename", "")
                place = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
                if not place.startswith(self.out):
                    return original(*args, **kwargs)
            self.counts[dotted] += 1
            event = f"{dotted}#{self.counts[dotted]}"
            if self.at(f"{event}:before"):
                self.signal()
            if dotted in HALVES and self.at(f"{event}:half"):
                HALVES[dotted](original, place, args, kwargs)
                self.signal()
            result = original(*args, **kwargs)
            if self.at(f"{event}:after"):
                self.signal()
            return result

        setattr(owner, name, wrapped)


def _half_file(original: Callable, place: str, args: tuple, kwargs: dict) -> None:
    original(*args, **kwargs)
    os.truncate(place, os.path.getsize(place) // 2)


def _half_tree(original: Callable, place: str, args: tuple, kwargs: dict) -> None:
    inside = sorted(path for path in Path(place).rglob("*") if path.is_file())
    for file in inside[: (len(inside) + 1) // 2]:
        os.remove(file)


def _half_line(original: Callable, place: str, args: tuple, kwargs: dict) -> None:
    file = args[0].path / "metrics.jsonl"
    size = file.stat().st_size if file.exists() else 0
    original(*args, **kwargs)
    os.truncate(file, (size + file.stat().st_size) // 2)


HALVES = {
    "Path.write_bytes": _half_file,
    "save_file": _half_file,
    "safe_save_file": _half_file,
    "save": _half_file,
    "rmtree": _half_tree,
    "RunDir.log": _half_line,
}


# -- the server ----------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests, one JSON line each on standard input; a child for each."""
    sys.path.insert(0, str(ROOT))
    # Libraries that greet on standard output must not garble the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in ("alignment.on_policy", "launch.run"):
        importlib.import_module(f"reprise.{name}")
    for name in ("datasets", "tensorboard", "transformers"):
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "preload" in request:
            _preload(request.pop("preload"))
        answer = {} if not request else _fork(request)
        print(json.dumps(answer), file=answers, flush=True)


def _preload(modules: list[str]) -> None:
    """Import what the first child had to, so that the later ones find it there."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    # transformers compiles some thousand patterns when it loads its first model, and each
    # collection of garbage walks everything imported: a second in each child.
    with contextlib.suppress(Exception):
        mapping = importlib.import_module("transformers.conversion_mapping")
        mapping.get_checkpoint_conversion_mapping("llama")
    gc.collect()
    gc.freeze()


def _fork(request: dict[str, Any]) -> dict[str, Any]:
    """Run one child, or several that work together; when one is killed, the others are too."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    children = []
    for rank in range(request["world"]):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                _child(request, rank, port)
            except BaseException:
                traceback.print_exc()
            os._exit(99)
    if request["delay"] is not None:
        time.sleep(request["delay"])
        for child in children:
            os.kill(child, signal.SIGKILL)
    status = 0
    while children:
        child, ended = os.wait()
        children.remove(child)
        if ended and not status:
            status = os.waitstatus_to_exitcode(ended)
            if request["signal"] == signal.SIGKILL:
                # One that ended of itself leaves the others time to say why, as a launcher does.
                end(children, 0 if status == KILLED else 10)
    return {"status": status}


LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # whether it ended, leaving it to os.wait


def end(children: list[int], seconds: float) -> None:
    """Kill those of `children` that have not ended by themselves after `seconds`."""
    last = time.monotonic() + seconds
    waiting = list(children)
    while waiting and time.monotonic() < last:
        waiting = [child for child in waiting if os.waitid(os.P_PID, child, LOOK) is None]
        time.sleep(0.02)
    for child in waiting:
        os.kill(child, signal.SIGKILL)


NEXT_PHASE = 77  # exit status of a child that ended a phase of a staged run


def _child(request: dict[str, Any], rank: int, port: int) -> None:
    from reprise.launch.cli.ending import exit_status
    from reprise.launch.run import execute

    out, report = Path(request["out"]), Path(request["report"])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if request["world"] > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["world"]}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update({**meeting, "ACCELERATE_USE_CPU": "true"})
    elif request["shim"]:  # one process that is launched as one of several would be
        os.environ.update({**meeting, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    os.environ.update(request["environment"])
    if request["shim"]:
        importlib.import_module("tests.system.sharding_on_cpu").patch()
    with open(report.with_suffix(f".{rank}.log"), "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    kill = request["kill"] if rank == request["world"] - 1 else None
    events = Events(out, kill, request["signal"])
    for target in CALLS:
        events.wrap(target)
    for target, path in WRITES.items():
        events.wrap(target, path)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"] or hard, hard))
    staged, ended = request["staged"], []
    status = exit_status(lambda: execute(request["config"], (), out, False, staged, ended.append))
    if ended:
        status = NEXT_PHASE
        report.with_suffix(".phase").write_text(json.dumps(vars(ended[0])))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    told = json.dumps({"events": events.seen, "modules": list(sys.modules)})
    report.with_suffix(f".{rank}.json").write_text(told)
    os._exit(status)


# -- the client ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """How the children ended, and what they said.

    Attributes:
        status: 0, or the first other one.
        events: each process's events; nothing of one that was killed.
        said: their standard output and error.
    """

    status: int
    events: list[list[str]]
    said: str


class Driver:
    """Starts the server; runs configs in its children.

    Args:
        folder: for reports and caches.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(folder / "hf"),
            "REPRISE_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.server = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self.warm = False

    def run(
        self,
        config: Path,
        out: Path,
        kill: str | None = None,
        delay: float | None = None,
        world: int = 1,
        largest_file: int | None = None,
        staged: bool = False,
        environment: dict[str, str] | None = None,
        shim: bool = False,
        number: int = signal.SIGKILL,
    ) -> Result:
        """Run `config` in `out`, or continue it.

        It is killed at event `kill` (of the last process, if there are several) or after `delay`
        seconds. Writing beyond `largest_file` bytes fails, as on a full disk. When `staged`, it
        ends with `NEXT_PHASE` after a phase. `shim` lets it shard parameters on CPU. Another
        signal than SIGKILL, `number`, may be survived.
        """
        report = self.folder / "report"
        for old in self.folder.glob("report.*"):
            old.unlink()
        request = {"config": str(config), "out": str(out), "report": str(report)}
        how = {"kill": kill, "delay": delay, "world": world, "largest_file": largest_file}
        how |= {"staged": staged, "environment": environment or {}, "shim": shim}
        how["signal"] = int(number)
        answer = self._ask({**request, **how})
        said = "".join(log.read_text() for log in sorted(self.folder.glob("report.*.log")))
        told = [json.loads(file.read_text()) for file in sorted(self.folder.glob("report.*.json"))]
        if told and not self.warm:
            self._ask({"preload": told[0]["modules"]})
            self.warm = True
        return Result(answer["status"], [one["events"] for one in told], said)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()


@contextlib.contextmanager
def driver(folder: Path) -> Iterator[Driver]:
    started = Driver(folder)
    try:
        yield started
    finally:
        started.close()


# -- what must be the same -----------------------------------------------------------------------


def timeless(value: Any) -> Any:
    """Without the fields that tell time."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def finished_work(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of writing of each shard and each saved policy; a rewrite changes them."""
    found = [*out.glob("*/round-*/shard-*.parquet"), *out.glob("checkpoints/round-*/model.*")]
    return {
        str(file.relative_to(out)): (file.stat().st_ino, file.stat().st_mtime_ns) for file in found
    }


def tree(out: Path) -> set[str]:
    """Every file of a run, but for TensorBoard's.

    Nor does it count the description of a shard that the manifest has made superfluous: a run
    killed between writing the one and deleting the other keeps it.
    """
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    return {
        name
        for name in files
        if not name.startswith("tensorboard") and not fnmatch(name, "*/shard-*.json")
    }


def unlike(out: Path, reference: Path) -> list[str]:
    """In what the finished run in `out` differs from the one in `reference`, timing apart."""
    problems = []
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (out, reference))
    for key in timeless(ours).keys() | timeless(theirs).keys():
        if timeless(ours).get(key) != timeless(theirs).get(key):
            problems.append(f"summary.json: {key}")
    lines = []
    for run in (out, reference):
        text = (run / "metrics.jsonl").read_text()
        lines.append([timeless(json.loads(line)) for line in text.splitlines()])
    if lines[0] != lines[1]:
        problems.append(f"metrics.jsonl: {len(lines[0])} lines against {len(lines[1])}")
    odd = tree(out) ^ tree(reference)
    problems += [f"{name}: only in one of them" for name in sorted(odd)]
    for name in sorted(tree(out) & tree(reference)):
        if name.endswith((".parquet", ".safetensors")) and not filecmp.cmp(
            out / name, reference / name, shallow=False
        ):
            problems.append(f"{name}: other bytes")
    return problems


def kill_and_continue(
    driver: Driver,
    config: Path,
    out: Path,
    reference: Path,
    kills: Sequence[str | float],
    world: int = 1,
    **how: Any,
) -> list[str]:
    """Kill a run at each of `kills` (an event, or seconds) in turn, then let it end.

    Returns:
        What is wrong with the result; nothing if the kills left no trace.
    """
    shutil.rmtree(out, ignore_errors=True)
    done: dict[str, tuple[int, int]] = {}
    for kill in kills:
        if isinstance(kill, str):
            result = driver.run(config, out, kill=kill, world=world, **how)
        else:
            result = driver.run(config, out, delay=kill, world=world, **how)
        if result.status not in (KILLED, 0) or (isinstance(kill, str) and result.status == 0):
            return [f"not killed but ended with {result.status}: {result.said[-2000:]}"]
        now = finished_work(out)
        problems = [f"{name} was made twice" for name in done if done[name] != now.get(name)]
        if problems:
            return problems
        done = now
    result = driver.run(config, out, world=world, **how)
    if result.status != 0:
        return [f"does not continue, status {result.status}: {result.said[-2000:]}"]
    now = finished_work(out)
    problems = [f"{name} was made twice" for name in done if done[name] != now.get(name)]
    return problems + unlike(out, reference)


# -- as a script: every event ----------------------------------------------------------------------


def main() -> None:
    """Kill at every event and count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--step", type=int, default=1, help="every N-th event")
    parser.add_argument("--first", type=int, default=0, help="from this one on")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    sys.path.insert(0, str(ROOT))
    from tests.conftest import make_lab

    arguments.folder.mkdir(parents=True, exist_ok=True)
    kills = failures = 0
    with driver(arguments.folder) as running:
        for architecture in ("gpt_neox", "llama"):
            folder = arguments.folder / architecture
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            config, reference = folder / "config.json", folder / "reference"
            lab = make_lab(folder, architecture)
            config.write_text(json.dumps(lab.config(**SMALL)))
            first = running.run(config, reference)
            assert first.status == 0, first.said
            print(f"{architecture}: {len(first.events[0])} events", flush=True)
            for event in first.events[0][arguments.first :: arguments.step]:
                problems = kill_and_continue(running, config, folder / "run", reference, [event])
                kills, failures = kills + 1, failures + bool(problems)
                for problem in problems:
                    print(f"{architecture} killed at {event}: {problem}", flush=True)
    print(f"{kills} kills, {failures} of them left a trace")
    raise SystemExit(failures > 0)


# Two rounds of three optimizer steps, each step with a checkpoint of its own.
SMALL = {
    "rounds": 2,
    "prompts_per_round": 12,
    "shard_size": 6,
    "train__save_strategy": "steps",
    "train__save_steps": 1,
}


if __name__ == "__main__":
    main()
