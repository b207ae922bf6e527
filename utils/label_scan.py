"""Labels of a whole data set, read once and kept in a cache file that notices what changed. No torch here."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, Union

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from utils.batches import Shot, Tally
from utils.errors import DatasetError, ImageError
from utils.files import read_bytes, write_whole
from utils.label_table import LabelTable, TableBuilder
from utils.labelled import LabelledSet
from utils.labels import Fault, FaultLog, Labels
from utils.machine import usable_cpus
from utils.pictures import read_picture_hw
from utils.progress import Progress
from utils.settings import PictureSettings

LOGGER = logging.getLogger(__name__)

CACHE_VERSION = 1
CHUNK = 64  # pictures that a thread reads at a time
MAX_CACHE_BYTES = 8 << 30
MAX_NOTES_BYTES = 1 << 20  # the part of a cache that is text
MAX_NOTE_LETTERS = 4096
ARRAYS = tuple(field.name for field in fields(LabelTable) if field.name not in ("names", "shots"))

Found = Union[ImageError, tuple[tuple[int, int], Labels]]
Given = TypeVar("Given")
Taken = TypeVar("Taken")


@dataclass(frozen=True)
class Scan:
    """The labels of a set, and what was wrong with it."""

    table: LabelTable
    faults: FaultLog
    unreadable: Tally
    from_cache: bool

    def lines(self) -> list[str]:
        """Give a small table: how much there is, then a line for each kind of thing that was left out or changed."""
        head = f"{len(self.table)} pictures, {len(self.table.class_ids)} boxes{', from the cache' * self.from_cache}"
        return [head, *(f"{count:>9}  {what}" for count, what in self.rows())]

    def rows(self) -> list[tuple[int, str]]:
        """Give how often each kind of thing was left out or changed, and what it is with its first example."""
        rows = [(fault.count, f"{fault.kind}; first: {fault.example}") for fault in self.faults]
        if self.unreadable.count:
            rows.append(
                (self.unreadable.count, f"pictures left out, unreadable; {'; '.join(self.unreadable.examples)}")
            )
        return rows


def scan_labels(
    labelled: LabelledSet,
    pictures: PictureSettings,
    workers: int,
    cache: Optional[Path],
    key: str,
    progress: Progress,
) -> Scan:
    """Read all labels and the sizes of all pictures, or take them from the cache if nothing changed since.

    cache: the file to read and to write; it is not used for a set that can't tell its annotation files. key: what
    else decides about labels, as their format. Raises DatasetError where an annotation file can't be read.
    """
    if labelled.annotation_of is None:
        cache = None
    workers = max(min(workers, usable_cpus()), 1)
    digest = ""
    if cache is not None:
        digest = content_key(labelled, pictures, workers, key, progress.part(0, 0.1))
        found = read_cache(cache, labelled, pictures, digest)
        if found is not None:
            progress.at(1)
            return found
    scan, kept = _scan(labelled, pictures, workers, progress.part(0.1 if cache else 0, 1))
    if cache is not None:
        _write_cache(cache, scan, kept, digest)
    progress.at(1)
    return scan


# ---- reading ---------------------------------------------------------------------------------------------------------


def _scan(
    labelled: LabelledSet, pictures: PictureSettings, workers: int, progress: Progress
) -> tuple[Scan, npt.NDArray[np.int64]]:
    """Read everything; gives also which of the set's pictures are in the table, by position."""

    def find(shot: Shot) -> Found:
        try:
            if shot.refused is not None:
                raise ImageError(shot.refused)
            image_hw = read_picture_hw(shot.path, pictures)
            return image_hw, labelled.labels_of(shot, image_hw)
        except ImageError as error:  # also of a picture whose annotation is missing
            return error

    builder, faults, unreadable, kept = TableBuilder(labelled.names), FaultLog(), Tally(), []
    for position, found in enumerate(_in_chunks(find, labelled.shots, workers, progress)):
        if isinstance(found, ImageError):
            unreadable.add(str(found))
            continue
        image_hw, labels = found
        kept.append(position)
        faults.add(labels.faults)
        faults.add(builder.add(labelled.shots[position].path, image_hw, labels))
    return Scan(builder.table(), faults, unreadable, from_cache=False), np.array(kept, np.int64)


def _in_chunks(
    function: Callable[[Given], Taken], items: tuple[Given, ...], workers: int, progress: Progress
) -> Iterator[Taken]:
    """Apply a function to many items in threads; gives its results in their order and reports after each chunk."""

    def work(start: int) -> list[Taken]:
        return [function(item) for item in items[start : start + CHUNK]]

    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as pool:
        done = 0
        for results in pool.map(work, range(0, len(items), CHUNK)):
            yield from results
            done += len(results)
            progress.at(done / len(items))


def content_key(
    labelled: LabelledSet, pictures: PictureSettings, workers: int, key: str, progress: Optional[Progress] = None
) -> str:
    """Give a digest of all that a scan's result depends on, as far as names, sizes and times of change tell it."""
    stamp_of = labelled.annotation_of

    def stamp(shot: Shot) -> bytes:
        annotation = stamp_of(shot) if stamp_of else None
        told = [
            *_stamp(shot.path),
            *(_stamp(annotation) if annotation else ()),
            str(shot.refused).encode("utf-8", "replace"),
        ]
        return b"\0".join(told)

    told = [CACHE_VERSION, key, labelled.names, pictures.max_pixels, pictures.turn, len(labelled.shots)]
    digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=16)
    for line in _in_chunks(stamp, labelled.shots, workers, progress or Progress()):
        digest.update(len(line).to_bytes(4, "big") + line)
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[bytes, bytes]:
    """Give a file's name, and its size and time of change; only its name where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return os.fsencode(path), b"none"
    return os.fsencode(path), b"%d %d" % (status.st_size, status.st_mtime_ns)


# ---- the cache -------------------------------------------------------------------------------------------------------


def _write_cache(cache: Path, scan: Scan, kept: npt.NDArray[np.int64], digest: str) -> None:
    """Write a cache; that it can't be written is no error."""
    notes = {
        "version": CACHE_VERSION,
        "key": digest,
        "faults": [[fault.kind, fault.count, fault.example] for fault in scan.faults],
        "unreadable": [scan.unreadable.count, scan.unreadable.examples],
    }
    arrays = {name: np.ascontiguousarray(getattr(scan.table, name)) for name in ARRAYS}
    arrays["kept"] = kept
    arrays["notes"] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    try:
        write_whole(cache, safetensors.numpy.save(arrays))
    except (OSError, SafetensorError, MemoryError) as cause:
        LOGGER.warning("%s: can't be written (%s); labels will be scanned again next time", cache, cause)


def read_cache(cache: Path, labelled: LabelledSet, pictures: PictureSettings, digest: str) -> Optional[Scan]:
    """Give what a cache holds, or None, with a line in the log, if it is damaged or of something else.

    It may have been made by a stranger: it holds numbers and texts only, and nothing in it is believed unchecked.
    Which pictures there are is told by the set, not by the cache.
    """
    if not os.path.lexists(cache):
        return None
    try:
        arrays: dict[str, Any] = safetensors.numpy.load(read_bytes(cache, MAX_CACHE_BYTES, DatasetError))
        if set(arrays) != {*ARRAYS, "kept", "notes"}:
            raise DatasetError(f"{cache}: is not a cache of labels of this version")
        faults, unreadable = _read_notes(arrays["notes"], digest)
        table = LabelTable(labelled.names, _kept_shots(arrays["kept"], labelled), *(arrays[name] for name in ARRAYS))
        wrong = table.inconsistency()
        if wrong is None and (table.sizes_hw.astype(np.int64).prod(axis=1) > pictures.max_pixels).any():
            wrong = "a picture is too large"
        if wrong is not None:
            raise DatasetError(wrong)
    # What safetensors and json raise for damaged files; KeyError and AttributeError: an unknown dtype.
    except (SafetensorError, DatasetError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as cause:
        LOGGER.info("%s: labels are scanned anew: %s", cache, str(cause)[:200] or type(cause).__name__)
        return None
    return Scan(table, faults, unreadable, from_cache=True)


def _kept_shots(kept: npt.NDArray[Any], labelled: LabelledSet) -> tuple[Shot, ...]:
    if kept.dtype != np.int64 or kept.ndim != 1 or (np.diff(kept, prepend=-1, append=len(labelled.shots)) < 1).any():
        raise DatasetError("the list of pictures is damaged")
    return tuple(Shot(index, labelled.shots[position].path) for index, position in enumerate(kept.tolist()))


def _read_notes(content: npt.NDArray[Any], digest: str) -> tuple[FaultLog, Tally]:
    """Parse a cache's texts. Raises DatasetError and what json raises."""
    if content.dtype != np.uint8 or content.ndim != 1 or len(content) > MAX_NOTES_BYTES:
        raise DatasetError("its notes are damaged")
    notes = json.loads(content.tobytes())
    if not isinstance(notes, dict) or notes.get("version") != CACHE_VERSION:
        raise DatasetError("is of another version")
    if notes.get("key") != digest:
        raise DatasetError("pictures, labels or settings have changed")
    faults = FaultLog()
    faults.add(Fault(_text(kind), _count(count), _text(example)) for kind, count, example in notes["faults"])
    count, examples = notes["unreadable"]
    unreadable = Tally(count=_count(count), examples=[_text(example) for example in _at_most(examples, 100)])
    return faults, unreadable


def _at_most(values: Any, count: int) -> Iterable[Any]:
    if not isinstance(values, list) or len(values) > count:
        raise DatasetError("its notes are damaged")
    return values


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise DatasetError("its notes are damaged")
    return value


def _text(value: Any) -> str:
    """Give a text fit for a log: one line, not too long."""
    if not isinstance(value, str) or len(value) > MAX_NOTE_LETTERS:
        raise DatasetError("its notes are damaged")
    return "".join(letter if letter.isprintable() else "?" for letter in value)
