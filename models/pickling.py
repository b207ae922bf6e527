"""Plain values and a few marks for what Python can't hold here -> the bytes of a pickle. No torch, no pickle module.

YOLOv5's files name classes (models.yolo.Model) that this executor doesn't have under those names, so there is nothing
that the standard pickler could be given: the stream is written opcode by opcode. Protocol 2, as torch.save writes by
default. Opcodes: the standard library's pickletools.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_BATCH = 1000  # items between two marks, as Python's pickler has it
_TUPLES = (b")", b"\x85", b"\x86", b"\x87", b"t")  # of none to three items, of all down to the mark


class Global(NamedTuple):
    """A class or a function by its name; the reader looks it up."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class Called:
    """What `function(*arguments)` gives at the reader's."""

    function: Global
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Made:
    """An object made without its __init__, then given a state: of a torch module the dict of its attributes."""

    kind: Global
    state: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Stored:
    """A storage that lies in the archive as data/KEY, on the CPU. kind: its class in torch, such as HalfStorage."""

    kind: str
    key: str
    elements: int


def tensor(storage: Stored, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Called:
    """A tensor over a storage; offset and stride in elements."""
    arguments: tuple[Any, ...] = (storage, offset, tuple(shape), tuple(stride), False, OrderedDict())
    return Called(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def parameter(data: Called) -> Called:
    """A torch parameter that asks for no gradient."""
    return Called(Global("torch._utils", "_rebuild_parameter"), (data, False, OrderedDict()))


def to_pickle(value: Any) -> bytes:
    """The pickle of None, bool, int, float, str, list, tuple, dict, OrderedDict, set and the marks of this file.

    An object that stands in several places is made once at the reader's, and stands there in as many. Loops can't be
    written. Raises TypeError for anything else: what is written is our own, so that is a mistake of ours.
    """
    writer = _Writer()
    writer.out += b"\x80\x02"
    writer.put(value)
    writer.out += b"."
    return bytes(writer.out)


@dataclass(eq=False)
class _Writer:
    """Appends opcodes.

    memo: what was written and may come again, by its value (texts, names) or by its id(): all of it hangs on the value
    that is written, so no other object can get such an id meanwhile.
    """

    out: bytearray = field(default_factory=bytearray)
    memo: dict[Any, int] = field(default_factory=dict)

    def put(self, value: Any) -> None:
        kind = type(value)
        if kind is str or kind is Global:
            if not self._recalled(value):
                self._name(value)
                self._remember(value)
        elif kind is tuple:
            self._tuple(value)
        elif value is None:
            self.out += b"N"
        elif kind is bool:
            self.out += b"\x88" if value else b"\x89"
        elif kind is int:
            self._int(value)
        elif kind is float:
            self.out += b"G" + struct.pack(">d", value)
        elif kind is Stored:
            self._tuple(("storage", Global("torch", value.kind), value.key, "cpu", value.elements))
            self.out += b"Q"
        elif not self._recalled(id(value)):
            self._object(value)

    def _recalled(self, key: Any) -> bool:
        number = self.memo.get(key)
        if number is not None:
            self.out += b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)
        return number is not None

    def _remember(self, key: Any) -> None:
        number = self.memo[key] = len(self.memo)
        self.out += b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def _name(self, value: Any) -> None:
        if type(value) is Global:
            self.out += f"c{value.module}\n{value.name}\n".encode("ascii")
            return
        content = value.encode("utf-8", "surrogatepass")
        self.out += b"X" + struct.pack("<I", len(content)) + content

    def _int(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.out += b"K" + bytes([value])
        elif 0 <= value < 1 << 16:
            self.out += b"M" + struct.pack("<H", value)
        elif -(1 << 31) <= value < 1 << 31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"\x8a" + bytes([len(content)]) + content

    def _tuple(self, items: tuple[Any, ...]) -> None:
        if len(items) > 3:
            self.out += b"("
        for item in items:
            self.put(item)
        self.out += _TUPLES[min(len(items), 4)]

    def _object(self, value: Any) -> None:
        """Whatever may stand in several places and is told by its identity."""
        kind = type(value)
        if kind is Called:
            self._call(value.function, value.arguments)
            self._remember(id(value))
        elif kind is Made:
            self.put(value.kind)
            self.out += b")\x81"
            self._remember(id(value))
            self.put(value.state)
            self.out += b"b"
        elif kind is set:
            self._set(value)
        elif kind is list:
            self.out += b"]"
            self._remember(id(value))
            self._fill([(item,) for item in value], b"e")
        elif kind in (dict, OrderedDict):
            if kind is dict:
                self.out += b"}"
            else:
                self._call(Global("collections", "OrderedDict"), ())
            self._remember(id(value))
            self._fill(list(value.items()), b"u")
        else:
            raise TypeError(f"a checkpoint can't hold a {kind.__module__}.{kind.__qualname__}")

    def _call(self, function: Global, arguments: tuple[Any, ...]) -> None:
        self.put(function)
        self._tuple(arguments)
        self.out += b"R"

    def _set(self, value: set[Any]) -> None:
        """Protocol 2 has no sets; the list that one is made of is nobody's, so nothing may refer to it."""
        self.put(Global("__builtin__", "set"))
        self.out += b"]"
        self._fill([(item,) for item in sorted(value)], b"e")
        self.out += b"\x85R"
        self._remember(id(value))

    def _fill(self, groups: list[tuple[Any, ...]], opcode: bytes) -> None:
        """Put items, or keys with their values, into the list or dict that was begun."""
        for start in range(0, len(groups), _BATCH):
            self.out += b"("
            for group in groups[start : start + _BATCH]:
                for item in group:
                    self.put(item)
            self.out += opcode
