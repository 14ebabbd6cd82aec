"""The reward model sees what it was trained on, and a reward that is not a number stops the run."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoConfig, AutoModelForSequenceClassification

from reprise.alignment import models, on_policy
from reprise.alignment.config import OnPolicy, Reward
from reprise.alignment.rewards.reward import Rewards
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.store import RoundStore
from tests.unit.foreign_reward import foreign_reward

LENGTHS = [(1, 1), (9, 4), (3, 7), (12, 2), (2, 2)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["neox_lab", "llama_lab"])
def lab(request):
    return request.getfixturevalue(request.param)


def open_reward(lab, folder=None, tokenizer=None, **settings):
    policy_tokenizer = tokenizer or models.load_tokenizer(str(lab.policy))
    config = Reward(model=str(folder or lab.reward), **settings)
    [(weight, model)] = Rewards(config, policy_tokenizer, "eager", CPU).terms
    assert weight == 1
    return model


def some_ids(seed=0):
    generator = np.random.default_rng(seed)
    return (
        [generator.integers(2, 290, size=row[side], dtype=np.int32) for row in LENGTHS]
        for side in (0, 1)
    )


def oracle(model, ids):
    """The head on the last hidden state of one unpadded sequence."""
    with torch.no_grad():
        hidden = model.base_model(torch.tensor(ids)[None].long()).last_hidden_state[0, -1]
        return (model.score.weight @ hidden).item()


# -- what is scored ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_padding_and_batching_do_not_change_a_score(lab, batch_size):
    reward = open_reward(lab, batch_size=batch_size)
    prompts, completions = some_ids()
    scores = reward.score(prompts, completions, [True] * 5, [None] * 5)
    expected = [
        oracle(reward.model, [*prompt, *completion])
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.ptp(scores) > 0.1


def test_with_a_shared_vocabulary_the_sampled_ids_are_scored_as_they_are(lab):
    """Ids that no tokenizer would give for that text; EOS counts where it is and nowhere else."""
    reward = open_reward(lab)
    assert reward.shares_vocabulary
    letters = reward.tokenizer.convert_tokens_to_ids(list("getaset"))
    word = reward.tokenizer("getaset")["input_ids"]
    assert len(word) < len(letters), "as text the two are the same"
    prompt = np.array([5, 6], dtype=np.int32)
    rows = [letters, word, [*word, reward.tokenizer.eos_token_id]]
    completions = [np.array(row, dtype=np.int32) for row in rows]
    scores = reward.score([prompt] * 3, completions, [False, False, True], [None] * 3)
    expected = [oracle(reward.model, [5, 6, *row]) for row in rows]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert len(set(np.round(scores, 3))) == 3


def test_missing_eos_penalty(lab):
    prompts, completions = some_ids()
    terminated = np.array([True, False, False, True, False])
    plain = open_reward(lab).score(prompts, completions, terminated, [None] * 5)
    config = Reward(model=str(lab.reward), missing_eos_penalty=2.5)
    policy_tokenizer = models.load_tokenizer(str(lab.policy))
    penalized = Rewards(config, policy_tokenizer, "eager", CPU).score(
        prompts, completions, terminated, [None] * 5
    )
    np.testing.assert_allclose(plain - penalized, [0, 2.5, 2.5, 0, 2.5], atol=1e-5)


# -- another vocabulary ------------------------------------------------------------------------


def other_reward(folder, closes_texts=False, template=None):
    """A reward model with another tokenizer, which may close every text with its EOS."""
    return foreign_reward(folder, template, *(("<eos>", "$A <eos>") if closes_texts else ()))


@pytest.mark.parametrize("closes_texts", [False, True])
def test_another_vocabulary_scores_the_text_with_eos_iff_terminated(
    neox_lab, tmp_path, closes_texts
):
    theirs = other_reward(tmp_path, closes_texts)
    ours = models.load_tokenizer(str(neox_lab.policy))
    reward = open_reward(neox_lab, tmp_path)
    assert not reward.shares_vocabulary
    prompt = np.array(ours("get the value:")["input_ids"], dtype=np.int32)
    body = ours(" of a file name")["input_ids"]
    ended = np.array([*body, ours.eos_token_id], dtype=np.int32)
    cut = np.array(body, dtype=np.int32)

    scores = reward.score([prompt] * 2, [ended, cut], [True, False], [None] * 2)
    text = "get the value: of a file name"
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids != [*prompt, *body]
    expected = [oracle(reward.model, [*ids, theirs.eos_token_id]), oracle(reward.model, ids)]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-2


def test_a_conversation_goes_through_the_reward_models_template_once(neox_lab, tmp_path):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<eos>"
    theirs = other_reward(tmp_path, template=template)
    ours = models.load_tokenizer(str(neox_lab.policy))
    reward = open_reward(neox_lab, tmp_path)
    # The policy's own rendering of the prompt must not reach the reward model.
    prompt = np.array(ours("<<USER>> get<<BOT>>")["input_ids"], dtype=np.int32)
    answer = np.array([*ours("the name")["input_ids"], ours.eos_token_id], dtype=np.int32)
    conversation = [{"role": "user", "content": "get"}]
    [score] = reward.score([prompt], [answer], [True], [conversation])
    ids = theirs("[user]get[assistant]the name<eos>")["input_ids"]
    assert score == pytest.approx(oracle(reward.model, ids), abs=1e-4)
    assert conversation == [{"role": "user", "content": "get"}]


# -- refusals ------------------------------------------------------------------------------------


def test_a_model_with_two_outputs_is_refused(neox_lab, tmp_path):
    config = AutoConfig.from_pretrained(neox_lab.reward, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    models.load_tokenizer(str(neox_lab.policy)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"reward\.model=.* has 2 outputs; .*num_labels=1"):
        open_reward(neox_lab, tmp_path)


def test_a_language_model_in_place_of_a_reward_model_is_refused(neox_lab, tmp_path):
    """Its head would be fresh random weights."""
    policy = models.load_policy(str(neox_lab.policy))
    policy.config.num_labels = 1
    policy.save_pretrained(tmp_path)
    models.load_tokenizer(str(neox_lab.policy)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weights do not fit the model: missing score\.weight"):
        open_reward(neox_lab, tmp_path)


def run(lab, path, **changes):
    config = TypeAdapter(OnPolicy).validate_python(lab.config(rounds=2, **changes))
    run_dir = RunDir(path, experiment="alignment.on_policy", seed=config.seed)
    return on_policy.run(config, run_dir), run_dir


def poisoned(lab, folder, token=None):
    """The laboratory's reward model with NaN in its head, or in the embedding of one token."""
    model = models.load_reward_model(str(lab.reward))
    with torch.no_grad():
        weight = model.score.weight if token is None else model.get_input_embeddings().weight[token]
        weight.fill_(torch.nan)
    model.save_pretrained(folder)
    models.load_tokenizer(str(lab.reward)).save_pretrained(folder)
    return str(folder)


def test_a_reward_that_is_nan_stops_the_run_before_it_is_stored(neox_lab, tmp_path):
    bad = poisoned(neox_lab, tmp_path / "bad")
    with pytest.raises(ValueError, match=r"rewards: nan at prompt \d+, sample 0; must be finite"):
        run(neox_lab, tmp_path / "run", reward__model=bad)
    assert not RoundStore(tmp_path / "run" / "evaluations").rounds()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_nan_in_a_later_round_names_its_prompt_and_loses_nothing_earlier(neox_lab, tmp_path):
    _, healthy = run(neox_lab, tmp_path / "healthy")
    rounds, evaluations = RoundStore(healthy.rounds), RoundStore(healthy.path / "evaluations")
    late = rounds.read(1).data

    def tokens(batch, rows=slice(None)):
        samples = [ids for samples in batch.completion_ids[rows] for ids in samples]
        return set(np.concatenate([*samples, *batch.prompt_ids]).tolist())

    # A token that the policy first samples in the second shard of round 1.
    before = tokens(rounds.read(0).data) | tokens(late, slice(0, 4))
    before |= tokens(evaluations.read(0).data) | tokens(evaluations.read(1).data)
    token = min(tokens(late, slice(4, 8)) - before)
    row, sample = next(
        (row, sample)
        for row in range(4, 8)
        for sample in (0, 1)
        if token in late.completion_ids[row][sample]
    )

    bad = poisoned(neox_lab, tmp_path / "bad", token)
    where = rf"rewards: nan at prompt {late.prompt_index[row]}, sample {sample};"
    with pytest.raises(ValueError, match=where):
        run(neox_lab, tmp_path / "run", reward__model=bad)

    stopped = RunDir(tmp_path / "run", experiment="alignment.on_policy", seed=3)
    assert RoundStore(stopped.rounds).rounds() == [0]
    assert np.array_equal(
        RoundStore(stopped.rounds).read(0).data.rewards, rounds.read(0).data.rewards
    )
    weights = [
        models.weights_sha256(models.load_policy(str(d.checkpoints / "round-00001")).state_dict())
        for d in (stopped, healthy)
    ]
    assert weights[0] == weights[1]

    def lines(run_dir):
        return [(r["round"], r.get("step"), r.get("loss")) for r in run_dir.metrics()]

    assert lines(stopped) == lines(healthy)[: len(lines(stopped))]
    assert [r["round"] for r in stopped.metrics() if "reward_mean" in r] == [0, 1]
    assert len(list((stopped.rounds / "round-00001").glob("*.parquet"))) == 1
