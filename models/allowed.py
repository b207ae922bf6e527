"""The allow-list: which names a checkpoint's pickle may hold, and what of ours each of them stands for.

A name is compared with this list and never looked up anywhere else. Functions are ours and make plain values; classes
make holders, which keep what they are given and can't do anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional, Union

import numpy as np

from models.tensors import MAX_DIMENSIONS, MAX_NUMBER, STORAGE_DTYPES, Storage, TensorData, is_count, product
from utils.errors import WeightsError

_MAX_COPIED = 4 << 20
_MAX_KEY = 1 << 53  # integers from 2**61 - 1 on can be chosen to hash alike, and a dict of them takes for ever
_MAX_NUMPY_BYTES = 1 << 16  # such arrays hold a score or two
_MAX_CLASS_NAME = 200
_MAX_SHOWN = 80


@dataclass(eq=False)
class Guard:
    """What one pickle may cost, and the words for refusing it."""

    path: Path
    copied: int = 0  # items and bytes that functions made of what was there already

    def refusal(self, reason: str) -> WeightsError:
        """What to raise when the pickle does something that a checkpoint doesn't."""
        return WeightsError(f"{self.path}: its data.pkl {reason}; nothing in it was run")

    def spend(self, count: int) -> None:
        """Called before `count` items or bytes are copied: one long list can be recalled and copied at every step."""
        self.copied += count
        if self.copied > _MAX_COPIED:
            raise self.refusal("copies the same things again and again")

    def key(self, value: Any) -> Any:
        """The value, if a dict or a set may have it as a key without a way to make it slow."""
        if type(value) is int and abs(value) < _MAX_KEY:
            return value
        if value is None or type(value) in (str, bool):
            return value
        raise self.refusal("has a key that is neither a text nor a small number")


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
class InertClass:
    """A name on the list of inert classes: calling it gives a Holder."""

    name: str


@dataclass(frozen=True, eq=False)
class Function:
    """A name on the list that stands for a function of ours."""

    name: str
    call: Callable[[Guard, tuple[Any, ...]], Any]


def found(guard: Guard, module: str, name: str) -> Any:
    """What a name on the list stands for: a Function, an InertClass, a Dtype or plain text. None for any other."""
    full = f"{module}.{name}"
    if len(full) > _MAX_CLASS_NAME:
        raise guard.refusal(f"asks for a class with a name of {len(full)} letters")
    if full in _FUNCTIONS:
        return _FUNCTIONS[full]
    if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
        return STORAGE_DTYPES[name]
    if module == "torch" and _TORCH_DTYPE.fullmatch(name):
        return full
    if full in _CLASSES or ("." not in name and _CLASS_PATTERN.fullmatch(full)):
        return InertClass(full)
    return None


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


def _numpy_code(dtype: Any) -> Optional[np.dtype[Any]]:
    """The plain numeric dtype that a numpy.dtype's holder stands for; None for any other (objects, records, text)."""
    if not (isinstance(dtype, Holder) and dtype.name == "numpy.dtype" and dtype.arguments):
        return None
    code = dtype.arguments[0]
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iuf][1248]", code) or code in ("f1",):
        return None
    big_endian = isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">"
    return np.dtype((">" if big_endian else "<") + code)


def _rebuild_tensor(guard: Guard, arguments: tuple[Any, ...]) -> TensorData:
    """_rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks[, metadata])."""
    if len(arguments) not in (6, 7):
        raise guard.refusal("describes a tensor with a false number of arguments")
    storage, offset, shape, stride = arguments[:4]
    is_view = (
        isinstance(storage, Storage)
        and is_count(offset)
        and isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= MAX_DIMENSIONS
        and all(map(is_count, shape + stride))
    )
    if not is_view:
        raise guard.refusal("describes a tensor whose shape, stride or offset isn't one")
    if 0 not in shape:  # a tensor without elements reaches nothing, wherever it says that it begins
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride))
        if last >= storage.elements:
            raise guard.refusal("describes a tensor that reaches outside its storage")
    elif product(tuple(side or 1 for side in shape)) >= MAX_NUMBER:
        raise guard.refusal("describes a tensor whose size overflows")
    return TensorData(storage, offset if 0 not in shape else 0, shape, stride)


def _rebuild_parameter(guard: Guard, arguments: tuple[Any, ...]) -> TensorData:
    """_rebuild_parameter(tensor, requires_grad, hooks): the tensor itself."""
    if len(arguments) != 3 or not isinstance(arguments[0], TensorData):
        raise guard.refusal("describes a parameter that isn't a tensor")
    tensor: TensorData = arguments[0]
    return tensor


def _ordered_dict(guard: Guard, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if not arguments:  # nearly all: the hooks of every module
        return {}
    made: dict[Any, Any] = {}
    for pair in _only_list(guard, arguments):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise guard.refusal("describes a dict by something else than pairs")
        made[guard.key(pair[0])] = pair[1]
    return made


def _set(guard: Guard, arguments: tuple[Any, ...]) -> set[Any]:
    return {guard.key(item) for item in _only_list(guard, arguments)}


def _only_list(guard: Guard, arguments: tuple[Any, ...]) -> list[Any]:
    """The one list among a container's arguments, empty when there are none."""
    if not arguments:
        return []
    if len(arguments) != 1 or not isinstance(arguments[0], list):
        raise guard.refusal("describes a container by something else than a list")
    items: list[Any] = arguments[0]
    guard.spend(len(items))
    return items


def _torch_size(guard: Guard, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    sizes = arguments[0] if len(arguments) == 1 else None
    if not isinstance(sizes, tuple) or len(sizes) > MAX_DIMENSIONS or not all(map(is_count, sizes)):
        raise guard.refusal("describes a torch.Size by something else than sizes")
    return sizes


def _torch_device(guard: Guard, arguments: tuple[Any, ...]) -> str:
    if not 1 <= len(arguments) <= 2 or not isinstance(arguments[0], str):
        raise guard.refusal("describes a torch.device by something else than its name")
    return f"torch.device:{shown(arguments[0])}"


def _encode(guard: Guard, arguments: tuple[Any, ...]) -> bytes:
    """_codecs.encode(text, "latin1"): how protocol 2 writes bytes."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
        raise guard.refusal("encodes something else than bytes")
    guard.spend(len(arguments[0]))
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError as cause:
        raise guard.refusal("encodes something else than bytes") from cause


def _numpy_scalar(guard: Guard, arguments: tuple[Any, ...]) -> Union[int, float, bool]:
    """numpy.core.multiarray.scalar(dtype, bytes) as a plain number."""
    code = _numpy_code(arguments[0]) if len(arguments) == 2 else None
    if code is None or not isinstance(arguments[1], bytes) or len(arguments[1]) != code.itemsize:
        raise guard.refusal("holds a numpy scalar that isn't a number")
    number: Union[int, float, bool] = np.frombuffer(arguments[1], code)[0].item()
    return number


def _numpy_array(guard: Guard, arguments: tuple[Any, ...]) -> Holder:
    """numpy.core.multiarray._reconstruct(ndarray, (0,), b"b"): an array whose values BUILD brings."""
    if len(arguments) != 3 or not isinstance(arguments[0], InertClass) or arguments[0].name != "numpy.ndarray":
        raise guard.refusal("holds a numpy array of a foreign class")
    return Holder("numpy.ndarray")


_FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {
        name: Function(name, call)
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
_TORCH_DTYPE = re.compile(r"float(16|32|64)?|bfloat16|half|double|int(8|16|32|64)?|short|long|uint8|bool")
_CLASSES = frozenset({"numpy.dtype", "numpy.ndarray", "argparse.Namespace"})
_CLASS_PATTERN = re.compile(
    r"(?:(?:yolov5\.)?models\.(?:yolo|common|experimental)"
    r"|(?:ultralytics|torch)\.nn(?:\.\w+)*"
    r"|pathlib(?:\._local)?(?=\.(?:Pure)?(?:Posix|Windows)?Path$)"
    r")\.[A-Za-z_]\w*",
    re.ASCII,
)
