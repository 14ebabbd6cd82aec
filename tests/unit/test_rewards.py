"""Weighted sums, rules, a reward server over HTTP, models with code of their own, and the check."""

import http.server
import json
import sys
import threading

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from reprise.alignment import models
from reprise.alignment.config import Reward
from reprise.alignment.rewards.check import check_rewards
from reprise.alignment.rewards.reward import Rewards
from reprise.rollout.engines import json_server
from reprise.rollout.run.remote import OutageError
from tests.unit.foreign_reward import foreign_reward

CPU = torch.device("cpu")
RULES = """
def brevity(prompts, completions):
    return [-float(len(text)) for text in completions]

def seen(prompts, completions, **everything):
    print(prompts, completions, everything)
    return [float(ended) + len(ids) for ended, ids in zip(everything["terminated"],
                                                          everything["completion_ids"])]

def short(prompts, completions):
    return [0.0]

def bad(prompts, completions):
    return [float("nan")] * len(completions)

def odd(texts):
    return []
"""


@pytest.fixture(scope="module")
def tokenizer(neox_lab):
    return models.load_tokenizer(str(neox_lab.policy))


@pytest.fixture(scope="module", autouse=True)
def rules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules_of_a_test.py").write_text(RULES)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def make(tokenizer, **settings):
    return Rewards(Reward.model_validate(settings), tokenizer, "eager", CPU)


def samples(tokenizer):
    """Two prompts, a complete answer and one that was cut."""
    prompts = [np.array(tokenizer(t)["input_ids"], np.int32) for t in ("get:", "set a:")]
    answers = [tokenizer("the value")["input_ids"], tokenizer("a name")["input_ids"]]
    complete = np.array([*answers[0], tokenizer.eos_token_id], np.int32)
    return prompts, [complete, np.array(answers[1], np.int32)], [True, False], [None, None]


# -- sums and rules --------------------------------------------------------------------------------


def test_a_weighted_sum_of_a_model_and_a_rule(neox_lab, tokenizer):
    given = samples(tokenizer)
    model = make(tokenizer, model=str(neox_lab.reward)).score(*given)
    rule = make(tokenizer, function="rules_of_a_test:brevity").score(*given)
    assert rule.tolist() == [-len("the value"), -len("a name")]
    terms = [
        {"model": str(neox_lab.reward), "weight": 0.5},
        {"function": "rules_of_a_test:brevity", "weight": -2.0},
    ]
    both = make(tokenizer, terms=terms, missing_eos_penalty=3.0)
    expected = 0.5 * model - 2 * rule - np.array([0, 3])
    np.testing.assert_allclose(both.score(*given), expected, rtol=1e-6)
    assert "0.5 x " in both.identity and "-2 x rules_of_a_test:brevity" in both.identity


def test_one_source_alone_keeps_its_bits_and_its_identity(neox_lab, tokenizer):
    given = samples(tokenizer)
    alone = make(tokenizer, model=str(neox_lab.reward))
    [(weight, model)] = alone.terms
    assert weight == 1 and alone.identity == model.identity
    assert alone.score(*given).tobytes() == model.score(*given).tobytes()


def test_a_rule_gets_what_it_has_parameters_for(tokenizer, capsys):
    prompts, completions, ended, _ = samples(tokenizer)
    chat = [{"role": "user", "content": "get"}]
    reward = make(tokenizer, function="rules_of_a_test:seen")
    scores = reward.score(prompts, completions, ended, [chat, None])
    assert scores.tolist() == [1 + len(completions[0]), len(completions[1])]
    said = capsys.readouterr().out
    assert (
        str(chat) in said and "'set a:'" in said and "'the value'" in said and "<eos>" not in said
    )


def test_the_token_that_ended_an_answer_is_not_its_text(tokenizer):
    """Where a line break ends a completion too, another vocabulary must not read it."""
    reward = make(tokenizer, function="rules_of_a_test:brevity")
    [end] = tokenizer("\n")["input_ids"]
    ids = np.array([*tokenizer("the value")["input_ids"], end], np.int32)
    prompt = np.array([5], np.int32)
    assert reward.score([prompt], [ids], [True], [None]).tolist() == [-len("the value")]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_anywhere:f", "there is no module no_such_module_anywhere; install it"),
        ("rules_of_a_test:brief", "has no function brief; it has bad, brevity, odd, seen, short"),
        ("rules_of_a_test:odd", "has no parameter completions and prompts"),
    ],
)
def test_rules_that_cannot_be_called_are_refused(tokenizer, path, message):
    with pytest.raises(ValueError, match=message):
        make(tokenizer, function=path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("short", "gave 1 rewards for 2 completions"), ("bad", "gave nan at 0; every reward is a")],
)
def test_rules_that_give_something_else_are_refused(tokenizer, name, message):
    reward = make(tokenizer, function=f"rules_of_a_test:{name}")
    with pytest.raises(ValueError, match=message):
        reward.score(*samples(tokenizer))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no source"),
        ({"model": "a", "url": "http://x"}, "model and url"),
        ({"model": "a", "terms": [{"url": "http://x"}]}, "model and terms"),
        ({"terms": [{"model": "a", "function": "a:b"}]}, "model and function"),
        ({"function": "not a path"}, "function"),
        ({"url": "http://me:secret-word@host/x"}, "token_variable"),
        ({"function": "a:b", "trust_remote_code": True}, "belong to model"),
        ({"model": "a", "token_variable": "T"}, "is for url"),
        ({"model": "a", "revision": "main"}, "revision"),
    ],
)
def test_configs_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Reward.model_validate(settings)


# -- a reward server -------------------------------------------------------------------------------


class RewardServer(http.server.BaseHTTPRequestHandler):
    """The protocol, with faults: statuses to answer before the real answer comes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, broken=False):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) + 100 * broken))
        self.end_headers()
        self.wfile.write(data)
        if broken:
            self.close_connection = True

    def do_GET(self):
        self.answer(200, self.server.description)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((body, self.headers.get("Authorization")))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "drop":
            return self.answer(200, b'{"rewards": [', broken=True)
        if fault is not None:
            return self.answer(fault, {"error": f"{self.headers.get('Authorization')} is wrong"})
        answers = zip(body["completions"], body["terminated"], strict=True)
        rewards = [len(text) + ended for text, ended in answers]
        self.answer(200, {"rewards": self.server.change(rewards)})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(json_server, "PAUSE", 0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RewardServer) as running:
        running.seen, running.faults, running.change = [], [], lambda rewards: rewards
        running.description = {"model": "length 1.0"}
        running.url = f"http://127.0.0.1:{running.server_port}/reward"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_server_scores_texts_in_batches_with_a_token(server, tokenizer, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "very-secret-word")
    given = samples(tokenizer)
    reward = make(tokenizer, url=server.url, token_variable="A_TOKEN", batch_size=1)
    assert reward.score(*given).tolist() == [len("the value") + 1, len("a name")]
    assert reward.identity == f"{server.url} length 1.0"
    bodies = [body for body, _ in server.seen]
    assert [body["prompts"] for body in bodies] == [["get:"], ["set a:"]]
    assert [body["terminated"] for body in bodies] == [[True], [False]]
    assert {token for _, token in server.seen} == {"Bearer very-secret-word"}


def test_a_server_that_is_away_for_a_while_is_waited_for(server, tokenizer):
    reward = make(tokenizer, url=server.url, retries=4)
    server.faults = [503, "drop", 429, 500]
    assert reward.score(*samples(tokenizer)).tolist() == [len("the value") + 1, len("a name")]
    assert len(server.seen) == 5


def test_an_outage_ends_the_run_and_names_no_secret(server, tokenizer, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "very-secret-word")
    reward = make(tokenizer, url=server.url, retries=1, token_variable="A_TOKEN")
    server.faults = [503, 503]
    with pytest.raises(OutageError, match=r"in 2 attempts; the last: status 503") as caught:
        reward.score(*samples(tokenizer))
    server.faults = [401]
    with pytest.raises(ValueError, match="refused with status 401") as refused:
        reward.score(*samples(tokenizer))
    assert "very-secret-word" not in str(caught.value) + str(refused.value)
    assert len(server.seen) == 3, "a refusal is not asked again"


def test_what_a_server_must_say(server, tokenizer, monkeypatch):
    reward = make(tokenizer, url=server.url)
    for change, message in (
        (lambda rewards: rewards[1:], "gave 1 rewards for 2"),
        (lambda rewards: [None, 1], "gave None at 0"),
        (lambda rewards: "high", "gave 'high'"),
    ):
        server.change = change
        with pytest.raises(ValueError, match=message):
            reward.score(*samples(tokenizer))
    server.description = ["no name"]
    with pytest.raises(ValueError, match="GET should answer"):
        make(tokenizer, url=server.url)
    monkeypatch.delenv("A_TOKEN", raising=False)
    with pytest.raises(ValueError, match="'A_TOKEN' is not set in the environment"):
        make(tokenizer, url=server.url, token_variable="A_TOKEN")


# -- a model with a score of its own ---------------------------------------------------------------

CODE = '''
from dataclasses import dataclass
import torch
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput

@dataclass
class Scores(ModelOutput):
    score: torch.FloatTensor = None
    logits: torch.FloatTensor = None

class GatedReward(LlamaPreTrainedModel):
    """As ArmoRM: several objectives in `logits`, and a gated sum of them in `score`."""
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.gate = torch.nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(1) - 1
        objectives = self.gate(hidden[torch.arange(len(last)), last])
        return Scores(score=objectives @ torch.tensor([1.0, 2.0, -1.0]), logits=objectives)
'''


@pytest.fixture(scope="module")
def gated(llama_lab, tmp_path_factory):
    """A folder with weights and code, like a repository with remote code."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("gated")
    policy = models.load_policy(str(llama_lab.policy))
    policy.config.auto_map = {"AutoModelForSequenceClassification": "gated_reward.GatedReward"}
    policy.config.num_labels = 3
    policy.config.architectures = ["GatedReward"]
    policy.config.save_pretrained(folder)
    models.load_tokenizer(str(llama_lab.policy)).save_pretrained(folder)
    (folder / "gated_reward.py").write_text(CODE)
    generator = torch.Generator().manual_seed(1)
    gate = {
        "gate.weight": torch.randn(3, policy.config.hidden_size, generator=generator),
        "gate.bias": torch.zeros(3),
    }
    body = {f"model.{name}": tensor for name, tensor in policy.base_model.state_dict().items()}
    save_file({**body, **gate}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, gate["gate.weight"]


def test_a_score_of_its_own_is_read_after_an_explicit_opt_in(gated, llama_lab):
    folder, gate = gated
    tokenizer = models.load_tokenizer(str(llama_lab.policy))
    with pytest.raises(ValueError, match=r"cannot be loaded|do not fit"):
        make(tokenizer, model=str(folder), output="score")
    reward = make(tokenizer, model=str(folder), output="score", trust_remote_code=True)
    prompts, completions, ended, chats = samples(tokenizer)
    scores = reward.score(prompts, completions, ended, chats)
    body = models.load_policy(str(llama_lab.policy), attention="eager").eval().base_model
    for prompt, completion, score in zip(prompts, completions, scores, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, completion])).long()[None]
        with torch.no_grad():
            last = body(ids).last_hidden_state[0, -1]
        expected = (gate @ last) @ torch.tensor([1.0, 2.0, -1.0])
        assert score == pytest.approx(expected.item(), abs=1e-3)
    assert np.ptp(scores) > 0.1


# -- the check at the start ------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "get the value of a path"}]
GOOD = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<eos>"


def chat_reward(folder, template, bos=False):
    """A reward model with another vocabulary and a chat template."""
    foreign_reward(folder, template, *(("<bos>", "<bos> $A") if bos else ()))
    return folder


def start(tokenizer, folder, chat=CHAT, **settings):
    prompt = np.array(tokenizer("get the value of a path:")["input_ids"], np.int32)
    return check_rewards(make(tokenizer, model=str(folder), **settings), [prompt], [chat])


def test_what_is_right_passes(neox_lab, tokenizer, tmp_path):
    assert start(tokenizer, neox_lab.reward, chat=None) is None
    assert start(tokenizer, neox_lab.reward, chat=None, read_at="<eos>") is None
    folder = chat_reward(tmp_path, GOOD)
    assert start(tokenizer, folder) is None
    assert start(tokenizer, folder, read_at="<eos>") is None
    assert start(tokenizer, folder, chat=None) is None


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (None, {}, "has no chat template"),
        (GOOD.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"), {}, "2 times"),
        (GOOD.replace("{{ m.content }}", "{{ m.content[:4] }}"), {}, "0 times"),
        (GOOD.removesuffix("<eos>"), {}, "leaves an answer open"),
        (GOOD + "!", {"read_at": "<eos>"}, "it is read at '!', and read_at says '<eos>'"),
    ],
)
def test_templates_that_are_wrong_are_refused(tokenizer, tmp_path, template, settings, message):
    with pytest.raises(ValueError, match=message):
        start(tokenizer, chat_reward(tmp_path, template), **settings)


def test_two_bos_are_refused(tokenizer, tmp_path):
    folder = chat_reward(tmp_path, "<bos><bos>" + GOOD, bos=True)
    with pytest.raises(ValueError, match="it would read 2 BOS tokens"):
        start(tokenizer, folder)


def test_a_model_that_does_not_find_its_last_token_is_refused(neox_lab, tokenizer):
    reward = make(tokenizer, model=str(neox_lab.reward))
    reward.terms[0][1].model.config.pad_token_id = 7  # not what it is padded with
    prompt = np.array(tokenizer("get the value:")["input_ids"], np.int32)
    with pytest.raises(ValueError, match="behind its padding"):
        check_rewards(reward, [prompt], [None])


def test_known_pairs_must_be_ranked_right(tokenizer, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "get:", "better": "a", "worse": "a name"},
        {"prompt": "set:", "better": "a value", "worse": "a"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check = {"file": str(file), "accuracy": 0.6}
    prompt = [np.array([5], np.int32)]
    reward = make(tokenizer, function="rules_of_a_test:brevity", check=check)
    with pytest.raises(ValueError, match=r"1 of 2 known pairs .*Line 2: 'a value' gets -7"):
        check_rewards(reward, prompt, [None])
    file.write_text(json.dumps(rows[0]) + "\n")
    assert check_rewards(reward, prompt, [None]) == 1.0
    file.write_text('{"prompt": "x"}\n')
    with pytest.raises(ValueError, match="line 1: should have prompt, better and worse"):
        check_rewards(reward, prompt, [None])
