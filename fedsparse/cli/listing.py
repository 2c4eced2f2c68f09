"""What there is to choose from: methods with their settings, models, data sets."""

from __future__ import annotations

import inspect
import json
from typing import Any

Entries = dict[str, dict[str, Any]]


def show(what: str, as_json: bool) -> None:
    """Print the methods, the models or the data sets."""
    entries = {"methods": methods, "models": models, "datasets": datasets}[what]()
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for name, facts in entries.items():
        console.print(f"[bold]{escape(name)}[/bold]  {escape(facts['about'])}", soft_wrap=True)
        for key, default in facts.get("settings", {}).items():
            console.print(f"    {escape(key)} = {escape(default)}", soft_wrap=True)


def methods() -> Entries:
    """Return each method's paper and settings with their defaults, last those of `[train]` that the paper states."""
    from fedsparse import methods as registry
    from fedsparse.config.method_table import settings_of, training_of

    found = {name: registry.get(name) for name in registry.names()}
    return {
        name: {"about": paper_of(method), "settings": settings_of(method) | training_of(method)}
        for name, method in found.items()
    }


def paper_of(method: type[Any]) -> str:
    """Return the first line of the file of a method, which cites its paper, or of the method itself."""
    module = inspect.getmodule(method)
    text = (module.__doc__ if module else None) or method.__doc__ or ""
    return text.strip().partition("\n")[0]


def models() -> Entries:
    """Return each model's description."""
    from fedsparse.models.registry import FAMILIES

    return {name: {"about": " ".join((family.make.__doc__ or "").split())} for name, family in sorted(FAMILIES.items())}


def datasets() -> Entries:
    """Return where each data set is, or how it can be had."""
    from fedsparse import data

    return {name: {"about": about} for name, about in data.available().items()}
