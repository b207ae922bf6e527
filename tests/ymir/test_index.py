"""Candidate indices as platforms, people and enemies write them."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ymir.conftest import Task
from utils.errors import DatasetError
from ymir.config import Roots, read_task
from ymir.index import MOST_TABS, Candidate, CandidateIndex, Pair, PairIndex, candidate_index, read_lines

Write = Callable[..., Task]


def open_index(task: Task) -> CandidateIndex:
    return candidate_index(read_task(task.in_dir, task.out_dir))


def candidates(task: Task, content: bytes) -> list[Candidate]:
    return list(open_index(task.write().index(content)))


def picture(task: Task, name: str) -> Path:
    path = task.in_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_a_line_keeps_its_text_and_is_mapped(task_dirs: Task) -> None:
    first, second = candidates(task_dirs, b"/in/assets/a.jpg\n/in/assets/b/c.JPG\n")
    assert (first.index, first.line, first.path) == (0, "/in/assets/a.jpg", task_dirs.in_dir / "assets/a.jpg")
    assert (second.index, second.name, second.refused) == (1, "c.JPG", None)


def test_blank_lines_crlf_and_the_byte_order_mark_are_left_out(task_dirs: Task) -> None:
    found = candidates(task_dirs, b"\xef\xbb\xbf/in/assets/a.jpg\r\n\r\n   \n\n/in/assets/b.jpg\r\n")
    assert [(c.index, c.line) for c in found] == [(0, "/in/assets/a.jpg"), (1, "/in/assets/b.jpg")]


def test_the_last_line_may_lack_its_end(task_dirs: Task) -> None:
    assert [c.line for c in candidates(task_dirs, b"/in/assets/a.jpg\n/in/assets/b.jpg")][-1] == "/in/assets/b.jpg"


def test_repeated_lines_are_kept(task_dirs: Task) -> None:
    assert [c.index for c in candidates(task_dirs, b"/in/assets/a.jpg\n" * 3)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["a b.jpg", " a.jpg", "a.jpg ", "图片.jpg", "a\tb.jpg", "a'\"&.jpg", "a\u2028b.jpg"])
def test_odd_names_of_files_that_are_there_are_taken_whole(task_dirs: Task, name: str) -> None:
    path = picture(task_dirs, f"assets/{name}")
    (found,) = candidates(task_dirs, f"/in/assets/{name}\n".encode())
    assert (found.path, found.line, found.name) == (path, f"/in/assets/{name}", name)


def test_bytes_that_are_no_utf8_open_the_file_and_come_back(task_dirs: Task) -> None:
    raw = os.fsencode(task_dirs.in_dir) + b"/assets/\xff\xfe.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (found,) = candidates(task_dirs, b"/in/assets/\xff\xfe.jpg\n")
    assert found.path.is_file()
    assert found.line.encode("utf-8", "surrogateescape") == b"/in/assets/\xff\xfe.jpg"


def test_a_training_line_gives_its_picture(task_dirs: Task) -> None:
    path = picture(task_dirs, "assets/a.jpg")
    (found,) = candidates(task_dirs, b"/in/assets/a.jpg\t/in/annotations/a.txt\n")
    assert (found.path, found.line) == (path, "/in/assets/a.jpg")


def pairs(task: Task, line: str) -> list[Pair]:
    file = task.in_dir / "train.tsv"
    file.write_text(line)
    folders = task.in_dir, task.in_dir / "assets", task.in_dir / "annotations"
    return list(PairIndex(file, *folders, Roots(task.in_dir, task.out_dir)))


@pytest.mark.parametrize("tabs", [0, 1, 3])
def test_of_several_tabs_the_one_between_two_files_counts(tabs: int, task_dirs: Task) -> None:
    image = picture(task_dirs, "assets/" + "a\t" * tabs + "b.jpg")
    label = picture(task_dirs, "annotations/" + "c\t" * tabs + "d.txt")
    (found,) = pairs(task_dirs, f"{image}\t{label}\n")
    assert (found.image, found.annotation) == (image, label)


def test_a_line_of_endless_tabs_asks_the_disk_a_few_times(task_dirs: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path))
    (found,) = pairs(task_dirs, "a\t" * 30_000)  # took 38 s
    assert found.image == task_dirs.in_dir / "a"
    assert 0 < len(asked) <= 2 * MOST_TABS


def test_blanks_around_a_path_are_forgiven(task_dirs: Task) -> None:
    path = picture(task_dirs, "assets/a.jpg")
    (found,) = candidates(task_dirs, b"  /in/assets/a.jpg \n")
    assert (found.path, found.line) == (path, "  /in/assets/a.jpg ")


def test_relative_paths_are_meant_from_root_dir_else_from_assets_dir(task_dirs: Task) -> None:
    below_root = picture(task_dirs, "assets/a.jpg")
    below_assets = picture(task_dirs, "assets/b/c.jpg")
    found = candidates(task_dirs, b"assets/a.jpg\nb/c.jpg\nmissing.jpg\n")
    assert [c.path for c in found] == [below_root, below_assets, task_dirs.in_dir / "missing.jpg"]
    assert [c.line for c in found] == ["assets/a.jpg", "b/c.jpg", "missing.jpg"]


@pytest.mark.parametrize(
    "line",
    [
        "/in/../secret.jpg",
        "/in/assets/../../secret.jpg",
        "../secret.jpg",
        "/in/assets/../../../../../etc/passwd",
        "/in/..",
    ],
)
def test_dots_that_lead_out_are_refused(task_dirs: Task, line: str) -> None:
    (task_dirs.in_dir.parent / "secret.jpg").write_bytes(b"x")
    (found,) = candidates(task_dirs, f"{line}\n".encode())
    assert found.refused is not None
    assert found.line == line


def test_dots_that_stay_inside_are_followed_by_letters(task_dirs: Task, tmp_path: Path) -> None:
    path = picture(task_dirs, "assets/a.jpg")
    (found,) = candidates(task_dirs, b"/in/assets/b/../a.jpg\n")
    assert (found.path, found.refused) == (path, None)


def test_names_with_dots_in_them_are_no_way_out(task_dirs: Task) -> None:
    path = picture(task_dirs, "assets/a..b...jpg")
    (found,) = candidates(task_dirs, b"/in/assets/a..b...jpg\n")
    assert (found.path, found.refused) == (path, None)


def test_dots_never_climb_where_a_linked_assets_folder_leads(task_dirs: Task, tmp_path: Path) -> None:
    (tmp_path / "store/pictures").mkdir(parents=True)
    (tmp_path / "store/secret.jpg").write_bytes(b"x")
    (tmp_path / "store/pictures/a.jpg").write_bytes(b"x")
    (task_dirs.in_dir / "assets").rmdir()
    (task_dirs.in_dir / "assets").symlink_to(tmp_path / "store/pictures")
    linked, climbing = candidates(task_dirs, b"/in/assets/a.jpg\n/in/assets/../secret.jpg\n")
    assert linked.refused is None
    assert linked.path.is_file()
    assert climbing.path == task_dirs.in_dir / "secret.jpg"
    assert not climbing.path.exists()


def test_an_index_that_is_not_there_names_the_file(task_dirs: Task) -> None:
    with pytest.raises(DatasetError, match=r"candidate-index\.tsv: No such file"):
        open_index(task_dirs.write())


def test_an_index_that_env_leaves_empty_names_the_key(task_dirs: Task) -> None:
    task_dirs.write(env={"input": {"root_dir": "/in", "candidate_index_file": ""}})
    with pytest.raises(DatasetError, match="candidate_index_file: is empty"):
        open_index(task_dirs)


def test_a_line_without_end_is_refused_and_not_read_into_memory(tmp_path: Path) -> None:
    (tmp_path / "index.tsv").write_bytes(b"/in/a.jpg\n" + b"x" * 1_000_000)
    with pytest.raises(DatasetError, match="line 2: is longer"):
        list(read_lines(tmp_path / "index.tsv"))


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_index_of_another_coding_is_refused_as_that(task_dirs: Task, coding: str) -> None:
    index = open_index(task_dirs.write().index("/in/assets/图1.jpg\n/in/assets/2.jpg\n".encode(coding)))
    for read in (list, CandidateIndex.count):
        with pytest.raises(DatasetError, match=r"index\.tsv: begins with NUL bytes, as UTF-16 text .*save it again as"):
            read(index)


def test_an_index_of_nothing_but_nuls_is_refused_and_a_single_one_is_not(task_dirs: Task) -> None:
    with pytest.raises(DatasetError, match="NUL bytes"):
        candidates(task_dirs, bytes(100_000))
    assert len(candidates(task_dirs, b"\0\n/in/assets/a.jpg\n\xff\xfe\n")) == 3


def test_count_counts_the_candidates(task_dirs: Task) -> None:
    index = open_index(task_dirs.write().index(b"/in/a\n\n/in/b\r\n/in/a\n"))
    assert index.count() == len(list(index)) == 3


@settings(max_examples=50, deadline=None)
@given(names=st.lists(st.binary(min_size=1, max_size=20).filter(lambda name: b"\n" not in name), max_size=10))
def test_any_bytes_are_read_without_an_error(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("i")
    names.insert(0, b"/in/assets/a.jpg")  # a file that begins with NULs is of another coding
    (folder / "index.tsv").write_bytes(b"\n".join(names))
    from ymir.config import Roots

    for found in CandidateIndex(folder / "index.tsv", folder, folder / "assets", Roots(folder, folder)):
        assert found.path.is_absolute()
        assert found.line.encode("utf-8", "surrogateescape") in b"\n".join(names)


def test_many_lines_are_a_stream(task_dirs: Task) -> None:
    task_dirs.write().index(b"".join(b"/in/assets/%0200d.jpg\n" % i for i in range(20_000)))  # 4 MB
    index = open_index(task_dirs)
    tracemalloc.start()
    try:
        last = -1
        for found in index:
            last = found.index
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last == 19_999
    assert peak < 3_000_000  # kept, they would take more than 20 MB
