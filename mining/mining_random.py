"""Random mining: a uniform score from the seed and the index line, the same whatever else is in the list."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Optional

from mining.scored import MiningItem, Scored
from utils.batches import Batch
from utils.settings import MiningConfig

if TYPE_CHECKING:
    from models.detector import Detector


def score_random(detector: Optional[Detector], batch: Batch[MiningItem], config: MiningConfig) -> list[Scored]:
    """Draw a score for each picture of a batch."""
    return [Scored(uniform(config.seed, item.line)) for item in batch.items]


def uniform(seed: int, line: str) -> float:
    """Draw a number in [0, 1) for one line of the index; Python's own hash() would differ from run to run."""
    text = f"{seed}\0{line}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") / 2**64
