"""Configs: YAML and `key.path=value` overrides in, one validated settings object out.

Nothing here imports torch: a config with forty mistakes is refused in a fraction of a second, with
all forty named, before any model loads.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from reprise.launch import strict_yaml
from reprise.launch.problems import explain, shown
from reprise.rollout.errors import BadInput
from reprise.rollout.files import json_sha256
from reprise.rollout.run.remote import secrets_in
from reprise.rollout.run.settings import Settings
from reprise.rollout.run.trackers import Report


class ConfigError(BadInput):
    """Bad input. Its text is the full message, every problem included."""


class ExperimentSettings(Protocol):
    """What every experiment's config has."""

    @property
    def experiment(self) -> str:
        """Name of the experiment, a key of `EXPERIMENTS`."""

    @property
    def seed(self) -> int:
        """Seed of every random stream."""

    @property
    def needs(self) -> list[str]:
        """Shipped configs whose finished runs this one starts from."""

    @property
    def report(self) -> Report:
        """Where the run is shown and pushed."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The settings as plain values."""


@dataclass(frozen=True)
class ExperimentEntry:
    """A config type and a function ``run(config, run_dir) -> summary fields``.

    Attributes:
        config: the config class, as ``module:name``.
        run: the function, as ``module:name``.
        description: in a line.
        headline: where its summary says how good the result is, a path (`launch.tables.values`).
        staged: it has phases of collecting and updating, which may be processes of their own.
    """

    config: str
    run: str
    description: str
    headline: str
    staged: bool = False

    def config_type(self) -> type[Settings]:
        """The config class, imported now."""
        return _import(self.config)

    def run_function(self) -> Callable[[Any, Any], dict[str, Any] | None]:
        """The run function, imported now: this is what brings torch."""
        return _import(self.run)


EXPERIMENTS = {
    "alignment.sft": ExperimentEntry(
        "reprise.alignment.config:SFT",
        "reprise.alignment.sft:run",
        "supervised fine-tuning, from a checkpoint or from scratch with its own tokenizer",
        "heldout_loss",
    ),
    "alignment.reward_training": ExperimentEntry(
        "reprise.alignment.config:RewardTraining",
        "reprise.alignment.rewards.training:run",
        "a Bradley-Terry reward model from preference pairs",
        "heldout_loss",
    ),
    "alignment.on_policy": ExperimentEntry(
        "reprise.alignment.config:OnPolicy",
        "reprise.alignment.on_policy:run",
        "on-policy DPO, PDFR, REBEL or RDRC: fresh samples in every round",
        "rounds.-1.reward_mean",
        staged=True,
    ),
    "alignment.offline": ExperimentEntry(
        "reprise.alignment.config:Offline",
        "reprise.alignment.on_policy:run",
        "the off-policy twin: the same objective on the first round's samples only",
        "rounds.-1.reward_mean",
        staged=True,
    ),
    "alignment.bandit": ExperimentEntry(
        "reprise.alignment.theory.config:BanditExperiment",
        "reprise.alignment.theory.studies:run",
        "preference learning in bandits: coverage, rates and rounds, against the theory",
        "curves.-1.kl_mean",
    ),
    "alignment.design": ExperimentEntry(
        "reprise.alignment.theory.config:DesignExperiment",
        "reprise.alignment.theory.design_study:run",
        "optimal designs for preference learning: values, bounds and supports",
        "value",
    ),
    "alignment.coverage": ExperimentEntry(
        "reprise.alignment.theory.config:CoverageOfRun",
        "reprise.alignment.theory.coverage:run",
        "how well each round's policy of a finished run covers its final one",
        "rounds.-1.coverage",
    ),
    "rl.fqi": ExperimentEntry(
        "reprise.rl.config:FQI",
        "reprise.rl.replicable.figure_one:run",
        "replicable fitted Q-iteration on CartPole: return and identical weights against data",
        "cells.-1.return_mean",
    ),
    "rl.estimation": ExperimentEntry(
        "reprise.rl.config:Estimation",
        "reprise.rl.replicable.estimation:run",
        "R-ridge regression and R-covariance estimation alone: agreement and error against samples",
        "cells.-1.error",
    ),
    "rl.lsvi": ExperimentEntry(
        "reprise.rl.config:LSVI",
        "reprise.rl.replicable.frontier:run",
        "R-LSVI on a linear MDP with a generative model: agreement against suboptimality",
        "cells.-1.suboptimality",
    ),
    "rl.lsvi_ucb": ExperimentEntry(
        "reprise.rl.config:LSVIUCB",
        "reprise.rl.replicable.frontier:run",
        "R-LSVI-UCB on a linear MDP in episodes: agreement against suboptimality",
        "cells.-1.suboptimality",
    ),
    "distill.regression": ExperimentEntry(
        "reprise.distill.config:DistillRegression",
        "reprise.distill.supervised.study:run",
        "regression data distilled by matching losses: held-out and test error against k and N",
        "cells.-1.test_mse",
    ),
    "distill.offline_rl": ExperimentEntry(
        "reprise.distill.config:DistillOfflineRL",
        "reprise.distill.offline_rl_study:run",
        "offline RL data distilled by matching Bellman losses or backups: returns against subsets",
        "cells.-1.return_mean",
    ),
    "distill.decomposable": ExperimentEntry(
        "reprise.distill.config:DistillDecomposable",
        "reprise.distill.decomposable.study:run",
        "the convex case of offline RL distillation: predictors needed by decomposable features",
        "cells.-1.at.-1.held_out_relative_error",
    ),
    "rl.pqn": ExperimentEntry(
        "reprise.rl.config:PQN",
        "reprise.rl.pqn:run",
        "PQN with quantized Q-values on Atari or classic control",
        "mean_return_last_3",
    ),
    "rl.collect": ExperimentEntry(
        "reprise.rl.agreement_config:Collect",
        "reprise.rl.record:run",
        "a trained policy's games as a Minari data set",
        "return_mean",
    ),
    "rl.figure_two": ExperimentEntry(
        "reprise.rl.agreement_config:FigureTwo",
        "reprise.rl.figure_two:run",
        "return and pairwise action agreement of finished PQN runs, against the paper's claims",
        "cells.-1.return_mean",
    ),
}


def load(config: str | os.PathLike[str], overrides: Iterable[str] = ()) -> ExperimentSettings:
    """Resolve a config file or shipped name, with overrides, into checked settings.

    Args:
        config: path of a YAML file, or the name of a shipped config, e.g. ``quickstart/sft``.
        overrides: ``key.path=value``, with the value in YAML.

    Raises:
        ConfigError: names every problem at once.
    """
    path = find(config)
    raw = read(path)
    problems = [problem for text in overrides for problem in override(raw, text)]
    refuse_secrets(path, raw)
    name = raw.get("experiment")
    experiment = EXPERIMENTS.get(name) if isinstance(name, str) else None
    if experiment is None:
        raise ConfigError(_listed(path, [*problems, _unknown_experiment(raw)]))
    kind = experiment.config_type()
    try:
        # Strict, and by way of JSON: `true` is no number and "5" is no integer, while a YAML list
        # may still fill a tuple.
        settings = kind.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        problems += explain(error, kind, raw)
    if problems:
        raise ConfigError(_listed(path, problems))
    return settings  # type: ignore[return-value]  # every config type has experiment and seed


def read(path: Path) -> dict[str, Any]:
    """The keys of a config file, unchecked.

    Raises:
        ConfigError: it cannot be read, or is not a YAML mapping.
    """
    try:
        raw = strict_yaml.read(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: a config is a mapping, 'experiment: ...' first; this is {shown(raw)}"
        )
    return raw


def config_sha256(config: ExperimentSettings) -> str:
    """SHA-256 of the resolved settings that decide results, as canonical JSON."""
    return values_sha256(config.model_dump(mode="json"))


def values_sha256(values: dict[str, Any]) -> str:
    """SHA-256 of resolved settings as plain values, without what changes no result."""
    return json_sha256(_deciding(values))


def to_yaml(config: ExperimentSettings) -> str:
    """The resolved settings as YAML, every default written out."""
    return strict_yaml.write(config.model_dump(mode="json"))


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The dotted keys in which two resolved configs differ and results may, with both values."""
    a, b = _flat(_deciding(ours)), _flat(_deciding(theirs))
    missing = "(absent)"
    return [
        f"{key}: {shown(a[key]) if key in a else missing} here, "
        f"{shown(b[key]) if key in b else missing} there"
        for key in dict.fromkeys([*a, *b])
        if key not in a or key not in b or a[key] != b[key]
    ]


# -- finding configs -----------------------------------------------------------------------------


def configs_folder() -> Path:
    """Where the shipped configs are: beside the packages, or inside an installed wheel."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "configs"
    return beside if beside.is_dir() else here / "configs"


def shipped() -> dict[str, Path]:
    """Name -> file of every shipped config; the name is the path without ``.yaml``."""
    folder = configs_folder()
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for file in sorted(folder.rglob("*.yaml"))
        if file.relative_to(folder).parts[0] != "tables"  # those are not configs of one run
    }


def description(path: Path) -> str:
    """The first comment line of a config file, which says what it is."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip()
    return ""


def find(config: str | os.PathLike[str]) -> Path:
    """The file that `config` names: a path, or a shipped config's name.

    Raises:
        ConfigError: there is none; names the nearest shipped config.
    """
    path = Path(config)
    if path.is_file():
        return path
    if path.is_dir() and (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is a run directory: use `reprise resume {path}`")
    name = path.as_posix().removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    known = shipped()
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=1, cutoff=0.4) or [
        other for other in known if other.split("/")[-1] == name.split("/")[-1]
    ]
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise ConfigError(
        f"no config file and no shipped config is called '{config}'{hint} "
        "(`reprise list` shows them all)"
    )


# -- details -------------------------------------------------------------------------------------


def override(raw: dict[str, Any], text: str) -> list[str]:
    """Put one ``key.path=value`` into `raw`; returns what is wrong with it, if anything."""
    key, equals, value_text = text.partition("=")
    *section, name = key.split(".")
    if not equals or not all([*section, name]):
        return [f"override '{text}': write it as key.path=value, e.g. seed=1"]
    try:
        value = strict_yaml.read(value_text)
    except ValueError as error:
        return [f"{key} = {shown(value_text)}: the value is not YAML ({error})"]
    here: Any = raw
    for depth, part in enumerate(section):
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            outer = ".".join(section[: depth + 1])
            return [f"{key} = {shown(value)}: '{outer}' is {shown(here)}, not a section of keys"]
    here[name] = value
    return []


def refuse_secrets(path: Path, raw: dict[str, Any]) -> None:
    """Before anything is said about the config: a sentence about a wrong value would show it.

    Raises:
        ConfigError: names the keys, not the values.
    """
    rule = (
        "this looks like a key or a token, and a config is stored, logged and pushed. Remove it "
        "(and revoke it, if the file was ever shared): tokens come from the environment (HF_TOKEN, "
        "WANDB_API_KEY, OPENAI_API_KEY) or from `hf auth login`"
    )
    found = dict.fromkeys(secrets_in(raw))
    if found:
        raise ConfigError(_listed(path, [f"{key}: {rule}" for key in found]))


def _unknown_experiment(raw: dict[str, Any]) -> str:
    names = ", ".join(EXPERIMENTS)
    if "experiment" not in raw:
        return f"experiment: required, but not given (one of {names})"
    name = raw["experiment"]
    close = get_close_matches(str(name), EXPERIMENTS, n=1, cutoff=0.4)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"experiment = {shown(name)}: should be one of {names}{hint}"


def _listed(path: Path, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    here = Path.cwd()
    shown_path = path.relative_to(here) if path.is_relative_to(here) else path
    return f"{shown_path}: {count}\n" + "\n".join(f"  - {problem}" for problem in problems)


def _deciding(values: dict[str, Any]) -> dict[str, Any]:
    """Settings without ``report`` and ``environment_settings.workers``, which change no result."""
    values = {key: value for key, value in values.items() if key != "report"}
    if isinstance(section := values.get("environment_settings"), dict):
        values["environment_settings"] = {k: v for k, v in section.items() if k != "workers"}
    return values


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _import(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
