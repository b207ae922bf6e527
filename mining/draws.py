"""What chance decides in mining: a function of the seed and the index line alone.

Python's own hash() would differ from run to run, and a generator for all from order to order.
"""

from __future__ import annotations

from hashlib import blake2b


def draw(seed: int, line: str, size: int = 8) -> int:
    """Draw a whole number of `size` bytes for one line of the index, the same whatever else is in the list."""
    text = f"{seed}\0{line}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=size).digest(), "big")
