"""The head's raw maps, and what is read off them: boxes, scores and objectness. All in fp32.

Decoding (YOLOv5 v6, SPEC section 5), with s the sigmoid of the raw map: centre = (2 s - 0.5 + cell) x stride,
width and height = (2 s)^2 x anchor in input pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Optional, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class HeadMaps(Protocol):
    """What a network says of a batch, whichever engine ran it."""

    @property
    def levels(self) -> list[Tensor]:
        """Give the maps before the sigmoid: for each output level (B, H, W, na, 5 + nc), fp32."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Give input px a cell, per level."""

    @property
    def features(self) -> Optional[npt.NDArray[np.int16]]:
        """Give (B, C) of `models.features.pooled_features`, where the detector was asked for them."""

    def __len__(self) -> int:
        """Give the number of pictures."""

    def __getitem__(self, place: int) -> HeadMaps:
        """Give one picture's maps, still as a batch, of one."""

    def cut(self, counted: slice) -> HeadMaps:
        """Give some of the levels."""

    def objectness(self) -> Tensor:
        """Give every anchor's objectness in 0..1: (B, R); rows by level, then anchor, then y, then x."""

    def rows(self) -> Tensor:
        """Give everything decoded: (B, R, 5 + nc); cx, cy, w, h in input px, then probabilities."""

    def rows_above(self, objectness: float) -> list[Tensor]:
        """Give for each picture the (K, 5 + nc) rows above an objectness, on the CPU, in their order."""


@dataclass(frozen=True)
class RawMaps:
    """What the head gave for a batch, before the sigmoid.

    levels: for each output level (B, H, W, na, 5 + nc), fp32; the last axis is x, y, w, h, objectness, classes.
    strides: input px a cell, per level. anchors_px: (nl, na, 2) width and height in input px.
    features: (B, C) of `models.features.pooled_features`, where the detector was asked for them.
    """

    levels: list[Tensor]
    strides: tuple[int, ...]
    anchors_px: Tensor
    features: Optional[npt.NDArray[np.int16]] = None

    def __len__(self) -> int:
        return self.levels[0].shape[0]

    def objectness(self) -> Tensor:
        """Give every anchor's objectness in 0..1: (B, R); rows by level, then anchor, then y, then x."""
        flat = [level[..., 4].permute(0, 3, 1, 2).flatten(1) for level in self.levels]  # (B, na H W) each
        return torch.cat(flat, 1).sigmoid()

    def rows(self) -> Tensor:
        """Decode everything: (B, R, 5 + nc); cx, cy, w, h in input px, then probabilities."""
        decoded = []
        for number, level in enumerate(self.levels):
            batch, height, width, anchors, channels = level.shape
            ordered = level.permute(0, 3, 1, 2, 4).reshape(batch, -1, channels)  # (B, na H W, 5 + nc)
            cells = torch.arange(anchors * height * width, device=level.device)
            decoded.append(self._decode(number, ordered, cells.expand(batch, -1)))
        return torch.cat(decoded, 1)

    def rows_above(self, objectness: float) -> list[Tensor]:
        """Decode only the anchors whose objectness is above a threshold.

        returns: for each picture (K, 5 + nc) rows on the CPU, as `rows` gives them and in their order.
        """
        if self.anchors_px.is_cuda:  # few large steps
            rows, pictures = self._above(objectness)
            counts = torch.bincount(pictures, minlength=len(self)).tolist()
            # Levels were joined one after another; a stable sort brings each picture's rows together in order.
            return list(torch.split(rows[torch.sort(pictures, stable=True)[1]].cpu(), counts))
        # A vectorised sigmoid differs in the last bit from that of a remainder: picture by picture, no result depends
        # on how many rows its neighbours have.
        return [self[place]._above(objectness)[0] for place in range(len(self))]

    def __getitem__(self, place: int) -> RawMaps:
        """Give one picture's maps, still as a batch, of one."""
        features = None if self.features is None else self.features[place : place + 1]
        return RawMaps([level[place : place + 1] for level in self.levels], self.strides, self.anchors_px, features)

    def cut(self, counted: slice) -> RawMaps:
        """Give some of the levels."""
        return RawMaps(self.levels[counted], self.strides[counted], self.anchors_px[counted])

    def _above(self, objectness: float) -> tuple[Tensor, Tensor]:
        """Give (K, 5 + nc) rows, by level, and (K,) the number of the picture that each belongs to."""
        found, pictures = [], []
        for number, level in enumerate(self.levels):
            score = level[..., 4].permute(0, 3, 1, 2).sigmoid()  # (B, na, H, W)
            picture, anchor, y, x = (score > objectness).nonzero(as_tuple=True)  # (k,) each, in rows' order
            height, width = level.shape[1:3]
            cells = (anchor * height + y) * width + x
            found.append(self._decode(number, level[picture, y, x, anchor], cells))
            pictures.append(picture)
        return torch.cat(found), torch.cat(pictures)

    def _decode(self, number: int, raw: Tensor, cells: Tensor) -> Tensor:
        """raw: (..., 5 + nc); cells: (...), the place among the level's anchors: (anchor x H + y) x W + x."""
        height, width = self.levels[number].shape[1:3]
        stride = self.strides[number]
        lines = torch.div(cells, width, rounding_mode="floor")  # // warns in torch 1.12
        grid = torch.stack((cells % width, lines % height), -1)  # (..., 2)
        anchors_px = self.anchors_px[number][torch.div(lines, height, rounding_mode="floor")]  # (..., 2)
        rows = raw.sigmoid()
        centre = (rows[..., 0:2] * 2 - 0.5 + grid) * stride
        size = (rows[..., 2:4] * 2) ** 2 * anchors_px
        return torch.cat((centre, size, rows[..., 4:]), -1)


class DecodedMaps:
    """The same made of rows, which is what a network gives that was handed over to another engine.

    rows: (B, R, 5 + nc) as `HeadMaps.rows` gives them. anchors: per cell.
    """

    features = None

    def __init__(self, rows: Tensor, input_hw: tuple[int, int], strides: tuple[int, ...], anchors: int) -> None:
        self._rows = rows
        self._input_hw = input_hw
        self.strides = strides
        self._anchors = anchors

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> DecodedMaps:
        """Give one picture's maps, still as a batch, of one."""
        return DecodedMaps(self._rows[place : place + 1], self._input_hw, self.strides, self._anchors)

    @cached_property
    def levels(self) -> list[Tensor]:
        """Give the maps before the sigmoid; of the boxes, which only make sense decoded, zeros."""
        levels = []
        for stride, rows in zip(self.strides, torch.split(self._rows, self._counts(), 1)):
            height, width = self._input_hw[0] // stride, self._input_hw[1] // stride
            shaped = rows.reshape(len(rows), self._anchors, height, width, -1).permute(0, 2, 3, 1, 4)
            raw = shaped.clamp(min=torch.finfo(torch.float32).tiny).logit()
            raw[..., :4] = 0
            levels.append(raw)
        return levels

    def _counts(self) -> list[int]:
        """Give the rows of each level."""
        height, width = self._input_hw
        return [self._anchors * (height // stride) * (width // stride) for stride in self.strides]

    def cut(self, counted: slice) -> DecodedMaps:
        """Give some of the levels."""
        parts = torch.split(self._rows, self._counts(), 1)[counted]
        return DecodedMaps(torch.cat(parts, 1), self._input_hw, self.strides[counted], self._anchors)

    def objectness(self) -> Tensor:
        """Give every anchor's objectness in 0..1: (B, R)."""
        return self._rows[..., 4]

    def rows(self) -> Tensor:
        """Give everything: (B, R, 5 + nc)."""
        return self._rows

    def rows_above(self, objectness: float) -> list[Tensor]:
        """Give for each picture the (K, 5 + nc) rows above an objectness."""
        return [rows[rows[:, 4] > objectness] for rows in self._rows]
