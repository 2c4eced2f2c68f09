"""From a configuration to the experiment that the loop runs: data, split, model, method.

What single fields cannot tell is refused here, before any training: names that do not exist, data that are missing,
sizes that do not fit together.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsparse import data, models
from fedsparse.config.schema import Config
from fedsparse.config.sentences import ConfigError, unknown
from fedsparse.data import DataError, Dataset
from fedsparse.federated import Experiment, Training
from fedsparse.federated.seeds import derive, numpy_generator

Splits = tuple[Dataset, Dataset]


def experiment_of(config: Config, splits: Splits | None = None) -> Experiment:
    """Return the experiment of a configuration; `splits` are its data where they are loaded already.

    Raises ConfigError for what cannot work, with one sentence.
    """
    check_names(config)
    train, test = load_data(config) if splits is None else splits
    check_sizes(config, train)
    parts = split(config, train)
    model = build(config, train)
    check_smallest_batch(config, model, train, parts)
    return Experiment(
        model=model,
        method=config.method,
        train=train,
        test=test,
        parts=parts,
        training=Training(**config.train.model_dump(), augment=config.data.augment),
        seed=config.seed,
        wire=config.wire.values,
        name=config.name,
        labels={"model": config.model.name, "dataset": config.data.name},
    )


def check_names(config: Config) -> None:
    """Refuse a model or a data set that does not exist, and more clients a round than there are."""
    if config.model.name not in models.names():
        raise unknown("model.name", config.model.name, "model", models.names())
    known = config.data.name.startswith("imagefolder:") or config.data.name in data.names()
    if not known:
        raise unknown("data.name", config.data.name, "data set", data.names())
    if config.train.clients_per_round > config.partition.clients:
        raise ConfigError(
            f"train.clients_per_round is {config.train.clients_per_round} "
            f"but must be at most partition.clients, which is {config.partition.clients}"
        )


def load_data(config: Config) -> Splits:
    """Return the train and the test set of a configuration."""
    table = config.data
    if table.dir is not None and not table.download and not table.dir.is_dir():
        raise ConfigError(f"data.dir is {str(table.dir)!r} but must be a folder that exists")
    try:
        return data.load(
            table.name, table.dir, table.download, image_size=table.image_size, train_limit=table.train_limit
        )
    except DataError as error:
        raise ConfigError(f"data.name is {table.name!r}, and it cannot be used: {error}") from None


def check_sizes(config: Config, train: Dataset) -> None:
    """Refuse a batch that is larger than the whole training set, and more classes a client than there are."""
    if config.train.batch_size > len(train):
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size} "
            f"but must be at most the number of training images, which is {len(train)}"
        )
    width = config.partition.classes_per_client
    if config.partition.kind == "shards" and width > train.classes:
        raise ConfigError(
            f"partition.classes_per_client is {width} "
            f"but must be at most the number of classes, which is {train.classes}"
        )


def split(config: Config, train: Dataset) -> list[np.ndarray]:
    """Return the sample indices of each client, drawn from the seed of the run."""
    table = config.partition
    try:
        return data.partition(
            table.kind,
            train.labels.numpy(),
            table.clients,
            numpy_generator(config.seed, "partition"),
            alpha=table.alpha,
            classes_per_client=table.classes_per_client,
            min_samples=table.min_samples,
        )
    except ValueError as error:
        raise ConfigError(f"partition.clients is {table.clients}, and that split is impossible: {error}") from None


def build(config: Config, train: Dataset) -> nn.Module:
    """Return the freshly initialised dense model, the same for every method of the same seed."""
    width: dict[str, Any] = {} if config.model.width is None else {"width": config.model.width}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "model"))
        try:
            return models.build(
                config.model.name,
                train.classes,
                channels=train.channels,
                image_size=train.image_size,
                norm=config.model.norm,
                **width,
            )
        except ValueError as error:
            raise ConfigError(
                f"data.image_size is {train.image_size} and model.width {config.model.width or 'the default'}, "
                f"and the model cannot be built: {error}"
            ) from None


def check_smallest_batch(config: Config, model: nn.Module, train: Dataset, parts: list[np.ndarray]) -> None:
    """Refuse batches of one image where the model's batch norm cannot train on one."""
    smallest = min(len(part) for part in parts)
    if min(config.train.batch_size, smallest) > 1:
        return
    trial = config.method.prepare(copy.deepcopy(model)).train()
    try:
        trial(train.batch(np.array([0]))[0])
    except ValueError:
        field = "train.batch_size" if config.train.batch_size == 1 else "partition.min_samples"
        raise ConfigError(
            f"{field} is 1 but must be at least 2 for {config.model.name} with batch norm at {train.image_size} pixels "
            "(model.norm = 'group' takes single images)"
        ) from None
