"""`reprise evaluate RUN --suite openllm|judge|alpaca`: what a model is worth beyond its reward.

A result is ``RUN/suites/<suite>/round-00003.json`` (settings, result, versions), beside what it was
made from. A suite runs after training, on what training left, so that an outage of a judge or a
spent budget costs a run nothing; what was paid for is kept, and the same command continues.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reprise.alignment.judging.config import (
    SUITES,
    AlpacaSuite,
    JudgeSuite,
    OpenLLMSuite,
)
from reprise.launch.config import ConfigError, override, read, refuse_secrets
from reprise.launch.problems import explain
from reprise.rollout.files import numbered, write_json
from reprise.rollout.run.remote import redact

Suite = JudgeSuite | AlpacaSuite | OpenLLMSuite


def settings_of(suite: str, config: Path | None, overrides: Iterable[str]) -> Suite:
    """The suite's settings from a YAML file, if any, and ``key=value``.

    Raises:
        ConfigError: names every problem at once.
    """
    raw = read(config) if config is not None else {}
    problems = [problem for text in overrides for problem in override(raw, text)]
    refuse_secrets(Path(config or suite), raw)
    settings = None
    try:
        settings = SUITES[suite].model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        problems += explain(error, SUITES[suite], raw)
    if problems or settings is None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"--suite {suite}:\n{listed}")
    return settings


def evaluate(
    run: str,
    suite: str,
    config: Path | None = None,
    overrides: Iterable[str] = (),
    rounds: list[int] | None = None,
    out: Path | None = None,
    dry_run: bool = False,
) -> list[dict[str, Any]]:
    """Run a suite on one model, or on several rounds of a run.

    Args:
        run: a run's directory; for openllm and alpaca also a model folder or Hub name, with `out`.
        suite: a key of `SUITES`.
        config: YAML of its settings.
        overrides: ``key.path=value``.
        rounds: which of the run's policies, 0 is the initial one; None is the last.
        out: where results go instead of ``RUN/suites``.
        dry_run: only check, and say what a judge would cost.

    Returns:
        For each round ``suite``, ``round``, ``settings``, ``result`` and ``versions``.

    Raises:
        ConfigError: bad input.
    """
    settings = settings_of(suite, config, overrides)
    root = Path(run)
    is_run = (root / "config.yaml").is_file()
    if not is_run and (out is None or suite == "judge" or rounds):
        raise ConfigError(
            f"{run} is not a run (no config.yaml): a model is evaluated by openllm and alpaca, "
            "with --out and without --round"
        )
    found = []
    for k in rounds or [_last_round(root) if is_run else 0]:
        file = result_file(out or root, suite, k)
        requested = settings.model_dump(mode="json")
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["settings"] != requested:
                raise ConfigError(
                    f"{file} holds the result of other settings; it was left as it is. Choose "
                    "another directory with --out"
                )
            found.append(stored)
            continue
        model = _model(root, k) if is_run and suite != "judge" else run
        result = _measure(settings, root, model, k, file, dry_run)
        record = {"suite": suite, "round": k, "settings": requested, "result": result}
        record["versions"] = {
            name: importlib.metadata.version(name) for name in ("transformers", "torch")
        }
        if not dry_run:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, record)
        found.append(record)
    return found


def result_file(run: Path, suite: str, k: int) -> Path:
    """Where the result of a suite on pi_k is kept."""
    return run / "suites" / suite / f"round-{k:05d}.json"


def lines(found: list[dict[str, Any]]) -> list[str]:
    """The results for a reader."""
    text = []
    for record in found:
        text.append(f"{record['suite']}, round {record['round']}")
        for name, value in record["result"].items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            text.append(f"  {name}: {shown}")
    return text


def _measure(
    settings: Suite, root: Path, model: str, k: int, file: Path, dry_run: bool
) -> dict[str, Any]:
    if isinstance(settings, OpenLLMSuite):
        _require("lm_eval", "lm-eval")
        from reprise.alignment.judging.leaderboard import leaderboard

        if dry_run:
            return {"model": model}
        return leaderboard(model, settings, file.with_suffix(""), _say)
    _require("openai", "openai")
    cache = file.parent.parent / "judge_answers.jsonl"
    if isinstance(settings, JudgeSuite):
        from reprise.launch.evaluation.judging import judge_run

        return judge_run(settings, root, k, cache, dry_run, _say)
    from reprise.launch.evaluation.judging import judge_alpaca

    return judge_alpaca(settings, model, file.with_suffix(""), cache, dry_run, _say)


def _require(module: str, package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{package} is not installed; `pip install {package}`")


def _last_round(root: Path) -> int:
    return max(numbered(root / "checkpoints", "round"), default=0)


def _model(root: Path, k: int) -> str:
    """Folder or name of pi_k; the initial policy is the config's own.

    Raises:
        ConfigError: that round was not saved.
    """
    config = read(root / "config.yaml")
    if k == 0 and "policy" in config:
        start = Path(config["policy"])
        final = start / "checkpoints" / "final"
        return str(final if final.is_dir() else start)
    final = root / "checkpoints" / "final"
    folder = root / "checkpoints" / f"round-{k:05d}"
    if k == _last_round(root) and final.is_dir():
        return str(final)  # of a LoRA run, the merged model
    if not folder.is_dir():
        raise ConfigError(f"--round {k}: {root} has saved no policy of that round")
    return str(folder)


def _say(text: str) -> None:
    print(redact(text), file=sys.stderr, flush=True)
