"""Shards: every picture in one of them, and names that can't clash."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.batches import Shot
from utils.errors import ConfigError
from utils.shards import Shard, all_shards, parse_shard, record_files, shard_of_environment


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
    for shard in shards:
        shard.file(tmp_path, "mining").touch()
    assert len(record_files(tmp_path, "mining")) == 5 and not record_files(tmp_path, "infer")
    assert parse_shard(" 1/3").monitor(tmp_path / "monitor.txt") == tmp_path / "monitor.1-of-3.txt"


def test_torchruns_ranks_are_shards() -> None:
    assert shard_of_environment({"RANK": "1", "WORLD_SIZE": "2"}) == Shard(1, 2)
    assert shard_of_environment({}) is shard_of_environment({"RANK": "0", "WORLD_SIZE": "1"}) is None
    with pytest.raises(ConfigError):
        shard_of_environment({"RANK": "x", "WORLD_SIZE": "2"})
