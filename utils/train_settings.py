"""What a training is told. Filled by a door (train.py's command line or ymir), frozen, checked, passed inward."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from utils.activations import split_activation
from utils.errors import ConfigError
from utils.hyp import Hyp
from utils.settings import PRECISIONS, PictureSettings, check_at_least, check_choice, check_share

OPTIMIZERS = ("SGD", "Adam", "AdamW")
CACHES = ("", "ram", "disk")
RESUMES = ("auto", "never", "must")  # must: --resume, where nothing to resume from is an error
FITNESSES = ("map", "yolov5")  # what is best: COCO's 0.5:0.95 as YOLOv5 computes it, or 0.1 mAP50 + 0.9 mAP
FIND_BATCH_SIZE = -1


@dataclass(frozen=True)
class TrainConfig:
    """What a training is told; the defaults are YOLOv5 v6.1's where it has the option."""

    weights: Optional[Path] = None  # None: from scratch
    cfg: Optional[Path] = None  # a model yaml; None: that of the weights
    hyp: Hyp = field(default_factory=Hyp)
    epochs: int = 300
    batch_size: int = 16  # of all ranks together; -1: find it
    img_size: int = 640
    nominal_batch: int = 64  # what learning rate and weight decay are meant for
    optimizer: str = "SGD"
    cos_lr: bool = False
    label_smoothing: float = 0.0
    patience: int = 100  # epochs without a better one; 0: never stop early
    freeze: tuple[int, ...] = ()  # layers, by number
    activation: str = ""  # "" = the model's own
    rect: bool = False
    image_weights: bool = False
    quad: bool = False
    multi_scale: bool = False
    single_cls: bool = False
    cache: str = ""
    workers: int = 8  # threads that make pictures, a rank; never more than the cores there are
    device: str = ""  # "" or "cpu" = CPU, else indices "0,1"
    sync_bn: bool = False
    precision: str = "auto"
    most_at_once: int = 0  # pictures of a rank's pass through the network; 0: its whole batch
    seed: int = 0
    autoanchor: bool = True
    autobalance: bool = False
    validate: bool = True  # False: only after the last epoch (--noval)
    save: bool = True  # False: only after the last epoch (--nosave)
    save_period: int = -1  # also keep epoch N's weights every so often; below 1: never
    resume: str = "never"
    fitness: str = "map"
    pictures: PictureSettings = field(default_factory=PictureSettings)

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("cache", self.cache, CACHES)
        check_choice("precision", self.precision, PRECISIONS)
        if self.activation:
            split_activation(self.activation, "a name of torch.nn")
        check_choice("resume", self.resume, RESUMES)
        check_choice("fitness", self.fitness, FITNESSES)
        check_at_least("epochs", self.epochs, 1)
        check_at_least("img_size", self.img_size, 1)
        check_at_least("nominal_batch", self.nominal_batch, 1)
        check_at_least("workers", self.workers, 0)
        check_at_least("patience", self.patience, 0)
        check_at_least("most_at_once", self.most_at_once, 0)
        check_share("label_smoothing", self.label_smoothing)
        if self.batch_size != FIND_BATCH_SIZE:
            check_at_least("batch_size", self.batch_size, 1)
        if self.image_weights and self.rect:
            raise ConfigError("--image-weights: draws pictures anew, --rect keeps their order; leave one of them out")


@dataclass(frozen=True)
class TrainFolders:
    """Where a training writes. YMIR: models_dir and tensorboard_dir; a command line: DIR/weights and DIR."""

    root: Path  # caches of labels
    weights: Path  # last.pt, best.pt
    logs: Path  # curves, pictures, results.csv
