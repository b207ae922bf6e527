"""How many pictures go through a network at once on a CPU. No torch here: it decides how pictures are read ahead."""

from __future__ import annotations

import math
from dataclasses import replace

from utils.settings import LoaderSettings

# Eight at once are a fifth faster than one by one (docs/performance.md), but come in another order, and a pass that
# isn't full costs as much as a full one.
CPU_PASS, MANY_PICTURES = 8, 256


def cpu_pass(count: int) -> int:
    """Give how many pictures a CPU should take at once, of `count` in many shapes.

    The last pass of each shape is filled up with empty pictures, which a few pictures aren't worth.
    """
    return CPU_PASS if count >= MANY_PICTURES else 1


def even_share(count: int, most: int) -> int:
    """Give the size of the fewest equal passes of at most `most` that take `count`: of 9 and 8 it is 5."""
    passes = math.ceil(count / most)
    return math.ceil(count / passes)


def whole_passes(loader: LoaderSettings, size: int) -> LoaderSettings:
    """Give the settings with the batch rounded up to whole passes of `size` pictures, so that full ones stay full."""
    return replace(loader, batch_size=math.ceil(loader.batch_size / size) * size)
