"""Interleaved rounds: what is compared takes turns, and the median of the ratios round by round is the figure."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Optional

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
ROUNDS = 5


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, warm: Optional[Sequence[str]] = None
) -> dict[str, list[float]]:
    """Time each variant once a round, in turns, after one run of each (or of `warm`) that doesn't count; seconds."""
    for name in variants if warm is None else warm:
        variants[name]()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return times


def ratio(over: Sequence[float], under: Sequence[float]) -> str:
    """Give the median of over / under round by round, with its range."""
    ratios = [a / b for a, b in zip(over, under)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def slope(long: Sequence[float], short: Sequence[float], pictures: int) -> list[float]:
    """Give seconds a picture, start-up apart: each round's difference over the pictures between."""
    return [(a - b) / pictures for a, b in zip(long, short)]


def run_quietly(command: Sequence[str], environment: Optional[Mapping[str, str]] = None, code: int = 0) -> None:
    """Run a command to its end; its output appears only if it ends with another code."""
    done = subprocess.run(command, capture_output=True, text=True, env=dict(environment or os.environ), cwd=ROOT)
    if done.returncode != code:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-2000:])
        raise SystemExit(f"{' '.join(command)[:200]} failed")


def many_pictures(folder: Path, count: int) -> Path:
    """Fill a folder with `count` links to the 128 real pictures, each under as many names as it takes."""
    pictures = sorted((SHARED / "data/coco128/images/train2017").glob("*.jpg"))
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:06d}.jpg").symlink_to(pictures[number % len(pictures)])
    return folder


def machine() -> str:
    """Name this machine's processor and cores."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    flags = Path("/proc/cpuinfo").read_text()
    widest = next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags), "no avx2")
    return f"{model}, {os.cpu_count()} cores, {widest}"
