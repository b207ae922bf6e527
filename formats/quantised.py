"""int8: an ONNX file's convolutions quantised by pictures; all else stays fp32, or nothing would be found."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from formats.agreement import sample_images
from formats.onnx_file import INPUT, checked_bytes
from formats.options import INT8_OPSET, LEAST_CALIBRATION
from formats.runners import Images
from formats.writers import Handed, onnx_bytes
from utils.errors import ConfigError, ExecutorError
from utils.files import write_whole

LOGGER = logging.getLogger("export")

MOST_LOST = 0.05  # of mAP, below fp32
MOST_CALIBRATION = 300  # pictures


class _Pictures:
    """Gives a calibration its pictures one by one."""

    def __init__(self, paths: Sequence[Path], input_hw: tuple[int, int], batch: int) -> None:
        self._paths, self._input_hw, self._batch = paths, input_hw, batch
        self._images: Iterator[Images] = self._each()

    def _each(self) -> Iterator[Images]:
        for place in range(0, len(self._paths) - self._batch + 1, self._batch):
            yield sample_images(self._paths[place : place + self._batch], self._input_hw, self._batch)

    def get_next(self) -> Optional[dict[str, Any]]:
        """Give the next input; None: there are no more."""
        images = next(self._images, None)
        return None if images is None else {INPUT: np.ascontiguousarray(images)}


def write_int8(handed: Handed, stem: Path, pictures: Sequence[Path], mean_ap: Callable[[Path], float]) -> Path:
    """Write STEM-int8.onnx; gives its path.

    mean_ap: validates a file, 0..1. Raises ConfigError, ExecutorError; the latter also where it finds much less than
    STEM.onnx, and then there is no such file.
    """
    path = stem.with_name(f"{stem.name}-int8.onnx")
    if len(pictures) < LEAST_CALIBRATION:
        raise ConfigError(f"--int8: needs at least {LEAST_CALIBRATION} pictures to calibrate by, got {len(pictures)}")
    if handed.options.opset < INT8_OPSET:
        LOGGER.info("%s: opset %d, the least that can tell of int8 channel by channel", path, INT8_OPSET)
    options = replace(handed.options, opset=max(handed.options.opset, INT8_OPSET), simplify=False)
    with tempfile.TemporaryDirectory() as folder:
        made = _quantised(replace(handed, options=options), pictures[:MOST_CALIBRATION], Path(folder))
        content = _own_domain(made)
        before, after = mean_ap(stem.with_suffix(".onnx")), mean_ap(made)
    told = f"mAP {after:.4f}, fp32 {before:.4f}"
    if after < before - MOST_LOST:
        raise ExecutorError(f"{path}: is not kept, it finds too little: {told}; calibrate by other pictures")
    write_whole(path, content)
    LOGGER.info("%s: int8 convolutions, opset %d, %s", path, options.opset, told)
    return path


def _own_domain(path: Path) -> bytes:
    """Give a file's bytes without the domains that it imports and has no operator of. Raises ExecutorError."""
    import onnx

    model = onnx.load(path)
    used = {node.domain for node in model.graph.node} | {""}
    kept = [one for one in model.opset_import if one.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return checked_bytes(model)


def _quantised(handed: Handed, pictures: Sequence[Path], folder: Path) -> Path:
    import onnx

    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as cause:
        raise ConfigError("--int8: needs onnxruntime: pip install onnxruntime") from cause
    plain, prepared, made = (folder / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
    plain.write_bytes(onnx_bytes(handed))
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)  # which gives up on free sides
    convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
    quantize_static(
        prepared,
        made,
        _Pictures(pictures, handed.input_hw, handed.options.batch),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=convolutions[-len(handed.model.stride) :],  # the head's: they cost more mAP than time
        per_channel=True,
        reduce_range=True,  # seven bits of weights: without VNNI sums of products would overflow
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,  # x86 multiplies unsigned by signed
    )
    return made
