"""Functions of this process run by Bochs, whose processor is a Sapphire Rapids: linear addresses are the process's own.

For x86-64 Linux, with `pip install --no-deps bochscpu-python==0.4.0`. Where that says that __isoc23_strtoull is missing
(glibc before 2.38), LD_PRELOAD a library that has it and __isoc23_sscanf.
"""

import ctypes
import mmap
import os
import re
import subprocess
from pathlib import Path

import bochscpu
import bochscpu.cpu
import bochscpu.memory

PAGE = mmap.PAGESIZE
LOW = (1 << 39) - 1
"""A physical address is the linear one's lower 39 bits."""
_libc = ctypes.CDLL(None)
_kept = []


def memory(size: int) -> int:
    """Address of zeros, on whole pages, that stay."""
    _kept.append((ctypes.c_char * size).from_buffer(mmap.mmap(-1, size)))
    return ctypes.addressof(_kept[-1])


def write_code(at: int, code: bytes) -> None:
    """Overwrite instructions of this process."""
    assert _libc.mprotect(ctypes.c_void_p(at & -PAGE), 2 * PAGE, 7) == 0
    ctypes.memmove(at, code, len(code))


def base_of(library: str) -> int:
    """Where a library was loaded."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return min(int(line.split("-")[0], 16) for line in lines if line.endswith(library))


def _choose_processor() -> None:
    """Whatever model is asked for, Sapphire Rapids is made; the wheel's own choice has an older one."""
    library = bochscpu._bochscpu.__file__
    table = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    makers = re.findall(r"([0-9a-f]+) T _Z\d+create_(\w+)_cpuidP8BX_CPU_C", table)
    at = {name: base_of(library) + int(address, 16) for address, name in makers}
    for name, address in at.items():
        if name != "sapphire_rapids":
            write_code(address, b"\x48\xb8" + at["sapphire_rapids"].to_bytes(8, "little") + b"\xff\xe0")


def _find_page(physical: int) -> None:
    """Give Bochs the page of this process with that physical address."""
    page = physical & -PAGE
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, end = (int(n, 16) for n in line.split()[0].split("-"))
        linear = first & ~LOW | page
        if first <= linear < end:
            bochscpu.memory.page_insert(page, linear)
            return
    print(f"Bochs: nothing at {physical:#x}", flush=True)
    os._exit(1)  # an exception cannot pass through Bochs


class Machine:
    """One processor."""

    def __init__(self) -> None:
        _choose_processor()
        self.session, self.hook = bochscpu.Session(), bochscpu.Hook()
        self.session.missing_page_handler = _find_page
        self.failure: str | None = None
        self.hook.exception, self.hook.hlt = self._failed, lambda session, cpu: session.stop()
        top, middle = memory(PAGE), memory(PAGE)
        for i in range(512):
            ctypes.c_uint64.from_address(top + 8 * i).value = middle & LOW | 7
            ctypes.c_uint64.from_address(middle + 8 * i).value = i << 30 | 0x87  # pages of 1 GiB
        self.tables, self.end, self.stack = top & LOW, memory(PAGE), memory(1 << 20) + (1 << 20) - 256
        ctypes.memset(self.end, 0xF4, 16)

    def _failed(self, session: bochscpu.Session, cpu: int, vector: int, code: int) -> None:
        self.failure = f"exception {vector} ({code:#x}) at {session.cpu.rip:#x}"
        session.stop()

    def run(self) -> None:
        """Until the next hlt."""
        self.session.run([self.hook])
        if self.failure:
            raise RuntimeError(self.failure)

    def call(self, function: int, *arguments: int) -> None:
        """A function of whole numbers and addresses, by the System V ABI, until it returns or halts."""
        state = bochscpu.State()
        bochscpu.cpu.set_long_mode(state)
        state.cr0, state.cr3, state.cr4 = 0x80050033, self.tables, 0x406B8 | 0x600
        state.efer, state.xcr0, state.mxcsr, state.mxcsr_mask = 0xD01, 0xE7, 0x1F80, 0xFFFF
        for names, selector, attributes in ((("cs",), 0x10, 0xA09B), (("ss", "ds", "es", "fs", "gs"), 0x18, 0xC093)):
            segment = bochscpu.Segment()
            segment.present, segment.base, segment.limit = True, 0, 0xFFFFFFFF
            segment.selector, segment.attr = selector, attributes
            for name in names:
                setattr(state, name, segment)
        for name, value in zip(("rdi", "rsi", "rdx", "rcx", "r8", "r9"), arguments):
            setattr(state, name, value)
        ctypes.c_uint64.from_address(self.stack).value = self.end
        state.rsp, state.rip, state.rflags = self.stack, function, 2
        self.session.cpu.state = state
        self.run()
