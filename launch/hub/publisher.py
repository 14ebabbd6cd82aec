"""Push the model of each round while the run goes.

`Publisher` watches the run's checkpoints, which appear whole, and pushes each from a thread of its
own: training neither waits for the Hub nor hears of its failures. What happened is in
``DIR/pushes.jsonl``; at the end the publisher tries once more, and `reprise push DIR` later.

The trap: in staged mode a phase may end before an upload does; the next phase sends the rest.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from reprise.launch.config import ConfigError, read
from reprise.launch.hub.push import note, notes, push
from reprise.rollout.files import numbered
from reprise.rollout.run.remote import OutageError, redact
from reprise.rollout.run.trackers import Report


class Publisher:
    """Pushes the model of each round as it is saved, from a thread beside the training.

    Args:
        run: the run's directory.
        report: the repository, and whether it is private.
        say: tells a human.
        interval: seconds between two looks at the checkpoints.
    """

    def __init__(
        self, run: Path, report: Report, say: Callable[[str], None], interval: float = 2.0
    ) -> None:
        assert report.push is not None
        self.run, self.repo_id, self.private = run, report.push, report.private
        self.say, self.interval = say, interval
        self._tried: set[int] = set()
        self._stop = threading.Event()
        # A daemon: an interrupted run does not wait for the Hub, and pushes again when resumed.
        self._thread = threading.Thread(target=self._watch, name="publisher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no further; a push under way may end."""
        self._stop.set()

    def finish(self) -> bool:
        """After the summary: push what is missing, and the final model. Whether all is there."""
        self._stop.set()
        self._thread.join()
        return catch_up(self.run, self.repo_id, self.private, self.say)

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            for k in missing_rounds(self.run, self.repo_id):
                if k not in self._tried and not self._stop.is_set():
                    self._tried.add(k)
                    _try(self.run, self.repo_id, self.private, k, self.say)


def missing_rounds(run: Path, repo_id: str) -> list[int]:
    """Rounds whose model is saved and, by ``pushes.jsonl``, not pushed."""
    pushed = {
        record["round"]
        for record in notes(run)
        if record["status"] == "pushed" and record["repo_id"] == repo_id
    }
    return [k for k in numbered(run / "checkpoints", "round") if k not in pushed]


def catch_up(run: Path, repo_id: str, private: bool, say: Callable[[str], None]) -> bool:
    """Push every round that is missing, then the final model; stop at the first failure."""
    for k in missing_rounds(run, repo_id):
        if not _try(run, repo_id, private, k, say):
            return False
    return _try(run, repo_id, private, None, say)


def _try(run: Path, repo_id: str, private: bool, k: int | None, say: Callable[[str], None]) -> bool:
    """One push whose failure is noted and told, and is nobody else's trouble."""
    name = "the model" if k is None else f"round {k}"
    try:
        address = push(run, repo_id, None, k, private)
    except Exception as error:  # whatever it is, the run goes on; it is not hidden either
        reason = redact(str(error) or repr(error))
        note(run, what="model", round=k, repo_id=repo_id, status="failed", error=reason)
        say(f"warning: {name} was not pushed to {repo_id}: {reason}")
        return False
    say(f"pushed {name}: {address}")
    return True


def push_what_is_missing(directory: Path) -> None:
    """Complete what ``report.push`` of a run asked for.

    Raises:
        ConfigError: it names no repository.
        OutageError: something could still not be pushed.
    """
    config = read(directory / "config.yaml") if (directory / "config.yaml").is_file() else {}
    report = Report.model_validate(config.get("report") or {})
    if report.push is None:
        raise ConfigError(f"{directory} names no repository (report.push); give REPO_ID")

    def say(text: str) -> None:
        print(redact(text), file=sys.stderr, flush=True)

    if not catch_up(directory, report.push, report.private, say):
        raise OutageError(f"{directory} is not complete on the Hub; the same command continues")
