"""aldd's sums for one picture, compiled: block by block, with no map ever laid out at the size of the input.

A unit is a class and a block of 32 x 32 input px. For each of its maps p is interpolated on the block and 4 px around
it, its entropy H formed there, both averaged over 9 x 9 windows, and the gap H(M(p)) - M(H(p)) added up; its figure is
the largest sum of its pixels. Logarithms are a polynomial that the compiler can compute eight at a time; below 0.05
entropy is a series, in which the linear terms, of which most would cancel, are exact (facts: mining, ALDD).

Memory: 60 KB a thread, whatever the classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK, HALO = 32, 4
FULL = BLOCK + 2 * HALO
SMALL, TINY = 0.05, 0.004  # below these six and three terms of the series are all that fp32 holds
DEGREE = 7

Arrays = Any


class Axis(NamedTuple):
    """How input px of one axis lie between the cells of each level's grid.

    The first three are (levels, HALO + L + FULL): px that a block's surroundings reach beyond the input count as the
    outermost ones there.
    """

    cells: Arrays  # the cell before a px
    next_cells: Arrays  # the one behind it; at the end the same
    shares: Arrays  # that one's share, fp32
    taps: Arrays  # (levels, L, T) fp32, T a multiple of 4: a window's mean is these times T cells, from the first on
    first_taps: Arrays  # (levels, L) that first cell
    ranges: Arrays  # (levels, blocks, 2) the first and the last cell that a block and its surroundings touch
    reaches: Arrays  # (levels,) fp32: cells between the centres of a window's first and last px


class Maps(NamedTuple):
    """All maps of some classes of one picture."""

    p: Arrays  # (nc, R) fp32, the maps of a class one after another
    offsets: Arrays  # (maps,) where each begins
    widths: Arrays  # (maps,) its columns
    levels: Arrays  # (maps,) its level
    rows: Axis
    columns: Axis


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
def add_entropies(p: Arrays, out: Arrays, count: int, highest: float) -> None:  # pragma: no cover
    """Add the binary entropies, in nats, of `count` probabilities to `out`. None is above the highest.

    Where that is small each is short of its p: of a gap, which is all that counts, it makes no part.
    """
    if highest < TINY:
        for j in range(count):
            x = p[j]
            out[j] -= x * (log(x) + x * (K2 + x * K6))
        return
    if highest < SMALL:
        for j in range(count):
            x = p[j]
            out[j] -= x * (log(x) + x * (K2 + x * (K6 + x * (K12 + x * (K20 + x * K30)))))
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
def enlarge(
    wide: Arrays, cells: Arrays, next_cells: Arrays, shares: Arrays, level: int, at: int, up: Arrays
) -> None:  # pragma: no cover
    """Interpolate from row to row: rows of the grid -> (FULL, FULL). at: where the block's first px is in the tables.

    No row is taken as an array of its own, here and below: numba would count references to each, which costs more.
    """
    first = cells[level, at]
    for y in range(FULL):
        upper, lower, share = cells[level, at + y] - first, next_cells[level, at + y] - first, shares[level, at + y]
        for x in range(FULL):
            up[y, x] = wide[upper, x] + (wide[lower, x] - wide[upper, x]) * share


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def average(
    wide: Arrays,
    count: int,
    inverse: Arrays,
    taps: Arrays,
    offsets: Arrays,
    level: int,
    at: int,
    first: int,
    means: Arrays,
    out: Arrays,
) -> None:  # pragma: no cover
    """Means over 9 x 9 px, (BLOCK, BLOCK), of `count` rows of the grid that have px in their other axis.

    inverse: one over how many of 9 px of a row lie in the input. at: the block's first px among the taps. first: the
    first row's number in the grid. means: scratch.
    """
    for row in range(count):
        for x in range(BLOCK):
            a = wide[row, x] + wide[row, x + 1]
            b = wide[row, x + 2] + wide[row, x + 3]
            d = wide[row, x + 4] + wide[row, x + 5]
            e = wide[row, x + 6] + wide[row, x + 7]
            means[row, x] = (((a + b) + (d + e)) + wide[row, x + 8]) * inverse[x]
    for y in range(BLOCK):
        for group in range(0, taps.shape[2], 4):  # rows beyond the grid's have no weight
            start = offsets[level, at + y] - first + group
            a, b = taps[level, at + y, group], taps[level, at + y, group + 1]
            d, e = taps[level, at + y, group + 2], taps[level, at + y, group + 3]
            before = ONE if group else ONE - ONE
            for x in range(BLOCK):
                two = means[start, x] * a + means[start + 1, x] * b
                four = two + (means[start + 2, x] * d + means[start + 3, x] * e)
                out[y, x] = min(out[y, x] * before + four, ONE)  # rounding may lift it above 1


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def run_units(
    maps: Maps, side_h: int, side_w: int, units: Arrays, largest: Arrays, keep: Arrays, out: Arrays
) -> None:  # pragma: no cover
    """Compute the figure of each unit of an input of (side_h, side_w) px.

    units: (K, 3) class, block row, block column. largest, keep: (K, maps) the largest p around the block; whether a
    map counts. out: (K,) fp32.
    """
    rows, columns = maps.rows, maps.columns
    up = np.zeros((FULL, FULL), np.float32)
    up_flat = up.reshape(-1)
    mean = np.zeros((BLOCK, BLOCK), np.float32)
    mean_flat = mean.reshape(-1)
    total = np.zeros((BLOCK, BLOCK), np.float32)
    total_flat = total.reshape(-1)
    sums = np.zeros((BLOCK, BLOCK), np.float32)
    across = np.zeros((FULL, BLOCK), np.float32)
    wide = np.zeros((FULL + 2, FULL), np.float32)
    wide_means = np.zeros((FULL + 2 + 12, BLOCK), np.float32)  # and rows of no weight
    of_all = np.zeros((FULL, FULL), np.float32)
    of_all_flat = of_all.reshape(-1)
    inverse = np.zeros((BLOCK, BLOCK), np.float32)
    inverse_width = np.zeros(BLOCK, np.float32)
    zero, one = np.float32(0), np.float32(1)
    for k in range(len(units)):
        class_id, top, left = units[k, 0], units[k, 1] * BLOCK - HALO, units[k, 2] * BLOCK - HALO
        y0, y1 = max(0, -top), min(FULL, side_h - top)
        x0, x1 = max(0, -left), min(FULL, side_w - left)
        for x in range(BLOCK):
            inverse_width[x] = one / np.float32(min(x + 9, x1) - max(x, x0))
        for y in range(BLOCK):
            high = np.float32(min(y + 9, y1) - max(y, y0))
            for x in range(BLOCK):
                inverse[y, x] = inverse_width[x] / high
        total[:] = zero
        of_all[:] = zero
        for m in range(len(maps.offsets)):
            if not keep[k, m]:
                continue
            level, width = maps.levels[m], maps.widths[m]
            source = maps.p[class_id, maps.offsets[m] :]
            # Both steps are linear: first along the grid's rows, of which there are few; then from row to row.
            first_row, last_row = rows.cells[level, top + HALO], rows.next_cells[level, top + HALO + FULL - 1]
            before = columns.cells[level, left + HALO : left + HALO + FULL]
            behind = columns.next_cells[level, left + HALO : left + HALO + FULL]
            share = columns.shares[level, left + HALO : left + HALO + FULL]
            count = last_row - first_row + 1
            for row in range(count):
                start = (first_row + row) * width
                for x in range(FULL):
                    a = source[start + before[x]]
                    wide[row, x] = a + (source[start + behind[x]] - a) * share[x]
            enlarge(wide, rows.cells, rows.next_cells, rows.shares, level, top + HALO, up)
            if x0 or x1 < FULL:
                wide[:, :x0] = zero
                wide[:, x1:] = zero
            at = top + HALO
            average(wide, count, inverse_width, rows.taps, rows.first_taps, level, at, first_row, wide_means, mean)
            highest = largest[k, m]
            add_entropies(up_flat, of_all_flat, FULL * FULL, highest)
            add_entropies(mean_flat, total_flat, BLOCK * BLOCK, highest)
        of_all[:y0] = zero  # beyond the input there is nothing
        of_all[y1:] = zero
        of_all[:, :x0] = zero
        of_all[:, x1:] = zero
        window_sums(of_all, FULL, FULL, across, sums)  # the mean is linear: once for all maps
        best = zero  # no gap is below it, but for rounding
        for y in range(BLOCK):
            for x in range(BLOCK):
                best = max(best, total[y, x] - sums[y, x] * inverse[y, x])
        out[k] = best


@njit(nogil=True, cache=True, error_model="numpy")
def extremes(
    maps: Maps, first_class: int, end_class: int, least: Arrays, largest: Arrays, spread: Arrays
) -> None:  # pragma: no cover
    """The least and the largest grid value that touches each block and its surroundings, and how far values of one
    window can lie apart: the largest steps between cells, times a window's reach in cells.

    least, largest, spread: (nc, rows, columns, maps), filled for some classes.
    """
    row_ranges, column_ranges = maps.rows.ranges, maps.columns.ranges
    for class_id in range(first_class, end_class):
        for m in range(len(maps.offsets)):
            level, width = maps.levels[m], maps.widths[m]
            source = maps.p[class_id, maps.offsets[m] :]
            for by in range(row_ranges.shape[1]):
                for bx in range(column_ranges.shape[1]):
                    low, high = np.float32(2), np.float32(-1)
                    along, down = np.float32(0), np.float32(0)
                    last_y, last_x = row_ranges[level, by, 1], column_ranges[level, bx, 1]
                    for y in range(row_ranges[level, by, 0], last_y + 1):
                        for x in range(column_ranges[level, bx, 0], last_x + 1):
                            value = source[y * width + x]
                            low = min(low, value)
                            high = max(high, value)
                            if x < last_x:
                                along = max(along, abs(source[y * width + x + 1] - value))
                            if y < last_y:
                                down = max(down, abs(source[(y + 1) * width + x] - value))
                    least[class_id, by, bx, m] = low
                    largest[class_id, by, bx, m] = high
                    spread[class_id, by, bx, m] = along * maps.columns.reaches[level] + down * maps.rows.reaches[level]
