"""The Open LLM Leaderboard's six tasks, by lm-evaluation-harness.

Shots as in Tables 1 and 2 of 2601.08421, and the number that the leaderboard (2023-24) read:

    MMLU 5-shot acc · GSM8K 5-shot exact match · ARC-Challenge 25-shot acc_norm ·
    Winogrande 5-shot acc · TruthfulQA 0-shot mc2 · HellaSwag 10-shot acc_norm

The traps: the harness's MMLU averages over questions, the old leaderboard's over its 57 subjects.
Few-shot examples are drawn with a seed, which is a setting. And numbers move by a point between
versions of the harness, so the version is part of the result.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reprise.alignment.judging.config import OpenLLMSuite
from reprise.rollout.errors import BadInput
from reprise.rollout.files import write_json

SHOTS = {
    "mmlu": 5,
    "gsm8k": 5,
    "arc_challenge": 25,
    "winogrande": 5,
    "truthfulqa_mc2": 0,
    "hellaswag": 10,
}
READ = {
    "mmlu": "acc,none",
    "gsm8k": "exact_match,strict-match",
    "arc_challenge": "acc_norm,none",
    "winogrande": "acc,none",
    "truthfulqa_mc2": "acc,none",
    "hellaswag": "acc_norm,none",
}


def leaderboard(
    model: str,
    settings: OpenLLMSuite,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure one model on every task; a task that is done is not done again.

    Args:
        model: a model folder, an adapter's folder, a Hub name; or the server's name for it.
        settings: tasks and how to run them.
        folder: gets ``<task>.json`` for each task as soon as it is done.
        say: tells a human.

    Returns:
        task -> percent, ``<task>_stderr``, ``average`` over the tasks, ``lm_eval`` (its version).

    Raises:
        BadInput: no such task, or a server is asked for log-probabilities.
    """
    wanted = settings.tasks or SHOTS
    requested = settings.model_dump(mode="json", exclude={"tasks"}) | {"model": model}
    done: dict[str, dict[str, Any]] = {}
    for name in wanted:
        file = folder / f"{name}.json"
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["asked"] == requested and stored["shots"] == wanted[name]:
                done[name] = stored
    missing = {name: shots for name, shots in wanted.items() if name not in done}
    if missing:
        manager = _task_manager(settings, list(missing))
        measured = _language_model(model, settings)
        for name, shots in missing.items():
            say(f"{name}, {shots}-shot")
            metrics = _measure(measured, name, shots, settings, manager)
            done[name] = {"asked": requested, "shots": shots, "metrics": metrics}
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{name}.json", done[name])
    return _summary({name: done[name]["metrics"] for name in wanted})


def headline(task: str, metrics: dict[str, Any]) -> str:
    """Which of a task's metrics is its number: the leaderboard's, or the likeliest one."""
    if task in READ:
        return READ[task]
    numbers = [k for k, v in metrics.items() if isinstance(v, int | float) and "_stderr" not in k]
    for wanted in ("acc_norm", "acc", "exact_match"):
        for name in numbers:
            if name.split(",")[0] == wanted:
                return name
    return numbers[0]


def _summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for task, metrics in results.items():
        name = headline(task, metrics)
        metric, _, kind = name.partition(",")
        error = metrics.get(f"{metric}_stderr,{kind}")
        summary[task] = 100 * float(metrics[name])
        if isinstance(error, int | float):
            summary[f"{task}_stderr"] = 100 * float(error)
    summary["average"] = sum(summary[task] for task in results) / len(results)
    summary["lm_eval"] = importlib.metadata.version("lm_eval")
    return summary


def _task_manager(settings: OpenLLMSuite, tasks: list[str]) -> Any:
    from lm_eval.tasks import TaskManager

    own = settings.include
    if own is not None and not Path(own).is_dir():
        raise BadInput(f"include={own!r}: not a folder of task YAMLs")
    manager = TaskManager(include_path=own, include_defaults=own is None)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        where = own or "lm-evaluation-harness"
        raise BadInput(f"tasks: {where} has no {', '.join(unknown)}; `lm_eval ls` lists them")
    return manager


def _language_model(model: str, settings: OpenLLMSuite) -> Any:
    if settings.server is not None:
        from reprise.alignment.judging.chat_server import chat_server

        return chat_server(settings.server, model)
    from lm_eval.models.huggingface import HFLM

    adapter = Path(model) / "adapter_config.json"
    extra: dict[str, Any] = {}
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        extra, model = {"peft": model}, base
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HFLM(
        pretrained=model,
        device=device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        trust_remote_code=False,
        **extra,
    )


def _measure(
    model: Any, task: str, shots: int, settings: OpenLLMSuite, manager: Any
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    result = simple_evaluate(
        model=model,
        tasks=[task],
        num_fewshot=shots,
        limit=settings.limit,
        task_manager=manager,
        apply_chat_template=settings.chat_template,
        bootstrap_iters=settings.bootstrap,
        fewshot_random_seed=settings.seed,
        log_samples=False,
    )
    assert result is not None, "this process is the main one"
    groups = result.get("groups") or {}
    return dict(groups.get(task) or result["results"][task])
