"""The compiled kernel that images carry: taken by a process that finds it, with the same figures; else left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mining.shipped_code import TARGET, VARIABLE, runs_target, take_shipped_code
from tests.conftest import ROOT

FIGURES = (
    "import torch; from mining import aldd_kernel, mining_aldd; from models.decode import RawMaps;"
    "levels = [torch.rand(1, 128 // s, 128 // s, 3, 8, generator=torch.Generator().manual_seed(s)) for s in (8, 16)];"
    "raw = RawMaps(levels, (8, 16), torch.ones(2, 3, 2));"
    "print(mining_aldd.compiled_figures(raw, (128, 128), [0, 1, 2], torch.ones(3).double().numpy()).tolist())"
)
KNOWN = "flags : avx2 fma bmi1 bmi2 f16c movbe abm sse\n"


def figures(**environment: str) -> str:
    script = f"import os; from mining.mining_aldd import has_kernel; assert has_kernel(); {FIGURES}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def codes(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.nbc")}


@pytest.mark.skipif(not runs_target(Path("/proc/cpuinfo")), reason="this CPU isn't an x86-64-v3")
def test_what_an_image_carries_is_not_compiled_again(tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    subprocess.run([sys.executable, "-m", "mining.compile_kernel", str(shipped)], check=True, cwd=ROOT)
    made = codes(shipped)
    assert len(made) > 3
    for path in (shipped, *shipped.rglob("*")):  # as in an image
        path.chmod(0o555 if path.is_dir() else 0o444)
    cache = tmp_path / "cache"
    with_it = figures(NUMBA_CACHE_DIR=str(cache), **{VARIABLE: str(shipped)})
    assert codes(cache) == made, "something was compiled, or nothing taken"
    assert with_it == figures()
    shutil.rmtree(cache)
    assert figures(NUMBA_CACHE_DIR=str(cache), **{VARIABLE: str(tmp_path / "none")}) == with_it
    assert codes(cache)


def test_a_cpu_that_cannot_run_it_compiles_its_own(tmp_path: Path) -> None:
    (tmp_path / "shipped/mining_1").mkdir(parents=True)
    info = tmp_path / "cpuinfo"
    for text, takes in ((KNOWN, True), (KNOWN.replace("avx2", "avx"), False), ("", False)):
        info.write_text(text)
        environ = {VARIABLE: str(tmp_path / "shipped"), "NUMBA_CACHE_DIR": str(tmp_path / f"cache{len(text)}")}
        assert take_shipped_code(environ, info) == takes
        assert (environ.items() >= TARGET.items()) == takes and (tmp_path / f"cache{len(text)}").exists() == takes
    assert not take_shipped_code({}, info) and not runs_target(tmp_path / "none")


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    """Of ranks that start together one copies, and a cache that grew is not thrown away."""
    (tmp_path / "shipped/mining_1").mkdir(parents=True)
    (tmp_path / "shipped/mining_1/a.nbc").write_text("of the image")
    (tmp_path / "cache/mining_1").mkdir(parents=True)
    (tmp_path / "cache/mining_1/a.nbc").write_text("of here")
    (tmp_path / "cpuinfo").write_text(KNOWN)
    environ = {VARIABLE: str(tmp_path / "shipped"), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert take_shipped_code(environ, tmp_path / "cpuinfo")
    assert (tmp_path / "cache/mining_1/a.nbc").read_text() == "of here"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mining_1"]
