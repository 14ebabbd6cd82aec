"""Supervised and reward training on tiny data: they learn, they resume, batches may be split."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reprise.alignment import models, sft
from reprise.alignment.config import SFT, RewardTraining
from reprise.alignment.rewards import training as reward_training
from reprise.rollout.run.run_dir import RunDir

WORDS = ["table", "reader", "garden", "winter", "copper", "river", "button", "candle"]
MODULES = {
    "alignment.sft": (SFT, sft),
    "alignment.reward_training": (RewardTraining, reward_training),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # other thread counts may add up in another order
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The answer is the prompt's word, so that only a model that reads its prompt can know it."""
    folder = tmp_path_factory.mktemp("words")
    rows = [{"prompt": f"Name: {word}\nSay it:", "completion": f" {word}."} for word in WORDS]
    for name, times in (("train", 2), ("test", 1)):
        lines = [json.dumps(row) + "\n" for row in rows * times]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    """The right word is preferred to another one: relevance, and nothing else, decides."""
    folder = tmp_path_factory.mktemp("preferences")
    rows = [
        {"prompt": f"Name: {word}\nSay it:", "chosen": f" {word}.", "rejected": f" {other}."}
        for word in WORDS
        for other in WORDS
        if word != other
    ]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def supervised(data, **changes):
    settings = {
        "experiment": "alignment.sft",
        "data": {"name": str(data)},
        "from_scratch": {
            "layers": 1,
            "width": 32,
            "heads": 2,
            "feedforward": 64,
            "vocabulary": 330,
        },
        "heldout": 16,
        "max_completion_tokens": 8,
        "attention": "eager",
        "epochs": 6,
        "batch_size": 8,
        "train": {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1},
    }
    train = {**settings["train"], **changes.pop("train", {})}
    return {**settings, **changes, "train": train}


def execute(settings, out):
    """Run a config and return its summary."""
    config_type, module = MODULES[settings["experiment"]]
    run_dir = RunDir(out, experiment=settings["experiment"], seed=settings.get("seed", 0))
    summary = module.run(config_type(**settings), run_dir)
    run_dir.finish(**summary)
    return summary


def test_a_model_from_scratch_learns_to_use_its_prompt(data, tmp_path):
    summary = execute(supervised(data, epochs=40), tmp_path / "run")
    assert summary["heldout_loss"] < 0.1
    assert summary["rouge_l_greedy"] > 0.95 and summary["rouge_l_shuffled_greedy"] < 0.2
    tokenizer = models.load_tokenizer(str(tmp_path / "run"))
    policy = models.load_policy(str(tmp_path / "run"))
    assert models.weights_sha256(policy.state_dict()) == summary["weights_sha256"]
    ids = tokenizer("Name: winter\nSay it:", return_tensors="pt").input_ids
    written = policy.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )
    assert tokenizer.decode(written[0, ids.shape[1] :]) == " winter.<eos>"
    assert not (tmp_path / "run" / "checkpoints" / "training").exists()


def test_the_prompt_carries_no_loss(data):
    """The loss of a batch is that of its completions' tokens, recomputed here without padding."""
    config = SFT(**supervised(data))
    rows = sft.load_prompts(config.data)
    tokenizer = models.train_tokenizer(rows["prompt"][:], 330)
    policy = models.new_policy(config.from_scratch, tokenizer, 0)
    examples = sft.encode(rows, tokenizer, config)
    wanted = tokens = 0.0
    for prompt, answer in zip(examples.prompt_ids, examples.completion_ids, strict=True):
        ids = torch.tensor([[*prompt.tolist(), *answer.tolist()]])
        logprobs = policy(input_ids=ids).logits.log_softmax(-1)[0]
        for place in range(len(prompt), ids.shape[1]):
            wanted -= logprobs[place - 1, ids[0, place]].item()
            tokens += 1
    assert all(answer[-1] == tokenizer.eos_token_id for answer in examples.completion_ids)
    measured = sft.heldout_loss(policy, examples, tokenizer.pad_token_id)
    assert measured == pytest.approx(wanted / tokens, rel=1e-5)


def test_accumulation_changes_nothing_but_rounding(data, tmp_path):
    """Answers differ in length, so that a mean of micro-batch means would differ."""
    weights = []
    for size in (8, 2):
        settings = supervised(data, epochs=2, train={"per_device_train_batch_size": size})
        execute(settings, tmp_path / str(size))
        weights.append(models.load_policy(str(tmp_path / str(size))).state_dict())
    assert models.weights_sha256(weights[0]) != models.weights_sha256(weights[1])
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-4, rtol=1e-3, msg=name)


KILL = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from reprise.alignment.training import supervised
sys.path.insert(0, sys.argv[1])
from test_sft import execute

step = supervised.SupervisedTrainer.training_step
count = 0

def counted(self, *args, **kwargs):
    global count
    count += 1
    if count == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)

supervised.SupervisedTrainer.training_step = counted
execute(json.loads(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.parametrize(("architecture", "optimizer"), [("gpt_neox", "muon"), ("llama", "adamw")])
def test_killed_training_resumes_to_the_same_bits(data, tmp_path, architecture, optimizer, capfd):
    settings = supervised(data, optimizer=optimizer, train={"save_steps": 4, "bf16": True})
    settings["from_scratch"] = {**settings["from_scratch"], "architecture": architecture}
    wanted = execute(settings, tmp_path / "whole")
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", KILL, str(Path(__file__).parent), json.dumps(settings)]
    root = Path(__file__).parents[2]
    result = subprocess.run([*command, str(killed), "11"], cwd=root, check=False)
    assert result.returncode == -9 and not (killed / "summary.json").exists()
    capfd.readouterr()
    assert execute(settings, killed) == wanted
    assert "continuing after step 8 of 12" in capfd.readouterr().err
    lines = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "killed")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 12


def test_a_reward_model_learns_relevance_and_reads_what_it_was_trained_on(
    data, preferences, tmp_path
):
    execute(supervised(data, epochs=40), tmp_path / "policy")
    settings = supervised(preferences, experiment="alignment.reward_training", epochs=30)
    del settings["from_scratch"]
    settings |= {"model": str(tmp_path / "policy"), "heldout": 56}
    settings["train"]["learning_rate"] = 4e-3
    summary = execute(settings, tmp_path / "reward")
    assert summary["accuracy"] > 0.95 and summary["heldout_loss"] < 0.3
    model = models.load_reward_model(str(tmp_path / "reward"))
    tokenizer = models.load_tokenizer(str(tmp_path / "reward"))

    def reward(word, answer):
        text = f"Name: {word}\nSay it: {answer}."
        ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        return model(input_ids=torch.tensor([ids])).logits.item()

    right = [
        reward(word, word) > reward(word, other)
        for word in WORDS
        for other in WORDS
        if word != other
    ]
    assert sum(right) / len(right) == pytest.approx(summary["accuracy"])


def test_made_preferences_report_every_kind(data, tmp_path):
    execute(supervised(data, epochs=2), tmp_path / "policy")
    settings = supervised(data, experiment="alignment.reward_training", epochs=1)
    del settings["from_scratch"]
    settings |= {
        "model": str(tmp_path / "policy"),
        "corruptions": {"other": 0.5, "related": 0, "unfinished": 0, "sampled": 0.5},
    }
    summary = execute(settings, tmp_path / "reward")
    assert {"accuracy", "accuracy_other", "accuracy_sampled"} <= summary.keys()
    assert "accuracy_unfinished" not in summary
