"""A checkpoint -> files for other engines, each run by its own engine on pictures before it gets its name."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable

import torch
import yaml
from torch import Tensor, nn

from formats.agreement import HALF_TOLERANCE, TOLERANCE, Agreement, batches, compare
from formats.end_to_end import with_nms
from formats.network import RawLevels, RknnLevels, Rows, RowsTuple, anchors_text, network_to_hand_over
from formats.onnx_file import INPUT, checked_bytes, make_onnx, set_metadata, slimmed
from formats.options import ExportOptions
from formats.runners import Images, Run, onnxruntime_runner, openvino_core, openvino_runner, torchscript_runner
from models.checkpoint import Checkpoint
from models.detector import build_model, choose_device
from models.yolo import DetectionModel
from utils.errors import ConfigError, ExecutorError
from utils.files import write_whole
from utils.letterbox import input_stride

LOGGER = logging.getLogger("export")

RKNN_OPSET = 12
OPENVINO_FOLDER = "{stem}_openvino_model"
RKNN_ANCHORS = "RK_anchors.txt"
FP32 = "fp32"


@dataclass(frozen=True)
class Handed:
    """A network and pictures to hold its files against."""

    checkpoint: Checkpoint
    model: DetectionModel  # folded, unless it is for training
    images: Images  # at the options' input_hw
    options: ExportOptions
    threads: int

    @property
    def input_hw(self) -> tuple[int, int]:
        """The input's size."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def about(self) -> dict[str, Any]:
        """What readers look for in a file: YOLOv5's stride and names, and our own levels."""
        stride = self.model.stride
        return {
            "stride": max(stride),
            "names": dict(enumerate(self.checkpoint.names)),
            "strides": list(stride),
            "anchors_per_cell": int(self.model.detect.anchors.shape[1]),
        }

    @property
    def blank(self) -> Tensor:
        """An input of the shape that fixed files have, on the model's device and in its type."""
        anchors = self.model.detect.anchors
        return torch.zeros(self.options.batch, 3, *self.input_hw, device=anchors.device, dtype=anchors.dtype)

    @property
    def tolerance(self) -> float:
        """How far probabilities may be off."""
        return HALF_TOLERANCE if self.options.half else TOLERANCE

    def rows(self, images: Images) -> Images:
        """Let torch look at pictures, in the model's precision."""
        blank = self.blank
        with torch.inference_mode():
            found = Rows(self.model)(torch.from_numpy(images).to(blank))
        result: Images = found.float().cpu().numpy()
        return result

    def agreement(self, path: Path, run: Run) -> Agreement:
        """Hold a file against torch, in batches of the size it was made for. Raises ExecutorError."""
        found = [
            compare(str(path), self.rows, run, images, self.tolerance)
            for images in batches(self.images, self.options.batch)
        ]
        return Agreement(max(one.boxes_px for one in found), max(one.probabilities for one in found))


def handed(checkpoint: Checkpoint, images: Images, options: ExportOptions, threads: int = 1) -> Handed:
    """Build what is handed over. Raises WeightsError, NoDeviceError."""
    device = choose_device(options.device)
    model = build_model(checkpoint) if options.train else network_to_hand_over(checkpoint)
    model = model.to(device)
    if options.half:
        model = model.half()
    return Handed(checkpoint, model, images, options, threads)


def whole_input(checkpoint: Checkpoint, input_hw: tuple[int, int]) -> tuple[int, int]:
    """Round an input's sides up to the network's stride, with a line in the log where that changes them."""
    stride = input_stride(checkpoint.strides)
    height, width = (-(-side // stride) * stride for side in input_hw)
    if (height, width) != input_hw:
        LOGGER.warning("--imgsz %d %d: rounded up to %d %d, multiples of %d", *input_hw, height, width, stride)
    return height, width


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def onnx_bytes(handed: Handed) -> bytes:
    """Make the ONNX file of rows. Raises ConfigError, ExecutorError."""
    options, spec = handed.options, handed.model
    if options.train:
        levels = tuple(f"output{number}" for number in range(len(spec.stride)))
        network: nn.Module = RawLevels(handed.model)
        model = make_onnx(network, handed.blank, options.opset, levels, dynamic=options.dynamic, training=True)
    else:
        network = Rows(handed.model, None if options.dynamic else handed.input_hw).eval()
        model = make_onnx(network, handed.blank, options.opset, dynamic=options.dynamic)
    set_metadata(model, handed.about)
    return checked_bytes(slimmed(model) if options.simplify else model)


def write_onnx(handed: Handed, stem: Path) -> list[Path]:
    """Write STEM.onnx, and what else of ONNX is asked for; gives the files' paths. Raises ExecutorError."""
    options, path = handed.options, stem.with_suffix(".onnx")
    content = onnx_bytes(handed)
    if options.verbose:
        import onnx

        print(onnx.printer.to_text(onnx.load_model_from_string(content)))  # noqa: T201
    told = "raw maps, not compared"
    if not options.train:
        told = str(handed.agreement(path, onnxruntime_runner(content, FP32, handed.threads)))
    write_whole(path, content)
    LOGGER.info("%s: opset %d, %s, %s", path, options.opset, _shape(handed), told)
    written = [path]
    if options.nms:
        written.append(_write_end_to_end(handed, content, stem.with_name(f"{stem.name}-nms.onnx")))
    if options.rknn:
        written += _write_rknn(handed, stem.with_name(f"{stem.name}-rknn.onnx"))
    return written


def _shape(handed: Handed) -> str:
    height, width = handed.input_hw
    return "any shape" if handed.options.dynamic else f"{handed.options.batch} x 3 x {height} x {width}"


def _write_end_to_end(handed: Handed, content: bytes, path: Path) -> Path:
    import onnx

    model = with_nms(onnx.load_model_from_string(content), handed.checkpoint.nc, handed.options)
    ended = checked_bytes(model)
    onnxruntime_runner(ended, FP32, handed.threads)(batches(handed.images, handed.options.batch)[0])
    write_whole(path, ended)
    LOGGER.info("%s: num_dets, det_boxes, det_scores, det_classes; at most %d boxes", path, handed.options.topk_all)
    return path


def _write_rknn(handed: Handed, path: Path) -> list[Path]:
    """Write what Rockchip's demos read: fixed, one picture, a level each."""
    options = handed.options
    model = copy.deepcopy(handed.model)
    names = tuple(f"output{number}" for number in range(len(model.stride)))
    network = RknnLevels(model).eval()
    opset = min(options.opset, RKNN_OPSET)
    if opset < options.opset:
        LOGGER.warning("%s: is written with opset %d, the newest that Rockchip's tools read", path, opset)
    made = make_onnx(network, handed.blank[:1], opset, names)
    set_metadata(made, handed.about)
    content = checked_bytes(slimmed(made))
    anchors = path.with_name(RKNN_ANCHORS)
    write_whole(path, content)
    write_whole(anchors, anchors_text(handed.model).encode())
    LOGGER.info("%s, %s: %d levels after the sigmoid, %s", path, anchors.name, len(names), INPUT)
    return [path, anchors]


# ---- TorchScript, OpenVINO -------------------------------------------------------------------------------------------


def write_torchscript(handed: Handed, stem: Path) -> list[Path]:
    """Write STEM.torchscript, a program traced at one shape. Raises ExecutorError."""
    options, path = handed.options, stem.with_suffix(".torchscript")
    network: nn.Module = RawLevels(handed.model) if options.train else RowsTuple(Rows(handed.model, handed.input_hw))
    extra = {"config.txt": json.dumps({"shape": [options.batch, 3, *handed.input_hw], **handed.about})}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of a tracer that sees Python numbers: they are meant to be constants
        script: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
            network.eval(), handed.blank, strict=False
        )
        content = _for_phones(script, extra) if options.optimize else script_bytes(script, extra)
        told = "raw maps, not compared"
        if not (options.train or options.optimize or handed.blank.is_cuda):
            told = str(handed.agreement(path, torchscript_runner(content, FP32, handed.threads)))
    write_whole(path, content)
    LOGGER.info("%s: %d x 3 x %d x %d, %s", path, options.batch, *handed.input_hw, told)
    return [path]


def script_bytes(script: Any, extra: Mapping[str, str]) -> bytes:
    """Give a script's file."""
    file = io.BytesIO()
    torch.jit.save(script, file, _extra_files=dict(extra))
    return file.getvalue()


def _for_phones(script: Any, extra: Mapping[str, str]) -> bytes:
    try:
        from torch.utils.mobile_optimizer import optimize_for_mobile
    except ImportError as cause:
        raise ConfigError(
            f"--optimize: this torch ({torch.__version__}) has no optimizer for phones any more"
        ) from cause
    try:
        content: bytes = optimize_for_mobile(script)._save_to_buffer_for_lite_interpreter(_extra_files=dict(extra))
    except RuntimeError as cause:
        raise ExecutorError(f"--optimize: torch refuses it: {str(cause).partition(chr(10))[0][:200]}") from cause
    return content


def write_openvino(handed: Handed, stem: Path) -> list[Path]:
    """Write the folder STEM_openvino_model. Raises ConfigError where OpenVINO isn't installed, ExecutorError."""
    if handed.options.train:
        raise ConfigError("--train: openvino can't train; leave it out of --include")
    core = openvino_core()
    import openvino

    folder = stem.with_name(OPENVINO_FOLDER.format(stem=stem.name))
    model = core.read_model(onnx_bytes(handed), b"")
    with _folder_beside(folder) as beside:
        openvino.save_model(model, beside / f"{stem.name}.xml", compress_to_fp16=handed.options.half)
        text = yaml.safe_dump(handed.about, sort_keys=False, allow_unicode=True)
        (beside / f"{stem.name}.yaml").write_text(text, encoding="utf-8")
        told = handed.agreement(folder, openvino_runner(beside, FP32, handed.threads))
    LOGGER.info("%s: %s, %s", folder, _shape(handed), told)
    return [folder]


@contextmanager
def _folder_beside(folder: Path) -> Iterator[Path]:
    """Give a new folder, which takes the place of `folder` at the end, or vanishes on an error."""
    beside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        beside.mkdir()
        yield beside
        for file in beside.iterdir():
            file.chmod(0o666)
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)  # or a crash might leave names of empty files
            finally:
                os.close(handle)
        if folder.exists():
            folder.rename(old)  # one folder can't take another's place in one step
        try:
            beside.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    finally:
        for path in (beside, old) if folder.exists() else (beside,):
            shutil.rmtree(path, ignore_errors=True)


Writer = Callable[[Handed, Path], "list[Path]"]

# In the order in which they are written.
WRITERS: Mapping[str, Writer] = MappingProxyType(
    {"torchscript": write_torchscript, "onnx": write_onnx, "openvino": write_openvino}
)
