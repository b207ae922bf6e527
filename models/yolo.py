"""A model yaml becomes a network; its last layer, Detect, gives the raw maps that `models.decode` reads.

A yaml holds names and numbers, never expressions: it may come out of a stranger's checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, NamedTuple, Optional, Union

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
from utils.activations import split_activation
from utils.class_names import MOST_CLASSES
from utils.errors import ConfigError, ExecutorError
from utils.safe_yaml import read_yaml

MAX_CHANNELS = 16_384
MAX_ROWS = 500
MAX_REPEATS = 100
MAX_KERNEL = 64

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


class Built(NamedTuple):
    """One layer: the module, its output channels, and how many input cells make one of its cells."""

    module: nn.Module
    channels: int
    shrinks: float


class Row(NamedTuple):
    """What a builder sees of a row: scaled numbers only."""

    c_in: list[int]
    c_out: int  # already scaled; 0 where the row names none
    repeats: int  # already scaled
    arguments: list[Any]  # without the output channels
    activation: Activation


def _conv(row: Row) -> Built:
    kernel, stride, padding, groups = ([*row.arguments, None, None, None, None])[:4]
    module = Conv(
        row.c_in[0],
        row.c_out,
        int(kernel or 1),
        int(stride or 1),
        None if padding is None else int(padding),
        int(groups or 1),
        row.activation,
    )
    return Built(module, row.c_out, int(stride or 1))


def _kernel_stride(row: Row) -> tuple[int, int]:
    kernel, stride = ([*row.arguments, None, None])[:2]
    return int(kernel or 1), int(stride or 1)


def _depthwise(row: Row) -> Built:
    kernel, stride = _kernel_stride(row)
    groups = math.gcd(row.c_in[0], row.c_out)
    module = Conv(row.c_in[0], row.c_out, kernel, stride, groups=groups, activation=row.activation)
    return Built(module, row.c_out, stride)


def _ghost_conv(row: Row) -> Built:
    kernel, stride = _kernel_stride(row)
    return Built(GhostConv(row.c_in[0], row.c_out, kernel, stride, row.activation), row.c_out, stride)


def _focus(row: Row) -> Built:
    kernel, stride = _kernel_stride(row)
    return Built(Focus(row.c_in[0], row.c_out, kernel, stride, row.activation), row.c_out, 2 * stride)


def _bottleneck(row: Row) -> Built:
    shortcut = bool(row.arguments[0]) if row.arguments else True
    modules = [
        Bottleneck(row.c_in[0] if index == 0 else row.c_out, row.c_out, shortcut, activation=row.activation)
        for index in range(row.repeats)
    ]
    return Built(modules[0] if len(modules) == 1 else nn.Sequential(*modules), row.c_out, 1)


def _csp(block: Callable[..., nn.Module]) -> Callable[[Row], Built]:
    def build(row: Row) -> Built:
        shortcut = bool(row.arguments[0]) if row.arguments else True
        return Built(block(row.c_in[0], row.c_out, row.repeats, shortcut, row.activation), row.c_out, 1)

    return build


def _spp(row: Row) -> Built:
    kernels = [int(kernel) for kernel in row.arguments[0]] if row.arguments else [5, 9, 13]
    return Built(SPP(row.c_in[0], row.c_out, kernels, row.activation), row.c_out, 1)


def _sppf(row: Row) -> Built:
    kernel = int(row.arguments[0]) if row.arguments else 5
    return Built(SPPF(row.c_in[0], row.c_out, kernel, row.activation), row.c_out, 1)


def _upsample(row: Row) -> Built:
    size, factor, mode = ([*row.arguments, None, None, None])[:3]
    if size is not None or mode != "nearest" or not isinstance(factor, (int, float)):
        raise ConfigError(f"nn.Upsample {row.arguments}: only [None, FACTOR, nearest] is known")
    return Built(nn.Upsample(None, factor, mode), row.c_in[0], 1 / factor)


def _max_pool(row: Row) -> Built:
    kernel, stride, padding = ([int(value) for value in row.arguments] + [0, 0])[:3]
    stride = stride or kernel
    return Built(nn.MaxPool2d(kernel, stride, padding), row.c_in[0], stride)


def _zero_pad(row: Row) -> Built:
    left, right, top, bottom = (int(side) for side in row.arguments[0])
    return Built(nn.ZeroPad2d((left, right, top, bottom)), row.c_in[0], 1)


def _concat(row: Row) -> Built:
    return Built(Concat(int(row.arguments[0]) if row.arguments else 1), sum(row.c_in), 1)


# name in a yaml -> builder. The first group names its output channels as its first argument.
WITH_CHANNELS: Mapping[str, Callable[[Row], Built]] = MappingProxyType(
    {
        "Conv": _conv,
        "DWConv": _depthwise,
        "GhostConv": _ghost_conv,
        "Focus": _focus,
        "Bottleneck": _bottleneck,
        "BottleneckCSP": _csp(BottleneckCSP),
        "C3": _csp(C3),
        "C3TR": _csp(C3TR),
        "C3Ghost": _csp(C3Ghost),
        "SPP": _spp,
        "SPPF": _sppf,
    }
)
WITHOUT_CHANNELS: Mapping[str, Callable[[Row], Built]] = MappingProxyType(
    {"nn.Upsample": _upsample, "nn.MaxPool2d": _max_pool, "nn.ZeroPad2d": _zero_pad, "Concat": _concat}
)
TAKES_REPEATS = ("BottleneckCSP", "C3", "C3TR", "C3Ghost", "Bottleneck")


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
    rows: tuple[tuple[Union[int, tuple[int, ...]], int, str, tuple[Any, ...]], ...]
    backbone_rows: int
    anchors_px: tuple[tuple[float, ...], ...]
    activation: str = ""

    @property
    def levels(self) -> int:
        """The number of output maps."""
        return len(self.anchors_px)


def parse_spec(
    plain: Any, name: str, classes: Optional[int] = None, activation: str = "", error: type[ExecutorError] = ConfigError
) -> ModelSpec:
    """Check a parsed model yaml and freeze it.

    plain: the yaml's mapping. classes, activation: win over the yaml's own, where given.
    Raises `error`, naming `name` and the row, for anything that is no YOLOv5 detection model.
    """
    try:
        backbone, head = list(plain["backbone"]), list(plain["head"])
        if len(backbone) + len(head) > MAX_ROWS:
            raise ValueError(f"more than {MAX_ROWS} layers")
        rows = tuple(_parse_row(row) for row in backbone + head)
        if rows[-1][2] != "Detect":
            raise ValueError(f"the last layer is {rows[-1][2]}, need Detect (a detection model)")
        sources = rows[-1][0]
        levels = len(sources) if isinstance(sources, tuple) else 1
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
    return spec


def _words(cause: Exception) -> str:
    return f"{cause} is missing" if isinstance(cause, KeyError) else str(cause)[:200]


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
        raise ValueError(f"{str(value)[:40]} is no number above {low}, at most {high}")
    return float(value)


def _parse_row(row: Any) -> tuple[Union[int, tuple[int, ...]], int, str, tuple[Any, ...]]:
    source, repeats, module, arguments = row
    if not isinstance(module, str) or not isinstance(arguments, (list, tuple)):
        raise ValueError(f"layer {str(row)[:80]} is not [from, repeats, name, arguments]")
    if not 1 <= int(repeats) <= MAX_REPEATS:
        raise ValueError(f"layer {module}: {repeats} repeats")
    taken = tuple(int(index) for index in source) if isinstance(source, (list, tuple)) else int(source)
    # YOLOv5 names a few layers by their full path.
    short = module.replace("models.common.", "").replace("torch.nn.", "nn.")
    return taken, int(repeats), short, tuple(None if value == "None" else value for value in arguments)


def _parse_anchors(anchors: Any, levels: int) -> tuple[tuple[float, ...], ...]:
    if isinstance(anchors, int):  # so many a level, to be fitted before use
        if not 1 <= anchors <= 20:
            raise ValueError(f"anchors: {anchors} a level")
        return tuple(tuple(float(number) for number in range(2 * anchors)) for _ in range(levels))
    parsed = tuple(tuple(_number(number, 0, 1e6) for number in level) for level in anchors)
    if len(parsed) != levels or len({len(level) for level in parsed}) != 1 or len(parsed[0]) % 2 or not parsed[0]:
        raise ValueError(f"anchors: need one row of w, h pairs for each of {levels} levels, all of one length")
    return parsed


def parse_activation(text: str, name: str, error: type[ExecutorError] = ConfigError) -> Activation:
    """Turn `nn.LeakyReLU(0.1)`, `ReLU` or '' (SiLU) into a maker of such modules; never evaluates anything."""
    if not text:
        return silu
    kind_name, numbers = split_activation(text, name, error)
    kind: Any = getattr(nn, kind_name)
    keywords = {"inplace": True} if kind_name in _TAKES_INPLACE else {}
    try:
        kind(*numbers, **keywords)
    except (ValueError, TypeError) as cause:
        raise error(f"activation: {text[:60]!r} ({name}): {cause}") from None
    return lambda: kind(*numbers, **keywords)


def read_spec(path: Path, classes: Optional[int] = None, activation: str = "") -> ModelSpec:
    """Read a model yaml file. Raises ConfigError."""
    return parse_spec(read_yaml(path), str(path), classes, activation)


class DetectionModel(nn.Module):
    """The whole network; `model` holds the layers under the names of YOLOv5's checkpoints."""

    def __init__(self, spec: ModelSpec, max_weights: Optional[int] = None) -> None:
        """Build it with fresh weights. max_weights: refuse, before it is built, a layer that must hold more (hostile
        descriptions in weights files)."""
        super().__init__()
        self.spec = spec
        activation = parse_activation(spec.activation, "model")
        layers: list[nn.Module] = []
        channels: list[int] = []
        shrinks: list[float] = []  # input px a cell, per layer
        for number, (source, repeats, module, arguments) in enumerate(spec.rows):
            taken = [_absolute(index, number) for index in (source if isinstance(source, tuple) else (source,))]
            c_in = [spec.channels_in if index < 0 else channels[index] for index in taken]
            if module == "Detect":
                detect = Detect(spec.classes, spec.anchors_px, c_in)
                detect.stride = tuple(int(shrinks[index]) for index in taken)
                built = Built(detect, 0, 1)
            else:
                built = _build_row(spec, number, module, c_in, repeats, list(arguments), activation, max_weights)
            layer: Any = built.module
            layer.i, layer.f, layer.type = number, source if isinstance(source, int) else list(source), module
            layers.append(layer)
            channels.append(built.channels)
            shrinks.append((1.0 if taken[0] < 0 else shrinks[taken[0]]) * built.shrinks)
        self.model = nn.Sequential(*layers)
        self.stride = self.detect.stride
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


def _absolute(index: int, number: int) -> int:
    """Turn a row's `from` into a layer's number; -1 is the picture itself."""
    absolute = number + index if index < 0 else index
    if not -1 <= absolute < number:
        raise ConfigError(f"model: layer {number} takes its input from layer {index}, which is not before it")
    return absolute


def _needed_later(spec: ModelSpec) -> frozenset[int]:
    wanted: set[int] = set()
    for number, (source, _, _, _) in enumerate(spec.rows):
        for index in source if isinstance(source, tuple) else (source,):
            if index != -1:
                wanted.add(_absolute(index, number))
    return frozenset(wanted)


def _build_row(
    spec: ModelSpec,
    number: int,
    module: str,
    c_in: list[int],
    repeats: int,
    arguments: list[Any],
    activation: Activation,
    max_weights: Optional[int],
) -> Built:
    """Scale a row's channels and repeats and build its module. Raises ConfigError naming the layer."""
    where = f"model: layer {number} ({module[:40]})"
    scaled = max(round(repeats * spec.depth_multiple), 1) if repeats > 1 else repeats
    c_out = 0
    try:
        if module in WITH_CHANNELS:
            # Rounded up to a multiple of 8, as YOLOv5 does.
            c_out = math.ceil(int(arguments.pop(0)) * spec.width_multiple / 8) * 8
            builder = WITH_CHANNELS[module]
        elif module in WITHOUT_CHANNELS:
            builder = WITHOUT_CHANNELS[module]
        else:
            known = ", ".join([*WITH_CHANNELS, *WITHOUT_CHANNELS, "Detect"])
            raise ConfigError(f"{where}: unknown layer, need one of {known}")
        _check_sizes(where, c_out, arguments)
        if max_weights is not None and _least_weights(module, c_in, c_out, scaled, arguments) > max_weights:
            raise ConfigError(f"{where}: needs more weights than there are")
        inner = scaled if module in TAKES_REPEATS else 1
        outer = 1 if module in TAKES_REPEATS else scaled
        built = builder(Row(c_in, c_out, inner, arguments, activation))
        if outer == 1:
            return built
        again = [builder(Row([built.channels], c_out, inner, list(arguments), activation)) for _ in range(outer - 1)]
        shrinks = math.prod([built.shrinks, *(other.shrinks for other in again)])
        return Built(nn.Sequential(built.module, *(other.module for other in again)), built.channels, shrinks)
    except (ValueError, TypeError, IndexError, RuntimeError, ZeroDivisionError, OverflowError) as cause:
        raise ConfigError(f"{where}: arguments {str(arguments)[:60]}: {str(cause)[:120]}") from None


def _check_sizes(where: str, c_out: int, arguments: Sequence[Any]) -> None:
    if not 0 <= c_out <= MAX_CHANNELS:
        raise ConfigError(f"{where}: {c_out} channels, at most {MAX_CHANNELS}")
    for place, argument in enumerate(arguments):
        most = MAX_CHANNELS if place == 3 else MAX_KERNEL  # the fourth is Conv's number of groups
        for number in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(number, (int, float)) and not -1 <= number <= most:
                raise ConfigError(f"{where}: argument {number}, need -1 to {most}")


def _least_weights(module: str, c_in: list[int], c_out: int, repeats: int, arguments: Sequence[Any]) -> int:
    """Give a number of weights that such a layer has at least, within a factor of about 20 of the truth."""
    if module not in WITH_CHANNELS:
        return 0
    kernel = int(arguments[0] or 1) if arguments and module in ("Conv", "DWConv", "GhostConv", "Focus") else 1
    groups = int(arguments[3] or 1) if module == "Conv" and len(arguments) > 3 else 1
    if module == "DWConv":
        groups = math.gcd(c_in[0], c_out)
    own = c_in[0] * c_out * kernel**2 // max(groups, 1) // 4
    # Blocks inside work on half of the channels; a ghost block needs a quarter of a plain one.
    return own + (c_out // 2) ** 2 * (repeats - 1) // 4 if module in TAKES_REPEATS else own * repeats


def make_model(spec: ModelSpec) -> DetectionModel:
    """Build a network with fresh weights, its head's biases started for detection."""
    model = DetectionModel(spec)
    with torch.no_grad():
        model.detect.start_biases()
    return model
