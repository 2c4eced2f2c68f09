"""A message of 45 MB between two ranks beside a raw send: `mpirun -n 2 python -m benchmarks.mpi_send [MB]`.

Rank 0 asks for it and waits; raw is MPI's Isend and Recv between numpy buffers that exist already, ours `Link.send` of
an encoded message and `Link.receive`, which probes, makes room and hands over bytes; "all" is encoding, sending,
decoding and checking. One after the other, medians of wall seconds.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
from mpi4py import MPI

from fedsparse.comm.mpi import Link
from fedsparse.wire import Values, ValuesSpec, decode, encode

REPEATS, DATA, TOKEN = 11, 5, 6
WAYS = ("raw", "Link", "all")


def main() -> None:
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else 45) * 1e6)
    world, link = MPI.COMM_WORLD, Link()
    values = np.ones(size // 4, dtype=np.float32)
    message = encode("report", 0, 0, {"values": Values(values)})
    buffer = np.ones(len(message), dtype=np.uint8)
    token = np.zeros(1, dtype=np.uint8)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(len(WAYS) * REPEATS):
        way = WAYS[repeat % len(WAYS)]
        if link.rank:
            world.Recv(token, source=0, tag=TOKEN)
            if way == "raw":
                world.Isend(buffer, dest=0, tag=DATA).Wait()
            else:
                link.send(0, DATA, encode("report", 0, 0, {"values": Values(values)}) if way == "all" else message)
                link.flush(60.0)
            continue
        world.Send(token, dest=1, tag=TOKEN)
        start = time.perf_counter()
        if way == "raw":
            world.Recv(buffer, source=1, tag=DATA)
        else:
            received = link.receive(60.0)
            if received is None or len(received.data) != len(message):
                raise SystemExit("the message did not come")
            if way == "all":
                decode(received.data, {"values": ValuesSpec(len(values))})
        seconds[way].append(time.perf_counter() - start)
    if not link.rank:
        raw, ours, whole = (statistics.median(seconds[way][1:]) for way in WAYS)
        print(
            f"{size / 1e6:.0f} MB between 2 ranks: raw {1e3 * raw:.1f} ms, Link {1e3 * ours:.1f} ms, {ours / raw:.2f}x"
        )
        print(f"encoded, sent and decoded: {1e3 * whole:.1f} ms")


if __name__ == "__main__":
    main()
