"""The loss of a detection head: which cells answer for which boxes, and what they should have said.

Box: complete IoU (Zheng et al., Distance-IoU loss, AAAI 2020, eq. 9 to 11). Objectness and classes: binary
cross-entropy, or its focal form (Lin et al., Focal loss, ICCV 2017, eq. 5). Which cells answer is YOLOv5's own rule, as
training_loss.json of the golden figures shows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.hyp import Hyp

# How much a level's objectness counts, finest first: large maps are mostly empty.
THREE_LEVELS = (4.0, 1.0, 0.4)
OTHER_LEVELS = (4.0, 1.0, 0.25, 0.06, 0.02)
BALANCE_DECAY = 0.9999
BALANCE_STRIDE = 16  # the level that the others' weights are relative to
FOCAL_ALPHA = 0.25
QUAD_GAIN = 4.0  # --quad: a batch holds a quarter as many pictures
# Own cell, then its neighbours on the left, above, on the right, below: x, y in cells.
NEIGHBOURS = ((0.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0))
TINY = 1e-7

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LossSettings:
    """What a loss is told. img_size: the side that training runs at, in px."""

    hyp: Hyp
    img_size: int
    label_smoothing: float = 0.0
    is_autobalanced: bool = False
    is_quad: bool = False


class HeadShape(NamedTuple):
    """What a loss knows of the head."""

    nc: int
    anchors_grid: Tensor  # (nl, na, 2): width, height in cells of their level
    strides: Sequence[int]  # input px a cell


class LossParts(NamedTuple):
    """total: a scalar to go backward from. parts: (3,) box, objectness, classes, after their gains, detached."""

    total: Tensor
    parts: Tensor


class Matches(NamedTuple):
    """The cells of one level that answer for a box; n of them, in the order offset, anchor, target."""

    cells: Tensor  # (n, 4) int64: place in the batch, anchor, row, column
    boxes_grid: Tensor  # (n, 4): centre from the matched cell's corner, -0.5 to 1.5; width, height; in cells
    anchors_grid: Tensor  # (n, 2): width, height in cells
    class_ids: Tensor  # (n,) int64


def match(rows: Tensor, anchors_grid: Tensor, level_hw: tuple[int, int], anchor_t: float) -> Matches:
    """Find the cells and anchors of one level that answer for each box.

    rows: (m, 6) place in the batch, class, cx, cy, w, h in 0..1. anchors_grid: (na, 2) in cells, on the rows' device.
    An anchor matches a box if no side is more than anchor_t times as long as the other's. Up to three cells answer: the
    one with the centre in it, and the nearest neighbour each way, unless that lies outside of the map.
    """
    height, width = level_hw
    size = rows.new_tensor([width, height])
    centres, sizes = rows[:, 2:4] * size, rows[:, 4:6] * size  # (m, 2) each, in cells
    ratios = sizes[None] / anchors_grid[:, None]  # (na, m, 2)
    fits = torch.maximum(ratios, 1 / ratios).amax(2) < anchor_t  # (na, m); a box without width or height fits nowhere
    anchor_ids, targets = fits.nonzero(as_tuple=True)  # (k,) each, by anchor, then target
    near = centres[targets]  # (k, 2)
    far = size - near  # from the lower right corner
    before, after = (near % 1 < 0.5) & (near > 1), (far % 1 < 0.5) & (far > 1)  # (k, 2) each: x, y
    answers = torch.cat([torch.ones_like(before[:, :1]), before, after], 1).T  # (5, k), in the order of NEIGHBOURS
    offsets, pairs = answers.nonzero(as_tuple=True)  # (n,) each
    # Half a cell, not a whole one: a centre on a border between cells then never gets a cell one and a half away.
    shifts = rows.new_tensor(NEIGHBOURS)[offsets] / 2  # (n, 2)
    centres, targets = near[pairs], targets[pairs]
    corners = torch.minimum((centres + shifts).floor().clamp(min=0), size - 1)  # (n, 2) x, y
    anchor_ids = anchor_ids[pairs]
    places, class_ids = rows[targets, :2].long().T
    columns, lines = corners.long().T
    boxes = torch.cat([centres - corners, sizes[targets]], 1)  # (n, 4)
    return Matches(torch.stack([places, anchor_ids, lines, columns], 1), boxes, anchors_grid[anchor_ids], class_ids)


def complete_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Give the (n,) complete IoU of (n, 4) boxes and others, both cx, cy, w, h in one frame; alpha has no gradient."""
    centres, sizes = boxes[:, :2], boxes[:, 2:]
    other_centres, other_sizes = others[:, :2], others[:, 2:]
    low, high = centres - sizes / 2, centres + sizes / 2
    other_low, other_high = other_centres - other_sizes / 2, other_centres + other_sizes / 2
    overlap = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(1)
    iou = overlap / (sizes.prod(1) + other_sizes.prod(1) - overlap + TINY)
    hull = torch.maximum(high, other_high) - torch.minimum(low, other_low)
    distance = (centres - other_centres).square().sum(1) / (hull.square().sum(1) + TINY)
    turn = torch.atan(other_sizes[:, 0] / (other_sizes[:, 1] + TINY)) - torch.atan(sizes[:, 0] / (sizes[:, 1] + TINY))
    aspect = 4 / math.pi**2 * turn.square()
    with torch.no_grad():
        alpha = aspect / (aspect - iou + (1 + TINY))
    whole: Tensor = iou - distance - alpha * aspect
    return whole


class _Pick(torch.autograd.Function):
    """Takes from a raw map what the loss looks at, and gives back one gradient of the map's own dtype and layout.

    (B, na * no, H, W) -> (n, no) rows at n cells and (B, na, H, W) objectness, both at least fp32. The plain operations
    would make two dense gradients and add them; and the backward of an index with four tensors sums in random order on
    two or more threads.
    """

    @staticmethod
    def forward(ctx: Any, level: Tensor, cells: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = level.shape
        outputs = channels // anchors
        strides = level.stride()
        steps = level.new_tensor([strides[0], outputs * strides[1], strides[2], strides[3]], dtype=torch.int64)
        first = (cells * steps).sum(1, keepdim=True)  # (n, 1) where in memory a cell's values begin
        elements = (first + torch.arange(outputs, device=level.device) * strides[1]).flatten()  # (n * no,)
        ctx.save_for_backward(elements)
        ctx.like, ctx.shape = level.new_empty(0), (batch, anchors, outputs, height, width)
        ctx.strides = strides
        dtype = torch.promote_types(level.dtype, torch.float32)
        rows = _memory(level).index_select(0, elements).view(-1, outputs).to(dtype)
        objectness = level.view(ctx.shape)[:, :, 4].to(dtype, copy=True, memory_format=torch.contiguous_format)
        return rows, objectness

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        of_rows, of_objectness = gradients
        (elements,) = ctx.saved_tensors
        batch, anchors, outputs, height, width = ctx.shape
        shape = (batch, anchors * outputs, height, width)
        gradient = torch.empty_strided(shape, ctx.strides, dtype=ctx.like.dtype, device=ctx.like.device).zero_()
        gradient.view(ctx.shape)[:, :, 4] = of_objectness.to(gradient.dtype)
        _memory(gradient).index_add_(0, elements, of_rows.to(gradient.dtype).flatten())
        return gradient, None, None


def _memory(level: Tensor) -> Tensor:
    """Give a dense map's values in the order in which they lie in memory."""
    return level.as_strided((level.numel(),), (1,))


def _is_dense(level: Tensor) -> bool:
    return level.is_contiguous() or level.is_contiguous(memory_format=torch.channels_last)


class DetectionLoss:
    """The loss of a batch of raw maps; made by `make_loss`.

    Called with maps [(B, na * (5 + nc), H, W)] and rows (n, 6): place in the batch, class, cx, cy, w, h in 0..1. Rows
    may be on the CPU where maps are on a GPU: then no step of the matching waits for the GPU. Maps have any floating
    dtype and either memory format; what is computed is fp32 at least.

    On several ranks, with `reduce_counts` (a sum over all ranks), means are over all ranks' matches and pictures. With
    W ranks, N_l matches of level l, B pictures (all ranks' sums) and b pictures here, a rank's parts are
        W * (sum over own matches of level l) / N_l   (box, classes; summed over levels)
        W * b / B * (mean over own cells)             (objectness; likewise)
    times the gains, and total = sum of the parts * B. So the mean over ranks of parts, and of the gradients of total
    (which is what DistributedDataParallel makes), are those of one process with all B pictures as one batch: nothing is
    to be multiplied by W again. Alone, W = 1 and b = B. Each rank calls it equally often, its rows empty or not.
    """

    def __init__(
        self,
        settings: LossSettings,
        head: HeadShape,
        gains: tuple[float, float, float],
        reduce_counts: Optional[Reduce] = None,
    ) -> None:
        levels = len(head.anchors_grid)
        self.settings = settings
        self.nc = head.nc
        self.gains = gains  # box, objectness, classes
        self.reduce_counts = reduce_counts
        self.anchors_grid = head.anchors_grid.detach().float().cpu()
        self.level_weights = torch.tensor((THREE_LEVELS if levels == 3 else OTHER_LEVELS)[:levels])  # (nl,)
        self._reference = min(range(levels), key=lambda level: abs(head.strides[level] - BALANCE_STRIDE))

    def __call__(self, maps: Sequence[Tensor], rows: Tensor) -> LossParts:
        """Give the loss of a batch."""
        device = maps[0].device
        found = self.match(maps, rows)
        counts = [len(matches.cells) for matches in found]
        totals = torch.tensor([*counts, len(maps[0]), 1], dtype=torch.float64).to(device)
        if self.reduce_counts is not None:
            totals = self.reduce_counts(totals)
        pictures, ranks = totals[-2], totals[-1]
        picked = [self._pick(level, matches.cells.to(device)) for level, matches in zip(maps, found)]
        predicted = torch.cat([rows_of for rows_of, _ in picked])  # (n, no), all levels
        each = (ranks / totals[:-2].clamp(min=1)).to(predicted.dtype)  # (nl,) what a match of a level counts
        weights = torch.cat([level.expand(count) for level, count in zip(each, counts)])  # (n,)
        ious = self._ious(predicted, found)
        box = ((1 - ious) * weights).sum()
        classes = self._classes(predicted[:, 5:], torch.cat([matches.class_ids for matches in found]), weights)
        confident = torch.split(ious.detach().clamp(min=0), counts)
        cells = [self._objectness(seen, m.cells, iou) for (_, seen), m, iou in zip(picked, found, confident)]
        share = (ranks * len(maps[0]) / pictures).to(predicted.dtype)
        objectness = self._balance(torch.stack(cells) * share, ranks)
        gained = torch.stack([box, objectness, classes]) * predicted.new_tensor(self.gains)  # (3,)
        total = gained.sum() * pictures.to(gained.dtype) * (QUAD_GAIN if self.settings.is_quad else 1.0)
        return LossParts(total, gained.detach())

    def match(self, maps: Sequence[Tensor], rows: Tensor) -> list[Matches]:
        """Give the matches of each level, on the rows' device."""
        self.anchors_grid = self.anchors_grid.to(rows.device)
        limit = self.settings.hyp.anchor_t
        rows = rows.detach().float()
        return [
            match(rows, anchors, (level.shape[2], level.shape[3]), limit)
            for level, anchors in zip(maps, self.anchors_grid)
        ]

    def state(self) -> dict[str, Any]:
        """Give what has changed since the start, as plain values."""
        return {"level_weights": self.level_weights.tolist()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken."""
        self.level_weights = torch.tensor([float(weight) for weight in state["level_weights"]])

    def _pick(self, level: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        dense = level if _is_dense(level) else level.contiguous()
        picked: tuple[Tensor, Tensor] = _Pick.apply(dense, cells, self.anchors_grid.shape[1])
        return picked

    def _ious(self, predicted: Tensor, found: Sequence[Matches]) -> Tensor:
        """Give the (n,) complete IoU of each match's box; (2s - 0.5) from the cell, (2s)^2 anchors wide and high."""
        boxes = torch.cat([matches.boxes_grid for matches in found]).to(predicted)
        anchors = torch.cat([matches.anchors_grid for matches in found]).to(predicted)
        doubled = predicted[:, :4].sigmoid() * 2
        return complete_iou(torch.cat([doubled[:, :2] - 0.5, doubled[:, 2:].square() * anchors], 1), boxes)

    def _classes(self, logits: Tensor, class_ids: Tensor, weights: Tensor) -> Tensor:
        if self.nc == 1:
            return logits.new_zeros(())
        smooth = self.settings.label_smoothing / 2
        wanted = torch.full_like(logits, smooth)
        wanted.scatter_(1, class_ids.to(logits.device)[:, None], 1 - smooth)
        return (self._entropy(logits, wanted, self.settings.hyp.cls_pw).mean(1) * weights).sum()

    def _objectness(self, logits: Tensor, cells: Tensor, ious: Tensor) -> Tensor:
        """Give the mean over all cells; a cell and anchor that several boxes matched should say the last one's IoU."""
        _, anchors, height, width = logits.shape
        place, anchor, line, column = cells.T
        positions = ((place * anchors + anchor) * height + line) * width + column  # (n,)
        kept = _last_of_each(positions)
        wanted = torch.zeros_like(logits)
        wanted.view(-1).index_copy_(0, positions[kept].to(logits.device), ious.index_select(0, kept.to(ious.device)))
        return self._entropy(logits, wanted, self.settings.hyp.obj_pw).mean()

    def _entropy(self, logits: Tensor, wanted: Tensor, positive_weight: float) -> Tensor:
        weight = None if positive_weight == 1 else logits.new_tensor([positive_weight])
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=weight)
        gamma = self.settings.hyp.fl_gamma
        if gamma == 0:
            return entropy
        said = logits.sigmoid()
        # Away from 0, where a power below 1 has no slope.
        missed = (wanted * (1 - said) + (1 - wanted) * said).clamp(min=TINY)
        return entropy * (wanted * FOCAL_ALPHA + (1 - wanted) * (1 - FOCAL_ALPHA)) * missed**gamma

    def _balance(self, losses: Tensor, ranks: Tensor) -> Tensor:
        """Sum (nl,) losses by their levels' weights; then, if asked to, move the weights towards equal shares."""
        self.level_weights = self.level_weights.to(losses)
        total = (losses * self.level_weights).sum()
        if self.settings.is_autobalanced and torch.is_grad_enabled():
            seen = losses.detach()
            if self.reduce_counts is not None:  # or each rank would get weights of its own
                seen = self.reduce_counts(seen) / ranks.to(seen.dtype)
            moved = BALANCE_DECAY * self.level_weights + (1 - BALANCE_DECAY) / seen.clamp(min=TINY)
            self.level_weights = moved / moved[self._reference]
        return total


def _last_of_each(positions: Tensor) -> Tensor:
    """Give where each distinct position stands last: writing only there is the same on any number of threads."""
    ordered, order = torch.sort(positions, stable=True)
    is_last = torch.ones_like(ordered, dtype=torch.bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    return order[is_last]


def make_loss(settings: LossSettings, head: HeadShape, reduce_counts: Optional[Reduce] = None) -> DetectionLoss:
    """Make the loss of a head.

    Gains follow the number of levels and classes, and the size: box * 3/nl, objectness * (img_size/640)^2 * 3/nl,
    classes * nc/80 * 3/nl. reduce_counts: gives the sum over all ranks of a tensor, on its device; see DetectionLoss.
    """
    hyp, share = settings.hyp, 3 / len(head.anchors_grid)
    gains = (hyp.box * share, hyp.obj * (settings.img_size / 640) ** 2 * share, hyp.cls * head.nc / 80 * share)
    return DetectionLoss(settings, head, gains, reduce_counts)
