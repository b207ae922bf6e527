"""mining_stats.safetensors: what is written comes back, and nothing that doesn't fit together is believed."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from utils.errors import DatasetError
from utils.stats import MiningStats, features_digest, read_stats, write_stats

STATS = MiningStats(
    names=("person", "消防栓", "traffic light"),
    pictures_per_class=np.array([40, 0, 3]),
    boxes_per_class=np.array([200, 0, 7]),
    ap_per_class=np.array([0.5, np.nan, 0.0]),
    features=np.linspace(-4000, 4000, 8, dtype=np.int16).reshape(2, 4),
    seed=-7,
    digest=features_digest("00ff", 9, 640, "square"),
)
ARRAYS = ("pictures_per_class", "boxes_per_class", "ap_per_class", "features")


def assert_same(one: MiningStats, other: MiningStats) -> None:
    assert (one.names, one.seed, one.digest) == (other.names, other.seed, other.digest)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


@pytest.mark.parametrize("features", [STATS.features, np.ones((3, 2), np.int16), np.zeros((0, 256), np.int16)])
def test_what_is_written_comes_back(tmp_path: Path, features: Any) -> None:
    path = tmp_path / "mining_stats.safetensors"
    write_stats(path, replace(STATS, features=features))
    read = read_stats(path)
    assert_same(read, replace(STATS, features=features))
    assert not read.features.flags.writeable


def test_safetensors_itself_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    write_stats(path, STATS)
    with safe_open(path, framework="numpy") as file:
        assert sorted(file.keys()) == sorted(ARRAYS)
        assert json.loads(file.metadata()["names"])[1] == "消防栓"
        np.testing.assert_array_equal(file.get_tensor("boxes_per_class"), [200, 0, 7])


def test_a_column_of_a_larger_array_is_written_as_it_reads(tmp_path: Path) -> None:
    wide = np.arange(40, dtype=np.int16).reshape(5, 8)
    path = tmp_path / "stats.safetensors"
    write_stats(path, replace(STATS, features=wide[::2, ::3]))
    np.testing.assert_array_equal(read_stats(path).features, wide[::2, ::3])


def test_the_digest_tells_all_that_features_depend_on() -> None:
    made = {features_digest(*arguments) for arguments in [
        ("aa", 9, 640, "square"), ("ab", 9, 640, "square"), ("aa", 8, 640, "square"), ("aa", 9, 320, "square"),
        ("aa", 9, 640, "minimal"),
    ]}  # fmt: skip
    assert len(made) == 5


# --- what isn't believed ----------------------------------------------------------------------------------------


def forged(path: Path, change: dict[str, Any]) -> Path:
    """A well-formed file whose parts don't fit together; metadata under their own names, arrays under theirs."""
    metadata = {"version": "1", "names": json.dumps(STATS.names), "seed": "0", "digest": "x"}
    metadata.update({name: value for name, value in change.items() if name in metadata})
    header: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for name in ARRAYS:
        array = change.get(name, getattr(STATS, name))
        if array is None:
            continue
        kinds = {"int64": "I64", "int32": "I32", "int16": "I16", "float64": "F64", "float32": "F32", "float16": "F16"}
        kind = kinds[str(array.dtype)]
        start, body = len(body), body + array.tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, len(body)]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_a_file_forged_with_true_parts_is_read(tmp_path: Path) -> None:
    assert_same(read_stats(forged(tmp_path / "f", {})), replace(STATS, seed=0, digest="x"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"boxes_per_class": np.array([1, 2])}, "boxes_per_class: need 3"),
        ({"boxes_per_class": np.array([1, -2, 3])}, "boxes_per_class: need 3"),
        ({"pictures_per_class": np.array([1, 2, 1 << 60])}, "pictures_per_class: need 3"),
        ({"pictures_per_class": np.array([1, 2, 3], np.int32)}, "pictures_per_class: need 3"),
        ({"ap_per_class": np.array([0.5, np.inf, 0])}, "ap_per_class"),
        ({"ap_per_class": np.array([0.5, 1.5, 0])}, "ap_per_class"),
        ({"features": np.array([[1, 4001]], np.int16)}, "features: need numbers"),
        ({"features": np.ones(4, np.int16)}, "features: need"),
        ({"features": np.ones((4097, 1), np.int16)}, "features: need"),
        ({"features": np.ones((2, 2))}, "features: need"),
        ({"features": None}, "damaged"),
        ({"names": "[]"}, "class names"),
        ({"names": "[1, 2, 3]"}, "class names"),
        ({"names": '{"0": "a"}'}, "damaged"),
        ({"names": "[" * 100_000}, "damaged"),
        ({"names": json.dumps(["a", "b", "c" * 201])}, "class names"),
        ({"seed": "9" * 5000}, "damaged"),
        ({"seed": "x"}, "damaged"),
        ({"version": "2"}, "version"),
        ({"digest": "a\nb"}, "digest"),
    ],
)
def test_parts_that_dont_fit_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = forged(tmp_path / "stats.safetensors", change)
    with pytest.raises(DatasetError, match=says) as raised:
        read_stats(path)
    assert str(path) in str(raised.value) and str(raised.value).isprintable() and len(str(raised.value)) < 400


def test_a_file_larger_than_the_limit_and_a_pipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    write_stats(path, STATS)
    with pytest.raises(DatasetError, match="larger than 100 bytes"):
        read_stats(path, 100)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="not a regular file"):
        read_stats(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="No such file"):
        read_stats(tmp_path / "none")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), max_size=4), st.floats(0, 1))
def test_damage_is_read_or_refused(damage: list[tuple[float, bytes]], kept: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stats.safetensors"
        write_stats(path, STATS)
        content = bytearray(path.read_bytes())
        for place, new in damage:
            at = int(place * len(content))
            content[at : at + len(new)] = new
        path.write_bytes(content[: int(kept * len(content)) + 1])
        try:
            assert read_stats(path).features.dtype == np.int16
        except DatasetError as error:
            assert str(error).isprintable()


def test_what_doesnt_fit_isnt_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ap_per_class"):
        write_stats(tmp_path / "stats", replace(STATS, ap_per_class=np.array([0.1, 0.2])))
    assert list(tmp_path.iterdir()) == []
