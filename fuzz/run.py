"""Fuzz each target for a time, one after the other: make fuzz SECONDS=60 [TARGET=pickle]. Needs atheris."""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from fuzz.targets import MAX_BYTES, MAX_MB, MAX_SECONDS, TARGETS

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / ".fuzzenv/corpus"  # what was found so far: the next run goes on from there
FOUND = ROOT / "fuzz/found"  # inputs that crashed; tests/fuzz runs them ever after


def main() -> int:
    """Give 0 where no target crashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    failed = [name for name in options.targets or TARGETS if not fuzz(name, options.seconds)]
    if failed:
        print(f"crashed: {', '.join(failed)}; inputs and their trace in {FOUND} and .fuzzenv/*.log")
    return bool(failed)


def fuzz(name: str, seconds: int) -> bool:
    """Fuzz one target; prints a line of figures and gives whether nothing was found."""
    corpus = CORPUS / name
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in TARGETS[name].seeds():
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    words = CORPUS.parent / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(token)}"\n' for token in TARGETS[name].tokens))
    flags = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        f"-timeout={4 * MAX_SECONDS}",  # traced, at the lowest priority, all takes some four times as long
        f"-rss_limit_mb={MAX_MB}",
        *([f"-dict={words}"] if TARGETS[name].tokens else []),
        f"-artifact_prefix={FOUND / name}/",
        "-print_final_stats=1",
    ]
    command = [sys.executable, "-m", "fuzz.engine", name, str(corpus), *flags]
    log = CORPUS.parent / f"{name}.log"
    with log.open("wb") as file:
        code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file).returncode  # noqa: S603 (ours)
    text = log.read_text(errors="replace")
    executions = re.findall(r"stat::number_of_executed_units: *(\d+)", text)
    figures = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    branches, features, inputs = figures[-1] if figures else ("?", "?", "?")
    print(
        f"{name:<9} {executions[-1] if executions else '?':>9} executions, {branches:>5} branches, {features:>6} "
        f"features, {inputs:>5} inputs kept, {'nothing found' if code == 0 else f'FAILED ({code}), see {log}'}",
        flush=True,
    )
    if not any((FOUND / name).iterdir()):
        (FOUND / name).rmdir()
    return code == 0


def _escaped(token: bytes) -> str:
    """A token as libFuzzer's dictionaries write it."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    sys.exit(main())
