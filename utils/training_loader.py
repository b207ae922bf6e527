"""TrainLoader: samples become batches, made ahead by threads, the same with any number of them. No torch here."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, Optional

import cv2
import numpy as np
import numpy.typing as npt

from utils.errors import ConfigError
from utils.label_table import LabelTable
from utils.machine import usable_cpus
from utils.training_set import TrainingSet, generator

BATCHES_AHEAD = 2
# What stands beside the seed in a generator, so that no two uses share their numbers; a sample's has no such word.
ORDER, QUAD = 1, 2

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TrainBatch:
    """pixels: (B, H, W, 3) uint8 RGB. rows: (n, 6) float32 place in the batch, class, cx, cy, w, h in 0..1.

    indices: (B,) int64, of the pictures that the samples were made around; with quad, 4 B of them.
    """

    pixels: Pixels
    rows: Rows
    indices: IntArray


def epoch_order(
    count: int,
    seed: int,
    epoch: int,
    *,
    shuffle: bool,
    weights: Optional[FloatArray] = None,
    world_size: int = 1,
) -> IntArray:
    """Give the order in which an epoch takes `count` pictures: (M,) positions, M a multiple of world_size.

    weights: (count,), of pictures that are drawn with replacement instead. What is missing to a multiple is taken from
    the beginning or, where nothing is shuffled, is the last one again: with rectangles it has that batch's shape.
    """
    random = generator(seed, epoch, 0, ORDER)
    order = np.arange(count)
    if weights is not None and count:
        shares = weights / weights.sum() if weights.sum() > 0 else None
        order = random.choice(count, count, p=shares)
    elif shuffle:
        order = random.permutation(count)
    missing = -count % world_size if count else 0
    more = np.resize(order, missing) if shuffle or weights is not None else np.repeat(order[-1:], missing)
    return np.concatenate([order, more]).astype(np.int64)


def image_weights(table: LabelTable, class_maps: FloatArray) -> FloatArray:
    """Give each picture's weight (N,) for drawing it: high for rare classes and for those with a low AP.

    class_maps: (classes,) AP 0.5:0.95 of each class so far. A picture's weight is the sum over its boxes of its
    class's (1 / count, normalised) x (1 - AP)^2 / classes (facts/yolov5.md, --image-weights).
    """
    classes = len(table.names)
    counts = np.bincount(table.class_ids, minlength=classes).astype(np.float64)
    rarity = 1 / np.maximum(counts, 1)
    weights = rarity / rarity.sum() * (1 - class_maps) ** 2 / classes  # (classes,)
    ends = np.concatenate([[0.0], np.cumsum(weights[table.class_ids])])
    sums: FloatArray = np.maximum(ends[table.starts[1:]] - ends[table.starts[:-1]], 0)
    return sums


class TrainLoader:
    """Makes one rank's batches of an epoch.

    batch_size: of all ranks together; a rank takes every world_size-th sample of a global batch. workers: threads,
    never more than there are cores; 0 makes samples in the caller's.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        batch_size: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        quad: bool = False,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"batch size: got {batch_size}, need a multiple of the {world_size} processes")
        self._set = training_set
        self._batch_size = batch_size
        self._workers = min(workers, usable_cpus())
        self._rank, self._world_size = rank, world_size
        self._quad = quad
        self._seed = training_set.seed

    @property
    def epoch_batches(self) -> int:
        """How many batches an epoch of the whole set has, its order padded for all ranks."""
        return self.batch_count(len(self._set) + -len(self._set) % self._world_size)

    def batch_count(self, sample_count: int) -> int:
        """Give how many batches an epoch of that many samples has; the last may be smaller."""
        return -(-sample_count // self._batch_size)

    def batches(self, order: IntArray, epoch: int, first_batch: int = 0) -> Iterator[TrainBatch]:
        """Make the batches of an epoch from number `first_batch` on, up to two ahead of the one that is asked for.

        order: (M,) of `epoch_order`, or with rectangles base_order[of it]. Leaving early ends the threads.
        """
        cv2.setNumThreads(0)  # else OpenCV starts a team of its own inside each of our threads
        numbers = iter(range(first_batch, self.batch_count(len(order))))
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="sample") if self._workers else None
        most_waiting = 1 + BATCHES_AHEAD if pool else 1
        waiting: deque[_Pending] = deque()
        try:
            while True:
                for number in numbers:
                    waiting.append(self._start(order, epoch, number, pool))
                    if len(waiting) == most_waiting:
                        break
                if not waiting:
                    return
                yield waiting.popleft().batch()
        finally:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, order: IntArray, epoch: int, number: int, pool: Optional[ThreadPoolExecutor]) -> _Pending:
        """Begin a batch: each job draws into its own part of the batch's memory."""
        first = number * self._batch_size
        indices = order[first : first + self._batch_size][self._rank :: self._world_size]
        height, width = self._set.canvas_hw(int(indices[0]))
        if self._quad:
            groups = [indices[start : start + 4].tolist() for start in range(0, len(indices), 4)]
            pixels = np.empty((len(groups), 2 * height, 2 * width, 3), np.uint8)
        else:
            groups = [[index] for index in indices.tolist()]
            pixels = np.empty((len(groups), height, width, 3), np.uint8)
        jobs: list[Callable[[], Rows]] = []
        for place, group in enumerate(groups):
            jobs.append(
                functools.partial(
                    self._draw, group, epoch, pixels[place], first + self._rank + place * self._world_size
                )
            )
        rows_of = [pool.submit(job).result for job in jobs] if pool else jobs
        return _Pending(pixels, rows_of, indices)

    def _draw(self, group: list[int], epoch: int, out: Pixels, number: int) -> Rows:
        """Draw one entry of a batch, from position `number` of the order on; gives its rows (n, 5)."""
        if not self._quad:
            return self._set.sample(group[0], epoch, out).rows
        # Half of the groups, by a draw, and what is left over at the end: one picture, enlarged.
        random = generator(self._seed, epoch, number, QUAD)
        if len(group) < 4 or random.random() < 0.5:
            sample = self._set.sample(group[0], epoch)
            cv2.resize(sample.canvas, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_LINEAR)
            return sample.rows
        rows = []
        height, width = out.shape[0] // 2, out.shape[1] // 2
        for place, index in enumerate(group):
            sample = self._set.sample(index, epoch)
            down, right = divmod(place, 2)
            out[down * height : (down + 1) * height, right * width : (right + 1) * width] = sample.canvas
            rows.append(sample.rows * np.array([1, 0.5, 0.5, 0.5, 0.5], np.float32))
            rows[-1][:, 1:3] += np.array([right / 2, down / 2], np.float32)
        return np.concatenate(rows)


@dataclass(frozen=True)
class _Pending:
    """A batch under way: rows_of gives, or waits for, the rows of each entry and raises what its job raised."""

    pixels: Pixels
    rows_of: Sequence[Callable[[], Rows]]
    indices: IntArray

    def batch(self) -> TrainBatch:
        each = [rows() for rows in self.rows_of]
        places = np.repeat(np.arange(len(each), dtype=np.float32), [len(rows) for rows in each])
        return TrainBatch(self.pixels, np.concatenate([places[:, None], np.concatenate(each)], axis=1), self.indices)
