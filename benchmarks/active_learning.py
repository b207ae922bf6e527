"""Does mining help? Rounds of labelling on a drawn pool whose rare classes are known, each method against chance.

python -m benchmarks.active_learning [--to DIR] [--seeds 3] [--jobs 2]     # an hour or more; goes on where it was
python -m benchmarks.active_learning --quick                              # one seed and few steps: no figures

All methods of a seed begin with the same pictures and end each round with a training of the same length from the same
weights; only what they label differs. Every training and mining is a task run by start.py. Results: one result.json a
training, results.md and results.png in the folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # one thread for each of --jobs, before torch

import numpy as np
import yaml

from benchmarks.drawn_pool import BALANCED, COMMON, NAMES, POOL_SCENERY, REPEATED, SIDE, TAIL, Shown, boxes_of, draw_set
from benchmarks.labelling import ALL, START, START_AGAIN, Result, curves_of, draw, report
from make_task import TaskOptions, make_task
from utils.files import write_whole
from utils.stats import FILE_NAME as STATS

METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "random": {"mining_algorithm": "random"},
        "entropy": {"mining_algorithm": "entropy"},
        "aldd": {"mining_algorithm": "aldd"},
        "cald": {"mining_algorithm": "cald"},
        "cald ymir": {"mining_algorithm": "cald", "cald_mode": "ymir"},
        "oracle": {},  # knows the labels: those with the rarest classes first
        "aldd + diversity, balance": {"mining_algorithm": "aldd", "diversity": 1, "class_balance": 1, "dedup": True},
    }
)
HYP = MappingProxyType({"lr0": 0.003, "lrf": 0.05, "mosaic": 0.0, "scale": 0.3, "flipud": 0.5, "warmup_epochs": 0.0})
# The last epoch's weights, whatever they reach: nothing is chosen by validation.
OPTIONS = "--hyp /in/hyp.yaml --optimizer AdamW --cache ram --noval --noautoanchor --noplots"
BATCH = 8


@dataclass(frozen=True)
class Plan:
    """The size of an experiment."""

    seeds: int = 3
    steps: int = 240  # of each training, in batches of 8
    base_steps: int = 1000  # of the first model, on common classes
    pool: int = 800
    test: int = 400
    base: int = 300
    start: int = 64  # pictures labelled before the first round
    added: int = 48  # in each round
    rounds: int = 3
    repeats: int = 5  # trainings of one start set, for the noise


QUICK = Plan(seeds=1, steps=8, base_steps=16, pool=100, test=24, base=32, start=16, added=16, rounds=2, repeats=2)


@dataclass(frozen=True)
class World:
    """Where all lies, and the pool's pictures with their true classes."""

    folder: Path
    plan: Plan

    @property
    def data(self) -> Path:
        """The drawn pictures."""
        return self.folder / "data"

    @property
    def base(self) -> Path:
        """The weights that every training starts from."""
        return self.folder / "base" / "best.pt"

    def unit(self, seed: int, method: str, number: int) -> Path:
        """Give the folder of one training."""
        return self.folder / "runs" / f"{seed}-{method.replace(' ', '-').replace(',', '')}-{number}"

    def pool(self) -> list[Shown]:
        """Read the pool from the disk."""
        shown = []
        for image in sorted((self.data / "images/pool").glob("*.jpg")):
            label = self.data / "labels/pool" / f"{image.stem}.txt"
            shown.append(Shown(image, label, tuple(int(line.split()[0]) for line in label.read_text().splitlines())))
        return shown


# ---- one training, one choice ----------------------------------------------------------------------------------------


def train(world: World, images: Sequence[Path], folder: Path, seed: int, steps: int, weights: Optional[Path]) -> Path:
    """Train a number of steps on some pictures, as a task; give its models' folder."""
    from start import main

    shutil.rmtree(folder, ignore_errors=True)
    settings = {
        "model": "yolov5n",
        "img_size": SIDE,
        "epochs": max(round(steps / -(-len(images) // BATCH)), 1),
        "batch_size_per_gpu": BATCH,
        "nominal_batch": BATCH,
        "num_workers_per_gpu": 0,
        "seed": seed,
        "args_options": OPTIONS if weights else f"--weights '' {OPTIONS}",
    }
    data = write_data(folder / "data.yaml", images, val=str(world.data / "images/val"))
    made = make_task(data, folder, "train", TaskOptions(weights=(weights,) if weights else (), settings=settings))
    write_whole(made.in_dir / "hyp.yaml", yaml.safe_dump(dict(HYP)).encode())
    if main(["--in", str(made.in_dir), "--out", str(made.out_dir)]):
        raise SystemExit(f"{folder}: training failed")
    return made.out_dir / "models"


def write_data(path: Path, images: Sequence[Path], **more: str) -> Path:
    """Write a data.yaml whose train split is a list of pictures."""
    listed = path.with_suffix(".txt")
    write_whole(listed, "".join(f"{image}\n" for image in images).encode())
    content = {"train": str(listed), "names": list(NAMES), **more}
    write_whole(path, yaml.safe_dump(content).encode())
    return path


def measure(world: World, weights: Path) -> tuple[float, float, list[float]]:
    """Validate on the test set; give mAP50, mAP and AP50 of each class."""
    from utils.settings import LoaderSettings
    from val import SaveSettings, ValSettings, validate

    data = world.folder / "test.yaml"
    settings = ValSettings(data, weights, loader=LoaderSettings(img_size=SIDE, batch_size=BATCH, workers=0))
    metrics = validate(settings, SaveSettings(plots=False)).evaluation.metrics
    ap50 = {one.class_id: one.ap50 for one in metrics.classes}
    return metrics.map50, metrics.map, [ap50.get(number, 0.0) for number in range(len(NAMES))]


def choose(
    world: World, pool: Sequence[Shown], labelled: Sequence[int], method: str, models: Path, seed: int
) -> list[int]:
    """Give the numbers of the pictures that a method labels next."""
    rest = [number for number in range(len(pool)) if number not in set(labelled)]
    if method == "oracle":
        return rarest_first(pool, rest, seed)[: world.plan.added]
    from start import main

    folder = models.parent.parent / f"mining-{method.replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    data = write_data(folder / "data.yaml", [pool[number].image for number in rest])
    settings = {
        "img_size": SIDE,
        "num_workers_per_gpu": 0,
        "seed": seed,
        "budget": world.plan.added,
        **METHODS[method],
    }
    made = make_task(data, folder, "mining", TaskOptions(weights=(models / "best.pt",), settings=settings))
    shutil.copy(models / STATS, next((made.in_dir / "models").rglob("best.pt")).parent)
    if main(["--in", str(made.in_dir), "--out", str(made.out_dir)]):
        raise SystemExit(f"{folder}: mining failed")
    lines = (made.out_dir / "result.tsv").read_text().splitlines()[: world.plan.added]
    chosen = [int(Path(line.split("\t")[0]).stem) for line in lines]
    shutil.rmtree(folder)
    return chosen


def rarest_first(pool: Sequence[Shown], numbers: Sequence[int], seed: int) -> list[int]:
    """Order pictures by how rare the classes are that they show: what no method can know."""
    counts = np.maximum(np.bincount([one for shown in pool for one in shown.class_ids], minlength=len(NAMES)), 1)
    chance = np.random.default_rng([seed, 7]).random(len(pool))
    worth = {number: sum(1 / counts[one] for one in set(pool[number].class_ids)) for number in numbers}
    return sorted(numbers, key=lambda number: (-worth[number], chance[number]))


def run_unit(
    world: World, pool: Sequence[Shown], key: tuple[int, str, int], labelled: Sequence[int], training_seed: int
) -> Result:
    """Train and measure, or read what an earlier run found."""
    seed, method, number = key
    folder = world.unit(seed, method, number)
    found = folder / "result.json"
    if not found.exists():
        models = train(
            world, [pool[one].image for one in labelled], folder, training_seed, world.plan.steps, world.base
        )
        map50, mean_ap, ap50 = measure(world, models / "best.pt")
        tail = float(np.mean([ap50[one] for one in TAIL]))
        boxes = boxes_of([pool[one] for one in labelled])
        result = Result(seed, method, number, tuple(labelled), boxes, map50, mean_ap, tail, tuple(ap50))
        shutil.rmtree(folder / "in")
        write_whole(found, (json.dumps(asdict(result)) + "\n").encode())
    content = json.loads(found.read_text())
    return Result(**{**content, "labelled": tuple(content["labelled"]), "ap50": tuple(content["ap50"])})


def start_set(world: World, seed: int) -> list[int]:
    """Give what is labelled before the first round."""
    drawn = np.random.default_rng([seed, 6]).permutation(world.plan.pool)
    return list(map(int, drawn[: world.plan.start]))


def run_start(world: World, seed: int, repeat: int) -> Result:
    """Train on a seed's start set; repeat 0 is what all methods go on from, others tell the noise of training."""
    method = START if repeat == 0 else f"{START_AGAIN} {repeat}"
    return run_unit(world, world.pool(), (seed, method, 0), start_set(world, seed), seed + 1000 * repeat)


def run_chain(world: World, seed: int, method: str) -> list[Result]:
    """Run all rounds of a method with a seed; its start has been trained."""
    pool = world.pool()
    if method == ALL:
        return [run_unit(world, pool, (seed, method, 1), range(len(pool)), seed)]
    labelled = start_set(world, seed)
    models = world.unit(seed, START, 0) / "out/models"
    results = []
    for number in range(1, world.plan.rounds + 1):
        found = world.unit(seed, method, number) / "result.json"
        if found.exists():
            labelled = json.loads(found.read_text())["labelled"]
        else:
            labelled = [*labelled, *choose(world, pool, labelled, method, models, seed)]
        results.append(run_unit(world, pool, (seed, method, number), labelled, seed))
        models = world.unit(seed, method, number) / "out/models"
    return results


# ---- all of it -------------------------------------------------------------------------------------------------------


def prepare(world: World) -> None:
    """Draw the pictures and train the first model, if that isn't done."""
    plan = world.plan
    if not (world.folder / "test.yaml").exists():
        draw_set(world.data, "base", plan.base, COMMON)
        draw_set(world.data, "pool", plan.pool, POOL_SCENERY, REPEATED)
        draw_set(world.data, "test", plan.test, BALANCED)
        draw_set(world.data, "val", max(plan.test // 4, 8), POOL_SCENERY)
        content = {"val": str(world.data / "images/test"), "names": list(NAMES)}
        write_whole(world.folder / "test.yaml", yaml.safe_dump(content).encode())
    if not world.base.exists():
        images = sorted((world.data / "images/base").glob("*.jpg"))
        models = train(world, images, world.folder / "base-training", 0, plan.base_steps, None)
        write_whole(world.base, (models / "best.pt").read_bytes())


def take_core(places: Queue[int]) -> None:
    """Bind a worker to a processor of its own: one thread each, so that figures don't depend on how many there are."""
    there = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {there[places.get() % len(there)]})


def run_all(world: World, methods: Sequence[str], jobs: int) -> list[Result]:
    """Run everything, several trainings at a time; give all results."""
    results: list[Result] = []
    context = multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in range(jobs):
        places.put(place)
    with ProcessPoolExecutor(jobs, context, take_core, (places,)) as workers:
        workers.submit(prepare, world).result()
        seeds = range(world.plan.seeds)
        firsts = [workers.submit(run_start, world, seed, 0) for seed in seeds]
        results += [one.result() for one in firsts]
        chains = [workers.submit(run_chain, world, seed, method) for method in (*methods, ALL) for seed in seeds]
        chains += [workers.submit(run_repeat, world, repeat) for repeat in range(1, world.plan.repeats)]
        for chain in chains:
            results += chain.result()
            for one in chain.result():
                told = f"mAP50 {one.map50:.3f}, rare classes {one.tail:.3f}"
                print(f"  seed {one.seed}, {one.method}, round {one.round}: {one.boxes} boxes, {told}", flush=True)
    return results


def run_repeat(world: World, repeat: int) -> list[Result]:
    """Train the first seed's start set once more."""
    return [run_start(world, 0, repeat)]


def main() -> None:
    """Run the experiment, or what is left of it, and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", type=Path, default=Path("active-learning"), help="folder of all that it makes")
    parser.add_argument("--seeds", type=int, default=Plan.seeds)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures say nothing")
    given = parser.parse_args()
    world = World(given.to.resolve(), QUICK if given.quick else replace(Plan(), seeds=given.seeds))
    results = run_all(world, tuple(METHODS), given.jobs)
    curves = curves_of(results, tuple(METHODS), world.plan.seeds)
    text = report(curves)
    write_whole(world.folder / "results.md", text.encode())
    draw(curves, world.folder / "results.png")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
