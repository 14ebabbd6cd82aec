"""JSON over HTTP to a server that may be away for a while: timeouts, retries, backoff, one error.

Retried: a connection that fails or breaks off, an answer that is not JSON, and the statuses that
mean "later" (408, 429, 5xx). The pause doubles from `PAUSE` up to `LONGEST`, unless the server
names one (Retry-After). Every other status is what the caller got wrong, and says so at once.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from reprise.rollout.errors import BadInput
from reprise.rollout.run.remote import OutageError, redact

LATER = {408, 425, 429, 500, 502, 503, 504}
PAUSE, LONGEST = 0.25, 30.0  # seconds


class JsonServer:
    """A server that answers JSON with JSON.

    Args:
        url: its address, without a trailing slash.
        key: the config key that holds `url`, for messages.
        token_variable: environment variable with a bearer token.
        timeout: seconds that one request may take.
        retries: further attempts after the first.

    Raises:
        BadInput: `token_variable` is not set in the environment.
    """

    def __init__(
        self, url: str, key: str, token_variable: str | None, timeout: float, retries: int
    ) -> None:
        self.url, self.key, self.timeout, self.retries = url.rstrip("/"), key, timeout, retries
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token_variable is not None:
            token = os.environ.get(token_variable)
            if not token:
                raise BadInput(
                    f"{key}: token_variable={token_variable!r} is not set in the environment; "
                    "export it before the run"
                )
            self._headers["Authorization"] = f"Bearer {token}"

    def get(self, path: str = "") -> Any:
        """The answer to GET."""
        return self._ask(path, None)

    def post(self, path: str, body: Any) -> Any:
        """The answer to POST with `body` as JSON; None where it is empty."""
        return self._ask(path, body)

    def _ask(self, path: str, body: Any) -> Any:
        """Ask until there is an answer.

        Raises:
            BadInput: the server refuses the request, and would again.
            OutageError: no answer after all attempts.
        """
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)
        reason, pause = "", PAUSE
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    text = answer.read()
                    return json.loads(text) if text.strip() else None
            except urllib.error.HTTPError as error:
                with error:
                    said = redact(error.read(300).decode(errors="replace"))
                reason = f"status {error.code}: {said}"
                if error.code not in LATER:
                    raise BadInput(
                        f"{self.key}={self.url!r}: POST or GET {path or '/'} was refused with "
                        f"{reason}"
                    ) from None
                requested = error.headers.get("Retry-After", "")
                pause = min(float(requested), LONGEST) if requested.isdigit() else pause
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                reason = redact(f"{type(error).__name__}: {error}")
        raise OutageError(
            f"{self.key}={self.url!r}: no answer to {path or '/'} in {self.retries + 1} attempts; "
            f"the last: {reason}. What was done is kept: resume the run when the server is back"
        )
