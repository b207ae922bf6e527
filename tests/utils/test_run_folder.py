"""Folders of runs: numbered, never another run's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from utils.errors import ConfigError
from utils.run_folder import make_run_folder


def test_each_run_gets_the_next_free_name(tmp_path: Path) -> None:
    names = [make_run_folder(tmp_path / "runs/val", "exp").name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]
    (tmp_path / "runs/val/exp2").rmdir()
    assert make_run_folder(tmp_path / "runs/val", "exp").name == "exp2"


def test_an_old_folder_is_taken_when_allowed(tmp_path: Path) -> None:
    assert make_run_folder(tmp_path, "exp", True) == make_run_folder(tmp_path, "exp", True) == tmp_path / "exp"


def test_runs_at_once_do_not_share(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: make_run_folder(tmp_path, "exp"), range(40)))
    assert len(set(folders)) == 40


@pytest.mark.parametrize("exist_ok", [False, True])
def test_a_file_in_the_way_is_an_error(tmp_path: Path, exist_ok: bool) -> None:
    (tmp_path / "project").write_text("")
    with pytest.raises(ConfigError, match="--project"):
        make_run_folder(tmp_path / "project", "exp", exist_ok)


def test_a_name_no_system_can_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--name"):
        make_run_folder(tmp_path, "a\0b")
