"""What the options that make the order need of a look, beside the score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mining.scored import Look
from utils.settings import MiningConfig

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Wants:
    """What is to be kept of each picture."""

    features: bool
    confidences: bool
    class_sums: bool
    parts: bool

    @property
    def needs_model(self) -> bool:
        """Say whether a network must look at the pictures, whatever the scorer."""
        return self.features or self.needs_classes

    @property
    def needs_classes(self) -> bool:
        """Say whether that network must know the task's classes."""
        return self.confidences or self.class_sums


def wants_of(config: MiningConfig) -> Wants:
    """Give what a task's options need."""
    return Wants(
        features=config.algorithm == "diverse" or config.diversity > 0 or config.dedup,
        confidences=config.class_balance > 0,
        class_sums=config.cald_balance,
        parts=config.report,
    )


def best_confidences(look: Look) -> list[Floats]:
    """Give for each picture (nc,): the largest objectness x class probability of all anchors."""
    import torch

    assert look.raw is not None
    with torch.inference_mode():
        best = [
            (level[..., 4:5].sigmoid() * level[..., 5:].sigmoid()).amax(dim=(0, 1, 2, 3))  # (nc,)
            for place in range(len(look))
            for level in look.raw[place].levels
        ]
        levels = len(look.raw.levels)
        stacked = torch.stack(best).reshape(len(look), levels, -1).amax(1)  # (B, nc)
    return list(stacked.cpu().numpy())


def class_sums(look: Look, config: MiningConfig) -> list[Floats]:
    """Give for each picture (nc,): the class vectors of its boxes, each of sum 1, added up; no box: zeros."""
    import torch

    from utils.nms import select_rows

    assert look.raw is not None
    sums = []
    with torch.inference_mode():
        for rows in look.raw.rows_above(config.nms.conf_thres):
            classes = select_rows(rows, config.nms)[:, 5:].double()  # (N, nc)
            vectors = classes / classes.sum(1, keepdim=True).clamp(min=1e-12)
            sums.append(vectors.sum(0).float().numpy())
    return sums
