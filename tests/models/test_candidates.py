"""Candidates: the same as the detector's own path; labels joined, classes merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.augment import detect_augmented
from models.candidates import augmented_candidates, detector_candidates, join_labels, merge_classes
from models.checkpoint import read_checkpoint
from models.detector import Detector, make_detector
from utils.labelled import LabelledBatch, LabelledReader, yolo_set
from utils.nms import select_boxes
from utils.rect import labels_to_input
from utils.settings import EngineSettings, LoaderSettings, NmsSettings

NMS = NmsSettings(0.01, 0.6, multi_label=True)


@pytest.fixture(scope="module")
def detector(yolov5n_pt: Path) -> Detector:
    return make_detector(read_checkpoint(yolov5n_pt), EngineSettings(precision="fp32", device="cpu"), 3)


@pytest.fixture(scope="module")
def batch(coco_images: list[Path]) -> LabelledBatch:
    labelled = yolo_set([str(class_id) for class_id in range(80)], coco_images[:3])
    return next(iter(LabelledReader(labelled, LoaderSettings(160, batch_size=3), 32, is_rect=False)))


def test_they_become_what_the_detector_selects(detector: Detector, batch: LabelledBatch) -> None:
    rows_of = list(detector_candidates(detector)(batch, NMS.conf_thres))
    expected = list(detector.select(batch.pictures, NMS))
    assert len(rows_of) == len(expected) == 3
    for rows, kept in zip(rows_of, expected):
        assert len(kept[0]) > 0
        for mine, theirs in zip(select_boxes(rows, NMS), kept):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_three_views_become_what_augment_detects(detector: Detector, batch: LabelledBatch) -> None:
    rows_of = list(augmented_candidates(detector)(batch, NMS.conf_thres))
    expected = detect_augmented(detector, batch.pictures, NMS)
    assert len(rows_of) == len(expected) == 3
    for rows, kept in zip(rows_of, expected):
        _, scores, class_ids = select_boxes(rows, NMS)
        assert scores.tolist() == kept.scores.tolist() and class_ids.tolist() == kept.class_ids.tolist()


def test_merged_rows_keep_their_likeliest_class(detector: Detector, batch: LabelledBatch) -> None:
    plain = list(detector_candidates(detector)(batch, 0.01))
    for rows, merged in zip(plain, merge_classes(detector_candidates(detector))(batch, 0.01)):
        assert merged.shape == (len(rows), 6)
        assert torch.equal(merged[:, :5], rows[:, :5])
        assert torch.equal(merged[:, 5], rows[:, 5:].max(1).values)


def test_nothing_to_merge_is_no_error(detector: Detector, batch: LabelledBatch) -> None:
    assert [len(rows) for rows in merge_classes(detector_candidates(detector))(batch, 0.9999)] == [0, 0, 0]


def test_joined_labels_are_certain_and_in_place(detector: Detector, batch: LabelledBatch) -> None:
    plain = list(detector_candidates(detector)(batch, 0.01))
    joined = join_labels(detector_candidates(detector))(batch, 0.01)
    for rows, more, labels, box in zip(plain, joined, batch.labels, batch.pictures.letterboxes):
        assert torch.equal(more[: len(rows)], rows)
        added = more[len(rows) :].numpy()
        assert len(added) == len(labels)
        corners = np.concatenate([added[:, :2] - added[:, 2:4] / 2, added[:, :2] + added[:, 2:4] / 2], 1)
        np.testing.assert_allclose(corners, labels_to_input(labels.boxes_px, box), atol=1e-3)
        assert (added[:, 4] == 1).all() and (added[:, 5:].sum(1) == 1).all()
        assert added[:, 5:].argmax(1).tolist() == labels.class_ids.tolist()
