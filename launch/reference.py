"""docs/configuration.md: every key of every experiment, from the config models themselves.

python -m reprise.launch.reference      writes the page; a test asserts that it is current
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reprise.launch.config import EXPERIMENTS
from reprise.rollout.files import write_text
from reprise.rollout.run.markdown import markdown_table

PAGE = Path("docs/configuration.md")
HEAD = """# Configuration reference

Generated from the config models by `python -m reprise.launch.reference`; do not edit. A config is
YAML; any key can be set on the command line as `key.path=value`. Unknown keys are refused, with the
nearest known one named.
`reprise run CONFIG --dry-run` prints a config with every default written out.
"""


def page() -> str:
    """The whole reference as Markdown."""
    parts = [HEAD]
    for name, experiment in EXPERIMENTS.items():
        parts.append(f"## {name}\n\n{_first_letter_up(experiment.description)}.\n")
        parts.append(_table(experiment.config_type()))
    return "\n".join(parts)


def _table(model: type[BaseModel]) -> str:
    rows = []
    for key, field in _fields(model):
        if key == "experiment":
            continue
        rows.append([f"`{key}`", _type(field), _default(field), field.description or ""])
    return markdown_table(["key", "type", "default", "meaning"], rows)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its field; a section's keys follow the section."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for section in _sections(field.annotation):
            yield from _fields(section, f"{prefix}{name}{'[]' if _is_list(field) else ''}.")


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(part) is list for part in _parts(field.annotation))


def _parts(annotation: Any) -> Iterator[Any]:
    """The annotation, and everything inside it."""
    yield annotation
    for part in get_args(annotation):
        if not isinstance(part, str | int | float | bool):
            yield from _parts(part)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    found = [p for p in _parts(annotation) if isinstance(p, type) and issubclass(p, BaseModel)]
    return list(dict.fromkeys(found))


def _type(field: FieldInfo) -> str:
    bounds = []
    for rule in field.metadata:
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if getattr(rule, name, None) is not None:
                bounds.append(f"{sign} {getattr(rule, name):g}")
    return _type_name(field.annotation) + (f", {', '.join(bounds)}" if bounds else "")


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(part) for part in arguments))
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is tuple:
        return "list of " + ", ".join(_type_name(part) for part in arguments if part is not ...)
    if origin is dict:
        return f"mapping to {_type_name(arguments[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return f"`{'null' if value is None else value}`"


def _first_letter_up(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    write_text(PAGE, page())
    print(PAGE, file=sys.stderr)
