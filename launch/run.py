"""Start, continue or leave alone one run: the only place that decides what a directory may become.

reprise run CONFIG [key=value ...] [--out DIR] [--staged]
accelerate launch --config_file launch/accelerate/cpu.yaml -m reprise.launch.run CONFIG ...

With ``--staged`` each process does one phase (collect, update) and then becomes the process of the
next. How a run is staged is no setting of it: the bits are the same, and so is the config's hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprise.alignment.calibration import calibration_warnings
from reprise.launch import processes
from reprise.launch.config import (
    EXPERIMENTS,
    ConfigError,
    ExperimentSettings,
    config_sha256,
    configs_folder,
    differences,
    find,
    load,
    read,
    to_yaml,
)
from reprise.launch.provenance import provenance, starts, unlike
from reprise.rollout.errors import BadInput
from reprise.rollout.files import is_leftover, remove_leftovers, write_json, write_text
from reprise.rollout.run.remote import redact
from reprise.rollout.run.run_dir import HandedOver, RunDir, Stage


def execute(
    config: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    out: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    staged: bool = False,
    next_phase: Callable[[HandedOver], object] = processes.become_the_next_phase,
) -> Path:
    """Run a config to its end, or as far as it still has to go.

    Args:
        config: path or shipped name.
        overrides: ``key.path=value``.
        out: the run's directory; by default ``runs/<the config's folder>/<its name>``.
        dry_run: only check, and print the resolved config on standard output.
        staged: do one phase of it in this process, then `next_phase`.
        next_phase: begins the next phase, given what this one hands over.

    Returns:
        The run's directory.

    Raises:
        ConfigError: bad input; nothing was written.
    """
    settings = load(config, overrides)
    _check_stages(settings, staged)
    path = Path(out) if out is not None else default_out(find(config))
    for warning in _warnings(settings):
        _say(f"warning: {warning}")
    if dry_run:
        sys.stdout.write(to_yaml(settings))
        _say(f"{config} is valid; {path} {_STATES[state_of(path, settings)]}")
        return path
    if state_of(path, settings) != "finished":
        _make_needs(settings)
    _run(settings, path, staged, next_phase)
    return path


def resume(path: str | os.PathLike[str], staged: bool = False) -> Path:
    """Continue the run in `path` from its own ``config.yaml``, staged or not.

    Raises:
        ConfigError: `path` holds no run.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} holds no run: there is no {path / 'config.yaml'}")
    settings = load(path / "config.yaml")
    _check_stages(settings, staged)
    _run(settings, path, staged)
    return path


def _check_stages(settings: ExperimentSettings, staged: bool) -> None:
    if staged and not EXPERIMENTS[settings.experiment].staged:
        able = [name for name, experiment in EXPERIMENTS.items() if experiment.staged]
        raise ConfigError(
            f"--staged: {settings.experiment} has no phases of collecting and updating to run in "
            f"processes of their own ({' and '.join(able)} do); leave it out"
        )


def _warnings(settings: ExperimentSettings) -> list[str]:
    """What is allowed and seldom meant: RDRC's rounds that do not contract."""
    aligned: Any = settings
    if not EXPERIMENTS[settings.experiment].staged or aligned.objective.name != "rdrc":
        return []
    gammas = [aligned.gamma(k) for k in range(aligned.rounds)]
    return calibration_warnings(gammas, aligned.objective.gamma_c)


def _make_needs(settings: ExperimentSettings) -> None:
    """Finish the runs that this one builds on, in their default directories.

    Raises:
        ConfigError: one is unfinished and several processes were started: which of them should
            make it, and with how many, is not ours to guess.
    """
    for name in settings.needs:
        needed, path = load(name), default_out(find(name))
        if state_of(path, needed) == "finished":
            continue
        if processes.asked_for()[1] > 1:
            raise ConfigError(f"needs: {name} is not finished; first `reprise run {name}`")
        _make_needs(needed)
        _run(needed, path)


def default_out(config: Path) -> Path:
    """``runs/quickstart/sft`` for ``configs/quickstart/sft.yaml``, wherever it was found."""
    file = config.resolve()
    folder = configs_folder().resolve()
    name = file.relative_to(folder) if file.is_relative_to(folder) else Path(*file.parts[-2:])
    return Path("runs") / name.with_suffix("")


# -- the directory -------------------------------------------------------------------------------

_OURS = {".lock", "config.yaml", "provenance.json"}
_STATES = {
    "new": "is free",
    "unfinished": "holds an unfinished run of this config, which would continue",
    "finished": "holds the finished run of this config, which would be left alone",
}


def state_of(path: Path, settings: ExperimentSettings) -> str:
    """'new', 'unfinished' or 'finished'.

    Raises:
        ConfigError: `path` holds something else, or the run of another config.
    """
    if not path.exists() or (path.is_dir() and all(map(_begun, os.listdir(path)))):
        return "new"
    if not (path / "config.yaml").is_file():
        what = "a folder with other files" if path.is_dir() else "not a folder"
        raise ConfigError(f"{path} is {what}, not a run; choose another directory with --out")
    unlike = differences(settings.model_dump(mode="json"), stored_config(path))
    if unlike:
        listed = "\n".join(f"  - {line}" for line in unlike)
        raise ConfigError(
            f"{path} belongs to another config; it was left as it is. Choose another directory "
            f"with --out. They differ in ('there' is {path}):\n{listed}"
        )
    return "finished" if (path / "summary.json").is_file() else "unfinished"


def stored_config(run: Path) -> dict[str, Any]:
    """The resolved config of a run; a key that is newer than the run has its default.

    A new key's default is what was done before there was the key, so that a run of an earlier
    version is still the run of the same config.
    """
    try:
        return load(run / "config.yaml").model_dump(mode="json")
    except ConfigError:  # keys that are no longer known: shown as differences
        return read(run / "config.yaml")


def _begun(name: str) -> bool:
    """Whether a run that was killed before it had its config.yaml may have left this file."""
    return name in (".lock", "provenance.json") or is_leftover(name)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes; the system lets go when this process ends, however."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / ".lock", "a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"another process ({file.read().strip() or 'unknown'}) is running in {path}; "
                "wait for it, or choose another directory with --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


@dataclass(frozen=True)
class Decision:
    """What the main process found in a directory and decided, for all processes.

    Attributes:
        state: 'new', 'unfinished' or 'finished'.
        threads: each process computes with.
        revision: of the code.
        refused: why the run cannot be, else None.
    """

    state: str
    threads: int = 1
    revision: str = ""
    refused: str | None = None


def _prepare(
    path: Path, settings: ExperimentSettings, threads: int, world: int, is_first_phase: bool
) -> Decision:
    """Write who we are, or check that we are who started; returns what every process needs.

    Raises:
        ConfigError: the run was started with another number of processes.
    """
    state = state_of(path, settings)
    if state == "finished":
        return Decision(state)
    remove_leftovers(path)  # nobody else writes here: we hold the lock
    before = starts(path) if state == "unfinished" else []
    if before:
        _check_world(path, before[0]["world_size"], world)
        if before[0]["threads"] != threads:
            _say(
                f"threads: {before[0]['threads']}, as at the start, not {threads}: another number "
                "adds in another order"
            )
        threads = before[0]["threads"]
    processes.pin_threads(threads)  # before torch and BLAS are loaded and asked
    record, file = provenance(threads, world), path / "provenance.json"
    if before:
        for key in ("code_revision", "packages"):
            if before[0][key] != record[key]:
                _say(f"warning: {key} is not what {path} was started with; bits may differ")
        if warning := unlike(before[-1], record["instruction_set"]):
            _say(f"warning: {path}: instruction set: {warning}")
        if is_first_phase:
            write_json(file, {**before[0], "resumed": [*before[1:], record]})
    else:
        # config.yaml last: it makes the directory a run, so a kill in between leaves none.
        write_json(file, record)
        write_text(path / "config.yaml", to_yaml(settings))
    return Decision(state, threads, record["code_revision"])


def _check_world(path: Path, first: int, world: int) -> None:
    if first != world:
        raise ConfigError(
            f"{path} was started with {first} processes and cannot continue with "
            f"{world}: each process holds its share of the batches and random streams. "
            f"Continue with {first}, or start anew with --out"
        )


# -- the run -------------------------------------------------------------------------------------


def _run(
    settings: ExperimentSettings,
    path: Path,
    staged: bool = False,
    next_phase: Callable[[HandedOver], object] = processes.become_the_next_phase,
) -> None:
    rank, world = processes.asked_for()
    processes.check_launch(getattr(settings, "parallelism", None), world)
    threads = processes.threads()
    if world > 1:
        processes.join(world)
    stage = Stage(processes.handed_over()) if staged else None
    is_first_phase = stage is None or stage.before is None
    with contextlib.ExitStack() as held:
        plan = Decision("unfinished")
        if rank == 0:
            try:
                state_of(path, settings)  # before the lock, which already writes
                held.enter_context(_locked(path))
                plan = _prepare(path, settings, threads, world, is_first_phase)
            except ConfigError as error:
                plan = Decision("new", refused=str(error))
        if world > 1:  # one decision for all: rank 0 touches the directory, the others wait for it
            plan = processes.share(plan)
        if plan.refused is not None:
            raise ConfigError(plan.refused)
        more = False
        if plan.state != "finished":
            run_dir = _open(settings, path, plan, (rank, world), stage)
            if is_first_phase:
                verb = "continuing" if plan.state == "unfinished" else "starting"
                run_dir.say(f"{verb} {settings.experiment} in {path}")
            more = _work(settings, run_dir)
        elif rank == 0:
            _say(f"{path} is finished and was left alone; its result is in summary.json")
    if more and stage is not None:  # the lock is free again: the next phase takes it
        next_phase(stage.after)
    else:
        processes.leave()


def _open(
    settings: ExperimentSettings,
    path: Path,
    plan: Decision,
    ranks: tuple[int, int],
    stage: Stage | None,
) -> RunDir:
    processes.pin_threads(plan.threads)
    rank, world = ranks
    return RunDir(
        path,
        experiment=settings.experiment,
        seed=settings.seed,
        config_sha256=config_sha256(settings),
        code_revision=plan.revision,
        rank=rank,
        world=world,
        report=settings.report,
        settings=settings.model_dump(mode="json"),
        stage=stage,
    )


def _work(settings: ExperimentSettings, run_dir: RunDir) -> bool:
    """Do the run, or one phase of it; returns whether another phase is to follow."""
    path, report = run_dir.path, run_dir.report
    publisher = None
    if run_dir.is_main and report.push is not None:
        from reprise.launch.hub.publisher import Publisher

        publisher = Publisher(path, report, run_dir.say)
    try:
        summary = EXPERIMENTS[settings.experiment].run_function()(settings, run_dir)
    except BadInput:
        # A config that is refused before any work is done does not keep the directory, so that
        # the corrected one may have it.
        if run_dir.is_main and set(os.listdir(path)) <= _OURS:
            (path / "config.yaml").unlink()
            (path / "provenance.json").unlink()
        raise
    finally:
        if publisher is not None:
            publisher.stop()
    if summary is None:
        run_dir.close()
        return True
    run_dir.finish(**summary)
    run_dir.say(f"finished {settings.experiment}: {path / 'summary.json'}")
    if publisher is not None:
        publisher.finish()
    return False


def _say(text: str) -> None:
    print(redact(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    from reprise.launch.cli.main import main

    main(["run", *sys.argv[1:]])
