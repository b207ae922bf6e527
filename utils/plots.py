"""Pictures for people: boxes drawn on pictures (OpenCV), curves and the confusion matrix (matplotlib).

Names of classes come from users: they are cleaned and cut, and never read as mathematics. A name that a font can't draw
is shown as `class N`; one line in the log says so. Nothing here keeps state in matplotlib's pyplot.
"""

from __future__ import annotations

import colorsys
import importlib.util
import logging
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import cv2
import numpy as np
import numpy.typing as npt

from utils.detections import Detections
from utils.files import write_whole
from utils.metrics import CONFIDENCES, FloatArray, IntArray, Metrics, Truth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG = logging.getLogger(__name__)

Rgb = tuple[int, int, int]
Picture = npt.NDArray[np.uint8]  # (H, W, 3) RGB

MAX_NAME = 24  # columns of a class name that are shown
MAX_TILES = 16  # pictures in a mosaic
MAX_MOSAIC_SIDE = 1920  # px
MAX_LEGEND = 20  # classes that get a line of their own in a legend
MAX_CELL_TEXTS = 30  # classes up to which the matrix shows numbers
MAX_TICK_NAMES = 99  # and names
SMALLEST_TEXT = 12  # px
JPEG_QUALITY = 95
PNG_COMPRESSION = 1  # of 9: a tenth of the time for a third more bytes
DPI = 150
DARK, WHITE, GREY = (30, 30, 30), (255, 255, 255), (114, 114, 114)
MEAN_COLOUR = "0.15"

# Fonts with Chinese, Japanese and Korean glyphs, as matplotlib calls them, and the one that a package brings along.
CJK_FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
)
CJK_PACKAGE, CJK_PACKAGE_FILE = "noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc"
BASE_FAMILY = "DejaVu Sans"  # matplotlib's own


def class_colour(class_id: int) -> Rgb:
    """Give a class its colour: neighbours differ in hue by the golden angle, and take turns in strength."""
    hue = (0.6 + class_id * 0.618034) % 1
    saturation, value = ((0.9, 0.95), (0.65, 0.8), (0.95, 0.7))[class_id % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


# ---- names -----------------------------------------------------------------------------------------------------------


def clean_name(name: str) -> str:
    """Give a name as one short line: no control, format or surrogate characters, at most MAX_NAME columns of others."""
    composed = unicodedata.normalize("NFC", name[: 8 * MAX_NAME])
    visible = "".join(" " if c.isspace() else c for c in composed if c.isspace() or unicodedata.category(c)[0] != "C")
    line = " ".join(visible.split())
    if _columns(line) <= MAX_NAME:
        return line
    while _columns(line) > MAX_NAME - 2:
        line = line[:-1]
    return line + ".."


def _columns(line: str) -> int:
    """Count how many letters' room a line takes; Chinese, Japanese and Korean ones are two wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def _stand_in(class_id: int) -> str:
    return f"class {class_id}"


def _picture_name(names: Sequence[str], class_id: int) -> str:
    """Give the text that OpenCV draws for a class."""
    name = clean_name(names[class_id]) if class_id < len(names) else ""
    if _is_drawable(name):
        return name
    _say_once("pictures", "this OpenCV has no font for them")
    return _stand_in(class_id)


@lru_cache(maxsize=4096)
def _is_drawable(name: str) -> bool:
    """Tell whether OpenCV draws every character of a name; 5 puts a question mark for one that it lacks."""
    if name.isascii():
        return name != ""
    return _has_face() and all(c.isascii() or _glyph(c) not in (_glyph(" "), _glyph("?")) for c in name)


def _has_face() -> bool:
    return hasattr(cv2, "FontFace")  # OpenCV 5; the fonts of 4 are ASCII only


def _glyph(character: str) -> bytes:
    return _text_patch(character, 24, DARK, WHITE).tobytes()


@cache
def _say_once(where: str, reason: str) -> None:
    LOG.warning("some class names can't be drawn in %s (%s): class numbers stand for them", where, reason)


# ---- boxes on pictures -----------------------------------------------------------------------------------------------


def draw_boxes(
    picture: Picture,
    detections: Detections,
    names: Sequence[str],
    line_thickness: int = 3,
    hide_labels: bool = False,
    hide_conf: bool = False,
) -> Picture:
    """Give a copy of an RGB picture with its boxes (in its own pixels), each in its class's colour with its name."""
    canvas = np.array(picture, order="C")  # a copy, whatever the picture's memory is like
    height, width = canvas.shape[:2]
    thickness = max(line_thickness, 1)
    corners = np.floor(detections.boxes_px + 0.5).astype(int)
    corners[:, 0::2] = corners[:, 0::2].clip(0, width - 1)
    corners[:, 1::2] = corners[:, 1::2].clip(0, height - 1)
    worst_first = range(len(detections) - 1, -1, -1)  # the best ones end on top
    for row in worst_first:
        x1, y1, x2, y2 = corners[row].tolist()
        colour = class_colour(int(detections.class_ids[row]))
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness)
    for row in () if hide_labels else worst_first:
        class_id = int(detections.class_ids[row])
        text = _picture_name(names, class_id)
        if not hide_conf:
            text = f"{text} {detections.scores[row]:.2f}"
        x1, y1 = corners[row, :2].tolist()
        patch = _text_patch(text, max(6 * thickness, SMALLEST_TEXT), *_text_colours(class_colour(class_id)))
        _paste(canvas, patch, x1 - thickness // 2, y1 - len(patch) - thickness // 2)
    return canvas


def _text_colours(background: Rgb) -> tuple[Rgb, Rgb]:
    """Give the colour of a text that can be read on a background (Rec. 601 luma), and that background."""
    luma = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2]
    return (DARK if luma > 140 else WHITE), background


def _text_patch(text: str, height_px: int, colour: Rgb, background: Rgb) -> Picture:
    """Draw one line of text on a patch of its own that holds it whole."""
    margin = max(height_px // 6, 1)
    if not _has_face():
        return _ascii_patch(text, height_px, margin, colour, background)
    face, regular = cv2.FontFace("sans"), 400
    left, top, width, height = cv2.getTextSize((0, 0), text, (0, 0), face, height_px, regular)
    height = max(height, round(1.25 * height_px)) + margin  # the same for a text with and without descenders
    patch = np.full((height, width + 2 * margin, 3), background, np.uint8)
    cv2.putText(patch, text, (margin - left, margin // 2 - top), colour, face, height_px, regular)
    return patch


def _ascii_patch(text: str, height_px: int, margin: int, colour: Rgb, background: Rgb) -> Picture:
    """Draw as _text_patch does, with what OpenCV 4 has."""
    face, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(height_px // 14, 1)
    scale = cv2.getFontScaleFromHeight(face, round(height_px * 0.7), thickness)
    (width, height), below = cv2.getTextSize(text, face, scale, thickness)
    patch = np.full((height + below + margin, width + 2 * margin, 3), background, np.uint8)
    cv2.putText(patch, text, (margin, margin // 2 + height), face, scale, colour, thickness, cv2.LINE_AA)
    return patch


def _paste(canvas: Picture, patch: Picture, x: int, y: int) -> None:
    """Lay a patch on a canvas, moved inside where it would stick out; what is larger than the canvas is cut off."""
    height, width = canvas.shape[:2]
    x, y = max(min(x, width - patch.shape[1]), 0), max(min(y, height - patch.shape[0]), 0)
    window = canvas[y : y + patch.shape[0], x : x + patch.shape[1]]
    window[:] = patch[: window.shape[0], : window.shape[1]]


@dataclass(frozen=True)
class Tile:
    """One picture of a mosaic."""

    picture: Picture  # (H, W, 3) uint8 RGB
    detections: Detections  # in this picture's pixels
    caption: str


def labels_to_draw(truth: Truth) -> Detections:
    """Give labels the form of detections, to be drawn with hide_conf."""
    return Detections(truth.boxes.astype(np.float32), np.ones(len(truth.boxes), np.float32), truth.class_ids)


def draw_mosaic(tiles: Sequence[Tile], names: Sequence[str], hide_conf: bool = False) -> Picture:
    """Draw up to 16 pictures with their boxes and captions in rows, at most 1920 px a side."""
    tiles = tiles[:MAX_TILES]
    across = max(math.ceil(math.sqrt(len(tiles))), 1)
    cell_hw = np.max([tile.picture.shape[:2] for tile in tiles] or [(1, 1)], axis=0)  # holds the largest
    shrink = min(1.0, MAX_MOSAIC_SIDE / across / cell_hw.max())
    height, width = (max(round(side * shrink), 1) for side in cell_hw.tolist())
    mosaic = np.full((across * height, across * width, 3), 255, np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // across * height, place % across * width
        drawn = _draw_tile(tile, names, (height, width), hide_conf)
        mosaic[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
        cv2.rectangle(mosaic, (left, top), (left + width - 1, top + height - 1), WHITE, 1)
    return mosaic


def _draw_tile(tile: Tile, names: Sequence[str], cell_hw: tuple[int, int], hide_conf: bool) -> Picture:
    """Scale a picture into a cell, then draw, so that lines and texts stay sharp."""
    height, width = tile.picture.shape[:2]
    scale = min(cell_hw[0] / height, cell_hw[1] / width)
    resized_wh = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(tile.picture, resized_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    boxes = tile.detections.boxes_px * np.float32(scale)
    scaled = Detections(boxes, tile.detections.scores, tile.detections.class_ids)
    drawn = draw_boxes(small, scaled, names, line_thickness=max(round(max(cell_hw) / 300), 1), hide_conf=hide_conf)
    caption = clean_name(tile.caption)
    if _is_drawable(caption):
        _paste(drawn, _text_patch(caption, SMALLEST_TEXT, WHITE, GREY), 0, len(drawn))  # names stand at boxes' tops
    return drawn


def write_jpeg(path: Path, picture: Picture) -> None:
    """Write an RGB picture as a JPEG file, in one step."""
    _, content = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    write_whole(path, content.tobytes())


# ---- figures ---------------------------------------------------------------------------------------------------------


def write_curves(metrics: Metrics, folder: Path) -> tuple[Path, ...]:
    """Write PR_curve.png, F1_curve.png, P_curve.png and R_curve.png into a folder."""
    best = int(np.searchsorted(CONFIDENCES, metrics.confidence))
    ap50 = [row.ap50 for row in metrics.classes]
    figure = _curve_figure(metrics, metrics.curves.precision_at_recall, ap50, f"{metrics.map50:.3f} mAP@0.5")
    figure.axes[0].set(xlabel="Recall", ylabel="Precision")
    written = [save_figure(figure, folder / "PR_curve.png")]
    for name, rows in (("F1", metrics.curves.f1), ("P", metrics.curves.p), ("R", metrics.curves.r)):
        values = rows[:, best].tolist()
        figure = _curve_figure(metrics, rows, values, f"{np.mean(values or [0]):.3f} at {metrics.confidence:.3f}")
        figure.axes[0].set(xlabel="Confidence", ylabel={"F1": "F1", "P": "Precision", "R": "Recall"}[name])
        figure.axes[0].axvline(metrics.confidence, color="0.6", linewidth=1, linestyle=":", zorder=1)
        written.append(save_figure(figure, folder / f"{name}_curve.png"))
    return tuple(written)


def _curve_figure(metrics: Metrics, rows: FloatArray, values: Sequence[float], mean_value: str) -> Figure:
    """Draw a thin curve over 0..1 for each class and a thick one for their mean, with what the legend says of them."""
    from matplotlib.collections import LineCollection

    figure = new_figure(10, 6)
    axes = figure.add_axes((0.065, 0.09, 0.63, 0.88))
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if not len(rows):
        axes.text(0.5, 0.5, "no labels", ha="center", color="0.5")
        return figure
    x = np.linspace(0, 1, rows.shape[1])  # CONFIDENCES or CURVE_RECALLS
    mean = axes.plot(x, rows.mean(axis=0), linewidth=3, color=MEAN_COLOUR, zorder=2.5)
    if len(rows) > MAX_LEGEND:
        curves = np.stack(np.broadcast_arrays(x, rows), axis=2)  # (C, 1000, 2)
        axes.add_collection(LineCollection(list(curves), linewidth=1, color="0.75", alpha=0.6))
        lines, texts = mean, []
    else:
        lines = [line for row in rows for line in axes.plot(x, row, linewidth=1, zorder=3)]
        for line, one in zip(lines, metrics.classes):
            red, green, blue = class_colour(one.class_id)
            line.set_color((red / 255, green / 255, blue / 255))
        lines = [*lines, *mean]
        names = figure_names([(one.class_id, one.name) for one in metrics.classes])
        texts = [f"{name}: {value:.3f}" for name, value in zip(names, values)]
    # matplotlib leaves out a label that begins with an underscore, so the texts are set afterwards.
    legend = axes.legend(lines, ["-"] * len(lines), loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    for text, label in zip(legend.get_texts(), [*texts, f"all classes: {mean_value}"]):
        text.set(text=label, **plain_text(9))
    return figure


def write_confusion(counts: IntArray, names: Sequence[str], folder: Path) -> Path:
    """Write confusion_matrix.png into a folder: for each class labelled, as which classes it was found.

    counts: (C + 1, C + 1), row = found, column = labelled, the last of each = background (utils.metrics).
    """
    count = len(counts)
    shares = counts / np.maximum(counts.sum(axis=0), 1)  # each column adds up to 1
    texts = [*figure_names(list(enumerate(names[: count - 1]))), "background"] if count - 1 <= MAX_TICK_NAMES else [""]
    font_size = max(min(12.0, 460 / count), 3.5)  # points
    margin = 0.6 + max(map(_columns, texts)) * font_size * 0.65 / 72  # inches
    figure = new_figure(12 + margin, 9.5 + margin)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((margin / width, margin / height, 1 - (margin + 1.2) / width, 1 - (margin + 0.2) / height))
    mesh = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    colour_bar = figure.colorbar(mesh, cax=figure.add_axes((1 - 0.9 / width, margin / height, 0.3 / width, 0.6)))
    colour_bar.outline.set_visible(False)
    figure.text(0.5, 0.15 / height, "Labelled as (each column adds up to 1)", ha="center", fontsize=11)
    figure.text(0.15 / width, 0.5, "Found as", va="center", rotation=90, fontsize=11)
    axes.set(xticks=[], yticks=[])
    for place, text in enumerate(texts):  # texts, not ticks: those are measured again and again
        below, left = axes.get_xaxis_transform(), axes.get_yaxis_transform()  # a cell one way, a share the other way
        axes.text(place, -0.01, text, ha="center", va="top", rotation=90, transform=below, **plain_text(font_size))
        axes.text(-0.01, place, text, ha="right", va="center", transform=left, **plain_text(font_size))
    if count - 1 <= MAX_CELL_TEXTS:
        _write_shares(axes, shares, font_size)
    for side in axes.spines.values():
        side.set_visible(False)
    return save_figure(figure, folder / "confusion_matrix.png")


def _write_shares(axes: Axes, shares: FloatArray, font_size: float) -> None:
    """Write the share into each cell that has one, and draw white lines between the cells."""
    for row, column in np.argwhere(shares >= 0.005).tolist():
        share = float(shares[row, column])
        colour = "white" if share > 0.5 else "0.2"
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=font_size)
    for line in np.arange(len(shares) - 1) + 0.5:
        axes.axhline(line, color="white", linewidth=2)
        axes.axvline(line, color="white", linewidth=2)


def new_figure(width: float, height: float) -> Figure:
    """Make a figure (inches) that belongs to no window and no list of open ones."""
    from matplotlib.figure import Figure  # a second's work, for those who draw

    return Figure(figsize=(width, height), dpi=DPI)


def save_figure(figure: Figure, path: Path) -> Path:
    """Draw a figure once and write it, PNG or, where `path` says so, JPEG; savefig draws twice and packs slowly."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # matplotlib leaves its methods without types
    canvas.draw()
    rgb = np.asarray(canvas.buffer_rgba())[:, :, :3]  # (H, W, 4) -> (H, W, 3)
    if path.suffix == ".jpg":
        write_jpeg(path, rgb)
        return path
    _, content = cv2.imencode(".png", rgb[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])
    write_whole(path, content.tobytes())
    return path


def plain_text(size: float) -> dict[str, Any]:
    """Give what a text needs to be drawn letter by letter, in whichever font has the letter."""
    return {"parse_math": False, "fontfamily": [BASE_FAMILY, *_cjk_families()], "fontsize": size}


def figure_names(names: Sequence[tuple[int, str]]) -> list[str]:
    """Give the text that matplotlib draws for each (class id, name)."""
    shown = []
    for class_id, name in names:
        cleaned = clean_name(name)
        if not cleaned or not all(_figure_has(c) for c in cleaned):
            _say_once("figures", "no installed font has them; fonts-wqy-microhei would")
            cleaned = _stand_in(class_id)
        shown.append(cleaned)
    return shown


@lru_cache(maxsize=8192)
def _figure_has(character: str) -> bool:
    if character.isascii():
        return True
    return any(font.get_char_index(ord(character)) for font in _fonts())


@cache
def _fonts() -> tuple[Any, ...]:
    """Open matplotlib's own font and those with CJK glyphs that this machine has."""
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return tuple(FT2Font(findfont(family)) for family in (BASE_FAMILY, *_cjk_families()))


@cache
def _cjk_families() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    packaged = _packaged_font()
    if packaged is not None:
        fontManager.addfont(packaged)
    installed = {font.name for font in fontManager.ttflist}
    return tuple(family for family in CJK_FAMILIES if family in installed)


def _packaged_font() -> Optional[Path]:
    """Find the font of the package noto-cjk-sans-otc, without importing it."""
    package = importlib.util.find_spec(CJK_PACKAGE)
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).with_name(CJK_PACKAGE_FILE)
    return path if path.is_file() else None
