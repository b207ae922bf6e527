"""What a validation writes of each picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from PIL import Image

from utils.batches import Shot
from utils.coco_metrics import COCO_NAMES
from utils.detections import Detections
from utils.labels import Labels
from utils.letterbox import letterbox_square
from utils.watchers import BatchPictures, CocoTally, Seen, TextLabels, label_text


def detections_of(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def seen(name: str, detections: Detections, crowd: Optional[bool] = None) -> Seen:
    """A picture of 100 x 50 px with one label over its left half."""
    letterbox = letterbox_square((50, 100), 64, 32)
    labels = Labels(np.array([0]), np.array([[0.0, 0.0, 50.0, 50.0]]), np.array([bool(crowd)]), (None,))
    return Seen(Shot(0, Path(name)), np.full((64, 64, 3), 200, np.uint8), letterbox, labels, detections)


def test_a_line_is_centre_and_size_in_shares_of_the_picture() -> None:
    found = detections_of((10, 10, 30, 50, 0.75, 3), (0, 0, 100, 50, 0.125, 0))
    assert label_text(found, (50, 100), True) == "3 0.2 0.6 0.2 0.8 0.75\n0 0.5 0.5 1 1 0.125\n"
    assert label_text(found, (50, 100), False) == "3 0.2 0.6 0.2 0.8\n0 0.5 0.5 1 1\n"


def test_pictures_of_one_name_get_files_of_their_own(tmp_path: Path) -> None:
    texts = TextLabels(tmp_path / "labels", False)
    names = ["a/x.jpg", "b/x.jpg", "b/x-2.jpg", "c/x.png", "y.jpg"]
    texts([seen(name, detections_of((0, 0, 100, 50, 0.5, number))) for number, name in enumerate(names)])
    found = {path.name: path.read_text()[0] for path in (tmp_path / "labels").iterdir()}
    assert sorted(found.values()) == ["0", "1", "2", "3", "4"]
    assert found["x.txt"] == "0" and found["x-2.txt"] == "1"
    assert texts.repeated.count == 3


def test_a_picture_in_which_nothing_was_found_has_no_file(tmp_path: Path) -> None:
    TextLabels(tmp_path, False)([seen("a.jpg", detections_of())])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("names", "category"), [(("a", "b"), 1), (COCO_NAMES, 2)])
def test_the_coco_file_numbers_classes_as_coco_does(names: tuple[str, ...], category: int, tmp_path: Path) -> None:
    tally = CocoTally()
    tally([seen("000012.jpg", detections_of((10, 10, 30, 50, 0.75, 1))), seen("b.jpg", detections_of())])
    tally([seen("c d.jpg", detections_of((0, 0, 100, 50, 0.123456, 1)))])
    tally.write_json(tmp_path / "found.json", names)
    assert json.loads((tmp_path / "found.json").read_text()) == [
        {"image_id": 12, "category_id": category, "bbox": [10.0, 10.0, 20.0, 40.0], "score": 0.75},
        {"image_id": "c d", "category_id": category, "bbox": [0.0, 0.0, 100.0, 50.0], "score": 0.12346},
    ]


def test_a_coco_file_of_nothing_is_an_empty_list(tmp_path: Path) -> None:
    CocoTally().write_json(tmp_path / "found.json", ["a"])
    assert json.loads((tmp_path / "found.json").read_text()) == []


def test_coco_figures_ignore_crowds() -> None:
    tally = CocoTally()
    tally([seen("a.jpg", detections_of((0, 0, 50, 50, 0.9, 0)))])
    assert tally.figures(1).map == pytest.approx(1)
    tally([seen("b.jpg", detections_of((0, 0, 50, 50, 0.95, 0)), crowd=True)])
    assert tally.figures(1).map == pytest.approx(1)
    tally([seen("c.jpg", detections_of((60, 0, 90, 50, 0.99, 0)))])  # a wrong one before the right one, a label missed
    assert tally.figures(1).map < 0.3


def test_three_batches_are_drawn_and_no_more(tmp_path: Path) -> None:
    draw = BatchPictures(tmp_path, ["a"])
    for number in range(5):
        draw([seen(f"{number}.jpg", detections_of((60, 0, 100, 50, 0.9, 0), (0, 0, 20, 20, 0.2, 0)))])
    expected = {f"val_batch{number}_{what}.jpg" for number in range(3) for what in ("labels", "pred")}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    """On a picture of 1000 x 500 px in the middle of a square of 640: a label on its left, a sure box on its right."""
    letterbox = letterbox_square((500, 1000), 640, 32)
    labels = Labels(np.array([0]), np.array([[100.0, 100.0, 400.0, 400.0]]), np.array([False]), (None,))
    found = detections_of((600, 100, 900, 400, 0.9, 0), (100, 100, 400, 400, 0.2, 0))
    canvas = np.full((640, 640, 3), 200, np.uint8)
    BatchPictures(tmp_path, ["a"])([Seen(Shot(0, Path("p.jpg")), canvas, letterbox, labels, found)])
    extents = {}
    for what in ("labels", "pred"):
        with Image.open(tmp_path / f"val_batch0_{what}.jpg") as image:
            pixels = np.asarray(image).astype(int)
        is_coloured = pixels.max(axis=2) - pixels.min(axis=2) > 60  # everything else is grey
        rows, columns = np.nonzero(is_coloured[250:])  # below the name
        extents[what] = [columns.min(), columns.max(), rows.max() + 250]
    assert extents["labels"] == pytest.approx([64, 256, 160 + 256], abs=3)
    assert extents["pred"] == pytest.approx([384, 576, 160 + 256], abs=3)
