"""The repository keeps its own promises: exact versions, packaged files, readable sizes."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("reprise", "rollout", "alignment", "rl", "distill", "launch")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def test_constraints_are_exact_and_portable():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        # No paths, addresses, editable installs, or builds that only one index has.
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line


def test_every_dependency_is_pinned_within_its_range():
    exact = constraints()
    extras = PROJECT["project"]["optional-dependencies"]
    for text in [*PROJECT["project"]["dependencies"], *extras["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier, f"{text}: give a range"
        assert exact[canonicalize_name(requirement.name)] in requirement.specifier, text
    for text in itertools.chain.from_iterable(extras.values()):
        assert Requirement(text).specifier, f"{text}: give a range"


def test_the_tests_run_against_the_pinned_versions():
    unlike = {
        name: (metadata.version(name), version)
        for name, version in constraints().items()
        if name in ("torch", "transformers", "trl", "accelerate", "datasets", "pydantic", "numpy")
        if metadata.version(name).partition("+")[0] != version
    }
    assert unlike == {}


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_what_the_code_imports_is_declared():
    known = {
        canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]
    }
    optional = {
        canonicalize_name(Requirement(text).name)
        for text in itertools.chain.from_iterable(
            PROJECT["project"]["optional-dependencies"].values()
        )
    }
    providers = metadata.packages_distributions()
    for file in SOURCES:
        for name in imports_of(file) - set(sys.stdlib_module_names) - set(PACKAGES):
            from_packages = {canonicalize_name(found) for found in providers.get(name, [name])}
            assert from_packages & (known | optional), f"{file}: {name} is not in pyproject.toml"


def installed_as(file: Path) -> str:
    """Where a source file of a folder lies in the wheel: under the one import name."""
    name = file.relative_to(ROOT).as_posix()
    return name if name.startswith("reprise/") else f"reprise/{name}"


def test_every_package_of_ours_is_listed():
    ours = {
        Path(installed_as(file)).parent.as_posix().replace("/", ".")
        for file in SOURCES
        if file.name == "__init__.py"
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == ours | {"reprise.launch.configs"}
    for file in SOURCES:
        assert (file.parent / "__init__.py").is_file(), f"{file.parent}: a room needs an __init__"


def test_a_room_holds_at_most_twenty_modules():
    rooms = {file.parent for file in SOURCES}
    full = {
        str(room.relative_to(ROOT)): count
        for room in rooms
        if (count := len([*room.glob("*.py")]) - 1) > 20
    }
    assert full == {}


def test_a_wheel_carries_code_configs_and_launcher_files(tmp_path):
    # A copy, since building leaves files in the source tree.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "configs"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True
    )
    [wheel] = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    for file in SOURCES:
        assert installed_as(file) in files
    for file in (ROOT / "configs").rglob("*.yaml"):
        assert "reprise/launch/" + file.relative_to(ROOT).as_posix() in files
    for file in (*(ROOT / "launch/accelerate").iterdir(), *(ROOT / "launch/slurm").iterdir()):
        assert installed_as(file) in files
    # One import name: nothing else of ours at the top, where other projects' packages lie.
    assert {name.split("/")[0] for name in files} - {"reprise"} == {
        f"reprise_rl-{PROJECT['project']['version']}.dist-info"
    }
    # Beside a foreign package called `launch`, of which PyPI has one, the command finds ours.
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    foreign = tmp_path / "foreign" / "launch"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("raise ImportError('not ours')")
    code = "import sys; sys.path[:0] = sys.argv[1:3]; from reprise.launch.cli import main; "
    code += "print(main.__file__); sys.argv = ['reprise', 'list']; main.main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(foreign.parent), str(tmp_path / "installed")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "installed")) and "rl.fqi" in done.stdout


def test_the_sources_are_tracked_and_outputs_are_not():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ignored = subprocess.run(
        ["git", "check-ignore", "runs/a", ".venv/bin/python", "launch/__pycache__/x.pyc"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    assert len(ignored) == 3
    hidden = subprocess.run(
        ["git", "check-ignore", *map(str, SOURCES)], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert hidden == ""


def functions():
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_a_function_fits_on_a_screen():
    long = {name: lines for name, lines in functions() if lines > 80}
    assert long == {}


def test_a_file_can_be_read_in_a_sitting():
    long = {
        str(file.relative_to(ROOT)): lines
        for file in SOURCES
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
