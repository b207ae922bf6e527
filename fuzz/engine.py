"""One target under atheris, libFuzzer's loop around Python: python -m fuzz.engine TARGET [CORPUS...] [-flags]."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

MEMORY = "/dev/shm"  # noqa: S108  # files that are in memory alone, where there is room for them
OURS = ["formats", "mining", "models", "training", "utils", "ymir"]


def main(argv: list[str]) -> None:
    """Run a target until libFuzzer has enough; a crash, a hang or too much memory ends the process."""
    name = argv[1]
    with atheris.instrument_imports(include=OURS):
        targets = importlib.import_module("fuzz.targets")
    target = targets.TARGETS[name]
    logging.disable()
    with TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as temp:
        folder = Path(temp)

        def test(content: bytes) -> None:
            targets.check(target, content, folder)

        atheris.Setup([argv[0], *argv[2:]], test)
        atheris.Fuzz()  # doesn't come back


if __name__ == "__main__":
    main(sys.argv)
