"""From the `[method]` table to an instance of the method's own frozen dataclass."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any, ClassVar, get_origin, get_type_hints

from pydantic import BaseModel, Field, ValidationError, create_model

from fedsparse import methods
from fedsparse.config.schema import Table, Train
from fedsparse.config.sentences import ConfigError, explain, shown, unknown
from fedsparse.federated.masked_method import MaskedMethod


def method_from(table: dict[str, Any]) -> Any:
    """Return the instance of a method, its fields checked against their annotations.

    Raises ConfigError for an unknown method, an unknown field, a field out of range, or what the method itself refuses.
    """
    settings = dict(table)
    name = settings.pop("name", None)
    if name is None:
        raise ConfigError(f"method.name is missing; it must be one of {', '.join(methods.names())}")
    if not isinstance(name, str) or name not in methods.names():
        raise unknown("method.name", name, "method", methods.names())
    method = instance_of(methods.get(name), settings)
    refuse_mask_settings_of_dense(method, settings)
    return method


def train_of(method: Any, given: Train) -> Train:
    """Return what the configuration gives of `[train]`, the method's own `training` where it gives nothing.

    Raises ConfigError where the method's is no setting of `[train]`.
    """
    try:
        return Train.model_validate({**method.training, **given.model_dump(exclude_unset=True)})
    except ValidationError as error:
        raise explain(error, Train, prefix=("train",)) from None


def refuse_mask_settings_of_dense(method: Any, settings: dict[str, Any]) -> None:
    """Refuse settings of a mask where there is none: they would change nothing. Written-out defaults pass."""
    if isinstance(method, MaskedMethod) and method.density == 1:
        others = [field for field in fields(MaskedMethod) if field.name != "density"]
        idle = [field.name for field in others if settings.get(field.name, field.default) != field.default]
        if idle:
            raise ConfigError(
                f"method.{idle[0]} is {shown(settings[idle[0]])} but method.density is 1, so there is no mask; "
                f"give a density below 1 or leave out {idle[0]}"
            )


def instance_of(method: type[Any], settings: dict[str, Any]) -> Any:
    """Return `method(**settings)` after checking every setting against the dataclass's annotations."""
    model = model_of(method)
    try:
        checked = model.model_validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        raise explain(error, model, prefix=("method",)) from None
    try:
        return method(**{key: getattr(checked, key) for key in model.model_fields})
    except ValueError as error:
        raise ConfigError(f"method: {error}") from None


def model_of(method: type[Any]) -> type[BaseModel]:
    """Return the pydantic model with the fields, constraints and defaults of a method's dataclass."""
    hints = get_type_hints(method, include_extras=True)
    specification: dict[str, Any] = {}
    for field in fields(method):
        if field.init and get_origin(hints[field.name]) is not ClassVar:
            specification[field.name] = (hints[field.name], default_of(field))
    return create_model(f"{method.__name__}Table", __base__=Table, **specification)


def default_of(field: Any) -> Any:
    """Return a dataclass field's default as pydantic writes it: a value, a factory, or `...` for none."""
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return Field(default_factory=field.default_factory)
    return ...


def settings_of(method: type[Any]) -> dict[str, str]:
    """Return each setting of a method with its default, for listing."""
    return {
        name: "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
        for name, field in model_of(method).model_fields.items()
    }


def training_of(method: type[Any]) -> dict[str, str]:
    """Return the settings of `[train]` that a method's paper states, as keys of the configuration, for listing."""
    return {f"train.{name}": shown(value) for name, value in method.training.items()}
