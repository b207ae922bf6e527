"""Labelled pictures for a validation: planned, then read ahead together with their labels. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Union

from utils.batches import Batch, BatchReader, Loaded, Place, Shot, input_side, load
from utils.errors import ImageError
from utils.labels import FaultLog, Labels, LabelSource, PictureFile, read_yolo, yolo_label_path
from utils.letterbox import Letterbox
from utils.pictures import read_picture_hw
from utils.progress import Progress
from utils.rect import letterbox_validation, plan_canvases
from utils.settings import LoaderSettings

LabelsOf = Callable[[Shot, tuple[int, int]], Labels]
Hw = tuple[int, int]


@dataclass(frozen=True)
class LabelledSet:
    """Pictures to validate on.

    names: of the classes, by class id. shots: each with an index of its own. labels_of: gives one picture's labels
    from the (height, width) in whose pixels they are meant; threads call it. Raises DatasetError.
    annotation_of: tells the file that holds a picture's labels, whether or not it is there; a cache of labels needs it.
    kind: the form in which those files are read, which a cache is of too.
    """

    names: tuple[str, ...]
    shots: tuple[Shot, ...]
    labels_of: LabelsOf
    annotation_of: Optional[Callable[[Shot], Path]] = None
    kind: str = "yolo"


@dataclass(frozen=True)
class LabelledBatch:
    """Pictures of one input shape and their labels, in picture pixels."""

    pictures: Batch[Shot]
    labels: list[Labels]


def yolo_set(names: Sequence[str], images: Sequence[Path]) -> LabelledSet:
    """Make a set of pictures whose labels lie where YOLOv5 looks for them."""
    source = LabelSource(names)

    def labels_of(shot: Shot, image_hw: Hw) -> Labels:
        return read_yolo(yolo_label_path(shot.path), PictureFile(shot.path, image_hw), source)

    shots = tuple(Shot(index, path) for index, path in enumerate(images))
    return LabelledSet(tuple(names), shots, labels_of, lambda shot: yolo_label_path(shot.path))


class LabelledReader:
    """Gives a set's pictures and labels batch by batch, reading ahead from the moment it is made. Iterate once.

    As YOLOv5's validation shows them: on rectangles, sorted by shape, or all on the whole square. What can't be read
    is left out: `unreadable` tells of it, `damaged` of pictures that break off, `faults` of labels that were dropped
    or cut. `close` it if it isn't iterated to its end.
    """

    def __init__(
        self,
        labelled: LabelledSet,
        settings: LoaderSettings,
        stride: int,
        is_rect: bool = True,
        progress: Optional[Progress] = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """share: (rank, ranks); of several ranks each gets every ranks-th picture, on the canvases that one alone would
        plan with batches of all ranks together. settings.batch_size: of each rank.
        """
        self.names = labelled.names
        self.faults = FaultLog()
        self._labels_of = labelled.labels_of
        self._labels: dict[int, Labels] = {}  # of the pictures that are under way
        side = input_side(settings.img_size, stride)
        refusals: list[str] = []
        shots, canvases = list(labelled.shots), {}
        rank, ranks = share
        if is_rect:
            shots, sizes_hw = sort_by_shape(shots, settings, refusals)
            planned = plan_canvases(sizes_hw, settings.batch_size * ranks, side, stride)
            canvases = dict(zip((shot.index for shot in shots), planned))
        shots = shots[rank::ranks]

        def place(shot: Shot, image_hw: Hw) -> Letterbox:
            return letterbox_validation(image_hw, side, canvases.get(shot.index, (side, side)))

        self._reader = BatchReader(shots, place, settings, ignore, progress, len(shots), self._load)
        self.unreadable, self.damaged = self._reader.unreadable, self._reader.damaged
        for refusal in refusals:
            self.unreadable.add(refusal)

    def _load(self, shot: Shot, place: Place[Shot], settings: LoaderSettings) -> Loaded:
        loaded = load(shot, place, settings)
        self._labels[shot.index] = self._labels_of(shot, loaded.letterbox.image_hw)
        return loaded

    def __iter__(self) -> Iterator[LabelledBatch]:
        for batch in self._reader:
            labels = [self._labels.pop(shot.index) for shot in batch.items]
            for one in labels:
                self.faults.add(one.faults)
            yield LabelledBatch(batch, labels)

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()


def ignore(item: object, error: ImageError) -> None:
    """Leave a picture out; the reader counts it."""


def sort_by_shape(shots: Sequence[Shot], settings: LoaderSettings, refusals: list[str]) -> tuple[list[Shot], list[Hw]]:
    """Give the pictures sorted by height / width, equal ones by path, and their sizes (height, width).

    refusals: gets a line for each whose header can't be read; it is left out.
    """

    def size_of(shot: Shot) -> Union[Hw, ImageError]:
        try:
            if shot.refused is not None:
                raise ImageError(shot.refused)
            return read_picture_hw(shot.path, settings.pictures)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(max(settings.workers, 1)) as pool:
        sizes = list(pool.map(size_of, shots))
    refusals += [str(size) for size in sizes if isinstance(size, ImageError)]
    readable = [(size, shot) for size, shot in zip(sizes, shots) if not isinstance(size, ImageError)]
    readable.sort(key=lambda pair: (pair[0][0] / pair[0][1], pair[1].path))
    return [shot for _, shot in readable], [size for size, _ in readable]
