"""Pushing over HTTP, to a server that speaks the Hub's API, fails, and forgets nothing."""

import base64
import http.server
import json
import threading
from collections import Counter

import pytest

from reprise.alignment.judging.config import AlpacaSuite
from reprise.launch import strict_yaml
from reprise.launch.cli.main import main
from reprise.launch.evaluation.judging import _answers
from reprise.launch.hub.publisher import missing_rounds
from reprise.launch.hub.push import push
from reprise.launch.run import execute
from reprise.rollout.run.remote import OutageError

# The client library's own way of sending bytes, deprecated by the HTTP library below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_aTokenThatMustNotBeSeenAnywhere"


class Hub(http.server.ThreadingHTTPServer):
    """create, validate-yaml, preupload, LFS batch and PUT, commit, tag; files by repository."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.files, self.tags, self.kinds = {}, {}, {}, {}
        self.seen, self.drops, self.statuses = Counter(), Counter(), {}
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        self.do_POST()

    def do_POST(self):
        hub, path = self.server, self.path.split("?")[0]
        [step] = [s for s in STEPS if s in path]
        length = int(self.headers.get("Content-Length", 0))
        hub.seen[step] += 1
        if hub.drops[step] > 0:  # in the middle of the body, as when a cable is pulled
            hub.drops[step] -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length)
        status = hub.statuses.get(step)
        if step != "/upload/" and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 401
        if status is not None:
            self.answer({"error": f"not with {self.headers['Authorization']}"}, status)
            return
        getattr(self, STEPS[step])(path, body)

    def create(self, path, body):
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        self.server.kinds[name] = wanted.get("type", "model"), wanted.get("visibility")
        self.answer({"url": f"{self.server.url}/{name}"})

    def validate(self, path, body):
        strict_yaml.read(json.loads(body)["content"].split("---")[1])
        self.answer({"errors": [], "warnings": []})

    def preupload(self, path, body):
        large = (".safetensors", ".parquet")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, path, body):
        objects = []
        for entry in json.loads(body)["objects"]:
            href = f"{self.server.url}/upload/{entry['oid']}?X-Amz-Signature=signed-{TOKEN[3:]}"
            actions = {"actions": {"upload": {"href": href}}}
            objects.append(entry | ({} if entry["oid"] in self.server.objects else actions))
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, path, body):
        self.server.objects[path.rsplit("/", 1)[1]] = body
        self.answer({})

    def commit(self, path, body):
        repo = "/".join(path.split("/")[3:5])
        files = self.server.files.setdefault(repo, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        oid = f"{self.server.seen['/commit/']:040x}"
        url = f"{self.server.url}/{repo}/commit/{oid}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": url})

    def tag(self, path, body):
        self.server.tags[json.loads(body)["tag"]] = path.rsplit("/", 1)[1]
        self.answer({})

    def answer(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


STEPS = {
    "/repos/create": "create",
    "/validate-yaml": "validate",
    "/preupload/": "preupload",
    "/lfs/objects/batch": "batch",
    "/upload/": "upload",
    "/commit/": "commit",
    "/tag/": "tag",
}


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # read once, at import
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def run(lab, folder, **changes):
    file = folder.with_suffix(".yaml")
    file.write_text(strict_yaml.write(lab.config(rounds=2, **changes)))
    execute(file, out=folder)
    return json.loads((folder / "summary.json").read_text())


SHORT = {"sampling": {"samples_per_prompt": 1, "temperature": 0.0, "max_new_tokens": 8}}


def told(folder):
    lines = (folder / "pushes.jsonl").read_text().splitlines()
    return [(r["round"], r["status"]) for r in map(json.loads, lines)]


def reprise(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture(scope="module")
def finished(llama_lab, tmp_path_factory):
    """A run without any Hub, and its summary."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    return folder, run(llama_lab, folder)


def test_a_model_with_its_card(hub, finished, capsys):
    folder, summary = finished
    assert reprise("push", folder, "me/policy", "--private") == 0
    assert hub.kinds["me/policy"] == ("model", "private")
    files = hub.files["me/policy"]
    weights = (folder / "checkpoints/final/model.safetensors").read_bytes()
    assert files["model.safetensors"] == weights
    assert {"config.json", "tokenizer.json", "reprise/config.yaml"} <= files.keys()
    card = files["README.md"].decode()
    head = strict_yaml.read(card.split("---")[1])
    assert head["tags"] == ["reprise", "alignment.on_policy", "dpo"]
    assert head["library_name"] == "transformers"
    measured = summary["rounds"][-1]
    assert f"| 2 | {measured['reward_mean']:.4g} | {measured['win_rate_vs_initial']:.4g} |" in card
    provenance = json.loads((folder / "provenance.json").read_text())
    for expected in (
        summary["weights_sha256"],
        summary["config_sha256"],
        provenance["code_revision"],
        "reprise run pushed/reprise/config.yaml",
        "learning_rate: 0.003",
    ):
        assert expected in card
    assert "pushed: http" in capsys.readouterr().err


def test_rounds_are_a_data_set_that_loads(hub, finished, tmp_path):
    folder, _ = finished
    push(folder, "me/rounds", "rounds")
    assert hub.kinds["me/rounds"][0] == "dataset"
    for name, content in hub.files["me/rounds"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    from datasets import load_dataset

    head = strict_yaml.read((tmp_path / "README.md").read_text().split("---")[1])
    assert [part["config_name"] for part in head["configs"]] == ["round-00000", "round-00001"]
    loaded = load_dataset(str(tmp_path), "round-00001", cache_dir=str(tmp_path / "cache"))
    assert len(loaded["train"]) == 8


def test_distilled_data(hub, tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "config.yaml").write_text("experiment: distill.regression\nseed: 1\n")
    (tmp_path / "summary.json").write_text('{"mse": 0.25, "seed": 1, "config_sha256": "c0ffee"}')
    for name in ("points", "cartpole/shard-00000", "cartpole/shard-00001"):
        file = tmp_path / "distilled" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table({"x": [1.0, 2.0]}), file)
    push(tmp_path, "me/distilled")  # what there is to push is found
    files = hub.files["me/distilled"]
    head = strict_yaml.read(files["README.md"].decode().split("---")[1])
    assert {part["config_name"]: part["data_files"] for part in head["configs"]} == {
        "points": "data/points.parquet",
        "cartpole": "data/cartpole/*.parquet",
    }
    assert b"| mse | 0.25 |" in files["README.md"] and b"c0ffee" in files["README.md"]
    assert "data/cartpole/shard-00001.parquet" in files


def test_a_dropped_connection_is_taken_up_again(hub, finished):
    folder, _ = finished
    hub.drops["/upload/"] = 1
    push(folder, "me/dropped")
    weights = (folder / "checkpoints/final/model.safetensors").read_bytes()
    assert hub.files["me/dropped"]["model.safetensors"] == weights
    assert hub.seen["/upload/"] == 2


def test_what_was_sent_is_not_sent_again(hub, finished):
    folder, _ = finished
    hub.statuses["/commit/"] = 403  # the weights arrive, the commit does not
    with pytest.raises(OutageError, match="the token may not write to me/again") as refused:
        push(folder, "me/again")
    assert TOKEN not in str(refused.value) and TOKEN[3:] not in str(refused.value)
    assert "me/again" not in hub.files, "a repository never shows half of a push"
    hub.statuses.clear()
    sent = hub.seen["/upload/"]
    push(folder, "me/again")
    assert hub.seen["/upload/"] == sent
    assert "model.safetensors" in hub.files["me/again"]


def test_each_round_is_pushed_while_the_run_goes(hub, llama_lab, tmp_path, finished):
    folder = tmp_path / "run"
    summary = run(llama_lab, folder, report__push="me/live")
    assert summary["weights_sha256"] == finished[1]["weights_sha256"]
    assert summary["config_sha256"] == finished[1]["config_sha256"]
    assert [entry for entry in told(folder) if entry[1] == "pushed"] == [
        (1, "pushed"),
        (2, "pushed"),
        (None, "pushed"),
    ]
    assert sorted(hub.tags) == ["round-00001", "round-00002"]
    assert hub.kinds["me/live"] == ("model", "private")
    assert b"| 2 |" in hub.files["me/live"]["README.md"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks it
def test_the_rounds_of_a_lora_run_are_adapters(hub, llama_lab, tmp_path):
    folder = tmp_path / "run"
    lora = {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    run(llama_lab, folder, lora=lora)
    push(folder, "me/lora", round=1)
    files = hub.files["me/lora"]
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    head = strict_yaml.read(files["README.md"].decode().split("---")[1])
    assert head["library_name"] == "peft"
    assert hub.tags["round-00001"] and files["README.md"].startswith(b"---")
    push(folder, "me/merged")
    assert "model.safetensors" in hub.files["me/merged"]
    # An adapter answers as the base and it together do.
    questions = ["get the:", "set a file:", "list of path", "write the item:"]
    adapter, merged = (
        _answers(
            AlpacaSuite(judge={"model": "j"}, **SHORT),
            str(folder / "checkpoints" / name),
            questions,
        )
        for name in ("round-00002", "final")
    )
    assert adapter == merged


def test_a_run_outlives_an_expired_token(hub, llama_lab, tmp_path, finished, capsys, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setenv("HF_TOKEN", TOKEN + "Expired")
    summary = run(llama_lab, folder, report__push="me/late")
    assert summary["weights_sha256"] == finished[1]["weights_sha256"]
    assert "me/late" not in hub.files
    assert missing_rounds(folder, "me/late") == [1, 2]
    errors = capsys.readouterr().err
    assert "the Hub does not accept the token" in errors and "hf auth login" in errors
    assert reprise("push", folder) == 1
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert reprise("push", folder) == 0
    assert missing_rounds(folder, "me/late") == [] and told(folder)[-1] == (None, "pushed")
    kept = "".join(f.read_text(errors="replace") for f in folder.rglob("*") if f.is_file())
    assert TOKEN not in errors + capsys.readouterr().err + kept


def test_a_hub_that_is_not_there(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert reprise("push", folder, "me/nowhere") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: the Hub could not be reached") and "Traceback" not in errors


def test_what_cannot_be_pushed(finished, tmp_path, capsys):
    folder, _ = finished
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    for arguments, problem in (
        ((folder, "no-owner"), "write owner/name"),
        ((folder,), "names no repository (report.push)"),
        ((folder, "me/x", "--what", "adapter"), "has no adapter in checkpoints"),
        ((folder, "me/x", "--round", "7"), "has no model in checkpoints/round-00007"),
        ((folder, "me/x", "--what", "distilled"), "has no distilled data"),
        ((tmp_path, "me/x"), "pytorch_model.bin: a pickle can run code"),
        ((tmp_path, "me/x", "--what", "rounds"), "holds no rounds"),
    ):
        assert reprise("push", *arguments) == 2
        assert problem in capsys.readouterr().err


def test_a_policy_of_another_family_is_shown_and_pushed_too(hub, tmp_path):
    folder = tmp_path / "run"
    changes = ["total_steps=2048", "copies=4", "report.push=me/pqn", "evaluation.episodes=2"]
    execute("quickstart/pqn_cartpole", changes, folder)
    assert {"network.json", "model.safetensors", "README.md"} <= set(hub.files["me/pqn"])
    card = hub.files["me/pqn"]["README.md"].decode()
    assert "pipeline_tag: reinforcement-learning" in card and "transformers\npipeline" not in card
    assert (folder / "tensorboard").is_dir()
    [told] = [json.loads(line) for line in (folder / "pushes.jsonl").read_text().splitlines()]
    assert told["status"] == "pushed" and told["round"] is None
