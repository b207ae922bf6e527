"""Result files: what is written, or shown, of what was found in a picture or frame: drawings, labels, crops."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Callable, Optional

import cv2
import numpy as np
import simplejpeg

from utils.batches import Loaded, Place
from utils.boxes import clip, to_cxcywh, to_xyxy
from utils.detections import Detections
from utils.errors import ConfigError, ExecutorError, ImageError
from utils.jpeg import Pixels
from utils.machine import usable_cpus
from utils.media import MOST_STEM_BYTES, Source
from utils.pictures import read_picture
from utils.plots import draw_boxes
from utils.settings import LoaderSettings, PictureSettings, check_at_least

LOGGER = logging.getLogger(__name__)

JPEG_QUALITY = 95  # OpenCV's, so YOLOv5's
CROP_GAIN, CROP_PAD_PX = 1.02, 10


@dataclass(frozen=True)
class SaveSettings:
    """What is written, or shown, of each picture or frame."""

    pictures: bool = True  # with the boxes drawn, under the source's own name
    labels: bool = False  # labels/STEM.txt: class cx cy w h, in 0..1 of the picture
    scores: bool = False  # in the labels, too
    crops: bool = False  # crops/CLASS/STEM.jpg
    show: bool = False  # in a window
    line_thickness: int = 3  # px
    hide_labels: bool = False
    hide_conf: bool = False

    def __post_init__(self) -> None:
        check_at_least("--line-thickness", self.line_thickness, 1)

    @property
    def writes(self) -> bool:
        """Whether a folder is needed."""
        return self.pictures or self.labels or self.crops

    @property
    def draws(self) -> bool:
        """Whether boxes are drawn."""
        return self.pictures or self.show

    @property
    def needs_pixels(self) -> bool:
        """Whether the picture itself is needed beside what was found in it."""
        return self.draws or self.crops


@dataclass(frozen=True)
class Found:
    """What was found in one picture or frame."""

    source: Source
    image_hw: tuple[int, int]
    detections: Detections


def describe(found: Found, total: int, names: Sequence[str]) -> str:
    """Give the line about a picture or frame that YOLOv5 logs: image 3/128 PATH: 2 persons, 1 dog."""
    source = found.source
    kind, frame = ("video", f" ({source.frame})") if source.is_video else ("image", "")
    numbers = sorted(Counter(found.detections.class_ids.tolist()).items())
    things = ", ".join(f"{number} {names[class_id]}{'s' * (number > 1)}" for class_id, number in numbers)
    return f"{kind} {source.number}/{total}{frame} {source.path}: {things or '(no detections)'}"


class KeptPictures:
    """Decoded pictures that wait to be drawn on, as many as fit into so many bytes; others are decoded again."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._kept: dict[int, Pixels] = {}
        self._lock = Lock()

    def load(self, source: Source, place: Place[Source], settings: LoaderSettings) -> Loaded:
        """Do what utils.batches.load does, and keep the picture. Raises ImageError."""
        picture = read_picture(source.path, settings.pictures)
        letterbox = place(source, picture.full_hw)
        canvas = np.empty((*letterbox.canvas_hw, 3), np.uint8)
        letterbox.draw(picture.rgb, canvas)
        with self._lock:
            if picture.rgb.nbytes <= self._left:
                self._left -= picture.rgb.nbytes
                self._kept[source.number] = picture.rgb
        return Loaded(canvas, letterbox, picture.warning)

    def take(self, source: Source) -> Optional[Pixels]:
        """Give a picture's pixels, if they were kept, and forget them."""
        with self._lock:
            rgb = self._kept.pop(source.number, None)
            self._left += rgb.nbytes if rgb is not None else 0
        return rgb


def claim_folder(wanted: Path, exist_ok: bool, saving: SaveSettings, sources: Sequence[Source]) -> Path:
    """Make the folder for results: the one named, or that with the first number that is free.

    Two runs that start together get two folders. Raises ConfigError where results would overwrite the sources.
    """
    folder = wanted
    numbers = count(2)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                break
            except FileExistsError:
                if exist_ok and folder.is_dir():
                    break
                folder = wanted.with_name(f"{wanted.name}{next(numbers)}")
        if os.path.realpath(folder) in {os.path.realpath(source.path.parent) for source in sources}:
            raise ConfigError(f"{folder}: holds the sources, results would overwrite them; name another with --name")
        if saving.labels:
            (folder / "labels").mkdir(exist_ok=True)
    except OSError as cause:
        raise ConfigError(f"{folder}: can't be made or used ({cause.strerror}); see --project and --name") from cause
    return folder


def safe_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Give each class a folder name of its own: its name without separators and control characters."""
    folders: dict[str, int] = {}
    for class_id, name in enumerate(names):
        visible = "".join("_" if mark in "/\\" or not mark.isprintable() else mark for mark in name)
        safe = visible.encode("utf-8", "ignore")[:MOST_STEM_BYTES].decode("utf-8", "ignore").strip()
        if safe.strip(".") == "":
            safe = "_"
        while safe in folders:
            safe = f"{safe}_{class_id}"
        folders[safe] = class_id
    return tuple(folders)


@dataclass(frozen=True)
class Output:
    """Writes results into one folder; every file name in it is a source's stem, a number and a suffix."""

    folder: Optional[Path]
    names: tuple[str, ...]
    class_folders: tuple[str, ...]
    saving: SaveSettings
    pictures: PictureSettings

    def save_picture(self, found: Found, kept: KeptPictures) -> None:
        """Save all that is asked for of one picture."""
        self.save_labels(found)
        rgb = kept.take(found.source)
        if not (self.saving.draws or (self.saving.crops and len(found.detections))):
            return
        try:
            if rgb is None:
                rgb = read_picture(found.source.path, self.pictures).rgb
            self.save_crops(found, rgb)
            drawn = self.draw(found, rgb)
            if self.saving.pictures:
                content = encode(drawn, found.source.suffix)
                self._write(f"{found.source.stem}{found.source.suffix}", content)
        except ImageError as error:  # changed since it was read, or too large for its file type
            LOGGER.warning("%s: is not drawn: %s", found.source.path, error)

    def save_labels(self, found: Found) -> None:
        """Write labels/STEM.txt; where nothing was found there is no file, as in YOLOv5."""
        if not self.saving.labels:
            return
        lines = label_lines(found, self.saving.scores)
        name = f"labels/{found.source.result_stem}.txt"
        if lines:
            self._write(name, "".join(lines).encode())
        else:
            with write_errors(self.path(name)):
                self.path(name).unlink(missing_ok=True)  # of an earlier run, with --exist-ok

    def save_crops(self, found: Found, rgb: Pixels) -> None:
        """Write a picture of each box, with a little of what is around it: crops/CLASS/STEM.jpg, STEM2.jpg, ..."""
        if not self.saving.crops:
            return
        numbers = Counter[int]()
        for class_id, crop in cut_out(found.detections, rgb):
            folder = f"crops/{self.class_folders[class_id]}"
            content = encode(crop, ".jpg")
            while True:
                numbers[class_id] += 1
                number = str(numbers[class_id]) if numbers[class_id] > 1 else ""
                if self._write(f"{folder}/{found.source.result_stem}{number}.jpg", content, replaces=False):
                    break

    def draw(self, found: Found, rgb: Pixels) -> Pixels:
        """Give the picture with its boxes, and show it if asked for."""
        if not self.saving.draws:
            return rgb
        drawn = draw_boxes(
            rgb,
            found.detections,
            self.names,
            self.saving.line_thickness,
            self.saving.hide_labels,
            self.saving.hide_conf,
        )
        if self.saving.show:
            cv2.imshow("detect", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
            cv2.waitKey(1)
        return drawn

    def path(self, name: str) -> Path:
        """Give the path of a result."""
        assert self.folder is not None
        return self.folder / name

    def _write(self, name: str, content: bytes, replaces: bool = True) -> bool:
        """Write a file anew, never through a link that lies there. False: it is there and not to be replaced."""
        path = self.path(name)
        with write_errors(path):
            if replaces:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = path.open("xb")
            except FileExistsError:
                if replaces:
                    raise
                return False
            with file:
                file.write(content)
        return True


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write into ours."""
    try:
        yield
    except OSError as cause:
        raise ExecutorError(f"{path}: can't be written ({cause.strerror})") from cause


def label_lines(found: Found, with_scores: bool) -> list[str]:
    """Give a line per box: class cx cy w h [score], in 0..1 of the picture, six significant digits."""
    height, width = found.image_hw
    boxes = to_cxcywh(found.detections.boxes_px.astype(np.float64)) / np.array([width, height] * 2)
    lines = []
    for class_id, box, score in zip(found.detections.class_ids.tolist(), boxes.tolist(), found.detections.scores):
        numbers = [class_id, *box, float(score)] if with_scores else [class_id, *box]
        lines.append(" ".join(f"{number:g}" for number in numbers) + "\n")
    return lines


def cut_out(detections: Detections, rgb: Pixels) -> Iterator[tuple[int, Pixels]]:
    """Give the class and the pixels of each box, grown to 1.02 of its sides plus 10 px, best first."""
    grown = to_cxcywh(detections.boxes_px)
    grown[:, 2:] = grown[:, 2:] * CROP_GAIN + CROP_PAD_PX
    corners = clip(to_xyxy(grown), rgb.shape[:2]).astype(int)
    for class_id, (x1, y1, x2, y2) in zip(detections.class_ids.tolist(), corners.tolist()):
        if x2 > x1 and y2 > y1:
            yield class_id, rgb[y1:y2, x1:x2]


def encode(rgb: Pixels, suffix: str) -> bytes:
    """Give a picture file of the type that a suffix stands for. Raises ImageError where that type can't hold it."""
    try:
        if suffix.lower() in (".jpg", ".jpeg"):
            pixels = np.ascontiguousarray(rgb)
            return bytes(simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"))
        is_done, content = cv2.imencode(suffix.lower(), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    except (ValueError, RuntimeError, cv2.error) as cause:
        raise ImageError(f"{rgb.shape[1]} x {rgb.shape[0]} pixels don't fit into a {suffix} file") from cause
    if not is_done:
        raise ImageError(f"{rgb.shape[1]} x {rgb.shape[0]} pixels don't fit into a {suffix} file")
    return bytes(content)


class Workers:
    """Threads that take no more work than fits in memory, and raise what failed there where work is handed over."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(min(threads, usable_cpus()), thread_name_prefix="save")
        self._pending: deque[Future[None]] = deque()
        self._most_pending = 2 * threads

    def submit(self, work: Callable[[], None]) -> None:
        """Hand work over, when there is room for it."""
        while len(self._pending) >= self._most_pending:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(work))

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            while self._pending and error is None:
                self._pending.popleft().result()
        finally:
            for future in self._pending:
                future.cancel()
            self._pool.shutdown()
