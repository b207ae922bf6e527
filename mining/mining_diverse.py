"""Diverse mining: no score, since the order is made of features alone (k-center greedy: mining.ranking, `diverse`)."""

from __future__ import annotations

from mining.scored import Look, Scored
from utils.settings import MiningConfig


def score_nothing(look: Look, config: MiningConfig) -> list[Scored]:
    """Give every picture the same score."""
    return [Scored(0.0)] * len(look)
