"""Compiled code of aldd's kernel that an image carries, so that not every container compiles it anew (9 s of a core).

numba keeps what it compiled for one kind of CPU. The image's is for x86-64-v3 (AVX2), which servers of the last ten
years can run, as fast as code for the very machine; on another CPU it is compiled, as at any start outside an image.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "YMIR_COMPILED_CODE"  # the folder, in images; mining.compile_kernel fills it
TARGET = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}  # no features but the name's
NEEDED = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"})  # what Linux calls x86-64-v3's


def take_shipped_code(environ: MutableMapping[str, str], cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Put an image's compiled code where numba looks for its own, before numba is imported; tells whether it was done.

    numba writes beside what it reads, and an image is read-only: hence a copy (0.4 MB), which is there whole or not.
    """
    shipped, cache = environ.get(VARIABLE), environ.get("NUMBA_CACHE_DIR")
    if not shipped or not cache or not Path(shipped).is_dir() or not runs_target(cpu_info):
        return False
    with contextlib.suppress(OSError):  # without, it is compiled
        Path(cache).mkdir(parents=True, exist_ok=True)
        for folder in sorted(Path(shipped).iterdir()):
            if not (Path(cache) / folder.name).exists():
                _copy_whole(folder, Path(cache) / folder.name)
        environ.update(TARGET)
        return True
    return False


def _copy_whole(folder: Path, place: Path) -> None:
    """Copy a folder; other ranks do the same at the same time, and the first one's stays."""
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        made = Path(scratch) / folder.name
        shutil.copytree(folder, made)
        made.chmod(0o700)
        with contextlib.suppress(OSError):
            made.rename(place)


def runs_target(cpu_info: Path) -> bool:
    """Say whether this machine's CPU has all of x86-64-v3."""
    try:
        lines = cpu_info.read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return set(flags) >= NEEDED
