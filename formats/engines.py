"""make_engine: weights of any form -> a Detector, on the engine that was asked for or is fastest."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from formats.exported import Exported, Weights, choose_backend, refuse_other_size
from formats.network import Rows, network_to_hand_over
from formats.onnx_file import make_onnx
from formats.runners import PRECISION_HINTS, RUNNERS, Images, Run
from models.checkpoint import Checkpoint
from models.decode import DecodedMaps, HeadMaps
from models.detector import Detector, choose_device, make_detector, set_threads
from utils.errors import ConfigError
from utils.passes import CPU_PASS
from utils.settings import EngineSettings

LOGGER = logging.getLogger(__name__)

OPSET = 13  # of the ONNX that another engine is handed a .pt as
TRACED_SIDE = 64  # px: any will do, the file takes every size


@dataclass(frozen=True)
class ExportedDetector(Detector):
    """A network that another engine runs, on the CPU."""

    run: Run = np.asarray

    def _look(self, images: Tensor, count: int) -> tuple[HeadMaps, bool]:
        rows = torch.from_numpy(self.run(images.contiguous().numpy()))[:count]
        maps = DecodedMaps(rows, (images.shape[2], images.shape[3]), self.strides, self.anchors_px.shape[1])
        return maps, bool(torch.isfinite(rows[..., 4].sum()))


def make_engine(
    weights: Weights, settings: EngineSettings, batch_size: int, cpu_chunk: int = CPU_PASS, ranks: int = 1
) -> Detector:
    """Make weights of any form ready to run.

    batch_size: pictures that go through a GPU at once. cpu_chunk: the same for a CPU. Raises WeightsError, ConfigError,
    NoDeviceError.
    """
    backend = choose_backend(weights, settings.backend)
    if backend == "torch":
        assert isinstance(weights, Checkpoint)
        return make_detector(weights, settings, batch_size, cpu_chunk, ranks)
    if choose_device(settings.device).type == "cuda":
        LOGGER.info("backend %s: runs on the CPU", backend)
    threads = set_threads(settings.threads, ranks)
    precision = _precision(backend, settings.precision)
    make_run = RUNNERS[backend]
    if isinstance(weights, Exported):
        run = _in_its_shape(make_run(weights.path, precision, threads), weights)
        anchors, chunk = weights.anchors, weights.fixed_batch or cpu_chunk
    else:
        run = make_run(onnx_of(weights), precision, threads)
        anchors, chunk = weights.anchors_px.shape[1], cpu_chunk
    LOGGER.info("%s: %d classes, %s, %s, %d threads", weights.path.name, weights.nc, backend, precision, threads)
    return ExportedDetector(
        model=torch.nn.Identity(),
        name=str(weights.path),
        names=weights.names,
        strides=weights.strides,
        anchors_px=torch.zeros(len(weights.strides), anchors, 2),
        device=torch.device("cpu"),
        precision="fp32",  # of what goes in
        chunk=chunk,
        run=run,
    )


def _in_its_shape(run: Run, exported: Exported) -> Run:
    """Give a file pictures in the batches that it takes. Raises ConfigError for pictures of another size."""
    size = exported.fixed_batch

    def run_parts(images: Images) -> Images:
        refuse_other_size(exported, (images.shape[2], images.shape[3]))
        if size is None or len(images) == size:
            return run(images)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = np.concatenate((part, np.zeros((size - len(part), *part.shape[1:]), np.float32)))
            parts.append(run(filled)[: len(part)])
        return np.concatenate(parts)

    return run_parts


def _precision(backend: str, asked: str) -> str:
    """Give what an engine computes in. Raises ConfigError."""
    allowed = tuple(PRECISION_HINTS) if backend == "openvino" else ("fp32",)
    if asked == "auto":
        return "fp32"
    if asked not in allowed:
        raise ConfigError(f"precision: {backend} computes in {' or '.join(allowed)} here, not {asked}")
    return asked


def onnx_of(checkpoint: Checkpoint) -> bytes:
    """Hand a checkpoint over in memory, for pictures of any size. Raises WeightsError, ConfigError."""
    network = Rows(network_to_hand_over(checkpoint)).eval()
    images = torch.zeros(1, 3, TRACED_SIDE, TRACED_SIDE)
    content: bytes = make_onnx(network, images, OPSET, dynamic=True).SerializeToString()
    return content
