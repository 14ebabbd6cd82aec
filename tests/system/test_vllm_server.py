"""`sampling.backend: vllm` over real HTTP, against a server that answers with a real model.

The server below speaks the part of vLLM's protocol that is used (and that TRL's `VLLMClient` uses
for generation: one test runs TRL's own code against it). It samples from a transformers model by
itself, not with our decode loop, and loads the weights that it is told to from a folder. It is not
vLLM: its kernels, its batching and the NCCL broadcast are not exercised here.
"""

import http.server
import json
import threading

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from reprise.alignment import models, on_policy
from reprise.alignment.config import OnPolicy
from reprise.rollout.engines import json_server
from reprise.rollout.engines.vllm import VLLMServer
from reprise.rollout.randomness import Streams
from reprise.rollout.requests import SamplingRequest, check_prompts
from reprise.rollout.run.remote import OutageError
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.run.settings import VLLM, Sampling
from reprise.rollout.store import RoundStore


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/health":
            self.answer(200, {})
        elif path == "/v1/models":
            self.answer(200, {"data": [{"id": "the-model"}]})
        elif path == "/server_info" and self.server.info is not None:
            self.answer(200, {"vllm_config": self.server.info})
        else:
            self.answer(404, {"error": "no such path"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        with self.server.lock:
            self.server.requests += 1
            if self.server.faults:
                fault = self.server.faults.pop(0)
                if fault == "drop":
                    self.close_connection = True
                    return self.connection.close()
                return self.answer(fault, {"error": "later"})
            if self.path == "/collective_rpc":
                assert body["method"] == "reload_weights"
                self.server.load(body["kwargs"]["weights_path"])
                return self.answer(200, {"results": [None]})
            if self.path == "/reset_prefix_cache":
                return self.answer(200, {"success": True})
            assert self.path == "/v1/completions" and body["model"] == "the-model"
            prompts = body["prompt"]
            prompts = prompts if isinstance(prompts[0], list) else [prompts]
            choices = [
                choice
                for prompt in prompts
                for choice in self.server.sample(prompt, body, body.get("seed", 0))
            ]
            self.answer(200, {"choices": choices})


class Server(http.server.ThreadingHTTPServer):
    """Holds a model, what it was loaded from, and faults to show."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        self.info = {"model_config": {"logprobs_mode": "raw_logprobs"}}
        self.faults, self.requests, self.loaded = [], 0, []
        self.bias, self.spoil = 0.0, lambda choice: choice

    def load(self, folder):
        self.model = models.load_policy(folder, attention="eager").eval()
        self.loaded.append(models.weights_sha256(self.model.state_dict()))

    @torch.inference_mode()
    def sample(self, prompt, body, seed):
        stops = set(body.get("stop_token_ids", []))
        for sample in range(body["n"]):
            generator = torch.Generator().manual_seed(seed + sample)
            ids, logprobs, reason = [], [], "length"
            while len(ids) < body["max_tokens"]:
                logits = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
                if body["temperature"] == 0:
                    token = int(logits.argmax())
                else:
                    scaled = (logits / body["temperature"]).softmax(-1)
                    token = int(torch.multinomial(scaled, 1, generator=generator))
                ids.append(token)
                logprobs.append(logits.log_softmax(-1)[token].item() + self.bias)
                if token in stops:
                    reason = "stop"
                    break
            yield self.spoil(
                {
                    "prompt_token_ids": prompt,
                    "token_ids": ids,
                    "finish_reason": reason,
                    "logprobs": {
                        "tokens": [f"token_id:{token}" for token in ids],
                        "token_logprobs": logprobs,
                        "top_logprobs": [None] * len(ids),
                    },
                }
            )


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(json_server, "PAUSE", 0.01)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def run(lab, server, path, **changes):
    vllm = {"url": server.url, "weight_sync": "folder", "sync_folder": str(path / "weights")}
    config = lab.config(
        **{"rounds": 2, **changes}, sampling__backend="vllm", sampling__vllm={**vllm, "wait": 5}
    )
    config["sampling"]["temperature"] = 0.8  # the log-probabilities are at 1 all the same
    settings = TypeAdapter(OnPolicy).validate_python(config)
    run_dir = RunDir(path / "run", experiment=settings.experiment, seed=settings.seed)
    return on_policy.run(settings, run_dir), run_dir


# -- whole runs ------------------------------------------------------------------------------------


def test_a_run_samples_from_the_server_with_each_rounds_weights(llama_lab, server, tmp_path):
    server.faults = [503, "drop", 500]  # what goes wrong in between leaves no trace
    result, run_dir = run(llama_lab, server, tmp_path)
    kept = [llama_lab.policy, *sorted(run_dir.checkpoints.glob("round-*"))]
    policies = [models.load_policy(str(folder)) for folder in kept]
    assert server.loaded == [models.weights_sha256(p.state_dict()) for p in policies]
    assert len(set(server.loaded)) == 3 and result["weights_sha256"] == server.loaded[-1]
    assert len(list((tmp_path / "weights").iterdir())) == 1, "old weights are deleted"

    eos = models.load_tokenizer(str(llama_lab.policy)).eos_token_id
    for index in (0, 1):
        data = RoundStore(run_dir.rounds).read(index).data
        assert data.sampler_logprobs.dtype == np.float32
        # One model says both, by different ways: the gap is rounding, and there is one.
        np.testing.assert_allclose(data.sampler_logprobs, data.policy_logprobs, atol=1e-3)
        assert not np.array_equal(data.sampler_logprobs, data.policy_logprobs)
        flat = [ids for samples in data.completion_ids for ids in samples]
        assert [ids[-1] == eos for ids in flat] == data.terminated.ravel().tolist()
        assert all(eos not in ids[:-1] for ids in flat)
    gaps = [r["data/sampler_gap_max"] for r in run_dir.metrics() if "update_seconds" in r]
    assert len(gaps) == 2 and max(gaps) < 1e-3


def test_what_the_sampler_says_of_its_log_probabilities_is_never_trained_on(
    llama_lab, server, tmp_path
):
    honest, _ = run(llama_lab, server, tmp_path / "honest", rounds=1)
    server.bias = 0.5  # nats a token
    biased, run_dir = run(llama_lab, server, tmp_path / "biased", rounds=1)
    assert biased["weights_sha256"] == honest["weights_sha256"] != server.loaded[0]
    [record] = [r for r in run_dir.metrics() if "update_seconds" in r]
    data = RoundStore(run_dir.rounds).read(0).data
    lengths = [len(ids) for samples in data.completion_ids for ids in samples]
    assert record["data/sampler_gap"] == pytest.approx(0.5 * np.mean(lengths), abs=1e-2)
    assert record["data/sampler_kl"] == pytest.approx(0.5 * np.mean(lengths), abs=1e-2)


def test_with_an_adapter_the_server_gets_the_sums(neox_lab, server, tmp_path):
    """GPT-NeoX: its checkpoint names differ from those of the live module."""
    _, run_dir = run(neox_lab, server, tmp_path, rounds=1, lora={"rank": 4})
    base = models.load_policy(str(neox_lab.policy))
    final = models.load_policy(str(run_dir.path))
    hashes = [models.weights_sha256(model.state_dict()) for model in (base, final)]
    assert server.loaded == hashes and hashes[0] != hashes[1]
    last = RoundStore(run_dir.path / "evaluations").read(1).data
    np.testing.assert_allclose(last.sampler_logprobs, last.policy_logprobs, atol=1e-3)


# -- the client ------------------------------------------------------------------------------------


def open_client(server, tmp_path, **changes):
    given = {"weight_sync": "folder", "sync_folder": str(tmp_path), "wait": 0, **changes}
    sampling = Sampling(max_new_tokens=5, temperature=0.8, samples_per_prompt=2)
    return VLLMServer(VLLM(url=server.url, retries=1, **given), sampling), sampling


def draw(client, sampling, server, lab, rows=(0, 1, 2), **changes):
    prompts = [np.array([5 + row, 9, 20 + row], np.int32) for row in rows]
    server.load(str(lab.policy))
    check_prompts(server.model, prompts, sampling)
    asked = sampling.model_copy(update=changes)
    return client.generate(
        SamplingRequest(prompts, asked, Streams(3), 0, eos_ids=[1], prompt_index=list(rows))
    )


def test_a_prompt_draws_the_same_wherever_it_stands(llama_lab, server, tmp_path):
    client, sampling = open_client(server, tmp_path)
    whole = draw(client, sampling, server, llama_lab)
    last = draw(client, sampling, server, llama_lab, rows=(2,))
    assert [ids.tolist() for ids in last.completion_ids[0]] == [
        ids.tolist() for ids in whole.completion_ids[2]
    ]
    drawn = {tuple(ids.tolist()) for samples in whole.completion_ids for ids in samples}
    assert len(drawn) == 6 and whole.logprobs.shape == whole.terminated.shape == (3, 2)
    greedy = draw(client, sampling, server, llama_lab, temperature=0.0)
    assert all(np.array_equal(*samples) for samples in greedy.completion_ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_token_ids": [2]}, "sampled from prompt"),
        ({"finish_reason": "stop"}, "not the policy's EOS"),
        ({"token_ids": [3, 4]}, "log-probabilities for 2 tokens"),
    ],
)
def test_an_answer_about_something_else_is_refused(llama_lab, server, tmp_path, change, message):
    client, sampling = open_client(server, tmp_path)
    server.spoil = lambda choice: {**choice, **change}
    with pytest.raises(ValueError, match=message):
        draw(client, sampling, server, llama_lab)


@pytest.mark.parametrize(
    ("info", "settings", "message"),
    [
        (None, {}, "VLLM_SERVER_DEV_MODE=1"),
        ({"model_config": {"logprobs_mode": "processed_logprobs"}}, {}, "--logprobs-mode raw"),
        ({"model_config": {}}, {"weight_sync": "nccl"}, "weight-transfer-config"),
    ],
)
def test_a_server_started_without_what_is_needed(server, tmp_path, info, settings, message):
    server.info = info
    with pytest.raises(ValueError, match=message):
        open_client(server, tmp_path, **settings)


def test_a_server_that_is_not_there(server, tmp_path):
    with pytest.raises(OutageError, match=r"sampling\.vllm\.url=.*no answer to /health"):
        VLLMServer(VLLM(url="http://127.0.0.1:9", wait=0), Sampling())


def test_nccl_without_vllm_names_the_other_way(server, tmp_path):
    server.info["weight_transfer_config"] = {"backend": "nccl"}
    client, _ = open_client(server, tmp_path, weight_sync="nccl")
    with pytest.raises(ValueError, match="weight_sync=folder"):
        client.load("a", lambda folder: None, lambda: [])


def test_trls_own_client_understands_this_server(llama_lab, server):
    """So what is spoken here is what TRL's generation speaks. Its constructor insists on vLLM."""
    import requests
    from trl.generation.vllm_client import VLLMClient

    server.load(str(llama_lab.policy))
    client = VLLMClient.__new__(VLLMClient)
    client.session, client.base_url, client.model = requests.Session(), server.url, "the-model"
    answer = client.generate([[5, 6], [7, 8, 9]], n=2, max_tokens=4, temperature=0.8)
    assert answer["prompt_ids"] == [[5, 6], [7, 8, 9]] and len(answer["completion_ids"]) == 4
    assert [len(row) for row in answer["logprobs"]] == [len(r) for r in answer["completion_ids"]]
    client.session.close()
