"""What the tasks are told. Filled by a door (a command line or ymir/config.py), frozen, checked, passed inward."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional

from utils.errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
WEIGHTS_SUFFIXES = (".pt", ".onnx", ".torchscript")
OPENVINO_SUFFIX = "_openvino_model"
WEIGHTS_FORMS = f"{', '.join(WEIGHTS_SUFFIXES)}, *{OPENVINO_SUFFIX}"  # for people
BACKENDS = ("auto", "torch", "onnxruntime", "openvino")
LETTERBOX_NAMES = ("square", "minimal")
DECODES = ("exact", "fast")
MOST_SIDE_PX = 16_384  # of a model's input; beyond it, it can only be a slip


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


def check_device(key: str, text: str) -> None:
    """Raise ConfigError unless a text names the CPU or GPUs as YOLOv5's --device does; '' leaves the choice open."""
    if not re.fullmatch(r"(cpu|-1|(cuda:)?\d+(,(cuda:)?\d+)*)?", text.strip().lower()):
        raise ConfigError(f"{key}: got {text[:40]!r}, need cpu, or GPU indices such as 0 or 0,1")


def check_pt(key: str, path: Path) -> None:
    """Raise ConfigError unless a weights file is a .pt by its name."""
    if path.suffix.lower() != ".pt":
        raise ConfigError(f"{key}: {path} is no .pt file, and only those can be used in this version")


def check_weights(key: str, path: Path) -> None:
    """Raise ConfigError unless the name is that of a form of weights that can be run."""
    if path.suffix.lower() not in WEIGHTS_SUFFIXES and not path.name.endswith(OPENVINO_SUFFIX):
        raise ConfigError(f"{key}: got {path}, need a .pt, .onnx or .torchscript file, or a folder *{OPENVINO_SUFFIX}")


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

    @property
    def devices(self) -> tuple[str, ...]:
        """Give the GPUs that are named; none: the CPU."""
        return tuple(part.strip() for part in self.device.split(",") if part.strip())

    def of_rank(self, rank: int) -> EngineSettings:
        """Give a rank's own GPU, of those that are named."""
        devices = self.devices
        return replace(self, device=devices[rank % len(devices)]) if devices else self


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


MINING_ALGORITHMS = ("random", "aldd", "cald", "entropy", "diverse")
ENTROPIES = ("objectness", "class")
CALD_MODES = ("paper", "ymir")
CALD_EMPTIES = ("first", "last")


@dataclass(frozen=True)
class InferConfig:
    """What an inference task is told."""

    class_names: tuple[str, ...]
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    nms: NmsSettings = field(default_factory=NmsSettings)


@dataclass(frozen=True)
class MiningConfig:
    """What a mining task is told (SPEC sections 3 and 6). Here precision and backend are never "auto"."""

    class_names: tuple[str, ...]
    algorithm: str = "aldd"
    seed: int = 0
    entropy_of: str = "objectness"
    class_distribution_scores: Optional[tuple[float, ...]] = None  # aldd: a weight per class, None = all 1.0
    cald_mode: str = "paper"
    cald_empty: str = "first"
    cald_balance: bool = False
    budget: int = 0  # how many pictures the user means to take, 0 = unknown
    diversity: float = 0.0
    class_balance: float = 0.0
    dedup: bool = False
    dedup_threshold: float = 0.97  # cosine of features
    explore: float = 0.0  # share of the order given to random pictures
    report: bool = False
    loader: LoaderSettings = field(default_factory=lambda: LoaderSettings(letterbox="square"))
    engine: EngineSettings = field(default_factory=lambda: EngineSettings(precision="fp32", backend="torch"))
    nms: NmsSettings = field(default_factory=NmsSettings)

    def __post_init__(self) -> None:
        check_choice("mining_algorithm", self.algorithm, MINING_ALGORITHMS)
        check_choice("entropy_of", self.entropy_of, ENTROPIES)
        check_choice("cald_mode", self.cald_mode, CALD_MODES)
        check_choice("cald_empty", self.cald_empty, CALD_EMPTIES)
        check_choice("precision", self.engine.precision, PRECISIONS[1:])
        check_at_least("budget", self.budget, 0)
        check_at_least("diversity", self.diversity, 0)
        check_at_least("class_balance", self.class_balance, 0)
        check_share("dedup_threshold", self.dedup_threshold)
        check_share("explore", self.explore)
