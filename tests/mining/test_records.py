"""A candidate's record comes back as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mining.records import Record, decode, encode

FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=9).map(lambda values: np.array(values, np.float32))
FEATURES = st.lists(st.integers(-4000, 4000), max_size=9).map(lambda values: np.array(values, np.int16))


@given(
    st.builds(
        Record,
        index=st.integers(0, 2**63),
        line=st.binary(max_size=40).map(lambda line: line.decode("utf-8", "surrogateescape")),
        score=st.floats(allow_nan=False),
        is_readable=st.booleans(),
        parts=FLOATS,
        confidences=FLOATS,
        class_sums=FLOATS,
        feature=FEATURES,
    )
)
def test_a_record_comes_back(record: Record) -> None:
    found = decode(encode(record))
    for name, value in vars(record).items():
        assert np.array_equal(getattr(found, name), value), name


@pytest.mark.parametrize("length", [0, 5, 30, 41])
def test_other_bytes_are_no_record(length: int) -> None:
    content = encode(Record(3, "/in/a.jpg", 0.5, parts=np.ones(4, np.float32)))
    with pytest.raises(ValueError):
        decode(content[:length])
