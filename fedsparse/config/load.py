"""Read a TOML file and the overrides of the command line into a checked configuration."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsparse.config.schema import Config, Tables
from fedsparse.config.sentences import ConfigError, explain, shown

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    data_dir: str | Path | None = None,
) -> Config:
    """Return the checked configuration of a TOML file.

    `overrides` are `table.key=value` texts, as given to `--set`; `seed` and `data_dir` replace `seed` and `data.dir`.
    The name of the run defaults to the file's. Raises ConfigError, whose text is one sentence.
    """
    tables = tables_of(path, overrides, seed, data_dir)
    if isinstance(tables.get("method"), list):
        raise ConfigError(f"{path} holds several methods, which `fedsparse compare` runs; a run has one")
    return from_tables(tables)


def load_several(
    path: str | Path,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    data_dir: str | Path | None = None,
) -> list[Config]:
    """Return the checked configurations of a file that may hold several methods, as `[[method]]` tables.

    Each of these makes a configuration of its own, whose name is its key `run`, or that of the method. There an
    override `method.key` holds for all tables that have the key, or where none has it for all tables, and
    `method.<name>.key` for the one of that name.
    """
    tables = tables_of(path, overrides, seed, data_dir)
    methods = tables.get("method")
    if not isinstance(methods, list):
        return [from_tables(tables)]
    if not methods:
        raise ConfigError("method is an empty list but must hold a table for each method")
    configs = []
    for method in methods:
        settings = dict(method) if isinstance(method, dict) else method
        name = settings.pop("run", settings.get("name")) if isinstance(settings, dict) else None
        try:
            configs.append(from_tables(tables | {"method": settings} | ({} if name is None else {"name": name})))
        except ConfigError as error:
            raise ConfigError(str(error) if name is None else f"{error}, in [[method]] {name}") from None
    return configs


def tables_of(
    path: str | Path, overrides: Iterable[str], seed: int | None, data_dir: str | Path | None
) -> dict[str, Any]:
    """Return the tables of a TOML file with what the command line sets; `name` defaults to the file's."""
    path = Path(path)
    tables = {"name": path.stem} | read_toml(path)
    for override in overrides:
        apply_override(tables, override)
    if seed is not None:
        tables["seed"] = seed
    if data_dir is not None:
        set_key(tables, ["data", "dir"], str(data_dir), "--data-dir")
    return tables


def reload(path: Path, data_dir: Path | None = None) -> Config:
    """Return the configuration that a run wrote as JSON; `data_dir` replaces `data.dir`. Raises ConfigError."""
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise ConfigError(f"{path} is not JSON, so it was truncated or edited") from None
    if not isinstance(tables, dict):
        raise ConfigError(f"{path} is JSON but not an object")
    if data_dir is not None:
        set_key(tables, ["data", "dir"], str(data_dir), "--data-dir")
    try:
        return from_tables(tables)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def from_tables(tables: dict[str, Any]) -> Config:
    """Return the checked configuration of nested dicts, as TOML gives them.

    What `[train]` leaves out is as the method's `training` says, else as the schema does. Raises ConfigError for what
    is wrong within one field; `experiment_of` looks at fields together.
    """
    tables = copy.deepcopy(tables)
    method = tables.pop("method", None)
    default_to_all_clients(tables)
    try:
        checked = Tables.model_validate_json(json.dumps(tables, default=str))
    except ValidationError as error:
        raise explain(error, Tables, also=("method",)) from None
    if not RUN_NAME.fullmatch(checked.name):
        raise ConfigError(
            f"name is {shown(checked.name)} but must be 1 to 64 letters, digits, '.', '_' or '-', "
            "the first of them a letter or a digit"
        )
    if not isinstance(method, dict):
        given = "missing" if method is None else shown(method)
        raise ConfigError(f"method is {given} but must be a table with the method's name and its settings")
    from fedsparse.config.method_table import method_from, train_of

    made = method_from(method)
    return Config(**dict(checked) | {"train": train_of(made, checked.train)}, method=made)


def default_to_all_clients(tables: dict[str, Any]) -> None:
    """Let every client take part in every round where the configuration does not say how many do."""
    train = tables.setdefault("train", {})
    partition = tables.get("partition", {})
    clients = partition.get("clients", 10) if isinstance(partition, dict) else 10
    if isinstance(train, dict):
        valid = isinstance(clients, int) and not isinstance(clients, bool) and clients >= 1
        train.setdefault("clients_per_round", clients if valid else 1)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file; ConfigError names the file and, for a syntax error, the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"the configuration file {path} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder but must be a TOML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8 (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror}") from None


def apply_override(tables: dict[str, Any], override: str) -> None:
    """Set one `table.key=value` in the tables; the value is read as TOML, or as bare text where it is none."""
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {shown(override)} must have the form table.key=value, as in train.lr=0.1")
    methods = tables.get("method")
    if parts[0] == "method" and len(parts) > 1 and isinstance(methods, list):
        for method, inner in addressed(methods, parts[1:]):
            set_key(method, inner, override_value(value.strip()), "--set")
    else:
        set_key(tables, parts, override_value(value.strip()), "--set")


def addressed(methods: list[Any], parts: list[str]) -> list[tuple[dict[str, Any], list[str]]]:
    """Return the `[[method]]` tables for which an override holds, each with the key's path within it."""
    named = {str(method.get("run", method.get("name"))): method for method in methods if isinstance(method, dict)}
    if len(parts) > 1 and parts[0] in named:
        return [(named[parts[0]], parts[1:])]
    having = [method for method in named.values() if parts[0] in method]
    if len(parts) > 1 and not having:
        raise ConfigError(
            f"--set sets method.{'.'.join(parts)}, but no [[method]] is named {parts[0]}; they are {', '.join(named)}"
        )
    return [(method, parts) for method in having or named.values()]


def set_key(tables: dict[str, Any], parts: list[str], value: Any, option: str) -> None:
    """Set the value at a dotted path, making tables on the way."""
    for depth, part in enumerate(parts[:-1]):
        tables = tables.setdefault(part, {})
        if not isinstance(tables, dict):
            outer = ".".join(parts[: depth + 1])
            raise ConfigError(f"{option} sets {'.'.join(parts)}, but {outer} is {shown(tables)} and not a table")
    tables[parts[-1]] = value


def override_value(text: str) -> Any:
    """Return a command-line value: a TOML value, a number in shell spelling (".1"), or the text itself."""
    number = re.fullmatch(r"([-+]?)\.(\d.*)", text)
    try:
        tables = tomllib.loads("value = " + (f"{number[1]}0.{number[2]}" if number else text))
    except tomllib.TOMLDecodeError:
        return text
    single = list(tables) == ["value"] and isinstance(tables["value"], bool | int | float | str | list | dict)
    return tables["value"] if single else text
