"""Raw rows of one picture -> the boxes that are kept, still in input pixels.

Suppression itself is torchvision's compiled operator, loaded without torchvision's Python package: importing that
costs as much as torch itself.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import DeviceError
from utils.settings import NmsSettings

MAX_CANDIDATES = 30_000  # a picture, best first (SPEC section 5)
# Far beyond any input: boxes of different classes, moved apart by it, never overlap. Added in fp64, so that nothing
# of a coordinate is rounded away.
CLASS_OFFSET_PX = 1e6
FIRST_TRY = 2_000


@functools.cache
def _suppress() -> Any:
    """Load torchvision's library and give its operator."""
    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations or []) if found else []:
        for library in sorted(Path(folder).glob("_C*.so")):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]  # torch has no types there
            return torch.ops.torchvision.nms
    raise DeviceError("torchvision: is not installed or has no compiled operators; pip install -r requirements.txt")


def select_boxes(rows: Tensor, settings: NmsSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Choose a picture's boxes.

    rows: (K, 5 + nc) fp32 on the CPU: cx, cy, w, h in input px, objectness, class probabilities.
    returns: boxes_letterbox (N, 4) xyxy, scores (N,) falling, class_ids (N,); N <= settings.max_det.
    """
    boxes, scores, class_ids, _ = _selected(rows, settings)
    return boxes, scores, class_ids


def select_rows(rows: Tensor, settings: NmsSettings) -> Tensor:
    """Give the (N, 5 + nc) rows of the boxes that `select_boxes` chooses, in its order."""
    return rows[_selected(rows, settings)[3]]


def _selected(rows: Tensor, settings: NmsSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    boxes, scores, class_ids, sources = _scored(rows, settings)
    order = torch.sort(scores, descending=True, stable=True)[1][:MAX_CANDIDATES]  # argsort has no stable in torch 1.12
    boxes, scores, class_ids = boxes[order], scores[order], class_ids[order]
    kept = _keep(boxes, scores, class_ids, settings)
    return boxes[kept], scores[kept], class_ids[kept], sources[order[kept]]


def score_rows(rows: Tensor, settings: NmsSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Give every (box, class) whose objectness x class probability is above the threshold, in the order of the rows.

    returns: boxes_letterbox (M, 4) xyxy, scores (M,), class_ids (M,).
    """
    return _scored(rows, settings)[:3]


def _scored(rows: Tensor, settings: NmsSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give what `score_rows` does, and which row each is of (M,)."""
    sources = (rows[:, 4] > settings.conf_thres).nonzero(as_tuple=True)[0]
    rows = rows[sources]
    probabilities = rows[:, 5:] * rows[:, 4:5]  # (K, nc)
    if settings.multi_label and probabilities.shape[1] > 1:
        taken, class_ids = (probabilities > settings.conf_thres).nonzero(as_tuple=True)
        scores = probabilities[taken, class_ids]
    else:
        scores, class_ids = probabilities.max(1) if len(rows) else (rows[:, 4], rows[:, 4].long())
        taken = (scores > settings.conf_thres).nonzero(as_tuple=True)[0]
        scores, class_ids = scores[taken], class_ids[taken]
    if settings.classes is not None:
        wanted = torch.isin(class_ids, torch.tensor(settings.classes, dtype=class_ids.dtype))
        taken, scores, class_ids = taken[wanted], scores[wanted], class_ids[wanted]
    centre, half = rows[taken, 0:2], rows[taken, 2:4] / 2
    return torch.cat((centre - half, centre + half), 1), scores, class_ids, sources[taken]


def _keep(boxes: Tensor, scores: Tensor, class_ids: Tensor, settings: NmsSettings) -> Tensor:
    """Give the indices that suppression keeps of boxes sorted by score."""
    apart = boxes.double()
    if not settings.agnostic:
        apart = apart + class_ids.double()[:, None] * CLASS_OFFSET_PX
    # A box is only ever suppressed by a better one: what is kept of the best 2000 is the beginning of what is kept of
    # all, and mostly enough.
    for count in (FIRST_TRY, len(boxes)):
        # Ranks for scores: torchvision's own sort isn't stable among equal ones.
        ranks = torch.arange(min(count, len(boxes)), 0, -1, dtype=torch.float64)
        kept: Tensor = _suppress()(apart[:count], ranks, settings.iou_thres)
        if len(kept) >= settings.max_det or count >= len(boxes):
            break
    return kept[: settings.max_det]
