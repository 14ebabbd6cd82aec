"""Talking to other machines: no text that leaves here holds a secret, and an outage is no bug.

Tokens come from the environment or from a login (`hf auth login`), never from a config. What is
said, logged, stored or raised about a request goes through `redact` first, because servers and
HTTP libraries quote headers, addresses and signed links in their errors.

The trap: a secret without a known shape is only found by its value, so one that is neither in an
environment variable with a telling name, nor the stored Hub login, nor of a known shape, is not.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from pathlib import Path
from typing import Any


class OutageError(Exception):
    """A server did not answer as it should; what was done before it is kept."""


HIDDEN = "***"

# The last word of a key: `hub_token` is one, `max_new_tokens` and `api_key_variable` are not.
_NAME = re.compile(
    r"(?:^|[._-])(?:token|secret|password|passwd|api[-_]?key|access[-_]?key|private[-_]?key"
    r"|authorization|credentials?)$",
    re.IGNORECASE,
)
_OF_A_TOKENIZER = re.compile(r"(?:^|[._-])(?:pad|eos|bos|unk|mask|sep|cls|stop)_token$")
_VARIABLE = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIALS?)$")
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic and those who follow them
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}"
    r"|\bglpat-[A-Za-z0-9_-]{16,}"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bAKIA[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    r"|(?<=://)[^\s/:@'\"]+:[^\s/@'\"]+(?=@)"  # user:password in an address
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=[Bb]asic )[A-Za-z0-9+/=]{16,}"
)
_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:token|key|secret|password|signature|credential)|sig)=)[^&\s'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with every secret that is known or looks like one as ``***``."""
    for value in _known_values():
        text = text.replace(value, HIDDEN)
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _SHAPES.sub(HIDDEN, text))


def is_secret_name(key: str) -> bool:
    """Whether what a setting of this name holds is a secret."""
    return bool(_NAME.search(key)) and not _OF_A_TOKENIZER.search(key)


def secrets_in(config: Any, key: str = "") -> list[str]:
    """The dotted keys of `config` whose value looks like a secret; values are not repeated."""
    if isinstance(config, dict):
        inner = config.items()
    elif isinstance(config, list | tuple):
        inner = enumerate(config)  # type: ignore[assignment]
    else:
        if not isinstance(config, str) or not config:
            return []
        by_name = is_secret_name(key.rpartition(".")[2])
        return [key] if by_name or redact(config) != config else []
    dotted = f"{key}." if key else ""
    found = []
    for name, value in inner:
        # A secret may even stand where a key should be.
        found += secrets_in(value, f"{dotted}{redact(str(name))}")
        found += [f"{dotted}{redact(str(name))}"] if redact(str(name)) != str(name) else []
    return found


def hide_secrets_in_logs() -> None:
    """Redact every record that any logger of this process makes from now on.

    `huggingface_hub` logs signed upload addresses when it retries, for one.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info and record.exc_info[0] is not None:
            # A formatter that finds this text does not format the exception itself.
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacted)


def _known_values() -> list[str]:
    """Secrets of this process's environment, and the stored Hub login; the longest first."""
    values = {value for name, value in os.environ.items() if _VARIABLE.search(name.upper())}
    home = os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")
    login = Path(os.environ.get("HF_TOKEN_PATH", Path(home) / "token"))
    if login.is_file():
        values.add(login.read_text(encoding="utf-8").strip())
    # A short one, such as HF_TOKEN=x in a test, would blank half of every text.
    return sorted((value for value in values if len(value) >= 8), key=len, reverse=True)
