"""Shards: every picture in one of them, and names that can't clash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.batches import Shot
from utils.errors import BusyError, ConfigError, DatasetError
from utils.records import RecordFile
from utils.shards import (
    Shard,
    all_shards,
    alone_in,
    check_all_done,
    joining,
    parse_shard,
    remove_records,
    shard_of_environment,
)

ROOT = Path(__file__).resolve().parents[2]


@given(items=st.integers(0, 50), count=st.integers(1, 9))
def test_shards_share_out_all_items_once(items: int, count: int) -> None:
    shots = [Shot(index, Path(str(index))) for index in range(items)]
    parts = [[shot.index for shot in shard.of(shots)] for shard in all_shards(count)]
    assert sorted(index for part in parts for index in part) == list(range(items))
    assert parts[0] == list(range(items))[::count]


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/2", "0/0", "a/b", "1/2/3", "0/1000000", "\u0661/2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard"):
        parse_shard(text)


def test_files_are_told_apart(tmp_path: Path) -> None:
    shards = [*all_shards(2), *all_shards(3)]
    assert len({shard.file(tmp_path, kind) for shard in shards for kind in ("mining", "infer")}) == 10
    assert parse_shard(" 1/3").monitor(tmp_path / "monitor.txt") == tmp_path / "monitor.1-of-3.txt"


def test_torchruns_ranks_are_shards() -> None:
    assert shard_of_environment({"RANK": "1", "WORLD_SIZE": "2"}) == Shard(1, 2)
    assert shard_of_environment({}) is shard_of_environment({"RANK": "0", "WORLD_SIZE": "1"}) is None
    with pytest.raises(ConfigError):
        shard_of_environment({"RANK": "x", "WORLD_SIZE": "2"})


def opened(folder: Path, shard: Shard, kind: str = "mining") -> RecordFile:
    return RecordFile(shard.file(folder, kind), "digest")


def test_joining_leaves_all_records_and_removing_takes_all_of_a_kind(tmp_path: Path) -> None:
    for shard in (*all_shards(2), *all_shards(3)):
        opened(tmp_path, shard).__exit__(None, None, None)
    opened(tmp_path, Shard(), "infer").__exit__(None, None, None)
    with joining(tmp_path, "mining", 2, "digest") as files:
        assert len(files) == 2
    assert len(list(tmp_path.iterdir())) == 6
    remove_records(tmp_path, "mining")
    assert [path.name for path in tmp_path.iterdir()] == ["infer.0-of-1.records"]
    with pytest.raises(DatasetError, match="--shard 0/2"), joining(tmp_path, "mining", 2, "digest"):
        pass


def test_only_one_is_alone_in_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(BusyError, match="another start"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path), alone_in(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    (tmp_path / "file").touch()
    with alone_in(tmp_path / "file/nowhere"):
        pass


def test_what_has_no_record_names_its_shard() -> None:
    check_all_done(np.array([True, True]), 2)
    with pytest.raises(DatasetError, match=r"2 candidates have no record; run start\.py --shard 1/2"):
        check_all_done(np.array([True, False, True, False]), 2)


def in_a_child(code: str) -> str:
    """Run code in a process of its own, whose limits are nobody else's."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    return done.stdout + done.stderr


def test_joining_many_shards_raises_the_limit_of_open_files() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 900));"
        "from utils.shards import allow_open_files; allow_open_files({count});"
        "print([open('/dev/null') for _ in range({count})][0].closed)"
    )
    assert in_a_child(code.format(count=500)).strip() == "False"
    assert "--ulimit nofile=1000" in in_a_child(code.format(count=800))
