"""One product of matrix tiles, and what was compiled for them."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fedsparse

RAW = torch.ops.fedsparse
BF16 = torch.bfloat16


def pairs(b: Tensor) -> Tensor:
    """b [K, 16] as a second operand [K / 2, 16, 2]."""
    return b.unflatten(0, (-1, 2)).transpose(1, 2).contiguous()


@pytest.mark.parametrize("depth", [2, 16, 32])
def test_a_product_of_integers(depth: int, tiles: str) -> None:
    generator = torch.Generator().manual_seed(depth)
    a, b, c = (torch.randint(-9, 9, shape, generator=generator) for shape in ((16, depth), (depth, 16), (16, 16)))
    found = RAW.tile_multiply(a.to(BF16), pairs(b.to(BF16)), c.float())
    assert torch.equal(found, (c + a @ b).float())


def single(a: list[float], b: list[float], c: float = 0.0) -> float:
    """The sum that a row and a column add to c; in the other places are zeros."""
    row, column, start = torch.zeros(16, 32), torch.zeros(32, 16), torch.zeros(16, 16)
    row[3, : len(a)], column[: len(b), 5], start[3, 5] = torch.tensor(a), torch.tensor(b), c
    found = RAW.tile_multiply(row.to(BF16), pairs(column.to(BF16)), start)
    assert found.count_nonzero() == (found[3, 5] != 0)
    return float(found[3, 5])


BIG = 2.0**24


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        # Even products one after the other: 2^24 + 1 is rounded to 2^24, and then 2^24 is taken away.
        pytest.param([BIG, 0, 1, 0, -BIG, 0], [1] * 6, 0, 0, id="in order"),
        pytest.param([BIG, 0, -BIG, 0, 1, 0], [1] * 6, 0, 1, id="in order, the small one last"),
        # Odd products have a sum of their own, which meets the even one only at the end.
        pytest.param([BIG, 1, -BIG, 1], [1] * 4, 0, 2, id="even and odd apart"),
        # 2^24 + 1 is rounded, -2^24 + 1 need not be: 1 is left of 2.
        pytest.param([BIG, -BIG, 1, 1], [1] * 4, 0, 1, id="rounded before they meet"),
        # 1 + 1 is added to 2^24 at once; added one by one both would be lost.
        pytest.param([1, 1], [1, 1], BIG, BIG + 2, id="what was there comes last"),
        pytest.param([1, 0, 1, 0], [1] * 4, BIG, BIG + 2, id="what was there comes last, even"),
        # 2^-127 is no normal number; the other operand would have brought it back.
        pytest.param([2.0**-127], [2.0**100], 0, 0, id="a denormal operand is zero"),
        pytest.param([2.0**100], [2.0**-130], 0, 0, id="a denormal second operand is zero"),
        pytest.param([2.0**-126], [2.0**100], 0, 2.0**-26, id="the smallest normal operand is not"),
        pytest.param([2.0**-70], [2.0**-60], 0, 0, id="a denormal result is zero"),
        pytest.param([2.0**-60], [2.0**-60], 0, 2.0**-120, id="a small normal result is not"),
        pytest.param([0], [0], 2.0**-130, 0, id="a denormal sum is zero"),
        # 2^-130 alone would be zero: products are not rounded before they are added.
        pytest.param(
            [2.0**-63, 0, 2.0**-70, 0],
            [2.0**-63, 0, 2.0**-60, 0],
            0,
            2.0**-126 + 2.0**-130,
            id="a product may be small",
        ),
        pytest.param([2.0**100], [2.0**100], 0, float("inf"), id="overflow"),
    ],
)
def test_arithmetic(a: list[float], b: list[float], c: float, expected: float, tiles: str) -> None:
    assert single(a, b, c) == expected


def test_not_a_number_stays_in_its_row_and_column(tiles: str) -> None:
    a, b = torch.ones(16, 32, dtype=BF16), torch.ones(32, 16, dtype=BF16)
    a[2, 7], b[9, 4] = float("nan"), float("inf")
    found = RAW.tile_multiply(a, pairs(b), torch.zeros(16, 16))
    assert bool(found[2].isnan().all())
    assert found[0, 4] == float("inf")
    found[2], found[:, 4] = 32, 32
    assert torch.equal(found, torch.full((16, 16), 32.0))


TILE_INSTRUCTIONS = ("tdpbf16ps", "tileloadd", "tilestored", "tilezero", "ldtilecfg", "tilerelease")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AMX is Intel's")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_tile_instructions_stand_in_the_amx_kernels_alone() -> None:
    """The kernels of AMX were compiled to its instructions, and nothing that another processor runs was."""
    library = Path(fedsparse.__file__).with_name("_ops.so")
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", library], check=True, capture_output=True, text=True)
    found: dict[str, set[str]] = {name: set() for name in TILE_INSTRUCTIONS}
    function = ""
    for line in code.stdout.splitlines():
        if header := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            function = header[1]
        if instruction := re.search(rf"\t({'|'.join(TILE_INSTRUCTIONS)})\b", line):
            found[instruction[1]].add(function)
    for name, functions in found.items():
        assert functions, name
        assert all(of.startswith("_ZN9fedsparse3amx12_GLOBAL__N_1") for of in functions), (name, functions)
