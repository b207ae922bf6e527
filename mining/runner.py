"""The one mining loop: each candidate is looked at once, and leaves a record; whatever the scorer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional, TypeVar

import numpy as np
import numpy.typing as npt

from mining.records import Record, decode, encode
from mining.scored import Look, Miner, MiningItem, Scored
from mining.sight import Wants, best_confidences, class_sums
from utils.batches import Batch, BatchReader
from utils.errors import ImageError, WeightsError
from utils.records import RecordFile, line_hash, line_hashes
from utils.settings import MiningConfig

if TYPE_CHECKING:
    from models.detector import Detector

Item = TypeVar("Item", bound=MiningItem)


class Ledger:
    """Which candidates have a record, and where; 30 bytes a candidate. Records of other lines are left out."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._hashes = line_hashes(item.line for item in items)
        count = len(self._hashes)
        self.scores: npt.NDArray[np.float64] = np.zeros(count)
        self.is_done: npt.NDArray[np.bool_] = np.zeros(count, np.bool_)
        self.is_readable: npt.NDArray[np.bool_] = np.zeros(count, np.bool_)
        self._files: list[RecordFile] = []
        self._file_of = np.zeros(count, np.uint32)
        self._places = np.zeros(count, np.int64)

    def __len__(self) -> int:
        return len(self._hashes)

    def take(self, file: RecordFile) -> None:
        """Enter all records of a file, which must stay open while `record` is used."""
        self._files.append(file)
        for place, content in file:
            try:
                record = decode(content)
            except ValueError:
                continue
            index = record.index
            if index < len(self) and line_hash(record.line) == self._hashes[index] and math.isfinite(record.score):
                self.scores[index] = record.score
                self.is_done[index] = True
                self.is_readable[index] = record.is_readable
                self._file_of[index], self._places[index] = len(self._files) - 1, place

    def record(self, index: int) -> Record:
        """Read a candidate's record."""
        return decode(self._files[self._file_of[index]].read(int(self._places[index])))


def looks(batch: Batch[Any], detector: Optional[Detector]) -> Iterator[Look]:
    """Give the pictures of a batch with what the network says of them, as many at a time as go through it at once."""
    if detector is None:
        yield Look(batch)
        return
    start = 0
    for raw in detector.maps(batch):
        yield Look(batch[start : start + len(raw)], detector, raw)
        start += len(raw)


class Keeper:
    """Appends what is found of each candidate to a shard's file."""

    def __init__(self, file: RecordFile, config: MiningConfig, wants: Wants) -> None:
        self._file, self._config, self._wants = file, config, wants

    def set_aside(self, item: MiningItem, error: ImageError) -> None:
        """Keep that a picture can't be read."""
        self._file.append(encode(Record(item.index, item.line, is_readable=False)))

    def keep(self, look: Look, results: Sequence[Scored]) -> None:
        """Keep the results of some pictures; from now on no kill loses them."""
        wants, count = self._wants, len(look)
        confidences = best_confidences(look) if wants.confidences else [None] * count
        sums = class_sums(look, self._config) if wants.class_sums else [None] * count
        features = look.raw.features if wants.features and look.raw is not None else None
        for place, (item, scored) in enumerate(zip(look.batch.items, results)):
            arrays: dict[str, Any] = {
                "parts": np.asarray(scored.parts, np.float32) if wants.parts else None,
                "confidences": confidences[place],
                "class_sums": sums[place],
                "feature": None if features is None else features[place],
            }
            if not math.isfinite(scored.score):
                name = look.detector.name if look.detector else "the scorer"
                raise WeightsError(f"{name}: gives NaN or infinite values for {item.path}")
            given = {name: array for name, array in arrays.items() if array is not None}
            self._file.append(encode(Record(item.index, item.line, scored.score, **given)))
        self._file.flush()


def score_all(
    reader: BatchReader[Item], keeper: Keeper, miner: Miner, detector: Optional[Detector], config: MiningConfig
) -> None:
    """Score every picture that the reader gives. The reader tells `keeper.set_aside` of the others."""
    for batch in reader:
        for look in looks(batch, detector):
            keeper.keep(look, miner.score(look, config))
