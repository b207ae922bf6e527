"""A model yaml becomes a network; its last layer, Detect, gives the raw maps that `models.decode` reads.

A yaml holds names and numbers, never expressions: it may come out of a stranger's checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor, nn

from models.common import (
    C3,
    C3TR,
    SPP,
    SPPF,
    Activation,
    Bottleneck,
    BottleneckCSP,
    C3Ghost,
    Concat,
    Conv,
    Focus,
    GhostConv,
    silu,
)
from models.sizes import MAX_WEIGHTS, DescribedRow, Layer, Sizes, measure, scaled, sources_of
from utils.activations import split_activation
from utils.class_names import MOST_CLASSES
from utils.errors import ConfigError, ExecutorError
from utils.safe_yaml import read_yaml

MAX_ROWS = 500
MAX_REPEATS = 100
MAX_LEVELS = 10
MAX_ANCHORS = 20  # of a level

_TAKES_INPLACE = {
    "CELU",
    "ELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "Mish",
    "ReLU",
    "ReLU6",
    "SELU",
    "SiLU",
}


class Detect(nn.Module):
    """The head: one 1x1 convolution a level, anchors x (5 + classes) channels out."""

    anchors: Tensor

    def __init__(self, classes: int, anchors_px: Sequence[Sequence[float]], channels: Sequence[int]) -> None:
        super().__init__()
        self.nc = classes
        self.no = classes + 5  # x, y, w, h, objectness, classes
        self.nl = len(anchors_px)
        self.na = len(anchors_px[0]) // 2
        self.stride: tuple[int, ...] = ()  # input px a cell, set by the model
        shaped = torch.tensor(anchors_px, dtype=torch.float32).view(self.nl, self.na, 2)
        self.register_buffer("anchors", shaped)  # w, h; in cells once the model has set the stride
        self.m = nn.ModuleList([nn.Conv2d(c_in, self.no * self.na, 1) for c_in in channels])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Give each level's raw map: (B, na * no, H, W), before the sigmoid."""
        return [conv(level) for conv, level in zip(self.m, maps)]

    def start_biases(self) -> None:
        """Start objectness at about 8 objects a 640 px picture and classes at about 0.6 / nc (Lin et al., 2017)."""
        for conv, stride in zip(self.m, self.stride):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            bias = conv.bias.detach().view(self.na, -1)  # (na, no), shares memory
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / (self.nc - 0.999999))


class Row(NamedTuple):
    """What a builder sees of a row: numbers that `measure` has checked."""

    c_in: int  # of all maps together
    c_out: int
    repeats: int  # inside of the module
    arguments: tuple[Any, ...]  # without the output channels
    activation: Activation


def _conv(row: Row) -> nn.Module:
    kernel, stride, padding, groups = ([*row.arguments, None, None, None, None])[:4]
    return Conv(
        row.c_in,
        row.c_out,
        int(kernel or 1),
        int(stride or 1),
        None if padding is None else int(padding),
        int(groups or 1),
        row.activation,
    )


def _kernel_stride(row: Row) -> tuple[int, int]:
    kernel, stride = ([*row.arguments, None, None])[:2]
    return int(kernel or 1), int(stride or 1)


def _depthwise(row: Row) -> nn.Module:
    kernel, stride = _kernel_stride(row)
    groups = math.gcd(row.c_in, row.c_out)
    return Conv(row.c_in, row.c_out, kernel, stride, groups=groups, activation=row.activation)


def _strided(block: Callable[..., nn.Module]) -> Callable[[Row], nn.Module]:
    return lambda row: block(row.c_in, row.c_out, *_kernel_stride(row), row.activation)


def _has_shortcut(row: Row) -> bool:
    return bool(row.arguments[0]) if row.arguments else True


def _bottleneck(row: Row) -> nn.Module:
    modules = [
        Bottleneck(row.c_in if index == 0 else row.c_out, row.c_out, _has_shortcut(row), activation=row.activation)
        for index in range(row.repeats)
    ]
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _csp(block: Callable[..., nn.Module]) -> Callable[[Row], nn.Module]:
    return lambda row: block(row.c_in, row.c_out, row.repeats, _has_shortcut(row), row.activation)


def _spp(row: Row) -> nn.Module:
    kernels = [int(kernel) for kernel in row.arguments[0]] if row.arguments else [5, 9, 13]
    return SPP(row.c_in, row.c_out, kernels, row.activation)


def _sppf(row: Row) -> nn.Module:
    return SPPF(row.c_in, row.c_out, int(row.arguments[0]) if row.arguments else 5, row.activation)


def _upsample(row: Row) -> nn.Module:
    return nn.Upsample(None, row.arguments[1], "nearest")


def _max_pool(row: Row) -> nn.Module:
    kernel, stride, padding = (int(value or 0) for value in ([*row.arguments, None, None])[:3])
    return nn.MaxPool2d(kernel, stride or kernel, padding)


def _zero_pad(row: Row) -> nn.Module:
    left, right, top, bottom = (int(side) for side in row.arguments[0])
    return nn.ZeroPad2d((left, right, top, bottom))


# name in a yaml -> builder, for all that `measure` lets through.
BUILDERS: Mapping[str, Callable[[Row], nn.Module]] = MappingProxyType(
    {
        "Conv": _conv,
        "DWConv": _depthwise,
        "GhostConv": _strided(GhostConv),
        "Focus": _strided(Focus),
        "Bottleneck": _bottleneck,
        "BottleneckCSP": _csp(BottleneckCSP),
        "C3": _csp(C3),
        "C3TR": _csp(C3TR),
        "C3Ghost": _csp(C3Ghost),
        "SPP": _spp,
        "SPPF": _sppf,
        "nn.Upsample": _upsample,
        "nn.MaxPool2d": _max_pool,
        "nn.ZeroPad2d": _zero_pad,
        "Concat": lambda row: Concat(),
    }
)


@dataclass(frozen=True)
class ModelSpec:
    """A model yaml, checked: what DetectionModel is built from.

    rows: (from, repeats, module name, arguments), backbone and head in one list; arguments are plain values.
    anchors_px: a row of w, h pairs in input pixels for each output level.
    """

    classes: int
    depth_multiple: float
    width_multiple: float
    channels_in: int
    rows: tuple[DescribedRow, ...]
    backbone_rows: int
    anchors_px: tuple[tuple[float, ...], ...]
    activation: str = ""

    @property
    def levels(self) -> int:
        """The number of output maps."""
        return len(self.anchors_px)

    def measured(self) -> Sizes:
        """Give the strides and the number of weights. Raises ValueError where `measure` does."""
        outputs = len(self.anchors_px[0]) // 2 * (5 + self.classes)
        return measure(self.rows, self.depth_multiple, self.width_multiple, outputs)


def parse_spec(
    plain: Any, name: str, classes: Optional[int] = None, activation: str = "", error: type[ExecutorError] = ConfigError
) -> ModelSpec:
    """Check a parsed model yaml and freeze it.

    plain: the yaml's mapping. classes, activation: win over the yaml's own, where given.
    Raises `error`, naming `name` and the row, for anything that is no YOLOv5 detection model, can't run, or is larger
    than any network in use; nothing is built for that.
    """
    try:
        backbone, head = list(plain["backbone"]), list(plain["head"])
        if len(backbone) + len(head) > MAX_ROWS:
            raise ValueError(f"more than {MAX_ROWS} layers")
        rows = tuple(_parse_row(row) for row in backbone + head)
        if not head or rows[-1][2] != "Detect":
            raise ValueError(f"the last layer is {rows[-1][2][:40]}, need Detect (a detection model)")
        sources = rows[-1][0]
        levels = len(sources) if isinstance(sources, tuple) else 1
        if levels > MAX_LEVELS:
            raise ValueError(f"{levels} levels, at most {MAX_LEVELS}")
        own = plain.get("activation") or ""
        spec = ModelSpec(
            classes=int(classes if classes is not None else plain["nc"]),
            depth_multiple=_number(plain["depth_multiple"], 0, 10),
            width_multiple=_number(plain["width_multiple"], 0, 20),
            channels_in=int(plain.get("ch", 3)),
            rows=rows,
            backbone_rows=len(backbone),
            anchors_px=_parse_anchors(plain["anchors"], levels),
            activation=activation or str(own),
        )
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError) as cause:
        raise error(f"{name}: is no YOLOv5 model description: {_words(cause)}") from None
    if not 1 <= spec.classes <= MOST_CLASSES or spec.channels_in != 3:
        raise error(f"{name}: {spec.classes} classes and {spec.channels_in} channels, need 1..{MOST_CLASSES} and 3")
    parse_activation(spec.activation, name, error)
    try:
        spec.measured()
    except ValueError as cause:
        raise error(f"{name}: {cause}") from None
    return spec


def _words(cause: Exception) -> str:
    return f"{cause} is missing" if isinstance(cause, KeyError) else str(cause)[:200]


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
        raise ValueError(f"{str(value)[:40]} is no number above {low}, at most {high}")
    return float(value)


def _whole(value: Any) -> int:
    if not isinstance(value, (int, float)) or abs(value) > MAX_WEIGHTS:
        raise ValueError(f"{str(value)[:40]!r} is no number, or a very large one")
    return int(value)


def _parse_row(row: Any) -> DescribedRow:
    source, repeats, module, arguments = row
    if not isinstance(module, str) or not isinstance(arguments, (list, tuple)):
        raise ValueError(f"layer {str(row)[:80]} is not [from, repeats, name, arguments]")
    if not 1 <= _whole(repeats) <= MAX_REPEATS:
        raise ValueError(f"layer {module[:40]}: {str(repeats)[:40]} repeats, need 1 to {MAX_REPEATS}")
    taken = tuple(_whole(index) for index in source) if isinstance(source, (list, tuple)) else _whole(source)
    # YOLOv5 names a few layers by their full path.
    short = module.replace("models.common.", "").replace("torch.nn.", "nn.")
    return taken, _whole(repeats), short, tuple(None if value == "None" else value for value in arguments)


def _parse_anchors(anchors: Any, levels: int) -> tuple[tuple[float, ...], ...]:
    if isinstance(anchors, int):  # so many a level, to be fitted before use
        if not 1 <= anchors <= MAX_ANCHORS:
            raise ValueError(f"anchors: {str(anchors)[:40]} a level, need 1 to {MAX_ANCHORS}")
        return tuple(tuple(float(number) for number in range(2 * anchors)) for _ in range(levels))
    parsed = tuple(tuple(_number(number, 0, 1e6) for number in level) for level in anchors)
    if len(parsed) != levels or len({len(level) for level in parsed}) != 1 or len(parsed[0]) % 2 or not parsed[0]:
        raise ValueError(f"anchors: need one row of w, h pairs for each of {levels} levels, all of one length")
    if len(parsed[0]) // 2 > MAX_ANCHORS:
        raise ValueError(f"anchors: {len(parsed[0]) // 2} a level, at most {MAX_ANCHORS}")
    return parsed


def parse_activation(text: str, name: str, error: type[ExecutorError] = ConfigError) -> Activation:
    """Turn `nn.LeakyReLU(0.1)`, `ReLU` or '' (SiLU) into a maker of such modules; never evaluates anything."""
    if not text:
        return silu
    kind_name, numbers = split_activation(text, name, error)
    kind: Any = getattr(nn, kind_name)
    keywords = {"inplace": True} if kind_name in _TAKES_INPLACE else {}
    try:  # some refuse their numbers only when they are called; in eval mode none draws any
        made = kind(*numbers, **keywords).eval()
        made(torch.zeros(1, 1, 1, 1))
        if kind_name == "RReLU" and not made.lower <= made.upper:  # torch 1 tells it in training alone
            raise ValueError(f"draws between {made.lower} and {made.upper}")
    except (ValueError, TypeError, AssertionError, RuntimeError) as cause:
        words = " ".join(str(cause).split())[:200] or "its numbers can't be"
        raise error(f"activation: {text[:60]!r} ({name}): {words}") from None
    return lambda: kind(*numbers, **keywords)


def read_spec(path: Path, classes: Optional[int] = None, activation: str = "") -> ModelSpec:
    """Read a model yaml file. Raises ConfigError."""
    return parse_spec(read_yaml(path), str(path), classes, activation)


class DetectionModel(nn.Module):
    """The whole network; `model` holds the layers under the names of YOLOv5's checkpoints."""

    def __init__(self, spec: ModelSpec, max_weights: Optional[int] = None) -> None:
        """Build it with fresh weights. max_weights: refuse, before any of it is built, a network that must hold more
        (hostile descriptions in weights files). Raises ConfigError."""
        super().__init__()
        self.spec = spec
        try:
            sizes = spec.measured()
            if max_weights is not None and sizes.weights > max_weights:
                raise ValueError(f"needs {sizes.weights:,} weights or more, and there are {max_weights:,}")
            layers, self.stride = _build(spec, sizes), sizes.strides
        except (ValueError, TypeError, RuntimeError) as cause:  # torch's own of what `measure` let through
            raise ConfigError(f"model: {str(cause)[:300]}") from None
        self.model = nn.Sequential(*layers)
        strides = torch.tensor([float(stride) for stride in self.stride], device=self.detect.anchors.device)
        self.detect.anchors /= strides.view(-1, 1, 1)
        self.save = _needed_later(spec)
        self.feature_layer = spec.backbone_rows - 1

    @property
    def detect(self) -> Detect:
        """The head."""
        last = self.model[-1]
        assert isinstance(last, Detect)
        return last

    def forward(self, images: Tensor) -> list[Tensor]:
        """Give the head's raw maps.

        images: (B, 3, H, W) in 0..1, RGB, sides multiples of the largest stride.
        returns: for each level (B, na * (5 + nc), H / stride, W / stride), before the sigmoid.
        """
        maps: list[Tensor] = self._run(images, len(self.model))
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Give the map of the backbone's last row, (B, C, H, W) of its own stride; images as of `forward`."""
        features: Tensor = self._run(images, self.feature_layer + 1)
        return features

    def maps_and_features(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Give what `forward` and `features` give, from one pass."""
        kept = {self.feature_layer: images}  # a place for them
        maps: list[Tensor] = self._run(images, len(self.model), kept)
        return maps, kept[self.feature_layer]

    def _run(self, images: Tensor, layers: int, wanted: Optional[dict[int, Tensor]] = None) -> Any:
        """Give what the first so many layers make of pictures. wanted: also gets the maps of the layers it has."""
        kept: dict[int, Tensor] = {}
        x: Any = images
        for number, layer in enumerate(self.model[:layers]):
            source: Any = layer.f
            if source != -1:
                x = (
                    kept[source % number]
                    if isinstance(source, int)
                    else [x if index == -1 else kept[index % number] for index in source]
                )
            x = layer(x)
            if number in self.save:
                kept[number] = x
            if wanted is not None and number in wanted:
                wanted[number] = x
        return x


def _needed_later(spec: ModelSpec) -> frozenset[int]:
    """Give the layers whose maps another than the next one takes."""
    wanted: set[int] = set()
    for number, row in enumerate(spec.rows):
        named = row[0] if isinstance(row[0], tuple) else (row[0],)
        wanted.update(found for index, found in zip(named, sources_of(row, number)) if index != -1)
    return frozenset(wanted)


def _build(spec: ModelSpec, sizes: Sizes) -> list[nn.Module]:
    """Build all layers, each with its number, source and name."""
    activation = parse_activation(spec.activation, "model")
    built: list[nn.Module] = []
    channels: list[int] = []
    for number, row in enumerate(spec.rows):
        source, _, module, _ = row
        c_in = [spec.channels_in if index < 0 else channels[index] for index in sources_of(row, number)]
        if module == "Detect":
            detect = Detect(spec.classes, spec.anchors_px, c_in)
            detect.stride = sizes.strides
            layer: Any = detect
        else:
            sized = scaled(row, sum(c_in), spec.depth_multiple, spec.width_multiple)
            layer = _build_layer(sized, activation)
            channels.append(sized.c_out)
        layer.i, layer.f, layer.type = number, source if isinstance(source, int) else list(source), module
        built.append(layer)
    return built


def _build_layer(sized: Layer, activation: Activation) -> nn.Module:
    """Build one layer, with its repeats."""
    builder = BUILDERS[sized.module]
    first = builder(Row(sized.c_in, sized.c_out, sized.inner, sized.arguments, activation))
    if sized.outer == 1:
        return first
    again = Row(sized.c_out, sized.c_out, sized.inner, sized.arguments, activation)
    return nn.Sequential(first, *(builder(again) for _ in range(sized.outer - 1)))


def make_model(spec: ModelSpec) -> DetectionModel:
    """Build a network with fresh weights, its head's biases started for detection."""
    model = DetectionModel(spec)
    with torch.no_grad():
        model.detect.start_biases()
    return model
