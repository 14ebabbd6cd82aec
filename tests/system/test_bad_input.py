"""What a user can get wrong: exit status 2, one message with the remedy, and nothing lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprise.rollout import store
from tests.system.kill_driver import KILLED, SMALL, unlike


@pytest.fixture(scope="module")
def damaged(llama_lab, tmp_path_factory):
    """Copies of the lab's models and data, each with one thing wrong."""
    folder = tmp_path_factory.mktemp("damaged")

    def weights(name, source, change):
        shutil.copytree(source, folder / name)
        tensors = load_file(folder / name / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})

    def settings(name, source, **changes):
        file = shutil.copytree(source, folder / name) / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    def row(name, **changes):
        file = shutil.copytree(llama_lab.data, folder / name) / "train.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[7].update(changes)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    weights("lacking", llama_lab.policy, lambda tensors: tensors.pop("model.norm.weight"))
    weights("nan", llama_lab.reward, lambda tensors: tensors["score.weight"].fill_(torch.nan))
    weights("infinite", llama_lab.reward, lambda tensors: tensors["score.weight"].fill_(3e38))
    settings("dropout", llama_lab.policy, attention_dropout=0.5)
    settings("two outputs", llama_lab.reward, id2label={"0": "a", "1": "b"})
    torn = shutil.copytree(llama_lab.policy, folder / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:500])
    mute = shutil.copytree(llama_lab.policy, folder / "no tokenizer")
    for file in mute.glob("token*"):
        file.unlink()
    row("long", prompt="get a value " * 20)
    row("empty", prompt="  ")
    row("null", prompt=None)
    row("unanswered", completion=None)
    garbled = shutil.copytree(llama_lab.data, folder / "garbled") / "train.jsonl"
    garbled.write_text('{"prompt": "a", \n')
    return folder


# What is changed ("@name": a folder of `damaged`), and what the message has to say.
REFUSED = {
    "keys": (
        {"sampling__temprature": 1.0, "rouns": 3, "batch_size": "four", "train__learning_rat": 1},
        [
            "4 problems",
            "sampling.temprature = 1.0: unknown key; did you mean 'sampling.temperature'",
            "rouns = 3",
            "batch_size = 'four'",
            "did you mean 'learning_rate'",
        ],
    ),
    "policy": ({"policy": "/nowhere/p"}, ["policy='/nowhere/p' is neither a folder", "check"]),
    "policy name": ({"policy": "no/such"}, ["policy='no/such'", "hf download no/such"]),
    "reward": ({"reward__model": "no/such"}, ["reward.model='no/such'", "hf download"]),
    "data": ({"data__name": "/nowhere/d"}, ["data.name='/nowhere/d'", "check the path"]),
    "data name": ({"data__name": "no/such"}, ["data.name='no/such'", "--repo-type dataset"]),
    "split": ({"evaluation__split": "dev"}, ["no split 'dev'; it has test, train"]),
    "column": ({"data__prompt_column": "q"}, ["no column 'q'", "it has prompt, completion"]),
    "outputs": ({"reward__model": "@two outputs"}, ["has 2 outputs; a reward model has one"]),
    "lacking": ({"policy": "@lacking"}, ["policy=", "missing model.norm.weight"]),
    "torn": ({"policy": "@torn"}, ["policy=", "cannot be loaded", "should be whole"]),
    "tokenizer": ({"policy": "@no tokenizer"}, ["no tokenizer can be loaded"]),
    "long": ({"data__name": "@long"}, ["prompt 7 has 81 tokens", "on_long_prompt"]),
    "empty": ({"data__name": "@empty"}, ["the prompt of row 7 is empty"]),
    "null": ({"data__name": "@null"}, ["row 7 has None as 'prompt'", "drop the row"]),
    "unanswered": ({"data__name": "@unanswered"}, ["row 7 has None as 'completion'"]),
    "garbled": ({"data__name": "@garbled"}, ["train.jsonl cannot be read as json"]),
    "batch": ({"batch_size": 16}, ["batch_size=16 exceeds the 12 pairs", "prompts_per_round"]),
    "micro-batch": ({"train__per_device_train_batch_size": 3}, ["batch_size=4 must be a multiple"]),
    "round": ({"prompts_per_round": 41}, ["prompts_per_round=41 exceeds the 40 prompts"]),
    "held out": ({"evaluation__prompts": 41}, ["evaluation.prompts=41 exceeds the 40 prompts"]),
    "positions": ({"sampling__max_new_tokens": 200}, ["exceed the model's 128 positions"]),
    "schedule": ({"train__lr_scheduler_type": "cosin"}, ["cosin is not a valid SchedulerType"]),
    "evaluation": ({"train__eval_strategy": "steps"}, ["train.eval_strategy='steps'"]),
    "replay": (
        {"experiment": "alignment.offline", "replay": "/nowhere/r"},
        ["replay='/nowhere/r', replay_round=0: no such finished round"],
    ),
}


@pytest.fixture
def run(running, llama_lab, damaged, tmp_path):
    """Run the lab's config with changes, in `tmp_path/run` unless told."""

    def run(out=tmp_path / "run", kill=None, **changes):
        for key, value in changes.items():
            if isinstance(value, str) and value.startswith("@"):
                changes[key] = str(damaged / value[1:])
        config = tmp_path / "config.json"
        config.write_text(json.dumps(llama_lab.config(**{**SMALL, **changes})))
        return running.run(config, out, kill=kill)

    return run


def refused(result, parts):
    assert result.status == 2, result.said
    assert "Traceback" not in result.said
    message = result.said.partition("error: ")[2]
    for part in parts:
        assert part in message


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_sampled(case, run, tmp_path):
    changes, parts = REFUSED[case]
    refused(run(**changes), parts)
    # The corrected config may have the directory.
    assert not (tmp_path / "run").exists() or [*(tmp_path / "run").iterdir()] == [
        tmp_path / "run/.lock"
    ]


@pytest.mark.parametrize("reward", ["@nan", "@infinite"])
def test_a_reward_that_is_no_number_is_never_stored(reward, run, tmp_path):
    result = run(reward__model=reward)
    refused(result, ["rewards: ", "at prompt", "must be finite"])
    assert not list((tmp_path / "run").rglob("shard-*"))


def test_a_policy_with_dropout_trains_without_it(run, tmp_path):
    """Otherwise ln pi at the first step would not be the stored ln pi_k."""
    assert run(policy="@dropout").status == 0


def test_training_that_diverges_says_so(run, tmp_path):
    result = run(train__learning_rate=1e30)
    assert result.status == 1
    assert "the loss is not finite in round 1" in result.said and "Traceback" not in result.said
    assert not (tmp_path / "run/summary.json").exists()


# -- on resuming -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(running, llama_lab, tmp_path_factory):
    """A run with one shard of D_1 written, its config, and an uninterrupted run."""
    folder = tmp_path_factory.mktemp("interrupted")
    config = folder / "config.json"
    config.write_text(json.dumps(llama_lab.config(**SMALL)))
    # Evaluation and D_0, evaluation and the first half of D_1: one and two shards, twice.
    result = running.run(config, folder / "run", kill="RoundWriter.write#5:after")
    assert result.status == KILLED
    assert (folder / "run/rounds/round-00001/shard-00000.parquet").exists()
    assert running.run(config, folder / "reference").status == 0
    return config, folder / "run", folder / "reference"


def lose_a_tensor(out):
    file = out / "checkpoints/round-00001/model.safetensors"
    tensors = load_file(file)
    tensors.pop("lm_head.weight")
    save_file(tensors, file, metadata={"format": "pt"})


def truncate(out):
    file = out / "rounds/round-00001/shard-00000.parquet"
    file.write_bytes(file.read_bytes()[:-100])


def flip(out):
    file = out / "rounds/round-00001/shard-00000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def flip_held_out(out):
    file = out / "evaluations/round-00000/shard-00000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def flip_an_earlier_round(out):
    file = out / "rounds/round-00000/shard-00001.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def newer_schema(out):
    file = out / "evaluations/round-00000/manifest.json"
    manifest = {**json.loads(file.read_text()), "schema_version": store.SCHEMA_VERSION + 1}
    file.write_text(json.dumps(manifest))


DAMAGE = [
    (lose_a_tensor, ["round-00001", "missing lm_head.weight"]),
    (truncate, ["shard-00000.parquet: torn or altered", "delete it to have it made again"]),
    (flip, ["shard-00000.parquet: torn or altered"]),
    (flip_held_out, ["evaluations/round-00000/shard-00000.parquet: torn or altered"]),
    (flip_an_earlier_round, ["rounds/round-00000/shard-00001.parquet: torn or altered"]),
    (newer_schema, [f"schema version {store.SCHEMA_VERSION + 1}, this code reads"]),
]


@pytest.mark.parametrize(
    ("damage", "parts"), DAMAGE, ids=lambda value: getattr(value, "__name__", "")
)
def test_damage_is_refused_on_resuming(damage, parts, running, interrupted, tmp_path):
    config, killed, _ = interrupted
    out = shutil.copytree(killed, tmp_path / "run")
    damage(out)
    before = {path: path.read_bytes() for path in out.rglob("*.parquet")}
    refused(running.run(config, out), parts)
    assert {path: path.read_bytes() for path in out.rglob("*.parquet")} == before
    assert not (out / "summary.json").exists()


def test_the_remedy_for_a_torn_shard_works(running, interrupted, tmp_path):
    config, killed, reference = interrupted
    out = shutil.copytree(killed, tmp_path / "run")
    truncate(out)
    assert running.run(config, out).status == 2
    (out / "rounds/round-00001/shard-00000.parquet").unlink()
    assert running.run(config, out).status == 0
    assert unlike(out, reference) == []


def test_the_directory_of_another_config_is_refused(run, interrupted):
    _, killed, _ = interrupted
    before = {path: path.stat().st_mtime_ns for path in Path(killed).rglob("*")}
    result = run(out=killed, objective__gamma=0.2, sampling__top_p=0.9)
    refused(result, ["belongs to another config", "objective.gamma: 0.2 here, 0.1 there"])
    assert "sampling.top_p" in result.said and "--out" in result.said
    assert {path: path.stat().st_mtime_ns for path in Path(killed).rglob("*")} == before
