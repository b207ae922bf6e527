"""What came out of rounds of labelling: curves, tables and a picture. Others are held against the first method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Callable

import numpy as np

from utils.plots import new_figure, save_figure

RESAMPLES = 10_000
START, ALL = "start", "all"  # stand beside the methods: what all begin with, and everything labelled
START_AGAIN = "start again"  # begins the names of further trainings of one start set


@dataclass(frozen=True)
class Result:
    """One training: what it was of and what it reached."""

    seed: int
    method: str
    round: int
    labelled: tuple[int, ...]  # numbers of the pool's pictures
    boxes: int
    map50: float
    map: float
    tail: float  # mean AP50 of the rare classes
    ap50: tuple[float, ...]  # of each class


Figure = Callable[[Result], float]

COSTS: Mapping[str, Figure] = MappingProxyType(
    {"pictures": lambda one: len(one.labelled), "boxes": lambda one: one.boxes}
)
FINALS: Mapping[str, Figure] = MappingProxyType(
    {"mAP50": lambda one: one.map50, "mAP": lambda one: one.map, "AP50 of the rare": lambda one: one.tail}
)


@dataclass(frozen=True)
class Curves:
    """Each method's results by seed and round, its start first."""

    of: Mapping[tuple[int, str], Sequence[Result]]
    methods: tuple[str, ...]
    seeds: int
    others: tuple[Result, ...]  # everything labelled; the start set trained again

    def finals(self, method: str) -> dict[str, list[float]]:
        """Give each figure of a method's last round, seed by seed."""
        return {
            name: [figure(self.of[seed, method][-1]) for seed in range(self.seeds)] for name, figure in FINALS.items()
        }

    def differences(self, method: str, other: str) -> dict[str, list[float]]:
        """Give how much better a method is than another, seed by seed.

        At the end; and on average over the labelling that both have paid for, counted in pictures and in boxes.
        """
        ours, theirs = self.finals(method), self.finals(other)
        found = {name: [a - b for a, b in zip(ours[name], theirs[name])] for name in ours}
        for name, cost in COSTS.items():
            found[f"mean mAP50 over {name}"] = [
                self._mean(seed, method, other, cost) - self._mean(seed, other, method, cost)
                for seed in range(self.seeds)
            ]
        return found

    def _mean(self, seed: int, method: str, other: str, cost: Figure) -> float:
        curve = self.of[seed, method]
        most = min(cost(curve[-1]), cost(self.of[seed, other][-1]))
        return mean_height([cost(one) for one in curve], [one.map50 for one in curve], most)


def curves_of(results: Sequence[Result], methods: Sequence[str], seeds: int) -> Curves:
    """Sort results into curves."""
    by = {(one.seed, one.method, one.round): one for one in results}
    rounds = max(one.round for one in results)
    of = {
        (seed, method): [by[seed, START, 0], *(by[seed, method, number] for number in range(1, rounds + 1))]
        for seed in range(seeds)
        for method in methods
    }
    return Curves(of, tuple(methods), seeds, tuple(one for one in results if one.method not in methods))


def mean_height(xs: Sequence[float], ys: Sequence[float], most: float) -> float:
    """Give the mean height of a curve between its first x and `most`, in straight lines from point to point."""
    inner = [x for x in xs if x < most]
    corners = np.array([*inner, most])
    heights = np.interp(corners, xs, ys)
    if len(corners) == 1:
        return float(heights[0])
    areas = np.diff(corners) * (heights[1:] + heights[:-1]) / 2
    return float(areas.sum() / (corners[-1] - corners[0]))


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Give the mean of paired differences and its 95 % interval, by drawing seeds again and again."""
    values = np.array(differences)
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


# ---- shown -----------------------------------------------------------------------------------------------------------


def report(curves: Curves) -> str:
    """Give the tables, as markdown."""
    lines = [*_means_table(curves), "", "Difference to random, paired by seed, and its 95 % interval:", ""]
    lines += [*_differences_table(curves), "", _noise(curves), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), _row(["---"] * len(names))]


def _means_table(curves: Curves) -> list[str]:
    lines = _head(["method", "boxes", *FINALS])
    for method in curves.methods:
        boxes = np.mean([curves.of[seed, method][-1].boxes for seed in range(curves.seeds)])
        means = (f"{np.mean(column):.3f}" for column in curves.finals(method).values())
        lines.append(_row([method, f"{boxes:.0f}", *means]))
    everything = [one for one in curves.others if one.method == ALL]
    if everything:
        means = (f"{np.mean([figure(one) for one in everything]):.3f}" for figure in FINALS.values())
        name = f"all {len(everything[0].labelled)}"
        lines.append(_row([name, str(everything[0].boxes), *means]))
    return lines


def _differences_table(curves: Curves) -> list[str]:
    first = curves.methods[0]
    lines = _head(["method", *curves.differences(first, first)])
    for method in curves.methods[1:]:
        cells = []
        for differences in curves.differences(method, first).values():
            mean, low, high = interval(differences)
            told = "" if low > 0 or high < 0 else ", not distinguishable"
            cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f}{told})")
        lines.append(_row([method, *cells]))
    return lines


def _noise(curves: Curves) -> str:
    starts = [curves.of[seed, curves.methods[0]][0] for seed in range(curves.seeds)]
    again = [starts[0].map50, *(one.map50 for one in curves.others if one.method.startswith(START_AGAIN))]
    before = f"Before the first round: mAP50 {np.mean([one.map50 for one in starts]):.3f}."
    if len(again) < 2:
        return before
    told = f"mAP50 {min(again):.3f} to {max(again):.3f}, standard deviation {np.std(again, ddof=1):.3f}"
    return f"{before} One start set trained {len(again)} times, only the training's seed differs: {told}."


def draw(curves: Curves, path: Path) -> None:
    """Draw mAP50 over pictures and over boxes, means of the seeds."""
    figure = new_figure(11, 5)
    for place, (title, cost) in enumerate(COSTS.items(), 1):
        axes = figure.add_subplot(1, 2, place)
        for method in curves.methods:
            rows = [[(cost(one), one.map50) for one in curves.of[seed, method]] for seed in range(curves.seeds)]
            xs, ys = np.mean(rows, axis=0).T
            style = "--" if method in (curves.methods[0], "oracle") else "-"
            axes.plot(xs, ys, marker="o", linestyle=style, label=method)
        axes.set_xlabel(f"{title} labelled")
        axes.set_ylabel("mAP50 on the balanced test set")
        axes.grid(color="0.92")
        if place == 1:
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
