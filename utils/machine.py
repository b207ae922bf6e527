"""How many processors this process really has: a container shows its machine's and may use fewer. No torch here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
V1_FOLDERS = ("cpu", "cpu,cpuacct")


@dataclass(frozen=True)
class Cpus:
    """usable: at least 1. there: what the machine shows. bound_by: affinity, cgroup, or "" where all may be used."""

    usable: int
    there: int
    bound_by: str = ""

    def __str__(self) -> str:
        if not self.bound_by:
            return f"{self.usable} CPUs"
        return f"{self.usable} CPUs of {self.there} may be used ({self.bound_by})"


def usable_cpus() -> int:
    """Give how many threads can compute at once: as many as all bounds on this process leave, rounded up."""
    return count_cpus().usable


def count_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Cpus:
    """Give the processors of the machine, and what the affinity and the quotas of cgroups (v2, v1) leave of them.

    membership: the file that says which cgroups this process is in. What can't be read bounds nothing.
    """
    there = os.cpu_count() or 1
    usable, bound_by = there, ""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    if affinity < usable:
        usable, bound_by = affinity, "affinity"
    quota = min(_quotas(cgroups, membership), default=math.inf)
    if math.ceil(min(quota, usable)) < usable:
        usable, bound_by = max(math.ceil(quota), 1), "cgroup"
    return Cpus(usable, there, bound_by)


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Give every quota that holds for this process, in processors: its cgroup's and those of the ones around it."""
    for inner in _own_paths(membership):
        found = [_v2_quota(cgroups / inner / "cpu.max")]
        found += [_v1_quota(cgroups / folder / inner) for folder in V1_FOLDERS]
        yield from (quota for quota in found if quota is not None)


def _own_paths(membership: Path) -> set[Path]:
    """Give the folders to look in, below the root of a hierarchy: a container sees its own cgroup as that root."""
    found = {Path()}
    try:
        lines = membership.read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        path = Path(line.split(":", 2)[-1].lstrip("/"))
        if ".." not in path.parts:  # lies outside of what is seen here
            found |= {path, *path.parents}
    return found


def _v2_quota(file: Path) -> Optional[float]:
    """Read `QUOTA PERIOD` in microseconds, or `max PERIOD`."""
    words = _words(file)
    return _share(words[0], words[1]) if len(words) == 2 else None


def _v1_quota(folder: Path) -> Optional[float]:
    """Read a quota, -1 for none, and its period, from a file each."""
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return _share(quota[0], period[0]) if len(quota) == len(period) == 1 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except (OSError, ValueError):
        return []


def _share(quota: str, period: str) -> Optional[float]:
    """Give how many processors a quota stands for; None where it is none."""
    if not quota.isdecimal() or not period.isdecimal() or not int(quota) or not int(period):
        return None
    return int(quota) / int(period)
