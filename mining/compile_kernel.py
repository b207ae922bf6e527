"""Compile aldd's kernel into a folder that an image carries (mining.shipped_code), while the image is built:

    python -m mining.compile_kernel FOLDER

Does nothing on a CPU that could not run the code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mining.shipped_code import TARGET, runs_target


def main(argv: Sequence[str]) -> int:
    """Score a picture of noise, so that numba compiles, and keep what it compiled."""
    folder = Path(argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    if not runs_target(Path("/proc/cpuinfo")):
        sys.stderr.write("aldd's kernel is not compiled ahead: this CPU isn't an x86-64-v3\n")
        return 0
    os.environ.update(TARGET, NUMBA_CACHE_DIR=str(folder))
    import numpy as np
    import torch

    from mining.mining_aldd import compiled_figures
    from models.decode import RawMaps

    strides, classes, side = (8, 16, 32), 2, 64
    levels = [torch.rand(1, side // stride, side // stride, 3, 5 + classes) for stride in strides]
    raw = RawMaps(levels, strides, torch.ones(len(strides), 3, 2))
    compiled_figures(raw, (side, side), np.arange(classes), np.ones(classes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
