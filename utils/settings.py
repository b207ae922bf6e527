"""What the tasks are told. Filled by a door (a command line or ymir/config.py), frozen, checked, passed inward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from utils.errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BACKENDS = ("auto", "torch", "onnxruntime", "openvino")
LETTERBOX_NAMES = ("square", "minimal")
DECODES = ("exact", "fast")


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError, naming what is allowed, unless `value` is one of them."""
    if value not in allowed:
        raise ConfigError(f"{key}: got {value!r}, need one of {', '.join(allowed)}")


def check_at_least(key: str, value: float, least: float) -> None:
    """Raise ConfigError unless value >= least (NaN fails)."""
    if not value >= least:
        raise ConfigError(f"{key}: got {value}, need at least {least}")


def check_share(key: str, value: float) -> None:
    """Raise ConfigError unless 0 <= value <= 1 (NaN fails)."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{key}: got {value}, need a number from 0 to 1")


@dataclass(frozen=True)
class PictureSettings:
    """How a picture file becomes pixels (SPEC section 2)."""

    decode: str = "exact"  # fast: large JPEGs are decoded at 1/2, 1/4 or 1/8 where that is still enough
    max_pixels: int = 200_000_000  # larger ones are refused before they are decoded
    turn: bool = False  # follow the EXIF orientation: native YOLO data yes, YMIR tasks no

    def __post_init__(self) -> None:
        check_choice("decode", self.decode, DECODES)
        check_at_least("max_pixels", self.max_pixels, 1)


@dataclass(frozen=True)
class LoaderSettings:
    """How pictures are read ahead and put into batches."""

    img_size: int = 640  # long side of the model's input, before rounding up to its stride
    letterbox: str = "minimal"
    batch_size: int = 16
    workers: int = 4  # threads that decode; never more than the cores there are
    pictures: PictureSettings = field(default_factory=PictureSettings)

    def __post_init__(self) -> None:
        check_choice("letterbox", self.letterbox, LETTERBOX_NAMES)
        check_at_least("img_size", self.img_size, 1)
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("workers", self.workers, 0)


@dataclass(frozen=True)
class EngineSettings:
    """On what, and how exactly, the model runs."""

    device: str = ""  # "" or "cpu" = CPU, else indices inside the container: "0,1"
    precision: str = "auto"
    backend: str = "auto"
    threads: int = 0  # 0 = cores / ranks on this machine
    pin_memory: bool = False

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("backend", self.backend, BACKENDS)
        check_at_least("threads", self.threads, 0)


@dataclass(frozen=True)
class NmsSettings:
    """Which raw boxes become detections (SPEC section 5)."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300
    multi_label: bool = False  # every class above the threshold, not only the best: validation
    agnostic: bool = False  # boxes of different classes suppress each other
    classes: Optional[tuple[int, ...]] = None  # only these, None = all

    def __post_init__(self) -> None:
        check_share("conf_thres", self.conf_thres)
        check_share("iou_thres", self.iou_thres)
        check_at_least("max_det", self.max_det, 1)
