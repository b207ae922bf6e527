"""What --source names; no picture is opened here."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.media import find_sources


def test_a_folder_is_read_without_its_subfolders_and_hidden_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.jpeg", "c.mp4", "below/d.jpg", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [source.path.name for source in find_sources(str(tmp_path))] == ["a.jpeg", "b.JPG", "c.mp4"]


def test_a_pattern_may_go_below(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "x/y/2.jpg", "x/y/3.txt", "[z].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [source.path.name for source in find_sources(f"{tmp_path}/**/*.*")] == ["[z].png", "1.jpg", "2.jpg"]
    assert [source.path.name for source in find_sources(f"{tmp_path}/[z].png")] == ["[z].png"]  # a name, first of all


def test_a_list_names_files_beside_it_or_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "here").mkdir()
    for name in ("lists/a.jpg", "here/b b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    lines = ["a.jpg", "  b b.jpg", "", "../c.jpg", f"{tmp_path}/c.jpg", "a.jpg", "none.jpg"]
    (tmp_path / "lists/猫.txt").write_bytes("\r\n".join(lines).encode())
    monkeypatch.chdir(tmp_path / "here")
    paths = [source.path for source in find_sources(str(tmp_path / "lists/猫.txt"))]
    beside = tmp_path / "lists"
    assert paths == [beside / "a.jpg", Path("b b.jpg"), beside / "../c.jpg", tmp_path / "c.jpg", Path("none.jpg")]
