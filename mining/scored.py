"""What every scorer takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Protocol

from utils.batches import Batch, Readable
from utils.settings import MiningConfig

if TYPE_CHECKING:  # a scorer is given its detector; to import one would import torch, which random does without
    from models.decode import HeadMaps
    from models.detector import Detector


class MiningItem(Readable, Protocol):
    """A candidate: a readable picture that knows its line of the index."""

    @property
    def line(self) -> str:
        """The line's own text."""

    @property
    def index(self) -> int:
        """Its place in the index, from 0."""


@dataclass(frozen=True)
class Look:
    """Some pictures, and what the network's one pass over them gave; the three go together.

    For a scorer that needs no network, detector and raw are None and the canvases are empty.
    """

    batch: Batch[Any]  # of MiningItem
    detector: Optional[Detector] = None  # for one that looks again, at changed pictures
    raw: Optional[HeadMaps] = None

    def __len__(self) -> int:
        return len(self.batch)


class Scored(NamedTuple):
    """One picture's result."""

    score: float  # finite; higher is mined first
    parts: Sequence[float] = ()  # what each of the scorer's parts gave to it, for the report; as many for each picture


Scorer = Callable[[Look, MiningConfig], Sequence[Scored]]


def no_parts(config: MiningConfig) -> tuple[str, ...]:
    """Name the parts of a score that has none."""
    return ()


class Miner(NamedTuple):
    """A scorer, and what it needs."""

    score: Scorer
    needs_model: bool = True  # looks at pixels through a network, or only at the index line
    needs_picture: bool = False  # wants each picture at its full size in Batch.pictures, too
    same_classes: bool = True  # the weights must know the task's classes
    part_names: Callable[[MiningConfig], tuple[str, ...]] = no_parts
