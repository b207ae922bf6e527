"""Features: how a picture looks to a network, as a short vector of whole numbers (facts: mining, feature)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from utils.stats import FEATURE_UNIT

Features = npt.NDArray[np.int16]  # (B, C)


def pooled_features(feature_map: Tensor) -> Features:
    """Give (B, C): the mean over a (B, C, H, W) map, of length 1, times FEATURE_UNIT, rounded.

    In whole numbers, so that no order made of them depends on threads.
    """
    pooled = feature_map.float().mean(dim=(2, 3), dtype=torch.float64)  # (B, C)
    unit = torch.nn.functional.normalize(pooled, dim=1)
    features: Features = (unit * FEATURE_UNIT).round().to(torch.int16).cpu().numpy()
    return features
