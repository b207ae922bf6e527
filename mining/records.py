"""What is kept of each candidate while mining runs, as bytes of a utils.records.RecordFile. No torch."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Feature = npt.NDArray[np.int16]

HEAD = struct.Struct("<Qd?4I")  # index, score, readable; bytes of the line, lengths of the arrays but the last


def _none() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Record:
    """One candidate's result; arrays that no option asked for are empty."""

    index: int  # its place in the index
    line: str
    score: float = 0.0
    is_readable: bool = True
    parts: Floats = field(default_factory=_none)  # (P,) what the score is made of
    confidences: Floats = field(default_factory=_none)  # (nc,) best confidence of each class
    class_sums: Floats = field(default_factory=_none)  # (nc,) class vectors added up over the boxes
    feature: Feature = field(default_factory=lambda: np.zeros(0, np.int16))  # (C,)


def encode(record: Record) -> bytes:
    """Give a record's bytes."""
    line = record.line.encode("utf-8", "surrogateescape")
    floats = [
        np.ascontiguousarray(array, np.float32) for array in (record.parts, record.confidences, record.class_sums)
    ]
    head = HEAD.pack(record.index, record.score, record.is_readable, len(line), *(len(array) for array in floats))
    feature = np.ascontiguousarray(record.feature, np.int16)
    return b"".join([head, line, *(array.tobytes() for array in floats), feature.tobytes()])


def decode(content: bytes) -> Record:
    """Give the record that `encode` made these bytes of. Raises ValueError for others."""
    try:
        index, score, is_readable, line_bytes, *lengths = HEAD.unpack_from(content)
    except struct.error as cause:
        raise ValueError("is no record") from cause
    place = HEAD.size + line_bytes
    line = content[HEAD.size : place].decode("utf-8", "surrogateescape")
    floats: list[Any] = []
    for length in lengths:
        floats.append(np.frombuffer(content, np.float32, length, place))
        place += 4 * length
    feature = np.frombuffer(content, np.int16, (len(content) - place) // 2, place)
    parts, confidences, class_sums = floats
    return Record(index, line, score, is_readable, parts, confidences, class_sums, feature)
