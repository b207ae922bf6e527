"""The drawn data set: boxes are the hulls of what is drawn, the same seed gives the same bytes, readers read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.datasets import read_yolo_dataset
from utils.errors import ConfigError
from utils.shapes import LEAST_BOX_SIDE, LEAST_SIDE, NAMES, Drawing, draw_picture, hull_px, label_text, write_shapes


def hull_by_search(mask: Any) -> tuple[int, int, int, int]:
    """The same by looking at every pixel."""
    places = [(x, y) for y, row in enumerate(mask.tolist()) for x, is_own in enumerate(row) if is_own]
    xs, ys = [x for x, _ in places], [y for _, y in places]
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return [draw_picture(0, index, (160, 128)) for index in range(150)]


# ---- pictures --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(0, 10**6), st.integers(LEAST_SIDE, 330), st.integers(LEAST_SIDE, 330))
@settings(deadline=None, max_examples=40)
def test_boxes_are_the_hulls_of_what_is_drawn(seed: int, index: int, height: int, width: int) -> None:
    drawing = draw_picture(seed, index, (height, width))
    assert drawing.picture.shape == (height, width, 3) and drawing.picture.dtype == np.uint8
    assert len(drawing.class_ids) == len(drawing.boxes_px) <= 6
    assert set(np.unique(drawing.owners)) - {-1} == set(range(len(drawing.class_ids)))
    for place, (x1, y1, x2, y2) in enumerate(drawing.boxes_px.tolist()):
        assert (x1, y1, x2, y2) == hull_by_search(drawing.owners == place)
        assert min(x2 - x1, y2 - y1) >= LEAST_BOX_SIDE
        assert x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height
        assert 0 <= drawing.class_ids[place] < len(NAMES)


def test_what_is_owned_is_what_can_be_seen(drawings: list[Drawing]) -> None:
    """An object's pixels are of one colour, and another one than those around it, beyond its soft edge."""
    thick = np.ones((5, 5), np.uint8)
    for drawing in drawings[:40]:
        for place in range(len(drawing.class_ids)):
            own = (drawing.owners == place).astype(np.uint8)
            inside = cv2.erode(own, thick).astype(bool)
            around = (cv2.dilate(own, thick, iterations=2) > cv2.dilate(own, thick)) & (drawing.owners == -1)
            if inside.sum() < 50 or around.sum() < 50:
                continue
            colours, ground = drawing.picture[inside].astype(float), drawing.picture[around].astype(float)
            assert colours.std(axis=0).max() < 16
            assert np.linalg.norm(colours.mean(axis=0) - ground.mean(axis=0)) > 30


def test_shapes_fill_as_much_of_their_boxes_as_geometry_says(drawings: list[Drawing]) -> None:
    """The last object of a picture, which lies on top, where it isn't cut off. Discs and rings have no turn."""
    shares: dict[str, list[float]] = {name: [] for name in NAMES}
    for drawing in drawings:
        if len(drawing.class_ids):
            (x1, y1, x2, y2), last = drawing.boxes_px[-1].tolist(), len(drawing.class_ids) - 1
            if x1 > 0 and y1 > 0 and x2 < 128 and y2 < 160:
                share = (drawing.owners == last).sum() / ((x2 - x1) * (y2 - y1))
                shares[NAMES[int(drawing.class_ids[-1])]].append(float(share))
    assert all(shares.values())
    assert np.allclose(shares["disc"], np.pi / 4, atol=0.03)
    assert np.allclose(shares["ring"], np.pi / 4 * (1 - 0.55**2), atol=0.03)
    assert min(shares["square"]) > 0.49 and max(shares["square"]) < 1.001
    assert min(shares["triangle"]) > 0.4 and max(shares["triangle"]) < 0.56  # half, by hulls of whole pixels
    assert max(shares["star"]) < 0.45


def test_classes_and_counts_are_balanced_and_some_pictures_are_empty(drawings: list[Drawing]) -> None:
    counts = np.bincount(np.concatenate([drawing.class_ids for drawing in drawings]), minlength=len(NAMES))
    assert counts.min() > 0.7 * counts.mean()
    objects = np.bincount([len(drawing.class_ids) for drawing in drawings], minlength=7)
    assert 0 < objects[0] < 25
    assert objects[1:6].min() > 5


def test_objects_cover_little_of_one_another(drawings: list[Drawing]) -> None:
    """Boxes may overlap; a whole disc keeps at least 85 % of its pixels but for its edge."""
    for drawing in drawings:
        for place, (x1, y1, x2, y2) in enumerate(drawing.boxes_px.tolist()):
            is_whole = x1 > 0 and y1 > 0 and x2 < 128 and y2 < 160
            if NAMES[int(drawing.class_ids[place])] == "disc" and is_whole:
                assert (drawing.owners == place).sum() > 0.6 * np.pi / 4 * (x2 - x1) * (y2 - y1)


def test_a_picture_is_a_function_of_seed_index_and_size() -> None:
    first, again = (draw_picture(5, 7, (100, 90)) for _ in range(2))
    assert first.picture.tobytes() == again.picture.tobytes()
    np.testing.assert_array_equal(first.boxes_px, again.boxes_px)
    others = [draw_picture(5, 8, (100, 90)), draw_picture(6, 7, (100, 90))]
    assert len({one.picture.tobytes() for one in [first, *others]}) == 3


def test_a_picture_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="side: got 63, need at least 64"):
        draw_picture(0, 0, (63, 200))


def test_the_hull_of_nothing_and_of_one_pixel() -> None:
    mask = np.zeros((4, 6), bool)
    assert hull_px(mask) == (0, 0, 0, 0)
    mask[2, 5] = True
    assert hull_px(mask) == (5, 2, 6, 3)


# ---- the data set ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "new", 40, seed=3, side=160)


def test_our_reader_of_yolo_data_sets_finds_pictures_and_names(data_yaml: Path) -> None:
    train, val = (read_yolo_dataset(data_yaml, split) for split in ("train", "val"))
    assert train.names == val.names == NAMES
    pool = sorted((data_yaml.parent / "images/pool").iterdir())
    assert (len(train.images), len(val.images), len(pool)) == (28, 6, 6)
    assert not (data_yaml.parent / "labels/pool").exists()


def test_pictures_and_labels_are_those_that_are_drawn(data_yaml: Path) -> None:
    sizes = set()
    for path in read_yolo_dataset(data_yaml, "train").images:
        pixels: Any = cv2.imread(str(path))
        drawing = draw_picture(3, int(path.stem), pixels.shape[:2])
        sizes.add(pixels.shape[:2])
        assert np.abs(pixels[:, :, ::-1].astype(int) - drawing.picture).mean() < 6  # a JPEG
        rows = np.loadtxt(data_yaml.parent / "labels/train" / f"{path.stem}.txt", ndmin=2).reshape(-1, 5)
        assert rows[:, 0].tolist() == drawing.class_ids.tolist()
        size = np.array(pixels.shape[1::-1] * 2)
        corners = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], axis=1) * size
        np.testing.assert_allclose(corners, drawing.boxes_px, atol=1e-3)
    assert sizes == {(160, 160), (120, 160), (160, 120)}


def test_the_same_seed_gives_the_same_bytes(data_yaml: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path, 40, seed=3, side=160)
    assert tree(tmp_path) == tree(data_yaml.parent)


def test_an_empty_picture_has_an_empty_label_file() -> None:
    empty = next(
        drawing for drawing in (draw_picture(0, index, (64, 64)) for index in range(100)) if not len(drawing.class_ids)
    )
    assert label_text(empty) == ""
    assert np.all(empty.owners == -1)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something"):
        write_shapes(tmp_path, 10)
    assert tree(tmp_path) == {"mine.txt": b"mine"}


def test_the_smallest_data_set_has_one_picture_of_each_split(tmp_path: Path) -> None:
    write_shapes(tmp_path / "three", 3, side=86)
    found = sorted(path.parent.name for path in (tmp_path / "three/images").rglob("*.jpg"))
    assert found == ["pool", "train", "val"]
    with pytest.raises(ConfigError, match="count: got 2"):
        write_shapes(tmp_path / "two", 2)
    with pytest.raises(ConfigError, match="side: got 85"):
        write_shapes(tmp_path / "two", 3, side=85)
    assert not (tmp_path / "two").exists()
