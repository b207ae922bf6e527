"""YOLOv5's export.py command line, read and checked. No torch here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

from utils.errors import ConfigError
from utils.process import OneLineParser, share, whole
from utils.settings import MOST_SIDE_PX, check_device, check_pt

LEAST_OPSET, MOST_OPSET = 9, 20
END_TO_END_OPSET, INT8_OPSET = 11, 13  # at least
MOST_AT_ONCE = 1024
LEAST_CALIBRATION = 100  # pictures
# Formats that need a tool which no Linux container of ours has: what is to be run, from best.onnx.
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "engine": "TensorRT and its GPU: trtexec --onnx={onnx} --saveEngine={stem}.engine --fp16",
        "coreml": "coremltools (pip install coremltools), which reads the TorchScript file: --include torchscript",
        "saved_model": "onnx2tf (pip install onnx2tf tensorflow): onnx2tf -i {onnx} -o {stem}_saved_model",
        "pb": "onnx2tf (pip install onnx2tf tensorflow): onnx2tf -i {onnx} -o {stem}_saved_model",
        "tflite": "onnx2tf (pip install onnx2tf tensorflow): onnx2tf -i {onnx} -o {stem}_saved_model",
        "edgetpu": "Google's edgetpu_compiler, behind onnx2tf: onnx2tf -i {onnx} -oiqt, then edgetpu_compiler",
        "tfjs": "tensorflowjs, behind onnx2tf: onnx2tf -i {onnx} -o {stem}_saved_model, then tensorflowjs_converter",
        "paddle": "X2Paddle (pip install x2paddle): x2paddle --framework=onnx --model={onnx} --save_dir={stem}_paddle",
    }
)
OURS = ("onnx", "torchscript", "openvino")


@dataclass(frozen=True)
class ExportOptions:
    """How a network is handed over; the defaults are YOLOv5's."""

    input_hw: tuple[int, int] = (640, 640)  # rounded up to the stride by who writes
    batch: int = 1
    include: tuple[str, ...] = ("torchscript", "onnx")
    opset: int = 12
    dynamic: bool = False  # ONNX: any batch, height and width
    simplify: bool = False
    half: bool = False  # fp16, on a GPU
    device: str = "cpu"
    train: bool = False  # raw maps, batch norms as they are
    optimize: bool = False  # TorchScript for mobile phones
    int8: bool = False  # an ONNX file with int8 convolutions beside the other
    nms: bool = False  # an ONNX file beside the other that ends with boxes
    agnostic_nms: bool = False
    topk_per_class: int = 100
    topk_all: int = 100
    iou_thres: float = 0.45
    conf_thres: float = 0.25
    rknn: bool = False  # an ONNX file beside the other as Rockchip's demos read it
    verbose: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.include if name not in (*OURS, *ELSEWHERE)]
        if unknown or not self.include:
            raise ConfigError(
                f"--include: got {' '.join(unknown)[:80]!r}, need some of {', '.join((*OURS, *ELSEWHERE))}"
            )
        if not LEAST_OPSET <= self.opset <= MOST_OPSET:
            raise ConfigError(f"--opset: got {self.opset}, need {LEAST_OPSET} to {MOST_OPSET}")
        if self.nms and self.opset < END_TO_END_OPSET:
            raise ConfigError(f"--nms: needs --opset {END_TO_END_OPSET} or later, got {self.opset}")
        if self.half and self.device in ("", "cpu", "-1"):
            raise ConfigError("--half: fp16 is traced on a GPU, give --device 0; or leave it out")
        if self.half and self.dynamic:
            raise ConfigError("--half: not together with --dynamic")
        if self.optimize and self.device not in ("", "cpu", "-1"):
            raise ConfigError("--optimize: is for mobile phones and needs --device cpu")
        if self.train and (self.nms or self.rknn or self.int8):
            raise ConfigError("--train: gives raw maps; --nms, --rknn and --int8 need what is decoded, leave them out")


@dataclass(frozen=True)
class ExportCommand:
    """One command line. data: pictures to compare with, and to calibrate int8 by."""

    weights: tuple[Path, ...]
    options: ExportOptions
    data: Optional[Path] = None


def parse_command(argv: Optional[Sequence[str]]) -> ExportCommand:
    """Read a command line. Raises ConfigError, which names option, value and what is allowed."""
    given = _parser().parse_args(argv)
    check_device("--device", given.device)
    for path in given.weights:
        check_pt("--weights", path)
    sides = given.imgsz if len(given.imgsz) == 2 else given.imgsz * 2
    if len(sides) != 2:
        raise ConfigError(f"--imgsz: got {len(given.imgsz)} numbers, need one, or height and width")
    if given.workspace is not None and "engine" not in given.include:
        raise ConfigError("--workspace: is for TensorRT, which --include doesn't name; leave it out")
    names = ExportOptions.__dataclass_fields__
    taken: dict[str, Any] = {name: value for name, value in vars(given).items() if name in names}
    taken.update(input_hw=tuple(sides), include=tuple(dict.fromkeys(given.include)), device=given.device.strip())
    return ExportCommand(tuple(given.weights), ExportOptions(**taken), given.data)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="export.py", description="Hand a YOLOv5 network over to other engines.")
    add = parser.add_argument
    add("--data", type=Path, metavar="YAML", help="pictures to compare with, and to calibrate int8 by; else drawn ones")
    add("--weights", nargs="+", type=Path, default=[Path("yolov5s.pt")], metavar="FILE", help="a .pt, or several")
    sizes = ("--imgsz", "--img", "--img-size")
    side = whole(1, MOST_SIDE_PX)
    add(
        *sizes,
        dest="imgsz",
        nargs="+",
        type=side,
        default=[640],
        metavar="PX",
        help="height and width, or one for both",
    )
    add("--batch-size", dest="batch", type=whole(1, MOST_AT_ONCE), default=1, metavar="N", help="pictures at once")
    add("--device", default="cpu", metavar="WHICH", help="cpu, or a GPU's index")
    add("--half", action="store_true", help="fp16, on a GPU")
    add("--inplace", action="store_true", help="changes nothing here, the head never works in place")
    add("--train", action="store_true", help="raw maps and batch norms as they are, for training elsewhere")
    add("--optimize", action="store_true", help="TorchScript: for mobile phones")
    add("--int8", action="store_true", help="ONNX: also STEM-int8.onnx, int8 convolutions; --data calibrates them")
    add("--dynamic", action="store_true", help="ONNX: any batch, height and width")
    add("--simplify", action="store_true", help="ONNX: made smaller by onnxslim")
    opset = whole(LEAST_OPSET, MOST_OPSET)
    add("--opset", type=opset, default=12, metavar="N", help=f"ONNX: {LEAST_OPSET} to {MOST_OPSET} (12)")
    add("--verbose", action="store_true", help="ONNX: print the graph")
    add("--workspace", type=whole(1, 1024), metavar="GB", help="TensorRT's, which runs elsewhere")
    add("--nms", action="store_true", help="ONNX: also STEM-nms.onnx, which ends with boxes, scores and classes")
    add("--agnostic-nms", action="store_true", help="--nms: boxes of all classes suppress one another")
    add("--topk-per-class", type=whole(1, 100_000), default=100, metavar="N", help="--nms: most boxes of a class (100)")
    add("--topk-all", type=whole(1, 100_000), default=100, metavar="N", help="--nms: most boxes of a picture (100)")
    add("--iou-thres", type=share, default=0.45, metavar="SHARE", help="--nms: overlap that suppresses (0.45)")
    add("--conf-thres", type=share, default=0.25, metavar="SHARE", help="--nms: least score (0.25)")
    add("--rknn", action="store_true", help="ours: ONNX: also STEM-rknn.onnx and RK_anchors.txt, for Rockchip's demos")
    known = [*OURS, *ELSEWHERE]
    add("--include", nargs="+", default=["torchscript", "onnx"], metavar="FORMAT", help=f"some of {', '.join(known)}")
    return parser
