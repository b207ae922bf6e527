"""How many pictures go through a network at once on a CPU. No torch here: it decides how pictures are read ahead."""

from __future__ import annotations

import math
from dataclasses import replace

from utils.settings import EngineSettings, LoaderSettings

# Eight at once are a fifth faster than one by one (docs/performance.md), but come in another order, and the last
# ones of each shape fill a pass for themselves.
CPU_PASS, MANY_PICTURES = 8, 256
CPU_NAMES = ("", "cpu", "-1")  # of EngineSettings.device


def cpu_pass(count: int) -> int:
    """Give how many pictures a CPU should take at once, of `count` in many shapes.

    The last pass of each shape is filled up with empty pictures, which a few pictures aren't worth.
    """
    return CPU_PASS if count >= MANY_PICTURES else 1


def even_share(count: int, most: int) -> int:
    """Give the size of the fewest equal passes of at most `most` that take `count`: of 9 and 8 it is 5."""
    passes = math.ceil(count / most)
    return math.ceil(count / passes)


def whole_passes(loader: LoaderSettings, engine: EngineSettings, size: int) -> LoaderSettings:
    """Give the settings for reading ahead: on a CPU with the batch rounded up to whole passes of `size` pictures.

    A smaller batch would be filled up, and a pass that isn't full costs as much as a full one.
    """
    if engine.device not in CPU_NAMES:
        return loader
    return replace(loader, batch_size=math.ceil(loader.batch_size / size) * size)
