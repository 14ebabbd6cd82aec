"""What a judge is asked, how its answer is read, and the answers that are already paid for."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from pathlib import Path
from typing import Any

from reprise.alignment.judging.config import Judge
from reprise.rollout.errors import BadInput

PROMPTS = {
    "chat": """You compare two answers to an instruction. Judge which one a careful person would \
prefer: correct, helpful, to the point, and no longer than it needs to be. The order in which they \
are shown means nothing.

<instruction>
{prompt}
</instruction>

<answer_A>
{A}
</answer_A>

<answer_B>
{B}
</answer_B>

Reply with one letter: A if answer A is better, B if answer B is better, C if they are equally \
good.""",
    "summary": """You compare two summaries of a text. Judge which one says more of what matters \
most in it, precisely and without unimportant or irrelevant details. The order in which they are \
shown means nothing.

<text>
{prompt}
</text>

<summary_A>
{A}
</summary_A>

<summary_B>
{B}
</summary_B>

Reply with one letter: A if summary A is better, B if summary B is better, C if they are equally \
good.""",
}
PLACES = re.compile(r"\{(prompt|A|B)\}")
# A line that is nothing but a verdict, however it is decorated.
_VERDICT = re.compile(
    r"^[\W_]*(?:(?:verdict|answer|final answer|better)\W+)?(?:answer |summary )?(A|B|C|tie)[\W_]*$",
    re.IGNORECASE,
)
BYTES_PER_TOKEN = 4  # of the estimate before; English text has about so many
PER_MESSAGE = 16  # tokens that a chat template adds


def template(name: str) -> str:
    """The text of ``judge.prompt``: a built-in one, or a file with {prompt}, {A} and {B} in it.

    Raises:
        BadInput: no such file, or a place is missing.
    """
    if name in PROMPTS:
        return PROMPTS[name]
    if not Path(name).is_file():
        raise BadInput(
            f"judge.prompt={name!r}: neither a file nor one of {', '.join(PROMPTS)}; a file holds "
            "the question, with {prompt}, {A} and {B} where the texts go"
        )
    text = Path(name).read_text(encoding="utf-8")
    missing = {"prompt", "A", "B"} - set(PLACES.findall(text))
    if missing:
        raise BadInput(
            f"judge.prompt={name!r} lacks {{{'}, {'.join(sorted(missing))}}}; write each where its "
            "text goes, and ask for one letter: A, B, or C for a tie"
        )
    return text


def read(response: Any, settings: Judge) -> dict[str, Any]:
    """One chat completion as plain values.

    Returns:
        ``text``; ``first``, the probability that the answer shown first is better, None without a
        verdict; ``input_tokens`` and ``output_tokens`` as the server counted them, or 0.

    Raises:
        BadInput: log-probabilities were asked for, and there are none.
    """
    choice = response.choices[0]
    text = choice.message.content or ""
    if settings.answer == "logprobs":
        if choice.logprobs is None or not choice.logprobs.content:
            raise BadInput(
                f"judge.answer=logprobs: {settings.base_url} returns no log-probabilities; use "
                "judge.answer=text there"
            )
        first = _share_of_a(choice.logprobs.content[0].top_logprobs)
    else:
        first = verdict(text)
    usage = response.usage
    return {
        "text": text,
        "first": first,
        "input_tokens": usage.prompt_tokens if usage else 0,
        "output_tokens": usage.completion_tokens if usage else 0,
    }


def verdict(text: str) -> float | None:
    """1 for A, 0 for B, 1/2 for a tie: the last line that is a verdict and nothing else."""
    for line in reversed(text.strip().splitlines()):
        found = _VERDICT.match(line.strip())
        if found:
            return {"a": 1.0, "b": 0.0}.get(found[1].lower(), 0.5)
    return None


def _share_of_a(likeliest: list[Any]) -> float | None:
    """P(A) / (P(A) + P(B)) of the first token."""
    shares = {"A": 0.0, "B": 0.0}
    for token in likeliest:
        letter = token.token.strip()
        if letter in shares:
            shares[letter] += math.exp(token.logprob)
    total = sum(shares.values())
    return shares["A"] / total if total else None


def tokens_of(request: dict[str, Any]) -> int:
    """About how many tokens a request's text has."""
    return len(request["messages"][0]["content"].encode()) // BYTES_PER_TOKEN + PER_MESSAGE


def key_of(request: dict[str, Any], settings: Judge) -> str:
    """SHA-256 of everything that an answer depends on: the request, and who is asked."""
    requested = json.dumps([settings.base_url, request], sort_keys=True)
    return hashlib.sha256(requested.encode()).hexdigest()


class Answers:
    """Answers by request, appended to a file one line each; a line torn by a kill is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Any]] = {}
        if path.exists():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                path.write_text(whole, encoding="utf-8")
            for line in whole.splitlines():
                record = json.loads(line)
                self._known[record["key"]] = record["answer"]

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to a request asked before."""
        return self._known.get(key)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer, on disk before this returns."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": answer}) + "\n")
            self._known[key] = answer
