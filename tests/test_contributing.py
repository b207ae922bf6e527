"""The walk of CONTRIBUTING.md, taken in a copy of the tree with the texts that stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = ("mining/mining_least_confident.py", "tests/mining/test_mining_least_confident.py")
EDITED = ("mining/__init__.py", "mining/__init__.py", "utils/settings.py")


def blocks(language: str) -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def edit(file: Path, diff: str) -> None:
    """Replace a diff's old lines, which must stand there once, by its new ones."""
    old, new = ("".join(line[1:] for line in diff.splitlines(True) if line[0] in marks) for marks in (" -", " +"))
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file.name} has no such lines:\n{old}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def take_the_walk(copy: Path) -> None:
    for name, text in zip(FILES, blocks("python")):
        assert not (copy / name).exists()
        (copy / name).write_text(text, encoding="utf-8")
    for name, diff in zip(EDITED, blocks("diff")):
        edit(copy / name, diff)


def test_there_are_as_many_texts_as_steps() -> None:
    assert (len(blocks("python")), len(blocks("diff"))) == (len(FILES), len(EDITED))


@pytest.mark.slow
def test_the_walk_leads_to_a_miner(tmp_path: Path, shared: Path) -> None:
    copy = tmp_path / "copy"
    kept = shutil.ignore_patterns(".*", "__pycache__", "demo-out", "run", "runs", "out")
    shutil.copytree(ROOT, copy, ignore=kept)
    (tmp_path / "shared").symlink_to(shared)
    take_the_walk(copy)
    run = [sys.executable, "-m"]
    tests = [FILES[1], "tests/test_start_mining.py", "tests/test_house.py"]
    names = "least_confident or house or for_every_name"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (
        [*run, "pytest", "-vv", "-k", names, *tests],
        [*run, "ruff", "check", *FILES, *EDITED],
        [*run, "ruff", "format", "--check", *FILES, *EDITED],
    ):
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        if "pytest" in command:
            assert "test_every_miner_gives_each_line_once_and_leaves_no_records[least_confident] PASSED" in done.stdout
