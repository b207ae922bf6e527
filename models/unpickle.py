"""data.pkl of a hostile checkpoint -> plain values, tensors that are still on disk, and inert holders.

Why an interpreter of our own and not a subclass of pickle.Unpickler: Python's two machines call what they find.
find_class can limit which names are found, but REDUCE, BUILD and NEWOBJ then run __setstate__, set attributes on
whatever lies on the stack (on the functions of an allow-list, too: their __defaults__), and hash any key (a tuple of
pairs of tuples, forty deep, takes for ever); the C machine also makes its memo as long as a 32-bit index asks for.
Here every opcode that torch.save emits is a few lines, each checks what it is given, and nothing is ever looked up
by a name from the file: names are compared with a table of our own functions. 34,000 opcodes (yolov5n) take 20 ms.

Opcodes: the standard library's pickletools. Tensors: what torch.save passes to _rebuild_tensor_v2 and as
persistent ids, as files of torch 1.6 to 2.14 hold them.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from models.archive import Archive
from utils.errors import WeightsError

Array = npt.NDArray[Any]

# yolov5x6 with its EMA and its optimizer has some 250,000 opcodes in 700 KB. An opcode makes one object at most, the
# largest (an empty set) of 216 bytes, so that this bounds memory as well as time.
_MAX_PICKLE_BYTES = 16 << 20
_MAX_OPCODES = 1_000_000
_MAX_COPIED = 4 << 20
_MAX_INT_BYTES = 16
_MAX_NUMBER = 1 << 53  # of a key: integers from 2**61 - 1 on can be chosen to hash alike, and a dict takes for ever
_MAX_DIMENSIONS = 8
_MAX_NUMPY_BYTES = 1 << 16  # such arrays hold a score or two
_MAX_CLASS_NAME = 200
_MAX_SHOWN = 80
_MAX_WEIGHTS_BYTES = 4 << 30  # yolov5x6 in double precision has 1.1 GB


@dataclass(frozen=True)
class Dtype:
    """How a tensor's elements lie in the file; numpy has no bfloat16, which is read as uint16 and widened."""

    name: str  # torch's, such as float16
    code: str  # numpy's, without byte order
    is_bfloat16: bool = False


_DTYPES: Mapping[str, Dtype] = MappingProxyType(
    {
        "HalfStorage": Dtype("float16", "f2"),
        "FloatStorage": Dtype("float32", "f4"),
        "DoubleStorage": Dtype("float64", "f8"),
        "BFloat16Storage": Dtype("bfloat16", "u2", is_bfloat16=True),
        "LongStorage": Dtype("int64", "i8"),
        "IntStorage": Dtype("int32", "i4"),
        "ShortStorage": Dtype("int16", "i2"),
        "CharStorage": Dtype("int8", "i1"),
        "ByteStorage": Dtype("uint8", "u1"),
        "BoolStorage": Dtype("bool", "u1"),
        "UntypedStorage": Dtype("uint8", "u1"),
    }
)
_TORCH_DTYPE = re.compile(r"float(16|32|64)?|bfloat16|half|double|int(8|16|32|64)?|short|long|uint8|bool")


@dataclass(frozen=True, eq=False)
class Storage:
    """A member data/KEY of the zip, whose size was compared with what the pickle says."""

    key: str
    dtype: Dtype
    elements: int


@dataclass(frozen=True, eq=False)
class TensorData:
    """A view of a storage, still on disk: its reach was checked. arrays_of() reads it."""

    storage: Storage
    offset: int  # elements from the storage's beginning
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # elements

    @property
    def elements(self) -> int:
        """How many elements the tensor has; with a stride of 0 more than its storage."""
        return _product(self.shape)

    @property
    def size(self) -> int:
        """Bytes that the tensor takes once it is contiguous."""
        return self.elements * np.dtype(self.storage.dtype.code).itemsize


@dataclass(eq=False)
class Holder:
    """An object of a class we don't make: the class's full name, its arguments and its state. It can't do anything."""

    name: str  # such as models.common.Conv
    arguments: tuple[Any, ...] = ()
    state: Any = None  # what BUILD gave; of a torch module the dict of its attributes

    def __repr__(self) -> str:  # never the tree below it, which may be a loop
        return f"<{shown(self.name)}>"

    @property
    def kind(self) -> str:
        """The class's own name."""
        return self.name.rpartition(".")[2]

    def get(self, attribute: str) -> Any:
        """An attribute of the object, None if it has none of this name."""
        return self.state.get(attribute) if isinstance(self.state, dict) else None


@dataclass(frozen=True, eq=False)
class _Class:
    """A name on the list of inert classes: calling it gives a Holder."""

    name: str


@dataclass(frozen=True, eq=False)
class _Function:
    """A name on the list that stands for a function of ours."""

    name: str
    call: Callable[[_Machine, tuple[Any, ...]], Any]


def read_pickle(archive: Archive) -> Any:
    """The object that data.pkl describes, of plain values (None, bool, int, float, str, bytes, list, tuple, dict, set),
    TensorData and Holder.

    The result may hold loops and may hold one object many times: whoever walks it counts. Raises WeightsError.
    """
    if archive.members["data.pkl"].size > _MAX_PICKLE_BYTES:
        raise WeightsError(f"{archive.path}: its data.pkl is larger than {_MAX_PICKLE_BYTES >> 20} MB")
    return _Machine(archive).run()


def arrays_of(archive: Archive, tensors: Mapping[str, TensorData]) -> dict[str, Array]:
    """The tensors' values, contiguous, each in memory of its own; bfloat16 becomes float32, which holds it exactly.

    Every storage is read once; one that belongs to a single tensor isn't copied again. Raises WeightsError for a
    damaged member and where strides of 0, or one storage under many names, would take far more than the file.
    """
    size = sum(tensor.size for tensor in tensors.values())
    if size > min(archive.most_bytes, _MAX_WEIGHTS_BYTES):
        raise WeightsError(f"{archive.path}: holds tensors of {size} bytes, more than the file can have")
    order = _byte_order(archive)
    uses = Counter(tensor.storage.key for tensor in tensors.values())
    shared: dict[str, bytearray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        key = tensor.storage.key
        content = shared[key] if key in shared else archive.read(f"data/{key}")
        if uses[key] > 1:
            shared[key] = content
        view = _view(archive, tensor, content, order)
        is_whole = uses[key] == 1 and tensor.elements == tensor.storage.elements and view.flags.c_contiguous
        arrays[name] = _native(view if is_whole else view.copy(), tensor.storage.dtype)
    return arrays


def _byte_order(archive: Archive) -> str:
    """< or >, as the file says; old files say nothing and are little-endian."""
    written = bytes(archive.read("byteorder")) if "byteorder" in archive.members else b"little"
    if written not in (b"little", b"big"):
        raise WeightsError(f"{archive.path}: its byteorder is neither little nor big")
    return ">" if written == b"big" else "<"


def _view(archive: Archive, tensor: TensorData, content: bytearray, order: str) -> Array:
    """The tensor over its storage's bytes. order: of a number's bytes, < or >."""
    stored = np.dtype(order + tensor.storage.dtype.code)
    strides = [step * stored.itemsize for step in tensor.stride]
    try:  # numpy checks the reach again
        return np.ndarray(tensor.shape, stored, content, tensor.offset * stored.itemsize, strides)
    except (ValueError, TypeError) as cause:
        raise WeightsError(f"{archive.path}: holds a tensor that doesn't fit its storage") from cause


def _native(values: Array, dtype: Dtype) -> Array:
    """The values in this machine's byte order and in a type that numpy has."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if dtype.is_bfloat16:  # the upper half of a float32
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.bool_) if dtype.name == "bool" else values


def numbers_of(value: Any) -> Any:
    """A numpy array in the pickle as a flat list of plain numbers; anything else as it is."""
    if not (isinstance(value, Holder) and value.name == "numpy.ndarray" and isinstance(value.state, tuple)):
        return value
    dtype, content = value.state[2:5:2] if len(value.state) == 5 else (None, None)
    code = _numpy_code(dtype)
    if code is None or not isinstance(content, bytes) or len(content) % code.itemsize:
        return None
    if len(content) > _MAX_NUMPY_BYTES:
        return None
    return np.frombuffer(content, code).tolist()


def shown(text: str) -> str:
    """Text from the file as it may stand in a message: one line, short."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_SHOWN])


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


def _numpy_code(dtype: Any) -> Optional[np.dtype[Any]]:
    """The plain numeric dtype that a numpy.dtype's holder stands for; None for any other (objects, records, text)."""
    if not (isinstance(dtype, Holder) and dtype.name == "numpy.dtype" and dtype.arguments):
        return None
    code = dtype.arguments[0]
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iuf][1248]", code) or code in ("f1",):
        return None
    big_endian = isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">"
    return np.dtype((">" if big_endian else "<") + code)


# --- what the names on the list stand for -----------------------------------------------------------------------


def _rebuild_tensor(machine: _Machine, arguments: tuple[Any, ...]) -> TensorData:
    """_rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks[, metadata])."""
    if len(arguments) not in (6, 7):
        raise machine.refusal("describes a tensor with a false number of arguments")
    storage, offset, shape, stride = arguments[:4]
    is_view = (
        isinstance(storage, Storage)
        and _is_count(offset)
        and isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= _MAX_DIMENSIONS
        and all(map(_is_count, shape + stride))
    )
    if not is_view:
        raise machine.refusal("describes a tensor whose shape, stride or offset isn't one")
    if 0 not in shape:  # a tensor without elements reaches nothing, wherever it says that it begins
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride))
        if last >= storage.elements:
            raise machine.refusal("describes a tensor that reaches outside its storage")
    elif _product(tuple(side or 1 for side in shape)) >= _MAX_NUMBER:
        raise machine.refusal("describes a tensor whose size overflows")
    return TensorData(storage, offset if 0 not in shape else 0, shape, stride)


def _rebuild_parameter(machine: _Machine, arguments: tuple[Any, ...]) -> TensorData:
    """_rebuild_parameter(tensor, requires_grad, hooks): the tensor itself."""
    if len(arguments) != 3 or not isinstance(arguments[0], TensorData):
        raise machine.refusal("describes a parameter that isn't a tensor")
    tensor: TensorData = arguments[0]
    return tensor


def _ordered_dict(machine: _Machine, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if not arguments:  # nearly all: the hooks of every module
        return {}
    made: dict[Any, Any] = {}
    for pair in _only_list(machine, arguments):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise machine.refusal("describes a dict by something else than pairs")
        made[machine.key(pair[0])] = pair[1]
    return made


def _set(machine: _Machine, arguments: tuple[Any, ...]) -> set[Any]:
    return {machine.key(item) for item in _only_list(machine, arguments)}


def _only_list(machine: _Machine, arguments: tuple[Any, ...]) -> list[Any]:
    """The one list among a container's arguments, empty when there are none."""
    if not arguments:
        return []
    if len(arguments) != 1 or not isinstance(arguments[0], list):
        raise machine.refusal("describes a container by something else than a list")
    items: list[Any] = arguments[0]
    machine.spend(len(items))
    return items


def _torch_size(machine: _Machine, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    sizes = arguments[0] if len(arguments) == 1 else None
    if not isinstance(sizes, tuple) or len(sizes) > _MAX_DIMENSIONS or not all(map(_is_count, sizes)):
        raise machine.refusal("describes a torch.Size by something else than sizes")
    return sizes


def _torch_device(machine: _Machine, arguments: tuple[Any, ...]) -> str:
    if not 1 <= len(arguments) <= 2 or not isinstance(arguments[0], str):
        raise machine.refusal("describes a torch.device by something else than its name")
    return f"torch.device:{shown(arguments[0])}"


def _encode(machine: _Machine, arguments: tuple[Any, ...]) -> bytes:
    """_codecs.encode(text, "latin1"): how protocol 2 writes bytes."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
        raise machine.refusal("encodes something else than bytes")
    machine.spend(len(arguments[0]))
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError as cause:
        raise machine.refusal("encodes something else than bytes") from cause


def _numpy_scalar(machine: _Machine, arguments: tuple[Any, ...]) -> Union[int, float, bool]:
    """numpy.core.multiarray.scalar(dtype, bytes) as a plain number."""
    code = _numpy_code(arguments[0]) if len(arguments) == 2 else None
    if code is None or not isinstance(arguments[1], bytes) or len(arguments[1]) != code.itemsize:
        raise machine.refusal("holds a numpy scalar that isn't a number")
    number: Union[int, float, bool] = np.frombuffer(arguments[1], code)[0].item()
    return number


def _numpy_array(machine: _Machine, arguments: tuple[Any, ...]) -> Holder:
    """numpy.core.multiarray._reconstruct(ndarray, (0,), b"b"): an array whose values BUILD brings."""
    if len(arguments) != 3 or not isinstance(arguments[0], _Class) or arguments[0].name != "numpy.ndarray":
        raise machine.refusal("holds a numpy array of a foreign class")
    return Holder("numpy.ndarray")


_FUNCTIONS: Mapping[str, _Function] = MappingProxyType(
    {
        name: _Function(name, call)
        for name, call in {
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_parameter": _rebuild_parameter,
            "torch.Size": _torch_size,
            "torch.device": _torch_device,
            "collections.OrderedDict": _ordered_dict,
            "builtins.set": _set,
            "__builtin__.set": _set,
            "_codecs.encode": _encode,
            "numpy.core.multiarray.scalar": _numpy_scalar,
            "numpy._core.multiarray.scalar": _numpy_scalar,
            "numpy.core.multiarray._reconstruct": _numpy_array,
            "numpy._core.multiarray._reconstruct": _numpy_array,
        }.items()
    }
)
_CLASSES = frozenset({"numpy.dtype", "numpy.ndarray", "argparse.Namespace"})
_CLASS_PATTERN = re.compile(
    r"(?:(?:yolov5\.)?models\.(?:yolo|common|experimental)"
    r"|(?:ultralytics|torch)\.nn(?:\.\w+)*"
    r"|pathlib(?:\._local)?(?=\.(?:Pure)?(?:Posix|Windows)?Path$)"
    r")\.[A-Za-z_]\w*",
    re.ASCII,
)


# --- the machine ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Machine:
    """The pickle machine of pickletools, with only the opcodes that torch.save emits (protocols 2 to 5)."""

    archive: Archive
    data: bytes = b""
    at: int = 0  # the next byte
    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)  # the stacks under each mark
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)  # names of the inert classes that were asked for
    copied: int = 0  # items and bytes that functions made of what was there already

    def refusal(self, reason: str) -> WeightsError:
        """What to raise when the pickle does something that a checkpoint doesn't."""
        return WeightsError(f"{self.archive.path}: its data.pkl {reason}; nothing in it was run")

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
                    raise self.refusal(
                        f"uses opcode 0x{code:02x} at byte {self.at - 1}, which torch.save doesn't write"
                    )
                operation(self)
        except (IndexError, struct.error) as cause:
            raise self.refusal("is broken off or takes more than there is") from cause
        except KeyError as cause:
            raise self.refusal("recalls an object that it hasn't made") from cause
        raise self.refusal(f"takes more than {_MAX_OPCODES} steps")

    def _last(self) -> Any:
        if len(self.stack) != 1 or self.below:
            raise self.refusal("doesn't end with one object")
        return self.stack[0]

    def spend(self, count: int) -> None:
        """Called before `count` items or bytes are copied: one long list can be recalled and copied at every step."""
        self.copied += count
        if self.copied > _MAX_COPIED:
            raise self.refusal("copies the same things again and again")

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

    def key(self, value: Any) -> Any:
        """The value, if a dict or a set may have it as a key without a way to make it slow."""
        if type(value) is int and abs(value) < _MAX_NUMBER:
            return value
        if value is None or type(value) in (str, bool):
            return value
        raise self.refusal("has a key that is neither a text nor a small number")

    # Opcodes

    def _skip_protocol(self) -> None:
        if self._take(1)[0] > 5:
            raise self.refusal("has a protocol that isn't known")

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
            raise self.refusal("holds an integer of more than 128 bits")
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
            raise self.refusal("appends to something that isn't a list")
        target.extend(items)

    def _append_one(self) -> None:
        self._append([self.stack.pop()])

    def _append_many(self) -> None:
        self._append(self._items())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise self.refusal("sets an item of something that isn't a dict")
        for at in range(0, len(items), 2):
            target[self.key(items[at])] = items[at + 1]

    def _set_one(self) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def _set_many(self) -> None:
        self._set_items(self._items())

    def _add_many(self) -> None:
        items = self._items()
        target = self.stack[-1]
        if type(target) is not set:
            raise self.refusal("adds to something that isn't a set")
        target.update(map(self.key, items))

    def _find_line(self) -> None:
        module = self._line()
        self._find(module, self._line())

    def _find_stacked(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self.refusal("names a class by something else than text")
        self._find(module, name)

    def _find(self, module: str, name: str) -> None:
        """Push what a name on the list stands for. There is no other way from a name to anything."""
        full = f"{module}.{name}"
        found: Any = None
        if len(full) > _MAX_CLASS_NAME:
            raise self.refusal(f"asks for a class with a name of {len(full)} letters")
        if full in _FUNCTIONS:
            found = _FUNCTIONS[full]
        elif module in ("torch", "torch.storage") and name in _DTYPES:
            found = _DTYPES[name]
        elif module == "torch" and _TORCH_DTYPE.fullmatch(name):
            found = full
        elif full in _CLASSES or ("." not in name and _CLASS_PATTERN.fullmatch(full)):
            found = _Class(full)
        if found is None:
            listed = f"which isn't on the list of what a YOLOv5 checkpoint may hold{self._advice(name)}"
            raise self.refusal(f"asks for {shown(full)}, {listed}")
        if isinstance(found, _Class):
            self.kinds.add(name)
        self.stack.append(found)

    def _advice(self, name: str) -> str:
        """What honest files with such a name are: both hold a bound method, which is a call of getattr."""
        if "Segment" in self.kinds:
            return " (it is a segmentation model, this executor needs a detection model)"
        return " (was the model fused? save it before fuse())" if name == "getattr" else ""

    def _reduce(self) -> None:
        """Call a function of ours, or make a holder."""
        arguments, target = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple:
            raise self.refusal("calls with something else than arguments")
        if isinstance(target, _Function):
            self.stack.append(target.call(self, arguments))
        elif isinstance(target, _Class):
            self.stack.append(Holder(target.name, arguments))
        else:
            raise self.refusal("calls something that isn't a class")

    def _new(self) -> None:
        if len(self.stack) < 2 or not isinstance(self.stack[-2], _Class):
            raise self.refusal("makes an object of something that isn't a class on the list")
        self._reduce()

    def _build(self) -> None:
        """Keep the state beside the name. Nothing is set, called or updated."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Holder):
            target.state = state
        elif type(target) is not dict:  # a state dict's _metadata is such a state, of no use here
            raise self.refusal("gives a state to something that has none")

    def _load_persistent(self) -> None:
        """("storage", type, key, location, elements): a storage, once its member is there with that size."""
        identity = self.stack.pop()
        if not (type(identity) is tuple and len(identity) == 5 and identity[0] == "storage"):
            raise self.refusal("refers to something else than a storage")
        _, dtype, key, _, elements = identity
        if not (isinstance(dtype, Dtype) and isinstance(key, str) and _is_count(elements)):
            raise self.refusal("refers to a storage by something else than type, key and size")
        known = self.storages.get(key)
        if known is None:
            member = self.archive.members.get(f"data/{key}")
            if member is None:
                raise self.refusal(f"refers to storage {shown(key)}, which isn't in the file")
            if member.size // np.dtype(dtype.code).itemsize != elements:
                raise self.refusal(
                    f"says that storage {shown(key)} has {elements} elements, its member has another size"
                )
            known = self.storages[key] = Storage(key, dtype, elements)
        if known.dtype is not dtype or known.elements != elements:
            raise self.refusal(f"describes storage {shown(key)} in two ways")
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
