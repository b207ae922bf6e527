"""aldd's sums for one picture, compiled: block by block, with no map ever laid out at the size of the input.

A unit is a class and a block of 32 x 32 input px. For each of its maps p is interpolated on the block and 4 px around
it, its entropy H formed there, both averaged over 9 x 9 windows, and the gap H(M(p)) - M(H(p)) added up; its figure is
the largest sum of its pixels. Logarithms are a polynomial that the compiler can compute eight at a time; below 0.05
entropy is a series, in which the linear terms, of which most would cancel, are exact (facts: mining, ALDD).

Memory: 60 KB a thread, whatever the classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK, HALO = 32, 4
FULL = BLOCK + 2 * HALO
SMALL = 0.05  # below it six terms of the series are all that fp32 holds
DEGREE = 7

Arrays = Any


def log_coefficients() -> Arrays:
    """Give c so that ln(1 + t) = t (c0 + c1 t + ...) on sqrt(1/2) <= 1 + t <= sqrt(2), to 2e-7."""
    low, high = np.sqrt(0.5) - 1, np.sqrt(2) - 1
    fitted = np.polynomial.chebyshev.Chebyshev.interpolate(
        lambda t: np.log1p(t) / np.where(t == 0, 1, t) + (t == 0), DEGREE, domain=[low, high]
    )
    return fitted.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)


C0, C1, C2, C3, C4, C5, C6, C7 = log_coefficients()

# Fields of a float's bits: exponents are counted from sqrt(1/2), so that the rest lies around 1.
ROOT_BITS = np.int32(0x3F3504F3)  # sqrt(1/2)
ONE_MINUS_ROOT = np.int32(0x3F800000 - 0x3F3504F3)
MANTISSA = np.int32(0x007FFFFF)
LN2 = np.float32(np.log(2))
ONE = np.float32(1)
K2, K6, K12, K20, K30 = (np.float32(1 / number) for number in (2, 6, 12, 20, 30))  # of the series of (1 - p) ln(1 - p)
FAST = {"contract", "nsz", "nnan", "ninf"}  # no reordering: a picture's figure is the same whatever the machine's load


@intrinsic
def bits_of(typing: Any, x: Any) -> Any:
    """The bits of an fp32 as an int32; numba has no word for it that stays in a register."""
    return types.int32(types.float32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic
def float_of(typing: Any, x: Any) -> Any:
    """The fp32 of an int32's bits."""
    return types.float32(types.int32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.FloatType())


@njit(inline="always")
def log(x: Any) -> Any:  # pragma: no cover
    """The natural logarithm of an fp32 >= 0; 0 counts as a very small number."""
    shifted = bits_of(x) + ONE_MINUS_ROOT
    exponent = np.float32((shifted >> np.int32(23)) - np.int32(127))
    t = float_of((shifted & MANTISSA) + ROOT_BITS) - ONE
    y = C7 * t + C6
    y = y * t + C5
    y = y * t + C4
    y = y * t + C3
    y = y * t + C2
    y = y * t + C1
    y = y * t + C0
    return exponent * LN2 + y * t


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def add_entropies(p: Arrays, out: Arrays, count: int, is_small: bool) -> None:  # pragma: no cover
    """Add the binary entropies, in nats, of `count` probabilities to `out`. is_small: none is above SMALL."""
    if is_small:
        for j in range(count):
            x = p[j]
            out[j] += x * (ONE - log(x) - x * (K2 + x * (K6 + x * (K12 + x * (K20 + x * K30)))))
        return
    for j in range(count):
        x = p[j]
        q = ONE - x
        lost = (ONE - q) - x  # what rounding took from 1 - p
        out[j] += -(x * log(x)) - q * (log(q) + lost * (ONE + x))


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def window_sums(image: Arrays, rows: int, columns: int, across: Arrays, out: Arrays) -> None:  # pragma: no cover
    """Sums over 9 x 9 of (rows, columns) -> (rows - 8, columns - 8), by shifted adds. across: scratch of that width."""
    wide = columns - 8
    for y in range(rows):
        source = image[y]
        target = across[y]
        for x in range(wide):
            a = source[x] + source[x + 1]
            b = source[x + 2] + source[x + 3]
            d = source[x + 4] + source[x + 5]
            e = source[x + 6] + source[x + 7]
            target[x] = ((a + b) + (d + e)) + source[x + 8]
    for y in range(rows - 8):
        target = out[y]
        for x in range(wide):
            a = across[y, x] + across[y + 1, x]
            b = across[y + 2, x] + across[y + 3, x]
            d = across[y + 4, x] + across[y + 5, x]
            e = across[y + 6, x] + across[y + 7, x]
            target[x] = ((a + b) + (d + e)) + across[y + 8, x]


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def run_units(
    p_maps: Arrays,
    offsets: Arrays,
    widths: Arrays,
    levels: Arrays,
    cells: Arrays,
    next_cells: Arrays,
    shares: Arrays,
    next_rows: Arrays,
    side_h: int,
    side_w: int,
    units: Arrays,
    largest: Arrays,
    keep: Arrays,
    out: Arrays,
) -> None:  # pragma: no cover
    """Compute the figure of each unit.

    p_maps: (nc, R) fp32, all maps of a class one after another; offsets, widths, levels: (maps,) of each map. cells,
    next_cells, shares, next_rows: (levels, L) for each input px of an axis: the grid cell before it, the one behind (of
    a column; of a row in next_rows), and the share of that. units: (K, 3) class, block row, block column. largest,
    keep: (K, maps) the largest p around the block; whether a map counts. out: (K,) fp32.
    """
    up = np.zeros((FULL, FULL), np.float32)
    up_flat = up.reshape(-1)
    mean = np.zeros((BLOCK, BLOCK), np.float32)
    mean_flat = mean.reshape(-1)
    total = np.zeros((BLOCK, BLOCK), np.float32)
    total_flat = total.reshape(-1)
    sums = np.zeros((BLOCK, BLOCK), np.float32)
    across = np.zeros((FULL, BLOCK), np.float32)
    wide = np.zeros((FULL + 2, FULL), np.float32)
    of_all = np.zeros(FULL * FULL, np.float32)
    inverse = np.zeros((BLOCK, BLOCK), np.float32)
    zero, one = np.float32(0), np.float32(1)
    for k in range(len(units)):
        class_id, top, left = units[k, 0], units[k, 1] * BLOCK - HALO, units[k, 2] * BLOCK - HALO
        y0, y1 = max(0, -top), min(FULL, side_h - top)
        x0, x1 = max(0, -left), min(FULL, side_w - left)
        is_inside = y0 == 0 and x0 == 0 and y1 == FULL and x1 == FULL
        for y in range(BLOCK):
            high = min(y + 9, y1) - max(y, y0)
            for x in range(BLOCK):
                inverse[y, x] = one / np.float32(high * (min(x + 9, x1) - max(x, x0)))
        total[:] = zero
        of_all[:] = zero
        for m in range(len(offsets)):
            if not keep[k, m]:
                continue
            if not is_inside:
                up[:] = zero
            level, width = levels[m], widths[m]
            source = p_maps[class_id, offsets[m] :]
            # Along the rows of the grid first, of which there are few; then from row to row.
            first_row, last_row = cells[level, top + y0], next_rows[level, top + y1 - 1]
            for row in range(first_row, last_row + 1):
                line = wide[row - first_row]
                start = row * width
                for x in range(x0, x1):
                    a = source[start + cells[level, left + x]]
                    line[x] = a + (source[start + next_cells[level, left + x]] - a) * shares[level, left + x]
            for y in range(y0, y1):
                share = shares[level, top + y]
                upper, lower = wide[cells[level, top + y] - first_row], wide[next_rows[level, top + y] - first_row]
                target = up[y]
                for x in range(x0, x1):
                    target[x] = upper[x] + (lower[x] - upper[x]) * share
            is_small = largest[k, m] < SMALL
            add_entropies(up_flat, of_all, FULL * FULL, is_small)
            window_sums(up, FULL, FULL, across, mean)
            for y in range(BLOCK):
                for x in range(BLOCK):
                    mean[y, x] *= inverse[y, x]
            add_entropies(mean_flat, total_flat, BLOCK * BLOCK, is_small)
        window_sums(of_all.reshape(FULL, FULL), FULL, FULL, across, sums)  # the mean is linear: once for all maps
        for y in range(BLOCK):
            for x in range(BLOCK):
                total[y, x] -= sums[y, x] * inverse[y, x]
        best = total[0, 0]
        for y in range(BLOCK):
            for x in range(BLOCK):
                best = max(best, total[y, x])
        out[k] = best


@njit(nogil=True, cache=True, error_model="numpy")
def extremes(
    p_maps: Arrays,
    offsets: Arrays,
    widths: Arrays,
    levels: Arrays,
    row_ranges: Arrays,
    column_ranges: Arrays,
    reaches: Arrays,
    first_class: int,
    end_class: int,
    least: Arrays,
    largest: Arrays,
    spread: Arrays,
) -> None:  # pragma: no cover
    """The least and the largest grid value that touches each block and its surroundings, and how far values of one
    window can lie apart: the largest steps between cells, times reaches (levels,), a window's share of a cell.

    row_ranges, column_ranges: (levels, blocks, 2) first cell and last one. least, largest, spread: (nc, rows, columns,
    maps).
    """
    for class_id in range(first_class, end_class):
        for m in range(len(offsets)):
            level, width = levels[m], widths[m]
            source = p_maps[class_id, offsets[m] :]
            for by in range(row_ranges.shape[1]):
                for bx in range(column_ranges.shape[1]):
                    low, high = np.float32(2), np.float32(-1)
                    along, down = np.float32(0), np.float32(0)
                    last_y, last_x = row_ranges[level, by, 1], column_ranges[level, bx, 1]
                    for y in range(row_ranges[level, by, 0], row_ranges[level, by, 1] + 1):
                        for x in range(column_ranges[level, bx, 0], column_ranges[level, bx, 1] + 1):
                            value = source[y * width + x]
                            low = min(low, value)
                            high = max(high, value)
                            if x < last_x:
                                along = max(along, abs(source[y * width + x + 1] - value))
                            if y < last_y:
                                down = max(down, abs(source[(y + 1) * width + x] - value))
                    least[class_id, by, bx, m] = low
                    largest[class_id, by, bx, m] = high
                    spread[class_id, by, bx, m] = (along + down) * reaches[level]
