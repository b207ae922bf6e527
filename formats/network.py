"""The network as it is handed over: fp32, batch norms folded, and what it finds decoded inside the graph.

Rows (facts: export): (B, R, 5 + nc); cx, cy, w, h in input px, objectness, class probabilities, all after the sigmoid;
by level (small stride first), then anchor, then y, then x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from models.checkpoint import Checkpoint
from models.common import SPP
from models.detector import build_model
from models.fuse import fold_batch_norms
from models.yolo import DetectionModel


def network_to_hand_over(checkpoint: Checkpoint) -> DetectionModel:
    """Build a checkpoint's network and fold its batch norms. Raises WeightsError."""
    model = build_model(checkpoint)
    fold_batch_norms(model)
    return model.float().eval()


class Rows(nn.Module):
    """Pictures -> rows.

    input_hw: the only size that it will run at, its grid a constant; None: the grid is made of each input's shape.
    """

    def __init__(self, model: DetectionModel, input_hw: Optional[tuple[int, int]] = None) -> None:
        super().__init__()
        self.model = model
        self.strides = model.stride
        self.anchors = int(model.detect.anchors.shape[1])
        self.channels = model.detect.nc + 5
        self._fixed_hw = input_hw
        for number, stride in enumerate(model.stride):
            anchors_px = model.detect.anchors[number].float() * stride  # (na, 2)
            self.register_buffer(f"anchors_px{number}", anchors_px.view(1, -1, 1, 1, 2))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> (B, R, 5 + nc)."""
        return torch.cat([self._decoded(number, level) for number, level in enumerate(self.model(images))], 1)

    def _decoded(self, number: int, level: Tensor) -> Tensor:
        """(B, na (5 + nc), H, W) -> (B, na H W, 5 + nc)."""
        stride = self.strides[number]
        height: Any
        width: Any
        batch, _, height, width = level.shape
        if self._fixed_hw is not None:
            height, width = self._fixed_hw[0] // stride, self._fixed_hw[1] // stride
        rows = level.view(batch, self.anchors, self.channels, height, width).permute(0, 1, 3, 4, 2).sigmoid()
        y, x = torch.arange(height, device=level.device), torch.arange(width, device=level.device)
        grid = torch.stack((x.view(1, -1).expand(height, width), y.view(-1, 1).expand(height, width)), -1)
        grid = grid.view(1, 1, height, width, 2).float()
        centre = (rows[..., 0:2] * 2 - 0.5 + grid) * stride
        size = (rows[..., 2:4] * 2) ** 2 * getattr(self, f"anchors_px{number}")
        return torch.cat((centre, size, rows[..., 4:]), -1).view(batch, -1, self.channels)


class RowsTuple(nn.Module):
    """The same as a tuple of one, as YOLOv5's own TorchScript files give it: old readers take result[0]."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """(B, 3, H, W) in 0..1 -> ((B, R, 5 + nc),)."""
        return (self.rows(images),)


class RawLevels(nn.Module):
    """Pictures -> the head's raw maps, for further training elsewhere: a level each, (B, na, H, W, 5 + nc)."""

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model
        self.anchors = int(model.detect.anchors.shape[1])
        self.channels = model.detect.nc + 5

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) in 0..1 -> a map for each level."""
        levels = []
        for level in self.model(images):
            batch, _, height, width = level.shape
            shaped = level.view(batch, self.anchors, self.channels, height, width)
            levels.append(shaped.permute(0, 1, 3, 4, 2).contiguous())
        return tuple(levels)


class RknnLevels(nn.Module):
    """Pictures -> what Rockchip's demos read: a level each, (B, na (5 + nc), H, W), after the sigmoid, nothing decoded.

    Large max pools become chains of 5 x 5 ones, which their NPUs compute.
    """

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        for module in model.modules():
            if isinstance(module, SPP):
                module.m = nn.ModuleList([_chained(pool) for pool in module.m])
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) in 0..1 -> a map for each level."""
        return tuple(level.sigmoid() for level in self.model(images))


def _chained(pool: Any) -> nn.Module:
    """Give 5 x 5 pools whose chain is that pool (of 9, 13, ...); others stay what they are."""
    kernel = int(pool.kernel_size)
    if kernel < 9 or (kernel - 1) % 4:
        return pool  # type: ignore[no-any-return]
    return nn.Sequential(*(nn.MaxPool2d(5, 1, 2) for _ in range((kernel - 1) // 4)))


def anchors_text(model: DetectionModel) -> str:
    """Give RK_anchors.txt: the anchors in input px, one number a line; w, h, small stride first."""
    lines: list[str] = []
    for number, stride in enumerate(model.stride):
        values: Sequence[float] = (model.detect.anchors[number].float() * stride).flatten().tolist()
        lines += [f"{value:g}" for value in values]
    return "\n".join(lines) + "\n"
