"""ALDD mining: how much neighbourhoods disagree about what is there.

Aghdam et al., Active Learning for Deep Detection Neural Networks, ICCV 2019, arXiv 1911.09168; SPEC section 6. For each
class p = objectness x class probability on each output map, enlarged to the input; M is the mean over 9 x 9, H binary
entropy in nats. Where H(M(p)) exceeds M(H(p)), pixels contradict each other. The sum over the maps, its largest value
in each block of 32 x 32, and the mean over the blocks is a class's figure; the weighted sum over classes the score.

On a CPU with numba a compiled kernel does this (mining.aldd_kernel) and leaves out maps of a block that are proven to
change the score by less than max(2e-4 x score, 1e-7): see `bounds`. Elsewhere torch does it, class by class.
"""

from __future__ import annotations

import functools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mining.scored import Look, Scored
from utils.settings import MiningConfig

if TYPE_CHECKING:
    from models.decode import RawMaps

LOGGER = logging.getLogger("mining")

WINDOW, BLOCK = 9, 32
FIRST_SHARE = 0.1  # of the units, those of the largest bounds: what they give tells how much may be left out
RELATIVE, ABSOLUTE = 1.5e-4, 0.5e-7  # of a score, below what SPEC allows: arithmetic takes its part

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
    try:
        from mining import aldd_kernel  # noqa: F401
    except (ImportError, RuntimeError) as error:
        LOGGER.warning("aldd: is computed without numba, several times slower: %s", str(error).split("\n", 1)[0])
        return False
    return True


def class_names_of(config: MiningConfig) -> tuple[str, ...]:
    """Name the parts of a score."""
    return config.class_names


def class_figures(raw: RawMaps, input_hw: tuple[int, int], weights: Floats) -> list[float]:
    """Give each class's figure times its weight, for the one picture of `raw`; a class of weight 0 is skipped."""
    used = np.flatnonzero(weights)
    figures = np.zeros(len(weights))
    if len(used):
        can_compile = not raw.levels[0].is_cuda and min(input_hw) >= BLOCK and has_kernel()
        compute = compiled_figures if can_compile else torch_figures
        figures[used] = compute(raw, input_hw, used, weights[used])
    return [float(figure) for figure in figures * weights]


# ---- torch -----------------------------------------------------------------------------------------------------------


def torch_figures(raw: RawMaps, input_hw: tuple[int, int], used: Any, weights: Floats) -> Floats:
    """Compute the figures of some classes one by one: memory for the maps of one class at the size of the input."""
    import torch
    from torch.nn import functional as F

    figures = []
    with torch.inference_mode():
        for class_id in used.tolist():
            total: Any = 0
            for level in raw.levels:  # (1, H, W, na, 5 + nc)
                p = (level[..., 4].sigmoid() * level[..., 5 + class_id].sigmoid()).permute(0, 3, 1, 2)  # (1, na, H, W)
                p = F.interpolate(p, size=input_hw, mode="bilinear", align_corners=False)
                gap = _entropy(_mean(p)) - _mean(_entropy(p))
                total = total + gap.sum(dim=1)  # (1, H, W)
            pool = min(BLOCK, *input_hw) if min(input_hw) < BLOCK else BLOCK
            sides = tuple(min(pool, side) if side < BLOCK else BLOCK for side in input_hw)
            blocks = F.max_pool2d(total[:, None], sides)
            figures.append(float(blocks.double().mean()))
    return np.array(figures)


def _mean(p: Any) -> Any:
    from torch.nn import functional as F

    return F.avg_pool2d(p, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)


def _entropy(p: Any) -> Any:
    import torch

    return -torch.xlogy(p, p) - (1 - p) * torch.log1p(-p.clamp(max=1 - 2**-24))


# ---- compiled --------------------------------------------------------------------------------------------------------


def compiled_figures(raw: RawMaps, input_hw: tuple[int, int], used: Any, weights: Floats) -> Floats:
    """Compute the figures of some classes by the kernel."""
    return UnitSums(raw, input_hw, used).figures(weights)


class UnitSums:
    """One picture's maps laid out for the kernel. A unit is a class (of those used) and a block."""

    def __init__(self, raw: RawMaps, input_hw: tuple[int, int], used: Any) -> None:
        import torch

        from mining import aldd_kernel

        self._kernel = aldd_kernel
        self._threads = torch.get_num_threads()
        self._input_hw = input_hw
        height, width = input_hw
        self.blocks_hw = height // BLOCK, width // BLOCK
        flat, offsets, widths, levels = [], [0], [], []
        with torch.inference_mode():
            chosen = torch.as_tensor(used)
            for number, level in enumerate(raw.levels):
                _, rows, columns, anchors, channels = level.shape
                # Classes first, before the sigmoid: it then runs over memory that lies in one piece.
                logits = level[0].permute(3, 2, 0, 1)  # (5 + nc, na, H, W)
                classes = logits[5:] if len(used) == channels - 5 else logits[5 + chosen]
                p = classes.contiguous().sigmoid_() if classes.data_ptr() != level.data_ptr() else classes.sigmoid()
                flat.append((p * logits[4].contiguous().sigmoid()).flatten(1))  # (nc, na H W)
                for _ in range(anchors):
                    offsets.append(offsets[-1] + rows * columns)
                    widths.append(columns)
                    levels.append(number)
            self._p = torch.cat(flat, dim=1).numpy()
        self._offsets, self._widths = np.array(offsets[:-1]), np.array(widths)
        self._levels = np.array(levels)
        grids = [(level.shape[1], level.shape[2]) for level in raw.levels]
        longest = max(input_hw)
        shape = len(grids), longest
        self._cells, self._next_columns, self._next_rows = (np.zeros(shape, np.int64) for _ in range(3))
        self._shares = np.zeros(shape, np.float32)
        # The centres of a window's first and last px are 8 px apart; a step's slope holds within one cell's length.
        self._reaches = np.array([(WINDOW - 1) / (height // rows) for rows, _ in grids], np.float32)
        self._row_ranges = np.zeros((len(grids), self.blocks_hw[0], 2), np.int64)
        self._column_ranges = np.zeros((len(grids), self.blocks_hw[1], 2), np.int64)
        for number, (rows, columns) in enumerate(grids):
            scale = height // rows  # the same on both axes
            source = np.maximum((np.arange(longest) + 0.5) / scale - 0.5, 0)
            self._cells[number] = source.astype(np.int64)
            self._shares[number] = source - self._cells[number]
            self._next_columns[number] = np.minimum(self._cells[number] + 1, columns - 1)
            self._next_rows[number] = np.minimum(self._cells[number] + 1, rows - 1)
            for ranges, side in ((self._row_ranges, height), (self._column_ranges, width)):
                last = self._next_rows if ranges is self._row_ranges else self._next_columns
                for block in range(ranges.shape[1]):
                    first_px, end_px = max(BLOCK * block - 4, 0), min(BLOCK * block + BLOCK + 4, side)
                    ranges[number, block] = self._cells[number, first_px], last[number, end_px - 1]

    def extremes(self) -> tuple[Any, Any, Any]:
        """Give the least and the largest p around each block, and how far those of one window can lie apart.

        returns: (nc, rows, columns, maps) fp32 each.
        """
        shape = (len(self._p), *self.blocks_hw, len(self._offsets))
        least, largest, spread = (np.empty(shape, np.float32) for _ in range(3))

        def run(first: int, end: int) -> None:
            self._kernel.extremes(
                self._p, self._offsets, self._widths, self._levels, self._row_ranges, self._column_ranges,
                self._reaches, first, end, least, largest, spread,
            )  # fmt: skip

        self._share_out(len(self._p), run)
        return least, largest, spread

    def run(self, units: Any, largest: Any, keep: Any) -> Any:
        """Give the figure of each of (K, 3) units, from the maps that (K, maps) keep names: (K,) fp32."""
        out = np.zeros(len(units), np.float32)

        def run(first: int, end: int) -> None:
            part = slice(first, end)
            self._kernel.run_units(
                self._p, self._offsets, self._widths, self._levels, self._cells, self._next_columns, self._shares,
                self._next_rows, *self._input_hw, units[part], largest[part], keep[part], out[part],
            )  # fmt: skip

        self._share_out(len(units), run)
        return out

    def _share_out(self, count: int, run: Any) -> None:
        """Run parts in threads: numba lets go of the interpreter, and each unit is one thread's alone."""
        bounds = np.linspace(0, count, self._threads * 4 + 1).astype(int).tolist()
        parts = [(first, end) for first, end in zip(bounds, bounds[1:]) if end > first]
        if self._threads == 1 or len(parts) < 2:
            for first, end in parts:
                run(first, end)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda part: run(*part), parts))

    def figures(self, weights: Floats, prunes: bool = True) -> Floats:
        """Give each class's figure."""
        rows, columns = self.blocks_hw
        classes, blocks = len(self._p), rows * columns
        least, largest, spread = self.extremes()
        largest = largest.reshape(classes * blocks, -1)
        units = np.stack(np.meshgrid(np.arange(classes), np.arange(rows), np.arange(columns), indexing="ij"), -1)
        units = units.reshape(-1, 3)
        keep = np.ones(largest.shape, np.bool_)
        sums = np.zeros(len(units), np.float32)
        rest: Any = np.arange(len(units))
        if prunes:
            shares = np.repeat(weights, blocks)[:, None] / blocks  # of the score, of each unit's figure
            limits = bounds(least.reshape(largest.shape), largest, spread.reshape(largest.shape)) * shares  # (K, maps)
            order = np.argsort(-limits.sum(axis=1), kind="stable")
            first, rest = np.split(order, [math.ceil(FIRST_SHARE * len(units))])
            sums[first] = self.run(units[first], largest[first], keep[first])
            known = float((sums[first].astype(np.float64) * shares[first, 0]).sum())
            allowed = max(RELATIVE * known, ABSOLUTE)
            small = np.sort(limits[rest], axis=None)
            count = int(np.searchsorted(np.cumsum(small), allowed))
            threshold = small[count] if count < len(small) else math.inf  # those below it add up to less than allowed
            keep[rest] = limits[rest] >= threshold
            rest = rest[keep[rest].any(axis=1)]
        sums[rest] = self.run(units[rest], largest[rest], keep[rest])
        figures: Floats = sums.reshape(classes, blocks).astype(np.float64).mean(axis=1)
        return figures


def bounds(least: Any, largest: Any, spread: Any) -> Floats:
    """Give what the gap of a window can't exceed whose p lie between two values, at most `spread` apart: fp64.

    H is concave, so on [a, b] it lies above its chord: M(H(p)) >= chord(M(p)), and the gap is at most the largest
    distance of H from its chord, which is where H' equals the chord's slope: p = 1 / (1 + e^slope). Up to 1/2 H bends
    the less the larger p is: of all intervals of a width the lowest has the largest distance.
    """
    a, b = np.asarray(least, np.float64), np.asarray(largest, np.float64)
    b = np.where(b <= 0.5, np.minimum(b, a + np.asarray(spread, np.float64) * (1 + 1e-5) + 1e-12), b)
    h_a, h_b = _entropy_exact(a), _entropy_exact(b)
    width = b - a
    slope = np.divide(h_b - h_a, width, out=np.zeros_like(a), where=width > 0)
    peak = np.clip(1 / (1 + np.exp(np.clip(slope, -700, 700))), a, b)
    distance: Floats = np.maximum(_entropy_exact(peak) - (h_a + slope * (peak - a)), 0)
    # A width near the rounding of p itself says nothing of the slope; this is always valid.
    return np.where(width > 1e-9, distance * (1 + 1e-9) + 1e-15, 0) if distance.size else distance


def _entropy_exact(p: Floats) -> Floats:
    p = np.clip(p, 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
        second = np.where(p < 1, (1 - p) * np.log1p(-np.where(p < 1, p, 0)), 0)
    entropy: Floats = -first - second
    return entropy
