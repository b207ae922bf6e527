"""Tensors of a checkpoint that are still on disk, and how they become arrays. No torch.

Layout: what torch.save writes as persistent ids and passes to _rebuild_tensor_v2, in files of torch 1.6 to 2.14.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from models.archive import Archive
from utils.errors import WeightsError

Array = npt.NDArray[Any]

MAX_DIMENSIONS = 8
MAX_NUMBER = 1 << 53  # of a size, an offset or a count: their products and sums stay far from any overflow
_MAX_WEIGHTS_BYTES = 4 << 30  # yolov5x6 in double precision has 1.1 GB


@dataclass(frozen=True)
class Dtype:
    """How a tensor's elements lie in the file; numpy has no bfloat16, which is read as uint16 and widened."""

    name: str  # torch's, such as float16
    code: str  # numpy's, without byte order
    is_bfloat16: bool = False


STORAGE_DTYPES: Mapping[str, Dtype] = MappingProxyType(
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
        return product(self.shape)

    @property
    def size(self) -> int:
        """Bytes that the tensor takes once it is contiguous."""
        return self.elements * np.dtype(self.storage.dtype.code).itemsize


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


def product(shape: tuple[int, ...]) -> int:
    """Elements of a shape, without overflow."""
    elements = 1
    for side in shape:
        elements *= side
    return elements


def is_count(value: Any) -> bool:
    """Whether a value from the file may be a size, a stride, an offset or a number of elements."""
    return type(value) is int and 0 <= value < MAX_NUMBER
