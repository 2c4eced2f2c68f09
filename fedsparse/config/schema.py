"""The tables and keys of a run's configuration, with their defaults and ranges.

Every model is frozen, refuses unknown keys and does not convert types: a TOML string is never read as a number.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedsparse.config.memory_limits import Limit

Count = Annotated[int, Field(ge=1, le=10_000_000)]
Positive = Annotated[float, Field(gt=0)]
Carrier = Literal["fp32", "fp16", "bf16", "int8"]  # as fedsparse.wire has it, which would load torch here


class Table(BaseModel):
    """A table of the configuration: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Table):
    """`[data]`: which images or which text, where they are, how many of them.

    `dir` is the folder of the data set's files (default: FEDSPARSE_DATA or the embedded data), `image_size` the side in
    pixels to which images are scaled (default: their own), `train_limit` a cap on the training samples, `public_share`
    the share of them that the server keeps to pretrain the model on. For text, `context` is the number of tokens of a
    sample (default: 64) and `vocab` the size of a byte-pair vocabulary (default: one token a character).
    """

    name: str = "digits"
    dir: Path | None = None
    download: bool = False
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    train_limit: Count | None = None
    augment: bool = False
    public_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    context: Annotated[int, Field(ge=1, le=65536)] | None = None
    vocab: Annotated[int, Field(ge=257, le=1_000_000)] | None = None


class Partition(Table):
    """`[partition]`: how the training samples are split over the clients.

    `alpha` is the concentration of the Dirichlet split by class and of the split by quantity, `classes_per_client` the
    width of a shard split, `min_samples` the least number of samples that a client holds, `contiguous` whether a split
    by quantity keeps the samples' order.
    """

    kind: Literal["iid", "dirichlet", "shards", "quantity", "natural"] = "dirichlet"
    clients: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    alpha: Positive = 0.5
    classes_per_client: Annotated[int, Field(ge=1, le=100_000)] = 2
    min_samples: Count = 1
    contiguous: bool = False


class Model(Table):
    """`[model]`: the network; `width` scales it (default: the model's own)."""

    name: str = "cnn"
    norm: Literal["batch", "group"] = "batch"
    width: Positive | None = None


class Train(Table):
    """`[train]`: the rounds, and how clients train in them; see `fedsparse.federated.Training`.

    `lr_decay` multiplies the learning rate once a round, `proximal` is FedProx's mu, `momentum` is SGD's alone,
    `pretrain_epochs` are the server's on `data.public_share`, `eval_every` is the number of rounds from one test of the
    server's model to the next. `clients_per_round` is all clients unless given; what a method's paper says of epochs,
    batch size or optimizer replaces the defaults here (`fedsparse list methods`). `activations` is what layers keep for
    the backward pass: "dense", "lossless", "bf16", "recompute" or "pruned(SHARE)", "pruned(SHARE, bf16)", or a table of
    these by patterns of layers' names, of which the first that fits holds; default: the method's, "dense" but for
    FedMef. `memory_limit` is what a client
    may take in a round, in bytes or as in "200 MiB": one for all, a list with one for each client, or a table of sizes
    with the share of the clients that have them ({"64 MiB" = 0.25, "1 GiB" = 0.75}, the first clients first); how many
    pieces a minibatch is cut into, and what is kept for the backward pass, is chosen so that it suffices; with
    `fit_density` the method's density is halved until it does. With
    `dense_passes` false no pass runs on dense torch, so that no layer's weight is ever unpacked. With
    `cohort` above 1, a process trains that many clients at once, to the same numbers but for the order of sums. In so
    many `pieces` a minibatch goes through the model, its gradients added up, for less memory (batch norm normalises
    each piece by itself); `memory_limit` starts from there.
    `memory` "compact" keeps 2 bytes of indices an active weight where "fast" keeps 12, and sorts them in each backward
    pass: the same bits. `cuda_graph` "auto" records the step of methods that leave local training as it is, and a GPU
    replays it.
    """

    rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    clients_per_round: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Literal["sgd", "adam"] = "sgd"
    proximal: Annotated[float, Field(ge=0)] = 0.0
    pretrain_epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    eval_every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    memory: Literal["fast", "compact"] = "fast"
    activations: str | dict[str, str] | None = None
    dense_passes: bool = True
    memory_limit: Limit | None = None
    fit_density: bool = False
    cohort: Annotated[int, Field(ge=1, le=1024)] = 1
    pieces: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    cuda_graph: Literal["off", "auto"] = "off"


class Wire(Table):
    """`[wire]`: how active weights are written into messages.

    `values`: float32, half precision ("fp16", "bf16"), or one byte ("int8", a scale for each parameter tensor, rounded
    stochastically). In all but fp32 norm statistics and grown weights' gradients travel as bfloat16. With
    `error_feedback` a client adds to its report what rounding took from the one before (4 bytes a parameter of each
    client that took part, in memory and in checkpoints); not with fp32.
    """

    values: Carrier = "fp32"
    error_feedback: bool = False


class Failures(Table):
    """`[failures]`: what a run bears before it stops.

    `client_deadline` are the seconds that an MPI rank may take for one client before the rank is given up,
    `round_deadline` those after which a round goes on without the clients that are not done (default: none), `quorum`
    is the share of a round's clients whose reports must be usable, `lost_clients` says whether the clients of a lost
    rank go to another one, `server_deadline` are the seconds of silence after which workers count rank 0 as lost
    (default: 20 minutes, or twice `client_deadline` where that is more); evaluation and checkpoint must fit.
    """

    client_deadline: Positive = 600.0
    round_deadline: Positive | None = None
    quorum: Annotated[float, Field(ge=0, le=1)] = 0.0
    lost_clients: Literal["hand over", "leave out"] = "hand over"
    server_deadline: Positive | None = None


class Ranks(Table):
    """`[ranks]`: `server_works` says whether rank 0 of an MPI job trains clients too.

    Left out, it does in a job of at most 8 ranks where those of its host have a core for each thread, or a GPU each.
    `sums`: "server" has every report judged and added on rank 0, "local" on the rank that trained the client, which
    then sends one sum a round; the same bits.
    """

    server_works: bool | None = None
    sums: Literal["server", "local"] = "server"


class Checkpoints(Table):
    """`[checkpoints]`: rounds from one to the next (`every`, 0 for none), and how many of them stay (`keep`)."""

    every: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    keep: Annotated[int, Field(ge=1, le=1_000_000)] = 3


class Aggregation(Table):
    """`[aggregation]`: how the reports of a round become one; see `fedsparse.federated.robust.Aggregation`.

    `rule`: "mean" weighted by samples, or "median", "trimmed", "krum", which keep every report in memory. `trim` is the
    share cut at either end, `attackers` what Krum expects, `norm_bound` the farthest that a report may move the model.
    """

    rule: Literal["mean", "median", "trimmed", "krum"] = "mean"
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    attackers: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    norm_bound: Positive | None = None


class Tables(Table):
    """All of a configuration but its `[method]`.

    `device` is where the models are and clients train, `threads` are those of each process. `track` names where records
    go besides the run folder, each an extra of that name.
    """

    name: str = "run"
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    track: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    data: Data = Data()
    partition: Partition = Partition()
    model: Model = Model()
    train: Train = Train()
    wire: Wire = Wire()
    aggregation: Aggregation = Aggregation()
    failures: Failures = Failures()
    ranks: Ranks = Ranks()
    checkpoints: Checkpoints = Checkpoints()


class Config(Tables):
    """A checked configuration; `method` is the instance of the method's own frozen dataclass."""

    method: Any

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as the nested dict of its TOML file, every default written out."""
        tables = self.model_dump(mode="json", exclude={"method"})
        return tables | {"method": {"name": self.method.name} | asdict(self.method)}
