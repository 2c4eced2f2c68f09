"""The server's state: the global model (weights and masks), the method's named tensors, and nothing hidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse.data import Samples
from fedsparse.federated import exchange
from fedsparse.federated.client import Training
from fedsparse.federated.loss import cross_entropy
from fedsparse.federated.seeds import derive
from fedsparse.nn import SparseLayer, prunable, sparse_layers, sparsify
from fedsparse.nn.walk import buffers_of, parameters_of
from fedsparse.topology import Topology
from fedsparse.wire import Bits, Carrier, Section, Values, decode, encode

LOGITS = 2**23
"""The most logits that an evaluation holds at once: 32 MB."""


@dataclass
class Server:
    """What a checkpoint of a run must hold, beside the config.

    model: the global model. names, granularity: the layers that masks are made for, and V. input_shape, input_dtype:
    of one sample (int64 for text). samples: n_k of every client. state: the method's named tensors. mask_version:
    number of masks so far (0: dense). known: which mask version each client has. changed: newly active over active
    weights at the last mask change. training: how the clients train. wire: dtype of the parameters that they are sent.
    """

    model: nn.Module
    seed: int
    names: list[str]
    granularity: int
    input_shape: tuple[int, ...]
    samples: list[int]
    state: dict[str, Tensor] = field(default_factory=dict)
    mask_version: int = 0
    known: dict[int, int] = field(default_factory=dict)
    changed: float = 0.0
    input_dtype: torch.dtype = torch.float32
    training: Training = field(default_factory=Training)
    wire: Carrier = "fp32"

    @property
    def layers(self) -> dict[str, SparseLayer]:
        """The sparse layers by name."""
        return sparse_layers(self.model)

    @property
    def parameter_count(self) -> int:
        """Numbers in the parameter vector: active weights and dense parameters."""
        return sum(p.numel() for p in parameters_of(self.model))

    @property
    def buffer_count(self) -> int:
        """Numbers in the buffer vector."""
        return sum(b.numel() for b in buffers_of(self.model) if b.is_floating_point())

    def dense_weights(self) -> dict[str, Tensor]:
        """The weights of the layers that masks are made for, by name, while they are still dense."""
        layers = prunable(self.model, last=True)
        return {name: layers[name].get_parameter("weight").detach() for name in self.names}

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Make the named dense layers sparse with these masks (bool, dense shapes)."""
        sparsify(self.model, masks=masks, granularity=self.granularity, memory=self.training.memory)
        self.mask_version += 1

    def set_mask_bits(self, bits: Bits) -> None:
        """Make the named layers sparse with these masks, a bit a group (see `exchange`)."""
        exchange.load_mask(self.model, bits, self.names, self.granularity, self.training.memory)
        self.mask_version += 1

    def change_masks(self, topologies: Mapping[str, Topology]) -> None:
        """Give sparse layers new masks: surviving weights stay, grown ones start at 0. Equal masks: no new version."""
        layers = self.layers
        grown = pruned = 0
        for name, topology in topologies.items():
            before = layers[name].topology.nnz
            survivors = len(layers[name].set_topology(topology).source)
            grown, pruned = grown + topology.nnz - survivors, pruned + before - survivors
        self.changed = grown / max(1, sum(layer.topology.nnz for layer in layers.values()))
        self.mask_version += grown + pruned > 0

    def sections(self, t: int) -> dict[str, Section]:
        """`parameters` and `buffers` as round t sends them."""
        return exchange.sections(self.model, self.wire, derive(self.seed, "wire/weights", t))

    def sent_values(self, t: int) -> dict[str, Tensor]:
        """The values of each sparse layer as the clients of round t received them: copies, by name."""
        sent = decode(encode("weights", t, -1, self.sections(t))).sections["parameters"]
        values, _ = exchange.split_parameters(self.model, cast(Values, sent).tensor())
        return {name: values[name].to(layer.values.device) for name, layer in self.layers.items()}

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Set weights and norm statistics from vectors."""
        exchange.load_parameters(self.model, parameters)
        exchange.load_buffers(self.model, buffers)

    def densities(self) -> dict[str, float]:
        """The density of each layer that masks are made for."""
        layers = self.layers
        return {name: layers[name].topology.density if name in layers else 1.0 for name in self.names}

    def density(self) -> float:
        """Active over all weights of the layers that masks are made for; 1 for a dense method."""
        topologies = [layer.topology for layer in self.layers.values()]
        total = sum(t.numel for t in topologies)
        return sum(t.nnz for t in topologies) / total if total else 1.0


@torch.no_grad()
def evaluate(model: nn.Module, data: Samples, batch_size: int = 500) -> tuple[float, float]:
    """(accuracy in [0, 1], mean cross-entropy) over all targets of a data set, in eval mode.

    A target is a sample's class, or each next token of a text. A batch has at most `batch_size` samples, and fewer
    where their logits would be more than `LOGITS`.
    """
    model.eval()
    device = next(model.parameters()).device
    each = data.batch(np.array([0]))[1].numel()
    size = max(1, min(batch_size, LOGITS // (each * data.classes)))
    right, loss = 0, 0.0
    for start in range(0, len(data), size):
        x, y = data.batch(torch.arange(start, min(start + size, len(data))))
        x, y = x.to(device), y.to(device)
        output = model(x)
        right += int((output.argmax(-1) == y).sum())
        loss += float(cross_entropy(output, y, reduction="sum"))
    return right / (each * len(data)), loss / (each * len(data))
