"""Fuzz one reader, guided by coverage: python -m tests.fuzz TARGET SECONDS [CORPUS]. Needs atheris (make fuzz).

Ends with 0 and the number of executions, or with what crashed: an exception that isn't ours, ten seconds, 1 GB.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["models", "utils", "ymir", "formats", "mining"]):
    from tests.fuzz.targets import EXPECTED, TARGETS

import contextlib

from tests.fuzz.seeds import seeds

LONGEST_S, MOST_MB, MOST_BYTES = 10, 1024, 8192


def main() -> None:
    """Run it; libFuzzer ends the process."""
    name, seconds = sys.argv[1], int(sys.argv[2])
    corpus = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    for number, content in enumerate(seeds(name, scratch)):
        (corpus / f"seed{number}").write_bytes(content)
    logging.disable(logging.CRITICAL)
    target = TARGETS[name]

    def once(content: bytes) -> None:
        with contextlib.suppress(EXPECTED):
            target(content, scratch)

    options = [f"-max_total_time={seconds}", f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MB + 512}"]
    options += [
        f"-max_len={MOST_BYTES}",
        f"-malloc_limit_mb={MOST_MB}",
        f"-artifact_prefix={corpus}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], once)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
