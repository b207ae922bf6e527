"""Pictures for people: boxes where they belong, names that are never an empty box, figures that are real pictures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder  # type: ignore[import-untyped]  # comes with matplotlib
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from utils.detections import Detections
from utils.metrics import ConfusionMatrix, Found, Metrics, Truth, compare, compute_metrics, join
from utils.plots import (
    Tile,
    class_colour,
    clean_name,
    draw_boxes,
    draw_mosaic,
    labels_to_draw,
    write_confusion,
    write_curves,
    write_jpeg,
)

# A busy machine is no failure: neither slow examples nor slow making of them.
ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ("ant", "bee", "cat")
OPENCV_5 = hasattr(cv2, "FontFace")
UNKNOWN_SCRIPT = "\U00013000\U00013001"  # Egyptian hieroglyphs: neither OpenCV nor matplotlib brings them


def detections(*rows: tuple[Sequence[float], float, int]) -> Detections:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    scores, class_ids = np.array([row[1] for row in rows], np.float32), np.array([row[2] for row in rows], np.int64)
    return Detections(boxes, scores, class_ids)


def grey(height: int, width: int) -> Any:
    return np.full((height, width, 3), 128, np.uint8)


def read_rgb(path: Path) -> Any:
    bgr: Any = cv2.imread(str(path))  # None for what is no picture: then the next line fails
    return bgr[:, :, ::-1].astype(int)


def label_of(name: str, class_id: int = 0) -> Any:
    """Draw one box with a class's name and cut its label out."""
    names = ["x"] * class_id + [name]
    return draw_boxes(grey(200, 400), detections(([10, 100, 390, 190], 0.9, class_id)), names, hide_conf=True)[:98]


# ---- boxes on pictures -----------------------------------------------------------------------------------------------


def test_a_box_is_drawn_along_its_edges_in_its_classs_colour() -> None:
    drawn = draw_boxes(grey(100, 120), detections(([20, 30, 80, 70], 0.9, 1)), NAMES, 1, hide_labels=True)
    edges = np.zeros((100, 120), bool)
    edges[30:71, 20:81] = True
    edges[31:70, 21:80] = False
    assert np.all(drawn[edges] == class_colour(1))
    assert np.all(drawn[~edges] == 128)


def test_the_given_picture_is_left_alone_whatever_its_memory_is_like() -> None:
    picture = np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)[:, ::-1, ::-1]  # views, not contiguous
    picture.flags.writeable = False
    before = picture.copy()
    drawn = draw_boxes(picture, detections(([5, 5, 60, 50], 0.9, 0)), NAMES)
    np.testing.assert_array_equal(picture, before)
    assert drawn.shape == picture.shape
    assert np.any(drawn != picture)


def test_no_boxes_change_nothing() -> None:
    np.testing.assert_array_equal(draw_boxes(grey(9, 9), Detections.empty(), NAMES), grey(9, 9))


def test_the_best_box_lies_on_top() -> None:
    box = [20, 30, 80, 70]
    drawn = draw_boxes(grey(100, 120), detections((box, 0.9, 2), (box, 0.5, 1)), NAMES, 3, hide_labels=True)
    assert tuple(drawn[50, 20]) == class_colour(2)


def test_thicker_lines_cover_more() -> None:
    box = detections(([20, 30, 80, 70], 0.9, 1))
    covered = [
        int(np.count_nonzero(draw_boxes(grey(100, 120), box, NAMES, t, hide_labels=True) != 128)) for t in (1, 3, 6)
    ]
    assert covered == sorted(set(covered))


def test_a_label_stands_above_its_box_or_at_the_top_of_the_picture() -> None:
    above = draw_boxes(grey(200, 200), detections(([20, 100, 180, 190], 0.9, 0)), NAMES)
    assert np.any(above[80:97, 20:60] != 128)
    top = draw_boxes(grey(200, 200), detections(([20, 2, 180, 190], 0.9, 0)), NAMES)
    assert np.all(np.any(top[0:18, 20:60] != 128, axis=2))


def test_a_label_at_the_right_border_is_moved_inside() -> None:
    drawn = draw_boxes(grey(200, 200), detections(([190, 100, 199, 150], 0.9, 0)), NAMES)
    assert np.any(drawn[80:96, 120:180] != 128)


def test_names_and_scores_can_be_hidden() -> None:
    box = detections(([20, 100, 180, 190], 0.9, 0))
    both, only_name = draw_boxes(grey(200, 200), box, NAMES), draw_boxes(grey(200, 200), box, NAMES, hide_conf=True)
    neither = draw_boxes(grey(200, 200), box, NAMES, hide_labels=True)
    widths = [np.any(drawn[80:96] != 128, axis=(0, 2)).sum() for drawn in (both, only_name, neither)]
    assert widths[0] > widths[1] > widths[2] == 0


@pytest.mark.parametrize("hw", [(1, 1), (3, 200), (200, 3), (12, 12)])
@pytest.mark.parametrize("box", [[0, 0, 1, 1], [-50, -50, 900, 900], [500, 500, 600, 600], [2, 2, 2, 2]])
def test_tiny_pictures_and_boxes_beyond_the_border_are_no_trouble(hw: tuple[int, int], box: list[float]) -> None:
    assert draw_boxes(grey(*hw), detections((box, 0.9, 0)), NAMES).shape == (*hw, 3)


def test_colours_are_fixed_and_the_first_ones_can_be_told_apart() -> None:
    colours = np.array([class_colour(class_id) for class_id in range(12)], float)
    distances = np.linalg.norm(colours[:, None] - colours, axis=2)[~np.eye(12, dtype=bool)]
    assert distances.min() > 50
    assert class_colour(7) == class_colour(7)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_chinese_names_are_drawn_or_replaced_by_the_number() -> None:
    helmet, mask, number = label_of("安全帽", 1), label_of("口罩", 1), label_of("class 1", 1)
    if OPENCV_5:
        assert not np.array_equal(helmet[:, :200], mask[:, :200])
        assert not np.array_equal(helmet, number)
    else:
        np.testing.assert_array_equal(helmet, number)


def test_an_opencv_without_fonts_draws_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "FontFace", raising=False)  # what OpenCV 4 lacks
    np.testing.assert_array_equal(label_of("反光衣", 2), label_of("class 2", 2))
    assert not np.array_equal(label_of("vest", 2), label_of("class 2", 2))


@pytest.mark.parametrize("name", [UNKNOWN_SCRIPT, "", "   ", "\u200b", "\x1b\n\x00", "\ud800"])
def test_names_that_cannot_be_drawn_become_numbers(name: str) -> None:
    np.testing.assert_array_equal(label_of(name, 2), label_of("class 2", 2))


def test_a_class_beyond_the_names_becomes_its_number() -> None:
    box = detections(([20, 100, 180, 190], 0.9, 7))
    np.testing.assert_array_equal(
        draw_boxes(grey(200, 200), box, NAMES), draw_boxes(grey(200, 200), box, [*NAMES, *"defg", "class 7"])
    )


@settings(ANY_SPEED, max_examples=60)
@given(st.text(max_size=40))
def test_no_name_makes_an_empty_label(name: str) -> None:
    label = label_of(name)
    colours = np.unique(label[label[:, :, 0] != 128].reshape(-1, 3), axis=0)
    assert len(colours) > 1  # the background, and some ink on it


@ANY_SPEED
@given(st.text(max_size=300))
def test_a_clean_name_is_one_short_line(name: str) -> None:
    cleaned = clean_name(name)
    assert len(cleaned) <= 24
    assert cleaned.isprintable()
    assert cleaned == clean_name(cleaned)


def test_wide_characters_count_twice() -> None:
    assert clean_name("帽" * 12) == "帽" * 12
    assert clean_name("帽" * 13) == "帽" * 11 + ".."
    assert clean_name("x" * 25) == "x" * 22 + ".."
    assert clean_name("hard\that\n e\u0301") == "hard hat \xe9"


# ---- mosaics ---------------------------------------------------------------------------------------------------------


def test_a_mosaic_holds_its_pictures_row_by_row_and_its_boxes_scaled() -> None:
    wide, high = np.full((400, 800, 3), 60, np.uint8), np.full((800, 400, 3), 90, np.uint8)
    box = detections(([100, 100, 300, 300], 0.9, 1))
    tiles = [Tile(wide, Detections.empty(), ""), Tile(high, box, ""), Tile(wide, box, "")]
    mosaic = draw_mosaic(tiles, NAMES)
    assert mosaic.shape == (1600, 1600, 3)
    assert tuple(mosaic[200, 400]) == (60, 60, 60)
    assert tuple(mosaic[600, 400]) == (255, 255, 255)  # the wide one fills the upper half of its cell
    assert tuple(mosaic[600, 1000]) == (90, 90, 90)
    assert tuple(mosaic[200, 800 + 100]) == class_colour(1)
    assert tuple(mosaic[800 + 200, 300]) == class_colour(1)
    assert tuple(mosaic[1200, 1200]) == (255, 255, 255)


def test_a_mosaic_shrinks_large_pictures_and_their_boxes() -> None:
    tile = Tile(grey(4000, 4000), detections(([1000, 1000, 3000, 3000], 0.9, 1)), "")
    mosaic = draw_mosaic([tile], NAMES)
    assert mosaic.shape == (1920, 1920, 3)
    assert tuple(mosaic[960, 480]) == class_colour(1)


@pytest.mark.parametrize(("count", "side"), [(0, 1), (1, 32), (2, 64), (5, 96), (16, 128), (20, 128)])
def test_a_mosaic_is_as_large_as_its_pictures_ask_up_to_16(count: int, side: int) -> None:
    assert draw_mosaic([Tile(grey(32, 32), Detections.empty(), "x.jpg")] * count, NAMES).shape == (side, side, 3)


def test_labels_are_drawn_without_a_score() -> None:
    shown = labels_to_draw(Truth(np.array([[1.0, 2.0, 30.0, 40.0]]), np.array([1])))
    assert (shown.boxes_px.tolist(), shown.class_ids.tolist()) == ([[1, 2, 30, 40]], [1])


def test_a_jpeg_keeps_red_red(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "sub/red.jpg", np.full((40, 60, 3), (250, 10, 20), np.uint8))
    back = read_rgb(tmp_path / "sub/red.jpg")
    assert back.shape == (40, 60, 3)
    assert np.abs(back - (250, 10, 20)).max() <= 4


def test_real_pictures_with_their_boxes(coco_images: list[Path], tmp_path: Path) -> None:
    pictures = [read_rgb(path) for path in coco_images[:4]]
    tiles = [
        Tile(picture, detections(([30, 30, 200, 200], 0.7, k % 3)), path.name)
        for k, (picture, path) in enumerate(zip(pictures, coco_images))
    ]
    write_jpeg(tmp_path / "val_batch0_pred.jpg", draw_mosaic(tiles, ("安全帽", "bee", "")))
    assert {picture.shape for picture in pictures} == {(480, 640, 3), (426, 640, 3), (428, 640, 3), (425, 640, 3)}
    back = read_rgb(tmp_path / "val_batch0_pred.jpg")
    assert back.shape == (2 * 480, 2 * 640, 3)
    np.testing.assert_allclose(back[470, 320], pictures[0][470, 320], atol=40)


# ---- figures ---------------------------------------------------------------------------------------------------------

BOX, FAR = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def half_right(names: Sequence[str]) -> Metrics:
    """For each class a wrong box before the right one: precision 1/2 at every recall."""
    parts = []
    for class_id in range(len(names)):
        found = Found(np.array([FAR, BOX]), np.array([0.9, 0.8]), np.array([class_id] * 2))
        parts.append(compare(found, Truth(np.array([BOX]), np.array([class_id]))))
    return compute_metrics(join(parts), names)


def read(path: Path) -> Any:
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return read_rgb(path)


@pytest.mark.parametrize("count", [0, 1, 80])
def test_curves_are_four_pictures_in_the_folder_and_nothing_else(count: int, tmp_path: Path) -> None:
    names = [f"../../name {k}" for k in range(count)]
    written = write_curves(half_right(names), tmp_path / "run")
    assert sorted(path.name for path in written) == ["F1_curve.png", "PR_curve.png", "P_curve.png", "R_curve.png"]
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "run", *written])
    assert {read(path).shape for path in written} == {(900, 1500, 3)}


def test_the_mean_curve_goes_where_its_values_are(tmp_path: Path) -> None:
    pr_curve = read(write_curves(half_right([f"c{k}" for k in range(30)]), tmp_path)[0])
    # The axes lie at .065 and .09 of the figure, .63 wide and .88 high; y goes up to 1.01.
    column = pr_curve[:, round(1500 * (0.065 + 0.63 * 0.33))].mean(axis=1)  # between two grid lines
    dark = np.flatnonzero(column[:800] < 80)
    assert abs(dark.mean() - 900 * (1 - 0.09 - 0.88 * 0.5 / 1.01)) < 2
    assert 3 <= len(dark) <= 9


def test_names_are_shown_as_they_are_written(tmp_path: Path) -> None:
    # matplotlib would read the first two as formulas (and fail), leave out the third, and warn of the last.
    names = ["$\\notacommand{$", "$x^2$", "_hidden", "\\frac", "100 %", "a\nb", "x" * 500, "<b>&amp;", "\ud800"]
    odd, plain = half_right(names), half_right(["z"] * len(names))
    assert read(write_confusion(np.eye(len(names) + 1, dtype=np.int64), names, tmp_path)).ndim == 3
    legend, plain_legend = (read(write_curves(one, tmp_path)[0])[:, 1105:] for one in (odd, plain))
    rows = np.flatnonzero(np.any(plain_legend < 100, axis=(1, 2)))
    lines = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)  # the rows of pixels of each line of text
    assert len(lines) == len(names) + 1
    for line in lines[:-1]:
        assert np.any(legend[line] != plain_legend[line])
        assert np.any(legend[line] < 100)


@pytest.mark.parametrize("count", [0, 1, 80, 120])
def test_the_confusion_matrix_is_a_picture_for_any_number_of_classes(count: int, tmp_path: Path) -> None:
    matrix = ConfusionMatrix(count)
    path = write_confusion(matrix.counts, [f"name {k}" for k in range(count)], tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "run", path]
    assert path.name == "confusion_matrix.png"
    height, width, _ = read(path).shape
    assert 1400 < height < 2300
    assert 1700 < width < 2700


def test_cells_are_darker_where_more_is_counted(tmp_path: Path) -> None:
    counts = np.array([[9, 0, 90], [1, 0, 0], [0, 7, 0]])  # found as 0, 1, background; labelled 0, 1, background
    picture = read(write_confusion(counts, ["a", "b"], tmp_path))
    blue = picture[:, :, 2] - picture[:, :, 0]
    # The matrix is what is coloured left of the colour bar: find its frame, then look into the corner of each cell.
    coloured = (picture.max(axis=2) - picture.min(axis=2) > 5) | (np.abs(picture - (247, 251, 255)).max(axis=2) < 2)
    rows = np.flatnonzero(coloured[:, : picture.shape[1] * 3 // 4].mean(axis=1) > 0.5)
    columns = np.flatnonzero(coloured[rows[0] : rows[-1]].mean(axis=0) > 0.8)
    columns = columns[columns < picture.shape[1] - 200]
    height, width = rows[-1] - rows[0], columns[-1] - columns[0]
    cells = np.array(
        [
            [blue[rows[0] + round(height * (r + 0.2) / 3), columns[0] + round(width * (c + 0.2) / 3)] for c in range(3)]
            for r in range(3)
        ]
    )
    np.testing.assert_array_equal(cells > 50, [[True, False, True], [False, False, False], [False, True, False]])
    assert cells[1, 0] > cells[2, 0]  # a tenth is a little blue


# ---- in a process of its own: what is loaded, what is logged, which fonts are found ----------------------------------


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)


def test_matplotlib_is_loaded_late_and_pyplot_never(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from utils import plots
assert "matplotlib" not in sys.modules
plots.write_confusion(np.eye(2, dtype=np.int64), ["a"], Path(sys.argv[1]))
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    result = run_python(code, str(tmp_path))
    assert (result.stdout, result.stderr) == ("", "")


def test_names_without_a_font_are_told_once_for_pictures_and_once_for_figures(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from utils import plots
from utils.detections import Detections
names = ["\\U00013000", "\\U00013001"]
boxes = Detections(np.array([[0, 0, 9, 9], [5, 5, 9, 9]], np.float32), np.ones(2, np.float32), np.arange(2))
for _ in range(2):
    plots.draw_boxes(np.zeros((50, 50, 3), np.uint8), boxes, names)
    plots.write_confusion(np.eye(3, dtype=np.int64), names, Path(sys.argv[1]))
"""
    lines = run_python(code, str(tmp_path)).stderr.splitlines()
    assert [("pictures" in line, "figures" in line) for line in lines] == [(True, False), (False, True)]
    assert all("class numbers" in line for line in lines)


def square_font(path: Path, family: str, characters: str) -> None:
    """Make a font file in which each of some characters is a black square."""
    pen = TTGlyphPen(None)
    for step, point in enumerate(((100, 0), (100, 800), (900, 800), (900, 0))):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    square, glyphs = pen.glyph(), [f"uni{ord(c):04X}" for c in characters]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *glyphs])
    builder.setupCharacterMap({ord(c): glyph for c, glyph in zip(characters, glyphs)})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(glyphs, square)})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *glyphs), (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_figures_use_an_installed_chinese_font_for_the_letters_that_it_has(tmp_path: Path) -> None:
    square_font(tmp_path / "squares.ttf", "WenQuanYi Zen Hei", "\u9fef\u9fee")
    code = """
import sys
from pathlib import Path
import numpy as np
from matplotlib.font_manager import fontManager
fontManager.ttflist = [font for font in fontManager.ttflist if "DejaVu" in font.name]  # a machine with this font only
fontManager.addfont(sys.argv[1] + "/squares.ttf")
from utils import plots
for folder, name in (("drawn", "\\u9fefa"), ("number", "class 0"), ("lacking", "\\u9fefa\\U00013000")):
    plots.write_confusion(np.eye(2, dtype=np.int64), [name], Path(sys.argv[1]) / folder)
"""
    lines = run_python(code, str(tmp_path)).stderr.splitlines()
    drawn, number, lacking = (read(tmp_path / f / "confusion_matrix.png") for f in ("drawn", "number", "lacking"))
    assert np.any(drawn != number)
    np.testing.assert_array_equal(lacking, number)
    assert len(lines) == 1
    assert "figures" in lines[0]
