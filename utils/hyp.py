"""Hyperparameters: one of the six sets below data/hyps, or a user's file, checked and frozen. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

from utils.errors import ConfigError
from utils.safe_yaml import read_yaml

HYPS = Path(__file__).resolve().parent.parent / "data/hyps"
# The widest ranges that mean anything; what is not named lies in 0..1.
RANGES = MappingProxyType(
    {
        "warmup_epochs": (0.0, 1e6),
        "lr0": (0.0, 1e3),
        "box": (0.0, 1e6),
        "cls": (0.0, 1e6),
        "obj": (0.0, 1e6),
        "cls_pw": (0.0, 1e6),
        "obj_pw": (0.0, 1e6),
        "anchor_t": (1.0, 1e6),
        "fl_gamma": (0.0, 100.0),
        "warmup_bias_lr": (0.0, 1e3),
        "degrees": (0.0, 180.0),
        "shear": (0.0, 89.0),
    }
)


@dataclass(frozen=True)
class Hyp:
    """YOLOv5's hyperparameters under their own names; the defaults are its scratch-low set."""

    lr0: float = 0.01  # initial learning rate
    lrf: float = 0.01  # final one, as a share of lr0
    momentum: float = 0.937  # of SGD; Adam's beta1
    weight_decay: float = 0.0005  # for the nominal batch
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    box: float = 0.05  # gains of the three losses
    cls: float = 0.5
    cls_pw: float = 1.0  # weights of positives
    obj: float = 1.0
    obj_pw: float = 1.0
    iou_t: float = 0.2  # not used, kept for the file's sake
    anchor_t: float = 4.0  # largest ratio of a box's side to its anchor's
    fl_gamma: float = 0.0  # focal loss, 0 = off
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0  # degrees
    perspective: float = 0.0
    flipud: float = 0.0  # probabilities from here on
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    anchors: Optional[float] = None  # anchors a level, to be fitted; None: the model's own

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "anchors":
                low, high = RANGES.get(field.name, (0.0, 1.0))
                value = getattr(self, field.name)
                if not low <= value <= high:  # NaN fails
                    raise ConfigError(f"hyp {field.name}: got {value}, need a number from {low:g} to {high:g}")
        if self.anchors is not None and not 1 <= self.anchors <= 20:
            raise ConfigError(f"hyp anchors: got {self.anchors}, need 1 to 20 a level")


def read_hyp(path: Path) -> Hyp:
    """Read a hyp file; keys that it lacks have scratch-low's value, others are refused. Raises ConfigError."""
    content = read_yaml(path, ConfigError)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is no set of hyperparameters, need lines such as lr0: 0.01")
    known = {field.name for field in fields(Hyp)}
    unknown = [str(key)[:40] for key in content if key not in known]
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]}: unknown hyperparameter, known are {', '.join(sorted(known))}")
    try:
        numbers: dict[str, Any] = {key: _number(key, value) for key, value in content.items()}
        return Hyp(**numbers)
    except ConfigError as cause:
        raise ConfigError(f"{path}: {cause}") from None


def _number(key: str, value: Any) -> Optional[float]:
    if value is None and key == "anchors":
        return None
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise ConfigError(f"hyp {key}: got {str(value)[:40]!r}, need a number")
    return number


def hyp_as_dict(hyp: Hyp) -> dict[str, float]:
    """Give the values by name, in YOLOv5's order; anchors only where it is given."""
    return {field.name: getattr(hyp, field.name) for field in fields(hyp) if getattr(hyp, field.name) is not None}
