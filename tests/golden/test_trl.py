"""The sigmoid loss and its gradients against a stock `trl.DPOTrainer`, on the same token ids."""

import copy
import warnings

import datasets
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from reprise.alignment import models
from reprise.alignment.config import OnPolicy
from reprise.alignment.logprobs import score_completions
from reprise.alignment.pairs import make_targets
from reprise.alignment.training.update import RoundData, RoundTrainer
from reprise.rollout.run.run_dir import RunDir
from reprise.rollout.types import Pairs

# TRL 1.16 asks transformers 5.23 by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

GAMMA = 0.3
TEXTS = [
    ("get a file:", " read the item of a list", " set"),
    ("write the name:", " the", " value to path list name"),
    ("set:", " get the value of a file to the path", " item item item"),
    ("list of the path to a file:", " name", " name name"),
    ("read a value of path:", " write a name to the list", " a a a the"),
    ("item:", " of", " to"),
]
# In every other pair the second completion is the one with the higher reward.
FIRST_IS_CHOSEN = np.array([True, False, True, True, False, True])


@pytest.fixture(scope="module", params=["neox_lab", "llama_lab"])
def lab(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def stock(lab, tmp_path_factory):
    """A real DPOTrainer: its tokenization, its collator, its loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TRL warns about at import is not ours to fix
        from trl import DPOConfig, DPOTrainer

    policy = models.load_policy(str(lab.policy), attention="eager")
    reference = perturbed(policy, seed=7)
    columns = zip(("prompt", "chosen", "rejected"), zip(*TEXTS, strict=True), strict=True)
    return DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            beta=GAMMA,
            loss_type="sigmoid",
            max_length=None,
            per_device_train_batch_size=len(TEXTS),
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=datasets.Dataset.from_dict({name: list(text) for name, text in columns}),
        processing_class=models.load_tokenizer(str(lab.policy)),
    )


def perturbed(model, seed):
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return twin


def rows_of(stock):
    """Token ids as the stock trainer made them; two rejected completions lose their EOS."""
    rows = [dict(row) for row in stock.train_dataset]
    for row in (1, 4):
        rows[row]["rejected_ids"] = rows[row]["rejected_ids"][:-1]
    return rows


def our_trainer(lab, rows, policy, reference, tmp_path, labels, uniform):
    """Our trainer on the same ids; rewards and the label's uniform say which one won."""
    objective = {"name": "dpo", "gamma": GAMMA, "reference": "initial", "labels": labels}
    settings = lab.config(
        objective=objective,
        batch_size=len(rows),
        train={"per_device_train_batch_size": len(rows)},
    )
    config = TypeAdapter(OnPolicy).validate_python(settings)

    def ids(row, first):
        name = "chosen_ids" if FIRST_IS_CHOSEN[row] == first else "rejected_ids"
        return np.array(rows[row][name], dtype=np.int32)

    prompts = [np.array(row["prompt_ids"], dtype=np.int32) for row in rows]
    first, second = ([ids(row, side) for row in range(len(rows))] for side in (True, False))
    tokenizer = models.load_tokenizer(str(lab.policy))

    def logprobs(model):
        pad_id = tokenizer.pad_token_id
        scores = score_completions(model.eval(), prompts * 2, first + second, pad_id, 5)
        return scores.reshape(2, -1).T.copy()

    chosen_first = FIRST_IS_CHOSEN[:, None]
    pairs = Pairs(
        prompt_index=np.arange(len(rows)),
        prompt_ids=prompts,
        first_ids=first,
        second_ids=second,
        terminated=np.stack([[i[-1] == 1 for i in first], [i[-1] == 1 for i in second]], axis=1),
        rewards=np.where(chosen_first, [[2.0, 1.0]], [[1.0, 2.0]]).astype(np.float32),
        policy_logprobs=logprobs(policy),
        reference_logprobs=logprobs(reference),
        label_uniform=uniform,
        weight=np.ones(len(rows), dtype=np.float32),
    )
    run_dir = RunDir(tmp_path / "run", experiment="alignment.on_policy", seed=0)
    targets = make_targets(pairs, config.objective, GAMMA)
    order = np.arange(len(rows))
    return RoundTrainer(policy, tokenizer, RoundData(pairs, targets, order), config, run_dir, 1, 0)


@pytest.mark.parametrize("labels", ["ranked", "sampled"])
def test_loss_and_gradients_equal_the_stock_trainers(lab, stock, tmp_path, labels):
    rows = rows_of(stock)
    policy = models.load_policy(str(lab.policy), attention="eager")
    reference = perturbed(policy, seed=7)
    # Sampled labels: P(the one of higher reward wins) = sigmoid(1) = .73; these draws say it does.
    uniform = np.where(FIRST_IS_CHOSEN, 0.5, 0.6)
    ours = our_trainer(lab, rows, policy, reference, tmp_path, labels, uniform)

    theirs = stock.compute_loss(stock.model, stock.data_collator(rows))
    theirs.backward()
    loss = ours.compute_loss(
        policy, ours._collate(list(range(len(rows)))), num_items_in_batch=len(rows)
    )
    loss.backward()

    assert abs(theirs.item() - np.log(2)) > 0.01, "policy and reference must differ"
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    expected = {name: parameter.grad for name, parameter in stock.model.named_parameters()}
    largest = max(gradient.norm() for gradient in expected.values())
    assert largest > 1e-2
    for name, parameter in policy.named_parameters():
        gap = (parameter.grad - expected[name]).norm()
        # A key's bias shifts every score alike: its gradient is rounding around zero.
        assert gap <= 1e-5 * max(expected[name].norm(), 1e-3 * largest), name
    stock.model.zero_grad()


def test_the_stock_trainer_sees_our_ids(lab, stock):
    """Both sides do end completions in EOS, and share vocabulary and padding."""
    rows = rows_of(stock)
    assert all(row["chosen_ids"][-1] == 1 for row in rows)
    assert [row["rejected_ids"][-1] == 1 for row in rows] == [True, False, True, True, False, True]
    lengths = {len(row["prompt_ids"]) for row in rows}
    assert len(lengths) > 3, "ragged prompts"
