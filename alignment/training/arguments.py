"""Check a config's ``train:`` section against `transformers.TrainingArguments`, in milliseconds.

Importing that class costs seconds (it brings torch), too slow for ``--dry-run``. Its fields and
their annotations are read from the installed source instead, so the check is always about the
version that will run; values that only the class can judge are judged when training starts.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from reprise.rollout.errors import BadInput

if TYPE_CHECKING:
    from transformers import TrainingArguments

DERIVED = {
    "output_dir": "the run directory decides it",
    "resume_from_checkpoint": "use `reprise resume DIR`",
    "gradient_accumulation_steps": "it follows from `batch_size`, "
    "`train.per_device_train_batch_size` and the number of processes",
    "num_train_epochs": "use `epochs`",
    "max_steps": "use `epochs`",
    "seed": "use the top-level `seed`",
    "data_seed": "use the top-level `seed`",
    "remove_unused_columns": "the collator needs every column",
    "label_names": "the objective is not computed from labels",
    "dataloader_drop_last": "remainders are dropped and counted by the round itself",
    "logging_nan_inf_filter": "a NaN loss stops the run instead of being hidden",
    "ignore_data_skip": "it would break exact resumption",
    "auto_find_batch_size": "it would change the batch size that the paper fixes",
    "deepspeed": "the launcher's file decides it: launch/accelerate/deepspeed_*.yaml",
    "fsdp": "the launcher's file decides it: launch/accelerate/fsdp2.yaml",
    "fsdp_config": "the launcher's file decides it: launch/accelerate/fsdp2.yaml",
    "hub_token": "it would be written to config.yaml; log in with `hf auth login`",
    "push_to_hub": "use `report.push`",
    "hub_model_id": "use `report.push`",
    "report_to": "use `report.trackers`",
}

# Bounds that the class itself does not check, or only once models have loaded.
AT_LEAST: dict[str, float] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "dataloader_num_workers": 0,
    "logging_steps": 0,
    "save_steps": 0,
    "learning_rate": 0,
    "warmup_steps": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
}

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
    "list": (list,),
    "dict": (dict,),
}


@functools.cache
def training_argument_types() -> dict[str, str]:
    """Name -> annotation of every field of the installed `TrainingArguments`."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "training_args.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    [definition] = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    ]
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def check_training_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return `arguments` if each is a field of `TrainingArguments` with a value of its type.

    Raises:
        BadInput: names every unknown, reserved or ill-typed key, all at once.
    """
    known = training_argument_types()
    problems = []
    for key, value in arguments.items():
        if key in DERIVED:
            problems.append(f"'{key}' cannot be set here: {DERIVED[key]}")
        elif key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            problems.append(f"'{key}' is not an argument of transformers.TrainingArguments{hint}")
        elif not _fits(value, known[key]):
            problems.append(f"'{key}' is {value!r}, but its type is {known[key]}")
        elif isinstance(value, int | float) and value < AT_LEAST.get(key, value):
            problems.append(f"'{key}' is {value!r}, but should be at least {AT_LEAST[key]}")
    if problems:
        raise BadInput("; ".join(problems))
    return arguments


def make_training_arguments(
    train: dict[str, Any],
    *,
    batch_size: int,
    seed: int,
    folder: Path,
    world: int,
    defaults: dict[str, Any],
    length: dict[str, Any],
) -> TrainingArguments:
    """The config's ``train:`` section, with what follows from the rest of the config.

    Args:
        train: the section.
        batch_size: examples or pairs per optimizer step, over all processes.
        seed: the run's seed.
        folder: where the Trainer keeps its checkpoints.
        world: number of processes.
        defaults: this experiment's own, where `train` is silent.
        length: ``max_steps`` or ``num_train_epochs``.

    Raises:
        BadInput: `batch_size` cannot be split over the processes, or the class refuses a value
            that its type allows, such as an unknown scheduler or optimizer.
    """
    per_device = train.get("per_device_train_batch_size", 8)
    if batch_size % (per_device * world):
        raise BadInput(
            f"batch_size={batch_size} must be a multiple of "
            f"train.per_device_train_batch_size={per_device} times {world} processes"
        )
    import torch
    from transformers import TrainingArguments

    cuda = torch.cuda.is_available()
    common: dict[str, Any] = {
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        "ddp_find_unused_parameters": False,
        "use_cpu": not cuda,
    }
    derived: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": batch_size // (per_device * world),
        "seed": seed,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
    }
    arguments = {**common, **defaults, **train, **derived, **length}
    try:
        made = TrainingArguments(**arguments)
    except (ValueError, ImportError) as error:
        raise BadInput(f"train: transformers.TrainingArguments refuses it: {error}") from error
    _check_scheduler(made)
    if made.eval_strategy != "no":
        raise BadInput(
            f"train.eval_strategy={arguments['eval_strategy']!r}: every experiment measures itself "
            "on held-out data, and the Trainer is given none; leave it out"
        )
    return made


def _check_scheduler(arguments: TrainingArguments) -> None:
    """Build the schedule for a few steps: what it lacks is told before any data are made."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    kind, kwargs = arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs
    if str(getattr(kind, "value", kind)) == "reduce_lr_on_plateau":
        return  # it follows held-out metrics, which nothing gives it
    try:
        get_scheduler(kind, optimizer, 1, 10, scheduler_specific_kwargs=dict(kwargs or {}))
    except (TypeError, ValueError, KeyError) as error:
        raise BadInput(
            f"train.lr_scheduler_type={getattr(kind, 'value', kind)!r} with lr_scheduler_kwargs="
            f"{kwargs or {}}: {error}; give what it needs in train.lr_scheduler_kwargs, or take "
            "another schedule"
        ) from error


def _fits(value: Any, annotation: str) -> bool:
    allowed: tuple[type, ...] = ()
    for part in annotation.split("|"):
        name = part.strip().split("[")[0]
        if name not in _PYTHON_TYPES:  # an enum: the class itself accepts its string values
            name = "str"
        allowed += _PYTHON_TYPES[name]
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed)


TrainingArgumentsDict = Annotated[dict[str, Any], AfterValidator(check_training_arguments)]
