import hashlib

import numpy as np
import pytest
import torch

from fedsparse.federated.seeds import Draws, derive, numpy_generator, torch_generator


def test_every_purpose_round_and_client_has_its_own_seed() -> None:
    seeds = {derive(r, p, t, k) for r in (0, 1) for p in ("epoch 0", "clients") for t in range(20) for k in range(20)}
    assert len(seeds) == 2 * 2 * 20 * 20


def test_a_seed_never_changes_between_versions() -> None:
    """The first 8 bytes, little endian, of SHA-256("0/clients/1/2"), shifted right by one."""
    assert derive(0, "clients", 1, 2) == int.from_bytes(bytes.fromhex(DIGEST), "little") >> 1
    assert torch.equal(
        torch.rand(3, generator=torch_generator(5, "x")), torch.rand(3, generator=torch_generator(5, "x"))
    )


def test_numpy_draws_come_from_the_whole_digest() -> None:
    """PCG64 seeded by four words: state and increment, of 128 bits each with the high word first; then two steps."""
    words = np.frombuffer(hashlib.sha256(b"3/clients/4/5").digest(), dtype="<u8").tolist()
    bits, multiplier = (1 << 128) - 1, 0x2360ED051FC65DA44385DF649FCCF645
    increment = ((words[2] << 64 | words[3]) << 1 | 1) & bits
    state = ((increment + (words[0] << 64 | words[1])) * multiplier + increment) & bits
    generator = numpy_generator(3, "clients", 4, 5)
    assert generator.bit_generator.state["state"] == {"state": state, "inc": increment}
    again = numpy_generator(3, "clients", 4, 5)
    assert generator.permutation(100).tolist() == again.permutation(100).tolist()
    assert generator.permutation(100).tolist() != numpy_generator(3, "clients", 4, 6).permutation(100).tolist()


def test_draws_that_name_no_generator_come_from_the_seed_and_leave_no_trace() -> None:
    before = torch.default_generator.get_state()
    with Draws(7):
        drawn = torch.rand(3)
    assert torch.equal(torch.default_generator.get_state(), before)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    with pytest.raises(ZeroDivisionError), Draws(8):
        torch.rand(1).div(1 // 0)
    assert torch.equal(torch.default_generator.get_state(), before)


DIGEST = "69af16642251164c"
