"""Write the locks of the images: every package that pip would install, with its version and its wheel's SHA-256.

    python .ci/lock.py                     # with Python 3.11: ymir/docker/locks/{torch-,}py311.txt
    python3.9 .ci/lock.py                  # with Python 3.9: {torch-,}cuda102.txt and {torch-,}cuda111.txt
    python .ci/lock.py --check             # write nothing; say whether the locks still follow from the requirements

pip resolves for the Python that runs it, so each row needs its own, on the machine's kind that the images are for
(linux/amd64). Only PyPI itself is asked, whatever this machine's pip is told, and only for wheels: an image needs no
compiler. Each row has two locks, since torch with its CUDA libraries is large and changes seldom: its layer stays.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "ymir/docker/locks"
NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)")
WITH_TORCH = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)$")  # what a CPU build of torch doesn't bring


@dataclass(frozen=True)
class Row:
    """One row of images: the requirements it starts from, and those that replace lines of them."""

    python: tuple[int, int]
    requirements: str
    replaced_by: str = ""


ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "py311": Row((3, 11), "requirements.txt"),
        "cuda102": Row((3, 9), "requirements-py39.txt"),
        "cuda111": Row((3, 9), "requirements-py39.txt", "ymir/docker/requirements-cuda111.txt"),
    }
)


@dataclass(frozen=True)
class Locked:
    """A package as it is installed."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Lock every row of this Python; gives the exit code."""
    parser = argparse.ArgumentParser(description="Write the locks of the images that have this Python.")
    parser.add_argument("--check", action="store_true", help="only compare; 1 where a lock is outdated")
    is_check = parser.parse_args(argv).check
    rows = {name: row for name, row in ROWS.items() if row.python == sys.version_info[:2]}
    if not rows:
        pythons = " and ".join(sorted({f"{major}.{minor}" for major, minor in (row.python for row in ROWS.values())}))
        sys.stderr.write(f"lock.py: this is Python {sys.version.split()[0]}, the images have {pythons}\n")
        return 2
    outdated = 0
    for name, row in rows.items():
        for path, text in texts(name, row, resolve(wanted(row))).items():
            if not is_check:
                LOCKS.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
            elif not path.exists() or path.read_text(encoding="utf-8") != text:
                outdated += 1
                sys.stderr.write(f"lock.py: {path.relative_to(ROOT)}: isn't what pip installs now; run .ci/lock.py\n")
    return min(outdated, 1)


def wanted(row: Row) -> list[str]:
    """Give a row's requirements, a line each."""
    lines = {name_of(line): line for line in requirement_lines(ROOT / row.requirements)}
    if row.replaced_by:
        lines.update({name_of(line): line for line in requirement_lines(ROOT / row.replaced_by)})
    return list(lines.values())


def requirement_lines(path: Path) -> list[str]:
    """Give the requirements that stand in a file, without comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def name_of(requirement: str) -> str:
    """typing_extensions==4 -> typing-extensions. Raises SystemExit for what is no plain requirement."""
    found = NAME.match(requirement)
    if not found:
        raise SystemExit(f"lock.py: {requirement!r}: need a line such as torch==2.14.1")
    return re.sub(r"[-_.]+", "-", found[1]).lower()


def resolve(requirements: Sequence[str]) -> list[Locked]:
    """Ask pip what it would install. Raises SystemExit where it finds nothing that fits."""
    own = {name: value for name, value in os.environ.items() if name not in ("PIP_FIND_LINKS", "PIP_CONSTRAINT")}
    with tempfile.TemporaryDirectory() as scratch:
        listed, report = Path(scratch) / "requirements.txt", Path(scratch) / "report.json"
        listed.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary", ":all:", "--report", str(report), "--requirement", str(listed)]
        done = subprocess.run(command, env={**own, "PIP_CONFIG_FILE": os.devnull}, check=False)  # noqa: S603
        if done.returncode:
            raise SystemExit(f"lock.py: pip could not resolve {', '.join(requirements)}")
        return [as_locked(one) for one in json.loads(report.read_text(encoding="utf-8"))["install"]]


def as_locked(installed: Mapping[str, Any]) -> Locked:
    """Read an entry of pip's report."""
    metadata, archive = installed["metadata"], installed["download_info"]["archive_info"]
    return Locked(name_of(metadata["name"]), metadata["version"], archive["hashes"]["sha256"])


def texts(name: str, row: Row, packages: Sequence[Locked]) -> dict[Path, str]:
    """Give a row's two locks."""
    given = " and ".join(filter(None, (row.requirements, row.replaced_by)))
    head = f"# Written by .ci/lock.py from {given}: Python {row.python[0]}.{row.python[1]}, linux/amd64. Don't edit.\n"
    with_torch = [one for one in packages if WITH_TORCH.match(one.name)]
    others = [one for one in packages if one not in with_torch]
    return {
        LOCKS / file: head + "".join(f"{one}\n" for one in sorted(chosen, key=str))
        for file, chosen in ((f"torch-{name}.txt", with_torch), (f"{name}.txt", others))
    }


if __name__ == "__main__":
    raise SystemExit(main())
