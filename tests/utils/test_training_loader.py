"""The training loader: orders, batches, ranks, threads, quads."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.augment import Canvas
from utils.errors import ConfigError
from utils.hyp import Hyp
from utils.label_scan import scan_labels
from utils.label_table import LabelTable
from utils.labelled import yolo_set
from utils.picture_store import PictureStore, StoreSettings
from utils.progress import Progress
from utils.settings import PictureSettings
from utils.training_loader import BATCHES_AHEAD, TrainBatch, TrainLoader, epoch_order, image_weights
from utils.training_set import Sample, SampleSettings, TrainingSet

NAMES = [str(class_id) for class_id in range(80)]
PICTURES = PictureSettings()
SIDE = 64


@pytest.fixture(scope="module")
def table(coco_images: list[Path]) -> LabelTable:
    return scan_labels(yolo_set(NAMES, coco_images[:10]), PICTURES, 2, None, "yolo", Progress()).table


@pytest.fixture(scope="module")
def store(table: LabelTable) -> PictureStore:
    kept = PictureStore(table, StoreSettings(SIDE, PICTURES, "ram"))
    kept.fill(2)
    return kept


@pytest.fixture
def training_set(table: LabelTable, store: PictureStore) -> TrainingSet:
    return TrainingSet(table, store, Hyp(mixup=0.3), SampleSettings(SIDE))


def assert_same(one: list[TrainBatch], other: list[TrainBatch]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other):
        for name in ("pixels", "rows", "indices"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


# ---- orders ----


@given(
    count=st.integers(0, 50),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
    world=st.integers(1, 5),
    shuffle=st.booleans(),
)
def test_an_epoch_takes_each_picture_and_is_padded(
    count: int, seed: int, epoch: int, world: int, shuffle: bool
) -> None:
    order = epoch_order(count, seed, epoch, shuffle=shuffle, world_size=world)
    assert order.dtype == np.int64 and len(order) % world == 0 and 0 <= len(order) - count < world
    assert sorted(order[:count].tolist()) == list(range(count))
    if shuffle:
        np.testing.assert_array_equal(order[count:], np.resize(order[:count], len(order) - count))
    else:
        assert order[:count].tolist() == list(range(count))
        assert set(order[count:].tolist()) <= {count - 1}
    np.testing.assert_array_equal(order, epoch_order(count, seed, epoch, shuffle=shuffle, world_size=world))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [epoch_order(50, seed, epoch, shuffle=True).tobytes() for seed in (0, 1) for epoch in range(5)]
    assert len(set(orders)) == 10


def test_weighted_pictures_are_drawn_as_often_as_they_weigh() -> None:
    weights = np.array([0.0, 1, 3, 0, 6])
    drawn = np.concatenate([epoch_order(5, 0, epoch, shuffle=True, weights=weights) for epoch in range(2000)])
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 10_000, weights / 10, atol=0.02)
    assert sorted(set(epoch_order(400, 0, 0, shuffle=True, weights=np.zeros(400)).tolist()))[-1] > 300


def test_image_weights_as_worked_by_hand() -> None:
    table = LabelTable(
        ("a", "b"),
        (),
        np.ones((3, 2), np.int32),
        np.array([0, 2, 2, 4]),
        np.array([0, 0, 0, 1], np.int32),
        np.tile(np.array([[0, 0, 1, 1]], np.float32), (4, 1)),
        np.empty((0, 2), np.float32),
        np.zeros(5, np.int64),
    )
    # Class weights 1/3 and 1, normalised 1/4 and 3/4; times (1 - AP)^2 / 2: 1/8 x 1/4, 3/8 x 1.
    np.testing.assert_allclose(image_weights(table, np.array([0.5, 0.0])), [2 / 32, 0, 1 / 32 + 3 / 8])
    assert image_weights(table, np.array([1.0, 1.0])).tolist() == [0, 0, 0]


# ---- batches ----


def test_a_batch_holds_its_samples(training_set: TrainingSet) -> None:
    order = epoch_order(10, 0, 3, shuffle=True)
    loader = TrainLoader(training_set, 4, 2)
    batches = list(loader.batches(order, 3))
    assert [len(batch.pixels) for batch in batches] == [4, 4, 2] and loader.batch_count(10) == 3
    assert np.concatenate([batch.indices for batch in batches]).tolist() == order.tolist()
    for batch in batches:
        assert batch.pixels.shape[1:] == (SIDE, SIDE, 3) and batch.pixels.dtype == np.uint8
        assert batch.rows.dtype == np.float32 and batch.rows.shape[1] == 6
        assert (np.diff(batch.rows[:, 0]) >= 0).all()
        for place, index in enumerate(batch.indices.tolist()):
            sample = training_set.sample(index, 3)
            np.testing.assert_array_equal(batch.pixels[place], sample.canvas)
            np.testing.assert_array_equal(batch.rows[batch.rows[:, 0] == place][:, 1:], sample.rows)


@pytest.mark.parametrize("quad", [False, True])
def test_the_number_of_threads_changes_nothing(training_set: TrainingSet, quad: bool) -> None:
    order = epoch_order(10, 0, 1, shuffle=True)
    made = [list(TrainLoader(training_set, 4, workers, quad=quad).batches(order, 1)) for workers in (0, 1, 2, 50)]
    for other in made[1:]:
        assert_same(made[0], other)


def test_a_run_that_goes_on_gets_the_rest_of_the_epoch(training_set: TrainingSet) -> None:
    order = epoch_order(10, 0, 1, shuffle=True)
    loader = TrainLoader(training_set, 4, 2)
    whole = list(loader.batches(order, 1))
    for first in (1, 2, 3):
        assert_same(list(loader.batches(order, 1, first)), whole[first:])


@pytest.mark.parametrize(("world", "size"), [(2, 4), (3, 6)])
def test_ranks_together_make_the_batches_of_one(training_set: TrainingSet, world: int, size: int) -> None:
    order = epoch_order(10, 0, 1, shuffle=True, world_size=world)
    whole = list(TrainLoader(training_set, size, 0).batches(order, 1))
    shares = [list(TrainLoader(training_set, size, 0, rank, world).batches(order, 1)) for rank in range(world)]
    for number, batch in enumerate(whole):
        for rank in range(world):
            share = shares[rank][number]
            np.testing.assert_array_equal(share.indices, batch.indices[rank::world])
            np.testing.assert_array_equal(share.pixels, batch.pixels[rank::world])
    assert len({len(share) for share in shares}) == 1


def test_a_batch_must_be_shared_evenly(training_set: TrainingSet) -> None:
    with pytest.raises(ConfigError, match="got 4, need a multiple of the 3"):
        TrainLoader(training_set, 4, 0, 0, 3)


def test_rectangles_of_a_batch_have_one_shape(table: LabelTable, store: PictureStore) -> None:
    training_set = TrainingSet(table, store, Hyp(), SampleSettings(SIDE, rect=True, batch_size=4, stride=8))
    order = training_set.base_order[epoch_order(10, 0, 0, shuffle=False, world_size=4)]
    batches = list(TrainLoader(training_set, 4, 2).batches(order, 0))
    assert [len(batch.pixels) for batch in batches] == [4, 4, 4]
    assert len({batch.pixels.shape[1:3] for batch in batches}) > 1


def test_an_empty_set_has_no_batches(training_set: TrainingSet) -> None:
    assert list(TrainLoader(training_set, 4, 2).batches(epoch_order(0, 0, 0, shuffle=True), 0)) == []


def test_pictures_without_labels_make_no_rows(table: LabelTable, store: PictureStore) -> None:
    empty = LabelTable(
        table.names,
        table.shots,
        table.sizes_hw.copy(),
        np.zeros(len(table) + 1, np.int64),
        np.empty(0, np.int32),
        np.empty((0, 4), np.float32),
        np.empty((0, 2), np.float32),
        np.zeros(1, np.int64),
    )
    training_set = TrainingSet(empty, store, Hyp(), SampleSettings(SIDE))
    assert [batch.rows.shape for batch in TrainLoader(training_set, 5, 2).batches(np.arange(10), 0)] == [(0, 6)] * 2


# ---- threads ----


class Counting(TrainingSet):
    """A training set that counts how many samples were begun."""

    begun = 0

    def sample(self, index: int, epoch: int, out: Optional[Canvas] = None) -> Sample:
        self.begun += 1
        return super().sample(index, epoch, out)


def sampling_threads() -> int:
    return sum(thread.name.startswith("sample") for thread in threading.enumerate())


def test_no_more_than_two_batches_are_made_ahead(table: LabelTable, store: PictureStore) -> None:
    counting = Counting(table, store, Hyp(), SampleSettings(SIDE))
    order = np.tile(np.arange(10), 5)
    for number, _ in enumerate(TrainLoader(counting, 4, 2).batches(order, 0)):
        assert counting.begun <= (number + 1 + BATCHES_AHEAD) * 4
    assert counting.begun == 50


def test_leaving_early_ends_the_threads(table: LabelTable, store: PictureStore) -> None:
    counting = Counting(table, store, Hyp(), SampleSettings(SIDE))
    batches = TrainLoader(counting, 4, 2).batches(np.tile(np.arange(10), 100), 0)
    next(batches)
    assert sampling_threads() > 0
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert sampling_threads() == 0
    assert counting.begun <= 12


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_thread_raises_is_raised_where_batches_are_taken(training_set: TrainingSet, workers: int) -> None:
    order = np.array([0, 1, 2, 3, 4, 99, 6, 7, 8, 9])  # there are ten
    batches = TrainLoader(training_set, 4, workers).batches(order, 0)
    assert next(batches).indices.tolist() == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        list(batches)
    assert sampling_threads() == 0


def test_memory_stays_flat_over_epochs(training_set: TrainingSet) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    loader = TrainLoader(training_set, 5, 2)

    def epochs(numbers: range) -> None:
        for epoch in numbers:
            for _ in loader.batches(epoch_order(10, 0, epoch, shuffle=True), epoch):
                pass

    epochs(range(30))
    before = resident_bytes()
    epochs(range(30, 130))
    assert resident_bytes() - before < 4 << 20


# ---- quads ----


def quads_of(training_set: TrainingSet, epochs: int) -> list[tuple[int, npt.NDArray[Any], npt.NDArray[Any], list[int]]]:
    """Epoch, pixels, rows and indices of each group."""
    found = []
    for epoch in range(epochs):
        for batch in TrainLoader(training_set, 8, 0, quad=True).batches(epoch_order(10, 0, epoch, shuffle=True), epoch):
            for place in range(len(batch.pixels)):
                rows = batch.rows[batch.rows[:, 0] == place][:, 1:]
                found.append((epoch, batch.pixels[place], rows, batch.indices[4 * place : 4 * place + 4].tolist()))
    return found


def test_a_quad_is_one_picture_enlarged_or_four_side_by_side(training_set: TrainingSet) -> None:
    enlarged = 0
    for epoch, pixels, rows, group in quads_of(training_set, 10):
        assert pixels.shape == (2 * SIDE, 2 * SIDE, 3)
        samples = [training_set.sample(index, epoch) for index in group]
        if np.array_equal(pixels, cv2.resize(samples[0].canvas, (2 * SIDE, 2 * SIDE))):
            enlarged += len(group) == 4
            np.testing.assert_array_equal(rows, samples[0].rows)
            continue
        assert len(group) == 4
        left, right = (
            np.concatenate([samples[0].canvas, samples[2].canvas]),
            np.concatenate([samples[1].canvas, samples[3].canvas]),
        )
        np.testing.assert_array_equal(pixels, np.concatenate([left, right], axis=1))
        shifts = [(0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5)]
        expected = [sample.rows * [1, 0.5, 0.5, 0.5, 0.5] + [0, *shift, 0, 0] for sample, shift in zip(samples, shifts)]
        np.testing.assert_allclose(rows, np.concatenate(expected), atol=1e-6)
    assert 4 <= enlarged <= 16  # of 20


def test_quads_are_a_quarter_as_many(training_set: TrainingSet) -> None:
    batches = list(TrainLoader(training_set, 8, 0, quad=True).batches(np.arange(10), 0))
    assert [len(batch.pixels) for batch in batches] == [2, 1]
    assert [len(batch.indices) for batch in batches] == [8, 2]
