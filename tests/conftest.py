"""What every test may ask for. The shared folder lies beside the checkout: real pictures, weights, golden figures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable

# Before torch loads anywhere in this process: one team of threads, which sleeps when it has nothing to do.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests load it themselves
# Of several test processes each has a core of its own, and so has what it starts: never more threads than cores.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(os.environ["PYTEST_XDIST_WORKER"][len("gw") :]) % len(CORES)]})
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder; without it tests that ask for it are skipped, or, with YMIR_REQUIRE_SHARED set, fail."""
    if not (SHARED / "golden").is_dir():
        missing = pytest.fail if os.environ.get("YMIR_REQUIRE_SHARED") else pytest.skip
        missing("needs ../shared: real pictures, weights and golden figures")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], Any]:
    """golden("infer.json") gives that file, parsed."""

    def read(name: str) -> Any:
        return json.loads((shared / "golden" / name).read_text())

    return read


@pytest.fixture(scope="session")
def coco_images(shared: Path) -> list[Path]:
    """The 128 real pictures, in the order of their names."""
    return sorted((shared / "data/coco128/images/train2017").glob("*.jpg"))


@pytest.fixture(scope="session")
def yolov5n_pt(shared: Path) -> Path:
    """The official yolov5n checkpoint."""
    return shared / "weights/yolov5n.pt"
