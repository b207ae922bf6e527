"""The ledger: which records count, and for which candidate."""

from __future__ import annotations

from pathlib import Path

from mining.records import Record, encode
from mining.runner import Ledger
from utils.records import RecordFile
from ymir.index import Candidate


def candidates(*names: str) -> list[Candidate]:
    return [Candidate(index, f"/in/{name}.jpg", Path(f"/in/{name}.jpg")) for index, name in enumerate(names)]


def test_records_count_for_the_line_that_they_name(tmp_path: Path) -> None:
    with RecordFile(tmp_path / "x.records", "a") as file:
        for record in (
            Record(1, "/in/b.jpg", 0.5),
            Record(0, "/in/other.jpg", 0.7),  # of another list
            Record(9, "/in/z.jpg", 0.7),  # beyond the list
            Record(2, "/in/c.jpg", is_readable=False),
        ):
            file.append(encode(record))
        file.append(b"no record")
        ledger = Ledger(candidates("a", "b", "c", "d"))
        ledger.take(file)
        assert ledger.is_done.tolist() == [False, True, True, False]
        assert ledger.is_readable.tolist() == [False, True, False, False]
        assert ledger.scores[1] == 0.5 and ledger.record(1).line == "/in/b.jpg"


def test_several_files_make_one_ledger(tmp_path: Path) -> None:
    ledger = Ledger(candidates("a", "b"))
    files = [RecordFile(tmp_path / f"{number}.records", "a") for number in range(2)]
    for index, (file, name) in enumerate(zip(files, "ab")):
        file.append(encode(Record(index, f"/in/{name}.jpg", index + 0.5)))
        ledger.take(file)
    assert ledger.is_done.all() and ledger.record(1).score == 1.5 and ledger.record(0).score == 0.5
    assert len(Ledger([])) == 0
