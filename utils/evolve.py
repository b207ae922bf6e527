"""Evolution of hyperparameters: which set is tried next, and what is kept of those tried. No torch here.

A generation is one training. The first tries the set that was given; each later one changes one of the best by chance.
What is tried is a function of the seed and the table of earlier generations, so an evolution that goes on after a stop
tries what it would have tried.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

import numpy as np
import yaml

from utils.errors import ConfigError
from utils.files import read_bytes, write_whole
from utils.hyp import Hyp, hyp_as_dict
from utils.metrics import MAP50_WEIGHT, MAP_WEIGHT
from utils.plots import new_figure, save_figure
from utils.train_log import COLUMNS, VALIDATED, padded

LOG = logging.getLogger(__name__)

EVOLVE_CSV, HYP_YAML, EVOLVE_PNG = "evolve.csv", "hyp_evolve.yaml", "evolve.png"
MAX_CSV_BYTES = 100_000_000
PARENTS = 5  # the best ones, of which one is chosen
LEAST_WEIGHT = 1e-6  # of the worst of them
PROBABILITY = 0.8  # that a value is changed
SIGMA = 0.2
FACTORS = (0.3, 3.0)  # least and largest change


@dataclass(frozen=True)
class Bounds:
    """How a hyperparameter is changed: in what measure, and between what values it stays."""

    gain: float  # 0: never changed
    low: float
    high: float


# YOLOv5's (facts: --evolve).
META: Mapping[str, Bounds] = MappingProxyType(
    {
        "lr0": Bounds(1, 1e-5, 0.1),
        "lrf": Bounds(1, 0.01, 1.0),
        "momentum": Bounds(0.3, 0.6, 0.98),
        "weight_decay": Bounds(1, 0.0, 0.001),
        "warmup_epochs": Bounds(1, 0.0, 5.0),
        "warmup_momentum": Bounds(1, 0.0, 0.95),
        "warmup_bias_lr": Bounds(1, 0.0, 0.2),
        "box": Bounds(1, 0.02, 0.2),
        "cls": Bounds(1, 0.2, 4.0),
        "cls_pw": Bounds(1, 0.5, 2.0),
        "obj": Bounds(1, 0.2, 4.0),
        "obj_pw": Bounds(1, 0.5, 2.0),
        "iou_t": Bounds(0, 0.1, 0.7),
        "anchor_t": Bounds(1, 2.0, 8.0),
        "anchors": Bounds(2, 2.0, 10.0),
        "fl_gamma": Bounds(0, 0.0, 2.0),
        "hsv_h": Bounds(1, 0.0, 0.1),
        "hsv_s": Bounds(1, 0.0, 0.9),
        "hsv_v": Bounds(1, 0.0, 0.9),
        "degrees": Bounds(1, 0.0, 45.0),
        "translate": Bounds(1, 0.0, 0.9),
        "scale": Bounds(1, 0.0, 0.9),
        "shear": Bounds(1, 0.0, 10.0),
        "perspective": Bounds(0, 0.0, 0.001),
        "flipud": Bounds(1, 0.0, 1.0),
        "fliplr": Bounds(0, 0.0, 1.0),
        "mosaic": Bounds(1, 0.0, 1.0),
        "mixup": Bounds(1, 0.0, 1.0),
        "copy_paste": Bounds(1, 0.0, 1.0),
    }
)


@dataclass(frozen=True)
class Generation:
    """One set of hyperparameters that was trained with, and the last validation's figures (0 where there are none)."""

    hyp: Hyp
    precision: float
    recall: float
    map50: float
    map: float
    val_box: float
    val_obj: float
    val_cls: float

    @property
    def fitness(self) -> float:
        """YOLOv5's measure of a model; 0.0 for one that has no figures, because its training broke down."""
        fitness = MAP50_WEIGHT * self.map50 + MAP_WEIGHT * self.map
        return fitness if math.isfinite(fitness) else 0.0


# ---- what is tried ---------------------------------------------------------------------------------------------------


def next_hyp(table: Sequence[Generation], given: Hyp, seed: int) -> Hyp:
    """Give the set to try after those of the table: the given one first, then one's descendant. seed: 0 or more."""
    if not table:
        return given
    rng = np.random.default_rng([seed, len(table)])
    return mutate(choose_parent(table, rng).hyp, rng)


def choose_parent(table: Sequence[Generation], rng: np.random.Generator) -> Generation:
    """Choose one of the five best by chance, the fitter the likelier: weights are fitness - their least + 1e-6."""
    best = sorted(table, key=lambda generation: -generation.fitness)[:PARENTS]  # of equals the earlier
    weights = np.array([generation.fitness for generation in best])
    weights = weights - weights.min() + LEAST_WEIGHT
    return best[int(rng.choice(len(best), p=weights / weights.sum()))]


def mutate(parent: Hyp, rng: np.random.Generator) -> Hyp:
    """Give another set: about four values of five are multiplied by a factor near 1, and all lie within META's bounds.

    factor = 1 + gain N(0, 1) U(0, 1) 0.2, cut to 0.3..3; U is one number for all values, so that small and large steps
    are tried. Values have five digits, as the table keeps them; a value of 0 stays 0.
    """
    start = child = _within_bounds(hyp_as_dict(parent))  # first: from far outside no factor would lead back in
    values = hyp_as_dict(start)
    gains = np.array([META[key].gain for key in values])
    while child == start:
        is_changed = rng.random(len(gains)) < PROBABILITY
        steps = gains * is_changed * rng.standard_normal(len(gains)) * rng.random() * SIGMA
        factors = np.clip(1 + steps, *FACTORS).tolist()
        child = _within_bounds({key: value * factor for (key, value), factor in zip(values.items(), factors)})
    return child


def _within_bounds(values: Mapping[str, float]) -> Hyp:
    numbers: dict[str, Any] = {
        key: _five_digits(min(max(value, META[key].low), META[key].high)) for key, value in values.items()
    }
    return Hyp(**numbers)


def _five_digits(value: float) -> float:
    return float(f"{value:.5g}")


# ---- what is kept ----------------------------------------------------------------------------------------------------


class EvolveLog:
    """The generations in a folder: evolve.csv, hyp_evolve.yaml (the best so far) and evolve.png.

    What an earlier run left in evolve.csv is gone on with.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder where it isn't there, and read evolve.csv. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        path = folder / EVOLVE_CSV
        self._table = list(read_evolution(path)) if path.exists() else []

    @property
    def table(self) -> tuple[Generation, ...]:
        """All generations so far, as the file holds them."""
        return tuple(self._table)

    def record(self, generation: Generation) -> None:
        """Add a generation, its numbers cut to five digits; write evolve.csv and hyp_evolve.yaml, each in one step."""
        self._table.append(_rounded(generation))
        write_whole(self._folder / EVOLVE_CSV, evolution_text(self._table).encode())
        write_whole(self._folder / HYP_YAML, best_hyp_text(self._table).encode())

    def draw(self) -> None:
        """Write evolve.png, two seconds' work; without any generation there is nothing to draw."""
        if self._table:
            draw_evolution(self._table, self._folder / EVOLVE_PNG)


def _rounded(generation: Generation) -> Generation:
    """Give a generation as the file holds it: what follows must not depend on a stop in between."""
    figures = {name: _five_digits(getattr(generation, name)) for name in VALIDATED}
    numbers: dict[str, Any] = {key: _five_digits(value) for key, value in hyp_as_dict(generation.hyp).items()}
    return Generation(Hyp(**numbers), **figures)


def best_place(table: Sequence[Generation]) -> int:
    """Give the place of the fittest generation, of equals the first. The table must not be empty."""
    return max(range(len(table)), key=lambda place: table[place].fitness)


def evolution_text(table: Sequence[Generation]) -> str:
    """Give the text of evolve.csv: YOLOv5's columns, a line for each generation; a cell without value is empty."""
    keys = [field.name for field in fields(Hyp) if field.name != "anchors"]
    if any(generation.hyp.anchors is not None for generation in table):
        keys.append("anchors")
    lines = [padded([*(COLUMNS[name] for name in VALIDATED), *keys])]
    for generation in table:
        values = [getattr(generation, name) for name in VALIDATED] + [getattr(generation.hyp, key) for key in keys]
        lines.append(padded("" if value is None else f"{value:.5g}" for value in values))
    return "".join(lines)


def read_evolution(path: Path) -> tuple[Generation, ...]:
    """Read evolve.csv; what is no generation of ours is left out with a warning. Raises ConfigError: no such file."""
    text = read_bytes(path, MAX_CSV_BYTES, ConfigError).decode("utf-8", "replace")
    head, *lines = text.splitlines() or [""]
    columns = [cell.strip() for cell in head.split(",")]
    needed = [COLUMNS[name] for name in VALIDATED] + [field.name for field in fields(Hyp) if field.name != "anchors"]
    if sorted({*columns, "anchors"}) != sorted([*needed, "anchors"]) or len(columns) != len(set(columns)):
        LOG.warning("%s: has other columns than ours, its rows are left out", path)
        return ()
    table = []
    for number, line in enumerate(lines, start=2):
        generation = _parse_generation(columns, line)
        if generation is None:
            LOG.warning("%s line %d: is no generation of %d numbers, left out", path, number, len(columns))
        else:
            table.append(generation)
    return tuple(table)


def _parse_generation(columns: Sequence[str], line: str) -> Optional[Generation]:
    cells = dict(zip(columns, line.split(",")))
    if line.count(",") != len(columns) - 1:
        return None
    if not cells.get("anchors", "").strip():
        cells.pop("anchors", None)
    with suppress(ValueError, ConfigError):  # no number; no set of hyperparameters
        values: dict[str, Any] = {column: float(cell) for column, cell in cells.items()}
        figures = {name: values.pop(COLUMNS[name]) for name in VALIDATED}
        return Generation(Hyp(**values), **figures)
    return None


def best_hyp_text(table: Sequence[Generation]) -> str:
    """Give the text of hyp_evolve.yaml: the fittest set, which read_hyp reads, and where it comes from as comments."""
    place = best_place(table)
    best = table[place]
    figures = "".join(f"#   {COLUMNS[name]}: {getattr(best, name):.5g}\n" for name in VALIDATED)
    origin = f"# The fittest of {len(table)} generations: {place} (from 0), fitness {best.fitness:.5g}\n"
    return origin + figures + yaml.safe_dump(hyp_as_dict(best.hyp), sort_keys=False)


def draw_evolution(table: Sequence[Generation], path: Path) -> Path:
    """Draw fitness over each hyperparameter as a PNG: later generations darker, the fittest marked and told."""
    from matplotlib.ticker import MaxNLocator

    best = best_place(table)
    fitness = [generation.fitness for generation in table]
    rows = [hyp_as_dict(generation.hyp) for generation in table]
    figure = new_figure(15, 12)
    grid = figure.subplots(5, 6)
    figure.subplots_adjust(0.05, 0.03, 0.99, 0.97, wspace=0.1, hspace=0.4)
    keys = [key for key in META if any(key in row for row in rows)]
    for axes in grid.flat[len(keys) :]:
        axes.set_axis_off()
    for axes, key in zip(grid.flat, keys):
        values = [row.get(key, math.nan) for row in rows]
        axes.scatter(values, fitness, c=range(len(table)), cmap="Blues", vmin=-0.5 * len(table), s=14, alpha=0.8)
        axes.plot(values[best], fitness[best], marker="+", color="#d9480f", markersize=14, markeredgewidth=2)
        axes.set_title(f"{key} = {values[best]:.4g}", fontsize=10)
        axes.tick_params(labelsize=7, labelleft=axes in grid[:, 0])  # heights are the same in all
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    figure.supylabel("fitness", x=0.008, fontsize=11)
    return save_figure(figure, path)
