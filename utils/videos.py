"""Videos: opened when their first bytes say that they are some, read ahead in batches, and written with boxes drawn."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from utils.batches import Batch, Place
from utils.errors import ImageError
from utils.files import open_regular
from utils.jpeg import Pixels
from utils.media import Source
from utils.result_files import Found, Output, write_errors

LOGGER = logging.getLogger(__name__)

# What the files that VIDEO_SUFFIXES stand for begin with: (position, bytes). Nothing else is handed to FFmpeg, which
# would also read playlists, and follow them to other files and hosts.
_VIDEO_HEADS = (
    *((4, box) for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),  # MP4, MOV, M4V
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (8, b"AVI "),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF, WMV
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x00\x00\x01\xb3"),  # MPEG video
    (0, b"GIF8"),
)
_TS_PACKETS = ((0, 188), (4, 192))  # MPEG transport stream: (position, distance) of its sync bytes, 0x47
USUAL_FPS = 30.0


@dataclass(frozen=True)
class Video:
    """An open video."""

    capture: Any  # cv2.VideoCapture
    fps: float
    frames: int  # as its header says, at least 1
    frame_bytes: int  # so, too

    def read(self, stride: int) -> Iterator[tuple[int, Pixels]]:
        """Give every stride-th frame, the first one first: its number from 1, and its (h, w, 3) RGB pixels."""
        for number in count(1):
            if not self.capture.grab():
                return
            if (number - 1) % stride:
                continue
            is_there, bgr = self.capture.retrieve()
            if not is_there:
                return
            yield number, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


@contextmanager
def open_video(path: Path, most_pixels: int) -> Iterator[Video]:
    """Open a video file, by FFmpeg. Raises ImageError where it is none, or its frames are larger than allowed."""
    _quiet_opencv()
    with open_regular(path, ImageError) as file:
        if not _is_video(file.read(1024)):
            raise ImageError(f"{path}: is no video of a known type")
        # By its number: FFmpeg takes some names for addresses or patterns, and OpenCV crashes at one that isn't UTF-8.
        capture = cv2.VideoCapture(f"/dev/fd/{file.fileno()}", cv2.CAP_FFMPEG)
        try:
            if not capture.isOpened():
                raise ImageError(f"{path}: breaks off or is damaged, can't be decoded as a video")
            width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            if width * height > most_pixels:
                raise ImageError(f"{path}: is {width} x {height} pixels, more than max_pixels: {most_pixels}")
            fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
            frames = int(frames) if 1 <= frames < 1e9 else 1
            yield Video(capture, fps if 0 < fps <= 1000 else USUAL_FPS, frames, max(3 * width * height, 1))
        finally:
            capture.release()


@cache
def _quiet_opencv() -> None:
    """Keep OpenCV's and FFmpeg's own lines off stderr."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # it has no other way
    quiet: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 has it there, 4 at the top
    quiet.setLogLevel(0)


def _is_video(head: bytes) -> bool:
    if any(head[first : first + len(mark)] == mark for first, mark in _VIDEO_HEADS):
        return True
    return any(head[first::distance][:4] == b"\x47" * 4 for first, distance in _TS_PACKETS)


FrameBatch = tuple[Batch[Source], list[Pixels]]


def frame_batches(video: Video, source: Source, stride: int, fitting: Place[Source], size: int) -> Iterator[FrameBatch]:
    """Put up to `size` frames of one shape into each batch."""
    batch, frames = Batch[Source]([], [], []), list[Pixels]()
    for number, rgb in video.read(stride):
        letterbox = fitting(source, rgb.shape[:2])
        if len(batch) and (len(batch) == size or letterbox.canvas_hw != batch.canvas_hw):
            yield batch, frames
            batch, frames = Batch([], [], []), []
        canvas = np.empty((*letterbox.canvas_hw, 3), np.uint8)
        letterbox.draw(rgb, canvas)
        batch.items.append(replace(source, frame=number))
        batch.canvases.append(canvas)
        batch.letterboxes.append(letterbox)
        frames.append(rgb)
    if len(batch):
        yield batch, frames


Thing = TypeVar("Thing")


def read_ahead(things: Iterator[Thing]) -> Generator[Thing, None, None]:
    """Give what an iterator gives, fetching the next one in a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="frames") as pool:
        upcoming = pool.submit(list, islice(things, 1))
        while True:
            fetched = upcoming.result()
            if not fetched:
                return
            upcoming = pool.submit(list, islice(things, 1))
            yield fetched[0]


class VideoFile:
    """Saves the frames of one video, in their order; the drawn ones become STEM.mp4."""

    def __init__(self, output: Output, source: Source, fps: float) -> None:
        self._output = output
        self._source = source
        self._fps = fps
        self._writer: Any = None  # cv2.VideoWriter
        self._size_wh = (0, 0)
        self._folder_handle = -1

    def save_frame(self, found: Found, rgb: Pixels) -> None:
        """Save all that is asked for of one frame."""
        self._output.save_labels(found)
        self._output.save_crops(found, rgb)
        drawn = self._output.draw(found, rgb)
        if not self._output.saving.pictures:
            return
        if self._writer is None:
            self._open((rgb.shape[1], rgb.shape[0]))
        if drawn.shape[1::-1] != self._size_wh:  # a stream may change its size, a file can't
            drawn = cv2.resize(drawn, self._size_wh, interpolation=cv2.INTER_LINEAR)
        self._writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))  # does nothing where it isn't open

    def _open(self, size_wh: tuple[int, int]) -> None:
        self._size_wh = size_wh
        with write_errors(self._unfinished):
            self._unfinished.unlink(missing_ok=True)
            # Through the folder's number: OpenCV crashes at a path that isn't UTF-8.
            self._folder_handle = os.open(self._unfinished.parent, os.O_RDONLY)
        name = f"/dev/fd/{self._folder_handle}/{self._unfinished.name}"
        self._writer = cv2.VideoWriter(name, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size_wh)
        if not self._writer.isOpened():
            LOGGER.warning(
                "%s: is not drawn: %d x %d pixels don't fit into an MP4 file", self._source.path, size_wh[0], size_wh[1]
            )

    @property
    def _unfinished(self) -> Path:
        return self._output.path(".unfinished.mp4")

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._writer is not None:
            self._writer.release()
            os.close(self._folder_handle)
            self._writer = None
            if self._unfinished.exists():
                with write_errors(self._output.path(f"{self._source.stem}.mp4")):
                    self._unfinished.replace(self._output.path(f"{self._source.stem}.mp4"))
