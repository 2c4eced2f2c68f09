import torch

from fedsparse.federated.seeds import derive, torch_generator


def test_every_purpose_round_and_client_has_its_own_seed() -> None:
    seeds = {derive(r, p, t, k) for r in (0, 1) for p in ("epoch 0", "clients") for t in range(20) for k in range(20)}
    assert len(seeds) == 2 * 2 * 20 * 20


def test_a_seed_never_changes_between_versions() -> None:
    """The first 8 bytes, little endian, of SHA-256("0/clients/1/2"), shifted right by one."""
    assert derive(0, "clients", 1, 2) == int.from_bytes(bytes.fromhex(DIGEST), "little") >> 1
    assert torch.equal(
        torch.rand(3, generator=torch_generator(5, "x")), torch.rand(3, generator=torch_generator(5, "x"))
    )


DIGEST = "69af16642251164c"
