"""What a training remembers between two batches: small parts, each of which saves and loads itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional

import torch
from torch import Tensor


@dataclass
class Position:
    """How far a training is: epochs that are done, and batches of the one under way."""

    epoch: int = 0
    batch: int = 0

    def state(self) -> dict[str, Any]:
        """Give it as plain values."""
        return asdict(self)

    def load(self, plain: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self.epoch, self.batch = int(plain["epoch"]), int(plain["batch"])
        if min(self.epoch, self.batch) < 0:
            raise ValueError(f"epoch {self.epoch}, batch {self.batch}")

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0


class Means:
    """The mean losses of the epoch under way: (3,) box, objectness, classes."""

    def __init__(self) -> None:
        self._sum = torch.zeros(3, dtype=torch.float64)
        self._count = 0

    def add(self, parts: Tensor) -> None:
        """Count one batch in."""
        self._sum += parts.double()
        self._count += 1

    def values(self) -> tuple[float, float, float]:
        """Give the means; 0 where there was no batch."""
        box, objectness, classes = (self._sum / max(self._count, 1)).tolist()
        return box, objectness, classes

    def clear(self) -> None:
        """Begin anew."""
        self._sum.zero_()
        self._count = 0

    def state(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {"sum": self._sum.tolist(), "count": self._count}

    def load(self, plain: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        box, objectness, classes = (float(value) for value in plain["sum"])
        self._sum = torch.tensor([box, objectness, classes], dtype=torch.float64)
        self._count = int(plain["count"])


@dataclass
class Best:
    """The best epoch so far: its number, what it was chosen by, and its mAP 0.5:0.95 and mAP 0.5. None: not yet."""

    epoch: Optional[int] = None
    fitness: float = 0.0
    mean_ap: float = 0.0
    map50: float = 0.0

    def offer(self, epoch: int, fitness: float, mean_ap: float, map50: float) -> bool:
        """Take an epoch if it is at least as good; says whether it was."""
        if self.epoch is not None and fitness < self.fitness:
            return False
        self.epoch, self.fitness, self.mean_ap, self.map50 = epoch, fitness, mean_ap, map50
        return True

    def state(self) -> dict[str, Any]:
        """Give it as plain values."""
        return asdict(self)

    def load(self, plain: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self.epoch = None if plain["epoch"] is None else int(plain["epoch"])
        self.fitness, self.mean_ap, self.map50 = (float(plain[key]) for key in ("fitness", "mean_ap", "map50"))
