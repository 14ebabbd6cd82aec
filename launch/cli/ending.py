"""How a command ends: the exit status, and whether a person sees a sentence or a traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable

from reprise.launch.config import ConfigError
from reprise.rollout.errors import BadInput
from reprise.rollout.run import interruption
from reprise.rollout.run.remote import OutageError, hide_secrets_in_logs, redact

DONE, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def exit_status(work: Callable[[], object]) -> int:
    """Do `work`; 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated.

    Bad input becomes one message; anything else that goes wrong keeps its traceback. SIGTERM,
    which is how a scheduler preempts, ends the work where it can be resumed
    (`rollout.interruption`): at once, or within an update after a checkpoint.
    """
    hide_secrets_in_logs()
    interruption.forget()
    before = signal.signal(signal.SIGTERM, interruption.ask)
    try:
        work()
    except (KeyboardInterrupt, interruption.Preempted) as stop:
        if os.environ.get("RANK", "0") == "0":
            _say("interrupted; `reprise resume DIR` continues the run")
        return TERMINATED if isinstance(stop, interruption.Preempted) else INTERRUPTED
    except BadInput as error:
        if not (isinstance(error, ConfigError) and os.environ.get("RANK", "0") != "0"):
            _say(f"error: {error}")  # every process has the same ConfigError; one says it
        return BAD_INPUT
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _say(traceback.format_exc().rstrip())
        else:
            _say(f"error: {error.strerror or error}")
        return FAILED
    except OutageError as error:  # nothing of ours is wrong, and what was done is kept
        _say(f"error: {error}")
        return FAILED
    except FloatingPointError as error:  # training diverged: ours to say, there is no bug to trace
        _say(f"error: {error}")
        return FAILED
    except Exception:
        _say(traceback.format_exc().rstrip())
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, before)
        interruption.forget()  # what this work was asked is not asked of the next in this process
    return DONE


def _say(text: str) -> None:
    print(redact(text), file=sys.stderr, flush=True)
