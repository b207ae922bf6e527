"""A network and the state of its training -> YOLOv5's own .pt, which its val, export and detect load as theirs.

The file is a zip of stored members as torch.save writes it (no torch.save here: the classes that it would name are
ours). Names, attributes and keys: `facts/yolov5.md`, "Files".
"""

from __future__ import annotations

import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Optional, Union

import torch
from torch import Tensor, nn

from models import pickling
from models.common import TransformerBlock
from models.pickling import Called, Global, Made, Stored, to_pickle
from models.resume import ResumeState
from models.yolo import Detect, DetectionModel, ModelSpec
from utils.files import replacing

_ALIGNMENT = 64  # bytes, of every tensor's beginning in the file: torch can map it then
_ZIP_HEADER = 30  # bytes of a local header before the name
_HOOKS = (
    "_backward_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
_LAYER_ATTRIBUTES = ("training", "i", "f", "type")
# Attributes of torch's modules that begin with _ and that their forward needs.
_INNER = ("_reversed_padding_repeated_twice", "_qkv_same_embed_dim")
_NORM_ATTRIBUTES = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_STORAGES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float16: "HalfStorage",
        torch.float32: "FloatStorage",
        torch.float64: "DoubleStorage",
        torch.bfloat16: "BFloat16Storage",
        torch.int64: "LongStorage",
        torch.int32: "IntStorage",
        torch.int16: "ShortStorage",
        torch.int8: "CharStorage",
        torch.uint8: "ByteStorage",
        torch.bool: "BoolStorage",
    }
)


@dataclass(frozen=True, eq=False)
class SavedTraining:
    """What a checkpoint holds. yaml: `yaml_of` the model's spec. hyp: as the model keeps it, plain values.

    epoch: the last one that is done, from 0; -1 where training is over. optimizer: its state_dict(). date: ISO 8601.
    half: weights are stored in half precision, as YOLOv5 does; those of `resume` always as they are.
    """

    model: Optional[DetectionModel]
    ema: Optional[DetectionModel]
    names: tuple[str, ...]
    yaml: Mapping[str, Any]
    epoch: int
    best_fitness: Optional[float]
    updates: Optional[int]
    optimizer: Optional[Mapping[str, Any]]
    date: str
    hyp: Mapping[str, Any]
    half: bool = True
    resume: Optional[ResumeState] = None


def stripped(content: SavedTraining) -> SavedTraining:
    """What is left of a training once it is over: the EMA as the model, in half precision, nothing to go on with."""
    return replace(
        content,
        model=content.ema if content.ema is not None else content.model,
        ema=None,
        epoch=-1,
        best_fitness=None,
        updates=None,
        optimizer=None,
        half=True,
        resume=None,
    )


def write_checkpoint(path: Path, content: SavedTraining) -> None:
    """Write a checkpoint; whoever opens `path` meanwhile, and whenever this is killed, finds the old one or the new."""
    storages = _Storages()
    pickled = to_pickle(_root(content, storages))
    with replacing(path) as file:
        folder = path.stem if re.fullmatch(r"[\w\-]{1,100}", path.stem, re.ASCII) else "archive"
        _write_zip(file, folder, pickled, storages)


def yaml_of(spec: ModelSpec) -> dict[str, Any]:
    """A model's description in the form that YOLOv5 keeps in its checkpoints, of plain values."""
    rows = [[_listed(source), repeats, module, _listed(arguments)] for source, repeats, module, arguments in spec.rows]
    pairs = len(spec.anchors_px[0]) // 2
    # Anchors that are still to be fitted stand there as 0, 1, 2, ...; a yaml has their number instead.
    are_fitted = any(level != tuple(range(2 * pairs)) for level in spec.anchors_px)
    description: dict[str, Any] = {
        "nc": spec.classes,
        "depth_multiple": spec.depth_multiple,
        "width_multiple": spec.width_multiple,
        "anchors": [[_whole(side) for side in level] for level in spec.anchors_px] if are_fitted else pairs,
        "backbone": rows[: spec.backbone_rows],
        "head": rows[spec.backbone_rows :],
        "ch": spec.channels_in,
    }
    if spec.activation:
        description["activation"] = _activation_call(spec.activation)
    return description


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _whole(number: float) -> Union[int, float]:
    return int(number) if number == int(number) else number


def _activation_call(text: str) -> str:
    """`LeakyReLU`, `torch.nn.ReLU` -> `nn.LeakyReLU()`, `nn.ReLU()`: YOLOv5 evaluates the text."""
    bare = re.sub(r"^(torch\.)?(nn\.)?", "", text.strip())
    return f"nn.{bare}" if bare.endswith(")") else f"nn.{bare}()"


def _root(content: SavedTraining, storages: _Storages) -> dict[str, Any]:
    """What data.pkl describes, in YOLOv5's order."""
    models = {}
    for model in (content.model, content.ema):
        if model is not None and id(model) not in models:
            models[id(model)] = _model(model, content, storages)
    root = {
        "epoch": content.epoch,
        "best_fitness": _plain(content.best_fitness, storages),
        "model": models.get(id(content.model)),
        "ema": models.get(id(content.ema)),
        "updates": content.updates,
        "optimizer": None if content.optimizer is None else _plain(content.optimizer, storages),
        "wandb_id": None,
        "date": content.date,
    }
    if content.resume is not None:
        tensors = {name: storages.tensor(tensor) for name, tensor in content.resume.tensors.items()}
        root["resume"] = {"json": content.resume.to_json(), "tensors": tensors}
    return root


def _plain(value: Any, storages: _Storages) -> Any:
    """A tree of plain values and tensors with its tensors on their way into the file."""
    if isinstance(value, Tensor):
        return storages.tensor(value)
    if isinstance(value, Mapping):
        return {key: _plain(item, storages) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, storages) for item in value)
    return float(value) if isinstance(value, float) else value  # a numpy float is one, and a class that needs numpy


def _model(model: DetectionModel, content: SavedTraining, storages: _Storages) -> Made:
    """The module tree of a network under the names of YOLOv5's classes."""
    made = _module(model, content.half, storages)
    attributes = {
        "yaml": _plain(content.yaml, storages),
        "save": sorted(model.save),
        "names": list(content.names),
        "inplace": True,
        "stride": storages.tensor(torch.tensor(model.stride, dtype=torch.float32)),
        "nc": model.spec.classes,
        "hyp": _plain(content.hyp, storages),
    }
    return Made(Global("models.yolo", "Model"), {**made.state, **attributes})


def _module(module: nn.Module, half: bool, storages: _Storages) -> Made:
    """A module with all below it: state as every torch since 1.8 takes it up, in evaluation mode."""
    children: OrderedDict[str, Any] = OrderedDict(
        (name, None if child is None else _module(child, half, storages)) for name, child in module._modules.items()
    )
    state: dict[str, Any] = {
        "training": False,
        "_parameters": OrderedDict(
            (name, None if weight is None else pickling.parameter(storages.weight(weight, half)))
            for name, weight in module._parameters.items()
        ),
        "_buffers": OrderedDict(
            (name, None if buffer is None else storages.weight(buffer, half))
            for name, buffer in module._buffers.items()
        ),
        "_non_persistent_buffers_set": set(module._non_persistent_buffers_set),
        "_is_full_backward_hook": None,
        **{name: OrderedDict() for name in _HOOKS},
        "_modules": children,
    }
    kind = _class_of(module)
    state.update(_attributes(module, kind, storages))
    if "i" in vars(module):  # a layer: its place in the model, its class and its weights, for listings
        state.update(i=module.i, f=module.f, type=f"{kind.module}.{kind.name}")
        state["np"] = sum(weight.numel() for weight in module.parameters())
    return Made(kind, state)


def _class_of(module: nn.Module) -> Global:
    """The class that YOLOv5, or every torch since 1.8, has for a module of ours."""
    if isinstance(module, DetectionModel):
        return Global("models.yolo", "Model")
    if isinstance(module, nn.modules.batchnorm._NormBase):  # synchronised ones, too, which a CPU has no use for
        return Global("torch.nn.modules.batchnorm", "BatchNorm2d")
    if isinstance(module, nn.Linear):  # attention's own kind of it has another name in torch 1.8
        return Global("torch.nn.modules.linear", "Linear")
    return Global(type(module).__module__, type(module).__name__)


def _attributes(module: nn.Module, kind: Global, storages: _Storages) -> dict[str, Any]:
    """What a module holds besides weights and modules: the numbers of its constructor."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {name: getattr(module, name) for name in _NORM_ATTRIBUTES}
    own = {} if isinstance(module, DetectionModel) else vars(module)
    attributes = {
        name: value
        for name, value in own.items()
        if name in _INNER or not (name.startswith("_") or name in _LAYER_ATTRIBUTES)
    }
    if isinstance(module, Detect):
        empty = [torch.zeros(1) for _ in range(module.nl)]  # made anew at the first picture, in its size
        attributes["grid"] = [storages.tensor(grid) for grid in empty]
        attributes["anchor_grid"] = [storages.tensor(grid) for grid in empty]
        attributes["stride"] = storages.tensor(torch.tensor(module.stride, dtype=torch.float32))
        attributes["inplace"] = True
    if isinstance(module, TransformerBlock):
        attributes.update(conv=None, c2=module.linear.out_features)
    return attributes


@dataclass(eq=False)
class _Storages:
    """The members data/0, data/1, ... of the file, gathered while the pickle is put together.

    members: flat CPU tensors; they keep their memory from being given to another tensor until all is written.
    """

    members: list[Tensor] = field(default_factory=list)
    places: dict[tuple[str, int, torch.dtype], Stored] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    def weight(self, tensor: Tensor, half: bool) -> Called:
        """A parameter or a buffer of the model: floating ones in half precision if asked for."""
        dtype = torch.float16 if half and tensor.is_floating_point() else tensor.dtype
        return self.tensor(tensor.detach().to(dtype).contiguous())

    def tensor(self, tensor: Tensor) -> Called:
        """A tensor as a view of its storage, which is written once however many tensors lie in it."""
        tensor = tensor.detach()
        if tensor.numel() == 0 or tensor.layout != torch.strided:
            tensor = tensor.cpu().clone()
        storage = self._storage(tensor)
        return pickling.tensor(storage, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))

    def _storage(self, tensor: Tensor) -> Stored:
        untyped = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else _old_storage(tensor)
        place = (str(tensor.device), untyped.data_ptr(), tensor.dtype)
        stored = self.places.get(place)
        if stored is None or untyped.data_ptr() == 0:
            elements = untyped.nbytes() // tensor.element_size()
            self.kept.append(tensor)
            flat = tensor.as_strided((elements,), (1,), 0).cpu()
            stored = Stored(_STORAGES[tensor.dtype], str(len(self.members)), elements)
            self.places[place] = stored
            self.members.append(flat)
        return stored


def _old_storage(tensor: Tensor) -> Any:
    """The same of torch 1.12."""
    storage: Any = tensor.storage  # untyped there
    return storage()


def _write_zip(file: IO[bytes], folder: str, pickled: bytes, storages: _Storages) -> None:
    """The members in torch.save's order, each beginning at a multiple of 64 bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, file, f"{folder}/data.pkl", pickled)
        _add(archive, file, f"{folder}/byteorder", sys.byteorder.encode())
        for number, member in enumerate(storages.members):
            _add(archive, file, f"{folder}/data/{number}", _bytes_of(member))
        _add(archive, file, f"{folder}/version", b"3\n")


def _bytes_of(flat: Tensor) -> memoryview:
    """The memory of a flat tensor, not copied; as whole numbers, since numpy has no bfloat16."""
    if flat.dtype is torch.bfloat16:
        flat = flat.view(torch.int16)
    return flat.numpy().data.cast("B") if flat.numel() else memoryview(b"")


def _add(archive: zipfile.ZipFile, file: IO[bytes], name: str, content: Union[bytes, memoryview]) -> None:
    """Add a member whose bytes are moved to the next multiple of 64 by an extra field, which torch names FB, too."""
    member = zipfile.ZipInfo(name)
    header = _ZIP_HEADER + len(name.encode()) + 4  # the extra field's own beginning
    padding = -(file.tell() + header) % _ALIGNMENT
    member.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(member, content)
