"""What the pages say can be done can be done."""

import re
from pathlib import Path

import pytest

from reprise.launch import config, reference
from reprise.launch.tables.schema import shipped_tables

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}


def blocks(language):
    pattern = rf"```{language}\n(.*?)```"
    return [(n, b) for n, text in TEXT.items() for b in re.findall(pattern, text, re.S)]


def test_every_config_on_a_page_is_a_config(tmp_path):
    found = [(name, block) for name, block in blocks("yaml") if "experiment:" in block]
    assert {name for name, _ in found} >= {"alignment.md", "replicable-rl.md", "distillation.md"}
    for name, block in found:
        file = tmp_path / "config.yaml"
        file.write_text(block)
        assert config.load(file).experiment, name


def test_every_command_names_what_there_is():
    known = config.shipped()
    named = [
        n
        for text in TEXT.values()
        for n in re.findall(r"\b(?:quickstart|paper|laptop)/[a-z_0-9]*[a-z0-9]\b", text)
    ]
    unknown = {
        n for n in named if n not in known and not (n + "-").startswith("quickstart/onpolicy_dpo-")
    }
    assert len(named) > 20 and unknown - {"quickstart/table"} == set()
    for text in TEXT.values():
        for table in re.findall(r"reprise (?:sweep|table) ([a-z_0-9]+)", text):
            assert table in shipped_tables(), table


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", TEXT[page.name]):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_configuration_reference_is_current():
    assert TEXT["configuration.md"] == reference.page(), "run `python -m reprise.launch.reference`"


@pytest.mark.parametrize("name", sorted(config.EXPERIMENTS))
def test_every_experiment_is_in_the_reference(name):
    assert f"\n## {name}\n" in TEXT["configuration.md"]


def test_the_readmes_map_is_the_tree():
    text = (ROOT / "README.md").read_text().split("## Files\n\n```\n")[1].split("```")[0]
    named: dict[str, set[str]] = {}
    top = room = ""
    for line in text.splitlines():
        if found := re.match(r"(\w+)/", line):
            top = room = found[1]
        elif found := re.match(r"  (\w+)/ ", line):
            room = f"{top}/{found[1]}"
        elif re.match(r"  \S", line):
            room = top
        named.setdefault(room, set()).update(re.findall(r"(\w+)\.py", line))
    tree: dict[str, set[str]] = {}
    for package in ("rollout", "alignment", "rl", "distill", "launch"):
        for init in (ROOT / package).rglob("__init__.py"):
            modules = {file.stem for file in init.parent.glob("*.py")} - {"__init__", "__main__"}
            tree[init.parent.relative_to(ROOT).as_posix()] = modules
    assert {room: modules for room, modules in named.items() if modules} == tree
