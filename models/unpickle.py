"""data.pkl of a hostile checkpoint -> plain values, tensors that are still on disk, and inert holders.

Why an interpreter of our own and not a subclass of pickle.Unpickler: Python's two machines call what they find.
find_class can limit which names are found, but REDUCE, BUILD and NEWOBJ then run __setstate__, set attributes on
whatever lies on the stack (on the functions of an allow-list, too: their __defaults__), and hash any key (a tuple of
pairs of tuples, forty deep, takes for ever); the C machine also makes its memo as long as a 32-bit index asks for.
Here every opcode that torch.save emits is a few lines, each checks what it is given, and nothing is ever looked up
by a name from the file: names are compared with a list (models.allowed). 34,000 opcodes (yolov5n) take 20 ms.

Opcodes: the standard library's pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from models.allowed import Function, Guard, Holder, InertClass, found, shown
from models.archive import Archive
from models.tensors import Dtype, Storage, is_count
from utils.errors import WeightsError

# yolov5x6 with its EMA and its optimizer has some 250,000 opcodes in 700 KB. An opcode makes one object at most, the
# largest (an empty set) of 216 bytes, so that this bounds memory as well as time.
_MAX_PICKLE_BYTES = 16 << 20
_MAX_OPCODES = 1_000_000
_MAX_INT_BYTES = 16


def read_pickle(archive: Archive) -> Any:
    """The object that data.pkl describes, of plain values (None, bool, int, float, str, bytes, list, tuple, dict, set),
    TensorData and Holder.

    The result may hold loops and may hold one object many times: whoever walks it counts. Raises WeightsError.
    """
    if archive.members["data.pkl"].size > _MAX_PICKLE_BYTES:
        raise WeightsError(f"{archive.path}: its data.pkl is larger than {_MAX_PICKLE_BYTES >> 20} MB")
    return _Machine(archive, Guard(archive.path)).run()


@dataclass(eq=False)
class _Machine:
    """The pickle machine of pickletools, with only the opcodes that torch.save emits (protocols 2 to 5)."""

    archive: Archive
    guard: Guard
    data: bytes = b""
    at: int = 0  # the next byte
    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)  # the stacks under each mark
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)  # names of the inert classes that were asked for

    def run(self) -> Any:
        """Read data.pkl to its STOP and give the one object that is left."""
        self.data = bytes(self.archive.read("data.pkl"))
        try:
            for _ in range(_MAX_OPCODES):
                code = self.data[self.at]
                self.at += 1
                if code == _STOP:
                    return self._last()
                operation = _OPERATIONS[code]
                if operation is None:
                    raise self.guard.refusal(
                        f"uses opcode 0x{code:02x} at byte {self.at - 1}, which torch.save doesn't write"
                    )
                operation(self)
        except (IndexError, struct.error) as cause:
            raise self.guard.refusal("is broken off or takes more than there is") from cause
        except KeyError as cause:
            raise self.guard.refusal("recalls an object that it hasn't made") from cause
        raise self.guard.refusal(f"takes more than {_MAX_OPCODES} steps")

    def _last(self) -> Any:
        if len(self.stack) != 1 or self.below:
            raise self.guard.refusal("doesn't end with one object")
        return self.stack[0]

    # Reading arguments

    def _take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise IndexError
        return self.data[start : self.at]

    def _number(self, layout: struct.Struct) -> Any:
        (number,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return number

    def _line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise IndexError
        line = self._take(end - self.at)
        self.at += 1
        return line.decode("utf-8", "replace")

    def _items(self) -> list[Any]:
        """What lies above the last mark, which goes."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    # Opcodes

    def _skip_protocol(self) -> None:
        if self._take(1)[0] > 5:
            raise self.guard.refusal("has a protocol that isn't known")

    def _skip_frame(self) -> None:
        if self._number(_U8) > len(self.data) - self.at:
            raise IndexError

    def _mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _pop(self) -> None:
        self.stack.pop()

    def _pop_mark(self) -> None:
        self._items()

    def _push_text(self, layout: struct.Struct) -> None:
        # Never "strict": a lone surrogate from somebody's file name is no reason to refuse his weights.
        self.stack.append(self._take(self._number(layout)).decode("utf-8", "replace"))

    def _push_bytes(self, layout: struct.Struct) -> None:
        self.stack.append(self._take(self._number(layout)))

    def _push_long(self) -> None:
        count = self._number(_U1)
        if count > _MAX_INT_BYTES:
            raise self.guard.refusal("holds an integer of more than 128 bits")
        self.stack.append(int.from_bytes(self._take(count), "little", signed=True))

    def _push_tuple(self) -> None:
        items = self._items()
        self.stack.append(tuple(items))

    def _join(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    # Two thirds of all opcodes are these four, so they do without a helper.

    def _remember_1(self) -> None:
        self.memo[self.data[self.at]] = self.stack[-1]
        self.at += 1

    def _remember_4(self) -> None:
        self.memo[_U4.unpack_from(self.data, self.at)[0]] = self.stack[-1]
        self.at += 4

    def _recall_1(self) -> None:
        self.stack.append(self.memo[self.data[self.at]])
        self.at += 1

    def _push_int_1(self) -> None:
        self.stack.append(self.data[self.at])
        self.at += 1

    def _recall_4(self) -> None:
        self.stack.append(self.memo[self._number(_U4)])

    def _remember_next(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise self.guard.refusal("appends to something that isn't a list")
        target.extend(items)

    def _append_one(self) -> None:
        self._append([self.stack.pop()])

    def _append_many(self) -> None:
        self._append(self._items())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise self.guard.refusal("sets an item of something that isn't a dict")
        for at in range(0, len(items), 2):
            target[self.guard.key(items[at])] = items[at + 1]

    def _set_one(self) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def _set_many(self) -> None:
        self._set_items(self._items())

    def _add_many(self) -> None:
        items = self._items()
        target = self.stack[-1]
        if type(target) is not set:
            raise self.guard.refusal("adds to something that isn't a set")
        target.update(map(self.guard.key, items))

    def _find_line(self) -> None:
        module = self._line()
        self._find(module, self._line())

    def _find_stacked(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self.guard.refusal("names a class by something else than text")
        self._find(module, name)

    def _find(self, module: str, name: str) -> None:
        """Push what a name on the list stands for. There is no other way from a name to anything."""
        meant = found(self.guard, module, name)
        if meant is None:
            listed = f"which isn't on the list of what a YOLOv5 checkpoint may hold{self._advice(name)}"
            raise self.guard.refusal(f"asks for {shown(f'{module}.{name}')}, {listed}")
        if isinstance(meant, InertClass):
            self.kinds.add(name)
        self.stack.append(meant)

    def _advice(self, name: str) -> str:
        """What honest files with such a name are: both hold a bound method, which is a call of getattr."""
        if "Segment" in self.kinds:
            return " (it is a segmentation model, this executor needs a detection model)"
        return " (was the model fused? save it before fuse())" if name == "getattr" else ""

    def _reduce(self) -> None:
        """Call a function of ours, or make a holder."""
        arguments, target = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple:
            raise self.guard.refusal("calls with something else than arguments")
        if isinstance(target, Function):
            self.stack.append(target.call(self.guard, arguments))
        elif isinstance(target, InertClass):
            self.stack.append(Holder(target.name, arguments))
        else:
            raise self.guard.refusal("calls something that isn't a class")

    def _new(self) -> None:
        if len(self.stack) < 2 or not isinstance(self.stack[-2], InertClass):
            raise self.guard.refusal("makes an object of something that isn't a class on the list")
        self._reduce()

    def _build(self) -> None:
        """Keep the state beside the name. Nothing is set, called or updated."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Holder):
            target.state = state
        elif type(target) is not dict:  # a state dict's _metadata is such a state, of no use here
            raise self.guard.refusal("gives a state to something that has none")

    def _load_persistent(self) -> None:
        """("storage", type, key, location, elements): a storage, once its member is there with that size."""
        identity = self.stack.pop()
        if not (type(identity) is tuple and len(identity) == 5 and identity[0] == "storage"):
            raise self.guard.refusal("refers to something else than a storage")
        _, dtype, key, _, elements = identity
        if not (isinstance(dtype, Dtype) and isinstance(key, str) and is_count(elements)):
            raise self.guard.refusal("refers to a storage by something else than type, key and size")
        known = self.storages.get(key)
        if known is None:
            member = self.archive.members.get(f"data/{key}")
            if member is None:
                raise self.guard.refusal(f"refers to storage {shown(key)}, which isn't in the file")
            if member.size // np.dtype(dtype.code).itemsize != elements:
                raise self.guard.refusal(
                    f"says that storage {shown(key)} has {elements} elements, its member has another size"
                )
            known = self.storages[key] = Storage(key, dtype, elements)
        if known.dtype is not dtype or known.elements != elements:
            raise self.guard.refusal(f"describes storage {shown(key)} in two ways")
        self.stack.append(known)


_STOP = ord(".")
_U1, _U2, _U4, _U8 = (struct.Struct("<" + code) for code in "BHIQ")
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")
_Operation = Callable[[_Machine], None]


def _table() -> list[Optional[_Operation]]:
    """One operation for each opcode, None for those that torch.save doesn't write."""
    operations: dict[bytes, _Operation] = {
        b"\x80": _Machine._skip_protocol,
        b"\x95": _Machine._skip_frame,
        b"(": _Machine._mark,
        b"1": _Machine._pop_mark,
        b"0": _Machine._pop,
        b"N": lambda machine: machine.stack.append(None),
        b"\x88": lambda machine: machine.stack.append(True),
        b"\x89": lambda machine: machine.stack.append(False),
        b"J": lambda machine: machine.stack.append(machine._number(_I4)),
        b"K": _Machine._push_int_1,
        b"M": lambda machine: machine.stack.append(machine._number(_U2)),
        b"G": lambda machine: machine.stack.append(machine._number(_F8)),
        b"\x8a": _Machine._push_long,
        b"X": lambda machine: machine._push_text(_U4),
        b"\x8c": lambda machine: machine._push_text(_U1),
        b"\x8d": lambda machine: machine._push_text(_U8),
        b"B": lambda machine: machine._push_bytes(_U4),
        b"C": lambda machine: machine._push_bytes(_U1),
        b"\x8e": lambda machine: machine._push_bytes(_U8),
        b")": lambda machine: machine.stack.append(()),
        b"]": lambda machine: machine.stack.append([]),
        b"}": lambda machine: machine.stack.append({}),
        b"\x8f": lambda machine: machine.stack.append(set()),
        b"t": _Machine._push_tuple,
        b"\x85": lambda machine: machine._join(1),
        b"\x86": lambda machine: machine._join(2),
        b"\x87": lambda machine: machine._join(3),
        b"q": _Machine._remember_1,
        b"r": _Machine._remember_4,
        b"\x94": _Machine._remember_next,
        b"h": _Machine._recall_1,
        b"j": _Machine._recall_4,
        b"a": _Machine._append_one,
        b"e": _Machine._append_many,
        b"s": _Machine._set_one,
        b"u": _Machine._set_many,
        b"\x90": _Machine._add_many,
        b"c": _Machine._find_line,
        b"\x93": _Machine._find_stacked,
        b"R": _Machine._reduce,
        b"\x81": _Machine._new,
        b"b": _Machine._build,
        b"Q": _Machine._load_persistent,
    }
    return [operations.get(bytes([code])) for code in range(256)]


_OPERATIONS = _table()
