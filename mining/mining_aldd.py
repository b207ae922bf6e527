"""ALDD mining: how much neighbourhoods disagree about what is there.

Aghdam et al., Active Learning for Deep Detection Neural Networks, ICCV 2019, arXiv 1911.09168; SPEC section 6. For each
class p = objectness x class probability on each output map, enlarged to the input; M is the mean over 9 x 9, H binary
entropy in nats. Where H(M(p)) exceeds M(H(p)), pixels contradict each other. The sum over the maps, its largest value
in each block of 32 x 32, and the mean over the blocks is a class's figure; the weighted sum over classes the score.

On a CPU with numba a compiled kernel does this (mining.aldd_kernel) and leaves out maps of a block that are proven to
change the score by less than max(2e-4 x score, 1e-7): see `bounds`. Elsewhere torch does it, a few classes at a time.

Memory on top of the network's own: on a CPU 20 to 40 MB at 640 px, whatever the classes and the batch.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mining.scored import Look, Scored
from mining.shipped_code import take_shipped_code
from utils.settings import MiningConfig

if TYPE_CHECKING:
    from models.decode import HeadMaps

LOGGER = logging.getLogger("mining")

WINDOW, BLOCK = 9, 32
FIRST_SHARE = 0.1  # of the units, those of the largest bounds: what they give tells how much may be left out
BOUNDS_AT_ONCE = 8  # classes
# What all that is left out may add up to: RELATIVE x score + ABSOLUTE. It is never above max(2e-4 x score, 1e-7).
RELATIVE, ABSOLUTE = 1.5e-4, 0.25e-7
CLASSES_AT_ONCE = 128  # in the kernel's tables; each group of classes has its part of what may be left out
TORCH_VALUES = 1 << 24  # in one of torch's tensors, on a GPU; a CPU takes one class after another

Floats = npt.NDArray[np.float64]


def class_weights(config: MiningConfig, classes: int) -> Floats:
    """Give (classes,) weights: those of the task, 1.0 for the rest; more than there are classes are cut."""
    given = list(config.class_distribution_scores or ())[:classes]
    return np.array(given + [1.0] * (classes - len(given)), np.float64)


def check_weights(config: MiningConfig) -> None:
    """Warn once where there are fewer or more weights than classes."""
    given, classes = len(config.class_distribution_scores or ()), len(config.class_names)
    if given and given != classes:
        what = "the rest count 1.0" if given < classes else "the last ones are not used"
        LOGGER.warning("class_distribution_scores: %d weights for %d classes; %s", given, classes, what)


def score_aldd(look: Look, config: MiningConfig) -> list[Scored]:
    """Score each picture; the parts are the weighted figures of the classes."""
    assert look.raw is not None
    weights = class_weights(config, look.raw.levels[0].shape[-1] - 5)
    scored = []
    for place in range(len(look)):
        parts = class_figures(look.raw[place], look.batch.canvas_hw, weights)
        scored.append(Scored(math.fsum(parts), parts))
    return scored


@functools.lru_cache(maxsize=1)
def has_kernel() -> bool:
    """Say whether the kernel can be had: numba is there, and has a place for what it compiles."""
    take_shipped_code(os.environ)
    try:
        from mining import aldd_kernel  # noqa: F401
    except (ImportError, RuntimeError) as error:
        LOGGER.warning("aldd: is computed without numba, several times slower: %s", str(error).split("\n", 1)[0])
        return False
    return True


def class_names_of(config: MiningConfig) -> tuple[str, ...]:
    """Name the parts of a score."""
    return config.class_names


def class_figures(raw: HeadMaps, input_hw: tuple[int, int], weights: Floats) -> list[float]:
    """Give each class's figure times its weight, for the one picture of `raw`; a class of weight 0 is skipped."""
    used = np.flatnonzero(weights)
    figures = np.zeros(len(weights))
    if len(used):
        can_compile = raw.levels[0].device.type == "cpu" and min(input_hw) >= BLOCK and has_kernel()
        compute = compiled_figures if can_compile else torch_figures
        figures[used] = compute(raw, input_hw, used, weights[used])
    return [float(figure) for figure in figures * weights]


# ---- torch -----------------------------------------------------------------------------------------------------------


def torch_figures(raw: HeadMaps, input_hw: tuple[int, int], used: Any, weights: Floats) -> Floats:
    """Compute the figures of some classes, nothing left out: some classes' maps at the size of the input at once."""
    import torch
    from torch.nn import functional as F

    device, anchors = raw.levels[0].device, raw.levels[0].shape[3]
    at_once = 1 if device.type == "cpu" else max(TORCH_VALUES // (anchors * math.prod(input_hw)), 1)
    block = tuple(min(BLOCK, side) for side in input_hw)  # a side below a block is one
    figures = []
    with torch.inference_mode():
        for chosen in torch.split(torch.as_tensor(used, device=device), at_once):
            total: Any = 0
            for level in raw.levels:  # (1, H, W, na, 5 + nc)
                logits = level[0].permute(3, 2, 0, 1)  # (5 + nc, na, H, W)
                p = logits[5 + chosen].sigmoid() * logits[4].sigmoid()  # (nc, na, H, W)
                p = F.interpolate(p, size=input_hw, mode="bilinear", align_corners=False)
                total = total + (_entropy(_mean(p)) - _mean(_entropy(p))).sum(dim=1)  # (nc, H, W)
            blocks = F.max_pool2d(total[:, None], block).clamp_(min=0)  # no gap is below 0, but for rounding
            figures.append(blocks.double().mean(dim=(1, 2, 3)))
        return torch.cat(figures).cpu().numpy()


def _mean(p: Any) -> Any:
    """Give the mean over each px's window, along one axis and then along the other: 18 px to read and not 81."""
    from torch.nn import functional as F

    for window, padding in (((1, WINDOW), (0, WINDOW // 2)), ((WINDOW, 1), (WINDOW // 2, 0))):
        p = F.avg_pool2d(p, window, stride=1, padding=padding, count_include_pad=False)
    return p


def _entropy(p: Any) -> Any:
    import torch

    p = p.clamp(0, 1)  # rounding may lift a mean above 1
    return -torch.xlogy(p, p) - (1 - p) * torch.log1p(-p.clamp(max=1 - 2**-24))


# ---- compiled --------------------------------------------------------------------------------------------------------


def compiled_figures(raw: HeadMaps, input_hw: tuple[int, int], used: Any, weights: Floats) -> Floats:
    """Compute the figures of some classes by the kernel, some classes at a time."""
    figures = np.zeros(len(used))
    for first in range(0, len(used), CLASSES_AT_ONCE):
        group = slice(first, first + CLASSES_AT_ONCE)
        spare = ABSOLUTE * len(used[group]) / len(used)
        figures[group] = UnitSums(raw, input_hw, used[group]).figures(weights[group], spare)
    return figures


class UnitSums:
    """Some classes' maps of one picture, laid out for the kernel. A unit is one of these classes and a block."""

    def __init__(self, raw: HeadMaps, input_hw: tuple[int, int], used: Any) -> None:
        import torch

        from mining import aldd_kernel

        self._kernel = aldd_kernel
        self._threads = torch.get_num_threads()
        self._input_hw = input_hw
        self.blocks_hw = input_hw[0] // BLOCK, input_hw[1] // BLOCK
        grids = [(int(level.shape[1]), int(level.shape[2])) for level in raw.levels]
        anchors = [int(level.shape[3]) for level in raw.levels]
        sizes = np.repeat([rows * columns for rows, columns in grids], anchors)
        self._maps = aldd_kernel.Maps(
            _p_of(raw, used),
            np.cumsum(sizes) - sizes,
            np.repeat([columns for _, columns in grids], anchors),
            np.repeat(np.arange(len(grids)), anchors),
            _axis(input_hw[0], [rows for rows, _ in grids]),
            _axis(input_hw[1], [columns for _, columns in grids]),
        )

    def extremes(self) -> tuple[Any, Any, Any]:
        """Give the least and the largest p around each block, and how far those of one window can lie apart.

        returns: (K, maps) fp32 each, for the units in order of class, row, column.
        """
        classes, maps = len(self._maps.p), len(self._maps.offsets)
        tables = [np.empty((classes, *self.blocks_hw, maps), np.float32) for _ in range(3)]

        def run(first: int, end: int) -> None:
            self._kernel.extremes(self._maps, first, end, *tables)

        self._share_out(classes, run, self._kernel.extremes)
        least, largest, spread = (table.reshape(-1, maps) for table in tables)
        return least, largest, spread

    def run(self, units: Any, largest: Any, keep: Any) -> Any:
        """Give the figure of each of (K, 3) units, from the maps that (K, maps) keep names: (K,) fp32."""
        out = np.zeros(len(units), np.float32)

        def run(first: int, end: int) -> None:
            part = slice(first, end)
            self._kernel.run_units(self._maps, *self._input_hw, units[part], largest[part], keep[part], out[part])

        self._share_out(len(units), run, self._kernel.run_units)
        return out

    def _share_out(self, count: int, run: Any, compiled: Any = None) -> None:
        """Run parts in threads: numba lets go of the interpreter, and each unit is one thread's alone.

        compiled: what `run` calls, if that is to be compiled. Its first call is this thread's: two threads that
        compile at once wait for each other at best.
        """
        bounds = np.linspace(0, count, self._threads * 4 + 1).astype(int).tolist()
        parts = [(first, end) for first, end in zip(bounds, bounds[1:]) if end > first]
        if parts and compiled is not None and not compiled.signatures:
            run(*parts.pop(0))
        if self._threads == 1 or len(parts) < 2:
            for first, end in parts:
                run(first, end)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda part: run(*part), parts))

    def figures(self, weights: Floats, spare: float = ABSOLUTE, prunes: bool = True) -> Floats:
        """Give each class's figure. spare: what may be left out whatever the score."""
        rows, columns = self.blocks_hw
        classes, blocks = len(self._maps.p), rows * columns
        extremes = self.extremes()
        largest = extremes[1]
        units = np.stack(np.meshgrid(np.arange(classes), np.arange(rows), np.arange(columns), indexing="ij"), -1)
        units = units.reshape(-1, 3)
        keep = np.ones(largest.shape, np.bool_)
        sums = np.zeros(len(units), np.float32)
        rest: Any = np.arange(len(units))
        if prunes:
            limits = self._limits(weights, extremes)
            order = np.argsort(-limits.sum(axis=1), kind="stable")
            first, rest = np.split(order, [math.ceil(FIRST_SHARE * len(units))])
            sums[first] = self.run(units[first], largest[first], keep[first])
            known = float((sums[first].astype(np.float64) * weights[units[first, 0]]).sum()) / blocks
            small = np.sort(limits[rest], axis=None)
            count = int(np.searchsorted(np.cumsum(small), RELATIVE * known + spare))
            threshold = small[count] if count < len(small) else math.inf  # those below it add up to less than allowed
            keep[rest] = limits[rest] >= threshold
            rest = rest[keep[rest].any(axis=1)]
        sums[rest] = self.run(units[rest], largest[rest], keep[rest])
        figures: Floats = sums.reshape(classes, blocks).astype(np.float64).mean(axis=1)
        return figures

    def _limits(self, weights: Floats, extremes: tuple[Any, Any, Any]) -> Floats:
        """Give (K, maps) of what each map of each unit can give to the score."""
        blocks = self.blocks_hw[0] * self.blocks_hw[1]
        limits = np.empty(extremes[0].shape)

        def run(first: int, end: int) -> None:
            for start in range(first, end, BOUNDS_AT_ONCE):  # their own arrays stay small
                stop = min(start + BOUNDS_AT_ONCE, end)
                own = slice(start * blocks, stop * blocks)
                shares = np.repeat(weights[start:stop], blocks)[:, None] / blocks
                limits[own] = bounds(*(table[own] for table in extremes)) * shares

        self._share_out(len(weights), run)
        return limits


def _p_of(raw: HeadMaps, used: Any) -> Any:
    """Give p of one picture's classes: (nc, R) fp32, the maps of a class one after another."""
    import torch

    is_run = int(used[-1]) - int(used[0]) + 1 == len(used)  # then nothing is gathered
    chosen: Any = slice(5 + int(used[0]), 6 + int(used[-1])) if is_run else 5 + torch.as_tensor(used)
    parts = []
    with torch.inference_mode():
        for level in raw.levels:
            logits = level[0].permute(3, 2, 0, 1)  # (5 + nc, na, H, W)
            # Classes first, before the sigmoid: it then runs over memory that lies in one piece. Ours, not the map's.
            p = torch.empty((len(used), *logits.shape[1:])).copy_(logits[chosen]).sigmoid_()
            parts.append(p.mul_(logits[4].contiguous().sigmoid()).flatten(1))  # (nc, na H W)
        return torch.cat(parts, dim=1).numpy()


def _axis(side: int, cells: list[int]) -> Any:
    """Say how `side` input px lie between `cells` of each level, as bilinear enlarging places them."""
    from mining.aldd_kernel import FULL, HALO, Axis

    px = np.arange(side)
    first_px, last_px = np.maximum(px - HALO, 0), np.minimum(px + HALO, side - 1)  # of the window around each
    blocks = np.arange(side // BLOCK) * BLOCK
    own, behind, shares, first_taps, matrices = [], [], [], [], []
    for count in cells:
        place = np.maximum((px + 0.5) * (count / side) - 0.5, 0)
        own.append(np.minimum(place.astype(np.int64), count - 1))
        behind.append(np.minimum(own[-1] + 1, count - 1))
        shares.append(place - own[-1])
        weights = np.zeros((side + 1, count))  # (px, cells), then sums over px before each
        np.add.at(weights, (px + 1, own[-1]), 1 - shares[-1])
        np.add.at(weights, (px + 1, behind[-1]), shares[-1])
        weights = weights.cumsum(axis=0)
        matrices.append((weights[last_px + 1] - weights[first_px]) / (last_px + 1 - first_px)[:, None])
        first_taps.append(own[-1][first_px])
    count_of_taps = max(int((last[last_px] - first).max()) + 1 for first, last in zip(first_taps, behind))
    count_of_taps = -(-count_of_taps // 4) * 4
    taps = []
    for matrix, first in zip(matrices, first_taps):
        columns = first[:, None] + np.arange(count_of_taps)  # (px, T)
        there = np.take_along_axis(matrix, np.minimum(columns, matrix.shape[1] - 1), axis=1)
        taps.append(np.where(columns < matrix.shape[1], there, 0))
    beyond = np.clip(np.arange(-HALO, side + FULL), 0, side - 1)
    ends = np.minimum(blocks + BLOCK + HALO, side) - 1
    starts = np.maximum(blocks - HALO, 0)
    return Axis(
        np.stack(own)[:, beyond],
        np.stack(behind)[:, beyond],
        np.stack(shares).astype(np.float32)[:, beyond],
        np.stack(taps).astype(np.float32),
        np.stack(first_taps),
        np.stack([np.stack((o[starts], b[ends]), -1) for o, b in zip(own, behind)]),
        np.array([(WINDOW - 1) * count / side for count in cells], np.float32),
    )


def bounds(least: Any, largest: Any, spread: Any) -> Floats:
    """Give what the gap of a window can't exceed whose p lie between two values, at most `spread` apart: fp64.

    H is concave, so on [a, b] it lies above its chord: M(H(p)) >= chord(M(p)), and the gap is at most the largest
    distance of H from its chord, which is where H' equals the chord's slope: p = 1 / (1 + e^slope). Up to 1/2 H bends
    the less the larger p is: of all intervals of a width the lowest has the largest distance.
    """
    a, b = np.asarray(least, np.float64), np.asarray(largest, np.float64)
    b = np.where(b <= 0.5, np.minimum(b, a + np.asarray(spread, np.float64) * (1 + 1e-5)), b)
    h_a, h_b = _entropy_exact(a), _entropy_exact(b)
    width = b - a
    slope = np.divide(h_b - h_a, width, out=np.zeros_like(a), where=width > 0)
    peak = np.clip(1 / (1 + np.exp(np.clip(slope, -700, 700))), a, b)
    distance: Floats = np.maximum(_entropy_exact(peak) - (h_a + slope * (peak - a)), 0)
    # H differs from the truth by 2e-16 of itself or so; H is at most b (1 - ln b), and below 1e-16 x 40 b.
    return np.where(width > 0, distance * (1 + 1e-9) + 1e-14 * b, 0)


def _entropy_exact(p: Floats) -> Floats:
    p = np.clip(p, 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
        second = np.where(p < 1, (1 - p) * np.log1p(-np.where(p < 1, p, 0)), 0)
    entropy: Floats = -first - second
    return entropy
