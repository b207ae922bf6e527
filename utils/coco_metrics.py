"""COCO's own figures, by faster-coco-eval, and the rows of COCO's result file.

They differ from utils.metrics in the detections that count (100 a class and picture), in how AP is read, and in looking
at small, medium and large objects apart. Boxes are in picture pixels, or the sizes mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from utils.metrics import BoolArray, Found, Truth

MAX_DETECTIONS = (1, 10, 100)  # a class and picture
SIZES = ("all", "small", "medium", "large")  # by area: below 32², up to 96², above
IOU_75 = 5  # the place of 0.75 among the ten thresholds

# COCO numbered 91 categories and labelled 80 of them.
UNUSED_CATEGORY_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
COCO_CATEGORY_IDS = tuple(number for number in range(1, 92) if number not in UNUSED_CATEGORY_IDS)  # by class id
_COCO_NAMES_JOINED = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,"
    "snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,"
    "fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO_NAMES = tuple(_COCO_NAMES_JOINED.split(","))  # by class id


@dataclass(frozen=True)
class CocoFigures:
    """COCO's twelve figures in 0..1; 0.0 where no picture has a label, None where no label has that size."""

    map: float
    map50: float
    map75: float
    map_small: Optional[float]
    map_medium: Optional[float]
    map_large: Optional[float]
    ar1: float  # average recall with 1, 10, 100 detections a class and picture
    ar10: float
    ar100: float
    ar_small: Optional[float]
    ar_medium: Optional[float]
    ar_large: Optional[float]
    class_ap: tuple[Optional[float], ...]  # by class id, None for a class without labels


def coco_figures(
    truths: Sequence[Truth],
    found: Sequence[Found],
    class_count: int,
    crowds: Optional[Sequence[BoolArray]] = None,
) -> CocoFigures:
    """Compute COCO's figures of detections against labels, both in picture pixels, one item for each picture.

    crowds: for each picture (L,), True where a label stands for a crowd: boxes that lie on it are neither right nor
    wrong.
    """
    from faster_coco_eval import COCO, COCOeval_faster  # a quarter of a second, only for those who ask

    images = [{"id": image_id} for image_id in range(len(truths))]
    categories = [{"id": class_id, "name": str(class_id)} for class_id in range(class_count)]
    label_set, found_set = (
        COCO({"images": images, "categories": categories, "annotations": rows}, print_function=_say_nothing)
        for rows in (_label_rows(truths, crowds), _found_rows(found))
    )
    evaluation = COCOeval_faster(label_set, found_set, iouType="bbox", print_function=_say_nothing)
    evaluation.params.maxDets = list(MAX_DETECTIONS)
    evaluation.evaluate()
    evaluation.accumulate()
    return _read_figures(evaluation.eval["precision"], evaluation.eval["recall"])


def _say_nothing(*_: Any) -> None:
    """Take the library's reports, which otherwise would be logged."""


def _read_figures(precision: npt.NDArray[np.floating], recall: npt.NDArray[np.floating]) -> CocoFigures:
    """Average the library's tables, in which -1 stands where there is nothing to measure.

    precision: (10 IoU thresholds, 101 recalls, C classes, 4 SIZES, 3 MAX_DETECTIONS); recall: the same less recalls.
    """
    ap = {size: _mean(precision[:, :, :, k, -1]) for k, size in enumerate(SIZES)}
    ar = {size: _mean(recall[:, :, k, -1]) for k, size in enumerate(SIZES)}
    return CocoFigures(
        map=ap["all"] or 0.0,
        map50=_mean(precision[0, :, :, 0, -1]) or 0.0,
        map75=_mean(precision[IOU_75, :, :, 0, -1]) or 0.0,
        map_small=ap["small"],
        map_medium=ap["medium"],
        map_large=ap["large"],
        ar1=_mean(recall[:, :, 0, 0]) or 0.0,
        ar10=_mean(recall[:, :, 0, 1]) or 0.0,
        ar100=ar["all"] or 0.0,
        ar_small=ar["small"],
        ar_medium=ar["medium"],
        ar_large=ar["large"],
        class_ap=tuple(_mean(precision[:, :, class_id, 0, -1]) for class_id in range(precision.shape[2])),
    )


def _mean(values: npt.NDArray[np.floating]) -> Optional[float]:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def _label_rows(truths: Sequence[Truth], crowds: Optional[Sequence[BoolArray]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image_id, truth in enumerate(truths):
        for row, (bbox, class_id) in enumerate(zip(_xywh(truth.boxes), truth.class_ids.tolist())):
            is_crowd = crowds is not None and bool(crowds[image_id][row])
            rows.append(_annotation(len(rows) + 1, image_id, class_id, bbox, iscrowd=int(is_crowd)))
    return rows


def _found_rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image_id, one in enumerate(found):
        for bbox, class_id, score in zip(_xywh(one.boxes), one.class_ids.tolist(), one.scores.tolist()):
            rows.append({**_annotation(len(rows) + 1, image_id, class_id, bbox, iscrowd=0), "score": score})
    return rows


def _annotation(number: int, image_id: int, class_id: int, bbox: list[float], iscrowd: int) -> dict[str, Any]:
    return {
        "id": number,  # from 1: to the library 0 means that nothing was matched
        "image_id": image_id,
        "category_id": class_id,
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
        "iscrowd": iscrowd,
    }


def _xywh(boxes: npt.NDArray[np.floating]) -> list[list[float]]:
    """Give (N, 4) corner boxes as COCO writes them: left, top, width, height."""
    corners = boxes.astype(np.float64)
    rows: list[list[float]] = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    return rows


def category_ids(names: Sequence[str]) -> tuple[int, ...]:
    """Give COCO's category id for each class id: its own 91 for COCO's 80 classes, else the class id itself."""
    return COCO_CATEGORY_IDS if tuple(names) == COCO_NAMES else tuple(range(len(names)))


def coco_json_rows(stem: str, found: Found, categories: Sequence[int]) -> list[dict[str, Any]]:
    """Give one picture's rows of COCO's result file; boxes in picture pixels, `categories` from `category_ids`.

    stem: the picture's file name without its suffix, which is its number if it consists of digits.
    """
    image_id: Union[int, str] = int(stem) if stem.isascii() and stem.isdecimal() else stem
    return [
        {
            "image_id": image_id,
            "category_id": categories[class_id],
            "bbox": [round(number, 3) for number in bbox],
            "score": round(score, 5),
        }
        for bbox, class_id, score in zip(_xywh(found.boxes), found.class_ids.tolist(), found.scores.tolist())
    ]
