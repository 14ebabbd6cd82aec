"""The judge over real connections: a server that fails in every way, and `transformers serve`."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

from alignment.evaluation_config import Judge
from alignment.judge import Comparison, LanguageModelJudge
from rollout.randomness import Streams
from rollout.remote import OutageError

KEY = "sk-a-key-that-must-not-be-seen-anywhere"


class Server(http.server.ThreadingHTTPServer):
    """Speaks /v1/chat/completions: the longer answer wins. `faults` come first, one a request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.requests, self.authorizations = [], [], []
        self.reply = self.longer_wins

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @staticmethod
    def longer_wins(text):
        a, b = (re.search(rf"<answer_{x}>\n(.*?)\n</answer_{x}>", text, re.S)[1] for x in "AB")
        return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "C"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests.append(body)
        server.authorizations.append(self.headers["Authorization"])
        fault = server.faults.pop(0) if server.faults else None
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "hang":
            time.sleep(1.0)
        elif fault == "nonsense":
            self.answer(200, {"hello": "there"})
        elif isinstance(fault, int):
            # Servers do quote what they were sent.
            quoted = f"bad request with {self.headers['Authorization']}"
            code = "insufficient_quota" if fault == 499 else "code"
            status = 429 if fault == 499 else fault
            self.answer(status, {"error": {"message": quoted, "code": code}}, {"Retry-After": "0"})
        else:
            text = server.reply(body["messages"][0]["content"])
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}
            choice["message"]["content"] = text
            usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
            head = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
            self.answer(200, {**head, "choices": [choice], "usage": usage})

    def answer(self, status, value, headers=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(data)} | (
            headers or {}
        )
        for name, content in headers.items():
            self.send_header(name, str(content))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def make(server, tmp_path, **changes):
    settings = {
        "model": "longer",
        "base_url": server.url,
        "backoff": 0.01,
        "concurrency": 1,
        "timeout": 0.5,
        "price_input": 1.0,
        "price_output": 4.0,
    }
    return LanguageModelJudge(
        Judge(**{**settings, **changes}), tmp_path / "cache.jsonl", Streams(0)
    )


PAIRS = [
    Comparison("one", "long answer", "short"),
    Comparison("two", "x", "much longer"),
    Comparison("three", "same", "size"),
    Comparison("four", "long answer", "short"),
]


def test_verdicts_order_and_cost(server, tmp_path):
    judge = make(server, tmp_path, concurrency=4)
    told = []
    verdicts = judge.compare(PAIRS, lambda: told.append(1))
    assert verdicts.preferences.tolist() == [1.0, 0.0, 0.5, 1.0]
    assert verdicts.first_won == 0.5 and verdicts.contradictory == verdicts.unparsed == 0
    assert len(server.requests) == len(told) == 8
    assert set(server.authorizations) == {f"Bearer {KEY}"}
    dollars = 8 * (100 * 1.0 + 1 * 4.0) / 1e6
    assert verdicts.cost["usd"] == pytest.approx(dollars)
    assert verdicts.cost["input_tokens"] == 800 and verdicts.cost["requests"] == 8


def test_answers_are_paid_for_once(server, tmp_path):
    first = make(server, tmp_path).compare(PAIRS)
    again = make(server, tmp_path).compare(PAIRS)
    assert len(server.requests) == 8
    assert again.preferences.tolist() == first.preferences.tolist()
    assert again.cost == {
        "requests": 0,
        "cached": 8,
        "input_tokens": 0,
        "output_tokens": 0,
        "usd": 0.0,
    }
    assert make(server, tmp_path, model="another").estimate(PAIRS).cached == 0


def test_a_judge_that_likes_the_first_ties_with_itself(server, tmp_path):
    server.reply = lambda text: "A"
    verdicts = make(server, tmp_path).compare(PAIRS)
    assert verdicts.preferences.tolist() == [0.5] * 4
    assert verdicts.first_won == 1.0 and verdicts.contradictory == 4


@pytest.mark.parametrize("fault", [429, 500, 503, 408, "drop", "hang", "nonsense"])
def test_what_passes_is_tried_again(server, tmp_path, fault):
    server.faults = [fault, None, fault, fault]
    verdicts = make(server, tmp_path, retries=2).compare(PAIRS)
    assert verdicts.preferences.tolist() == [1.0, 0.0, 0.5, 1.0]
    assert len(server.requests) == 8 + 3


def test_an_outage_keeps_what_was_answered(server, tmp_path, capsys):
    server.faults = [None] * 3 + [500] * 99
    with pytest.raises(OutageError, match=r"failed 3 times.*the same command continues") as outage:
        make(server, tmp_path, retries=2).compare(PAIRS)
    assert KEY not in str(outage.value) and "***" in str(outage.value)
    assert outage.value.__cause__ is None and outage.value.__suppress_context__
    server.faults, asked = [], len(server.requests)
    verdicts = make(server, tmp_path).compare(PAIRS)
    assert verdicts.preferences.tolist() == [1.0, 0.0, 0.5, 1.0]
    assert len(server.requests) == asked + 5
    assert KEY not in (tmp_path / "cache.jsonl").read_text()
    assert KEY not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("status", "problem"),
    [(401, "does not accept the key in OPENAI_API_KEY"), (499, "does not accept the key")],
)
def test_a_refused_key_is_not_tried_again(server, tmp_path, status, problem):
    server.faults = [status] * 99
    with pytest.raises(OutageError, match=problem) as refused:
        make(server, tmp_path).compare(PAIRS[:1])
    assert KEY not in str(refused.value)
    assert len(server.requests) <= 2


def test_an_unknown_model_is_bad_input(server, tmp_path):
    server.faults = [404] * 99
    with pytest.raises(ValueError, match=r"refuses judge\.model='longer'") as refused:
        make(server, tmp_path).compare(PAIRS[:1])
    assert KEY not in str(refused.value)


def test_the_budget_is_never_exceeded(server, tmp_path):
    # By the estimate four requests fit. The server counts more tokens than were estimated.
    judge = make(server, tmp_path, price_input=100.0, price_output=0.0)
    estimate = judge.estimate(PAIRS).usd
    budget = 0.1001
    assert estimate < budget
    with pytest.raises(OutageError, match="are spent and the next request may cost") as stopped:
        make(server, tmp_path, price_input=100.0, price_output=0.0, budget=budget).compare(PAIRS)
    spent = len(server.requests) * 100 * 100.0 / 1e6
    assert 0 < spent <= budget, stopped.value
    make(server, tmp_path, price_input=100.0, price_output=0.0, budget=1.0).compare(PAIRS)
    assert len(server.requests) == 8


def test_too_many_answers_without_a_verdict(server, tmp_path):
    server.reply = lambda text: "I would rather not say" if "three" in text else "A"
    with pytest.raises(ValueError, match=r"1 of 4 comparisons have no verdict, .* 'I would rather"):
        make(server, tmp_path).compare(PAIRS)
    verdicts = make(server, tmp_path, max_unparsed=0.5).compare(PAIRS)
    assert verdicts.unparsed == 1 and np.isnan(verdicts.preferences[2])
    assert len(server.requests) == 8


def test_a_server_without_log_probabilities(server, tmp_path):
    with pytest.raises(ValueError, match="returns no log-probabilities"):
        make(server, tmp_path, answer="logprobs").compare(PAIRS)


def test_the_key_must_be_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = LanguageModelJudge(Judge(model="gpt-5-mini"), tmp_path / "c.jsonl", Streams(0))
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        judge.compare(PAIRS)


# -- transformers serve --------------------------------------------------------------------------


def says_a(folder):
    """A chat model of two layers whose likeliest token is always A."""
    import torch

    from alignment import models
    from alignment.config import FromScratch

    tokenizer = models.train_tokenizer(["Answer A or B or C"] * 50, 300)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    shape = FromScratch(
        architecture="llama",
        layers=2,
        width=16,
        heads=2,
        feedforward=32,
        vocabulary=300,
        positions=2048,
    )
    policy = models.new_policy(shape, tokenizer, seed=1)
    [letter] = tokenizer("A").input_ids[-1:]
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith("embed_tokens.weight"):
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()  # every hidden state is the same
        head = policy.get_output_embeddings().weight
        head.zero_()
        head[letter] = 1.0
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def serving(model, home):
    """`transformers serve` as a process of its own; yields its address."""
    (home / "hub").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    log = open(home / "log", "w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, (home / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def test_transformers_serve(tmp_path):
    model = tmp_path / "model"
    says_a(model)
    with serving(model, tmp_path / "home") as url:
        settings = {"model": str(model), "base_url": url, "max_tokens": 1, "concurrency": 1}
        judge = LanguageModelJudge(Judge(**settings), tmp_path / "cache.jsonl", Streams(0))
        verdicts = judge.compare(PAIRS[:2])
        assert verdicts.preferences.tolist() == [0.5, 0.5]
        assert verdicts.first_won == 1.0 and verdicts.contradictory == 2
        assert verdicts.cost["input_tokens"] > 0 and verdicts.cost["output_tokens"] == 4
        # It ignores a request for log-probabilities without a word; we do not.
        with pytest.raises(ValueError, match="returns no log-probabilities"):
            LanguageModelJudge(
                Judge(**settings, answer="logprobs"), tmp_path / "cache.jsonl", Streams(0)
            ).compare(PAIRS[:1])
