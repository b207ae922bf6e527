"""MINERS: name -> what scores a batch, and what it needs of each picture. Nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mining.mining_aldd import class_names_of, score_aldd
from mining.mining_cald import copy_names, score_cald
from mining.mining_diverse import score_nothing
from mining.mining_entropy import score_entropy
from mining.mining_random import score_random
from mining.scored import Miner

MINERS: Mapping[str, Miner] = MappingProxyType(
    {
        "random": Miner(score_random, needs_model=False, same_classes=False),
        "entropy": Miner(score_entropy),
        "aldd": Miner(score_aldd, part_names=class_names_of),
        "cald": Miner(score_cald, needs_picture=True, part_names=copy_names),
        "diverse": Miner(score_nothing, same_classes=False),
    }
)
