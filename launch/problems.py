"""What is wrong with a config, in words: the key as typed, the value, the rule, the nearest key."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

_UNTYPED = object()


def explain(error: ValidationError, model: type[BaseModel], raw: Any) -> list[str]:
    """One sentence for each problem that pydantic found in `raw`.

    The branches of a union (a number, or a list of numbers) each complain about one value; that is
    one problem to a reader, so they are joined, and a complaint about an entry of a list stands
    for the complaint that the list is not a number.
    """
    found: dict[tuple[str | int, ...], list[dict[str, Any]]] = {}
    in_union: dict[tuple[str | int, ...], bool] = {}
    for detail in error.errors(include_url=False):
        key = _typed_key(detail, raw)
        found.setdefault(key, []).append(dict(detail))
        in_union[key] = len(key) < len(detail["loc"])
    sentences = []
    for key, details in found.items():
        deeper = any(other[: len(key)] == key and len(other) > len(key) for other in found)
        if in_union[key] and deeper and details[0]["type"] not in ("value_error", "missing"):
            continue
        sentences.append(_sentence(key, details, model, raw))
    return sentences


def _typed_key(detail: Any, raw: Any) -> tuple[str | int, ...]:
    """Where the problem is, without the names of union branches that pydantic puts in between."""
    key: list[str | int] = []
    here = raw
    location = detail["loc"]
    for position, part in enumerate(location):
        if isinstance(here, dict) and part in here:
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif not (detail["type"] == "missing" and position == len(location) - 1):
            continue
        key.append(part)
    return tuple(key)


def _sentence(
    key: tuple[str | int, ...], details: list[dict[str, Any]], model: type[BaseModel], raw: Any
) -> str:
    typed = ".".join(map(str, key))
    first = details[0]
    if first["type"] == "extra_forbidden":
        return f"{typed} = {shown(first['input'])}: unknown key{_nearest(key, model, raw)}"
    if first["type"] == "missing":
        return f"{typed}: required, but not given{_meaning(key, model, raw)}"
    rule = " or ".join(dict.fromkeys(_rule(detail) for detail in details))
    rule = rule.replace(" or should be", " or")
    if first["type"] == "value_error" and isinstance(first["input"], dict):
        return f"{typed}: {rule}" if typed else rule
    return f"{typed} = {shown(first['input'])}: {rule}{_meaning(key, model, raw)}"


def _rule(detail: dict[str, Any]) -> str:
    if detail["type"] == "union_tag_invalid":
        name = detail["ctx"]["discriminator"].strip("'")
        tag = detail["ctx"]["tag"]
        tags = [word.strip(" '") for word in detail["ctx"]["expected_tags"].split(",")]
        close = get_close_matches(str(tag), tags, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"{name} is {tag!r}, but should be one of {', '.join(tags)}{hint}"
    if detail["type"] == "union_tag_not_found":
        return f"the key '{detail['ctx']['discriminator'].strip(chr(39))}' is missing from it"
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return text.replace("valid array", "list").replace("an object", "a section of keys")


def shown(value: Any) -> str:
    """A value short enough for a sentence."""
    if isinstance(value, dict):
        return "{" + ", ".join(map(str, value)) + "}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- the keys that exist -------------------------------------------------------------------------


def _nearest(key: tuple[str | int, ...], model: type[BaseModel], raw: Any) -> str:
    *section, name = key
    siblings = {
        ".".join(map(str, [*section, sibling])): sibling
        for part in _models_at(section, model, raw)
        for sibling in part.model_fields
    }
    everywhere = dict.fromkeys(_dotted_keys(model, raw, ""))
    close = get_close_matches(str(name), [str(sibling) for sibling in siblings.values()], n=1)
    if close:
        [match] = [dotted for dotted, sibling in siblings.items() if sibling == close[0]]
        return f"; did you mean '{match}'?"
    moved = [dotted for dotted in everywhere if dotted.split(".")[-1] == name]
    moved = moved or get_close_matches(".".join(map(str, key)), everywhere, n=1, cutoff=0.5)
    if moved:
        return f"; did you mean '{moved[0]}'?"
    return f"; the keys here are {', '.join(siblings.values())}" if siblings else ""


def _meaning(key: tuple[str | int, ...], model: type[BaseModel], raw: Any) -> str:
    """What a key is for, from its field's description."""
    *section, name = key or ("",)
    for part in _models_at(section, model, raw):
        field = part.model_fields.get(str(name))
        if field is not None and field.description:
            return f" ({field.description})"
    return ""


def _models_at(section: list[str | int], model: type[BaseModel], raw: Any) -> list[type[BaseModel]]:
    """The config sections that may stand at `section`, told apart by their literal fields."""
    models, here = [model], raw
    for part in section:
        here = _child(here, part)
        annotations = [
            option.model_fields[part].annotation
            for option in models
            if isinstance(part, str) and part in option.model_fields
        ]
        models = [found for one in annotations for found in _sections(one, here)]
    return models


def _sections(annotation: Any, raw: Any) -> list[type[BaseModel]]:
    """The config sections inside an annotation such as ``Annotated[DPO | REBEL, ...] | None``."""
    found = [
        option
        for option in _leaves(annotation)
        if isinstance(option, type) and issubclass(option, BaseModel)
    ]
    return [option for option in found if _fits(option, raw)] or found


def _leaves(annotation: Any) -> Iterator[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal or not arguments:
        yield annotation
    else:
        for argument in arguments[:1] if origin is Annotated else arguments:
            yield from _leaves(argument)


def _fits(option: type[BaseModel], raw: Any) -> bool:
    return all(
        _child(raw, name) in get_args(field.annotation)
        for name, field in option.model_fields.items()
        if get_origin(field.annotation) is Literal and field.is_required()
        if _child(raw, name) is not _UNTYPED and isinstance(_child(raw, name), str)
    )


def _child(raw: Any, part: str | int) -> Any:
    if isinstance(raw, dict):
        return raw.get(part, _UNTYPED)
    if isinstance(raw, list) and isinstance(part, int) and part < len(raw):
        return raw[part]
    return _UNTYPED


def _dotted_keys(model: type[BaseModel], raw: Any, prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if name == "train" and not _sections(field.annotation, _UNTYPED):
            from reprise.alignment.training.arguments import training_argument_types

            yield from (f"{prefix}train.{argument}" for argument in training_argument_types())
        for section in _sections(field.annotation, _child(raw, name)):
            yield from _dotted_keys(section, _child(raw, name), f"{prefix}{name}.")
