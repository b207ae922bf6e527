"""Pictures at the side that training uses, decoded anew each time or kept in memory or on disk. No torch here."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import cv2
import numpy as np
import numpy.typing as npt

from utils.batches import Tally
from utils.errors import ImageError
from utils.files import open_regular, replacing
from utils.label_table import LabelTable
from utils.machine import usable_cpus
from utils.pictures import read_picture
from utils.progress import Progress
from utils.settings import PictureSettings, check_at_least, check_choice
from utils.train_settings import CACHES

LOGGER = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Hw = tuple[int, int]

SHARE_OF_FREE = 0.8  # of the memory that is free may be filled with pictures
CGROUPS = Path("/sys/fs/cgroup")
# Versions 2 and 1: the limit, what is in use, and what of that are copies of files that give way.
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
CHUNK = 16  # pictures that a thread fills in at a time


@dataclass(frozen=True)
class StoreSettings:
    """side: the longer side of a stored picture, px. cache: '', ram or disk; folder: for disk, ours alone.

    limit_bytes: the most that ram may hold; None: a share of what is free. Several ranks on a machine share it.
    """

    side: int
    pictures: PictureSettings
    cache: str = ""
    folder: Optional[Path] = None
    limit_bytes: Optional[int] = None

    def __post_init__(self) -> None:
        check_at_least("img_size", self.side, 1)
        check_choice("cache", self.cache, CACHES)
        if self.cache == "disk" and self.folder is None:
            raise ValueError("a cache on disk needs a folder")


def resized_hw(image_hw: Hw, side: int) -> Hw:
    """Give a picture's (height, width) when its longer side is `side`, the other rounded up."""
    longer = max(image_hw)
    height, width = (-(-length * side // longer) for length in image_hw)
    return height, width


class PictureStore:
    """Gives the pictures of a table at their training size. Threads may share it.

    What can't be read is told once: `unreadable`, and `damaged` for pictures that break off and are used as far as
    they go.
    """

    def __init__(self, table: LabelTable, settings: StoreSettings) -> None:
        self.unreadable = Tally()
        self.damaged = Tally()
        self._table = table
        self._settings = settings
        self._lock = threading.Lock()
        self._remarked: set[int] = set()
        self._kept: dict[int, Optional[Pixels]] = {}  # ram
        self._folder: Optional[Path] = None  # disk, from `fill` on
        self._is_writing = True

    def __len__(self) -> int:
        return len(self._table)

    def hw(self, index: int) -> Hw:
        """Give the (height, width) that a picture has here, without reading it."""
        height, width = self._table.sizes_hw[index].tolist()
        return resized_hw((height, width), self._settings.side)

    def read(self, index: int) -> Optional[Pixels]:
        """Give a picture, (*hw(index), 3) uint8 RGB, not to be written to; None where it can't be read."""
        if index in self._kept:
            return self._kept[index]
        if self._folder is not None:
            stored = self._read_stored(index)
            if stored is not None:
                return stored
        return self._decode(index)

    def _decode(self, index: int) -> Optional[Pixels]:
        path, hw = self._table.shots[index].path, self.hw(index)
        try:
            picture = read_picture(path, self._settings.pictures, lambda _: hw)
        except ImageError as error:
            self._remark(index, self.unreadable, str(error))
            return None
        if picture.warning:
            self._remark(index, self.damaged, f"{path}: {picture.warning}")
        if picture.rgb.shape[:2] == hw:
            return picture.rgb
        resized: Pixels = cv2.resize(picture.rgb, hw[::-1], interpolation=cv2.INTER_LINEAR)
        return resized

    def _remark(self, index: int, tally: Tally, example: str) -> None:
        with self._lock:
            if index not in self._remarked:
                self._remarked.add(index)
                tally.add(example)

    # ---- caches ----

    def fill(self, workers: int, progress: Optional[Progress] = None) -> None:
        """Fill the cache, if one is wanted; what it can't take is decoded anew each time."""
        if self._settings.cache == "ram":
            count = self._count_that_fits()
            self._for_all(self._keep, count, workers, progress or Progress())
        elif self._settings.cache == "disk" and self._settings.folder is not None:
            self._folder = self._settings.folder / self._content_key()
            self._for_all(self._store, len(self), workers, progress or Progress())

    def _for_all(self, function: Callable[[int], None], count: int, workers: int, progress: Progress) -> None:
        def work(start: int) -> int:
            end = min(start + CHUNK, count)
            for index in range(start, end):
                function(index)
            return end

        cv2.setNumThreads(0)
        with ThreadPoolExecutor(max(min(workers, usable_cpus()), 1), thread_name_prefix="fill") as pool:
            for end in pool.map(work, range(0, count, CHUNK)):
                progress.at(end / count)

    def _count_that_fits(self) -> int:
        limit = self._settings.limit_bytes
        if limit is None:
            limit = int(free_memory_bytes() * SHARE_OF_FREE)
        sizes = self._table.sizes_hw.astype(np.int64)  # (N, 2)
        side = self._settings.side
        resized = -(-sizes * side // sizes.max(axis=1, keepdims=True)) if len(sizes) else sizes
        ends = np.cumsum(3 * resized.prod(axis=1))
        count = int(np.searchsorted(ends, limit, side="right"))
        if count < len(self):
            LOGGER.warning(
                "cache ram: %d of %d pictures fit in %.1f GB; the others are decoded anew each time",
                *(count, len(self), limit / 1e9),
            )
        return count

    def _keep(self, index: int) -> None:
        pixels = self._decode(index)
        if pixels is not None:
            pixels.flags.writeable = False
        self._kept[index] = pixels

    def _content_key(self) -> str:
        """Give a digest of the pictures and how they are read, so that a folder of others is never taken for ours."""
        pictures = self._settings.pictures
        told = f"{self._settings.side} {pictures.decode} {pictures.turn} {pictures.max_pixels}"
        digest = hashlib.blake2b(told.encode(), digest_size=8)
        for shot in self._table.shots:
            status = shot.path.stat() if shot.path.exists() else None
            stamp = f"{status.st_size} {status.st_mtime_ns}" if status else ""
            digest.update(os.fsencode(shot.path) + f"\0{stamp}\0".encode())
        return digest.hexdigest()

    def _file_of(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index // 1000:04d}" / f"{index:07d}.npy"

    def _store(self, index: int) -> None:
        """Write one picture, unless it is there; after a first failure no more are written."""
        if not self._is_writing or self._read_stored(index) is not None:
            return
        pixels = self._decode(index)
        if pixels is None:
            return
        try:
            with replacing(self._file_of(index)) as file:
                np.save(file, np.ascontiguousarray(pixels), allow_pickle=False)
        except OSError as cause:
            with self._lock:
                if self._is_writing:
                    LOGGER.warning(
                        "%s: can't be written (%s); pictures are decoded anew each time", self._folder, cause
                    )
                self._is_writing = False

    def _read_stored(self, index: int) -> Optional[Pixels]:
        """Give a picture's pixels from disk; None if they aren't there whole and as they should be."""
        shape = (*self.hw(index), 3)
        try:
            with open_regular(self._file_of(index), ImageError) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    return None
                if np.lib.format.read_array_header_1_0(file) != (shape, False, np.dtype(np.uint8)):
                    return None
                pixels = np.fromfile(file, np.uint8, int(np.prod(shape)))
        except (ImageError, OSError, ValueError):
            return None
        return pixels.reshape(shape) if pixels.size == np.prod(shape) else None


def free_memory_bytes() -> int:
    """Give how much memory this process may still take: of the machine, or of its container where that is less."""
    free = [_machine_free()]
    for limit, used, statistics_file, reclaimable in CGROUP_FILES:
        try:
            statistics = dict(line.split(maxsplit=1) for line in (CGROUPS / statistics_file).read_text().splitlines())
            in_use = int((CGROUPS / used).read_text()) - int(statistics.get(reclaimable, 0))
            free.append(max(int((CGROUPS / limit).read_text()) - in_use, 0))
        except (OSError, ValueError):  # not there, or `max`
            continue
    return min(free)


def _machine_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
