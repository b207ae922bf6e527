"""fetch_weights.sh, as far as it goes without a network: what it takes for the official file, and what it refuses."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "ymir/docker/fetch_weights.sh"


def fetch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_official_file_is_known(yolov5n_pt: Path, tmp_path: Path) -> None:
    shutil.copy(yolov5n_pt, tmp_path / "yolov5n.pt")
    done = fetch("--to", str(tmp_path), "yolov5n")
    assert done.returncode == 0, done.stderr
    assert "is what it should be" in done.stderr
    assert "AGPL-3.0" in done.stderr


def test_another_file_of_that_name_is_refused(yolov5n_pt: Path, tmp_path: Path) -> None:
    (tmp_path / "yolov5n.pt").write_bytes(yolov5n_pt.read_bytes() + b"x")
    done = fetch("--to", str(tmp_path), "yolov5n.pt")
    assert done.returncode == 1
    assert "damaged or another file" in done.stderr


def test_a_file_whose_checksum_is_unknown_waits_for_one(tmp_path: Path) -> None:
    content = b"as it was fetched"
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "yolov5s.pt.unchecked").write_bytes(content)
    done = fetch("--to", str(tmp_path), "yolov5s")
    assert done.returncode == 1
    assert f"its SHA-256 is {digest}" in done.stderr
    assert not (tmp_path / "yolov5s.pt").exists()
    assert fetch("--to", str(tmp_path), "--sha256", "0" * 64, "yolov5s").returncode == 1
    assert not (tmp_path / "yolov5s.pt").exists()
    assert fetch("--to", str(tmp_path), "--sha256", digest.upper(), "yolov5s").returncode == 0
    assert (tmp_path / "yolov5s.pt").read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "MODEL..."),
        (["yolov9"], "yolov9: there is no such model"),
        (["../yolov5n"], "there is no such model"),
        (["--sha256", "abc", "yolov5s"], "64 hexadecimal digits"),
        (["--sha256", "0" * 64, "yolov5s", "yolov5m"], "name one model"),
        (["--to"], "--to: needs a value"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments: list[str], says: str) -> None:
    done = fetch(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
