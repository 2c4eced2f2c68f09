"""Checkpoints: all that a run needs to go on as if it had never stopped.

`checkpoints/000007.safetensors` holds every tensor after 7 rounds, `000007.json` (the manifest) the numbers, what the
run is, and the SHA-256 of the tensors, of the records so far and of itself. Each is written as a temporary file,
synced and renamed, the manifest last: tensors without a manifest are no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from fedsparse.federated import exchange, faults
from fedsparse.federated.artefacts import write_atomic, write_json
from fedsparse.federated.server import Server
from fedsparse.wire import Bits

FOLDER = "checkpoints"
FORMAT = 2
Facts = dict[str, Any]


class CheckpointError(ValueError):
    """Why a run cannot be resumed, in one sentence; nothing was changed."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `rounds` rounds: tensors by name, and facts that JSON holds."""

    rounds: int
    tensors: dict[str, Tensor]
    facts: Facts


def tensors_of(server: Server) -> dict[str, Tensor]:
    """Every tensor of the server, copied to the CPU: the model's vectors, mask (a bit a group), counters; the state."""
    model = server.model
    pairs = sorted(server.known.items())
    tensors = {
        "parameters": exchange.parameters(model),
        "buffers": exchange.buffers(model),
        "known": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        **{f"counter/{name}": counter for name, counter in exchange.counters(model).items()},
        **{f"state/{name}": tensor for name, tensor in server.state.items()},
    }
    if server.layers:
        tensors["mask"] = torch.from_numpy(exchange.mask_bits(model).data)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def restore(server: Server, tensors: Mapping[str, Tensor]) -> None:
    """Make a server that has just been made hold these tensors."""
    model = server.model
    if "mask" in tensors:
        size = exchange.mask_size(model, server.names, server.granularity)
        bits, memory = Bits(tensors["mask"].numpy(), size), server.training.memory
        exchange.load_mask(model, bits, server.names, server.granularity, memory)
    exchange.load_parameters(model, tensors["parameters"])
    exchange.load_buffers(model, tensors["buffers"])
    for name, counter in exchange.counters(model).items():
        counter.copy_(tensors[f"counter/{name}"])
    # Copies, since the meter of live bytes counts what torch allocates.
    state = {name.removeprefix("state/"): t.clone() for name, t in tensors.items() if name.startswith("state/")}
    server.state = state
    server.known = {int(client): int(version) for client, version in tensors["known"]}


def packed(kept: Mapping[int, bytes]) -> dict[str, Tensor]:
    """What clients keep (see `feedback`) as tensors: int64 [clients, 2] of id and length, and all bytes; or none."""
    if not kept:
        return {}
    entries = sorted(kept.items())
    data = torch.frombuffer(bytearray(b"".join(data for _, data in entries)), dtype=torch.uint8)
    return {"kept/clients": torch.tensor([(id, len(data)) for id, data in entries]), "kept/bytes": data}


def unpacked(tensors: Mapping[str, Tensor]) -> dict[int, bytes]:
    """What `packed` packed."""
    if "kept/clients" not in tensors:
        return {}
    clients = tensors["kept/clients"].tolist()
    pieces = tensors["kept/bytes"].split([length for _, length in clients])
    return {id: piece.numpy().tobytes() for (id, _), piece in zip(clients, pieces, strict=True)}


def save(out: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint into the run's folder, then delete all but the newest `keep`. Raises OSError."""
    folder, rounds = out / FOLDER, checkpoint.rounds
    folder.mkdir(exist_ok=True)
    data = to_bytes(checkpoint.tensors)
    faults.reach("tensors", rounds - 1)
    write_atomic(_tensors(folder, rounds), data)
    faults.reach("manifest", rounds - 1)
    manifest = {
        "format": FORMAT,
        "rounds": rounds,
        "tensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        **checkpoint.facts,
    }
    write_json(_manifest(folder, rounds), {**manifest, "sha256": _hash(manifest)})
    faults.reach("prune", rounds - 1)
    for old in saved(out)[:-keep]:
        delete(out, old)


def delete(out: Path, rounds: int) -> None:
    """Delete a checkpoint, its manifest first, so that no manifest ever lacks its tensors."""
    _manifest(out / FOLDER, rounds).unlink()
    _tensors(out / FOLDER, rounds).unlink(missing_ok=True)


def saved(out: Path) -> list[int]:
    """The checkpoints of a run's folder, as the numbers of rounds that they hold, ascending."""
    names = [path.name for path in (out / FOLDER).glob("*.json")]
    return sorted(int(name.removesuffix(".json")) for name in names if re.fullmatch(r"\d{6,}\.json", name))


def load(out: Path, rounds: int) -> Checkpoint:
    """Read the checkpoint after that many rounds and hold it against its hashes; CheckpointError names what differs."""
    manifest_path, tensors_path = _manifest(out / FOLDER, rounds), _tensors(out / FOLDER, rounds)
    try:
        manifest = json.loads(_read(manifest_path))
    except ValueError:
        raise CheckpointError(f"{manifest_path} is not JSON, so it was truncated or edited") from None
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _hash(manifest):
        raise CheckpointError(f"{manifest_path} does not have the hash that it names, so it was truncated or edited")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{manifest_path} is of format {manifest['format']}, and this program reads {FORMAT}")
    data, expected = _read(tensors_path), manifest.pop("tensors")
    if (len(data), hashlib.sha256(data).hexdigest()) != (expected["bytes"], expected["sha256"]):
        raise CheckpointError(f"{tensors_path} does not have the hash in its manifest, so it was truncated or edited")
    try:
        tensors = from_bytes(data)
    except SafetensorError as error:
        raise CheckpointError(f"{tensors_path} holds no tensors: {error}") from None
    return Checkpoint(rounds, tensors, manifest)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _tensors(folder: Path, rounds: int) -> Path:
    return folder / f"{rounds:06}.safetensors"


def _manifest(folder: Path, rounds: int) -> Path:
    return folder / f"{rounds:06}.json"
