"""The page that a model or a data set gets on the Hub: results, config, origin, how to redo it.

Everything on it is read from the run's own files; secrets are hidden and the home folder is ``~``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from reprise.launch import strict_yaml
from reprise.launch.config import EXPERIMENTS, read
from reprise.rollout.run.markdown import markdown_table
from reprise.rollout.run.remote import redact
from reprise.rollout.run.run_dir import metrics_of

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
_COLUMNS = {
    "round": "round",
    "reward_mean": "reward",
    "win_rate_vs_initial": "win rate",
    "rouge_l": "ROUGE-L",
    "kl_to_initial": "ln π/π₀ (nats)",
    "length_mean": "tokens",
}


def public(text: str) -> str:
    """`text` without secrets and without the name of the home folder."""
    home = str(Path.home())
    return redact(text.replace(home, "~") if len(home) > 1 else text)


def without_report(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config without where it was shown and pushed."""
    return {key: value for key, value in config.items() if key != "report"}


def card(run: Path, repo_id: str, what: str, data_files: dict[str, str] | None = None) -> str:
    """README.md of a repository: YAML metadata, then Markdown.

    Args:
        run: the run's directory, or any other folder, whose card is then short.
        repo_id: owner/name.
        what: "model", "adapter", "rounds" or "distilled".
        data_files: of a data set: name of each part and its files, as `datasets` reads them.
    """
    config = read(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    head = strict_yaml.write(_metadata(config, what, data_files))
    sections = [f"# {repo_id.rpartition('/')[2]}", _what(config, what)]
    if config:
        sections += [*_results(run), *_origin(run, config), *_again(run, config, repo_id)]
    return public(f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n")


def _metadata(
    config: dict[str, Any], what: str, data_files: dict[str, str] | None
) -> dict[str, Any]:
    tags = ["reprise", *([config["experiment"]] if config else [])]
    objective = config.get("objective")
    if isinstance(objective, dict):
        tags.append(objective["name"])
    metadata: dict[str, Any] = {"tags": tags}
    if data_files is not None:
        metadata["configs"] = [
            {"config_name": name, "data_files": files} for name, files in data_files.items()
        ]
        return metadata
    if str(config.get("experiment")).startswith("rl."):
        return {**metadata, "library_name": "reprise", "pipeline_tag": "reinforcement-learning"}
    metadata["library_name"] = "peft" if what == "adapter" else "transformers"
    if config.get("experiment") != "alignment.reward_training":
        metadata["pipeline_tag"] = "text-generation"
    start = config.get("policy") or config.get("model")
    if isinstance(start, str) and _on_the_hub(start):
        metadata["base_model"] = start
    data = config.get("data")
    if isinstance(data, dict) and _on_the_hub(data["name"]):
        metadata["datasets"] = [data["name"]]
    return metadata


def _on_the_hub(name: str) -> bool:
    return bool(_HUB_NAME.match(name)) and not Path(name).exists()


def _what(config: dict[str, Any], what: str) -> str:
    kind = {
        "model": "A model",
        "adapter": "A LoRA adapter",
        "rounds": "The rounds (prompts, completions, rewards, log-probabilities)",
        "distilled": "A distilled data set",
    }[what]
    if not config:
        return f"{kind}, pushed with Reprise."
    experiment = EXPERIMENTS.get(config["experiment"])
    about = f": {experiment.description}" if experiment else ""
    return f"{kind} from the Reprise experiment `{config['experiment']}`{about}."


def _results(run: Path) -> list[str]:
    """A table of the rounds, or the numbers of the summary; then what other suites measured."""
    sections = []
    rounds = [record for record in metrics_of(run) if "reward_mean" in record]
    summary = _json(run / "summary.json")
    if rounds:
        columns = [name for name in _COLUMNS if name in rounds[-1]]
        rows = [[record.get(name) for name in columns] for record in rounds]
        sections.append(markdown_table([_COLUMNS[name] for name in columns], rows))
    else:
        skipped = ("seed", "seconds")
        numbers = [
            [name, value]
            for name, value in summary.items()
            if isinstance(value, int | float) and name not in skipped
        ]
        if numbers:
            sections.append(markdown_table(["measure", "value"], numbers))
    for file in sorted((run / "suites").glob("*/round-*.json")):
        result = _json(file)["result"]
        numbers = [[name, x] for name, x in result.items() if isinstance(x, int | float)]
        if numbers:
            sections.append(f"`{file.parent.name}`, round {int(file.stem.split('-')[1])}:")
            sections.append(markdown_table(["measure", "value"], numbers))
    return ["## Results", *sections] if sections else []


def _origin(run: Path, config: dict[str, Any]) -> list[str]:
    origin = _json(run / "provenance.json")
    summary = _json(run / "summary.json")
    facts: list[list[Any]] = [
        ["experiment", f"`{config['experiment']}`"],
        ["seed", config.get("seed")],
        ["code revision", f"`{origin.get('code_revision')}`"],
        ["changed files in the tree", origin.get("code_dirty")],
        ["started", origin.get("started")],
        ["processes x threads", f"{origin.get('world_size')} x {origin.get('threads')}"],
        ["machine", f"{origin.get('cpu')}, {origin.get('platform')}"],
        ["python", origin.get("python")],
        *([name, version] for name, version in origin.get("packages", {}).items()),
        *([["config SHA-256", f"`{summary['config_sha256']}`"]] if summary else []),
        *([["weights SHA-256", f"`{w}`"]] if (w := summary.get("weights_sha256")) else []),
    ]
    return ["## Origin", markdown_table(["", ""], facts)]


def _again(run: Path, config: dict[str, Any], repo_id: str) -> list[str]:
    text = strict_yaml.write(without_report(config)).rstrip()
    needs = config.get("needs") or []
    first = [f"It starts from the finished runs of {', '.join(f'`{n}`' for n in needs)}."]
    return [
        "## How to reproduce",
        "With Reprise at the code revision above, `reprise/config.yaml` of this repository, and as "
        "many processes and threads:",
        "```\nhf download "
        + f"{repo_id} --include 'reprise/*' --local-dir pushed\n"
        + "reprise run pushed/reprise/config.yaml --out again\n```",
        *(first if needs else []),
        "Equal packages on an equal machine give equal weights: compare `weights_sha256` in "
        "`summary.json`.",
        f"<details><summary>The config</summary>\n\n```yaml\n{text}\n```\n\n</details>",
    ]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
