"""mining_stats.safetensors: what a later mining task may know of the training set, whose labels it never sees.

A few numbers for each class, and features of some training pictures; no pictures (SPEC section 4). The file comes back
from /in, so it is read like anything from there: bounded and checked. No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from utils.class_names import MOST_CLASSES, MOST_NAME_LETTERS
from utils.errors import DatasetError
from utils.files import read_bytes, write_whole

FILE_NAME = "mining_stats.safetensors"
VERSION = "1"
MAX_BYTES = 64 << 20  # 4096 features of yolov5x6 have 10 MB
MAX_FEATURES = 4096
FEATURE_UNIT = 4000  # of a unit vector: every product of two is a whole number that fp32 holds exactly

_MAX_DIGEST = 500
_MAX_COUNT = 1 << 53
_ARRAYS = ("pictures_per_class", "boxes_per_class", "ap_per_class", "features")


@dataclass(frozen=True, eq=False)
class MiningStats:
    """The labelled training set, class by class, and how some of its pictures look to the model.

    digest: `features_digest` of what made the features; with another one they say nothing.
    """

    names: tuple[str, ...]
    pictures_per_class: npt.NDArray[np.int64]  # (C,) with at least one box of the class
    boxes_per_class: npt.NDArray[np.int64]  # (C,)
    ap_per_class: npt.NDArray[np.float64]  # (C,) COCO 0.5:0.95 of the validation, 0..1; NaN: unknown
    features: npt.NDArray[np.int16]  # (K, D), FEATURE_UNIT times unit vectors; K may be 0
    seed: int
    digest: str


def features_digest(weights: str, layer: int, img_size: int, letterbox: str) -> str:
    """All that features depend on, as one text. weights: Checkpoint.digest."""
    return f"weights {weights} layer {layer} img_size {img_size} letterbox {letterbox}"


def write_stats(path: Path, stats: MiningStats) -> None:
    """Replace the file in one step. Raises ValueError where the parts don't fit together, which is our own mistake."""
    wrong = _wrong(stats)
    if wrong:
        raise ValueError(wrong)
    metadata = {"version": VERSION, "names": json.dumps(stats.names), "seed": str(stats.seed), "digest": stats.digest}
    arrays = {name: np.ascontiguousarray(getattr(stats, name)) for name in _ARRAYS}
    write_whole(path, save(arrays, metadata))


def read_stats(path: Path, limit: int = MAX_BYTES) -> MiningStats:
    """Read and check a file of at most `limit` bytes; its arrays are read-only.

    Raises DatasetError, naming file and cause, for one that is damaged, hostile or of another version.
    """
    content = read_bytes(path, limit, DatasetError)
    try:
        arrays = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # load() has checked this much
        stats = _taken(header.get("__metadata__") or {}, arrays)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as cause:
        raise DatasetError(f"{path}: is no {FILE_NAME} of this version, or damaged; mining goes without it") from cause
    wrong = _wrong(stats)
    if wrong:
        raise DatasetError(f"{path}: {wrong}; mining goes without it")
    return stats


def _taken(metadata: dict[str, str], arrays: dict[str, npt.NDArray[Any]]) -> MiningStats:
    """The parts of a file whose form is right. Raises KeyError, TypeError or ValueError for another form."""
    if metadata["version"] != VERSION or set(arrays) != set(_ARRAYS) or len(metadata["seed"]) > 20:
        raise ValueError("another version")
    names = json.loads(metadata["names"])
    if not isinstance(names, list):
        raise TypeError("names")
    for array in arrays.values():
        array.flags.writeable = False
    return MiningStats(tuple(names), seed=int(metadata["seed"]), digest=metadata["digest"], **arrays)


def _wrong(stats: MiningStats) -> Optional[str]:
    """What doesn't fit together, in words; None if all does."""
    names, classes = stats.names, len(stats.names)
    are_texts = all(isinstance(name, str) and len(name) <= MOST_NAME_LETTERS for name in names)
    if not 0 < classes <= MOST_CLASSES or not are_texts:
        return f"its class names aren't 1 to {MOST_CLASSES} texts of at most {MOST_NAME_LETTERS} letters"
    for name in ("pictures_per_class", "boxes_per_class"):
        counts = getattr(stats, name)
        if counts.dtype != np.int64 or counts.shape != (classes,) or not ((counts >= 0) & (counts < _MAX_COUNT)).all():
            return f"{name}: need {classes} whole numbers from 0 on"
    ap = stats.ap_per_class
    if ap.dtype != np.float64 or ap.shape != (classes,) or not ((ap >= 0) & (ap <= 1) | np.isnan(ap)).all():
        return f"ap_per_class: need {classes} numbers in 0..1, or NaN where it is unknown"
    features = stats.features
    if features.dtype != np.int16 or features.ndim != 2 or len(features) > MAX_FEATURES:
        return f"features: need at most {MAX_FEATURES} rows of int16"
    if ((features > FEATURE_UNIT) | (features < -FEATURE_UNIT)).any():
        return f"features: need numbers from {-FEATURE_UNIT} to {FEATURE_UNIT}"
    if len(stats.digest) > _MAX_DIGEST or not stats.digest.isprintable():
        return f"digest: need at most {_MAX_DIGEST} printable letters"
    return None
