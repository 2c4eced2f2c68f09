"""The kernels compiled for AMX, run without AMX, against those of the emulation: the bits of their results.

    python tests/bochs/tiles.py

Bochs (see `machine`) runs what the compiler made of csrc/cpu/amx/kernels.cpp, AVX-512 included, but has no tiles: each
tile instruction is a trap, and done here by what its text says, shapes checked, and by the emulated product. So that
packing, permutations, addresses, strides, configurations and the order of loads and stores are the machine code's own;
the arithmetic of TDPBF16PS is not tested.
"""

import ctypes
import os
import random
import re
import subprocess
import sys
import tempfile
from array import array
from collections import Counter
from pathlib import Path

from machine import Machine, base_of, memory, write_code

ROOT = Path(__file__).parents[2]
KERNELS = ("gather", "scatter", "sample", "interleave", "pair_pixels", "round", "to_lines", "from_lines", "multiply")
INSTRUCTIONS = "tdpbf16ps|tileloadd|tilestored|tilezero|ldtilecfg|tilerelease"
FLAGS = "-DFEDSPARSE_AMX -mamx-tile -mamx-bf16 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mavx2"
TABLES = """#include "cpu/amx.h"
extern "C" const void* amx() { return &fedsparse::kTiles_amx; }
extern "C" const void* emulated() { return &fedsparse::kTiles_emulated; }
"""
Function = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 6)


def library() -> str:
    """Both kinds of kernels, compiled as setup.py does."""
    folder = Path(tempfile.mkdtemp())
    (folder / "tables.cpp").write_text(TABLES)
    base = f"c++ -std=c++20 -O3 -fPIC -Wno-psabi -I{ROOT}/csrc -DFEDSPARSE_X86".split()
    kernels = str(ROOT / "csrc/cpu/amx/kernels.cpp")
    for name, flags in (("amx", FLAGS.split()), ("emulated", [])):
        subprocess.run([*base, *flags, "-c", kernels, "-o", folder / f"{name}.o"], check=True)
    objects = [folder / "amx.o", folder / "emulated.o"]
    subprocess.run([*base, "-shared", folder / "tables.cpp", *objects, "-o", folder / "tiles.so"], check=True)
    return str(folder / "tiles.so")


class Tiled(Machine):
    """A processor whose tile instructions are traps."""

    def __init__(self, path: str) -> None:
        super().__init__()
        loaded = ctypes.CDLL(path)
        self.amx, self.emulated = (self._table(loaded, name) for name in ("amx", "emulated"))
        text = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
        found = re.findall(rf"(?m)^ *([0-9a-f]+):\t((?:[0-9a-f]{{2}} )+) *\t({INSTRUCTIONS}) *(.*)$", text)
        self.traps = {base_of(path) + int(at, 16): (len(code) // 3, name, rest) for at, code, name, rest in found}
        for at, (size, _, _) in self.traps.items():
            write_code(at, b"\xf4" + b"\x90" * (size - 1))
        self.shapes: list[tuple[int, int]] | None = None
        self.done: Counter[str] = Counter()

    @staticmethod
    def _table(loaded: ctypes.CDLL, name: str) -> dict[str, int]:
        function = getattr(loaded, name)
        function.restype = ctypes.c_void_p
        return dict(zip(KERNELS, (ctypes.c_uint64 * 10).from_address(function())[1:]))

    def call(self, function: int, *arguments: int) -> None:
        super().call(function, *arguments)
        cpu = self.session.cpu
        while (at := cpu.rip if cpu.rip in self.traps else cpu.rip - 1) in self.traps:
            size, name, operands = self.traps[at]
            self.done[name] += 1
            getattr(self, name)(operands)
            cpu.rip = at + size
            self.run()
        assert self.shapes is None, "tiles were not released"

    def _place(self, operands: str) -> tuple[int, int]:
        """(base, stride) of disp(base, index, 1)."""
        disp, base, index = re.search(r"(-?0x[0-9a-f]+)?\(%(\w+)(?:,%(\w+),1)?\)", operands).groups()
        cpu = self.session.cpu
        return (getattr(cpu, base) + int(disp or "0", 16)) % 2**64, getattr(cpu, index) if index else 0

    @staticmethod
    def _registers(operands: str) -> list[int]:
        return [int(i) for i in re.findall(r"%tmm(\d)", operands)]

    def ldtilecfg(self, operands: str) -> None:
        config = ctypes.string_at(self._place(operands)[0], 64)
        assert config[0] == 1
        assert not any(config[1:16] + config[32:48] + config[56:])
        self.shapes = [(config[48 + i], config[16 + 2 * i] + 256 * config[17 + 2 * i]) for i in range(8)]
        assert all(1 <= rows <= 16 and 4 <= width <= 64 and width % 4 == 0 for rows, width in self.shapes)
        self.tiles = [bytearray(1024) for _ in range(8)]

    def tilerelease(self, operands: str) -> None:
        assert self.shapes is not None
        self.shapes = None

    def tilezero(self, operands: str) -> None:
        self.tiles[self._registers(operands)[0]] = bytearray(1024)

    def tileloadd(self, operands: str) -> None:
        (at, stride), (tile,) = self._place(operands), self._registers(operands)
        rows, width = self.shapes[tile]
        self.tilezero(operands)
        for row in range(rows):
            self.tiles[tile][64 * row : 64 * row + width] = ctypes.string_at(at + row * stride, width)

    def tilestored(self, operands: str) -> None:
        (at, stride), (tile,) = self._place(operands), self._registers(operands)
        rows, width = self.shapes[tile]
        for row in range(rows):
            ctypes.memmove(at + row * stride, bytes(self.tiles[tile][64 * row : 64 * row + width]), width)

    def tdpbf16ps(self, operands: str) -> None:
        b, a, c = self._registers(operands)
        (rows, width), (pairs, across) = self.shapes[a], self.shapes[b]
        assert self.shapes[c] == (16, 64)
        assert (rows, across, width) == (16, 64, 4 * pairs)
        first = b"".join(bytes(self.tiles[a][64 * row : 64 * row + width]) for row in range(16))
        held = [ctypes.create_string_buffer(bytes(part), len(part)) for part in (first, self.tiles[b], self.tiles[c])]
        places = [ctypes.addressof(part) for part in held]
        Function(self.emulated["multiply"])(places[0], places[1], width // 2, places[2], 0, 0)
        self.tiles[c] = bytearray(held[2].raw)


def store(values: array) -> int:
    """Address of the numbers."""
    at = memory(max(64, len(values) * values.itemsize))
    ctypes.memmove(at, values.tobytes(), len(values) * values.itemsize)
    return at


def halves(count: int) -> array:
    """bfloat16 numbers between 1/4 and 4, of both signs."""
    return array("H", (random.randrange(0x3E80, 0x4080) | random.randrange(2) << 15 for _ in range(count)))


def words(*values: int) -> int:
    """Address of a structure of 64-bit members."""
    return store(array("q", values))


def floats(count: int) -> array:
    return array("f", (random.uniform(-9, 9) for _ in range(count)))


def strips(rows: int, counts: list[int], unit: int, lines: int) -> tuple[int, int]:
    """(TileStrips of so many entries each that read any line, their units)."""
    starts, units = [0], [0]
    for count in counts:
        starts.append(starts[-1] + count)
        units.append(units[-1] - -count // unit)
    offsets = array("i", (16 * random.randrange(lines) for _ in range(starts[-1])))
    return words(rows, store(array("i", starts)), store(offsets), store(array("i", units))), units[-1]


def cases() -> list[tuple[str, list[int], int, int]]:
    """(kernel, arguments, which of them is the result, its bytes)."""
    found = []
    for rows in (16, 32):
        for height, width in ((1, 1), (2, 7), (3, 4)):
            counts, lines, n = [0, 1, 2, 31, 32, 33, 70, 300], 40, 8 * rows
            pixels, plane = height * width, lines + 64
            x, bias, row = store(halves(plane * 16)), store(floats(n)), width * 16
            of, units = strips(rows, counts, 32, lines)
            out = memory(n * pixels * 32)
            g = words(bias, x, row, out, pixels * 16, row, height, width)
            found.append(("gather", [g, of, store(halves(units * rows * 32)), 1, 8], out, n * pixels * 32))
            of, units = strips(rows, counts, 16, lines)
            sums = store(floats(plane * 16))
            g = words(sums, row, store(halves(n // 2 * (pixels | 1) * 32)), pixels | 1, height, width)
            found.append(("scatter", [g, of, store(halves(units * rows * 16)), 8], sums, plane * 64))
            across = height * ((width + 1) // 2)
            g = words(x, row, store(halves(across * n * 32)), n, height, width)
            gradient = store(floats(units * rows * 16))
            found.append(("sample", [g, of, gradient, 1, 8], gradient, units * rows * 64))
            out = memory(across * n * 64)
            grad = store(halves(n * pixels * 16))
            found.append(("pair_pixels", [g, grad, pixels * 16, 1, n // 16, out], out, across * n * 64))
    for pixels, valid in ((1, 16), (32, 3), (77, 16), (77, 1)):
        plane = words(pixels + 5, valid, pixels)
        images, lines = memory(16 * (pixels + 5) * 2 + 64), memory(pixels * 32)
        found.append(("to_lines", [plane, store(halves(16 * (pixels + 5) + 32)), lines], lines, pixels * 32))
        found.append(("from_lines", [plane, store(halves(pixels * 16)), images], images, 16 * (pixels + 5) * 2))
    out = memory(9 * 64)
    found.append(("interleave", [store(halves(144)), store(halves(144)), 9, out], out, 9 * 64))
    special = [float("nan"), float("inf"), -0.0, 3.0e38, 3.4e38, 1e-40, 1.00390625, 1.01171875]
    place = store(array("i", [3, 0, 2, 1]))
    found.append(("round", [store(array("f", special + list(floats(56)))), place, 4, out], out, 4 * 32))
    return found


def main() -> None:
    machine = Tiled(library())
    random.seed(0)
    wrong = 0
    for kernel, arguments, at, size in cases():
        before = ctypes.string_at(at, size)
        Function(machine.emulated[kernel])(*arguments, *[0] * (6 - len(arguments)))
        expected = ctypes.string_at(at, size)
        ctypes.memmove(at, before, size)
        machine.call(machine.amx[kernel], *arguments)
        wrong += ctypes.string_at(at, size) != expected or (expected == before and kernel != "round")
    print(f"{len(cases())} calls, {wrong} with other bits; executed: {dict(machine.done)}", flush=True)
    os._exit(wrong > 0)  # past the wheel's own clean-up, which crashes


if __name__ == "__main__":
    sys.exit(main())
