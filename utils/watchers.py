"""Watchers: what is added up, written or drawn of each picture while a validation runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from utils.batches import Canvas, Shot, Tally
from utils.boxes import to_cxcywh
from utils.coco_metrics import CocoFigures, category_ids, coco_figures, coco_json_rows
from utils.detections import Detections
from utils.files import replacing
from utils.labels import Labels
from utils.letterbox import Letterbox
from utils.metrics import BoolArray, Found, Truth
from utils.plots import MAX_TILES, Tile, draw_mosaic, labels_to_draw, write_jpeg

DRAWN_BATCHES = 3
DRAWN_SCORE = 0.25  # least score of a box that is drawn


@dataclass(frozen=True)
class Seen:
    """One picture after detection. Labels and detections are in picture pixels."""

    shot: Shot
    canvas: Canvas
    letterbox: Letterbox
    labels: Labels
    detections: Detections


Watcher = Callable[[Sequence[Seen]], None]  # told of the pictures of each batch


class CocoTally:
    """Keeps all labels and detections, for figures that only can be computed at the end."""

    def __init__(self) -> None:
        self._shots: list[Shot] = []
        self._truths: list[Truth] = []
        self._crowds: list[BoolArray] = []
        self._found: list[Found] = []

    def __call__(self, seen: Sequence[Seen]) -> None:
        """Keep these pictures'."""
        for one in seen:
            self._shots.append(one.shot)
            self._truths.append(Truth(one.labels.boxes_px, one.labels.class_ids))
            self._crowds.append(one.labels.is_crowd)
            self._found.append(Found(one.detections.boxes_px, one.detections.scores, one.detections.class_ids))

    def figures(self, class_count: int) -> CocoFigures:
        """Compute COCO's figures."""
        return coco_figures(self._truths, self._found, class_count, self._crowds)

    def write_json(self, path: Path, names: Sequence[str]) -> None:
        """Write COCO's result file; names: of the classes, by which COCO's own 80 get their category ids."""
        categories = category_ids(names)
        separator = b""
        with replacing(path) as file:
            file.write(b"[")
            for shot, found in zip(self._shots, self._found):
                rows = coco_json_rows(shot.path.stem, found, categories)
                if rows:  # a picture a line
                    file.write(separator + json.dumps(rows)[1:-1].encode())
                    separator = b",\n"
            file.write(b"]\n")


class TextLabels:
    """Writes a label file `class cx cy w h [score]` in 0..1 for each picture in which something was found."""

    def __init__(self, folder: Path, has_scores: bool) -> None:
        self.repeated = Tally()  # pictures whose name without suffix another one had
        self._folder = folder
        self._has_scores = has_scores
        self._taken: dict[str, int] = {}  # how often a name was asked for
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, seen: Sequence[Seen]) -> None:
        """Write these pictures'."""
        for one in seen:
            path = self._path_of(one.shot)
            if len(one.detections):
                path.write_text(label_text(one.detections, one.letterbox.image_hw, self._has_scores))

    def _path_of(self, shot: Shot) -> Path:
        stem = shot.path.stem
        while stem in self._taken:
            self._taken[stem] += 1
            stem = f"{stem}-{self._taken[stem]}"
        self._taken[stem] = 1
        if stem != shot.path.stem:
            self.repeated.add(f"{shot.path} is {stem}.txt")
        return self._folder / f"{stem}.txt"


def label_text(detections: Detections, image_hw: tuple[int, int], has_scores: bool) -> str:
    """Give a picture's detections as the lines of a label file, best first."""
    height, width = image_hw
    boxes = to_cxcywh(detections.boxes_px) / [width, height, width, height]  # (N, 4) in 0..1
    lines = []
    for class_id, box, score in zip(detections.class_ids.tolist(), boxes.tolist(), detections.scores.tolist()):
        numbers = [*box, score] if has_scores else box
        lines.append(" ".join([str(class_id), *(f"{number:g}" for number in numbers)]) + "\n")
    return "".join(lines)


class BatchPictures:
    """Draws the first three batches: val_batch0_labels.jpg, val_batch0_pred.jpg, ..."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = tuple(names)
        self._drawn = 0

    def __call__(self, seen: Sequence[Seen]) -> None:
        """Draw these pictures, as the model saw them."""
        if self._drawn == DRAWN_BATCHES:
            return
        for what, tile_of in (("labels", _labels_tile), ("pred", _found_tile)):
            mosaic = draw_mosaic([tile_of(one) for one in seen[:MAX_TILES]], self._names, hide_conf=what == "labels")
            write_jpeg(self._folder / f"val_batch{self._drawn}_{what}.jpg", mosaic)
        self._drawn += 1


def _labels_tile(one: Seen) -> Tile:
    labels = Truth(one.letterbox.to_letterbox(one.labels.boxes_px), one.labels.class_ids)
    return Tile(one.canvas, labels_to_draw(labels), one.shot.path.name)


def _found_tile(one: Seen) -> Tile:
    sure = one.detections.pick(one.detections.scores >= DRAWN_SCORE)
    boxes = one.letterbox.to_letterbox(sure.boxes_px)
    return Tile(one.canvas, Detections(boxes, sure.scores, sure.class_ids), one.shot.path.name)
