"""What every scorer takes and gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, NamedTuple, Optional, Protocol

from utils.batches import Batch, Readable
from utils.settings import MiningConfig

if TYPE_CHECKING:  # a scorer is given its detector; to import one would import torch, which random does without
    from models.detector import Detector


class MiningItem(Readable, Protocol):
    """A candidate: a readable picture that knows its line of the index."""

    @property
    def line(self) -> str:
        """The line's own text."""

    @property
    def index(self) -> int:
        """Its place in the index, from 0."""


class Scored(NamedTuple):
    """One picture's result."""

    score: float  # finite; higher is mined first


class Miner(NamedTuple):
    """A scorer, and whether it looks at pixels through a network or only at the index line."""

    score: Callable[[Optional[Detector], Batch[MiningItem], MiningConfig], list[Scored]]
    needs_model: bool = True
