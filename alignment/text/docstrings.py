"""`docstrings`: a real summarization set, read from the sources of the packages installed here.

One pair per documented function, method or class: its qualified name, its parameters and the rest
of its docstring in, the docstring's first sentence out:

    Class: data frame reader
    Args: path, sep
    Body: The separator is guessed when it is not given.
    Name: Read table
    Summary: Read a table from a file.

Identifiers are split into words (`read_table` -> "read table"), so that the tokens of the name
are the tokens of its summary, and the name stands last, next to where the summary begins: even a
model of a million parameters can then be seen using its prompt. Sources are parsed with `ast`;
nothing is imported, so nothing runs. About 34,000 pairs.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from reprise.rollout import files

VERSION = 1  # of this builder: raise it whenever a pair could come out differently
PACKAGES = {  # importable name -> distribution whose version identifies its source
    "numpy": "numpy",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "transformers": "transformers",
}
SKIPPED_FOLDERS = {
    "__pycache__", "test", "tests", "testing", "site-packages", "dist-packages", "idlelib",
    "turtledemo", "lib2to3", "_vendor", "ensurepip",
}  # fmt: skip
LITTLE_WORDS = set("a an as at be by for from get if in is it its not of on or that the to".split())
HELDOUT_SHARE = 20  # one module in this many is held out
BODY_WORDS = 24
SECTIONS = re.compile(
    r"\n\s*(Parameters|Params|Args|Arguments|Returns?|Yields?|Raises|Examples?|Notes?|See Also|"
    r"References|Attributes|Shape|Keyword args?|Usage)\s*:{0,2}\s*\n.*",
    re.DOTALL | re.IGNORECASE,
)


def load_pairs(say: Callable[[str], None] | None = None) -> list[dict[str, str]]:
    """All pairs, with columns module, name, owner, arguments, body, summary and split.

    Built once and kept in `$REPRISE_CACHE` (default ~/.cache/reprise) under the versions of the
    packages and of this builder. Equal versions give equal pairs in equal order.
    """
    versions = {"builder": str(VERSION), "python": sys.version.split()[0]}
    for package, distribution in PACKAGES.items():
        if find_spec(package) is not None:
            versions[package] = metadata.version(distribution)
    key = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("REPRISE_CACHE") or Path.home() / ".cache" / "reprise")
    path = cache / f"docstrings-{key}.jsonl"
    if not path.is_file():
        if say is not None:
            say("reading docstrings from the installed packages (once, about half a minute)")
        pairs = build_pairs([name for name in versions if name in PACKAGES])
        cache.mkdir(parents=True, exist_ok=True)
        files.write_text(path, "".join(json.dumps(pair) + "\n" for pair in pairs))
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def build_pairs(packages: list[str]) -> list[dict[str, str]]:
    """Parse every source file; keep the first of equal summaries, so no held-out one is in train.

    Files are read in sorted order, held-out modules first: where a summary occurs in both, the
    held-out module keeps it and training goes without.
    """
    sources = sorted(
        (split_of(module), module, path)
        for package in [*packages, "standard library"]
        for module, path in _sources(package)
    )
    seen: set[str] = set()
    pairs = []
    for split, module, path in sources:
        for pair in read_source(path.read_bytes(), module):
            if pair["summary"].lower() not in seen:
                seen.add(pair["summary"].lower())
                pairs.append({**pair, "split": split})
    return pairs


def split_of(module: str) -> str:
    """A module is in "test" or "train" by the hash of its name; so are all its docstrings."""
    number = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big")
    return "test" if number % HELDOUT_SHARE == 0 else "train"


def _sources(package: str) -> Iterator[tuple[str, Path]]:
    """(module name, file) of every source file of a package."""
    if package == "standard library":
        root = Path(sysconfig.get_path("stdlib"))
        prefix: tuple[str, ...] = ()
    else:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        root, prefix = Path(spec.submodule_search_locations[0]), (package,)
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder, name)
                inner = path.relative_to(root).with_suffix("").parts
                parts = [*prefix, *inner]
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def read_source(source: bytes, module: str) -> Iterator[dict[str, str]]:
    """The pairs of one source file, in the order of its definitions."""
    if b'"""' not in source and b"'''" not in source:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes are not our concern
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # templates and files for other Python versions
            return
    stack: list[tuple[ast.stmt, str]] = [(node, "") for node in reversed(tree.body)]
    while stack:
        node, owner = stack.pop()
        if isinstance(node, ast.If | ast.Try):
            stack.extend((child, owner) for child in reversed(node.body))
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        sentence, body = split_docstring(ast.get_docstring(node, clean=True) or "")
        if sentence:
            arguments = [] if isinstance(node, ast.ClassDef) else node.args.posonlyargs + (
                node.args.args + node.args.kwonlyargs
            )  # fmt: skip
            yield {
                "module": module,
                "owner": owner,
                "name": node.name,
                "arguments": ", ".join(
                    item.arg for item in arguments if item.arg not in ("self", "cls")
                ),
                "body": body,
                "summary": sentence,
            }
        if isinstance(node, ast.ClassDef):
            stack.extend((child, node.name) for child in reversed(node.body))


def split_docstring(docstring: str) -> tuple[str, str]:
    """(first sentence, the start of the rest), both as plain text; ("", "") if it will not do.

    A summary is one sentence of 3 to 16 words in plain ASCII that ends with a period.
    """
    text = plain_text(inspect.cleandoc(SECTIONS.sub("\n", "\n" + docstring)))
    paragraphs = re.split(r"\n\s*\n", text.strip())
    if len(paragraphs) > 1 and re.match(r"[\w.]+\(.*\)", paragraphs[0]):
        paragraphs = paragraphs[1:]  # C functions repeat their signature first
    first = " ".join(paragraphs[0].split())
    ends = re.search(
        r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\betc)(?<![A-Z])\.(\s+(?=[A-Z])|$)", first
    )
    sentence, rest = (first[: ends.start()], first[ends.end() :]) if ends else (first, "")
    sentence = sentence.strip().rstrip(".:;,! ")
    words = sentence.split()
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9 ,.'()/_-]*", sentence)
    if not plain or not 3 <= len(words) <= 16 or len(sentence) > 100:
        return "", ""
    if re.match(r"(todo|deprecated|copied|copyright|note|see|https?)\b", sentence, re.IGNORECASE):
        return "", ""
    body = " ".join([rest, *paragraphs[1:]]).split()
    return sentence[0].upper() + sentence[1:] + ".", " ".join(body[:BODY_WORDS])


def plain_text(text: str) -> str:
    """Docstring markup taken off: roles, code quotes, emphasis, links, directives, prompts."""
    text = re.sub(r"(?m)^\s*(\.\.|>>>|\.\.\. ).*$", "", text)
    text = re.sub(r"```.*?(```|\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r":[a-z:]+:`[~!]?(?:[^`<]*\.)?([^`<.]+?)(?:\s*<[^`]*>)?`", r"\1", text)
    text = re.sub(r"\[`[~!]?(?:[\w.]+\.)?(\w+)`\](\(.*?\))?", r"\1", text)
    text = re.sub(r"`{1,2}([^`]*)`{1,2}_?", r"\1", text)
    return re.sub(r"\*{1,2}(\w[^*\n]*)\*{1,2}", r"\1", text)


def split_words(identifier: str) -> str:
    """`read_HTMLTable2` -> "read html table 2"."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier)
    return " ".join(parts).lower()


def overlap(pair: dict[str, str]) -> float:
    """Share of the name's words, little ones aside, that the summary uses (first five letters)."""
    words = [word for word in split_words(pair["name"]).split() if len(word) > 1]
    wanted = [word[:5] for word in words if word not in LITTLE_WORDS]
    found = {word[:5] for word in re.findall("[a-z]+", split_words(pair["summary"]))}
    return sum(word in found for word in wanted) / len(wanted) if wanted else 0.0


def render(pair: dict[str, str], body_words: int = BODY_WORDS) -> dict[str, str]:
    """The prompt (it ends with "Summary:") and the reference (it starts with a space).

    The name is written as a sentence starts, "Get title", for the same reason that it is split
    into words: " Get" and " get" are different tokens.
    """
    lines = []
    if pair["owner"]:
        lines.append(f"Class: {split_words(pair['owner'])}")
    if pair["arguments"]:
        names = [split_words(name) for name in pair["arguments"].split(", ")]
        lines.append(f"Args: {', '.join(name for name in names[:5] if name)}")
    body = " ".join(pair["body"].split()[:body_words])
    if body:
        lines.append(f"Body: {body}")
    lines += [f"Name: {split_words(pair['name']).capitalize()}", "Summary:"]
    return {"prompt": "\n".join(lines), "reference": " " + pair["summary"]}


def shuffle_key(pair: dict[str, str]) -> bytes:
    """A fixed random order: neighbours in a file are alike, and slices should be fair samples."""
    name = f"{pair['module']}.{pair['owner']}.{pair['name']} {pair['summary']}"
    return hashlib.sha256(name.encode()).digest()
