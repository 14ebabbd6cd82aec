"""Evaluation by hand, and that what a run reports leaves padding out."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from reprise.alignment import models, on_policy
from reprise.alignment.config import OnPolicy
from reprise.alignment.evaluate import evaluate, percentile_interval, rouge_l, win_rates
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions


def make_completions(rewards, ids=None, logprobs=None, shift=0.0):
    rewards = np.array(rewards, dtype=np.float32)
    count, n = rewards.shape
    ids = ids or [[[5]] * n] * count
    policy = np.zeros((count, n)) if logprobs is None else np.array(logprobs)
    return Completions(
        prompt_index=np.arange(count),
        prompt_ids=[np.array([2], dtype=np.int32)] * count,
        completion_ids=[[np.array(i, dtype=np.int32) for i in row] for row in ids],
        terminated=np.array([[i[-1] == 1 for i in row] for row in ids]),
        rewards=rewards,
        policy_logprobs=policy.astype(np.float32),
        reference_logprobs=(policy - shift).astype(np.float32),
        label_uniform=np.full(count, 0.5),
    )


def test_win_rates_compare_every_sample_with_every_sample():
    ours = np.array([[3.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
    initial = np.array([[2.0, 1.0], [1.0, 2.0], [2.0, 2.0]])
    # Prompt 0: 3>2, 3>1, 1<2, 1=1: (1 + 1 + 0 + 1/2) / 4.
    assert win_rates(ours, initial).tolist() == [0.625, 0.0, 0.5]
    assert win_rates(initial, ours).tolist() == [0.375, 1.0, 0.5]
    # Not the difference of means: one large win is one win.
    assert win_rates(np.array([[100.0, 0.0, 0.0]]), np.array([[1.0]])).tolist() == [1 / 3]


def test_a_policy_against_itself_is_even():
    rewards = np.random.default_rng(0).normal(size=(50, 3))
    assert win_rates(rewards, rewards) == pytest.approx(np.full(50, 0.5))


def test_rouge_l():
    assert rouge_l("Return the name of a file.", "Return the name of a file.") == 1
    assert rouge_l("apples", "Return the name.") == 0
    # Longest common subsequence "the ... sat": precision 2/3, recall 2/4.
    assert rouge_l("the cat sat", "the dog sat down") == pytest.approx(4 / 7)
    assert rouge_l("sat the", "the sat") == pytest.approx(1 / 2)
    assert rouge_l("returning names", "Returns name") == 1  # stemmed


def test_the_interval_is_the_percentiles_of_resampled_means():
    values = np.array([0.0, 1.0, 2.0])
    rows = np.array([[0, 0, 0], [0, 1, 2], [2, 2, 2]])  # means 0, 1, 2
    assert percentile_interval(values, rows) == pytest.approx([0.05, 1.95])


def test_the_interval_covers_the_mean_about_95_times_in_100():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        values = generator.normal(size=40)
        low, high = percentile_interval(values, generator.integers(40, size=(300, 40)))
        covered += low <= 0 <= high
    assert 0.89 <= covered / 300 <= 0.985


def test_every_measure_by_hand(neox_lab):
    tokenizer = models.load_tokenizer(str(neox_lab.policy))
    reference = tokenizer("get the value")["input_ids"]
    half = tokenizer("get apples")["input_ids"]
    eos = tokenizer.eos_token_id
    ids = [[[*reference, eos], half], [half, [eos]]]
    rewards = [[3.0, 5.0], [1.0, 1.0]]
    logprobs = [[-1.0, -2.0], [-3.0, -4.0]]
    ours = make_completions(rewards, ids, logprobs, shift=np.array([[1.0, 0.5], [0.5, 0.0]]))
    initial = make_completions([[4.0, 4.0], [1.0, 2.0]])
    found = evaluate(
        ours,
        initial,
        ["get the value", "get the value"],
        tokenizer,
        (1.0, 2.0),
        100,
        np.random.default_rng(0),
    )
    assert found["reward_mean"] == pytest.approx(np.mean([1.0, 2.0, 0.0, 0.0]))
    assert found["win_rate_vs_initial"] == pytest.approx(np.mean([0.5, 0.25]))
    assert found["kl_to_initial"] == pytest.approx(0.5)
    # "get apples" against "get the value": F1 of 1/2 and 1/3; EOS is not a word.
    assert found["rouge_l"] == pytest.approx(np.mean([1.0, 0.4, 0.4, 0.0]))
    lengths = [len(reference) + 1, len(half), len(half), 1]
    assert found["length_mean"] == pytest.approx(np.mean(lengths))
    assert found["tie_rate"] == 0.5
    assert found["no_eos_rate"] == 0.5
    # Two prompts: resampled means lie between the prompts' own.
    assert found["reward_ci95"] == pytest.approx([0.0, 1.5])
    assert found["win_rate_ci95"] == pytest.approx([0.25, 0.5])
    assert found["rouge_l_ci95"] == pytest.approx([0.2, 0.7])


def test_the_bootstrap_is_reproducible(neox_lab):
    tokenizer = models.load_tokenizer(str(neox_lab.policy))
    rewards = np.random.default_rng(3).normal(size=(30, 2))
    ours, initial = make_completions(rewards), make_completions(rewards[::-1])

    def intervals(seed):
        generator = np.random.default_rng(seed)
        return evaluate(ours, initial, ["a"] * 30, tokenizer, (0, 1), 100, generator)["reward_ci95"]

    assert intervals(0) == intervals(0)
    assert intervals(0) != intervals(1)


@pytest.mark.parametrize("lab_name", ["neox_lab", "llama_lab"])
def test_a_runs_kl_entropy_and_lengths_leave_padding_out(request, lab_name, tmp_path):
    """Reported numbers against one unpadded pass for each stored completion."""
    lab = request.getfixturevalue(lab_name)
    # Every hundredth or so token ends a completion, so that lengths differ.
    policy = models.load_policy(str(lab.policy))
    policy.generation_config.eos_token_id = [1, *range(200, 250)]
    policy.save_pretrained(tmp_path / "policy")
    models.load_tokenizer(str(lab.policy)).save_pretrained(tmp_path / "policy")
    settings = lab.config(rounds=1, policy=str(tmp_path / "policy"), train__learning_rate=0.02)
    config = TypeAdapter(OnPolicy).validate_python(settings)
    run_dir = RunDir(tmp_path / "run", experiment="alignment.on_policy", seed=3)
    result = on_policy.run(config, run_dir)

    def logprob(model, prompt, completion):
        ids = torch.from_numpy(np.concatenate([prompt, completion])).long()
        with torch.no_grad():
            logs = torch.log_softmax(model(ids[None]).logits[0], dim=-1)
        places = torch.arange(len(prompt), len(ids))
        return logs[places - 1, ids[places]].sum().item()

    final = models.load_policy(str(run_dir.path), attention="eager").eval()
    initial = models.load_policy(str(tmp_path / "policy"), attention="eager").eval()

    def totals(data, model):
        rows = zip(data.prompt_ids, data.completion_ids, strict=True)
        return np.array([[logprob(model, prompt, ids) for ids in both] for prompt, both in rows])

    after = RoundStore(run_dir.path / "evaluations").read(1).data
    lengths = [[len(ids) for ids in row] for row in after.completion_ids]
    assert len({length for row in lengths for length in row}) > 2, "ragged"
    kl = totals(after, final) - totals(after, initial)
    assert result["rounds"][1]["kl_to_initial"] == pytest.approx(kl.mean(), abs=1e-4)
    assert abs(kl).max() > 0.01
    assert result["rounds"][1]["length_mean"] == pytest.approx(np.mean(lengths))
    assert result["rounds"][0]["kl_to_initial"] == 0

    data = RoundStore(run_dir.rounds).read(0).data
    drawn = totals(data, initial)
    sizes = np.array([[len(ids) for ids in row] for row in data.completion_ids])
    [logged] = [r for r in run_dir.metrics() if "data/entropy" in r]
    assert logged["data/entropy"] == pytest.approx(-drawn.mean(), abs=1e-4)
    assert logged["data/entropy_per_token"] == pytest.approx(-drawn.sum() / sizes.sum(), abs=1e-4)
    assert logged["data/length_mean"] == pytest.approx(sizes.mean())
    assert logged["data/no_eos_rate"] == pytest.approx(np.mean(~data.terminated))
    moved = (drawn - totals(data, final)).mean()
    assert logged["update/kl_from_previous"] == pytest.approx(moved, abs=1e-4)
