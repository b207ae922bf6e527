"""YOLOv5's detect command line: finds objects in pictures and videos, draws them and writes label files.

    python detect.py --weights best.pt --source pictures/ --save-txt

Modules that cost time are imported where they are needed: a wrong option is told before torch is imported, and
pictures are decoded while it is.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional, Union

import cv2

from utils.batches import Batch, BatchReader, Onto, Tally, input_side, load
from utils.console import Console
from utils.datasets import read_data_yaml, read_names
from utils.errors import ConfigError, ImageError
from utils.letterbox import Letterbox, input_stride, place_on
from utils.media import Source, find_sources
from utils.passes import CPU_PASS, cpu_pass
from utils.process import OneLineParser, exit_code, leave, prepare_process
from utils.progress import Progress
from utils.result_files import Found, KeptPictures, Output, SaveSettings, Workers, claim_folder, describe, safe_folders
from utils.settings import (
    MOST_SIDE_PX,
    PRECISIONS,
    WEIGHTS_FORMS,
    EngineSettings,
    LoaderSettings,
    NmsSettings,
    PictureSettings,
    check_at_least,
    check_device,
    check_weights,
)
from utils.videos import VideoFile, frame_batches, open_video, read_ahead

if TYPE_CHECKING:
    from formats.exported import Weights

LOGGER = logging.getLogger("detect")

ROOT = Path(__file__).resolve().parent
GPU_BATCH = 16  # pictures that go through the network at once
FRAMES_BYTES = 128 << 20  # of a batch of frames
KEPT_BYTES = 256 << 20  # of decoded pictures that wait to be drawn on
NOWHERE = Progress()


@dataclass(frozen=True)
class DetectSettings:
    """What detect is told; the defaults are YOLOv5 v6.1's."""

    weights: Path
    source: str  # a picture or video, a folder of those, a glob pattern, or a .txt list of paths
    data: Optional[Path] = None  # a data.yaml whose names stand for those in the weights
    img_hw: tuple[int, int] = (640, 640)  # the letterbox fits into it; rounded up to the model's stride
    device: str = ""  # "" = GPU 0 if there is one, else the CPU
    precision: str = "auto"
    nms: NmsSettings = field(default_factory=lambda: NmsSettings(max_det=1000))
    augment: bool = False
    vid_stride: int = 1  # every so many frames of a video are looked at
    folder: Path = Path("runs/detect/exp")  # exp2, exp3, ... if it is there
    exist_ok: bool = False  # write into it all the same
    saving: SaveSettings = field(default_factory=SaveSettings)
    pictures: PictureSettings = field(default_factory=lambda: PictureSettings(turn=True))

    def __post_init__(self) -> None:
        check_at_least("--vid-stride", self.vid_stride, 1)
        if not all(1 <= side <= MOST_SIDE_PX for side in self.img_hw):
            raise ConfigError(f"--imgsz: got {self.img_hw[0]} x {self.img_hw[1]}, need 1 to {MOST_SIDE_PX}")
        check_weights("--weights", self.weights)
        check_device("--device", self.device)
        if self.precision == "fp16" and self.device.strip().lower() in ("cpu", "-1"):
            raise ConfigError("--half: needs a GPU; leave it out on a CPU")


@dataclass(frozen=True)
class DetectSummary:
    """How a run ended."""

    folder: Optional[Path]  # None: nothing was to be written
    pictures: int  # that were read
    videos: int
    frames: int
    boxes: int
    unreadable: Tally
    damaged: Tally
    seconds: float  # from the first picture on, without loading the model


def ignore(found: Found) -> None:
    """Stand in for a listener where nobody listens."""


def detect(
    settings: DetectSettings, on_found: Callable[[Found], None] = ignore, progress: Progress = NOWHERE
) -> DetectSummary:
    """Detect in every picture and video of a source and write what the settings ask for.

    on_found: told of each picture and frame. Raises ExecutorError; ImageError where not one of the sources can be
    read.
    """
    from formats.exported import open_weights

    saving = settings.saving
    sources = find_sources(settings.source)
    checkpoint = open_weights(settings.weights, may_run_programs=True)
    names = class_names(settings, checkpoint)
    fitting = fitting_of(checkpoint, settings)
    pictures = [source for source in sources if not source.is_video]
    most_at_once = guess_batch_size(settings.device)
    at_once = GPU_BATCH if most_at_once == GPU_BATCH else cpu_pass(len(pictures))
    loader = LoaderSettings(batch_size=at_once, pictures=settings.pictures)
    kept = KeptPictures(KEPT_BYTES)
    reader = BatchReader(
        pictures,
        fitting,
        loader,
        lambda source, error: None,
        progress.part(0, len(pictures) / len(sources)),
        len(pictures),
        # With decode: fast there is no whole picture to keep.
        kept.load if saving.needs_pixels and settings.pictures.decode == "exact" else load,
    )
    with closing(reader):
        finders = load_finders(checkpoint, settings)
        folder = claim_folder(settings.folder, settings.exist_ok, saving, sources) if saving.writes else None
        output = Output(folder, names, safe_folders(names), saving, settings.pictures)
        run = Run(settings, len(sources), most_at_once, fitting, finders, output, on_found)
        started_s = time.monotonic()
        run.detect_in_pictures(reader, kept, loader)
        for place, video in enumerate(sources[len(pictures) :], start=len(pictures)):
            share = progress.part(place / len(sources), (place + 1) / len(sources))
            try:
                warning = run.detect_in_video(video, share)
            except ImageError as error:
                reader.unreadable.add(str(error))
            else:
                if warning:
                    reader.damaged.add(f"{video.path}: {warning}")
        seconds = time.monotonic() - started_s
    if reader.unreadable.count == len(sources):
        raise ImageError(f"not one of {len(sources)} sources can be read, such as {reader.unreadable.examples[0]}")
    progress.at(1)
    return DetectSummary(folder, **run.counts, unreadable=reader.unreadable, damaged=reader.damaged, seconds=seconds)


@dataclass(frozen=True)
class Run:
    """What all pictures and videos of one call share, and what was counted so far."""

    settings: DetectSettings
    total: int  # sources
    most_at_once: int  # frames
    fitting: Union[Fitting, Onto]
    finders: Callable[[int], Finder]
    output: Output
    on_found: Callable[[Found], None]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("pictures", "videos", "frames", "boxes"), 0))

    def detect_in_pictures(self, reader: BatchReader[Source], kept: KeptPictures, loader: LoaderSettings) -> None:
        """Detect in what a reader gives; results are saved meanwhile."""
        find = self.finders(loader.batch_size)
        # A window belongs to one thread.
        with Workers(1 if self.settings.saving.show else loader.workers) as workers:
            for batch in reader:
                for found in find(batch):
                    self._tell(found, "pictures")
                    workers.submit(partial(self.output.save_picture, found, kept))

    def detect_in_video(self, video: Source, progress: Progress) -> Optional[str]:
        """Detect in a video frame by frame; frames are read ahead and saved meanwhile.

        Gives a warning where it breaks off. Raises ImageError where it has no frame.
        """
        stride, last = self.settings.vid_stride, 0
        with ExitStack() as stack:
            opened = stack.enter_context(open_video(video.path, self.settings.pictures.max_pixels))
            target = stack.enter_context(closing(VideoFile(self.output, video, opened.fps / stride)))
            worker = stack.enter_context(Workers(1))
            at_once = max(min(self.most_at_once, opened.frames // stride, FRAMES_BYTES // opened.frame_bytes), 1)
            find = self.finders(at_once)
            batches = frame_batches(opened, video, stride, self.fitting, at_once)
            for batch, frames in stack.enter_context(closing(read_ahead(batches))):
                for found, rgb in zip(find(batch), frames):
                    self._tell(found, "frames")
                    worker.submit(partial(target.save_frame, found, rgb))
                    last = found.source.frame
                progress.at(last / opened.frames)
        if not last:
            raise ImageError(f"{video.path}: has no frame that can be decoded")
        self.counts["videos"] += 1
        is_short = last + stride <= 0.9 * opened.frames  # some headers only estimate the number
        return f"breaks off after frame {last} of {opened.frames}" if is_short else None

    def _tell(self, found: Found, kind: str) -> None:
        self.counts[kind] += 1
        self.counts["boxes"] += len(found.detections)
        if LOGGER.isEnabledFor(logging.DEBUG):
            LOGGER.debug("%s", describe(found, self.total, self.output.names))
        self.on_found(found)


# ---- the model -------------------------------------------------------------------------------------------------------

Finder = Callable[[Batch[Source]], list[Found]]


def load_finders(checkpoint: Weights, settings: DetectSettings) -> Callable[[int], Finder]:
    """Load torch and build the model; gives a function from the number of pictures that go through it at once.

    Raises WeightsError, NoDeviceError, ConfigError.
    """
    import torch

    from formats.engines import make_engine
    from models.augment import detect_augmented
    from models.detector import Detector

    device = settings.device.strip() or ("0" if torch.cuda.is_available() else "")
    if settings.precision == "fp16" and device == "":
        raise ConfigError("--half: needs a GPU, and there is none; leave it out")
    detector = make_engine(checkpoint, EngineSettings(device=device, precision=settings.precision), GPU_BATCH)
    run = detect_augmented if settings.augment else Detector.detect

    def finder(at_once: int) -> Finder:
        sized = replace(detector, chunk=at_once)

        def find(batch: Batch[Source]) -> list[Found]:
            found = run(sized, batch, settings.nms)
            return [Found(*one) for one in zip(batch.items, [box.image_hw for box in batch.letterboxes], found)]

        return find

    return finder


def guess_batch_size(device: str) -> int:
    """Guess, before torch can tell, whether there will be a GPU; a wrong guess costs a little speed."""
    named = device.strip().lower()
    has_gpu = Path("/dev/nvidiactl").exists() if named == "" else named not in ("cpu", "-1")
    return GPU_BATCH if has_gpu else CPU_PASS


def class_names(settings: DetectSettings, checkpoint: Weights) -> tuple[str, ...]:
    """Give the names to write, and check that the classes asked for are there. Raises ConfigError, DatasetError."""
    names = checkpoint.names
    if settings.data is not None:
        names = read_names(read_data_yaml(settings.data), settings.data)
        if len(names) != checkpoint.nc:
            raise ConfigError(
                f"--data: {settings.data} names {len(names)} classes, {settings.weights} has {checkpoint.nc}; "
                "leave it out to use the names in the weights"
            )
    unknown = [class_id for class_id in settings.nms.classes or () if not 0 <= class_id < checkpoint.nc]
    if unknown:
        raise ConfigError(f"--classes: got {unknown[0]}, {settings.weights} has the classes 0 to {checkpoint.nc - 1}")
    return names


def fitting_of(weights: Weights, settings: DetectSettings) -> Union[Fitting, Onto]:
    """Give how pictures are placed on the input. Raises ConfigError for a size that a file wasn't made for."""
    from formats.exported import only_size, refuse_other_size

    stride = input_stride(weights.strides)
    input_hw = input_side(settings.img_hw[0], stride), input_side(settings.img_hw[1], stride)
    refuse_other_size(weights, input_hw)
    return Fitting(input_hw, stride) if only_size(weights) is None else Onto(input_hw)


@dataclass(frozen=True)
class Fitting:
    """The minimal letterbox for an input that may be no square: YOLOv5's, with --imgsz HEIGHT WIDTH."""

    most_hw: tuple[int, int]  # input px, multiples of the stride
    stride: int

    def __call__(self, source: Source, image_hw: tuple[int, int]) -> Letterbox:
        """Give the letterbox of a picture of that size."""
        scale = min(most / length for most, length in zip(self.most_hw, image_hw))
        height, width = (max(round(length * scale), 1) for length in image_hw)
        canvas_hw = (math.ceil(height / self.stride) * self.stride, math.ceil(width / self.stride) * self.stride)
        return place_on(canvas_hw, image_hw, (height, width), scale)


# ---- the door --------------------------------------------------------------------------------------------------------

NOT_OFFERED = {
    "visualize": "--visualize: feature maps are not drawn by this version",
    "update": "--update: nothing is stripped; train.py's best.pt is stripped already",
    "dnn": "--dnn: OpenCV's engine is not offered; ONNX files are run by onnxruntime",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; gives the exit code. The last line, on a failure, is its cause."""
    prepare_process("%(message)s")
    return exit_code(lambda: run_command(argv))


def run_command(argv: Optional[Sequence[str]]) -> None:
    """Read a command line, detect, and log how it went. Raises ExecutorError."""
    arguments = _parser().parse_args(argv)
    for name, line in NOT_OFFERED.items():
        if getattr(arguments, name):
            LOGGER.warning("%s", line)
    settings = read_arguments(arguments)
    LOGGER.setLevel(logging.DEBUG if arguments.verbose else logging.NOTSET)
    if arguments.verbose:
        summary = detect(settings)
    else:
        with Console("detect") as console:
            summary = detect(settings, progress=Progress(console.report))
    tell_of(summary)


def tell_of(summary: DetectSummary) -> None:
    """Log how the run ended."""
    if summary.unreadable.count:
        LOGGER.warning("%s", summary.unreadable.summary("sources can't be read"))
    if summary.damaged.count:
        LOGGER.warning("%s", summary.damaged.summary("pictures or videos are damaged and used as far as they go"))
    looked_at = summary.pictures + summary.frames
    videos = f" and {summary.frames} frames of {summary.videos} videos" if summary.videos else ""
    LOGGER.info(
        "%d boxes in %d pictures%s, %.1f ms each",
        summary.boxes,
        summary.pictures,
        videos,
        1000 * summary.seconds / looked_at,
    )
    if summary.folder:
        LOGGER.info("results in %s", summary.folder)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--weights", nargs="+", default=["yolov5s.pt"], metavar="FILE", help=WEIGHTS_FORMS)
    add(
        "--source",
        default="data/images",
        metavar="WHAT",
        help="a picture or video, a folder of those (without its subfolders), a quoted glob pattern, a .txt list",
    )
    add("--data", type=Path, metavar="YAML", help="take the class names from a data.yaml")
    add("--imgsz", "--img", "--img-size", nargs="+", type=int, default=[640], metavar="PX", help="one side, or h w")
    add("--conf-thres", type=float, default=0.25, metavar="SHARE", help="least score")
    add("--iou-thres", type=float, default=0.45, metavar="SHARE", help="overlap from which a box is suppressed")
    add("--max-det", type=int, default=1000, metavar="N", help="most boxes a picture")
    add("--device", default="", metavar="WHICH", help="cpu, or a GPU's index; default: GPU 0 if there is one")
    add("--view-img", action="store_true", help="show the pictures, where there is a display")
    add("--save-txt", action="store_true", help="write labels/STEM.txt")
    add("--save-conf", action="store_true", help="with the scores in it")
    add("--save-crop", action="store_true", help="write a picture of each box")
    add("--nosave", action="store_true", help="don't write the pictures with their boxes")
    add("--classes", nargs="+", type=int, metavar="ID", help="only these")
    add("--agnostic-nms", action="store_true", help="boxes suppress those of other classes, too")
    add("--augment", action="store_true", help="look at three sizes of each picture")
    add("--visualize", action="store_true", help="(not offered)")
    add("--update", action="store_true", help="(not offered)")
    add("--project", type=Path, default=Path("runs/detect"), metavar="DIR", help="where the folder of results goes")
    add("--name", default="exp", help="of that folder; exp2, exp3, ... if it is there")
    add("--exist-ok", action="store_true", help="write into it if it is there, replacing files of the same name")
    add("--line-thickness", type=int, default=3, metavar="PX", help="of the boxes drawn")
    add("--hide-labels", action="store_true", help="draw no names")
    add("--hide-conf", action="store_true", help="draw no scores")
    add("--half", action="store_true", help="compute in fp16, on a GPU")
    add("--dnn", action="store_true", help="(not offered)")
    add("--vid-stride", type=int, default=1, metavar="N", help="look at every N-th frame of a video")
    add("--precision", choices=PRECISIONS, default="auto", help="ours, not YOLOv5's: by hardware if auto")
    add("--verbose", action="store_true", help="ours: a line for each picture or frame")
    return parser


def read_arguments(arguments: argparse.Namespace) -> DetectSettings:
    """Check a parsed command line and freeze it. Raises ConfigError."""
    if len(arguments.weights) > 1:
        raise ConfigError(f"--weights: got {len(arguments.weights)} files, need one; ensembles are not supported")
    if len(arguments.imgsz) > 2:
        raise ConfigError(f"--imgsz: got {len(arguments.imgsz)} numbers, need one, or height and width")
    if arguments.half and arguments.precision not in ("auto", "fp16"):
        raise ConfigError(f"--half: means --precision fp16, but --precision {arguments.precision} is given")
    return DetectSettings(
        weights=find_weights(arguments.weights[0]),
        source=arguments.source,
        data=arguments.data,
        img_hw=(arguments.imgsz[0], arguments.imgsz[-1]),
        device=arguments.device,
        precision="fp16" if arguments.half else arguments.precision,
        nms=NmsSettings(
            conf_thres=arguments.conf_thres,
            iou_thres=arguments.iou_thres,
            max_det=arguments.max_det,
            agnostic=arguments.agnostic_nms,
            classes=tuple(arguments.classes) if arguments.classes else None,
        ),
        augment=arguments.augment,
        vid_stride=arguments.vid_stride,
        folder=arguments.project / arguments.name,
        exist_ok=arguments.exist_ok,
        saving=SaveSettings(
            pictures=not arguments.nosave,
            labels=arguments.save_txt,
            scores=arguments.save_conf,
            crops=arguments.save_crop,
            show=arguments.view_img and can_show(),
            line_thickness=arguments.line_thickness,
            hide_labels=arguments.hide_labels,
            hide_conf=arguments.hide_conf,
        ),
    )


def find_weights(name: str) -> Path:
    """Give the path of a weights file; a bare name may lie in our own weights/, as in the image."""
    path, shipped = Path(name), ROOT / "weights" / name
    return shipped if path.name == name and not path.exists() and shipped.exists() else path


def can_show() -> bool:
    """Tell whether pictures can be shown, and log why if not."""
    has_windows = re.search(r"^\s*GUI:\s*NONE", cv2.getBuildInformation(), re.MULTILINE) is None
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if not has_windows:
        LOGGER.warning("--view-img: this OpenCV has no windows (opencv-python-headless); look at the saved pictures")
    elif not has_display:
        LOGGER.warning("--view-img: there is no display; look at the saved pictures")
    return has_windows and has_display


if __name__ == "__main__":
    leave(main())
