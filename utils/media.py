"""Media: the pictures and videos that a command line's --source names, and what their results are called."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Optional

from utils.batches import Tally
from utils.datasets import MAX_LIST_BYTES, PICTURE_SUFFIXES
from utils.errors import DatasetError
from utils.files import read_bytes

LOGGER = logging.getLogger(__name__)

# What YOLOv5 takes for a video, by its suffix; the first bytes have to agree (utils.videos).
VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
KINDS = f"pictures ({' '.join(sorted(PICTURE_SUFFIXES))}) or videos ({' '.join(sorted(VIDEO_SUFFIXES))})"
MOST_STEM_BYTES = 220  # a file name has 255, and gets a number and a suffix


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
