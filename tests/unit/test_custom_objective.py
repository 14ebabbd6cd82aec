"""A loss of one's own, named by its import path, in the loop that trains the four of the paper."""

import json

import pytest
import torch

from reprise.alignment.objectives import centre_of, loss_function, pair_losses
from reprise.launch.run import execute

REBEL = {"name": "rebel", "gamma": 0.5, "reference": "previous"}
CODE = """
import torch

def squared(y, z):
    return (y - z).square()

def hinge(y, z):
    return torch.relu(1 - y * z.sign())

def one_number(y, z):
    return (y - z).square().mean()

def alone(y):
    return y
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)


def custom(name, **changes):
    return {**REBEL, "name": "custom", "function": f"my_losses:{name}", **changes}


def trained(lab, folder, objective):
    folder.mkdir()
    config = folder / "config.json"
    config.write_text(json.dumps(lab.config(rounds=2, objective=objective)))
    execute(config, out=folder / "run")
    return json.loads((folder / "run" / "summary.json").read_text())


def test_rebels_loss_written_anew_trains_to_the_same_bits(llama_lab, tmp_path, module):
    theirs = trained(llama_lab, tmp_path / "theirs", custom("squared"))
    ours = trained(llama_lab, tmp_path / "ours", REBEL)
    other = trained(llama_lab, tmp_path / "other", custom("hinge"))
    assert theirs["weights_sha256"] == ours["weights_sha256"] != other["weights_sha256"]
    assert theirs["config_sha256"] != ours["config_sha256"]


def test_its_sign_of_agreement_is_of_a_difference_of_rewards(module):
    logprobs = torch.tensor([[0.0, -1.0], [0.0, -1.0]])
    target, weight = torch.tensor([0.3, -0.3]), torch.ones(2)
    _, watched = pair_losses(
        "my_losses:hinge", logprobs, torch.zeros(2, 2), target, weight, gamma=1.0
    )
    assert watched["agreement"].tolist() == [1.0, 0.0]
    assert centre_of("my_losses:hinge") == 0 and centre_of("dpo") == 0.5


@pytest.mark.parametrize(
    "function, told",
    [
        ("my_losses:nowhere", "my_losses has no function nowhere; it has alone, hinge"),
        ("no_such_module:loss", "there is no module no_such_module"),
        ("my_losses:alone", "does not take two arguments"),
    ],
)
def test_what_is_no_loss_is_refused_before_anything_is_made(
    function, told, llama_lab, tmp_path, module
):
    with pytest.raises(ValueError, match=told):
        trained(llama_lab, tmp_path / "a", {**custom("squared"), "function": function})
    assert not (tmp_path / "a" / "run" / "rounds").exists()
    with pytest.raises(ValueError, match=told):
        loss_function(function)


def test_one_number_for_all_pairs_is_refused(module):
    pair = torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match="return a loss for each pair"):
        pair_losses("my_losses:one_number", *pair, gamma=1.0)


def test_a_path_that_is_none_is_refused(llama_lab, tmp_path, module):
    with pytest.raises(ValueError, match=r"objective\.custom\.function|objective\.function"):
        trained(llama_lab, tmp_path / "a", {**custom("squared"), "function": "my losses"})
