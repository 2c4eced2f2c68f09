"""From a configuration to the experiment that the loop runs: data, split, model, method.

What single fields cannot tell is refused here, before any training: names that do not exist, data that are missing,
sizes that do not fit together.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsparse import data, models
from fedsparse.comm.mpi import local_rank
from fedsparse.config.memory_limits import limits_of
from fedsparse.config.schema import Config
from fedsparse.config.sentences import ConfigError, unknown
from fedsparse.data import DataError, Dataset, Samples, Text
from fedsparse.federated import Checkpoints, Experiment, Failures, Training
from fedsparse.federated.cohort import admits
from fedsparse.federated.experiment import check_sums
from fedsparse.federated.feedback import check_feedback
from fedsparse.federated.plan import check_pieces
from fedsparse.federated.robust import Aggregation
from fedsparse.federated.seeds import derive, numpy_generator
from fedsparse.nn import keep_activations, parse_levels
from fedsparse.nn.keeping import levelled

Splits = tuple[Samples, Samples]
NOT_LOCAL = {"pretrain_epochs", "memory_limit", "fit_density"}
"""Keys of `[train]` that are no fields of `Training`."""


def experiment_of(config: Config, splits: Splits | None = None) -> Experiment:
    """Return the experiment of a configuration; `splits` are its data where they are loaded already.

    Raises ConfigError for what cannot work, with one sentence.
    """
    check_names(config)
    failures = Failures(**config.failures.model_dump(exclude_none=True))
    aggregation = Aggregation(**config.aggregation.model_dump())
    try:
        check_sums(config.ranks.sums, aggregation, failures)
        check_feedback(config.wire.error_feedback, config.wire.values)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    limits = limits_of(config.train.memory_limit, config.partition.clients)
    train, test = load_data(config) if splits is None else splits
    check_sizes(config, train)
    public, rest = held_back(config, len(train))
    parts = split(config, train, rest)
    model = build(config, train)
    check_activations(config, model)
    check_smallest_batch(config, model, train, parts)
    return Experiment(
        model=model,
        method=config.method,
        train=train,
        test=test,
        parts=parts,
        training=training_of(config, model),
        seed=config.seed,
        wire=config.wire.values,
        aggregation=aggregation,
        public=public if len(public) else None,
        pretrain_epochs=config.train.pretrain_epochs,
        name=config.name,
        labels={"model": config.model.name, "dataset": config.data.name},
        failures=failures,
        checkpoints=Checkpoints(**config.checkpoints.model_dump()),
        memory_limits=limits,
        server_works=config.ranks.server_works,
        sums=config.ranks.sums,
        error_feedback=config.wire.error_feedback,
    )


def training_of(config: Config, model: nn.Module) -> Training:
    """Return how rounds and local training of the model go."""
    try:
        training = Training(**config.train.model_dump(exclude=NOT_LOCAL), augment=config.data.augment)
        check_pieces(training, config.method, model)
    except ValueError as error:
        raise ConfigError(f"train.{error}") from None
    return training


def check_names(config: Config) -> None:
    """Refuse a device, a model or a data set that is not there or does not fit, and more clients than there are."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda' but torch finds no GPU that it can use; leave it out to run on the CPU")
    if config.model.name not in models.names():
        raise unknown("model.name", config.model.name, "model", models.names())
    if not data.known(config.data.name):
        raise unknown("data.name", config.data.name, "data set", data.names())
    check_kind_of_data(config)
    if config.train.clients_per_round > config.partition.clients:
        raise ConfigError(
            f"train.clients_per_round is {config.train.clients_per_round} "
            f"but must be at most partition.clients, which is {config.partition.clients}"
        )
    if config.train.cohort > 1 and not admits(config.method):
        raise ConfigError(
            f"train.cohort is {config.train.cohort}, but {config.method.name} changes how a client trains, "
            "so that its clients train one after the other; leave it out"
        )
    if config.train.cohort > 1 and config.train.memory_limit is not None:
        raise ConfigError(
            f"train.cohort is {config.train.cohort}, but train.memory_limit is what a client may take alone; "
            "leave one of them out"
        )
    if config.train.fit_density and config.train.memory_limit is None:
        raise ConfigError("train.fit_density is true, but there is no train.memory_limit for the density to fit")
    for sink in config.track:
        if importlib.util.find_spec(sink) is None:
            raise ConfigError(
                f"track names {sink!r}, but the package {sink} is not installed; "
                f"pip install 'fedsparse[{sink}]' brings it"
            )
    least = 2 * config.aggregation.attackers + 3
    if config.aggregation.rule == "krum" and config.train.clients_per_round < least:
        raise ConfigError(
            f"aggregation.attackers is {config.aggregation.attackers}, for which Krum needs {least} clients a round, "
            f"but train.clients_per_round is {config.train.clients_per_round}"
        )


def check_kind_of_data(config: Config) -> None:
    """Refuse a model of images for text and the reverse, and settings of the one for the other."""
    text = data.is_text(config.data.name)
    kind = "text" if text else "images"
    if config.model.name not in models.names(text=text):
        raise ConfigError(
            f"model.name is {config.model.name!r} but data.name is {config.data.name!r}; "
            f"models of {kind}: {', '.join(models.names(text=text))}"
        )
    idle = ("image_size", "augment", "download") if text else ("context", "vocab")
    for field in idle:
        if getattr(config.data, field):
            raise ConfigError(
                f"data.{field} is set but data.name is {config.data.name!r}, which is {kind}; leave it out"
            )
    if text and getattr(config.method, "initial", None) == "synflow":
        raise ConfigError(
            "method.initial is 'synflow' but data.name is text, and its all-ones input has no tokens; "
            "choose another initial mask"
        )


def load_data(config: Config) -> Splits:
    """Return the train and the test set of a configuration."""
    table = config.data
    if table.dir is not None and not table.download and not table.dir.is_dir():
        raise ConfigError(f"data.dir is {str(table.dir)!r} but must be a folder that exists")
    try:
        if data.is_text(table.name):
            return data.load_text(table.name, table.dir, table.context, table.vocab, table.train_limit)
        return data.load(
            table.name, table.dir, table.download, image_size=table.image_size, train_limit=table.train_limit
        )
    except DataError as error:
        raise ConfigError(f"data.name is {table.name!r}, and it cannot be used: {error}") from None


def check_sizes(config: Config, train: Samples) -> None:
    """Refuse a batch that is larger than the whole training set, and more classes a client than there are."""
    if config.train.batch_size > len(train):
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size} "
            f"but must be at most the number of training samples, which is {len(train)}"
        )
    width = config.partition.classes_per_client
    if config.partition.kind == "shards" and width > train.classes:
        raise ConfigError(
            f"partition.classes_per_client is {width} "
            f"but must be at most the number of classes, which is {train.classes}"
        )


def held_back(config: Config, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the samples that the server holds and of those for the clients, int64, ascending."""
    count = round(config.data.public_share * samples)
    order = numpy_generator(config.seed, "public").permutation(samples)
    return np.sort(order[:count]), np.sort(order[count:])


def split(config: Config, train: Samples, rest: np.ndarray) -> list[np.ndarray]:
    """Return each client's indices among those of `rest`, drawn from the seed of the run."""
    table = config.partition
    natural = None if train.clients is None else train.clients.numpy()[rest]
    try:
        parts = data.partition(
            table.kind,
            train.labels.numpy()[rest],
            table.clients,
            numpy_generator(config.seed, "partition"),
            alpha=table.alpha,
            classes_per_client=table.classes_per_client,
            min_samples=table.min_samples,
            contiguous=table.contiguous,
            natural=natural,
        )
        return [rest[part] for part in parts]
    except ValueError as error:
        raise ConfigError(
            f"partition.clients is {table.clients} and partition.kind {table.kind!r}, "
            f"and that split is impossible: {error}"
        ) from None


def device_of(config: Config) -> torch.device:
    """Return the device of this process, a GPU as the current one; ranks of one host take its GPUs in turn."""
    if config.device == "cuda":
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    return torch.device(config.device)


def build(config: Config, train: Samples) -> nn.Module:
    """Return the freshly initialised dense model, the same for every method of the same seed."""
    sizes: dict[str, Any] = {} if config.model.width is None else {"width": config.model.width}
    if isinstance(train, Dataset):
        sizes |= {"channels": train.channels, "image_size": train.image_size}
    elif isinstance(train, Text):
        sizes["context"] = train.context
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "model"))
        try:
            model = models.build(config.model.name, train.classes, norm=config.model.norm, **sizes)
            return model.to(device_of(config))
        except ValueError as error:
            given = "".join(f"data.image_size is {sizes[key]} and " for key in sizes if key == "image_size")
            raise ConfigError(
                f"{given}model.width is {config.model.width or 'the default'}, and the model cannot be built: {error}"
            ) from None


def check_activations(config: Config, model: nn.Module) -> None:
    """Refuse levels that do not exist, and patterns that fit no convolution."""
    levels = config.train.activations
    if levels is None:
        return
    try:
        keeps_all = all(level.keeps_all for level in parse_levels(levels).values())
        if isinstance(levels, str) and keeps_all:
            return
        if config.train.cohort > 1 and not keeps_all:
            raise ValueError(
                f"activations is {levels!r}, but train.cohort is {config.train.cohort}, and clients trained together "
                "keep all; leave one of the two out"
            )
        trial = keep_activations(config.method.prepare(copy.deepcopy(model)), levels)
    except ValueError as error:
        raise ConfigError(f"train.{error}") from None
    if not levelled(trial):
        raise ConfigError(
            f"train.activations is {levels!r}, but {config.model.name} has no convolution, and only those have a level"
        )


def check_smallest_batch(config: Config, model: nn.Module, train: Samples, parts: list[np.ndarray]) -> None:
    """Refuse batches of one image where the model's batch norm cannot train on one."""
    smallest = min(len(part) for part in parts)
    if min(config.train.batch_size, smallest) > 1 or not isinstance(train, Dataset):
        return
    trial = config.method.prepare(copy.deepcopy(model)).train()
    try:
        trial(train.batch(np.array([0]))[0].to(config.device))
    except ValueError:
        field = "train.batch_size" if config.train.batch_size == 1 else "partition.min_samples"
        raise ConfigError(
            f"{field} is 1 but must be at least 2 for {config.model.name} with batch norm at {train.image_size} pixels "
            "(model.norm = 'group' takes single images)"
        ) from None
