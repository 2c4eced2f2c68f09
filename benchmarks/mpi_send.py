"""A message of 45 MB between two ranks beside a raw send: `mpirun -n 2 python -m benchmarks.mpi_send [MB]`.

Rank 0 asks for it and waits; raw is MPI's Isend and Recv between numpy buffers that exist already, ours `Link.send` and
`Link.receive`, which probes, allocates and hands over bytes. Alternating, medians of wall seconds.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
from mpi4py import MPI

from fedsparse.comm.mpi import Link

REPEATS, DATA, TOKEN = 11, 5, 6


def main() -> None:
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else 45) * 1e6)
    world, link = MPI.COMM_WORLD, Link()
    buffer, message = np.ones(size, dtype=np.uint8), np.ones(size, dtype=np.uint8).tobytes()
    token = np.zeros(1, dtype=np.uint8)
    seconds: dict[str, list[float]] = {"raw": [], "Link": []}
    for repeat in range(2 * REPEATS):
        way = ("raw", "Link")[repeat % 2]
        if link.rank:
            world.Recv(token, source=0, tag=TOKEN)
            if way == "raw":
                world.Isend(buffer, dest=0, tag=DATA).Wait()
            else:
                link.send(0, DATA, message)
                link.flush(60.0)
            continue
        world.Send(token, dest=1, tag=TOKEN)
        start = time.perf_counter()
        if way == "raw":
            world.Recv(buffer, source=1, tag=DATA)
        else:
            received = link.receive(60.0)
            if received is None or len(received.data) != size:
                raise SystemExit("the message did not come")
        seconds[way].append(time.perf_counter() - start)
    if not link.rank:
        raw, ours = (statistics.median(seconds[way][1:]) for way in ("raw", "Link"))
        print(
            f"{size / 1e6:.0f} MB between 2 ranks: raw {1e3 * raw:.1f} ms, Link {1e3 * ours:.1f} ms, {ours / raw:.2f}x"
        )


if __name__ == "__main__":
    main()
