"""The config's `train:` section against the installed `transformers.TrainingArguments`."""

import dataclasses
import enum
import typing

import pytest
from pydantic import TypeAdapter, ValidationError

from reprise.alignment.training.arguments import (
    _PYTHON_TYPES,
    DERIVED,
    TrainingArgumentsDict,
    _fits,
    check_training_arguments,
    training_argument_types,
)


def refused(**arguments):
    with pytest.raises(ValueError) as caught:
        check_training_arguments(arguments)
    return str(caught.value).split("; ")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"learning_rate": 2e-4, "warmup_steps": 0.1, "lr_scheduler_type": "cosine"},
        {"learning_rate": 1, "optim": "adamw_torch", "bf16": True, "tf32": False},
        {"lr_scheduler_kwargs": {"power": 2}, "save_strategy": "no", "optim_args": None},
        {"ddp_timeout": 60, "max_grad_norm": 1.0, "run_name": None},
    ],
)
def test_what_the_class_knows_passes_unchanged(arguments):
    assert check_training_arguments(arguments) is arguments


def test_an_unknown_key_names_the_nearest():
    assert refused(learning_rat=1e-4) == [
        "'learning_rat' is not an argument of transformers.TrainingArguments",
        "did you mean 'learning_rate'?",
    ]
    [problem] = refused(zzzzzz=1)
    assert "did you mean" not in problem


@pytest.mark.parametrize("key", sorted(DERIVED))
def test_what_follows_from_the_rest_cannot_be_set(key):
    problem = refused(**{key: 1})[0]
    assert problem.startswith(f"'{key}' cannot be set here: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "1e-4"),
        ("learning_rate", True),
        ("learning_rate", None),
        ("per_device_train_batch_size", 8.0),
        ("per_device_train_batch_size", True),
        ("bf16", 1),
        ("bf16", "yes"),
        ("optim", 3),
        ("optim_args", 5),
    ],
)
def test_values_of_another_type(key, value):
    [problem] = refused(**{key: value})
    assert problem == f"'{key}' is {value!r}, but its type is {training_argument_types()[key]}"


def test_all_problems_at_once():
    problems = refused(lerning_rate=1e-4, seed=3, bf16="yes", weight_decay=0.0)
    assert len([line for line in problems if line.startswith("'")]) == 3
    for key in ("lerning_rate", "seed", "bf16"):
        assert any(line.startswith(f"'{key}'") for line in problems)


def test_the_section_of_a_config_is_checked():
    section = TypeAdapter(TrainingArgumentsDict)
    assert section.validate_python({"bf16": True}) == {"bf16": True}
    with pytest.raises(ValidationError, match="did you mean 'bf16'"):
        section.validate_python({"bf61": True})


def test_it_is_the_installed_class():
    from transformers import TrainingArguments

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    types = training_argument_types()
    assert types.keys() == fields.keys()
    assert DERIVED.keys() <= fields.keys()
    for name, field in fields.items():
        default = (
            field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else field.default
        )
        if default is not dataclasses.MISSING:
            assert _fits(default, types[name]), f"{name}: {types[name]} refuses {default!r}"


def test_every_annotation_of_the_installed_class_is_understood():
    """A name that is no Python type is taken for an enum, which accepts its string values."""
    from transformers import training_args

    unknown = {
        part.strip().split("[")[0]
        for annotation in training_argument_types().values()
        for part in annotation.split("|")
    } - _PYTHON_TYPES.keys()
    enums = {
        name
        for name in unknown
        if isinstance(kind := getattr(training_args, name, None), type)
        and issubclass(kind, enum.Enum)
    }
    assert typing.Literal is training_args.Literal
    assert unknown - enums == {"Literal", "ParallelismConfig"}
