"""Imports point one way, and what the command line reads first is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Who may import whom: rollout <- alignment | rl | distill <- launch.
MAY_IMPORT = {
    "rollout": {"rollout"},
    "alignment": {"rollout", "alignment"},
    "rl": {"rollout", "rl"},
    "distill": {"rollout", "distill"},
    "launch": {"rollout", "alignment", "rl", "distill", "launch"},
    "reprise": {"rollout", "alignment", "rl", "distill", "launch"},
}
MODULES = sorted(file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py"))
LIGHT = [
    "reprise",
    "reprise.launch.cli.main",
    "reprise.launch.config",
    "reprise.launch.run",
    "reprise.launch.evaluation.suite",
    "reprise.launch.hub.push",
    "reprise.launch.hub.publisher",
    "reprise.alignment.config",
    "reprise.alignment.judging.config",
    "reprise.rollout.run.settings",
    "reprise.rollout.run.run_dir",
    "reprise.rollout.run.trackers",
    "reprise.rollout.run.remote",
    "reprise.rollout.files",
    "reprise.rollout.randomness",
    "reprise.rollout.store",
    "reprise.rl.config",
    "reprise.rl.agreement_config",
    "reprise.distill.config",
]
HEAVY = [
    "torch",
    "transformers",
    "datasets",
    "pandas",
    "accelerate",
    "trl",
    "sklearn",
    "matplotlib",
    "tensorboard",
    "wandb",
    "trackio",
    "openai",
    "lm_eval",
    "huggingface_hub",
]


def imported(tree: ast.AST) -> set[str]:
    """Every import, at any depth of the module: ours by folder, others by top-level name."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports out in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for argument in node.args:
                if isinstance(argument, ast.Constant):
                    names.add(str(argument.value))
    top = [name.split(".") for name in names]
    foreign = {parts[0] for parts in top if parts[0] != "reprise"}
    assert not foreign & MAY_IMPORT.keys(), "our packages are imported as reprise.NAME"
    return foreign | {parts[1] for parts in top if parts[0] == "reprise" and len(parts) > 1}


def test_there_are_modules_to_look_at():
    assert {file.relative_to(ROOT).parts[0] for file in MODULES} >= {
        "rollout",
        "alignment",
        "launch",
    }


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    package = file.relative_to(ROOT).parts[0]
    names = imported(ast.parse(file.read_text(encoding="utf-8")))
    assert names & MAY_IMPORT.keys() <= MAY_IMPORT[package]
    assert not names & {"tests", "benchmarks", "configs"}


def test_the_walk_sees_a_forbidden_import():
    code = "def f():\n    if x:\n        from reprise.rl.pqn import run\n"
    code += "    import_module('reprise.distill.x')\n"
    assert imported(ast.parse(code)) == {"rl", "distill"}


def test_light_modules_bring_nothing_heavy():
    # One process for all: what any of them brings would show.
    code = (
        f"import sys, importlib\nfor name in {LIGHT}: importlib.import_module(name)\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_help_and_dry_run_bring_nothing_heavy(tmp_path):
    for arguments in (["--help"], ["list"], ["run", "quickstart/sft", "--dry-run"]):
        code = (
            "import sys\nfrom reprise.launch.cli.main import main\n"
            f"try:\n    main({arguments})\nexcept SystemExit as stop:\n    assert not stop.code\n"
            f"print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert not set(done.stderr.splitlines()[-1].split()) & set(HEAVY), arguments
