"""The emitted pickles, read by Python's own machine and by ours."""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.pickling import Called, Global, Made, Stored, tensor, to_pickle

KEYS = st.one_of(st.text(), st.integers(-(1 << 80), 1 << 80), st.booleans(), st.none())
PLAIN = st.recursive(
    st.one_of(KEYS, st.floats(allow_nan=False), st.sets(st.text(max_size=3))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner, inner, inner),
        st.tuples(inner),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=30,
)


def same_types(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return all(same_types(left, right) for left, right in zip(one.items(), other.items()))
    return not isinstance(one, (list, tuple)) or all(map(same_types, one, other))


@given(PLAIN)
def test_python_reads_plain_values_back(value: Any) -> None:
    written = to_pickle(value)
    read = pickle.loads(written)
    assert read == value and same_types(read, value)
    assert {opcode.proto for opcode, _, _ in pickletools.genops(written)} <= {0, 1, 2}


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
def test_long_lists_and_dicts_come_back(count: int) -> None:
    value = {str(number): [float(number)] for number in range(count)}
    assert pickle.loads(to_pickle([value, list(range(count))])) == [value, list(range(count))]


def test_one_object_in_two_places_is_one_object() -> None:
    shared: list[Any] = [1]
    read = pickle.loads(to_pickle({"a": shared, "b": (shared, shared), "c": [1]}))
    assert read["a"] is read["b"][0] is read["b"][1]
    assert read["c"] is not read["a"]


def test_calls_and_objects_are_made_by_the_reader() -> None:
    made = Made(Global("argparse", "Namespace"), {"lr": 0.1, "names": ["猫"]})
    called = Called(Global("fractions", "Fraction"), (3, 4))
    read = pickle.loads(to_pickle([made, called, made, called]))
    assert vars(read[0]) == {"lr": 0.1, "names": ["猫"]} and read[2] is read[0]
    assert str(read[1]) == "3/4" and read[3] is read[1]


def test_a_tensor_is_written_as_torch_writes_it() -> None:
    opcodes = pickletools.genops(to_pickle(tensor(Stored("HalfStorage", "7", 12), 2, (5, 2), (2, 1))))
    said = [argument for _, argument, _ in opcodes if isinstance(argument, (str, int)) and argument not in (0, 1, 3)]
    names = [argument for argument in said if isinstance(argument, str)]
    assert names == ["torch._utils _rebuild_tensor_v2", "storage", "torch HalfStorage", "7", "cpu",
                     "collections OrderedDict"]  # fmt: skip


def test_what_a_checkpoint_doesnt_hold_is_an_error() -> None:
    for value in (b"bytes", {"a": object()}, [1j]):
        with pytest.raises(TypeError, match="can't hold a builtins"):
            to_pickle(value)
