"""The judge's arithmetic: verdicts, order, win rates, and AlpacaEval's control for length."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from reprise.alignment.judging.config import SUITES, AlpacaSuite, Judge, OpenLLMSuite
from reprise.alignment.judging.judge import Comparison, LanguageModelJudge
from reprise.alignment.judging.verdicts import PROMPTS, Answers, read, template, verdict
from reprise.alignment.judging.win_rates import Gamed, length_controlled_win_rate, win_rate
from reprise.rollout.randomness import Streams


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# -- win rates -----------------------------------------------------------------------------------


def test_win_rate_by_hand():
    # Two wins, a tie, a loss: 2.5 of 4. Deviations .375^2 * 2 + .125^2 + .625^2 over n - 1 = 3.
    rate, error = win_rate(np.array([1, 1, 0.5, 0]))
    assert rate == 62.5
    assert error == pytest.approx(100 * np.sqrt((2 * 0.375**2 + 0.125**2 + 0.625**2) / 3 / 4))


@pytest.fixture(scope="module")
def answers():
    generator = np.random.default_rng(0)
    lengths, baseline = generator.integers(100, 2000, (2, 300))
    difference = lengths - baseline
    return lengths, baseline, np.tanh(difference / difference.std(ddof=1)), generator


def test_the_length_controlled_rate_recovers_the_model_behind_the_preferences(answers):
    lengths, baseline, controlled, generator = answers
    difficulty = generator.normal(size=len(lengths))
    level = 0.4 - 0.7 * difficulty
    rate = 100 * sigmoid(level).mean()
    found = length_controlled_win_rate(
        sigmoid(level + 1.2 * controlled), lengths, baseline, difficulty
    )
    assert found["theta"] == pytest.approx(0.4, abs=1e-3)
    assert found["phi"] == pytest.approx(1.2, abs=1e-3)
    assert found["psi"] == pytest.approx(-0.7, abs=1e-3)
    assert found["length_controlled_winrate"] == pytest.approx(rate, abs=0.02)


def test_a_model_that_wins_by_length_alone_has_a_rate_of_one_half():
    generator = np.random.default_rng(1)
    baseline = generator.integers(100, 1000, 300)
    lengths = baseline + generator.integers(-100, 900, 300)  # longer in nine of ten
    difference = lengths - baseline
    preferences = sigmoid(2.0 * np.tanh(difference / difference.std(ddof=1)))
    found = length_controlled_win_rate(preferences, lengths, baseline)
    assert win_rate(preferences)[0] > 75
    assert found["length_controlled_winrate"] == pytest.approx(50, abs=0.1)


def test_without_length_differences_the_two_rates_are_the_same(answers):
    lengths = np.full(100, 500)
    preferences = np.repeat([1.0, 0.0, 0.5], [60, 30, 10])
    np.random.default_rng(2).shuffle(preferences)
    found = length_controlled_win_rate(preferences, lengths, lengths)
    assert found["phi"] == 0
    # The penalty on theta is C's, and C is at most 1e4.
    assert found["length_controlled_winrate"] == pytest.approx(65, abs=0.5)


def test_the_error_of_the_controlled_rate_is_its_deviation_over_sets_of_prompts():
    rates, errors = [], []
    for seed in range(8):
        generator = np.random.default_rng(seed)
        baseline = generator.integers(100, 1000, 400)
        lengths = baseline + generator.integers(-500, 500, 400)
        p = (generator.random(400) < 0.6).astype(float)
        found = length_controlled_win_rate(p, lengths, baseline)
        rates.append(found["length_controlled_winrate"])
        errors.append(found["lc_standard_error"])
    assert np.mean(errors) == pytest.approx(np.std(rates, ddof=1), rel=0.6)
    assert np.mean(errors) == pytest.approx(100 * np.sqrt(0.24 / 400), rel=0.3)
    few = length_controlled_win_rate(p[:199], lengths[:199], baseline[:199])
    assert "lc_standard_error" not in few


def test_the_gamed_baseline_pulls_what_length_explains(answers):
    lengths, baseline, controlled, generator = answers
    difficulty = generator.normal(size=len(lengths))
    preferences = sigmoid(0.2 + 0.5 * controlled)
    plain = length_controlled_win_rate(preferences, lengths, baseline, difficulty)
    length = generator.normal(size=300)
    gamed = Gamed(sigmoid(3 * np.tanh(length)), length, difficulty)
    pulled = length_controlled_win_rate(preferences, lengths, baseline, difficulty, gamed)
    assert 0.5 == pytest.approx(plain["phi"], abs=0.01)
    assert 0.55 < pulled["phi"] < 1.0  # a tenth of the weight, so nearer to the model's own
    agreeing = Gamed(sigmoid(0.5 * np.tanh(length)), length, difficulty)
    same = length_controlled_win_rate(preferences, lengths, baseline, difficulty, agreeing)
    assert same["theta"] == pytest.approx(0.2, abs=0.01), "the gamed baseline has no theta"


def test_too_few_pairs_for_five_folds():
    with pytest.raises(ValueError, match="9 judged pairs are too few"):
        length_controlled_win_rate(np.ones(9), np.arange(9), np.arange(9))


# -- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", 1.0),
        (" b.\n", 0.0),
        ("C", 0.5),
        ("tie", 0.5),
        ("**A**", 1.0),
        ("[[B]]", 0.0),
        ("Answer: B", 0.0),
        ("Answer A", 1.0),
        ("A is shorter, B is right.\n\nB", 0.0),
        ("A\nor rather\nFinal answer: C", 0.5),
        ("A better answer would be longer", None),
        ("D", None),
        ("", None),
        ("AB", None),
    ],
)
def test_a_verdict_stands_on_a_line_of_its_own(text, expected):
    assert verdict(text) == expected


def completion(text, top=None):
    logprobs = None
    if top is not None:
        entries = [SimpleNamespace(token=token, logprob=np.log(p)) for token, p in top.items()]
        logprobs = SimpleNamespace(content=[SimpleNamespace(top_logprobs=entries)])
    choice = SimpleNamespace(message=SimpleNamespace(content=text), logprobs=logprobs)
    return SimpleNamespace(choices=[choice], usage=None)


def test_probabilities_of_the_first_token():
    judge = Judge(model="j", answer="logprobs", base_url="http://127.0.0.1:1/v1")
    top = {"A": 0.5, " A": 0.1, "B": 0.2, "The": 0.2}
    assert read(completion("A", top), judge)["first"] == pytest.approx(0.6 / 0.8)
    assert read(completion("The", {"The": 1.0}), judge)["first"] is None
    with pytest.raises(ValueError, match="returns no log-probabilities"):
        read(completion("A"), judge)


def test_templates(tmp_path):
    assert template("summary") == PROMPTS["summary"]
    file = tmp_path / "prompt.txt"
    file.write_text("{prompt} {A} {B}")
    assert template(str(file)) == "{prompt} {A} {B}"
    file.write_text("{prompt} {A}")
    with pytest.raises(ValueError, match=r"lacks \{B\}"):
        template(str(file))
    with pytest.raises(ValueError, match="neither a file nor one of chat, summary"):
        template("chatt")


# -- questions, price ------------------------------------------------------------------------------


def make(tmp_path, **changes):
    settings = {"model": "j", "base_url": "http://127.0.0.1:1/v1", **changes}
    return LanguageModelJudge(Judge(**settings), tmp_path / "cache.jsonl", Streams(0))


def test_both_orders_and_no_text_inside_a_text(tmp_path):
    judge = make(tmp_path)
    [[(first, is_first), (second, is_second)]] = judge._requests(
        [Comparison("say {B}", "mine {A}", "theirs")]
    )
    assert (is_first, is_second) == (True, False)
    text = first["messages"][0]["content"]
    assert "<instruction>\nsay {B}\n" in text
    assert "<answer_A>\nmine {A}\n</answer_A>" in text and "<answer_B>\ntheirs\n" in text
    assert "<answer_A>\ntheirs\n</answer_A>" in second["messages"][0]["content"]
    assert first["temperature"] == 0 and first["max_tokens"] == 16


def test_one_order_is_drawn_for_each_pair(tmp_path):
    judge = make(tmp_path, swap=False, temperature=None, token_limit="max_completion_tokens")
    pairs = judge._requests([Comparison("p", "a", "b")] * 64)
    firsts = [first for [(_, first)] in pairs]
    assert 16 < sum(firsts) < 48
    assert [first for [(_, first)] in judge._requests([Comparison("p", "a", "b")] * 64)] == firsts
    assert "temperature" not in pairs[0][0][0] and pairs[0][0][0]["max_completion_tokens"] == 16


def test_the_price_before_the_first_request(tmp_path):
    judge = make(tmp_path, price_input=2.0, price_output=10.0, budget=1e-6)
    comparisons = [Comparison("p" * 4000, "a", "b"), Comparison("p" * 4000, "a", "c")]
    estimate = judge.estimate(comparisons)
    assert estimate.requests == 4 and estimate.cached == 0 and estimate.output_tokens == 64
    assert 4000 < estimate.input_tokens < 4800
    dollars = (estimate.input_tokens * 2.0 + 64 * 10.0) / 1e6
    assert estimate.usd == pytest.approx(dollars)
    with pytest.raises(ValueError, match="4 requests would cost about"):
        judge.compare(comparisons)
    assert make(tmp_path).estimate(comparisons).usd is None


def test_answers_survive_a_torn_line(tmp_path):
    file = tmp_path / "cache.jsonl"
    Answers(file).put("k", {"text": "A"})
    file.write_text(file.read_text() + '{"key": "l", "ans')
    again = Answers(file)
    assert again.get("k") == {"text": "A"} and again.get("l") is None
    again.put("m", {"text": "B"})
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == ["k", "m"]


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"base_url": "127.0.0.1:8000"}, "should be an address"),
        ({"base_url": "https://me:pw@host/v1"}, "no user, password or query"),
        ({"base_url": "https://host/v1?key=abc"}, "no user, password or query"),
        ({"budget": 1.0}, "needs price_input and price_output"),
        ({"extra": {"api_key": "abc"}}, "looks like a key"),
        ({"extra": {"model": "x"}}, "they have settings"),
        ({"api_key_variable": "sk-abcdef"}, "pattern"),
    ],
)
def test_what_a_judge_refuses(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        Judge(model="j", **changes)


def test_what_suites_refuse():
    assert SUITES.keys() == {"judge", "alpaca", "openllm"}
    with pytest.raises(ValidationError, match="shots cannot be negative"):
        OpenLLMSuite(tasks={"mmlu": -1})
    with pytest.raises(ValidationError, match="needs tasks"):
        OpenLLMSuite(include="folder")
    with pytest.raises(ValidationError, match="one answer an instruction"):
        AlpacaSuite(judge=Judge(model="j"), sampling={"samples_per_prompt": 2})
