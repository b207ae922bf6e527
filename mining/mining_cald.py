"""CALD mining: how well boxes agree between a picture and its changed copies (Yu, Zhu, Yang, Chen: CVPR Workshops 2022,
arXiv 2103.10374; SPEC 6; facts: mining, CALD).

Each box of the picture, taken into the copy, is compared with the copy's box that overlaps it most, whatever its class:
m = IoU + (s + s') / 2 x (1 - JS), where s are the scores and JS is the Jensen-Shannon divergence of the class vectors.
A picture whose boxes come near m = 1.3 is informative: neither found again for certain nor quite lost. Differs from the
authors' code: JS is in bits, no minimum is capped, all boxes count. More boxes give a smaller minimum: the figure of
`cald_mode: paper` follows their number (Spearman 0.8 on coco128).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from mining.data_augment import COPIES, ORIGINAL_COPIES, Boxes, Copy
from mining.draws import draw
from mining.scored import Look, Scored
from utils.batches import Batch, Canvas
from utils.boxes import ious
from utils.letterbox import LETTERBOXES, Letterbox
from utils.settings import MiningConfig, NmsSettings

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]

BETA = 1.3  # the paper's
LAST = 3.0  # taken off to put a picture without boxes last: no other score is below -BETA, no objectness above 1
LEAST = float(np.finfo(np.float32).tiny)  # an objectness that has underflowed is still above all scores of boxes
MOST_COPIES_BYTES = 64 << 20  # on their canvases at once, where one pass of pictures isn't more already


@dataclass(frozen=True)
class Found:
    """The boxes of a picture or a copy, as inference gives them, best score first."""

    boxes_px: Boxes  # (N, 4) xyxy
    scores: Floats  # (N,) objectness x probability of the best class
    vectors: Floats  # (N, nc) class probabilities, each row of sum 1; of one class (N, 2): s and 1 - s

    def __len__(self) -> int:
        return len(self.scores)


class Mode(NamedTuple):
    """What a cald_mode means. copies: as COPIES. whole_px: boxes are rounded. term: (found in the picture, its boxes in
    the copy's px, found in the copy) -> the copy's figure, low where the picture is informative."""

    copies: Mapping[str, Copy]
    whole_px: bool
    term: Callable[[Found, Boxes, Found], float]


class Copied(NamedTuple):
    """A copy on its canvas."""

    place: int  # of its picture in the look
    number: int  # among the copies
    canvas: Canvas
    letterbox: Letterbox
    boxes_px: Boxes  # (N, 4) the picture's, in the copy's px


def score_cald(look: Look, config: MiningConfig) -> list[Scored]:
    """Score each picture by its copies' terms; one without boxes needs none."""
    import torch

    assert look.raw is not None
    mode = MODES[config.cald_mode]
    with torch.inference_mode():
        found = [
            found_of(rows, letterbox, config.nms, mode.whole_px)
            for rows, letterbox in zip(look.raw.rows_above(config.nms.conf_thres), look.batch.letterboxes)
        ]
        terms = terms_of(look, config, mode, found)
        return [
            Scored(0.0 - float(terms[place].mean()) if len(own) else score_without_boxes(look, place, config), parts)
            for place, (own, parts) in enumerate(zip(found, terms.tolist()))
        ]


def copy_names(config: MiningConfig) -> tuple[str, ...]:
    """Name the copies, in the order of the parts."""
    return tuple(MODES[config.cald_mode].copies)


def score_without_boxes(look: Look, place: int, config: MiningConfig) -> float:
    """Give the score of a picture in which nothing was found."""
    assert look.raw is not None
    if config.cald_mode == "ymir":
        return BETA
    highest = max(float(look.raw[place].objectness().max()), LEAST)
    return highest if config.cald_empty == "first" else highest - LAST


# ---- looking again ---------------------------------------------------------------------------------------------------


def terms_of(look: Look, config: MiningConfig, mode: Mode, found: Sequence[Found]) -> Floats:
    """Give the term of each picture's copies: (B, copies); zeros where nothing was found in the picture."""
    assert look.detector is not None
    terms = np.zeros((len(look), len(mode.copies)))
    for group in in_groups(copies_of(look, config, mode, found), len(look)):
        items = [look.batch.items[copied.place] for copied in group]
        batch = Batch(items, [copied.canvas for copied in group], [copied.letterbox for copied in group])
        for copied, rows in zip(group, look.detector.candidates(batch, config.nms.conf_thres)):
            again = found_of(rows, copied.letterbox, config.nms, mode.whole_px)
            terms[copied.place, copied.number] = mode.term(found[copied.place], copied.boxes_px, again)
    return terms


def copies_of(look: Look, config: MiningConfig, mode: Mode, found: Sequence[Found]) -> Iterator[Copied]:
    """Make the copies of all pictures with boxes, one at a time, each letterboxed as its picture was."""
    assert look.detector is not None
    place_copy, side = LETTERBOXES[config.loader.letterbox], max(look.batch.canvas_hw)
    for place, (item, rgb, own) in enumerate(zip(look.batch.items, look.batch.pictures, found)):
        if not len(own):
            continue
        random = generator_of(config.seed, item.line)
        for number, copy in enumerate(mode.copies.values()):
            changed, boxes_px = copy(rgb, own.boxes_px, random)
            letterbox = place_copy((changed.shape[0], changed.shape[1]), side, look.detector.stride)
            canvas = np.empty((*letterbox.canvas_hw, 3), np.uint8)
            letterbox.draw(changed, canvas)
            yield Copied(place, number, canvas, letterbox, boxes_px)


def in_groups(copies: Iterator[Copied], whole_pass: int) -> Iterator[list[Copied]]:
    """Put copies of one shape together, in whole passes as long as there are enough."""
    waiting: dict[tuple[int, int], list[Copied]] = {}
    for copied in copies:
        shape = copied.letterbox.canvas_hw
        group = waiting.setdefault(shape, [])
        group.append(copied)
        passes = max(MOST_COPIES_BYTES // (copied.canvas.nbytes * whole_pass), 1)
        if len(group) == passes * whole_pass:
            yield waiting.pop(shape)
    yield from waiting.values()


def generator_of(seed: int, line: str) -> np.random.Generator:
    """Give the random numbers of one line of the index."""
    return np.random.default_rng(draw(seed, line, 16))


def found_of(rows: Tensor, letterbox: Letterbox, settings: NmsSettings, whole_px: bool) -> Found:
    """Give what is found in a picture, of its (K, 5 + nc) decoded rows."""
    from utils.nms import select_rows

    kept: Any = select_rows(rows, settings).numpy()  # (N, 5 + nc)
    centres, halves, classes = kept[:, 0:2], kept[:, 2:4] / 2, kept[:, 5:]
    boxes_px = letterbox.to_px(np.concatenate([centres - halves, centres + halves], axis=1)).astype(np.float64)
    scores = (classes * kept[:, 4:5]).max(axis=1, initial=0).astype(np.float64)
    vectors = classes.astype(np.float64)
    if vectors.shape[1] == 1:
        vectors = chances(scores)
    else:  # objectness stands above and below, and cancels
        vectors /= vectors.sum(axis=1, keepdims=True)
    return Found(np.round(boxes_px) if whole_px else boxes_px, scores, vectors)


# ---- comparing -------------------------------------------------------------------------------------------------------


def paper_term(own: Found, boxes_px: Boxes, copy: Found) -> float:
    """Give the least |m - 1.3| of a picture's boxes; 0 where the copy has none."""
    if not len(copy):
        return 0.0
    overlaps, partners = matches(boxes_px, copy)
    differences = divergences(own.vectors, copy.vectors[partners]) / math.log(2)
    return float(distances(own, copy, overlaps, partners, differences).min())


def ymir_term(own: Found, boxes_px: Boxes, copy: Found) -> float:
    """Give the original executor's figure: the sum, over the boxes, of the least |m - 1.3| so far, at most 1.3; JS is
    in nats between (s, 1 - s) and (s', 1 - s'). 1.3 where the copy has no box. Golden/README.md, CALD."""
    if not len(copy):
        return BETA
    overlaps, partners = matches(boxes_px, copy)
    differences = divergences(chances(own.scores), chances(copy.scores[partners]))
    least = np.minimum.accumulate(distances(own, copy, overlaps, partners, differences))
    return float(np.minimum(least, BETA).sum())


def matches(boxes_px: Boxes, copy: Found) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Give for (N, 4) boxes the IoU with the copy's box of highest IoU, and which that is, (N,) each; where none
    overlaps, the first, which is the best-scored one."""
    overlaps = ious(boxes_px, copy.boxes_px)  # (N, M)
    return overlaps.max(axis=1), overlaps.argmax(axis=1)


def distances(own: Found, copy: Found, overlaps: Floats, partners: npt.NDArray[np.intp], differences: Floats) -> Floats:
    """Give (N,) |m - 1.3| of a picture's boxes and their partners, with their IoU and JS."""
    scores = (own.scores + copy.scores[partners]) / 2
    return np.abs(overlaps + scores * (1 - differences) - BETA)


def chances(scores: Floats) -> Floats:
    """Give (N, 2): each score, and what it leaves to 1."""
    return np.stack([scores, 1 - scores], axis=1)


def divergences(vectors: Floats, others: Floats) -> Floats:
    """Give the (N,) Jensen-Shannon divergences, in nats, between the rows of two (N, n) arrays, each of sum 1."""
    middle = entropies((vectors + others) / 2)
    return np.maximum(middle - (entropies(vectors) + entropies(others)) / 2, 0)


def entropies(vectors: Floats) -> Floats:
    """Give the (N,) entropies, in nats, of the rows of an (N, n) array; 0 log 0 = 0."""
    logs = np.log(vectors, out=np.zeros_like(vectors), where=vectors > 0)
    total: Floats = -(vectors * logs).sum(axis=1)
    return total


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "paper": Mode(COPIES, whole_px=False, term=paper_term),
        "ymir": Mode(ORIGINAL_COPIES, whole_px=True, term=ymir_term),
    }
)
