"""Only regular files are opened; a file that is written is seen whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from utils.errors import ConfigError, ImageError
from utils.files import open_regular, read_bytes, replacing, write_whole


class OwnError(Exception):
    """Raised within a block."""


def names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def unreadable(what: str, folder: Path) -> Path:
    """A path that is no regular file."""
    path = folder / "thing"
    if what == "folder":
        path.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    if what == "link to itself":
        path.symlink_to(path)
    if what == "link to nowhere":
        path.symlink_to(folder / "nowhere")
    if what == "link to a pipe":
        os.mkfifo(folder / "pipe")
        path.symlink_to(folder / "pipe")
    if what == "below a file":
        (folder / "file").write_bytes(b"")
        path = folder / "file" / "thing"
    return {"device": Path("/dev/zero"), "terminal": Path("/dev/tty")}.get(what, path)


@pytest.mark.parametrize(
    "what",
    [
        "missing",
        "folder",
        "pipe",
        "device",
        "terminal",
        "link to itself",
        "link to nowhere",
        "link to a pipe",
        "below a file",
    ],
)
def test_what_is_no_regular_file_is_refused_without_waiting(what: str, tmp_path: Path) -> None:
    path = unreadable(what, tmp_path)
    with pytest.raises(ImageError, match=str(path)) as caught:
        open_regular(path, ImageError)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=str(path)):
        read_bytes(path, 10, ConfigError)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "\udcff" * 200])
def test_impossible_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        read_bytes(str(tmp_path) + "/" + name, 10, ImageError)


def test_refusing_leaves_no_open_file(tmp_path: Path) -> None:
    before = len(names_in(Path("/proc/self/fd")))
    for _ in range(20):
        with pytest.raises(ImageError):
            open_regular(tmp_path, ImageError)
    assert len(names_in(Path("/proc/self/fd"))) == before


def test_link_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link", 7, ImageError) == b"content"


@pytest.mark.parametrize("length", [0, 1, 99_999, 100_000])
def test_file_up_to_the_limit_is_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(length))
    assert read_bytes(path, 100_000, ImageError) == path.read_bytes()


def test_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100_001))
    with pytest.raises(ImageError, match="larger than 100000 bytes"):
        read_bytes(path, 100_000, ImageError)


def test_file_whose_size_is_not_known_beforehand_is_read_whole() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    assert b"VmPeak" in read_bytes("/proc/self/status", 1_000_000, ImageError)


def test_generous_limit_costs_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    code = (
        "import resource, sys; from utils.files import read_bytes; from utils.errors import ImageError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "print(len(read_bytes(sys.argv[1], 1 << 40, ImageError)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "file")], cwd=root, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("7\n", "")


@pytest.mark.parametrize("old", [None, b"old"])
def test_written_file_takes_the_place_of_the_old_one(old: bytes, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    if old is not None:
        write_whole(path, old)
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names_in(path.parent) == ["file"]


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [OwnError, KeyboardInterrupt, SystemExit])
def test_error_leaves_the_old_content_and_no_scraps(old: bytes, error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error), replacing(path) as file:
        file.write(b"half of the n")
        file.flush()
        raise error
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([old] if old is not None else [])


def test_error_while_replacing_leaves_no_scraps(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    (path / "occupied").write_bytes(b"")
    with pytest.raises(OSError):
        write_whole(path, b"new")
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("mode", [0o666, 0o644, 0o600])
def test_rights_are_those_asked_for_whatever_the_umask(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o077)
    try:
        write_whole(path, b"", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"untouched")
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"untouched"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_reader_that_polls_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "monitor.txt"
    contents = [bytes([letter]) * 50_000 for letter in b"abcdefgh"]
    write_whole(path, contents[0])
    seen: list[bytes] = []
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for turn in range(200):
            with replacing(path) as file:
                for at in range(0, 50_000, 10_000):
                    file.write(contents[turn % 8][at : at + 10_000])
                    file.flush()
    finally:
        done.set()
        reader.join()
    assert seen
    assert set(seen) <= set(contents)
