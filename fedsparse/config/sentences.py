"""One sentence for each thing that can be wrong with a configuration."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo


class ConfigError(ValueError):
    """What is wrong with a configuration: one sentence that names the field, the value given and the legal ones."""


PLAIN_NAMES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
BOUNDS = {"gt": "greater than {}", "ge": "at least {}", "lt": "less than {}", "le": "at most {}"}


def shown(value: Any) -> str:
    """Return a TOML-like, shortened spelling of a value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, dict):
        return "not set" if value is None else "a table"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(names: Iterable[str]) -> str:
    """Return the names as a readable list, or "none" when there are none."""
    return ", ".join(names) or "none"


def unknown(field: str, given: Any, what: str, choices: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not among the choices, with the nearest of them."""
    choices = list(choices)
    return ConfigError(
        f"{field} is {shown(given)}, which is not a known {what}"
        f"{nearest_hint(str(given), choices)} (choices: {listed(choices)})"
    )


def unknown_key(path: tuple[str, ...], keys: Iterable[str]) -> ConfigError:
    """Return the error for a key that its table does not have, with the nearest key that it has."""
    keys = list(keys)
    table = f"[{'.'.join(path[:-1])}]" if len(path) > 1 else "the configuration"
    hint = nearest_hint(path[-1], keys)
    return ConfigError(f"{'.'.join(path)} is not a key of {table}{hint} (keys: {listed(keys)})")


def nearest_hint(given: str, choices: list[str]) -> str:
    """Return "; did you mean X?" for the choice nearest to what was given, or nothing when none is near."""
    near = difflib.get_close_matches(given.lower(), choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def explain(
    error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> ConfigError:
    """Return the sentence for the first error that pydantic found in `model`.

    Unknown keys come first: a misspelt key is told before what is missing because of it. `prefix` is the path of the
    model within the configuration, `also` are keys of the outermost table that the model leaves to others.
    """
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    detail = details[0]
    path = tuple(str(part) for part in detail["loc"])
    table, field, depth = locate(model, path)
    dotted = ".".join(prefix + path[:depth])
    if detail["type"] == "extra_forbidden":
        keys = [*table.model_fields, *(also if len(path) == 1 else ())]
        return unknown_key(prefix + path, sorted(keys))
    if detail["type"] == "missing":
        return ConfigError(f"{dotted} is missing; it must be {described(field)}")
    return ConfigError(f"{dotted} is {shown(detail['input'])} but must be {described(field)}")


def locate(model: type[BaseModel], path: tuple[str, ...]) -> tuple[type[BaseModel], FieldInfo | None, int]:
    """Return the table and the field of a dotted path, and how many of its parts name tables and fields."""
    field: FieldInfo | None = None
    for depth, part in enumerate(path):
        if part not in model.model_fields:
            return model, field, depth
        field = model.model_fields[part]
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return model, field, depth + 1
        model = field.annotation
    return model, field, len(path)


def described(field: FieldInfo | None) -> str:
    """Return what a field accepts, in words: its type, its choices, its range."""
    if field is None:
        return "a table of keys and values"
    return describe(field.annotation, field.metadata)


def describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return in words what a type with its constraints accepts."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return describe(inner, [*metadata, *flattened(more)])
    if origin is Literal:
        return "one of " + ", ".join(shown(choice) for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return " or ".join(describe(member, metadata) for member in members)
    if origin in (list, tuple):
        return f"a list whose entries are each {describe(get_args(annotation)[0])}"
    if origin is dict:
        return f"a table whose values are each {describe(get_args(annotation)[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a table of the keys {listed(sorted(annotation.model_fields))}"
    return PLAIN_NAMES.get(annotation, "text") + ranged(metadata)


def flattened(metadata: Iterable[Any]) -> Iterable[Any]:
    """Return constraints one by one, those packed in a pydantic Field included."""
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]


def ranged(metadata: Iterable[Any]) -> str:
    """Return the bounds among the constraints in words, with a leading space."""
    found = {key: bound for item in metadata for key in BOUNDS if (bound := getattr(item, key, None)) is not None}
    if found.keys() == {"ge", "le"}:
        return f" from {found['ge']} to {found['le']}"
    parts = [words.format(found[key]) for key, words in BOUNDS.items() if key in found]
    return " " + " and ".join(parts) if parts else ""
