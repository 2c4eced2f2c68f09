"""How messages travel between server and workers."""

from fedsparse.comm.local import Direction, Traffic

__all__ = ["Direction", "Traffic"]
