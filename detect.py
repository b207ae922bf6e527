"""YOLOv5's detect command line: finds objects in pictures and videos, draws them and writes label files.

    python detect.py --weights best.pt --source pictures/ --save-txt

Modules that cost time are imported where they are needed: a wrong option is told before torch is imported, and
pictures are decoded while it is.
"""

from __future__ import annotations

import argparse
import glob
import logging
import math
import os
import re
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count, islice
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar

import cv2
import numpy as np
import simplejpeg

from utils.batches import Batch, BatchReader, Loaded, Place, Tally, input_side, load
from utils.boxes import clip, to_cxcywh, to_xyxy
from utils.console import Console
from utils.datasets import MAX_LIST_BYTES, PICTURE_SUFFIXES, read_data_yaml, read_names
from utils.detections import Detections
from utils.errors import ConfigError, DatasetError, ExecutorError, ImageError
from utils.files import open_regular, read_bytes
from utils.jpeg import Pixels
from utils.letterbox import Letterbox, place_on
from utils.pictures import read_picture
from utils.plots import draw_boxes
from utils.process import OneLineParser, exit_code, leave, prepare_process
from utils.progress import Progress
from utils.settings import (
    PRECISIONS,
    EngineSettings,
    LoaderSettings,
    NmsSettings,
    PictureSettings,
    check_at_least,
)

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

LOGGER = logging.getLogger("detect")

ROOT = Path(__file__).resolve().parent
# What YOLOv5 takes for a video, by its suffix; the first bytes have to agree (_VIDEO_HEADS).
VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
KINDS = f"pictures ({' '.join(sorted(PICTURE_SUFFIXES))}) or videos ({' '.join(sorted(VIDEO_SUFFIXES))})"
MOST_IMG_SIZE = 16_384  # px
GPU_BATCH = 16  # pictures that go through the network at once
# On a CPU eight at once are a fifth faster than one by one (docs/performance.md), but come in another order, and the
# last ones of each shape fill a pass for themselves.
CPU_BATCH, MANY_PICTURES = 8, 256
FRAMES_BYTES = 128 << 20  # of a batch of frames
KEPT_BYTES = 256 << 20  # of decoded pictures that wait to be drawn on
MOST_STEM_BYTES = 220  # a file name has 255, and gets a number and a suffix
JPEG_QUALITY = 95  # OpenCV's, so YOLOv5's
CROP_GAIN, CROP_PAD_PX = 1.02, 10
NOWHERE = Progress()


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
class DetectSettings:
    """What detect is told; the defaults are YOLOv5 v6.1's."""

    weights: Path
    source: str  # a picture or video, a folder of those, a glob pattern, or a .txt list of paths
    data: Optional[Path] = None  # a data.yaml whose names stand for those in the weights
    img_hw: tuple[int, int] = (640, 640)  # the letterbox fits into it; rounded up to the model's stride
    device: str = ""  # "" = GPU 0 if there is one, else the CPU
    precision: str = "auto"
    nms: NmsSettings = field(default_factory=lambda: NmsSettings(max_det=1000))
    augment: bool = False
    vid_stride: int = 1  # every so many frames of a video are looked at
    folder: Path = Path("runs/detect/exp")  # exp2, exp3, ... if it is there
    exist_ok: bool = False  # write into it all the same
    saving: SaveSettings = field(default_factory=SaveSettings)
    pictures: PictureSettings = field(default_factory=lambda: PictureSettings(turn=True))

    def __post_init__(self) -> None:
        check_at_least("--vid-stride", self.vid_stride, 1)
        if not all(1 <= side <= MOST_IMG_SIZE for side in self.img_hw):
            raise ConfigError(f"--imgsz: got {self.img_hw[0]} x {self.img_hw[1]}, need 1 to {MOST_IMG_SIZE}")
        if self.weights.suffix.lower() != ".pt":
            raise ConfigError(f"--weights: {self.weights} is no .pt file, and only those can be used in this version")
        if not re.fullmatch(r"(cpu|-1|(cuda:)?\d+(,(cuda:)?\d+)*)?", self.device.strip().lower()):
            raise ConfigError(f"--device: got {self.device[:40]!r}, need cpu, or GPU indices such as 0 or 0,1")
        if self.precision == "fp16" and self.device.strip().lower() in ("cpu", "-1"):
            raise ConfigError("--half: needs a GPU; leave it out on a CPU")


@dataclass(frozen=True)
class Source:
    """A picture, a video or one frame of a video, and what its results are called."""

    number: int  # from 1, of the picture or video
    path: Path
    stem: str  # of every file that is written for it; no two sources share one
    suffix: str  # of the drawn picture
    is_video: bool = False
    frame: int = 0  # of a video, from 1
    refused: Optional[str] = None

    @property
    def result_stem(self) -> str:
        """The name, without suffix, of what is written for this picture or frame."""
        return f"{self.stem}_{self.frame}" if self.is_video else self.stem


@dataclass(frozen=True)
class Found:
    """What was found in one picture or frame."""

    source: Source
    image_hw: tuple[int, int]
    detections: Detections


@dataclass(frozen=True)
class DetectSummary:
    """How a run ended."""

    folder: Optional[Path]  # None: nothing was to be written
    pictures: int  # that were read
    videos: int
    frames: int
    boxes: int
    unreadable: Tally
    damaged: Tally
    seconds: float  # from the first picture on, without loading the model


def ignore(found: Found) -> None:
    """Stand in for a listener where nobody listens."""


def detect(
    settings: DetectSettings, on_found: Callable[[Found], None] = ignore, progress: Progress = NOWHERE
) -> DetectSummary:
    """Detect in every picture and video of a source and write what the settings ask for.

    on_found: told of each picture and frame. Raises ExecutorError; ImageError where not one of the sources can be
    read.
    """
    from models.checkpoint import read_checkpoint

    sources = find_sources(settings.source)
    checkpoint = read_checkpoint(settings.weights)
    names = class_names(settings, checkpoint)
    stride = max(checkpoint.strides)
    fitting = Fitting((input_side(settings.img_hw[0], stride), input_side(settings.img_hw[1], stride)), stride)
    pictures = [source for source in sources if not source.is_video]
    most_at_once = guess_batch_size(settings.device)
    is_many = most_at_once == GPU_BATCH or len(pictures) >= MANY_PICTURES
    loader = LoaderSettings(batch_size=most_at_once if is_many else 1, pictures=settings.pictures)
    kept = KeptPictures(KEPT_BYTES)
    reader = BatchReader(
        pictures,
        fitting,
        loader,
        lambda source, error: None,
        progress.part(0, len(pictures) / len(sources)),
        len(pictures),
        # With decode: fast there is no whole picture to keep.
        kept.load if settings.saving.needs_pixels and settings.pictures.decode == "exact" else load,
    )
    with closing(reader):
        finders = load_finders(checkpoint, settings)
        folder = claim_folder(settings, sources) if settings.saving.writes else None
        output = Output(folder, names, safe_folders(names), settings.saving, settings.pictures)
        run = Run(settings, len(sources), most_at_once, fitting, finders, output, on_found)
        started_s = time.monotonic()
        run.detect_in_pictures(reader, kept, loader)
        for place, video in enumerate(sources[len(pictures) :], start=len(pictures)):
            share = progress.part(place / len(sources), (place + 1) / len(sources))
            try:
                warning = run.detect_in_video(video, share)
            except ImageError as error:
                reader.unreadable.add(str(error))
            else:
                if warning:
                    reader.damaged.add(f"{video.path}: {warning}")
        seconds = time.monotonic() - started_s
    if reader.unreadable.count == len(sources):
        raise ImageError(f"not one of {len(sources)} sources can be read, such as {reader.unreadable.examples[0]}")
    progress.at(1)
    return DetectSummary(folder, **run.counts, unreadable=reader.unreadable, damaged=reader.damaged, seconds=seconds)


@dataclass(frozen=True)
class Run:
    """What all pictures and videos of one call share, and what was counted so far."""

    settings: DetectSettings
    total: int  # sources
    most_at_once: int  # frames
    fitting: Fitting
    finders: Callable[[int], Finder]
    output: Output
    on_found: Callable[[Found], None]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("pictures", "videos", "frames", "boxes"), 0))

    def detect_in_pictures(self, reader: BatchReader[Source], kept: KeptPictures, loader: LoaderSettings) -> None:
        """Detect in what a reader gives; results are saved meanwhile."""
        find = self.finders(loader.batch_size)
        # A window belongs to one thread.
        with Workers(1 if self.settings.saving.show else loader.workers) as workers:
            for batch in reader:
                for found in find(batch):
                    self._tell(found, "pictures")
                    workers.submit(partial(self.output.save_picture, found, kept))

    def detect_in_video(self, video: Source, progress: Progress) -> Optional[str]:
        """Detect in a video frame by frame; frames are read ahead and saved meanwhile.

        Gives a warning where it breaks off. Raises ImageError where it has no frame.
        """
        stride, last = self.settings.vid_stride, 0
        with ExitStack() as stack:
            opened = stack.enter_context(open_video(video.path, self.settings.pictures.max_pixels))
            target = stack.enter_context(closing(VideoFile(self.output, video, opened.fps / stride)))
            worker = stack.enter_context(Workers(1))
            at_once = max(min(self.most_at_once, opened.frames // stride, FRAMES_BYTES // opened.frame_bytes), 1)
            find = self.finders(at_once)
            batches = _frame_batches(opened, video, stride, self.fitting, at_once)
            for batch, frames in stack.enter_context(closing(read_ahead(batches))):
                for found, rgb in zip(find(batch), frames):
                    self._tell(found, "frames")
                    worker.submit(partial(target.save_frame, found, rgb))
                    last = found.source.frame
                progress.at(last / opened.frames)
        if not last:
            raise ImageError(f"{video.path}: has no frame that can be decoded")
        self.counts["videos"] += 1
        is_short = last + stride <= 0.9 * opened.frames  # some headers only estimate the number
        return f"breaks off after frame {last} of {opened.frames}" if is_short else None

    def _tell(self, found: Found, kind: str) -> None:
        self.counts[kind] += 1
        self.counts["boxes"] += len(found.detections)
        if LOGGER.isEnabledFor(logging.DEBUG):
            LOGGER.debug("%s", describe(found, self.total, self.output.names))
        self.on_found(found)


# ---- the model -------------------------------------------------------------------------------------------------------

Finder = Callable[[Batch[Source]], list[Found]]


def load_finders(checkpoint: Checkpoint, settings: DetectSettings) -> Callable[[int], Finder]:
    """Load torch and build the model; gives a function from the number of pictures that go through it at once.

    Raises WeightsError, NoDeviceError, ConfigError.
    """
    import torch

    from models.augment import detect_augmented
    from models.detector import Detector, make_detector

    device = settings.device.strip() or ("0" if torch.cuda.is_available() else "")
    if settings.precision == "fp16" and device == "":
        raise ConfigError("--half: needs a GPU, and there is none; leave it out")
    detector = make_detector(checkpoint, EngineSettings(device=device, precision=settings.precision), GPU_BATCH)
    run = detect_augmented if settings.augment else Detector.detect

    def finder(at_once: int) -> Finder:
        sized = replace(detector, chunk=at_once)

        def find(batch: Batch[Source]) -> list[Found]:
            found = run(sized, batch, settings.nms)
            return [Found(*one) for one in zip(batch.items, [box.image_hw for box in batch.letterboxes], found)]

        return find

    return finder


def guess_batch_size(device: str) -> int:
    """Guess, before torch can tell, whether there will be a GPU; a wrong guess costs a little speed."""
    named = device.strip().lower()
    has_gpu = Path("/dev/nvidiactl").exists() if named == "" else named not in ("cpu", "-1")
    return GPU_BATCH if has_gpu else CPU_BATCH


def class_names(settings: DetectSettings, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Give the names to write, and check that the classes asked for are there. Raises ConfigError, DatasetError."""
    names = checkpoint.names
    if settings.data is not None:
        names = read_names(read_data_yaml(settings.data), settings.data)
        if len(names) != checkpoint.nc:
            raise ConfigError(
                f"--data: {settings.data} names {len(names)} classes, {settings.weights} has {checkpoint.nc}; "
                "leave it out to use the names in the weights"
            )
    unknown = [class_id for class_id in settings.nms.classes or () if not 0 <= class_id < checkpoint.nc]
    if unknown:
        raise ConfigError(f"--classes: got {unknown[0]}, {settings.weights} has the classes 0 to {checkpoint.nc - 1}")
    return names


@dataclass(frozen=True)
class Fitting:
    """The minimal letterbox for an input that may be no square: YOLOv5's, with --imgsz HEIGHT WIDTH."""

    most_hw: tuple[int, int]  # input px, multiples of the stride
    stride: int

    def __call__(self, source: Source, image_hw: tuple[int, int]) -> Letterbox:
        """Give the letterbox of a picture of that size."""
        scale = min(most / length for most, length in zip(self.most_hw, image_hw))
        height, width = (max(round(length * scale), 1) for length in image_hw)
        canvas_hw = (math.ceil(height / self.stride) * self.stride, math.ceil(width / self.stride) * self.stride)
        return place_on(canvas_hw, image_hw, (height, width), scale)


# ---- sources ---------------------------------------------------------------------------------------------------------


def find_sources(text: str) -> tuple[Source, ...]:
    """Find the pictures and videos that --source names: pictures first, each kind by path or in the list's order.

    A folder is not searched below its first level, as in YOLOv5; hidden files are left out. Raises DatasetError where
    there are none.
    """
    try:
        paths = _paths_of(text)
    except OSError as cause:
        raise DatasetError(f"--source {text[:200]}: {cause.strerror}") from cause
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [path for path in paths if path.suffix.lower() not in VIDEO_SUFFIXES]
    return _named(pictures, videos)


def _paths_of(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        paths = sorted(inside for inside in path.iterdir() if not inside.name.startswith(".") and _is_known(inside))
        if not paths:
            raise DatasetError(f"--source {text}: the folder holds no {KINDS}")
        return paths
    if path.exists():
        return _listed(path) if path.suffix.lower() == ".txt" else [path]
    if text.strip().isdecimal() or "://" in text or path.suffix.lower() in (".streams", ".stream"):
        raise DatasetError(
            f"--source {text}: cameras and streams are not supported; give a picture or video file, a folder, a glob "
            "pattern in quotes, or a .txt list of paths"
        )
    if glob.has_magic(text):
        # Not Path.glob, whose patterns can't be absolute.
        paths = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if _is_known(Path(name))]  # noqa: PTH207
        if not paths:
            raise DatasetError(f"--source {text}: the pattern matches no {KINDS}")
        return paths
    raise DatasetError(f"--source {text}: no such file or folder")


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES


def _listed(path: Path) -> list[Path]:
    """Read a .txt list: a path a line, from the list's own folder or, as in YOLOv5, from where we run."""
    try:
        lines = read_bytes(path, MAX_LIST_BYTES, DatasetError).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DatasetError(f"--source {path}: is not UTF-8 text") from None
    named = [Path(line.strip()) for line in lines if line.strip()]
    if not named:
        raise DatasetError(f"--source {path}: the list is empty")
    beside = [path.parent / name for name in named]
    return list(dict.fromkeys(there if os.path.lexists(there) else name for there, name in zip(beside, named)))


def _named(pictures: Sequence[Path], videos: Sequence[Path]) -> tuple[Source, ...]:
    """Number the sources and give each a stem of its own, so that none overwrites another's results."""
    paths = [*pictures, *videos]
    plain = [(path.stem if _is_known(path) else path.name) or "_" for path in paths]
    cut = [os.fsencode(stem)[:MOST_STEM_BYTES].decode("utf-8", "ignore") or "_" for stem in plain]
    stems = [stem if len(os.fsencode(stem)) <= MOST_STEM_BYTES else short for stem, short in zip(plain, cut)]
    # A frame of v.mp4 would write v_1.txt, and so would a picture v_1.jpg.
    picture_stems = stems[: len(pictures)]
    like_frames = {stem.rpartition("_")[0] for stem in picture_stems if stem.rpartition("_")[2].isdigit()}
    wanted, taken = set(stems), set[str]()
    sources, renamed = [], Tally()
    for number, (path, stem) in enumerate(zip(paths, stems), start=1):
        is_video = number > len(pictures)
        suffix = path.suffix if path.suffix.lower() in PICTURE_SUFFIXES else ".jpg"
        choices = (f"{stem}_{place}" for place in count(2))
        own = stem
        while own in taken or (own != stem and own in wanted) or (is_video and own in like_frames):
            own = next(choices)
        taken.add(own)
        if own != plain[number - 1]:
            renamed.add(f"{path} as {own}")
        sources.append(Source(number, path, own, suffix, is_video))
    if renamed.count:
        LOGGER.info("%s", renamed.summary("sources have a name that is too long or taken, their results are called"))
    return tuple(sources)


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


# ---- videos ----------------------------------------------------------------------------------------------------------

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


def _frame_batches(video: Video, source: Source, stride: int, fitting: Fitting, size: int) -> Iterator[FrameBatch]:
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


# ---- what is written -------------------------------------------------------------------------------------------------


def claim_folder(settings: DetectSettings, sources: Sequence[Source]) -> Path:
    """Make the folder for results: the one named, or that with the first number that is free.

    Two runs that start together get two folders. Raises ConfigError where results would overwrite the sources.
    """
    folder = settings.folder
    numbers = count(2)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                break
            except FileExistsError:
                if settings.exist_ok and folder.is_dir():
                    break
                folder = settings.folder.with_name(f"{settings.folder.name}{next(numbers)}")
        if os.path.realpath(folder) in {os.path.realpath(source.path.parent) for source in sources}:
            raise ConfigError(f"{folder}: holds the sources, results would overwrite them; name another with --name")
        if settings.saving.labels:
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


def describe(found: Found, total: int, names: Sequence[str]) -> str:
    """Give the line about a picture or frame that YOLOv5 logs: image 3/128 PATH: 2 persons, 1 dog."""
    source = found.source
    kind, frame = ("video", f" ({source.frame})") if source.is_video else ("image", "")
    numbers = sorted(Counter(found.detections.class_ids.tolist()).items())
    things = ", ".join(f"{number} {names[class_id]}{'s' * (number > 1)}" for class_id, number in numbers)
    return f"{kind} {source.number}/{total}{frame} {source.path}: {things or '(no detections)'}"


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


# ---- at the same time ------------------------------------------------------------------------------------------------


class Workers:
    """Threads that take no more work than fits in memory, and raise what failed there where work is handed over."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(min(threads, os.cpu_count() or 1), thread_name_prefix="save")
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


# ---- the door --------------------------------------------------------------------------------------------------------

NOT_OFFERED = {
    "visualize": "--visualize: feature maps are not drawn by this version",
    "update": "--update: nothing is stripped; train.py's best.pt is stripped already",
    "dnn": "--dnn: OpenCV's engine is for ONNX files; this version runs the .pt by torch",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; gives the exit code. The last line, on a failure, is its cause."""
    prepare_process("%(message)s")
    return exit_code(lambda: run_command(argv))


def run_command(argv: Optional[Sequence[str]]) -> None:
    """Read a command line, detect, and log how it went. Raises ExecutorError."""
    arguments = _parser().parse_args(argv)
    for name, line in NOT_OFFERED.items():
        if getattr(arguments, name):
            LOGGER.warning("%s", line)
    settings = read_arguments(arguments)
    LOGGER.setLevel(logging.DEBUG if arguments.verbose else logging.NOTSET)
    if arguments.verbose:
        summary = detect(settings)
    else:
        with Console("detect") as console:
            summary = detect(settings, progress=Progress(console.report))
    tell_of(summary)


def tell_of(summary: DetectSummary) -> None:
    """Log how the run ended."""
    if summary.unreadable.count:
        LOGGER.warning("%s", summary.unreadable.summary("sources can't be read"))
    if summary.damaged.count:
        LOGGER.warning("%s", summary.damaged.summary("pictures or videos are damaged and used as far as they go"))
    looked_at = summary.pictures + summary.frames
    videos = f" and {summary.frames} frames of {summary.videos} videos" if summary.videos else ""
    LOGGER.info(
        "%d boxes in %d pictures%s, %.1f ms each",
        summary.boxes,
        summary.pictures,
        videos,
        1000 * summary.seconds / looked_at,
    )
    if summary.folder:
        LOGGER.info("results in %s", summary.folder)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--weights", nargs="+", default=["yolov5s.pt"], metavar="FILE", help="a .pt that YOLOv5 wrote")
    add(
        "--source",
        default="data/images",
        metavar="WHAT",
        help="a picture or video, a folder of those (without its subfolders), a quoted glob pattern, a .txt list",
    )
    add("--data", type=Path, metavar="YAML", help="take the class names from a data.yaml")
    add("--imgsz", "--img", "--img-size", nargs="+", type=int, default=[640], metavar="PX", help="one side, or h w")
    add("--conf-thres", type=float, default=0.25, metavar="SHARE", help="least score")
    add("--iou-thres", type=float, default=0.45, metavar="SHARE", help="overlap from which a box is suppressed")
    add("--max-det", type=int, default=1000, metavar="N", help="most boxes a picture")
    add("--device", default="", metavar="WHICH", help="cpu, or a GPU's index; default: GPU 0 if there is one")
    add("--view-img", action="store_true", help="show the pictures, where there is a display")
    add("--save-txt", action="store_true", help="write labels/STEM.txt")
    add("--save-conf", action="store_true", help="with the scores in it")
    add("--save-crop", action="store_true", help="write a picture of each box")
    add("--nosave", action="store_true", help="don't write the pictures with their boxes")
    add("--classes", nargs="+", type=int, metavar="ID", help="only these")
    add("--agnostic-nms", action="store_true", help="boxes suppress those of other classes, too")
    add("--augment", action="store_true", help="look at three sizes of each picture")
    add("--visualize", action="store_true", help="(not offered)")
    add("--update", action="store_true", help="(not offered)")
    add("--project", type=Path, default=Path("runs/detect"), metavar="DIR", help="where the folder of results goes")
    add("--name", default="exp", help="of that folder; exp2, exp3, ... if it is there")
    add("--exist-ok", action="store_true", help="write into it if it is there, replacing files of the same name")
    add("--line-thickness", type=int, default=3, metavar="PX", help="of the boxes drawn")
    add("--hide-labels", action="store_true", help="draw no names")
    add("--hide-conf", action="store_true", help="draw no scores")
    add("--half", action="store_true", help="compute in fp16, on a GPU")
    add("--dnn", action="store_true", help="(not offered)")
    add("--vid-stride", type=int, default=1, metavar="N", help="look at every N-th frame of a video")
    add("--precision", choices=PRECISIONS, default="auto", help="ours, not YOLOv5's: by hardware if auto")
    add("--verbose", action="store_true", help="ours: a line for each picture or frame")
    return parser


def read_arguments(arguments: argparse.Namespace) -> DetectSettings:
    """Check a parsed command line and freeze it. Raises ConfigError."""
    if len(arguments.weights) > 1:
        raise ConfigError(f"--weights: got {len(arguments.weights)} files, need one; ensembles are not supported")
    if len(arguments.imgsz) > 2:
        raise ConfigError(f"--imgsz: got {len(arguments.imgsz)} numbers, need one, or height and width")
    if arguments.half and arguments.precision not in ("auto", "fp16"):
        raise ConfigError(f"--half: means --precision fp16, but --precision {arguments.precision} is given")
    return DetectSettings(
        weights=find_weights(arguments.weights[0]),
        source=arguments.source,
        data=arguments.data,
        img_hw=(arguments.imgsz[0], arguments.imgsz[-1]),
        device=arguments.device,
        precision="fp16" if arguments.half else arguments.precision,
        nms=NmsSettings(
            conf_thres=arguments.conf_thres,
            iou_thres=arguments.iou_thres,
            max_det=arguments.max_det,
            agnostic=arguments.agnostic_nms,
            classes=tuple(arguments.classes) if arguments.classes else None,
        ),
        augment=arguments.augment,
        vid_stride=arguments.vid_stride,
        folder=arguments.project / arguments.name,
        exist_ok=arguments.exist_ok,
        saving=SaveSettings(
            pictures=not arguments.nosave,
            labels=arguments.save_txt,
            scores=arguments.save_conf,
            crops=arguments.save_crop,
            show=arguments.view_img and can_show(),
            line_thickness=arguments.line_thickness,
            hide_labels=arguments.hide_labels,
            hide_conf=arguments.hide_conf,
        ),
    )


def find_weights(name: str) -> Path:
    """Give the path of a weights file; a bare name may lie in our own weights/, as in the image."""
    path, shipped = Path(name), ROOT / "weights" / name
    return shipped if path.name == name and not path.exists() and shipped.exists() else path


def can_show() -> bool:
    """Tell whether pictures can be shown, and log why if not."""
    has_windows = re.search(r"^\s*GUI:\s*NONE", cv2.getBuildInformation(), re.MULTILINE) is None
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if not has_windows:
        LOGGER.warning("--view-img: this OpenCV has no windows (opencv-python-headless); look at the saved pictures")
    elif not has_display:
        LOGGER.warning("--view-img: there is no display; look at the saved pictures")
    return has_windows and has_display


if __name__ == "__main__":
    leave(main())
