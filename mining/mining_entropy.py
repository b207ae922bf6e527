"""Entropy mining: how undecided the network is about objects, over all anchors of the letterboxed picture.

Score = - sum of p log2 p (SPEC section 6; uncertainty sampling by entropy: Settles, 2009, section 3.1), in bits, summed
in fp64; 0 log 0 = 0. p is the objectness, or with `entropy_of: class` objectness x class probability.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mining.scored import Look, Scored
from utils.settings import MiningConfig


def score_entropy(look: Look, config: MiningConfig) -> list[Scored]:
    """Score each picture by the entropy of its anchors."""
    assert look.raw is not None
    if config.entropy_of == "objectness":
        pictures = look.raw.objectness().cpu().numpy()  # (B, R)
    else:
        rows = look.raw.rows()  # (B, R, 5 + nc)
        pictures = (rows[..., 4:5] * rows[..., 5:]).flatten(1).cpu().numpy()  # (B, R nc)
    return [Scored(entropy_bits(probabilities)) for probabilities in pictures]


def entropy_bits(probabilities: npt.NDArray[np.float32]) -> float:
    """Give - sum of p log2 p of (N,) numbers in 0..1. NumPy's sum has one order, whatever the threads."""
    p = probabilities.astype(np.float64)
    logs = np.zeros_like(p)
    np.log2(p, out=logs, where=p > 0)
    return -float((p * logs).sum()) + 0.0
