"""The judge over real connections: a server that fails in every way, and `transformers serve`."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

from reprise.alignment.judging.config import Judge, OpenLLMSuite
from reprise.alignment.judging.judge import Comparison, LanguageModelJudge
from reprise.alignment.judging.leaderboard import leaderboard
from reprise.rollout.randomness import Streams
from reprise.rollout.run.remote import OutageError
from tests.system.judge_server import judge_server

KEY = "sk-a-key-that-must-not-be-seen-anywhere"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server() as running:
        yield running


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

    from reprise.alignment import models
    from reprise.alignment.config import FromScratch

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
        # lm-evaluation-harness can ask it too, where a task generates.
        task = tmp_path / "tasks"
        task.mkdir()
        (task / "rows.jsonl").write_text('{"q": "one", "a": "A"}\n{"q": "two", "a": "B"}\n' * 2)
        (task / "letters.yaml").write_text(LETTERS.replace("FILE", str(task / "rows.jsonl")))
        suite = {"tasks": {"letters": 0}, "include": str(task), "server": url, "bootstrap": 10}
        measured = leaderboard(str(model), OpenLLMSuite(**suite), tmp_path / "out", print)
        assert measured["letters"] == 50.0


LETTERS = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: generate_until
test_split: test
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 1}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
