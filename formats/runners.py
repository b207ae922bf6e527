"""What runs a handed-over network on the CPU: pictures (B, 3, H, W) in, rows (B, R, 5 + nc) out.

No torch, but for TorchScript. A runner is made of a file or its bytes, the precision to compute in (OpenVINO knows all
of PRECISION_HINTS, the others fp32 alone) and a number of threads.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Union

import numpy as np
import numpy.typing as npt

from utils.errors import ConfigError, DeviceMemoryError, WeightsError

Images = npt.NDArray[np.float32]  # (B, 3, H, W) RGB in 0..1
Rows = npt.NDArray[np.float32]  # (B, R, 5 + nc)
Run = Callable[[Images], Rows]
Content = Union[Path, bytes]  # of a file, or the file

PRECISION_HINTS = MappingProxyType({"fp32": "f32", "bf16": "bf16"})


def onnxruntime_runner(content: Content, precision: str, threads: int) -> Run:
    """Run ONNX by onnxruntime. Raises ConfigError where it isn't installed, WeightsError for what it refuses."""
    try:
        import onnxruntime as ort
    except ImportError as cause:
        raise ConfigError("backend: onnxruntime is not installed here: pip install onnxruntime") from cause
    failures = _onnxruntime_failures()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the others alone
    options.log_severity_level = 3
    given = content if isinstance(content, bytes) else str(content)
    try:
        session = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except failures as cause:
        if "alloc" in str(cause).lower():  # what is constant is computed here
            raise DeviceMemoryError(f"{_name(content)}: memory ran out in loading it") from cause
        raise WeightsError(f"{_name(content)}: onnxruntime refuses it: {_first_line(cause)}") from cause
    name = session.get_inputs()[0].name
    output = session.get_outputs()[0].name

    def run(images: Images) -> Rows:
        try:
            rows: Rows = session.run([output], {name: images})[0]
        except failures as cause:
            if "alloc" in str(cause).lower():
                raise DeviceMemoryError("memory ran out; use a smaller batch_size_per_gpu or img_size") from cause
            raise WeightsError(f"{_name(content)}: onnxruntime can't run it: {_first_line(cause)}") from cause
        return rows

    return run


def _onnxruntime_failures() -> tuple[type[Exception], ...]:
    """Give the exceptions of onnxruntime, which have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def openvino_runner(content: Content, precision: str, threads: int) -> Run:
    """Run ONNX, or an OpenVINO folder, by OpenVINO. Raises ConfigError where it isn't installed, WeightsError."""
    core: Any = openvino_core()
    hints = {
        "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        if isinstance(content, bytes):
            model = core.read_model(content, b"")
        elif content.is_dir():
            model = core.read_model(openvino_xml(content))
        else:
            model = core.read_model(content)
        compiled = core.compile_model(model, "CPU", hints)
    except RuntimeError as cause:
        raise WeightsError(f"{_name(content)}: OpenVINO refuses it: {_first_line(cause)}") from cause
    request = compiled.create_infer_request()

    def run(images: Images) -> Rows:
        try:
            results = request.infer({0: images}, share_inputs=True)
        except RuntimeError as cause:
            raise WeightsError(f"{_name(content)}: OpenVINO can't run it: {_first_line(cause)}") from cause
        return np.array(results[0])  # its own memory is used again

    return run


def openvino_core() -> Any:
    """Give OpenVINO's core, without telemetry. Raises ConfigError where it isn't installed."""
    import sys
    from types import ModuleType

    # The package asks for this one at import and would write to HOME; without it, it stays silent.
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = ModuleType("openvino_telemetry")
    try:
        import openvino
    except ImportError as cause:
        raise ConfigError("backend: openvino is not installed here: pip install openvino") from cause
    return openvino.Core()


def openvino_xml(folder: Path) -> Path:
    """Give the model's description in an OpenVINO folder. Raises WeightsError."""
    found = sorted(folder.glob("*.xml"))
    if len(found) != 1 or not found[0].with_suffix(".bin").is_file():
        raise WeightsError(f"{folder}: need one .xml and the .bin of its name, found {len(found)} .xml files")
    return found[0]


def torchscript_runner(content: Content, precision: str, threads: int) -> Run:
    """Run a TorchScript file, which is a program: only one that a user names by hand. Raises WeightsError."""
    import torch

    file = io.BytesIO(content) if isinstance(content, bytes) else os.fspath(content)
    try:
        script = torch.jit.load(file, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as cause:
        raise WeightsError(f"{_name(content)}: torch can't read it as TorchScript: {_first_line(cause)}") from cause

    def run(images: Images) -> Rows:
        try:
            with torch.inference_mode():
                found = script(torch.from_numpy(images))
        except RuntimeError as cause:
            raise WeightsError(f"{_name(content)}: its program fails: {_first_line(cause)}") from cause
        rows = found[0] if isinstance(found, (tuple, list)) else found
        return rows.float().numpy()  # type: ignore[no-any-return]

    return run


RUNNERS: Mapping[str, Callable[[Content, str, int], Run]] = MappingProxyType(
    {"onnxruntime": onnxruntime_runner, "openvino": openvino_runner, "torchscript": torchscript_runner}
)


def _name(content: Content) -> str:
    return "the network" if isinstance(content, bytes) else str(content)


def _first_line(cause: Exception) -> str:
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return (lines[-1] if lines else type(cause).__name__)[:200]
