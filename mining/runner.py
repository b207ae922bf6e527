"""The one mining loop: every candidate gets its score, whatever the scorer."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from mining.scored import Look, Miner, MiningItem
from utils.batches import Batch, BatchReader
from utils.errors import ImageError
from utils.settings import MiningConfig

if TYPE_CHECKING:
    from models.detector import Detector

Item = TypeVar("Item", bound=MiningItem)


class ScoreTable:
    """A score for each place of the index; eight bytes a candidate."""

    def __init__(self) -> None:
        self._scores = array("d")
        self.readable = 0

    def set(self, index: int, score: float) -> None:
        """Keep a readable picture's score."""
        self._reach(index)
        self._scores[index] = score
        self.readable += 1

    def set_aside(self, item: MiningItem, error: ImageError) -> None:
        """Keep the place of a picture that can't be read."""
        self._reach(item.index)

    def _reach(self, index: int) -> None:
        while len(self._scores) <= index:
            self._scores.append(math.nan)

    def __len__(self) -> int:
        return len(self._scores)

    def of(self, items: Iterable[Item]) -> Iterator[tuple[str, float]]:
        """Pair each line of the index with its score; unreadable pictures get the lowest score minus 1."""
        lowest = min((score for score in self._scores if not math.isnan(score)), default=0.0) - 1
        for item, score in zip(items, self._scores):
            yield item.line, lowest if math.isnan(score) else score


def looks(batch: Batch[Any], detector: Optional[Detector]) -> Iterator[Look]:
    """Give the pictures of a batch with what the network says of them, as many at a time as go through it at once."""
    if detector is None:
        yield Look(batch)
        return
    start = 0
    for raw in detector.maps(batch):
        yield Look(batch[start : start + len(raw)], detector, raw)
        start += len(raw)


def score_all(
    reader: BatchReader[Item], table: ScoreTable, miner: Miner, detector: Optional[Detector], config: MiningConfig
) -> None:
    """Score every picture that the reader gives. The reader tells `table.set_aside` of the others."""
    for batch in reader:
        for look in looks(batch, detector):
            for item, scored in zip(look.batch.items, miner.score(look, config)):
                table.set(item.index, scored.score)
