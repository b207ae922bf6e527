"""YOLOv5's val command line: how good a model is on labelled pictures, in YOLOv5's figures and in COCO's.

    python val.py --weights best.pt --data data.yaml

Modules that cost time are imported where they are needed: a wrong option is told before torch is imported, and
pictures are decoded while it is.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from utils.class_names import name_differences
from utils.coco_metrics import CocoFigures
from utils.console import Console
from utils.datasets import read_yolo_dataset
from utils.detections import Detections
from utils.errors import ConfigError, ImageError, WeightsError
from utils.labelled import LabelledReader, LabelledSet, yolo_set
from utils.labels import Labels
from utils.letterbox import input_stride
from utils.metrics import ConfusionMatrix, Found, IntArray, Matches, Metrics, Truth, compare, compute_metrics, join
from utils.passes import CPU_PASS, even_share
from utils.plots import clean_name, write_confusion, write_curves
from utils.process import OneLineParser, exit_code, leave, prepare_process
from utils.progress import Progress
from utils.rect import clip_to_picture, labels_to_input
from utils.run_folder import make_run_folder
from utils.settings import (
    MOST_SIDE_PX,
    PRECISIONS,
    WEIGHTS_FORMS,
    EngineSettings,
    LoaderSettings,
    NmsSettings,
    PictureSettings,
    check_choice,
    check_device,
    check_weights,
)
from utils.stopwatch import Stopwatch
from utils.study import StudyRow, draw_study, write_study
from utils.watchers import BatchPictures, CocoTally, Seen, TextLabels, Watcher

if TYPE_CHECKING:
    from formats.exported import Weights
    from models.candidates import CandidatesOf

LOGGER = logging.getLogger("val")

ROOT = Path(__file__).resolve().parent
SPLITS = ("train", "val", "test")
TASKS = (*SPLITS, "speed", "study")
DEFAULT_CONF = 0.001
SPEED_CONF, SPEED_IOU = 0.25, 0.45
STUDY_SIDES = tuple(range(256, 1536 + 1, 128))
ONE_CLASS = "item"  # what --single-cls calls its class, as YOLOv5 does
MOST_ROWS_UNASKED = 50  # classes up to which the table has a row for each without --verbose
NOWHERE = Progress()


@dataclass(frozen=True)
class ValSettings:
    """What is validated, and how; the defaults are YOLOv5's."""

    data: Path
    weights: Path
    split: str = "val"
    loader: LoaderSettings = field(
        default_factory=lambda: LoaderSettings(batch_size=32, workers=8, pictures=PictureSettings(turn=True))
    )
    # device "": GPU 0 if there is one. fp32: bf16 moves P by up to .03 (coco128 at 320 px).
    engine: EngineSettings = field(default_factory=lambda: EngineSettings(precision="fp32"))
    nms: NmsSettings = field(default_factory=lambda: NmsSettings(DEFAULT_CONF, 0.6, multi_label=True))
    is_rect: bool = True  # False: every picture on the whole square, without the extra border
    single_cls: bool = False  # all classes are one
    augment: bool = False  # three views of each picture
    joins_labels: bool = False  # labels go into NMS among the detections

    def __post_init__(self) -> None:
        check_choice("task", self.split, SPLITS)
        if self.loader.img_size > MOST_SIDE_PX:
            raise ConfigError(f"--imgsz: got {self.loader.img_size}, need 1 to {MOST_SIDE_PX}")
        check_weights("--weights", self.weights)
        check_device("--device", self.engine.device)


@dataclass(frozen=True)
class SaveSettings:
    """What a validation leaves in its folder."""

    project: Path = Path("runs/val")
    name: str = "exp"
    exist_ok: bool = False
    labels: bool = False  # labels/STEM.txt
    scores: bool = False  # in them
    coco_json: bool = False
    plots: bool = True

    @property
    def writes(self) -> bool:
        """Whether a folder is needed."""
        return self.labels or self.coco_json or self.plots


@dataclass(frozen=True)
class Speed:
    """Milliseconds a picture that the one loop spends."""

    preprocess: float  # waiting for pictures: those that threads don't decode as fast as the model takes them
    inference: float  # the network, and reading boxes off its maps
    nms: float


@dataclass(frozen=True)
class Evaluation:
    """YOLOv5's figures of a model."""

    metrics: Metrics
    confusion: IntArray  # (C + 1, C + 1), see utils.metrics
    speed: Speed


@dataclass(frozen=True)
class Validation:
    """How a run ended."""

    evaluation: Evaluation
    coco: CocoFigures
    folder: Optional[Path]  # None: nothing was to be written


# ---- the core --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What was found in some pictures beside their labels; several ranks have a share of an evaluation each."""

    parts: list[Matches]
    confusion: IntArray
    clock: Stopwatch


def evaluate(
    candidates_of: CandidatesOf, reader: LabelledReader, nms: NmsSettings, watchers: Sequence[Watcher] = ()
) -> Evaluation:
    """Detect in every picture that a reader gives, and compare with its labels as YOLOv5 does, in input pixels.

    candidates_of: what sees; models.candidates makes one of a Detector. nms: for YOLOv5's figures multi_label. A label
    of a crowd is no label here. Raises DatasetError where a label file can't be read.
    """
    return summarise([compare_all(candidates_of, reader, nms, watchers)], reader.names)


def compare_all(
    candidates_of: CandidatesOf, reader: LabelledReader, nms: NmsSettings, watchers: Sequence[Watcher] = ()
) -> Comparison:
    """Do an evaluation's work on the pictures that a reader gives; arguments and errors as of `evaluate`."""
    from utils.nms import select_boxes

    clock = Stopwatch()
    parts: list[Matches] = []
    confusion = ConfusionMatrix(len(reader.names))
    for batch in clock.each("preprocess", reader):
        pictures = batch.pictures
        rows_of = clock.each("inference", candidates_of(batch, nms.conf_thres))
        seen = []
        for place, rows in enumerate(rows_of):
            with clock.timing("nms"):
                boxes, scores, class_ids = (kept.numpy() for kept in select_boxes(rows, nms))
            letterbox, labels = pictures.letterboxes[place], batch.labels[place]
            counted = ~labels.is_crowd
            truth = Truth(labels_to_input(labels.boxes_px[counted], letterbox), labels.class_ids[counted])
            found = Found(clip_to_picture(boxes, letterbox), scores, class_ids)
            parts.append(compare(found, truth))
            confusion.add(found, truth)
            if watchers:
                detections = Detections(letterbox.to_px(boxes), scores, class_ids)
                seen.append(Seen(pictures.items[place], pictures.canvases[place], letterbox, labels, detections))
        for watch in watchers:
            watch(seen)
    return Comparison(parts, confusion.counts, clock)


def summarise(shares: Sequence[Comparison], names: Sequence[str]) -> Evaluation:
    """Put the work of one or several ranks together to one evaluation; the speed is the first one's."""
    metrics = compute_metrics(join([part for share in shares for part in share.parts]), names)
    first = shares[0]
    own_images = max(len(first.parts), 1)
    speed = Speed(*(first.clock.ms_each(part, own_images) for part in ("preprocess", "inference", "nms")))
    return Evaluation(metrics, sum((share.confusion for share in shares[1:]), first.confusion), speed)


def as_one_class(labelled: LabelledSet) -> LabelledSet:
    """Give the same set with all labels of one class."""

    def labels_of(*picture: Any) -> Labels:
        labels = labelled.labels_of(*picture)
        return replace(labels, class_ids=np.zeros_like(labels.class_ids))

    return replace(labelled, names=(ONE_CLASS,), labels_of=labels_of)


# ---- a run -----------------------------------------------------------------------------------------------------------


def validate(settings: ValSettings, saving: SaveSettings, progress: Progress = NOWHERE) -> Validation:
    """Validate a weights file on a split of a data set, and write what is to be saved.

    Raises ExecutorError; ImageError where not one picture can be read.
    """
    from formats.exported import open_weights

    data = read_yolo_dataset(settings.data, settings.split)
    checkpoint = open_weights(settings.weights, may_run_programs=True)
    is_rect = settings.is_rect and not is_fixed(checkpoint, settings)
    labelled = yolo_set(data.names, data.images)
    if settings.single_cls:
        labelled = as_one_class(labelled)
    else:
        check_names(settings, data.names, checkpoint)
    reader = LabelledReader(labelled, settings.loader, input_stride(checkpoint.strides), is_rect, progress)
    with closing(reader):
        candidates_of = make_candidates(checkpoint, settings, len(labelled.shots))
        outputs = Outputs(saving, labelled.names)
        evaluation = evaluate(candidates_of, reader, settings.nms, outputs.watchers)
    tell_of(reader, evaluation.metrics)
    coco = outputs.finish(evaluation, settings.weights.stem)
    progress.at(1)
    return Validation(evaluation, coco, outputs.folder)


class Outputs:
    """What a run leaves behind, beside the figures that it prints."""

    def __init__(self, saving: SaveSettings, names: Sequence[str]) -> None:
        self.folder = make_run_folder(saving.project, saving.name, saving.exist_ok) if saving.writes else None
        self._saving = saving
        self._names = names
        self._tally = CocoTally()
        self._texts = TextLabels(self.folder / "labels", saving.scores) if self.folder and saving.labels else None
        drawing = [BatchPictures(self.folder, names)] if self.folder and saving.plots else []
        self.watchers: list[Watcher] = [self._tally, *([self._texts] if self._texts else []), *drawing]

    def finish(self, evaluation: Evaluation, weights: str) -> CocoFigures:
        """Write what needs all pictures; give COCO's figures. weights: the stem of their file."""
        if self._texts and self._texts.repeated.count:
            LOGGER.warning("%s", self._texts.repeated.summary("pictures share their name without suffix with another"))
        if self.folder and self._saving.coco_json:
            self._tally.write_json(self.folder / f"{weights}_predictions.json", self._names)
        if self.folder and self._saving.plots:
            write_curves(evaluation.metrics, self.folder)
            write_confusion(evaluation.confusion, self._names, self.folder)
        return self._tally.figures(len(self._names))


def is_fixed(weights: Weights, settings: ValSettings) -> bool:
    """Say whether weights run at one size alone. Raises ConfigError where that isn't the size that is asked for."""
    from formats.exported import only_size, refuse_other_size
    from utils.batches import input_side

    if only_size(weights) is None:
        return False
    side = input_side(settings.loader.img_size, input_stride(weights.strides))
    refuse_other_size(weights, (side, side))
    LOGGER.info("%s: takes %d x %d px alone, so every picture goes onto the whole square", weights.path, side, side)
    return True


def check_names(settings: ValSettings, names: Sequence[str], checkpoint: Weights) -> None:
    """Compare a data set's classes with those of the weights. Raises WeightsError where their number differs."""
    if len(names) != checkpoint.nc:
        raise WeightsError(
            f"{settings.weights}: has {checkpoint.nc} classes, {settings.data} has {len(names)}; give weights that "
            "were trained for these classes, or --single-cls to take all for one"
        )
    differences = name_differences(checkpoint.names, names, "data", "shown")
    if differences:
        LOGGER.warning("%s", differences)


def make_candidates(checkpoint: Weights, settings: ValSettings, count: int) -> CandidatesOf:
    """Load torch, build the model, and let it see as the settings ask; count: of the pictures.

    Raises WeightsError, NoDeviceError, ConfigError.
    """
    import torch

    from formats.engines import make_engine
    from models.candidates import augmented_candidates, detector_candidates, join_labels, merge_classes

    engine = replace(settings.engine, device=settings.engine.device or ("0" if torch.cuda.is_available() else "cpu"))
    if engine.precision == "fp16" and engine.device in ("cpu", "-1"):
        LOGGER.warning("fp16 needs a GPU, fp32 is used")
        engine = replace(engine, precision="fp32")
    batch_size = settings.loader.batch_size
    detector = make_engine(checkpoint, engine, batch_size, even_share(min(batch_size, count), CPU_PASS))
    candidates_of = (augmented_candidates if settings.augment else detector_candidates)(detector)
    if settings.single_cls:
        candidates_of = merge_classes(candidates_of)
    return join_labels(candidates_of) if settings.joins_labels else candidates_of


def tell_of(reader: LabelledReader, metrics: Metrics) -> None:
    """Log what was remarkable about pictures and labels. Raises ImageError where not one picture could be read."""
    if reader.unreadable.count:
        LOGGER.warning("%s", reader.unreadable.summary("pictures can't be read and are left out"))
    if not metrics.images:
        raise ImageError(f"not one of {reader.unreadable.count} pictures can be read: {reader.unreadable.examples[0]}")
    if reader.damaged.count:
        LOGGER.warning("%s", reader.damaged.summary("pictures are damaged and used as far as they go"))
    for line in reader.faults.lines():
        LOGGER.warning("%s", line)
    if not metrics.instances:
        LOGGER.warning("there is not one label: no figure means anything; labels lie in `labels` beside `images`")


# ---- what is printed -------------------------------------------------------------------------------------------------


def table(metrics: Metrics, is_verbose: bool = False) -> str:
    """Give YOLOv5's table: a row for all classes, and one for each where they are few or it is asked for."""
    lines = [("%22s" + "%11s" * 6) % ("Class", "Images", "Instances", "P", "R", "mAP50", "mAP50-95")]
    rows = [("all", metrics.images, metrics.instances, metrics.p, metrics.r, metrics.map50, metrics.map)]
    if len(metrics.classes) > 1 and (is_verbose or len(metrics.classes) < MOST_ROWS_UNASKED):
        for one in metrics.classes:
            rows.append((clean_name(one.name), one.images, one.instances, one.p, one.r, one.ap50, one.ap))
    lines += [("%22s" + "%11i" * 2 + "%11.3g" * 4) % row for row in rows]
    return "\n".join(lines) + "\n"


def coco_lines(coco: CocoFigures) -> str:
    """Give COCO's figures in two lines."""

    def by_size(small: Optional[float], medium: Optional[float], large: Optional[float]) -> str:
        shown = ("-" if figure is None else f"{figure:.3f}" for figure in (small, medium, large))
        return " ".join(f"{size} {text}" for size, text in zip(("small", "medium", "large"), shown))

    return (
        f"COCO: AP {coco.map:.3f}, AP50 {coco.map50:.3f}, AP75 {coco.map75:.3f}; "
        f"{by_size(coco.map_small, coco.map_medium, coco.map_large)}\n"
        f"      AR1 {coco.ar1:.3f}, AR10 {coco.ar10:.3f}, AR100 {coco.ar100:.3f}; "
        f"{by_size(coco.ar_small, coco.ar_medium, coco.ar_large)}\n"
    )


def speed_line(speed: Speed, loader: LoaderSettings) -> str:
    """Give what a picture took."""
    return (
        f"Speed: {speed.preprocess:.1f} ms pre-process, {speed.inference:.1f} ms inference, {speed.nms:.1f} ms NMS "
        f"per image at shape ({loader.batch_size}, 3, {loader.img_size}, {loader.img_size})\n"
    )


# ---- the door --------------------------------------------------------------------------------------------------------


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; gives the exit code. The last line, on a failure, is its cause."""
    prepare_process("%(message)s")
    return exit_code(lambda: run(_parser().parse_args(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Run a parsed command line. Raises ExecutorError."""
    settings = [read_arguments(arguments, name) for name in arguments.weights]
    saving = read_saving(arguments)
    if arguments.task == "study":
        run_study(settings, saving)
        return
    if len(settings) > 1 and arguments.task != "speed":
        raise ConfigError(f"--weights: got {len(settings)} files, need one; ensembles are not supported")
    for one in settings:
        found = validate_shown(one, saving, "val")
        sys.stdout.write(table(found.evaluation.metrics, arguments.verbose))
        sys.stdout.write(coco_lines(found.coco) + speed_line(found.evaluation.speed, one.loader))
        if found.folder:
            sys.stdout.write(f"Results saved to {found.folder}\n")


def validate_shown(settings: ValSettings, saving: SaveSettings, what: str) -> Validation:
    """Validate and show how far it is."""
    with Console(what) as console:
        return validate(settings, saving, Progress(console.report))


def run_study(settings: Sequence[ValSettings], saving: SaveSettings) -> None:
    """Validate each weights file at many sizes; write a table for each and one picture."""
    folder = make_run_folder(saving.project, saving.name, saving.exist_ok)
    nothing = SaveSettings(plots=False)
    studies = {}
    for one in settings:
        rows = []
        for side in STUDY_SIDES:
            sized = replace(one, loader=replace(one.loader, img_size=side))
            found = validate_shown(sized, nothing, f"{one.weights.stem} at {side}").evaluation
            metrics, speed = found.metrics, found.speed
            figures = (metrics.p, metrics.r, metrics.map50, metrics.map)
            rows.append(StudyRow(side, *figures, speed.preprocess, speed.inference, speed.nms))
        studies[one.weights.stem] = rows
        write_study(rows, folder / f"study_{one.data.stem}_{one.weights.stem}.txt")
    draw_study(studies, folder / "study.png")
    sys.stdout.write(f"Results saved to {folder}\n")


def read_arguments(arguments: argparse.Namespace, weights: str) -> ValSettings:
    """Check a parsed command line and freeze what one weights file is validated with. Raises ConfigError."""
    if arguments.dnn:
        raise ConfigError("--dnn: is not offered, OpenCV's engine is for ONNX files; leave it out")
    if arguments.half and arguments.precision not in (None, "auto", "fp16"):
        raise ConfigError(f"--half: means --precision fp16, but --precision {arguments.precision} is given")
    precision = "fp16" if arguments.half else arguments.precision or ("fp32" if arguments.task in SPLITS else "auto")
    is_speed = arguments.task == "speed"
    if not is_speed and arguments.conf_thres > DEFAULT_CONF:
        LOGGER.warning("--conf-thres %g: above %g the figures are too low", arguments.conf_thres, DEFAULT_CONF)
    return ValSettings(
        data=Path(arguments.data),
        weights=find_weights(weights),
        split=arguments.task if arguments.task in SPLITS else "val",
        loader=LoaderSettings(
            img_size=arguments.imgsz,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            pictures=PictureSettings(turn=True),
        ),
        engine=EngineSettings(device=arguments.device, precision=precision),
        nms=NmsSettings(
            conf_thres=SPEED_CONF if is_speed else arguments.conf_thres,
            iou_thres=SPEED_IOU if is_speed else arguments.iou_thres,
            max_det=arguments.max_det,
            multi_label=True,
        ),
        is_rect=not (arguments.square or is_speed),
        single_cls=arguments.single_cls,
        augment=arguments.augment,
        joins_labels=arguments.save_hybrid,
    )


def read_saving(arguments: argparse.Namespace) -> SaveSettings:
    """Freeze what is to be saved."""
    is_plain = arguments.task in SPLITS
    return SaveSettings(
        project=Path(arguments.project),
        name=arguments.name,
        exist_ok=arguments.exist_ok,
        labels=arguments.save_txt or arguments.save_hybrid,
        scores=arguments.save_conf,
        coco_json=is_plain and (arguments.save_json or Path(arguments.data).name == "coco.yaml"),
        plots=is_plain and not arguments.noplots,
    )


def find_weights(name: str) -> Path:
    """Give the path of a weights file; a bare name may lie in our own weights/, as in the image."""
    path = Path(name)
    return ROOT / "weights" / name if path.name == name and not path.exists() else path


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", default="data/coco128.yaml", metavar="YAML", help="names the classes and the pictures of each split")
    add("--weights", nargs="+", default=["yolov5s.pt"], metavar="FILE", help=WEIGHTS_FORMS)
    add("--batch-size", type=int, default=32, metavar="N", help="with rectangles it decides the shape of the input")
    add("--imgsz", "--img", "--img-size", type=int, default=640, metavar="PX", help="longer side of the input")
    add("--conf-thres", type=float, default=DEFAULT_CONF, metavar="SHARE", help="least score")
    add("--iou-thres", type=float, default=0.6, metavar="SHARE", help="overlap from which a box is suppressed")
    add("--max-det", type=int, default=300, metavar="N", help="most boxes a picture")
    add(
        "--task",
        choices=TASKS,
        default="val",
        help="the split, or speed (conf .25, iou .45, square, no plots), or study (sizes from 256 to 1536)",
    )
    add("--device", default="", metavar="WHICH", help="cpu, or a GPU's index; default: GPU 0 if there is one")
    add("--workers", type=int, default=8, metavar="N", help="threads that decode, at most the cores there are")
    add("--single-cls", action="store_true", help="take all classes for one")
    add("--augment", action="store_true", help="look at three sizes of each picture")
    add("--verbose", action="store_true", help="a row for each class, also where there are 50 or more")
    add("--save-txt", action="store_true", help="write labels/STEM.txt")
    add("--save-hybrid", action="store_true", help="labels take part in NMS (so mAP rises) and are in labels/STEM.txt")
    add("--save-conf", action="store_true", help="with the scores in it")
    add("--save-json", action="store_true", help="write COCO's result file")
    add("--project", default="runs/val", metavar="DIR", help="where the folder of results goes")
    add("--name", default="exp", help="of that folder; exp2, exp3, ... if it is there")
    add("--exist-ok", action="store_true", help="write into it if it is there, replacing files of the same name")
    add("--half", action="store_true", help="compute in fp16, on a GPU")
    add("--dnn", action="store_true", help="(not offered)")
    add("--square", action="store_true", help="ours: every picture on the whole square, without extra border")
    add(
        "--precision",
        choices=PRECISIONS,
        help="ours; default: fp32, for figures that compare, but auto (by hardware) for speed and study",
    )
    add("--noplots", action="store_true", help="draw nothing (of YOLOv5's train.py)")
    return parser


if __name__ == "__main__":
    leave(main())
