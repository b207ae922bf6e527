"""MINERS: name -> what scores a batch, and what it needs of each picture. Nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mining.mining_diverse import score_nothing
from mining.mining_entropy import score_entropy
from mining.mining_random import score_random
from mining.scored import Miner

MINERS: Mapping[str, Miner] = MappingProxyType(
    {
        "random": Miner(score_random, needs_model=False, same_classes=False),
        "entropy": Miner(score_entropy),
        "diverse": Miner(score_nothing, same_classes=False),
    }
)
