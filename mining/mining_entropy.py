"""Entropy mining: how undecided the network is about objects, over all anchors of the letterboxed picture.

Score = - sum of p log2 p (SPEC section 6; uncertainty sampling by entropy: Settles, 2009, section 3.1), in bits, summed
in fp64; 0 log 0 = 0. p is the objectness, or with `entropy_of: class` objectness x class probability.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import numpy as np
import numpy.typing as npt

from mining.scored import MiningItem, Scored
from utils.batches import Batch
from utils.settings import MiningConfig

if TYPE_CHECKING:
    from models.detector import Detector


def score_entropy(detector: Optional[Detector], batch: Batch[MiningItem], config: MiningConfig) -> list[Scored]:
    """Score each picture of a batch by the entropy of its anchors."""
    assert detector is not None
    scores: list[Scored] = []
    for raw in detector.maps(batch):
        if config.entropy_of == "objectness":
            pictures = raw.objectness().cpu().numpy()  # (B, R)
        else:
            rows = raw.rows()  # (B, R, 5 + nc)
            pictures = (rows[..., 4:5] * rows[..., 5:]).flatten(1).cpu().numpy()  # (B, R nc)
        scores += [Scored(entropy_bits(probabilities)) for probabilities in pictures]
    return scores


def entropy_bits(probabilities: npt.NDArray[np.float32]) -> float:
    """Give - sum of p log2 p of (N,) numbers in 0..1. NumPy's sum has one order, whatever the threads."""
    p = probabilities.astype(np.float64)
    logs = np.zeros_like(p)
    np.log2(p, out=logs, where=p > 0)
    return -float((p * logs).sum()) + 0.0
