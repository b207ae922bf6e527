"""Detector: batches of letterboxed pictures in, Detections in picture pixels out, or the raw maps for a miner."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.decode import HeadMaps, RawMaps
from models.features import Features, pooled_features
from models.fuse import fold_batch_norms, pack_for_cpu
from models.yolo import DetectionModel, parse_spec
from utils.batches import Batch, Canvas, Item
from utils.detections import Detections
from utils.errors import ConfigError, DeviceError, DeviceMemoryError, NoDeviceError, WeightsError
from utils.gpus import has_code_for, told_of_gpu
from utils.letterbox import input_stride
from utils.machine import usable_cpus
from utils.nms import select_boxes
from utils.passes import CPU_NAMES, CPU_PASS
from utils.settings import EngineSettings, NmsSettings

LOGGER = logging.getLogger(__name__)

MAX_RAW_BYTES = 256 << 20  # raw maps of one pass (SPEC section 6)

# What allocators say: CUDA's, torch's own, the system's, C++'s; and oneDNN, which tells no cause (its refusals of what
# it can't compute speak of descriptors).
LACKS_MEMORY = (
    *("out of memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc"),
    *("could not create a primitive", "could not execute a primitive", "could not create a memory"),
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_model(checkpoint: Checkpoint) -> DetectionModel:
    """Build the network that a checkpoint describes, in fp32 and eval mode, and fill in its weights.

    Raises WeightsError where description and weights don't belong together.
    """
    name = str(checkpoint.path)
    spec = parse_spec(dict(checkpoint.yaml), name, checkpoint.nc, checkpoint.activation, WeightsError)
    elements = sum(array.size for array in checkpoint.state.values())
    try:
        model = DetectionModel(spec, max_weights=elements).eval()
    except ConfigError as cause:
        raise WeightsError(f"{name}: {cause}") from cause
    expected = model.state_dict()
    wrong = [
        key for key in expected if key not in checkpoint.state or checkpoint.state[key].shape != expected[key].shape
    ]
    wrong += [key for key in checkpoint.state if key not in expected]
    if wrong or model.stride != checkpoint.strides:
        detail = f"such as {wrong[0]}" if wrong else f"strides {checkpoint.strides}, not {model.stride}"
        raise WeightsError(f"{name}: weights and model description differ in {len(wrong)} entries, {detail}")
    # Converted first: load_state_dict copies, and the file's fp16 arrays aren't writable.
    state = {key: as_tensor(array) for key, array in checkpoint.state.items()}
    model.load_state_dict(state)
    return model.requires_grad_(False)


def as_tensor(array: Any) -> Tensor:
    """Copy an array of a checkpoint into a tensor; floats of any width become fp32."""
    return torch.tensor(np.asarray(array, np.float32 if array.dtype.kind == "f" else array.dtype))


def choose_device(text: str) -> torch.device:
    """Give the device for a gpu_id or --device text: "" or "cpu", or indices of which the first counts.

    Raises NoDeviceError for a GPU that isn't there, DeviceError for one that torch has no code for.
    """
    cleaned = text.strip().lower().replace("cuda:", "")
    if cleaned in CPU_NAMES:
        return torch.device("cpu")
    indices = [part.strip() for part in cleaned.split(",") if part.strip()]
    if not indices or not all(index.isdigit() for index in indices):
        raise ConfigError(f"device: got {text[:40]!r}, need '' or cpu, or GPU indices such as 0 or 0,1")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = [index for index in indices if int(index) >= there]
    if missing:
        raise NoDeviceError(
            f"gpu_id: GPU {missing[0]} was asked for, {there} are visible to this process{'' if there else _why_none()}"
            "; to run on the CPU give gpu_id '' (--device cpu), or start the container with --gpus"
        )
    device = torch.device("cuda", int(indices[0]))
    with device_errors():
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        arch_list = torch.cuda.get_arch_list()
    if not has_code_for(capability, arch_list):
        raise DeviceError(told_of_gpu(name, capability, arch_list, torch.__version__))
    if len(indices) > 1:
        LOGGER.info("gpu_id %s: GPU %s is used, one task runs on one GPU", text, indices[0])
    return device


@functools.cache
def _why_none() -> str:
    """Give in brackets why torch sees no GPU: there is no driver, it is too old, or torch has no CUDA.

    A process asks once: where the first call of torch 1.12's init fails, a second never ends (glibc 2.31, Debian 11).
    """
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's own
    except (RuntimeError, AssertionError) as cause:  # the second: a torch without CUDA
        first = re.split(r"[.\n] ?", str(cause).strip(), maxsplit=1)[0][:100]
        return f" ({first})" if first else ""
    return ""


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto" by hardware: fp16 on a GPU, bf16 on a CPU that computes in it, else fp32. Raises ConfigError."""
    if precision == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if cpu_has_bf16() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision: fp16 needs a GPU; use auto, fp32 or bf16")
    return precision


def cpu_has_bf16() -> bool:
    """True where the processor multiplies bf16 natively; elsewhere bf16 is emulated and slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))


def set_threads(wanted: int, ranks: int = 1) -> int:
    """Tell torch how many threads this process may use: `wanted`, or cores / ranks if 0. Gives the number."""
    threads = wanted or max(1, usable_cpus() // ranks)
    torch.set_num_threads(threads)
    return threads


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn torch's failures of a device into ours."""
    try:
        yield
    except MemoryError as cause:
        raise DeviceMemoryError("memory ran out; use a smaller batch_size_per_gpu or img_size") from cause
    except RuntimeError as cause:
        first = str(cause).split("\n", 1)[0][:200]
        if any(words in str(cause) for words in LACKS_MEMORY) and "primitive descriptor" not in first:
            raise DeviceMemoryError(
                f"memory ran out ({first}); use a smaller batch_size_per_gpu or img_size"
            ) from cause
        if "CUDA" in str(cause) or "cuDNN" in str(cause):
            raise DeviceError(f"CUDA failed: {first}") from cause
        raise


@dataclass(frozen=True)
class Detector:
    """A network ready to run on one device."""

    model: torch.nn.Module
    name: str  # of the weights file, for messages
    names: tuple[str, ...]
    strides: tuple[int, ...]
    anchors_px: Tensor  # (nl, na, 2) on the device
    device: torch.device
    precision: str  # fp32, bf16 or fp16
    chunk: int  # pictures that go through the network at once
    pin_memory: bool = False
    gives_features: bool = False  # of each picture, with its maps

    @property
    def stride(self) -> int:
        """What both sides of an input must be multiples of."""
        return input_stride(self.strides)

    def maps(self, batch: Batch[Item]) -> Iterator[HeadMaps]:
        """Give the raw maps of a batch, in fp32, some pictures at a time and in their order.

        A pass always holds the same number of pictures, empty ones filling it up, so that a picture's figures don't
        depend on its neighbours or on how many there are. Raises WeightsError where the network gives NaN.
        """
        height, width = batch.canvas_hw
        numbers = sum((height // stride) * (width // stride) for stride in self.strides)
        picture_bytes = 4 * numbers * self.anchors_px.shape[1] * (len(self.names) + 5)
        chunk = max(1, min(self.chunk, MAX_RAW_BYTES // picture_bytes))
        for start in range(0, len(batch), chunk):
            canvases = batch.canvases[start : start + chunk]
            with device_errors(), torch.inference_mode():
                maps, is_finite = self._look(self._images(canvases, chunk), len(canvases))
                if not is_finite:
                    raise WeightsError(f"{self.name}: gives NaN or infinite values for {batch.items[start].path}")
            yield maps

    def _look(self, images: Tensor, count: int) -> tuple[HeadMaps, bool]:
        """Give what the network says of the first so many pictures, and whether it is made of numbers."""
        levels, features = self._levels(images)
        shaped = [self._shaped(level)[:count] for level in levels]
        raw = RawMaps(shaped, self.strides, self.anchors_px, None if features is None else features[:count])
        return raw, all(bool(torch.isfinite(level[..., 4].sum())) for level in raw.levels)

    def _levels(self, images: Tensor) -> tuple[list[Tensor], Optional[Features]]:
        if not self.gives_features:
            return self.model(images), None
        model: Any = self.model
        levels, feature_map = model.maps_and_features(images)
        return levels, pooled_features(feature_map)

    def _images(self, canvases: Sequence[Canvas], chunk: int) -> Tensor:
        """Move uint8 pictures to the device and make them (chunk, 3, H, W) in 0..1 there."""
        if len(canvases) == chunk == 1:
            pixels = torch.from_numpy(canvases[0][None])  # (1, H, W, 3), no copy
        else:
            pixels = torch.zeros((chunk, *canvases[0].shape), dtype=torch.uint8, pin_memory=self.pin_memory)
            for place, canvas in enumerate(canvases):
                pixels[place] = torch.from_numpy(canvas)
        pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # channels-last already
        # Divided in fp32: 255 levels don't survive a division in bf16.
        return (pixels.float() / 255).to(DTYPES[self.precision])

    def _shaped(self, level: Tensor) -> Tensor:
        """(B, na (5 + nc), H, W) of any layout and type -> (B, H, W, na, 5 + nc) fp32."""
        batch, channels, height, width = level.shape
        anchors = self.anchors_px.shape[1]
        return level.float().permute(0, 2, 3, 1).reshape(batch, height, width, anchors, channels // anchors)

    def detect(self, batch: Batch[Item], settings: NmsSettings) -> list[Detections]:
        """Detect in every picture of a batch: boxes in picture pixels, best first."""
        found: list[Detections] = []
        for boxes, scores, class_ids in self.select(batch, settings):
            boxes_px = batch.letterboxes[len(found)].to_px(boxes.numpy())
            found.append(Detections(boxes_px, scores.numpy(), class_ids.numpy()))
        return found

    def select(self, batch: Batch[Item], settings: NmsSettings) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give for each picture of a batch what `select_boxes` keeps: boxes_letterbox, scores, class_ids on the CPU."""
        for rows in self.candidates(batch, settings.conf_thres):
            with torch.inference_mode():
                yield select_boxes(rows, settings)

    def candidates(self, batch: Batch[Item], objectness: float) -> Iterator[Tensor]:
        """Give for each picture of a batch the decoded rows above an objectness: (K, 5 + nc) on the CPU."""
        for raw in self.maps(batch):
            with device_errors(), torch.inference_mode():
                yield from raw.rows_above(objectness)


def make_detector(
    checkpoint: Checkpoint, settings: EngineSettings, batch_size: int, cpu_chunk: int = CPU_PASS, ranks: int = 1
) -> Detector:
    """Build a checkpoint's network for one device and make it fast there.

    batch_size: pictures that go through a GPU at once. cpu_chunk: the same for a CPU.
    Raises WeightsError, NoDeviceError, ConfigError.
    """
    if settings.backend not in ("auto", "torch"):
        raise ConfigError(f"backend: {settings.backend} is not in this version, use auto or torch")
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device)
    threads = set_threads(settings.threads, ranks)
    chunk = cpu_chunk if device.type == "cpu" else batch_size
    detector = detector_of(build_model(checkpoint), checkpoint.names, device, precision, chunk)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads"
    LOGGER.info("%s: %d classes, %s, %s", checkpoint.path.name, checkpoint.nc, precision, where)
    return replace(detector, name=str(checkpoint.path), pin_memory=settings.pin_memory and device.type == "cuda")


def detector_of(
    model: DetectionModel, names: tuple[str, ...], device: torch.device, precision: str, chunk: int
) -> Detector:
    """Make a network in eval mode fast on a device. The model is used up: its layers are folded and packed in place."""
    with device_errors(), torch.no_grad():
        strides = torch.tensor(model.stride, device=model.detect.anchors.device).view(-1, 1, 1)
        anchors_px = (model.detect.anchors.float() * strides).to(device)
        fast: Any = fold_batch_norms(model)
        packed = device.type == "cpu" and pack_for_cpu(fast, DTYPES[precision])
        if not packed:
            fast = fast.to(device=device, dtype=DTYPES[precision], memory_format=torch.channels_last)
    return Detector(fast, "the model", names, model.stride, anchors_px, device, precision, chunk)
