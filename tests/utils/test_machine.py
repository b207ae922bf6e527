"""How many processors a process has, by its affinity and by the cgroups of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.machine import Cpus, count_cpus, usable_cpus

ROOT = Path(__file__).resolve().parents[2]
HERE = len(os.sched_getaffinity(0))


def count(folder: Path, files: dict[str, str], membership: str = "0::/\n") -> Cpus:
    (folder / "self").write_text(membership)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return count_cpus(folder, folder / "self")


def test_affinity_bounds_a_process() -> None:
    bind = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"{bind}\nfrom utils.machine import count_cpus\nprint(count_cpus())"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.strip() == (f"1 CPUs of {os.cpu_count()} may be used (affinity)" if os.cpu_count() != 1 else "1 CPUs")


@pytest.mark.skipif(HERE < 2, reason="needs two processors, of which a quota takes one")
@pytest.mark.parametrize(
    ("files", "membership"),
    [
        ({"cpu.max": "100000 100000\n"}, "0::/\n"),
        ({"cpu.max": "50000 100000\n"}, "0::/\n"),
        ({"system.slice/cpu.max": "100000 100000", "system.slice/one/cpu.max": "max 100000"}, "0::/system.slice/one\n"),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/docker/of-the-host\n"),
        ({"cpu,cpuacct/a/cpu.cfs_quota_us": "9", "cpu,cpuacct/a/cpu.cfs_period_us": "10"}, "4:cpu,cpuacct:/a\n"),
    ],
)
def test_a_quota_of_one_processor_or_less_leaves_one(files: dict[str, str], membership: str, tmp_path: Path) -> None:
    found = count(tmp_path, files, membership)
    assert (found.usable, found.bound_by) == (1, "cgroup")
    assert str(found) == f"1 CPUs of {os.cpu_count()} may be used (cgroup)"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000\n"},
        {"cpu.max": "\n"},
        {"cpu.max": "-1 100000"},
        {"cpu.max": "100000 0"},
        {"cpu.max": "0 100000"},
        {"cpu.max": f"{10**9} 1000"},
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        {"cpu/cpu.cfs_quota_us": "100000\n"},
    ],
)
def test_no_quota_and_nonsense_bound_nothing(files: dict[str, str], tmp_path: Path) -> None:
    assert count(tmp_path, files).usable == HERE


def test_a_share_is_rounded_up(tmp_path: Path) -> None:
    assert count(tmp_path, {"cpu.max": f"{100000 * HERE - 90000} 100000"}).usable == HERE


def test_a_cgroup_outside_of_what_is_seen_is_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("1 100000")
    inner = tmp_path / "inner"
    inner.mkdir()
    assert count(inner, {}, "0::/../\n").usable == HERE


def test_knows_no_torch() -> None:
    code = "import sys, utils.machine; print(len({'torch', 'numpy'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.strip() == "0"
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
