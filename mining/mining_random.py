"""Random mining: a uniform score from the seed and the index line, the same whatever else is in the list."""

from __future__ import annotations

from mining.draws import draw
from mining.scored import Look, Scored
from utils.settings import MiningConfig


def score_random(look: Look, config: MiningConfig) -> list[Scored]:
    """Draw a score for each picture."""
    return [Scored(uniform(config.seed, item.line)) for item in look.batch.items]


def uniform(seed: int, line: str) -> float:
    """Draw a number in [0, 1) for one line of the index."""
    return draw(seed, line) / 2**64
