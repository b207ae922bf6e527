"""A YOLOv5 weights file (.pt, v5 to v7, any training's) -> Checkpoint: arrays and what a model is built from. No torch.

Nothing from the file is run (models.unpickle); what is taken from it is checked and bounded here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from models.allowed import Holder, numbers_of, shown
from models.archive import Archive, opened
from models.tensors import Array, TensorData, arrays_of
from models.unpickle import read_pickle
from utils.class_names import MOST_CLASSES, MOST_NAME_LETTERS
from utils.errors import WeightsError

Plain = Union[None, bool, int, float, str]

# yolov5x6 has 574 modules, five deep.
_MAX_MODULES, _MAX_MODULE_DEPTH, _MAX_ENTRIES = 20_000, 32, 100_000
_MAX_YAML_NODES, _MAX_YAML_DEPTH, _MAX_YAML_TEXT, _MAX_YAML_NUMBER = 20_000, 16, 500, 1e6
_MAX_KEY = 200
_STRIDES = frozenset(1 << power for power in range(8))  # to 128
_MAX_ANCHOR_PX = 1e6
_MAX_META, _MAX_META_TEXT = 100, 1000
_WRAPPERS = MappingProxyType({"DataParallel": "module", "DistributedDataParallel": "module", "AutoShape": "model"})
# The activations a Conv may have, each with the numbers of its constructor that change what it computes, in order.
_ACTIVATION_NUMBERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "LeakyReLU": ("negative_slope",),
        "ELU": ("alpha",),
        "CELU": ("alpha",),
        "Hardtanh": ("min_val", "max_val"),
        "Softplus": ("beta", "threshold"),
        "Threshold": ("threshold", "value"),
        "RReLU": ("lower", "upper"),
        **dict.fromkeys(("ReLU", "ReLU6", "SELU", "GELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid"), ()),
        **dict.fromkeys(("Sigmoid", "LogSigmoid", "Tanh", "Tanhshrink", "Softsign", "PReLU"), ()),
        "Hardshrink": ("lambd",),
        "Softshrink": ("lambd",),
    }
)
_KEY = re.compile(r"\w{1,80}")  # one part of a state-dict name
# Control characters, line separators and lone surrogates: what would break a line of a log or of a result.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights and what the network that they belong to is built from."""

    path: Path
    state: Mapping[str, Array]  # state-dict names in their order; stored dtypes, bfloat16 widened to float32
    yaml: Mapping[str, Any]  # the model's description: nc, depth_multiple, width_multiple, anchors, backbone, head, ch
    names: tuple[str, ...]  # of the classes, one line each
    nc: int
    strides: tuple[int, ...]  # input px per cell, a level each, rising
    anchors_px: npt.NDArray[np.float32]  # (levels, anchors, 2) width, height in input px, as trained
    activation: str  # such as nn.LeakyReLU(0.1); '' is YOLOv5's own, SiLU
    meta: Mapping[str, Plain]  # epoch, best_fitness, date and the like

    @cached_property
    def digest(self) -> str:
        """A hash of names, shapes, types and bytes of the weights: equal weights, whatever file they lie in."""
        state = hashlib.blake2b(digest_size=16)
        for name, array in self.state.items():
            state.update(f"{name} {array.dtype} {array.shape}\n".encode("utf-8", "replace"))
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights that validation would use (the EMA if there is one) and all that a model is built from.

    Raises WeightsError, naming file and cause, for anything that isn't a YOLOv5 detection checkpoint.
    """
    with opened(path) as archive:
        root = read_pickle(archive)
        reader = _Reader(archive)
        return reader.checkpoint(root)


@dataclass(frozen=True, eq=False)
class _Reader:
    """Takes one checkpoint apart. Its methods raise WeightsError with the path in front."""

    archive: Archive

    def refusal(self, reason: str) -> WeightsError:
        """What to raise, with the file in front."""
        return WeightsError(f"{self.archive.path}: {reason}")

    def checkpoint(self, root: Any) -> Checkpoint:
        model = self._model(root)
        detect = self._detect(model)
        names = self._names(model.get("names"))
        nc = detect.get("nc")
        if type(nc) is not int or nc != len(names):
            raise self.refusal(f"its head has {_described(nc)} classes, but {len(names)} names are stored")
        strides = self._strides(model, detect)
        return Checkpoint(
            path=self.archive.path,
            state=MappingProxyType(self._state(model)),
            yaml=MappingProxyType(self._yaml(model.get("yaml"), nc)),
            names=names,
            nc=nc,
            strides=strides,
            anchors_px=self._anchors_px(detect, strides),
            activation=self._activation(model),
            meta=MappingProxyType(_meta(root)),
        )

    def _model(self, root: Any) -> Holder:
        """The module tree of the weights to use, out of its wrappers."""
        model = root
        if isinstance(root, dict):
            model = root.get("ema") if root.get("ema") is not None else root.get("model")
            if model is None and not any(isinstance(value, TensorData) for value in root.values()):
                raise self.refusal("holds neither ema nor model, so it isn't a YOLOv5 checkpoint")
        if not isinstance(model, Holder):
            raise self.refusal(
                "holds weights only, without the model's yaml and the class names; give the .pt that train.py wrote"
            )
        for _ in range(len(_WRAPPERS)):
            inner = _children(model).get(_WRAPPERS.get(model.kind, ""))
            model = inner if isinstance(inner, Holder) else model
        return model

    def _modules(self, model: Holder) -> Iterator[tuple[str, Holder]]:
        """(name with a dot behind it, module) of the whole tree, parents first, in the order of a state dict."""
        waiting = [("", model, 0)]
        for _ in range(_MAX_MODULES):
            if not waiting:
                return
            name, module, depth = waiting.pop()
            yield name, module
            if depth == _MAX_MODULE_DEPTH:
                raise self.refusal(f"its modules lie more than {_MAX_MODULE_DEPTH} deep in one another")
            for key, child in reversed(_children(module).items()):
                if isinstance(child, Holder):
                    waiting.append((f"{name}{self._key(key)}.", child, depth + 1))
                elif child is not None:
                    raise self.refusal(f"holds something that is no module at {shown(name)}{_described(key)}")
                if len(waiting) > _MAX_MODULES:  # a module of many children, over and over
                    raise self.refusal(f"has more than {_MAX_MODULES} modules")
        raise self.refusal(f"has more than {_MAX_MODULES} modules")

    def _key(self, key: Any) -> str:
        """One part of a state-dict name."""
        if isinstance(key, str) and _KEY.fullmatch(key):
            return key
        raise self.refusal(f"names a module or a tensor {_described(key)}")

    def _detect(self, model: Holder) -> Holder:
        """The one detection head."""
        modules = [module for _, module in self._modules(model)]
        for kind, task in (("Segment", "segmentation"), ("Classify", "classification"), ("Pose", "pose")):
            if any(module.kind == kind for module in modules):
                raise self.refusal(f"is a {task} model; this executor needs a detection model (head Detect)")
        heads = [module for module in modules if module.kind == "Detect"]
        if len(heads) != 1:
            raise self.refusal(f"has {len(heads)} detection heads (Detect), one is needed; is it a YOLOv5 model?")
        return heads[0]

    def _state(self, model: Holder) -> dict[str, Array]:
        """Every parameter and persistent buffer, in the order and with the names of torch's state_dict()."""
        tensors: dict[str, TensorData] = {}
        entries = 0
        for prefix, module in self._modules(model):
            passing = module.get("_non_persistent_buffers_set")
            # v5.0 kept the anchors a second time, scaled and spread, in the head's state.
            skipped = {"anchor_grid", *(passing if isinstance(passing, set) else ())}
            parameters, buffers = _dict(module.get("_parameters")), _dict(module.get("_buffers"))
            entries += len(skipped) + len(parameters) + len(buffers)
            if entries > _MAX_ENTRIES:
                raise self.refusal(f"has more than {_MAX_ENTRIES} tensors")
            persistent = {key: tensor for key, tensor in buffers.items() if key not in skipped}
            for key, tensor in [*parameters.items(), *persistent.items()]:
                if isinstance(tensor, TensorData):
                    tensors[prefix + self._key(key)] = tensor
                elif tensor is not None:
                    raise self.refusal(f"holds something that is no tensor at {shown(prefix)}{_described(key)}")
        return arrays_of(self.archive, tensors)

    def _names(self, stored: Any) -> tuple[str, ...]:
        """Class names from a list (to v6.1) or a dict by number (later)."""
        if isinstance(stored, dict):
            if set(stored) != set(range(len(stored))):
                raise self.refusal("its class names aren't numbered from 0 on")
            stored = [stored[index] for index in range(len(stored))]
        if not isinstance(stored, (list, tuple)) or not 0 < len(stored) <= MOST_CLASSES:
            raise self.refusal("its class names aren't a list")
        return tuple(self._name(index, name) for index, name in enumerate(stored))

    def _name(self, index: int, name: Any) -> str:
        if type(name) is int:  # a YAML list of digits
            name = str(name)
        if not isinstance(name, str):
            raise self.refusal(f"the name of class {index} is no text")
        if len(name) > MOST_NAME_LETTERS:
            raise self.refusal(f"the name of class {index} is longer than {MOST_NAME_LETTERS} letters")
        cleaned = _UNPRINTABLE.sub(" ", name)
        return name if cleaned == name else cleaned.strip()

    def _strides(self, model: Holder, detect: Holder) -> tuple[int, ...]:
        stored = detect.get("stride") if detect.get("stride") is not None else model.get("stride")
        values = self._small_array(stored, "stride", 1)
        strides = tuple(int(value) for value in values if value in _STRIDES)
        if len(strides) != len(values) or not strides or sorted(set(strides)) != list(strides):
            raise self.refusal("its strides aren't rising powers of two up to 128")
        return strides

    def _anchors_px(self, detect: Holder, strides: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """The head's anchors, stored in cells of each level, so as training (AutoAnchor) left them."""
        cells = self._small_array(_dict(detect.get("_buffers")).get("anchors"), "anchors", 3)
        if cells.shape[0] != len(strides) or cells.shape[2] != 2:
            raise self.refusal(f"its anchors have the shape {cells.shape} with {len(strides)} strides")
        pixels = cells * np.array(strides, np.float64).reshape(-1, 1, 1)  # (levels, anchors, 2)
        if not np.all((pixels >= 0) & (pixels < _MAX_ANCHOR_PX)):  # NaN fails, too; 0 before AutoAnchor has fitted them
            raise self.refusal("its anchors aren't sizes")
        return pixels.astype(np.float32)

    def _small_array(self, stored: Any, name: str, dimensions: int) -> npt.NDArray[np.float64]:
        """A tensor of a few numbers, at most 1000, in the dtype to reckon with."""
        if not isinstance(stored, TensorData) or len(stored.shape) != dimensions or not 0 < stored.elements <= 1000:
            raise self.refusal(f"has no {name} as YOLOv5 stores them (is it an anchor-free model?)")
        return arrays_of(self.archive, {name: stored})[name].astype(np.float64)

    def _yaml(self, stored: Any, nc: int) -> dict[str, Any]:
        if not isinstance(stored, dict) or not {"backbone", "head"} <= set(stored):
            raise self.refusal("holds no yaml with backbone and head, which the model is built from")
        copied: dict[str, Any] = self._copied(stored, 0, [0])
        return {**copied, "nc": nc}

    def _copied(self, value: Any, depth: int, count: list[int]) -> Any:
        """A copy of plain values that shares nothing, so no loop. count: one number, the nodes so far."""
        count[0] += 1
        if depth > _MAX_YAML_DEPTH or count[0] > _MAX_YAML_NODES:
            raise self.refusal("its yaml is nested too deep, in a loop, or too large")
        if isinstance(value, dict):
            return {_described(key): self._copied(item, depth + 1, count) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._copied(item, depth + 1, count) for item in value]
        if value is None or (isinstance(value, (int, float)) and abs(value) <= _MAX_YAML_NUMBER):  # so no NaN
            return value
        if isinstance(value, str) and len(value) <= _MAX_YAML_TEXT:
            return _UNPRINTABLE.sub(" ", value)
        raise self.refusal("its yaml holds something else than usual numbers and short texts")

    def _activation(self, model: Holder) -> str:
        """What the Conv layers activate with, if it isn't SiLU."""
        found = set()
        for _, module in self._modules(model):
            act = _children(module).get("act") if module.kind in ("Conv", "DWConv") else None
            if isinstance(act, Holder) and act.kind != "Identity":
                found.add(self._activation_text(act))
        if len(found) > 1:
            raise self.refusal(f"its layers have different activations ({', '.join(sorted(found)[:4])})")
        text = found.pop() if found else "nn.SiLU()"
        return "" if text == "nn.SiLU()" else text

    def _activation_text(self, act: Holder) -> str:
        if act.name != f"torch.nn.modules.activation.{act.kind}" or act.kind not in _ACTIVATION_NUMBERS:
            raise self.refusal(f"has an activation that isn't torch.nn's, {shown(act.name)}")
        if act.get("approximate") not in (None, "none") or act.get("num_parameters") not in (None, 1):
            raise self.refusal(f"its activation {act.kind} has unusual arguments")
        numbers = [act.get(attribute) for attribute in _ACTIVATION_NUMBERS[act.kind]]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise self.refusal(f"its activation {act.kind} lacks its numbers")
        return f"nn.{act.kind}({', '.join(map(repr, numbers))})"


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _children(module: Holder) -> dict[Any, Any]:
    return _dict(module.get("_modules"))


def _described(value: Any) -> str:
    """A value from the file as it may stand in an error: one short line, never a tree."""
    return shown(str(value)) if isinstance(value, (str, int, float, type(None))) else type(value).__name__


def _meta(root: Any) -> dict[str, Plain]:
    """The plain values beside the model: epoch, best_fitness, updates, date, ..."""
    meta: dict[str, Plain] = {}
    for key, stored in _dict(root).items():
        value: Optional[Any] = numbers_of(stored)
        if isinstance(value, list) and len(value) == 1:  # best_fitness may be an array of one
            value = value[0]
        if isinstance(value, str):
            value = _UNPRINTABLE.sub(" ", value[:_MAX_META_TEXT])
        is_plain = value is None or isinstance(value, (bool, int, float, str))
        if isinstance(key, str) and is_plain and len(key) <= _MAX_KEY and len(meta) < _MAX_META:
            meta[shown(key)] = value
    return meta
