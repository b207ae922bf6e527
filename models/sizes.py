"""How large a network is, told before any of it is built: weights, blocks, the maps' sizes and the strides. No torch.

A description may come from a stranger, and one line of it can ask for terabytes. Each layer is counted by its own
formula, which tests/models/test_sizes.py compares with the layers that are built. Whatever passes here can be built,
and gives maps of the sizes told for every input whose sides are multiples of `input_stride(strides)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Callable, NamedTuple, Union

from utils.letterbox import input_stride

MAX_CHANNELS = 16_384
MAX_KERNEL = 64
MAX_POOLS = 16  # of one SPP; usual are three
MAX_STRIDE = 256  # P7 is 128
# Of a network. The largest of the 23 configurations: 144 million weights, 79 blocks, 447 values kept for each pixel of
# a picture (as counted here) and 254,000 products for it.
MAX_WEIGHTS = 500_000_000
MAX_BLOCKS = 1000
MAX_VALUES = 5000
MAX_PRODUCTS = 5_000_000

TAKES_REPEATS = ("BottleneckCSP", "C3", "C3TR", "C3Ghost", "Bottleneck")
TAKES_LISTS = ("Concat", "Detect")

Source = Union[int, tuple[int, ...]]
DescribedRow = tuple[Source, int, str, tuple[Any, ...]]  # from, repeats, name, arguments
Hw = tuple[int, int]


class Layer(NamedTuple):
    """A row with its numbers scaled."""

    module: str
    c_in: int  # of all maps that it takes together
    c_out: int
    inner: int  # blocks inside of it
    outer: int  # how often it stands there, one after another
    arguments: tuple[Any, ...]  # without the output channels


@dataclass(frozen=True)
class Sizes:
    """What a whole network comes to. weights: at least so many, as activations may have some of their own."""

    weights: int
    strides: tuple[int, ...]


# ---- weights ---------------------------------------------------------------------------------------------------------


def _conv(c_in: int, c_out: int, kernel: int = 1, groups: int = 1) -> int:
    """A convolution without bias and its batch norm."""
    return c_in // groups * c_out * kernel**2 + 2 * c_out


def _ghost(c_in: int, c_out: int, kernel: int = 1) -> int:
    half = c_out // 2
    return _conv(c_in, half, kernel) + _conv(half, half, 5, half)


def _bottleneck(c_in: int, hidden: int, c_out: int) -> int:
    return _conv(c_in, hidden) + _conv(hidden, c_out, 3)


def _c3(layer: Layer, middle: int) -> int:
    half = layer.c_out // 2
    return 2 * _conv(layer.c_in, half) + _conv(2 * half, layer.c_out) + middle


def _csp(layer: Layer) -> int:
    half = layer.c_out // 2
    own = _conv(layer.c_in, half) + layer.c_in * half + half**2 + _conv(2 * half, layer.c_out) + 4 * half
    return own + layer.inner * _bottleneck(half, half, half)


def _ghosts(layer: Layer) -> int:
    half = layer.c_out // 2
    quarter = half // 2
    return _c3(layer, layer.inner * (_ghost(half, quarter) + _ghost(quarter, half)))


def _transformer(layer: Layer) -> int:
    half = layer.c_out // 2
    return _c3(layer, half**2 + half + layer.inner * (9 * half**2 + 4 * half))


def _pyramid(layer: Layer, pools: int) -> int:
    half = layer.c_in // 2
    return _conv(layer.c_in, half) + _conv(half * (pools + 1), layer.c_out)


def _bottlenecks(layer: Layer) -> int:
    half = layer.c_out // 2
    rest = (layer.inner - 1) * _bottleneck(layer.c_out, half, layer.c_out)
    return _bottleneck(layer.c_in, half, layer.c_out) + rest


_WEIGHTS: Mapping[str, Callable[[Layer], int]] = MappingProxyType(
    {
        "Conv": lambda layer: _conv(layer.c_in, layer.c_out, _kernel(layer), _groups(layer)),
        "DWConv": lambda layer: _conv(layer.c_in, layer.c_out, _kernel(layer), _groups(layer)),
        "GhostConv": lambda layer: _ghost(layer.c_in, layer.c_out, _kernel(layer)),
        "Focus": lambda layer: _conv(4 * layer.c_in, layer.c_out, _kernel(layer)),
        "Bottleneck": _bottlenecks,
        "BottleneckCSP": _csp,
        "C3": lambda layer: _c3(layer, layer.inner * _bottleneck(*[layer.c_out // 2] * 3)),
        "C3TR": _transformer,
        "C3Ghost": _ghosts,
        "SPP": lambda layer: _pyramid(layer, len(_pools(layer))),
        "SPPF": lambda layer: _pyramid(layer, 3),
    }
)


def _weights(layer: Layer) -> int:
    """Count the weights of a layer, all its repeats together."""
    if layer.module not in _WEIGHTS:
        return 0
    count = _WEIGHTS[layer.module]
    again = layer._replace(c_in=layer.c_out)
    return count(layer) + (layer.outer - 1) * count(again) if layer.outer > 1 else count(layer)


# ---- arguments -------------------------------------------------------------------------------------------------------


def _whole(value: Any, low: int, high: int, what: str) -> int:
    """Check a whole number; YAML writes some as 3.0."""
    if not isinstance(value, (int, float)) or not low <= value <= high or value != int(value):
        raise ValueError(f"{what} is {str(value)[:40]}, need a whole number of {low} to {high}")
    return int(value)


def _argument(layer: Layer, place: int, default: int, low: int, what: str, high: int = MAX_KERNEL) -> int:
    value = layer.arguments[place] if place < len(layer.arguments) else None
    return default if value is None or (value == 0 and low > 0) else _whole(value, low, high, what)


def _kernel(layer: Layer) -> int:
    return _argument(layer, 0, 1, 1, "its kernel")


def _groups(layer: Layer) -> int:
    if layer.module == "DWConv":
        return math.gcd(layer.c_in, layer.c_out)
    groups = _argument(layer, 3, 1, 1, "its groups", MAX_CHANNELS) if layer.module == "Conv" else 1
    # Of a repeated layer the others take what the first gives.
    if layer.c_in % groups or layer.c_out % groups:
        raise ValueError(f"{layer.c_in} channels to {layer.c_out} in {groups} groups")
    return groups


def _pools(layer: Layer) -> list[int]:
    kernels = layer.arguments[0] if layer.module == "SPP" and layer.arguments else [5, 9, 13]
    if not isinstance(kernels, (list, tuple)) or not len(kernels) <= MAX_POOLS:
        raise ValueError(f"its pools are {str(kernels)[:40]}, need a list of {MAX_POOLS} at most")
    return [_odd(kernel) for kernel in kernels]


def _odd(kernel: Any) -> int:
    checked = _whole(kernel, 1, MAX_KERNEL, "a pool's side")
    if not checked % 2:
        raise ValueError(f"a pool's side is {checked}, need an odd number")
    return checked


# ---- maps ------------------------------------------------------------------------------------------------------------


def _slid(side: int, kernel: int, stride: int, padding: int) -> int:
    return (side + 2 * padding - kernel) // stride + 1


def _map_conv(layer: Layer, hw: Hw) -> Hw:
    kernel, stride = _kernel(layer), _argument(layer, 1, 1, 1, "its stride")
    padding = _argument(layer, 2, kernel // 2, 0, "its padding") if layer.module == "Conv" else kernel // 2
    if layer.module == "Focus":
        if hw[0] % 2 or hw[1] % 2:
            raise ValueError("takes maps of even sides only")
        hw = hw[0] // 2, hw[1] // 2
    return _slid(hw[0], kernel, stride, padding), _slid(hw[1], kernel, stride, padding)


def _map_same(layer: Layer, hw: Hw) -> Hw:
    if layer.module == "SPP":
        _pools(layer)
    elif layer.module == "SPPF":
        _odd(layer.arguments[0] if layer.arguments else 5)
    return hw


def _map_upsample(layer: Layer, hw: Hw) -> Hw:
    size, factor, mode = ([*layer.arguments, None, None, None])[:3]
    is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool) and 0 < factor <= MAX_KERNEL
    if size is not None or mode != "nearest" or not is_number:
        raise ValueError("only [None, FACTOR, nearest] is known")
    return math.floor(hw[0] * factor), math.floor(hw[1] * factor)


def _map_pool(layer: Layer, hw: Hw) -> Hw:
    if not layer.arguments:
        raise ValueError("has no kernel")
    kernel = _whole(layer.arguments[0], 1, MAX_KERNEL, "its kernel")
    stride = _argument(layer, 1, kernel, 1, "its stride")
    padding = _argument(layer, 2, 0, 0, "its padding", kernel // 2)
    return _slid(hw[0], kernel, stride, padding), _slid(hw[1], kernel, stride, padding)


def _map_pad(layer: Layer, hw: Hw) -> Hw:
    sides = layer.arguments[0] if layer.arguments else None
    if not isinstance(sides, (list, tuple)) or len(sides) != 4:
        raise ValueError("needs a list of four sides")
    left, right, top, bottom = (_whole(side, 0, MAX_KERNEL, "a side") for side in sides)
    return hw[0] + top + bottom, hw[1] + left + right


def _map_concat(layer: Layer, hw: Hw) -> Hw:
    if layer.outer > 1 or _argument(layer, 0, 1, 1, "its axis") != 1:
        raise ValueError("joins channels (axis 1), once")
    return hw


_MAPS: Mapping[str, Callable[[Layer, Hw], Hw]] = MappingProxyType(
    {
        **dict.fromkeys(("Conv", "DWConv", "GhostConv", "Focus"), _map_conv),
        **dict.fromkeys((*TAKES_REPEATS, "SPP", "SPPF"), _map_same),
        **{"nn.Upsample": _map_upsample, "nn.MaxPool2d": _map_pool, "nn.ZeroPad2d": _map_pad, "Concat": _map_concat},
    }
)


def _map_hw(layer: Layer, hw: Hw) -> Hw:
    for _ in range(layer.outer):
        hw = _MAPS[layer.module](layer, hw)
        if min(hw) < 1:
            raise ValueError("gives an empty map")
    return hw


# ---- the whole -------------------------------------------------------------------------------------------------------


def scaled(row: DescribedRow, c_in: int, depth_multiple: float, width_multiple: float) -> Layer:
    """Scale a row's repeats and channels, the latter up to a multiple of 8 as YOLOv5 does. Raises ValueError."""
    _, repeats, module, arguments = row
    if module not in _MAPS:
        raise ValueError(f"unknown layer, need one of {', '.join(_MAPS)}, and Detect at the end")
    times = max(round(repeats * depth_multiple), 1) if repeats > 1 else repeats
    c_out, rest = c_in, arguments
    if module in _WEIGHTS:
        if not arguments:
            raise ValueError("names no output channels")
        wanted = _whole(arguments[0], 1, MAX_CHANNELS, "its output")
        c_out, rest = math.ceil(wanted * width_multiple / 8) * 8, arguments[1:]
    if c_out > MAX_CHANNELS:
        raise ValueError(f"{c_out} channels, at most {MAX_CHANNELS}")
    return Layer(module, c_in, c_out, *((times, 1) if module in TAKES_REPEATS else (1, times)), rest)


def absolute(index: int, number: int) -> int:
    """Turn the `from` of a row into a layer's number; -1 is the picture itself. Raises ValueError."""
    found = number + index if index < 0 else index
    if not 0 <= found < number and not (index == -1 and number == 0):
        raise ValueError(f"takes its input from layer {index}, which is not before it")
    return found


def sources_of(row: DescribedRow, number: int) -> list[int]:
    """Give the numbers of the layers that a row takes its maps from, -1 for the picture. Raises ValueError."""
    source, _, module, _ = row
    if isinstance(source, tuple) != (module in TAKES_LISTS) or source == ():
        wanted = "a list of layers" if module in TAKES_LISTS else "one layer"
        raise ValueError(f"takes {wanted}, not {str(source)[:40]}")
    return [absolute(index, number) for index in (source if isinstance(source, tuple) else (source,))]


class _Measuring:
    """Goes through rows once. Raises ValueError with the row in words."""

    def __init__(self, rows: Sequence[DescribedRow], depth_multiple: float, width_multiple: float) -> None:
        self.layers: list[Layer] = []
        self.taken: list[list[int]] = []
        self.weights = self.blocks = 0
        for number, row in enumerate(rows[:-1]):
            with _Where(number, row[2]):
                taken = sources_of(row, number)
                layer = scaled(row, sum(self.channels(index) for index in taken), depth_multiple, width_multiple)
                self.weights += _weights(layer)
                self.blocks += layer.inner * layer.outer
                self.check()
            self.layers.append(layer)
            self.taken.append(taken)

    def channels(self, index: int) -> int:
        """Give the channels of a layer's map, 3 of the picture's."""
        return 3 if index < 0 else self.layers[index].c_out

    def check(self) -> None:
        for count, most, what in ((self.weights, MAX_WEIGHTS, "weights"), (self.blocks, MAX_BLOCKS, "blocks")):
            if count > most:
                raise ValueError(f"with it there are {count:,} {what}, at most {most:,}")

    def maps(self, side: int) -> list[Hw]:
        """Give the size of each layer's map for a picture of side x side."""
        found: list[Hw] = []
        values = products = 0
        for number, (layer, taken) in enumerate(zip(self.layers, self.taken)):
            with _Where(number, layer.module):
                sizes = {(side, side) if index < 0 else found[index] for index in taken}
                if len(sizes) > 1:
                    raise ValueError(f"joins maps of different sizes, {sorted(sizes)[:4]} for a picture of {side}")
                found.append(_map_hw(layer, sizes.pop()))
                cells = math.prod(found[-1])
                values += cells * (layer.c_in + layer.c_out * (1 + layer.inner * layer.outer))
                products += cells * _weights(layer)
                if values > MAX_VALUES * side**2 or products > MAX_PRODUCTS * side**2:
                    raise ValueError("with it there is too much to compute for each pixel of a picture")
        return found


class _Where:
    """Puts the layer's number and name before what is raised inside."""

    def __init__(self, number: int, module: str) -> None:
        self._text = f"layer {number} ({module[:40]})"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"{self._text}: {error}") from None


def measure(
    rows: Sequence[DescribedRow],
    depth_multiple: float,
    width_multiple: float,
    outputs: int,
) -> Sizes:
    """Measure a network; outputs: channels of each of its maps, anchors x (5 + classes).

    Raises ValueError, with the layer, for one that can't be built, can't run, or is larger than anything in use.
    """
    measuring = _Measuring(rows, depth_multiple, width_multiple)
    with _Where(len(rows) - 1, rows[-1][2]):
        levels = sources_of(rows[-1], len(rows) - 1)
        measuring.weights += sum((measuring.channels(index) + 1) * outputs for index in levels)
        measuring.check()
    # As the rows alone say, then as maps of three sizes turn out; a stride needn't be a power of two.
    guess = 4 * MAX_STRIDE
    strides = tuple(round(guess / hw[0]) for hw in _heads(measuring, levels, guess))
    with _Where(len(rows) - 1, rows[-1][2]):
        step = input_stride(strides)
        for count in (1, 2, 3):
            for stride, hw in zip(strides, _heads(measuring, levels, step * count)):
                if not 1 <= stride <= MAX_STRIDE or (hw[0] * stride, hw[1] * stride) != (step * count,) * 2:
                    raise ValueError(
                        f"its maps are of {hw[0]} x {hw[1]} for a picture of {step * count}; strides have to be whole, "
                        f"{MAX_STRIDE} at most, and divisors of the largest"
                    )
                if outputs * math.prod(hw) > MAX_VALUES * (step * count) ** 2:
                    raise ValueError("gives too many numbers for each pixel of a picture")
    return Sizes(measuring.weights, strides)


def _heads(measuring: _Measuring, levels: Sequence[int], side: int) -> list[Hw]:
    found = measuring.maps(side)
    return [(side, side) if index < 0 else found[index] for index in levels]
