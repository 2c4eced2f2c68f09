"""One client of three attacks in round 1: it is refused and named, and the model is what the other two make of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_loop import toy

from fedsparse.federated import Loop, exchange
from fedsparse.federated.robust import Aggregation
from fedsparse.federated.workers import Done, Tag
from fedsparse.methods import FedAvg, FedDST
from fedsparse.wire import Masked, Pairs, Values, decode, encode

BAD = 1
Attack = Callable[[bytes, list[bytes]], bytes]


def changed(change: Callable[[np.ndarray], np.ndarray], name: str = "parameters") -> Attack:
    """The report with a section's numbers changed, under checksums that fit."""

    def attack(report: bytes, past: list[bytes]) -> bytes:
        message = decode(report)
        sections = {**message.sections, name: Values(change(message.sections[name].array.copy()))}
        return encode(message.kind, message.round, message.sender, sections)

    return attack


def at(position: int, number: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[position] = number
        return array

    return change


def resent(**labels: object) -> Attack:
    def attack(report: bytes, past: list[bytes]) -> bytes:
        message = replace(decode(report), **labels)
        return encode(message.kind, message.round, message.sender, message.sections)

    return attack


def another_kind(report: bytes, past: list[bytes]) -> bytes:
    message = decode(report)
    array = message.sections["parameters"].array
    pairs = Pairs(np.arange(len(array)), array, len(array))
    return encode(message.kind, message.round, message.sender, {**message.sections, "parameters": pairs})


def outside_the_mask(report: bytes, past: list[bytes]) -> bytes:
    message = decode(report)
    array = message.sections["parameters"].array
    section = Masked(np.ones(len(array), dtype=bool), array)
    return encode(message.kind, message.round, message.sender, {**message.sections, "parameters": section})


ATTACKS: dict[str, tuple[Attack, str]] = {
    "NaN": (changed(at(3, np.nan)), "parameters holds a number that is not finite"),
    "infinity": (changed(at(0, -np.inf)), "parameters holds a number that is not finite"),
    "NaN in the statistics": (changed(at(0, np.nan), "buffers"), "buffers holds a number that is not finite"),
    "huge number": (changed(at(3, 1e30)), "parameters holds a number of magnitude 1e+30, the limit is 4.1943e+06"),
    "far away": (changed(lambda w: w + 100), "away from the server's, the bound is 50"),
    "negative weight": (changed(at(0, -5), "facts"), "its weight is -5 samples, but the client declared 10"),
    "no weight": (changed(at(0, 0), "facts"), "its weight is 0 samples"),
    "weight of 10^12": (changed(at(0, 1e12), "facts"), "its weight is 1e+12 samples, but the client declared 10"),
    "NaN weight": (changed(at(0, np.nan), "facts"), "its weight is nan samples"),
    "broadcastable row": (changed(lambda w: w[None]), "section 'parameters': its size is 1, expected 95"),
    "broadcastable column": (changed(lambda w: w[:, None]), "section 'parameters': its width is 1, expected None"),
    "broadcastable number": (changed(lambda w: w[:1]), "section 'parameters': its size is 1, expected 95"),
    "one number more": (changed(lambda w: np.append(w, w[:1])), "its size is 96, expected 95"),
    "another dtype": (changed(lambda w: w.astype(np.float64)), "its dtype is float64, expected float32"),
    "another section": (another_kind, "section 'parameters': its type is Pairs, expected Values"),
    "outside the mask": (outside_the_mask, "section 'parameters': its type is Masked, expected Values"),
    "replay of an old round": (lambda report, past: past[0], "it is report of client 1 in round 0, not report"),
    "in another's name": (resent(sender=0), "it is report of client 0 in round 1, not report of client 1"),
    "of a future round": (resent(round=2), "in round 2"),
    "another kind of message": (resent(kind="weights"), "it is weights of client 1"),
    "flipped bit": (lambda report, past: report[:-1] + bytes([report[-1] ^ 1]), "does not match its checksum"),
    "truncated": (lambda report, past: report[:-5], "the message is truncated"),
    "nothing": (lambda report, past: b"", "too short for a header"),
}


def loop_with(attack: Attack | None, rule: str = "mean", method: object = None) -> Loop:
    """Two rounds done; in the second BAD's report is replaced, or withheld where there is no attack."""
    experiment = toy(method or FedAvg(), rounds=2)  # type: ignore[arg-type]
    loop = Loop(replace(experiment, aggregation=Aggregation(rule=rule, norm_bound=50.0)))  # type: ignore[arg-type]
    work, past = loop.workers.work, []

    def spoiled(kind: Tag, clients: Sequence[int], *rest: object) -> Iterator[Done]:
        for done in work(kind, clients, *rest):  # type: ignore[arg-type]
            if kind is not Tag.TRAIN or done.client != BAD or done.answer is None:
                yield done
                continue
            past.append(done.answer)
            if len(past) == 1:
                yield done
            elif attack is None:
                yield Done(BAD, None, "withheld")
            else:
                yield done._replace(answer=attack(done.answer, past))

    loop.workers.work = spoiled  # type: ignore[method-assign]
    loop.open()
    loop.round(0)
    loop.round(1)
    return loop


@pytest.fixture(scope="module")
def without() -> torch.Tensor:
    return exchange.parameters(loop_with(None).server.model)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_is_refused_named_and_without_effect(name: str, without: torch.Tensor) -> None:
    attack, words = ATTACKS[name]
    loop = loop_with(attack)
    (rejected,) = loop.records[1]["rejected"]
    assert rejected["client"] == BAD
    assert words in rejected["reason"]
    assert loop.records[1]["clients"] == [0, 2]
    assert torch.equal(exchange.parameters(loop.server.model), without)


@pytest.mark.parametrize("rule", ["median", "trimmed", "krum"])
def test_every_rule_runs_and_names_what_it_refuses(rule: str) -> None:
    loop = loop_with(ATTACKS["NaN"][0], rule)
    assert [r["client"] for r in loop.records[1]["rejected"]] == [BAD]
    assert bool(torch.isfinite(exchange.parameters(loop.server.model)).all())


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed", "krum"])
def test_every_rule_serves_clients_with_masks_of_their_own(rule: str) -> None:
    method = FedDST(density=0.5, interval=1, last=2, rate=0.2)
    loop = loop_with(changed(lambda w: w + 100), rule, method)
    (rejected,) = loop.records[1]["rejected"]
    assert "away from the server's" in rejected["reason"]
    assert loop.records[1]["mask_change"] >= 0
    assert bool(torch.isfinite(exchange.parameters(loop.server.model)).all())
