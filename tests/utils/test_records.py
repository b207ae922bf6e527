"""Records survive kills and torn ends; files of other settings are begun anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import BusyError, DatasetError, ExecutorError
from utils.records import RecordFile, digest_of


def contents(path: Path, digest: str = "a") -> list[bytes]:
    with RecordFile(path, digest) as file:
        return [content for _, content in file]


def write(path: Path, *records: bytes, digest: str = "a") -> None:
    with RecordFile(path, digest) as file:
        for record in records:
            file.append(record)


def test_records_come_back_and_more_are_added(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    write(path, b"one", b"")
    write(path, b"three" * 1000)
    assert contents(path) == [b"one", b"", b"three" * 1000]
    with RecordFile(path, "a") as file:
        places = [place for place, _ in file]
        assert [file.read(place) for place in places] == [b"one", b"", b"three" * 1000]


def test_what_was_flushed_is_there_though_the_process_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    file = RecordFile(path, "a")
    file.append(b"one")
    before = path.stat().st_size
    file.flush()
    assert path.stat().st_size > before
    file.__exit__(RuntimeError, None, None)
    assert contents(path) == [b"one"]


@given(cut=st.integers(0, 200), records=st.lists(st.binary(max_size=20), max_size=5))
def test_a_torn_end_is_dropped_and_all_before_it_stays(
    tmp_path_factory: pytest.TempPathFactory, cut: int, records: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("torn") / "x.records"
    write(path, *records)
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    kept = contents(path)
    assert kept == records[: len(kept)]
    write(path, b"more")
    assert contents(path) == [*kept, b"more"]


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_a_wrong_record(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("bit") / "x.records"
    records = [b"first", b"second", b"third"]
    write(path, *records)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    kept = contents(path)
    assert kept == records[: len(kept)]


def test_another_digest_begins_anew_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.records"
    write(path, b"one")
    assert contents(path, "b") == []
    assert "begun anew" in caplog.text
    write(path, b"two", digest="b")
    with RecordFile(path, "b", anew=True) as file:
        assert list(file) == []


def test_two_processes_never_write_one_file(tmp_path: Path) -> None:
    with RecordFile(tmp_path / "x.records", "a"), pytest.raises(BusyError, match="another process"):
        RecordFile(tmp_path / "x.records", "a")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "x.records").symlink_to(tmp_path / "precious")
    with pytest.raises(ExecutorError, match=r"x\.records"):
        RecordFile(tmp_path / "x.records", "a")
    assert (tmp_path / "precious").read_text() == "kept"


def test_digests_differ_where_a_setting_does() -> None:
    assert digest_of(a=1, b=[1, 2]) == digest_of(b=[1, 2], a=1) != digest_of(a=1, b=[1, 3])


def test_who_only_reads_leaves_a_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    with RecordFile(path, "a") as file:
        file.append(b"one")
    path.write_bytes(path.read_bytes() + b"torn")
    before = path.read_bytes()
    with RecordFile(path, "a", to_read=True) as first, RecordFile(path, "a", to_read=True) as second:
        assert [content for _, content in first] == [content for _, content in second] == [b"one"]
        with pytest.raises(BusyError):
            RecordFile(path, "a")
    with pytest.raises(DatasetError, match=r"x\.records: its records are of other weights or settings"):
        RecordFile(path, "b", to_read=True)
    with pytest.raises(ExecutorError, match=r"y\.records: can't be read"):
        RecordFile(tmp_path / "y.records", "a", to_read=True)
    assert path.read_bytes() == before and not (tmp_path / "y.records").exists()
