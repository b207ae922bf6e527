"""Reading ahead: a stream of picture files becomes batches of letterboxed uint8 pixels. No torch here.

Threads decode: simplejpeg and OpenCV let go of the interpreter while they work. Each picture is drawn straight onto
its own canvas, and a batch is a list of canvases of one shape, so nothing is copied until it goes to the device.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Generic, Optional, Protocol, TypeVar, Union

import cv2
import numpy as np
import numpy.typing as npt

from utils.errors import ImageError
from utils.letterbox import LETTERBOXES, Letterbox, letterbox_onto
from utils.machine import usable_cpus
from utils.pictures import EnoughFor, read_picture, read_picture_hw
from utils.progress import Progress
from utils.settings import LoaderSettings

LOGGER = logging.getLogger(__name__)

MOST_WAITING_BYTES = 256 << 20  # of pictures that wait for others of their shape
MOST_AHEAD_BYTES = 256 << 20  # of pictures that were decoded ahead; at most one more for each worker comes on top

Canvas = npt.NDArray[np.uint8]  # (H, W, 3) RGB


class Readable(Protocol):
    """What a reader asks of the things it reads."""

    @property
    def path(self) -> Path:
        """The picture file."""

    @property
    def refused(self) -> Optional[str]:
        """Why the file must not be opened, if so."""


Item = TypeVar("Item", bound=Readable)


@dataclass(frozen=True)
class Shot:
    """One picture file outside of any index."""

    index: int
    path: Path
    refused: Optional[str] = None


@dataclass(frozen=True)
class Placing:
    """Where a picture of any size goes: the letterbox for the task's img_size and the model's stride."""

    letterbox: str  # a name of LETTERBOXES
    side: int  # input px, a multiple of the stride
    stride: int

    def __call__(self, item: Readable, image_hw: tuple[int, int]) -> Letterbox:
        """Give the letterbox of a picture of that size."""
        return LETTERBOXES[self.letterbox](image_hw, self.side, self.stride)


@dataclass(frozen=True)
class Onto:
    """Where a picture goes whose model takes one shape alone."""

    canvas_hw: tuple[int, int]

    def __call__(self, item: Readable, image_hw: tuple[int, int]) -> Letterbox:
        """Give the letterbox of a picture of that size."""
        return letterbox_onto(self.canvas_hw, image_hw)


def input_side(img_size: int, stride: int) -> int:
    """Round an img_size up to the model's stride, with a line in the log where that changes it."""
    side = math.ceil(img_size / stride) * stride
    if side != img_size:
        LOGGER.info("img_size %d is rounded up to %d, a multiple of the model's stride %d", img_size, side, stride)
    return side


Place = Callable[[Item, tuple[int, int]], Letterbox]


@dataclass(frozen=True)
class Batch(Generic[Item]):
    """Pictures of one input shape, ready for the model; the lists go together."""

    items: list[Item]
    canvases: list[Canvas]  # each (H, W, 3) uint8 RGB, all of one shape
    letterboxes: list[Letterbox]
    pictures: list[Canvas] = field(default_factory=list)  # each at its full size, where `load_whole` read them

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, places: slice) -> Batch[Item]:
        """Give some of the pictures."""
        return Batch(self.items[places], self.canvases[places], self.letterboxes[places], self.pictures[places])

    @property
    def bytes(self) -> int:
        """The memory of its pixels."""
        return sum(pixels.nbytes for pixels in (*self.canvases, *self.pictures))

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """The input shape."""
        return self.letterboxes[0].canvas_hw


@dataclass(frozen=True)
class Loaded:
    """One picture on its canvas."""

    canvas: Canvas
    letterbox: Letterbox
    warning: Optional[str]
    picture: Optional[Canvas] = None  # at its full size

    @property
    def bytes(self) -> int:
        """The memory of its pixels."""
        return self.canvas.nbytes + (0 if self.picture is None else self.picture.nbytes)


@dataclass
class Tally:
    """What was remarkable among many pictures: counted, with a few names. Memory doesn't grow with the count."""

    keep: int = 5
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < self.keep:
            self.examples.append(example)

    def summary(self, what: str) -> str:
        """Put the count and the examples into one line."""
        more = f"; and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        return f"{self.count} {what}: {'; '.join(self.examples)}{more}"


def load(item: Item, place: Place[Item], settings: LoaderSettings) -> Loaded:
    """Decode one picture and draw it onto a new canvas. Raises ImageError."""
    return replace(_drawn(item, place, settings, lambda image_hw: place(item, image_hw).resized_hw), picture=None)


def _drawn(item: Item, place: Place[Item], settings: LoaderSettings, enough_for: Optional[EnoughFor]) -> Loaded:
    if item.refused is not None:
        raise ImageError(item.refused)
    picture = read_picture(item.path, settings.pictures, enough_for)
    letterbox = place(item, picture.full_hw)
    canvas = np.empty((*letterbox.canvas_hw, 3), np.uint8)
    letterbox.draw(picture.rgb, canvas)
    return Loaded(canvas, letterbox, picture.warning, picture.rgb)


def check(item: Item, place: Place[Item], settings: LoaderSettings) -> Loaded:
    """Read no more of a picture than tells that it is one; its canvas is empty. Raises ImageError."""
    if item.refused is not None:
        raise ImageError(item.refused)
    image_hw = read_picture_hw(item.path, settings.pictures)
    nowhere = Letterbox(image_hw, (0, 0), (0, 0), 1.0, 0, 0)
    return Loaded(np.empty((0, 0, 3), np.uint8), nowhere, None)


def load_whole(item: Item, place: Place[Item], settings: LoaderSettings) -> Loaded:
    """Load a picture and keep it at its full size, too. Raises ImageError."""
    return _drawn(item, place, settings, None)


Loading = Callable[[Item, Place[Item], LoaderSettings], Loaded]


class Room:
    """Lets workers decode ahead only while what waits to be taken is small enough. Pictures are taken in their order.

    The picture that is waited for is let in whatever lies there, so nobody waits for ever.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._waiting: dict[int, int] = {}  # bytes by place
        self._next = 0  # place of the picture that is taken next
        self._is_open = True
        self._changed = threading.Condition()

    def enter(self, place: int) -> None:
        """Wait until the picture of a place may be decoded."""
        with self._changed:
            self._changed.wait_for(
                lambda: place <= self._next or not self._is_open or sum(self._waiting.values()) < self._most_bytes
            )

    def leave(self, place: int, size: int) -> None:
        """Say how many bytes a picture has that was decoded."""
        with self._changed:
            self._waiting[place] = size

    def take(self, place: int) -> None:
        """Wait for the picture of a place no longer: it is taken, or couldn't be read."""
        with self._changed:
            self._waiting.pop(place, None)
            self._next = place + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let everybody go."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()


class BatchReader(Generic[Item]):
    """The one loop over a set of pictures: reads ahead, sets unreadable ones aside, groups by shape, reports progress.

    It begins to decode when it is made, so that pictures are ready when the model is. Iterate once; leaving the loop
    early ends its threads.

    on_unreadable: told of each picture that can't be read, and why, in the order of the items.
    total: how many items there are, for progress; None: no progress is reported.
    loading: `load`, or `check` where nobody looks at the pixels.
    """

    def __init__(
        self,
        items: Iterable[Item],
        place: Place[Item],
        settings: LoaderSettings,
        on_unreadable: Callable[[Item, ImageError], None],
        progress: Optional[Progress] = None,
        total: Optional[int] = None,
        loading: Loading[Item] = load,
    ) -> None:
        self.unreadable = Tally()
        self.damaged = Tally()
        self._items = iter(items)
        self._place = place
        self._settings = settings
        self._loading = loading
        self._on_unreadable = on_unreadable
        self._progress = progress or Progress()
        self._total = total
        self._finished = 0  # items that were handed out and worked on, or set aside
        workers = min(settings.workers, usable_cpus())
        # OpenCV would start a team of its own inside each of our threads.
        cv2.setNumThreads(0)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode") if workers else None
        self._ahead: deque[tuple[Item, Union[Future[Loaded], None]]] = deque()
        self._room = Room(MOST_AHEAD_BYTES)
        self._given = 0  # pictures that were handed to workers
        self._taken = 0
        self._most_ahead = settings.batch_size + 2 * workers if workers else 1
        self._fill()

    def _fill(self) -> None:
        """Keep as many pictures under way as may wait in memory."""
        while len(self._ahead) < self._most_ahead:
            item = next(self._items, None)
            if item is None:
                return
            future = self._pool.submit(self._load_ahead, self._given, item) if self._pool else None
            self._given += 1
            self._ahead.append((item, future))

    def _load_ahead(self, place: int, item: Item) -> Loaded:
        """Load a picture in a worker, when there is room for it."""
        self._room.enter(place)
        loaded = self._loading(item, self._place, self._settings)
        self._room.leave(place, loaded.bytes)
        return loaded

    def _loaded(self) -> Iterator[tuple[Item, Loaded]]:
        while self._ahead:
            item, future = self._ahead.popleft()
            try:
                loaded = self._take(future) if future else self._loading(item, self._place, self._settings)
            except ImageError as error:
                self.unreadable.add(str(error))
                self._on_unreadable(item, error)
                self._finish(1)
            else:
                if loaded.warning:
                    self.damaged.add(f"{item.path}: {loaded.warning}")
                yield item, loaded
            self._fill()

    def _take(self, future: Future[Loaded]) -> Loaded:
        try:
            return future.result()
        finally:
            self._room.take(self._taken)
            self._taken += 1

    def _finish(self, count: int) -> None:
        self._finished += count
        if self._total:
            self._progress.at(self._finished / self._total)

    def __iter__(self) -> Iterator[Batch[Item]]:
        """Give the batches. A picture that waits for others of its shape holds up nothing: groups are cut when full,
        when too many wait, and at the end."""
        waiting: dict[tuple[int, int], Batch[Item]] = {}
        try:
            for item, loaded in self._loaded():
                shape = loaded.letterbox.canvas_hw
                group = waiting.setdefault(shape, Batch([], [], []))
                group.items.append(item)
                group.canvases.append(loaded.canvas)
                group.letterboxes.append(loaded.letterbox)
                if loaded.picture is not None:
                    group.pictures.append(loaded.picture)
                if len(group) == self._settings.batch_size:
                    yield waiting.pop(shape)
                    self._finish(len(group))
                elif sum(other.bytes for other in waiting.values()) > MOST_WAITING_BYTES:
                    largest = max(waiting, key=lambda key: len(waiting[key]))
                    group = waiting.pop(largest)
                    yield group
                    self._finish(len(group))
            for group in waiting.values():
                yield group
                self._finish(len(group))
        finally:
            self.close()

    def close(self) -> None:
        """Stop reading ahead."""
        self._room.close()
        for _, future in self._ahead:
            if future:
                future.cancel()
        if self._pool:
            self._pool.shutdown(wait=False)
