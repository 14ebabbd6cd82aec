"""A language model as the judge: which of two answers is better, over an OpenAI-compatible API.

Each pair is asked about twice, with the answers in either order (a judge that likes whatever comes
first then ties with itself):

    p = (verdict(m first) + verdict(m second)) / 2, in {0, 1/2, 1} for verdicts win, tie, loss,
    p = the mean of P(letter of m) / (P(A) + P(B)) with ``answer: logprobs`` (AlpacaEval 2.0's way).

Two verdicts that contradict each other make p = 1/2; how many did, and how often the first answer
won, is reported. An answer without a verdict is not a tie: it is left out, counted, and refused
when there are too many.

Each answer is on disk before the next question is asked, keyed by the whole request, so an outage
or a spent budget costs nothing that was paid for: run the same command again. Before the first
request the cost is estimated and compared with the budget; while judging, a request is sent only
if the budget holds even its largest possible cost (a byte is at least a token).

The traps: `transformers serve` ignores ``logprobs`` without a word, so their absence is an error
here. And the same judge at temperature 0 may still answer differently tomorrow; the cache is what
makes a table reproducible.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reprise.alignment.judging.config import Judge
from reprise.alignment.judging.verdicts import (
    PER_MESSAGE,
    PLACES,
    Answers,
    key_of,
    read,
    template,
    tokens_of,
)
from reprise.rollout.errors import BadInput
from reprise.rollout.randomness import Streams
from reprise.rollout.run.remote import OutageError, hide_secrets_in_logs, redact

LONGEST_WAIT = 60.0


class Comparison(NamedTuple):
    """One question: an instruction, the model's answer, the baseline's."""

    prompt: str
    answer: str
    baseline: str


@dataclass(frozen=True)
class Verdicts:
    """What a judge said about N comparisons.

    Attributes:
        preferences: p, shape (N,); NaN where an answer had no verdict.
        first_won: share of verdicts other than ties in which the answer shown first won.
        contradictory: comparisons whose two verdicts contradict each other.
        unparsed: comparisons left out.
        cost: what was asked, answered and paid, cached answers apart.
    """

    preferences: np.ndarray
    first_won: float | None
    contradictory: int
    unparsed: int
    cost: dict[str, Any]


class Estimate(NamedTuple):
    """What judging would cost: requests still to send, tokens, USD (None without prices)."""

    requests: int
    cached: int
    input_tokens: int
    output_tokens: int
    usd: float | None


class LanguageModelJudge:
    """Asks, retries, remembers, and keeps to the budget.

    Args:
        settings: the judge.
        cache: file of answers already paid for, one JSON object a line.
        streams: decide the order of each comparison when `settings.swap` is off.

    Raises:
        BadInput: no key in the environment, or the prompt file lacks a place.
    """

    def __init__(self, settings: Judge, cache: Path, streams: Streams) -> None:
        self.settings = settings
        self.template = template(settings.prompt)
        self.streams = streams
        self.answers = Answers(cache)
        self.spent = 0.0
        self.tokens = [0, 0]
        self._reserved = 0.0
        self._lock = threading.Lock()

    def estimate(self, comparisons: Sequence[Comparison]) -> Estimate:
        """Price `comparisons` without asking anything."""
        requests = [request for pair in self._requests(comparisons) for request, _ in pair]
        unknown = {key_of(r, self.settings): r for r in requests if self._known(r) is None}
        requested = sum(tokens_of(request) for request in unknown.values())
        answered = len(unknown) * self.settings.max_tokens
        cached = len(requests) - len(unknown)
        return Estimate(len(unknown), cached, requested, answered, self._usd(requested, answered))

    def compare(
        self, comparisons: Sequence[Comparison], advance: Callable[[], None] = lambda: None
    ) -> Verdicts:
        """The verdicts on `comparisons`.

        Raises:
            BadInput: the estimate exceeds the budget, the server refuses the request or the key,
                or answers without what was asked for.
            OutageError: the server stayed out of reach, or the budget is spent; what was answered
                is in the cache.
        """
        estimate, budget = self.estimate(comparisons), self.settings.budget
        if budget is not None and estimate.usd is not None and estimate.usd > budget:
            raise BadInput(
                f"judge.budget={budget:g} USD, but {estimate.requests} requests would cost about "
                f"{estimate.usd:.4g}; raise it, or judge fewer prompts"
            )
        pairs = self._requests(comparisons)
        with self._client() as client, ThreadPoolExecutor(self.settings.concurrency) as pool:

            def ask(request: dict[str, Any]) -> dict[str, Any]:
                answer = self._answer(client, request)
                advance()
                return answer

            futures = [[pool.submit(ask, request) for request, _ in pair] for pair in pairs]
            try:
                answers = [[future.result() for future in pair] for pair in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return self._verdicts(pairs, answers, estimate)

    # -- questions ---------------------------------------------------------------------------

    def _requests(
        self, comparisons: Sequence[Comparison]
    ) -> list[list[tuple[dict[str, Any], bool]]]:
        """For each comparison the requests, and whether the model's answer is shown first."""
        orders = [[True, False]] * len(comparisons)
        if not self.settings.swap:
            draws = self.streams.data("order", 0).integers(2, size=len(comparisons))
            orders = [[bool(first)] for first in draws]
        return [
            [(self._request(comparison, first), first) for first in order]
            for comparison, order in zip(comparisons, orders, strict=True)
        ]

    def _request(self, comparison: Comparison, first: bool) -> dict[str, Any]:
        prompt, answer, baseline = comparison
        a, b = (answer, baseline) if first else (baseline, answer)
        texts = {"prompt": prompt, "A": a, "B": b}
        # In one pass, because an answer may itself say {B}.
        text = PLACES.sub(lambda place: texts[place[1]], self.template)
        settings = self.settings
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": text}],
            settings.token_limit: settings.max_tokens,
            **settings.extra,
        }
        if settings.temperature is not None:
            request["temperature"] = settings.temperature
        if settings.answer == "logprobs":
            request |= {"logprobs": True, "top_logprobs": 5}
        return request

    # -- asking --------------------------------------------------------------------------------

    def _client(self) -> Any:
        import openai

        hide_secrets_in_logs()
        settings = self.settings
        key = os.environ.get(settings.api_key_variable)
        if not key and "api.openai.com" in settings.base_url:
            raise BadInput(
                f"the environment variable {settings.api_key_variable} is not set; the judge at "
                f"{settings.base_url} needs its key there (judge.api_key_variable names another)"
            )
        return openai.OpenAI(
            api_key=key or "none",
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=0,  # ours, so that the budget counts every try
        )

    def _known(self, request: dict[str, Any]) -> dict[str, Any] | None:
        return self.answers.get(key_of(request, self.settings))

    def _answer(self, client: Any, request: dict[str, Any]) -> dict[str, Any]:
        known = self._known(request)
        if known is not None:
            return known
        for attempt in range(self.settings.retries + 1):
            reserved = self._reserve(request)
            try:
                answer = self._read(self._send(client, request))
            except _PassingError as failure:
                self._settle(reserved, 0 if failure.unpaid else reserved)
                if attempt == self.settings.retries:
                    raise OutageError(
                        f"the judge at {self.settings.base_url} failed {attempt + 1} times, last "
                        f"with: {failure}. The answers so far are in {self.answers.path}; the same "
                        "command continues from them"
                    ) from None
                time.sleep(max(failure.wait, min(LONGEST_WAIT, self._wait(attempt))))
                continue
            except BaseException:
                self._settle(reserved, 0)
                raise
            requested, answered = answer["input_tokens"], answer["output_tokens"]
            with self._lock:
                self.tokens[0] += requested
                self.tokens[1] += answered
            self._settle(reserved, self._usd(requested, answered) or 0.0)
            self.answers.put(key_of(request, self.settings), answer)
            return answer
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, attempt: int) -> float:
        return self.settings.backoff * 2**attempt

    def _send(self, client: Any, request: dict[str, Any]) -> Any:
        """One request; `_PassingError` if another try may succeed, BadInput if none can."""
        import openai

        try:
            return client.chat.completions.create(**request)
        except openai.APITimeoutError:
            raise _PassingError(f"no answer in {self.settings.timeout:g} s", unpaid=False) from None
        except openai.APIConnectionError as error:
            raise _PassingError(
                f"no connection ({redact(str(error.__cause__ or error))})"
            ) from None
        except (openai.APIResponseValidationError, json.JSONDecodeError):
            raise _PassingError("not a chat completion", unpaid=False) from None
        except openai.APIStatusError as error:
            reason = redact(f"status {error.status_code}: {error.message}")[:300]
            passing = error.status_code in (408, 409, 429) or error.status_code >= 500
            if passing and error.code != "insufficient_quota":
                raise _PassingError(reason, wait=_retry_after(error.response.headers)) from None
            where = f"the judge at {self.settings.base_url}"
            if error.status_code in (401, 403) or error.code == "insufficient_quota":
                raise OutageError(
                    f"{where} does not accept the key in {self.settings.api_key_variable} "
                    f"({reason}); the answers so far are kept in {self.answers.path}"
                ) from None
            raise BadInput(f"{where} refuses judge.model={request['model']!r}: {reason}") from None

    def _read(self, response: Any) -> dict[str, Any]:
        try:
            return read(response, self.settings)
        except (AttributeError, IndexError, TypeError) as error:
            raise _PassingError(
                f"not a chat completion ({redact(str(error))})", unpaid=False
            ) from None

    # -- money ---------------------------------------------------------------------------------

    def _usd(self, asked: int, answered: int) -> float | None:
        prices = self.settings.price_input, self.settings.price_output
        if prices[0] is None or prices[1] is None:
            return None
        return (asked * prices[0] + answered * prices[1]) / 1e6

    def _reserve(self, request: dict[str, Any]) -> float:
        requested = len(request["messages"][0]["content"].encode()) + PER_MESSAGE
        most = self._usd(requested, self.settings.max_tokens) or 0.0
        with self._lock:
            budget = self.settings.budget
            if budget is not None and self.spent + self._reserved + most > budget:
                raise OutageError(
                    f"judge.budget={budget:g} USD: {self.spent:.4g} are spent and the next "
                    f"request may cost {most:.2g}. The answers so far are in "
                    f"{self.answers.path}; raise the budget, and the same command continues"
                )
            self._reserved += most
        return most

    def _settle(self, reserved: float, paid: float) -> None:
        with self._lock:
            self._reserved -= reserved
            self.spent += paid

    # -- verdicts --------------------------------------------------------------------------------

    def _verdicts(self, pairs: list, answers: list, estimate: Estimate) -> Verdicts:
        preferences = np.full(len(pairs), np.nan)
        decided = first_wins = contradictory = 0
        for row, (pair, given) in enumerate(zip(pairs, answers, strict=True)):
            shares = [answer["first"] for answer in given]  # P(the one shown first is better)
            if None in shares:
                continue
            decided += sum(share != 0.5 for share in shares)
            first_wins += sum(share > 0.5 for share in shares)
            model = [
                share if first else 1 - share
                for share, (_, first) in zip(shares, pair, strict=True)
            ]
            preferences[row] = np.mean(model)
            contradictory += min(model) < 0.5 < max(model)
        unparsed = int(np.isnan(preferences).sum())
        if unparsed > self.settings.max_unparsed * len(pairs):
            sample = next(a["text"] for given in answers for a in given if a["first"] is None)
            raise BadInput(
                f"judge.max_unparsed={self.settings.max_unparsed:g}: {unparsed} of {len(pairs)} "
                f"comparisons have no verdict, e.g. {redact(sample)[:80]!r}; raise "
                "judge.max_tokens, change judge.prompt, or choose another judge"
            )
        return Verdicts(
            preferences=preferences,
            first_won=first_wins / decided if decided else None,
            contradictory=contradictory,
            unparsed=unparsed,
            cost={
                "requests": estimate.requests,
                "cached": estimate.cached,
                "input_tokens": self.tokens[0],
                "output_tokens": self.tokens[1],
                "usd": None if self.settings.price_input is None else self.spent,
            },
        )


class _PassingError(Exception):
    """A request failed in a way that may pass; `wait` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0, unpaid: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.unpaid = wait, unpaid


def _retry_after(headers: Any) -> float:
    """Seconds that a server asks to wait, at most `LONGEST_WAIT`; 0 if it does not say."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(headers.get("retry-after", 0))))
    except ValueError:  # a date: our own backoff will do
        return 0.0
