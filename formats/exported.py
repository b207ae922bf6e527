"""A handed-over network's file -> Exported: what it says of itself, checked before anything runs it. No torch.

ONNX and OpenVINO files from /in are hostile: they are parsed as what they are, and first run in a process of their own
(formats.probe), so that a crash of an engine is an error and not a dead task.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional, Union

from formats.literals import read_literal
from models.checkpoint import Checkpoint, read_checkpoint
from utils.class_names import MOST_CLASSES, MOST_NAME_LETTERS
from utils.errors import ConfigError, WeightsError
from utils.files import open_regular, read_bytes
from utils.safe_yaml import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 1 << 30  # yolov5x6 in fp32 has 560 MB
MAX_NODES, MAX_DEPTH, MAX_TEXT, MAX_SIDE = 100_000, 8, 1_000_000, 8192
PROBE_S = 120
PROBE_SIDE = 128  # a multiple of every stride there is
# Levels that networks have; the first that explains the number of rows is taken.
KNOWN_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (8, 16), (16, 32), (8, 16, 32, 64, 128), (32,))
DOMAINS = ("", "ai.onnx")
# What may run each form; the first is what `auto` takes.
BACKENDS_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pt": ("torch", "onnxruntime", "openvino"),
        "onnx": ("onnxruntime", "openvino"),
        "openvino": ("openvino",),
        "torchscript": ("torchscript", "torch"),
    }
)
KINDS = {".onnx": "onnx", ".torchscript": "torchscript"}


@dataclass(frozen=True)
class Exported:
    """A handed-over network, as far as it is known without running it."""

    path: Path
    kind: str  # onnx, openvino, torchscript
    names: tuple[str, ...]  # of the classes
    are_names_told: bool  # False: class0, class1, ...
    strides: tuple[int, ...]
    anchors: int  # per cell
    fixed_hw: Optional[tuple[int, int]]  # the only input it takes; None: any
    fixed_batch: Optional[int]
    digest: str  # of the file's bytes

    @property
    def nc(self) -> int:
        """How many classes there are."""
        return len(self.names)


Weights = Union[Checkpoint, Exported]


def open_weights(path: Path, *, may_run_programs: bool = False) -> Weights:
    """Read a weights file of any form; nothing of it runs in this process.

    may_run_programs: TorchScript, which is a program, is taken, since a user named it by hand. Raises WeightsError,
    ConfigError where an engine isn't installed.
    """
    if path.is_dir():
        return _read_openvino(path)
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        return read_checkpoint(path)
    if kind == "onnx":
        return _read_onnx(path)
    if not may_run_programs:
        raise WeightsError(f"{path}: TorchScript is a program, and a task runs none from /in; give the .pt or an .onnx")
    return _read_torchscript(path)


@dataclass(frozen=True)
class Told:
    """What a file's own words say; None: nothing."""

    names: Optional[tuple[str, ...]] = None
    strides: Optional[tuple[int, ...]] = None
    anchors: Optional[int] = None
    stride: Optional[int] = None  # the largest


def _exported(
    path: Path, kind: str, told: Told, shape: tuple[Optional[int], ...], digest: str, output: tuple[int, ...]
) -> Exported:
    """Put together what is known. shape: (B, 3, H, W), None where any will do. output: of a run on `probe_hw`."""
    batch, _, height, width = shape
    fixed_hw = (height, width) if height is not None and width is not None else None
    rows, channels = output[1], output[2]
    strides, anchors = _levels(path, told, probe_hw(fixed_hw), rows)
    classes = channels - 5
    if not 1 <= classes <= MOST_CLASSES:
        raise WeightsError(f"{path}: gives rows of {channels} numbers, need 5 and one for each class")
    if told.names is not None and len(told.names) != classes:
        raise WeightsError(f"{path}: names {len(told.names)} classes, but finds {classes}")
    names = told.names or tuple(f"class{number}" for number in range(classes))
    return Exported(path, kind, names, told.names is not None, strides, anchors, fixed_hw, batch, digest)


def probe_hw(fixed_hw: Optional[tuple[int, int]]) -> tuple[int, int]:
    """Give the size of the picture that a file is tried with."""
    return fixed_hw or (PROBE_SIDE, PROBE_SIDE)


def _levels(path: Path, told: Told, input_hw: tuple[int, int], rows: int) -> tuple[tuple[int, ...], int]:
    """Find the levels and the anchors a cell that explain the number of rows."""
    candidates = [told.strides] if told.strides else [one for one in KNOWN_STRIDES if told.stride in (None, max(one))]
    for anchors in (told.anchors,) if told.anchors else (3, *range(1, 21)):
        for strides in candidates:
            if all(side % max(strides) == 0 for side in input_hw):
                cells = sum((input_hw[0] // stride) * (input_hw[1] // stride) for stride in strides)
                if cells * anchors == rows:
                    return strides, anchors
    raise WeightsError(
        f"{path}: gives {rows} rows for a picture of {input_hw[0]} x {input_hw[1]}, which no YOLOv5 head does"
    )


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def _read_onnx(path: Path) -> Exported:
    content = read_bytes(path, MAX_BYTES, WeightsError)
    shape, told = inspect_onnx(path, content)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return _exported(path, "onnx", told, shape, digest, probe(path, "onnxruntime", shape))


def inspect_onnx(path: Path, content: bytes) -> tuple[tuple[Optional[int], ...], Told]:
    """Check an ONNX file's bytes without running them; gives its input's shape and what it says of itself.

    Raises WeightsError.
    """
    model = _parsed(path, content)
    try:
        _check_graph(path, model)
        shape = _input_shape(path, model)
        about = {one.key: one.value for one in model.metadata_props[:100]}
    except UnicodeDecodeError as cause:  # some versions of protobuf give such a text as bytes, others raise
        raise WeightsError(f"{path}: is no ONNX file, or a damaged one") from cause
    return shape, read_told(about, path)


def _parsed(path: Path, content: bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RecursionError, MemoryError) as cause:
        raise WeightsError(f"{path}: is no ONNX file, or a damaged one") from cause
    if not model.graph.node or not model.opset_import:
        raise WeightsError(f"{path}: is no ONNX file, or a damaged one")
    return model


def _check_graph(path: Path, model: Any) -> None:
    """Refuse what would read other files or needs operators that aren't ONNX's own."""
    if model.functions:
        raise WeightsError(f"{path}: defines functions of its own; export it again without")
    if len(model.training_info):
        raise WeightsError(f"{path}: holds a training graph; export it again without")
    for number, (node, tensors) in enumerate(_nodes(path, model.graph)):
        if number > MAX_NODES:
            raise WeightsError(f"{path}: has more than {MAX_NODES} nodes")
        if node is not None and node.domain not in DOMAINS:
            raise WeightsError(
                f"{path}: operator {_shown(node.domain)}.{_shown(node.op_type)} is not of ONNX's own domain; export it "
                "again with standard operators"
            )
        for tensor in tensors:
            if tensor.data_location or tensor.external_data:
                raise WeightsError(
                    f"{path}: keeps weights in another file ({tensor.name[:60]!r}); export it as one file"
                )


def _nodes(path: Path, graph: Any, depth: int = 0) -> Iterator[tuple[Any, list[Any]]]:
    """Give every node with its tensors, inner graphs' too; first the graph's own tensors, of no node."""
    if depth > MAX_DEPTH:
        raise WeightsError(f"{path}: graphs lie in one another more than {MAX_DEPTH} deep")
    sparse = [part for one in graph.sparse_initializer for part in (one.values, one.indices)]
    yield None, [*graph.initializer, *sparse]
    for node in graph.node:
        tensors: list[Any] = []
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for one in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [one.values, one.indices]
            inner = [attribute.g] if attribute.HasField("g") else []
            for one in (*inner, *attribute.graphs):
                yield from _nodes(path, one, depth + 1)
        yield node, tensors


def _input_shape(path: Path, model: Any) -> tuple[Optional[int], ...]:
    """Give (B, 3, H, W), None where any will do."""
    known = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in known]
    if len(inputs) != 1 or not model.graph.output:
        raise WeightsError(f"{path}: has {len(inputs)} inputs and {len(model.graph.output)} outputs, need one of each")
    tensor = inputs[0].type.tensor_type
    sides = [one.dim_value if one.HasField("dim_value") else None for one in tensor.shape.dim]
    if tensor.elem_type != 1:  # FLOAT
        raise WeightsError(f"{path}: its input is not float32; export it again without --half")
    return checked_shape(path, sides)


def checked_shape(path: Path, sides: list[Optional[int]]) -> tuple[Optional[int], ...]:
    """Give an input's shape. Raises WeightsError unless it is (N, 3, H, W)."""
    shown = " x ".join("?" if side is None else str(side) for side in sides[:8])
    if len(sides) != 4 or sides[1] != 3 or any(side is not None and not 1 <= side <= MAX_SIDE for side in sides):
        raise WeightsError(f"{path}: its input is {shown}, need N x 3 x height x width")
    if (sides[2] is None) != (sides[3] is None):
        raise WeightsError(f"{path}: its input is {shown}; need both sides fixed, or none")
    return tuple(sides)


# ---- OpenVINO, TorchScript -------------------------------------------------------------------------------------------


def _read_openvino(folder: Path) -> Exported:
    from formats.runners import openvino_xml

    xml = openvino_xml(folder)
    state = hashlib.blake2b(digest_size=16)
    for path in (xml, xml.with_suffix(".bin")):
        with open_regular(path, WeightsError) as file:
            while block := file.read(1 << 20):
                state.update(block)
    about: Mapping[str, Any] = {}
    beside = xml.with_suffix(".yaml")
    if beside.is_file():
        try:
            content = parse_yaml(read_bytes(beside, MAX_TEXT, WeightsError), str(beside))
        except ConfigError as cause:
            raise WeightsError(str(cause)) from cause
        about = content if isinstance(content, dict) else {}
    told = read_told(about, folder)
    shape, output = _probed(folder, "openvino", None)
    return _exported(folder, "openvino", told, checked_shape(folder, list(shape)), state.hexdigest(), output)


def _read_torchscript(path: Path) -> Exported:
    content = read_bytes(path, MAX_BYTES, WeightsError)
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(one for one in archive.namelist() if one.endswith("/extra/config.txt"))
            if archive.getinfo(name).file_size > MAX_TEXT:
                raise ValueError(name)
            about = json.loads(archive.read(name))
        told = read_told(about, path)
        shape = checked_shape(path, [int(side) for side in about["shape"]])
    except (zipfile.BadZipFile, StopIteration, ValueError, KeyError, TypeError, RecursionError, OSError) as cause:
        raise WeightsError(f"{path}: is no TorchScript file of YOLOv5's, which says its shape in config.txt") from cause
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return _exported(path, "torchscript", told, shape, digest, probe(path, "torchscript", shape))


# ---- what files say of themselves ------------------------------------------------------------------------------------


def read_told(about: Mapping[str, Any], path: Path) -> Told:
    """Read stride, names and our own levels from a file's metadata, texts or values. Raises WeightsError."""
    try:
        names = _names(_value(about.get("names")))
        strides = _value(about.get("strides"))
        stride, anchors = _value(about.get("stride")), _value(about.get("anchors_per_cell"))
        levels = tuple(int(one) for one in strides) if isinstance(strides, (list, tuple)) and strides else None
        if levels is not None and not all(1 <= one <= PROBE_SIDE for one in levels):
            raise ValueError("strides")
        told = Told(
            names,
            levels,
            int(anchors) if isinstance(anchors, int) and 1 <= anchors <= 20 else None,
            int(stride) if isinstance(stride, (int, float)) and 1 <= stride <= PROBE_SIDE else None,
        )
    except (ValueError, TypeError, OverflowError) as cause:
        raise WeightsError(f"{path}: its metadata (stride, names) can't be read") from cause
    return told


def _value(text: Any) -> Any:
    """Read a metadata entry: Python's text of a plain value, or the value."""
    if not isinstance(text, str):
        return text
    if len(text) > MAX_TEXT:
        raise ValueError("too long")
    return read_literal(text) if text else None


def _names(value: Any) -> Optional[tuple[str, ...]]:
    """Read names: a list, or a dict by class id, whose keys may have become texts."""
    if value is None:
        return None
    if isinstance(value, dict):
        by_id = {int(key): name for key, name in value.items()}
        value = [by_id[number] for number in range(len(by_id))] if set(by_id) == set(range(len(by_id))) else None
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MOST_CLASSES:
        raise ValueError("names")
    if not all(isinstance(name, (str, int)) and len(str(name)) <= MOST_NAME_LETTERS for name in value):
        raise ValueError("names")
    return tuple(_printable(str(name)) for name in value)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _shown(text: Any) -> str:
    """A text from a file as an error may repeat it: one short line. protobuf gives bytes where it is no UTF-8."""
    return _printable(str(text[:60]))


# ---- the first run ---------------------------------------------------------------------------------------------------


def probe(path: Path, runner: str, shape: tuple[Optional[int], ...]) -> tuple[int, ...]:
    """Let a process of its own run a file once; gives its output's shape. Raises WeightsError, ConfigError."""
    return _probed(path, runner, shape)[1]


def _probed(
    path: Path, runner: str, shape: Optional[tuple[Optional[int], ...]]
) -> tuple[tuple[Optional[int], ...], tuple[int, ...]]:
    asked = json.dumps({"path": str(path.resolve()), "runner": runner, "shape": shape, "side": PROBE_SIDE})
    command = [sys.executable, "-m", "formats.probe"]
    try:
        done = subprocess.run(  # noqa: S603 (our own module, no shell)
            command, input=asked, capture_output=True, text=True, timeout=PROBE_S, cwd=ROOT, errors="replace"
        )
    except subprocess.TimeoutExpired as cause:
        raise WeightsError(f"{path}: one picture took it more than {PROBE_S} s") from cause
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        answer = {}
    if answer.get("missing"):
        raise ConfigError(str(answer["missing"]))
    if answer.get("error"):
        raise WeightsError(str(answer["error"]))
    if done.returncode or "output" not in answer:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        raise WeightsError(f"{path}: ends {runner} with {ended} at its first picture; it is damaged or hostile")
    output = tuple(int(side) for side in answer["output"])
    if len(output) != 3:
        raise WeightsError(f"{path}: gives an output of {len(output)} axes, need pictures, rows and numbers")
    return tuple(answer["shape"]), output


def choose_backend(weights: Weights, backend: str) -> str:
    """Give what runs weights. Raises ConfigError for an engine that can't."""
    kind = weights.kind if isinstance(weights, Exported) else "pt"
    allowed = BACKENDS_OF[kind]
    if backend == "auto":
        return allowed[0]
    if backend not in allowed:
        raise ConfigError(
            f"backend: {backend} can't run {weights.path}; use auto or {' or '.join(allowed)} (config.yaml)"
        )
    return allowed[0] if kind == "torchscript" else backend


def only_size(weights: Optional[Weights]) -> Optional[tuple[int, int]]:
    """Give the only (height, width) that weights run at; None: they run at any."""
    return weights.fixed_hw if isinstance(weights, Exported) else None


def refuse_other_size(weights: Weights, input_hw: tuple[int, int]) -> None:
    """Raise ConfigError where a network is asked to run at another size than its only one."""
    fixed_hw = only_size(weights)
    if fixed_hw is not None and fixed_hw != input_hw:
        raise ConfigError(
            f"img_size: {weights.path} was exported for {fixed_hw[0]} x {fixed_hw[1]} px alone, not {input_hw[0]} x "
            f"{input_hw[1]}; set img_size to it, or export it with --dynamic"
        )
