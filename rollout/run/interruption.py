"""SIGTERM: a scheduler wants the machine back, and leaves a grace period to say where we were.

Most of the time a run can stop at once: what is stored is stored, and the rest is made again. Not
so inside an update, where hours may have passed since the last checkpoint. There the request is
put off until the optimizer step in progress is done and a checkpoint has been written:

    with deferred():
        for batch in batches:
            step(batch)
            if asked():
                save()
                raise Preempted

A request that was put off and not acted on is granted when the block ends. This state belongs to
the process, as signals do. Under several processes they have to agree on the step: see
`alignment.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Preempted(BaseException):
    """The run ends here, to be resumed. No Exception, lest a handler take it for a failure."""


_asked = False
_deferred = 0


def ask(*_: object) -> None:
    """Ask the run to end; a signal handler. A second signal changes nothing."""
    global _asked
    first, _asked = not _asked, True
    if first and not _deferred:
        raise Preempted


def asked() -> bool:
    """Whether the run has been asked to end."""
    return _asked


def forget() -> None:
    """Begin anew: nobody has asked."""
    global _asked, _deferred
    _asked, _deferred = False, 0


@contextmanager
def deferred() -> Iterator[None]:
    """Within, a request waits for whoever looks at `asked`; at the latest until the end."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1
    if _asked and not _deferred:
        raise Preempted
