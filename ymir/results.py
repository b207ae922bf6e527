"""result.tsv, infer-result.json and models/result.yaml, each replaced in one step (SPEC section 4)."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Optional

import numpy as np
import numpy.typing as npt
import yaml

from utils.detections import Detections
from utils.errors import ExecutorError
from utils.files import replacing
from utils.safe_yaml import read_yaml

LOGGER = logging.getLogger(__name__)

BEST_STAGE = "yolov5_best"
OLD_STAGE = "model"  # stands for the only one of an old protocol
MOST_STAGES = 11  # what the platform keeps of a model
EVALUATE_CONFIG = {"iou_thr": 0.5, "conf_thr": 0.005}  # what the platform displays beside the mAP
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Repeats:
    """How many candidates share a name with an earlier one, and the first of them, to be named in the log."""

    count: int = 0
    first: str = ""


# result.tsv


@dataclass(frozen=True)
class MiningSummary:
    """What stands in result.tsv."""

    lines: int
    repeated_lines: int  # left out: the same line came before
    same_name: Repeats  # kept: other lines, which the platform can't tell apart by base name without suffix


def write_mining_result(path: Path, pairs: Iterable[tuple[str, float]]) -> MiningSummary:
    """Write `LINE<TAB>SCORE`, best first; equal scores by the bytes of the line.

    pairs: in the order of the index; of equal lines the first counts. Scores are rounded to nine digits before they
    are compared. Holds a line's bytes and about 50 more for each.
    """
    table, scores = LineTable(), array("d")
    for line, score in pairs:
        if not math.isfinite(score):
            raise ExecutorError(f"{line}: the score is {score}, need a finite one")
        table.add(line)
        scores.append(score)
    rows = table.distinct()
    own = rounded_scores(np.frombuffer(scores, np.float64)[rows] if len(rows) else np.zeros(0))
    order = table.best_first(rows, own)
    rows, own = rows[order], own[order]
    return table.write(path, rows, own)


def rounded_scores(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round scores as result.tsv shows them, to nine digits; -0.0 becomes 0."""
    return np.fromiter((float(f"{score:.9g}") + 0.0 for score in scores), np.float64, len(scores))


class LineTable:
    """Index lines, packed: a million of them are no million objects. Rows are in the order of adding."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("Q")
        self._lines = _NameTable()
        self._stems = _NameTable()

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, line: str) -> None:
        """Take the next line."""
        encoded = line.encode("utf-8", "surrogateescape")
        self._text += encoded
        self._ends.append(len(self._text))
        self._lines.add(encoded)
        self._stems.add(_stem(line).encode("utf-8", "surrogateescape"))

    def line(self, row: int) -> bytes:
        """Give a line's bytes."""
        start = self._ends[row - 1] if row else 0
        return bytes(self._text[start : self._ends[row]])

    def distinct(self) -> npt.NDArray[np.int64]:
        """Give the rows of which none before has the same line."""
        return self._lines.first_rows()

    def best_first(self, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Give the places of some rows by falling score, equal ones by the bytes of their line."""
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.diff(scores[order]))
        starts = np.concatenate([[0], ends + 1])
        stops = np.concatenate([ends + 1, [len(order)]])
        for group in np.flatnonzero(stops - starts > 1):
            equal = slice(int(starts[group]), int(stops[group]))
            order[equal] = sorted(order[equal], key=lambda place: self.line(int(rows[place])))
        return order

    def line_ranks(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give, for each of some distinct rows, its place among them by the bytes of its line."""
        ranks = np.empty(len(rows), np.int64)
        ranks[sorted(range(len(rows)), key=lambda place: self.line(int(rows[place])))] = np.arange(len(rows))
        return ranks

    def write(self, path: Path, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> MiningSummary:
        """Write result.tsv: distinct rows in this order, with these rounded scores."""
        with _told(path), replacing(path) as file:
            for row, score in zip(rows, scores):
                file.write(b"%s\t%s\n" % (self.line(row), f"{score:.9g}".encode()))
        kept = np.sort(rows)
        later = np.setdiff1d(kept, self._stems.first_rows(kept))
        first = self.line(int(later[0])).decode("utf-8", "surrogateescape") if len(later) else ""
        return MiningSummary(len(rows), len(self) - len(rows), Repeats(len(later), first))


class _NameTable:
    """Digests of names, a row each, to find which rows are the first with their name."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def add(self, name: bytes) -> None:
        self._digests += blake2b(name, digest_size=DIGEST_BYTES).digest()

    def first_rows(self, among: Optional[npt.NDArray[np.int64]] = None) -> npt.NDArray[np.int64]:
        """Give, in rising position, the rows of `among` (default: all) whose name no earlier one of them has."""
        if not self._digests:
            return np.zeros(0, np.int64)
        digests = np.frombuffer(bytes(self._digests), np.dtype((np.bytes_, DIGEST_BYTES)))
        rows = np.arange(len(digests), dtype=np.int64) if among is None else among
        first = np.unique(digests[rows], return_index=True)[1]
        return rows[np.sort(first)]


def _stem(path: str) -> str:
    """Give the base name without its suffix: what the platform takes for a picture's identity in mining."""
    return os.path.splitext(os.path.basename(path))[0]  # noqa: PTH119, PTH122  # Path() costs ten times as much


# infer-result.json


@dataclass(frozen=True)
class InferSummary:
    """What stands in infer-result.json."""

    pictures: int
    boxes: int
    repeats: Repeats  # left out: an earlier candidate has the name


class InferResultWriter:
    """Takes detections in any order, as they are made, and writes infer-result.json in the order of the index.

    What it was given waits in an unnamed file in the result's folder, not in memory; a killed task leaves nothing
    behind. by_stem: the platform knows pictures by their base name without suffix (mining tasks).
    """

    def __init__(
        self, path: Path, class_names: Sequence[str], *, old_protocol: bool = False, by_stem: bool = False
    ) -> None:
        self._path = path
        self._names_json = [json.dumps(name) for name in class_names]
        self._boxes_key = "annotations" if old_protocol else "boxes"
        self._by_stem = by_stem
        self._names = _NameTable()
        self._indices, self._offsets, self._box_counts = array("Q"), array("Q"), array("L")
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._spool: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115  # closed in __exit__
        self._end = 0

    def __enter__(self) -> InferResultWriter:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        with suppress(OSError):  # closing writes what is left, of no use any more where writing failed before
            self._spool.close()

    def add(self, index: int, name: str, detections: Detections, hw: tuple[int, int]) -> None:
        """Take one picture's detections.

        index: its place in the index. name: its base name. hw: its height and width in pixels; for a picture that
        can't be read pass Detections.empty() and any size.
        """
        boxes = ", ".join(self._box_texts(detections, hw))
        text = f'{json.dumps(name)}: {{"{self._boxes_key}": [{boxes}]}}'.encode()
        self._names.add((_stem(name) if self._by_stem else name).encode("utf-8", "surrogateescape"))
        self._indices.append(index)
        self._offsets.append(self._end)
        self._box_counts.append(len(detections))
        self._end += len(text)
        with _told(self._path):
            self._spool.write(text)

    def finish(self) -> InferSummary:
        """Write the file. Of candidates with one name the one with the lowest index has the entry."""
        by_index = np.argsort(np.array(self._indices, np.uint64), kind="stable")
        kept = self._names.first_rows(by_index)
        offsets = np.array([*self._offsets, self._end], np.int64)
        with _told(self._path), replacing(self._path) as file:
            file.write(b'{"detection": {')
            for place, row in enumerate(kept):
                file.write(b", " if place else b"")
                file.write(self._entry(offsets, int(row)))
            file.write(b"}}\n")
        later = by_index[~np.isin(by_index, kept)]
        first = json.JSONDecoder().raw_decode(self._entry(offsets, int(later[0])).decode())[0] if len(later) else ""
        boxes = int(np.array(self._box_counts, np.int64)[kept].sum())
        return InferSummary(len(kept), boxes, Repeats(len(later), first))

    def _entry(self, offsets: npt.NDArray[np.int64], row: int) -> bytes:
        self._spool.seek(int(offsets[row]))
        return self._spool.read(int(offsets[row + 1] - offsets[row]))

    def _box_texts(self, detections: Detections, hw: tuple[int, int]) -> Iterator[str]:
        boxes_xywh = whole_boxes(detections.boxes_px, hw).tolist()
        for (x, y, w, h), score, class_id in zip(boxes_xywh, detections.scores.tolist(), detections.class_ids.tolist()):
            yield (
                f'{{"box": {{"x": {x}, "y": {y}, "w": {w}, "h": {h}}}, '
                f'"class_name": {self._names_json[class_id]}, "score": {score:.6f}}}'
            )


def whole_boxes(boxes_px: npt.NDArray[np.floating[Any]], hw: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Round (N, 4) xyxy pixels to (N, 4) whole x, y, w, h inside a picture of hw, w and h at least 1.

    x = floor(x1 + 1/2), w = max(1, floor(x2 + 1/2) - x), then clipped (SPEC section 4).
    """
    edges = np.floor(np.asarray(boxes_px, np.float64) + 0.5).astype(np.int64)  # (N, 4)
    size = np.array([hw[1], hw[0]], np.int64)  # width, height
    corner = np.clip(edges[:, :2], 0, size - 1)
    extent = np.clip(edges[:, 2:] - corner, 1, size - corner)
    return np.concatenate([corner, extent], axis=1)


# models/result.yaml


@dataclass(frozen=True)
class ModelStage:
    """One set of weights that the platform can use later. mean_ap: COCO 0.5:0.95, in 0..1."""

    name: str
    files: tuple[str, ...]  # names in models/NAME/ or in models/
    mean_ap: float
    timestamp: int

    def __post_init__(self) -> None:
        if not 0 <= self.mean_ap <= 1:  # the platform would drop the whole model
            raise ExecutorError(f"stage {self.name}: mAP is {self.mean_ap}, need a number from 0 to 1")
        if not self.name or "/" in self.name or self.name in (".", ".."):
            raise ExecutorError(f"stage {self.name!r}: need a name that can be a folder's")


def write_stages(
    path: Path,
    models_dir: Path,
    stages: Sequence[ModelStage],
    *,
    old_protocol: bool = False,
    attachments: Optional[Mapping[str, Sequence[str]]] = None,
    evaluate_config: Mapping[str, float] = EVALUATE_CONFIG,
) -> tuple[ModelStage, ...]:
    """Replace result.yaml, and give the stages that stand in it; the folders of others may be deleted.

    A stage lists those of its files that exist at this moment; one without any is left out. More than eleven: the
    best, yolov5_best and the newest stay. Of stages with the same mAP the later in `stages` is the better.
    """
    complete = [_existing(stage, models_dir) for stage in stages]
    kept = _select([stage for stage in complete if stage.files])
    if not kept:
        raise ExecutorError(f"{path}: no stage has a file in {models_dir}")
    best = _best(kept)
    content: dict[str, Any]
    if old_protocol:
        content = {"model": list(best.files), "map": float(best.mean_ap)}
    else:
        content = {
            "model_stages": {stage.name: _stage_entry(stage) for stage in kept},
            "best_stage_name": best.name,
            "mAP": float(best.mean_ap),
            "evaluate_config": dict(evaluate_config),
        }
        present = {key: [file for file in files if _is_there(file, models_dir)] for key, files in _items(attachments)}
        if any(present.values()):
            content["attachments"] = {key: files for key, files in present.items() if files}
    with _told(path), replacing(path) as file:
        file.write(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode("utf-8", "backslashreplace"))
    return tuple(kept)


def read_stages(path: Path) -> tuple[ModelStage, ...]:
    """Read back the stages of a result.yaml that this executor wrote, of either protocol; no file: ()."""
    if not path.exists():
        return ()
    try:
        content = read_yaml(path, ExecutorError)
        if "model" in content:
            return (ModelStage(OLD_STAGE, _file_names(content["model"]), float(content["map"]), 0),)
        entries = content["model_stages"].values()
        return tuple(
            ModelStage(
                str(entry["stage_name"]), _file_names(entry["files"]), float(entry["mAP"]), int(entry["timestamp"])
            )
            for entry in entries
        )
    # OverflowError: a time that is infinite
    except (ExecutorError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as cause:
        LOGGER.warning("%s: is no list of stages (%s), it is started anew", path, type(cause).__name__)
        return ()


def _file_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("files")
    return tuple(value)


def matching_files(models_dir: Path, patterns: str) -> tuple[str, ...]:
    """Give the files of models_dir that one of the comma-separated regular expressions finds itself in, by name."""
    found = [re.compile(pattern.strip()) for pattern in patterns.split(",") if pattern.strip()]
    names = sorted(file.name for file in models_dir.iterdir() if file.is_file()) if found else []
    return tuple(name for name in names if any(pattern.search(name) for pattern in found))


def _stage_entry(stage: ModelStage) -> dict[str, Any]:
    return {
        "stage_name": stage.name,
        "files": list(stage.files),
        "timestamp": int(stage.timestamp),
        "mAP": float(stage.mean_ap),
    }


def _best(stages: Sequence[ModelStage]) -> ModelStage:
    return max(enumerate(stages), key=lambda item: (item[1].mean_ap, item[0]))[1]


def _select(stages: Sequence[ModelStage]) -> list[ModelStage]:
    """Keep eleven at most, in their order."""
    if len(stages) <= MOST_STAGES:
        return list(stages)
    best = _best(stages).name

    def worth(place: int) -> tuple[bool, int, int]:
        return stages[place].name in (best, BEST_STAGE), stages[place].timestamp, place

    places = sorted(range(len(stages)), key=worth, reverse=True)[:MOST_STAGES]
    return [stages[place] for place in sorted(places)]


def _existing(stage: ModelStage, models_dir: Path) -> ModelStage:
    files = tuple(
        str(file)
        for file in dict.fromkeys(stage.files)
        if _is_there(file, models_dir / stage.name) or _is_there(file, models_dir)
    )
    return ModelStage(stage.name, files, stage.mean_ap, stage.timestamp)


def _is_there(file: str, folder: Path) -> bool:
    """Say whether a stage may list this name: a regular file below the folder."""
    inside = not os.path.isabs(file) and ".." not in Path(file).parts  # noqa: PTH117
    return inside and os.path.isfile(folder / file)  # noqa: PTH113  # Path's own question raises on long names


def _items(attachments: Optional[Mapping[str, Sequence[str]]]) -> Iterable[tuple[str, Sequence[str]]]:
    return attachments.items() if attachments else ()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn the system's error on writing (a full disk, no rights) into one line that says what to do."""
    try:
        yield
    except OSError as cause:
        raise ExecutorError(
            f"{path}: can't be written ({cause.strerror}); check the space and the rights of its folder"
        ) from cause
