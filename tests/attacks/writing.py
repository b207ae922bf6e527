"""Writes checkpoints byte by byte, as torch.save would or as it never would. Independent of what reads them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

# --- pickles ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Name:
    """A global, such as Name("torch", "Size")."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """A global called with arguments (REDUCE)."""

    function: Any
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Make:
    """An object made without a call and given a state (NEWOBJ, BUILD)."""

    kind: Name
    state: Any


@dataclass(frozen=True, eq=False)
class Raw:
    """Opcodes as they are."""

    code: bytes


@dataclass(frozen=True, eq=False)
class Persistent:
    """A persistent id (BINPERSID)."""

    identity: Any


@dataclass(frozen=True, eq=False)
class View:
    """A tensor over a storage; whatever isn't given is true."""

    values: Any  # array: the storage
    shape: Any = None
    stride: Any = None
    offset: Any = 0
    elements: Any = None
    key: Any = None


STORAGES = {
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
}


@dataclass(eq=False)
class Writer:
    """Turns values into pickle opcodes of protocol 2 and collects their tensors' storages."""

    storages: dict[str, bytes] = field(default_factory=dict)

    def pickle(self, value: Any) -> bytes:
        """A whole pickle."""
        return b"\x80\x02" + self.code(value) + b"."

    def code(self, value: Any) -> bytes:
        """The opcodes that leave the value on the stack."""
        if isinstance(value, (list, tuple)):
            inner = b"(" + b"".join(map(self.code, value))
            return inner + b"t" if isinstance(value, tuple) else b"]" + inner + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(self.code(key) + self.code(item) for key, item in value.items()) + b"u"
        if isinstance(value, (Name, Call, Make, Raw, Persistent, View, np.ndarray)):
            return self._special(value)
        return _plain(value)

    def _special(self, value: Any) -> bytes:
        if isinstance(value, Raw):
            return bytes(value.code)
        if isinstance(value, Name):
            return f"c{value.module}\n{value.name}\n".encode()
        if isinstance(value, Call):
            return self.code(value.function) + self.code(value.arguments) + b"R"
        if isinstance(value, Make):
            return self.code(value.kind) + b")\x81" + self.code(value.state) + b"b"
        if isinstance(value, Persistent):
            return self.code(value.identity) + b"Q"
        return self._tensor(value if isinstance(value, View) else View(value))

    def _tensor(self, view: View) -> bytes:
        array = np.ascontiguousarray(view.values)
        key = str(len(self.storages)) if view.key is None else view.key
        self.storages[key] = array.tobytes()
        kind = Name("torch", STORAGES[str(array.dtype)])
        elements = array.size if view.elements is None else view.elements
        shape = np.shape(view.values) if view.shape is None else view.shape
        stride = tuple(step // array.itemsize for step in array.strides) if view.stride is None else view.stride
        hooks = Call(Name("collections", "OrderedDict"))
        storage = Persistent(("storage", kind, key, "cpu", elements))
        rebuild = Name("torch._utils", "_rebuild_tensor_v2")
        return self.code(Call(rebuild, (storage, view.offset, shape, stride, False, hooks)))


def _plain(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    if 0 <= value < 256:
        return b"K" + bytes([value])
    number = int(value)
    long = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(long)]) + long


# --- zips -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A member of a zip. What is given beside name and content is a lie, told by the directory or the local header."""

    name: bytes
    content: bytes
    deflated: bool = False
    raw: Optional[bytes] = None  # what stands in the zip, instead of the content
    flags: int = 0
    method: Optional[int] = None
    crc: Optional[int] = None
    size: Optional[int] = None
    packed: Optional[int] = None
    disk: int = 0
    offset: Optional[int] = None
    extra: bytes = b""  # of the directory only
    local: dict[str, Any] = field(default_factory=dict)  # name, crc, size, packed, flags, method: of the local header


def zipped(entries: Sequence[Entry], tail: Optional[bytes] = None, **end: int) -> bytes:
    """A zip of stored or deflated members. end: count, here, size, offset, disk, comment: lies of the end record."""
    body, directory = b"", b""
    for entry in entries:
        content = deflate(entry.content) if entry.deflated else entry.content
        content = content if entry.raw is None else entry.raw
        figures = {
            "flags": entry.flags,
            "method": (8 if entry.deflated else 0) if entry.method is None else entry.method,
            "crc": zlib.crc32(entry.content) if entry.crc is None else entry.crc,
            "packed": len(content) if entry.packed is None else entry.packed,
            "size": len(entry.content) if entry.size is None else entry.size,
        }
        offset = len(body) if entry.offset is None else entry.offset
        directory += b"PK\1\2" + struct.pack("<2H", 45, 0) + _header(figures)
        directory += struct.pack("<5H2L", len(entry.name), len(entry.extra), 0, entry.disk, 0, 0, offset)
        directory += entry.name + entry.extra
        told = {**figures, "name": entry.name, **entry.local}
        body += b"PK\3\4" + struct.pack("<H", 0) + _header(told) + struct.pack("<2H", len(told["name"]), 0)
        body += told["name"] + content
    figures = {"count": len(entries), "size": len(directory), "offset": len(body), "disk": 0, "comment": 0, **end}
    figures.setdefault("here", figures["count"])
    record = struct.pack("<2H", figures["disk"], 0) + struct.pack("<2H", figures["here"], figures["count"])
    record += struct.pack("<2LH", figures["size"], figures["offset"], figures["comment"])
    return body + directory + (tail or b"") + b"PK\5\6" + record


def _header(figures: dict[str, Any]) -> bytes:
    head = struct.pack("<4H", figures["flags"], figures["method"], 0, 0)
    return head + struct.pack("<3L", figures["crc"], figures["packed"], figures["size"])


def deflate(content: bytes) -> bytes:
    """As a zip packs it."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def members(root: Any) -> list[Entry]:
    """The members of a true checkpoint file that holds this root."""
    writer = Writer()
    pickle = writer.pickle(root)
    data = [Entry(f"archive/data/{key}".encode(), content) for key, content in writer.storages.items()]
    return [Entry(b"archive/data.pkl", pickle), *data, Entry(b"archive/version", b"3\n")]


def checkpoint(root: Any) -> bytes:
    """A true zip around a root, which may be hostile."""
    return zipped(members(root))


# --- a small YOLOv5 tree ----------------------------------------------------------------------------------------

ANCHORS_CELLS = np.array([[[1.25, 1.625]], [[2, 3]]], np.float32)  # (levels, anchors, 2)
YAML = {
    "nc": 2,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13], [32, 48]],
    "backbone": [[-1, 1, "Conv", [64, 6, 2, 2]]],
    "head": [[[0, 0], 1, "Detect", ["nc", "anchors"]]],
}


def module(kind: str, modules: dict[Any, Any], **attributes: Any) -> Make:
    """A torch module as it is pickled. kind: models.common.Conv and the like; tensors among attributes: parameters."""
    parameters = {name: value for name, value in attributes.items() if isinstance(value, (np.ndarray, View))}
    plain = {name: value for name, value in attributes.items() if name not in parameters}
    state = {"training": False, "_parameters": parameters, "_buffers": {}, "_modules": modules, **plain}
    package, _, name = kind.rpartition(".")
    return Make(Name(package, name), state)


def conv(**attributes: Any) -> Make:
    """A Conv layer of one weight. act: its activation, SiLU if not given."""
    act = attributes.pop("act", module("torch.nn.modules.activation.SiLU", {}))
    weight = attributes.pop("weight", np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1))
    inner = module("torch.nn.modules.conv.Conv2d", {}, weight=weight)
    return module("models.common.Conv", {"conv": inner, "act": act}, **attributes)


def tree(**changes: Any) -> Make:
    """A model of one Conv and a Detect. changes: names, yaml, stride, anchors, nc, layers, head, conv."""
    stride = changes.get("stride", np.array([8, 16], np.float32))
    buffers = {"anchors": changes.get("anchors", ANCHORS_CELLS), **changes.get("buffers", {})}
    kind = Name(*changes.get("head", "models.yolo.Detect").rsplit(".", 1))
    parts = {"_parameters": {}, "_buffers": buffers, "_modules": {}}
    detect = Make(kind, {**parts, "nc": changes.get("nc", 2), "stride": stride})
    layers = changes.get("layers", {"0": changes.get("conv", conv()), "1": detect})
    sequence = module("torch.nn.modules.container.Sequential", layers)
    described = {"yaml": changes.get("yaml", YAML), "names": changes.get("names", ["cat", "dog"]), "stride": stride}
    return Make(Name("models.yolo", "Model"), {"_parameters": {}, "_modules": {"model": sequence}, **described})


def root(**changes: Any) -> dict[str, Any]:
    """What YOLOv5 passes to torch.save, around tree(**changes)."""
    return {"epoch": -1, "best_fitness": None, "model": tree(**changes), "ema": None, "optimizer": None}
