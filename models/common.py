"""The layers of YOLOv5, named as its checkpoints name them. A layer knows channels, not the model.

Sources: the layer table and the module names of `facts/yolov5.md`; CSP: Wang et al., CVPR Workshops 2020 (C3 is its
three-convolution form); SPP: He et al., ECCV 2014; GhostNet: Han et al., CVPR 2020; transformer layer: Vaswani et
al., NeurIPS 2017.

All layers take and give (B, C, H, W) maps. `activation` makes a fresh module each time it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def silu() -> nn.Module:
    """Make YOLOv5's default activation."""
    return nn.SiLU(inplace=True)


class Conv(nn.Module):
    """Convolution without bias, batch norm, activation. Keeps the size at stride 1 unless a padding is given."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        padding: Optional[int] = None,
        groups: int = 1,
        activation: Optional[Activation] = silu,
    ) -> None:
        super().__init__()
        pad = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, pad, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.03)
        self.act = nn.Identity() if activation is None else activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class Bottleneck(nn.Module):
    """1x1 to `ratio` of the channels, 3x3 back; adds its input where the shapes allow it."""

    def __init__(
        self, c_in: int, c_out: int, shortcut: bool = True, ratio: float = 0.5, activation: Activation = silu
    ) -> None:
        super().__init__()
        hidden = int(c_out * ratio)
        self.cv1 = Conv(c_in, hidden, 1, 1, activation=activation)
        self.cv2 = Conv(hidden, c_out, 3, 1, activation=activation)
        self.add = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv2(self.cv1(x))
        return x + out if self.add else out


class BottleneckCSP(nn.Module):
    """The CSP block of YOLOv5 v3 and v4: two plain convolutions and one batch norm over both branches."""

    def __init__(
        self, c_in: int, c_out: int, repeats: int = 1, shortcut: bool = True, activation: Activation = silu
    ) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, hidden, activation=activation)
        self.cv2 = nn.Conv2d(c_in, hidden, 1, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c_out, activation=activation)
        self.bn = nn.BatchNorm2d(2 * hidden, eps=1e-3, momentum=0.03)
        self.act = activation()
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, 1.0, activation) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)  # (B, 2 hidden, H, W)
        out: Tensor = self.cv4(self.act(self.bn(both)))
        return out


class C3(nn.Module):
    """CSP block with three convolutions: half of the channels go through `m`, half around it."""

    def __init__(
        self, c_in: int, c_out: int, repeats: int = 1, shortcut: bool = True, activation: Activation = silu
    ) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, hidden, activation=activation)
        self.cv2 = Conv(c_in, hidden, activation=activation)
        self.cv3 = Conv(2 * hidden, c_out, activation=activation)
        self.m = self._middle(hidden, repeats, shortcut, activation)

    def _middle(self, hidden: int, repeats: int, shortcut: bool, activation: Activation) -> nn.Module:
        return nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, 1.0, activation) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1)  # (B, 2 hidden, H, W)
        out: Tensor = self.cv3(both)
        return out


class GhostConv(nn.Module):
    """Half of the output by a convolution, the other half from it by a cheap depthwise 5x5."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, activation: Optional[Activation] = silu
    ) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, hidden, kernel, stride, activation=activation)
        self.cv2 = Conv(hidden, hidden, 5, 1, groups=hidden, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        half = self.cv1(x)
        return torch.cat((half, self.cv2(half)), 1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions, the second without activation; always adds its input."""

    def __init__(self, channels: int, activation: Activation = silu) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv = nn.Sequential(
            GhostConv(channels, hidden, 1, 1, activation), nn.Identity(), GhostConv(hidden, channels, 1, 1, None)
        )
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + self.shortcut(x)
        return out


class C3Ghost(C3):
    """C3 with ghost bottlenecks inside. A row's shortcut argument has no effect on them."""

    def _middle(self, hidden: int, repeats: int, shortcut: bool, activation: Activation) -> nn.Module:
        return nn.Sequential(*(GhostBottleneck(hidden, activation) for _ in range(repeats)))


class TransformerLayer(nn.Module):
    """Self-attention and a linear pair, each added to its input; no norms, as in YOLOv5."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.ma = nn.MultiheadAttention(channels, heads)
        self.fc1 = nn.Linear(channels, channels, bias=False)
        self.fc2 = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (H W, B, C) both ways
        x = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)[0] + x
        out: Tensor = self.fc2(self.fc1(x)) + x
        return out


class TransformerBlock(nn.Module):
    """Transformer layers over the cells of a map as tokens, row by row, with a learned position term."""

    def __init__(self, channels: int, heads: int, repeats: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.tr = nn.Sequential(*(TransformerLayer(channels, heads) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).permute(2, 0, 1)  # (H W, B, C)
        tokens = self.tr(tokens + self.linear(tokens))
        out: Tensor = tokens.permute(1, 2, 0).reshape(batch, channels, height, width)
        return out


class C3TR(C3):
    """C3 with a four-head transformer inside. A row's shortcut argument has no effect on it."""

    def _middle(self, hidden: int, repeats: int, shortcut: bool, activation: Activation) -> nn.Module:
        return TransformerBlock(hidden, 4, repeats)


class SPP(nn.Module):
    """Spatial pyramid pooling: the map beside its max pools of several sizes."""

    def __init__(
        self, c_in: int, c_out: int, kernels: Sequence[int] = (5, 9, 13), activation: Activation = silu
    ) -> None:
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden, activation=activation)
        self.cv2 = Conv(hidden * (len(kernels) + 1), c_out, activation=activation)
        self.m = nn.ModuleList([nn.MaxPool2d(kernel, 1, kernel // 2) for kernel in kernels])

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        out: Tensor = self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))
        return out


class SPPF(nn.Module):
    """SPP with sizes k, 2k - 1, 3k - 2 as three equal pools one after another: the same result, faster."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 5, activation: Activation = silu) -> None:
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden, activation=activation)
        self.cv2 = Conv(hidden * 4, c_out, activation=activation)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        once = self.m(x)
        twice = self.m(once)
        out: Tensor = self.cv2(torch.cat((x, once, twice, self.m(twice)), 1))
        return out


class Focus(nn.Module):
    """The stem of v5.0 and older: each 2x2 square of pixels becomes four channels."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, activation: Optional[Activation] = silu
    ) -> None:
        super().__init__()
        self.conv = Conv(c_in * 4, c_out, kernel, stride, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        quarters = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        out: Tensor = self.conv(torch.cat(quarters, 1))  # (B, 4 C, H / 2, W / 2) before it
        return out


class Concat(nn.Module):
    """Join maps along one axis."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat(maps, self.d)
