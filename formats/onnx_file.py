"""A network -> ONNX: the opset that was asked for, YOLOv5's names and metadata, checked before it is kept."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.errors import ConfigError, ExecutorError

if TYPE_CHECKING:
    import onnx

LOGGER = logging.getLogger("export")

INPUT = "images"
ATTENTION_OPSET = 14
SLIM_FAILS = (ImportError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
BATCH, HEIGHT, WIDTH, ROWS = "batch", "height", "width", "anchors"
# By name: which axes of an input or output are free in a dynamic file.
ANY_SIZE: Mapping[str, Mapping[int, str]] = MappingProxyType({INPUT: {0: BATCH, 2: HEIGHT, 3: WIDTH}})


def make_onnx(
    network: nn.Module,
    images: Tensor,
    opset: int,
    outputs: Sequence[str] = ("output0",),
    *,
    dynamic: bool = False,
    training: bool = False,
) -> onnx.ModelProto:
    """Trace a network. images: (B, 3, H, W), of the shape that a fixed file has.

    Raises ConfigError where this torch can't write the opset.
    """
    import onnx

    if opset < ATTENTION_OPSET and any(isinstance(one, nn.MultiheadAttention) for one in network.modules()):
        # Told beforehand: where torch fails, it prints the whole graph.
        raise ConfigError(f"opset {opset}: has no attention, which this network needs; use {ATTENTION_OPSET} or later")
    axes: dict[str, dict[int, str]] = {}
    if dynamic:
        axes = {INPUT: dict(ANY_SIZE[INPUT])}
        for name in outputs:
            axes[name] = {0: BATCH, 1: ROWS} if len(outputs) == 1 else {0: BATCH, 2: HEIGHT, 3: WIDTH}
    options: dict[str, Any] = {"dynamo": False} if _knows_dynamo() else {}
    mode = torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL
    file: Any = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of a tracer that sees Python numbers: they are meant to be constants
            network(images)  # twice, as a first pass may still prepare something
            torch.onnx.export(
                network,
                (images,),
                file,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_axes=axes or None,
                training=mode,
                do_constant_folding=not training,
                **options,
            )
    except _exporter_failures() as cause:
        first = str(cause).strip().partition("\n")[0][:200]
        raise ConfigError(
            f"opset {opset}: this torch ({torch.__version__}) can't write the network in it: {first}; "
            f"what it writes is 7 to {newest_opset()}"
        ) from cause
    model = onnx.load_model_from_string(file.getvalue())
    written = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if written != opset:
        raise ExecutorError(f"opset {opset} was asked for, {written} was written")
    return model


def newest_opset() -> int:
    """Give the newest opset that torch writes by tracing a network, whichever torch is installed."""
    from torch.onnx import _constants

    # The second is torch 1.12's. torch doesn't say it publicly.
    names = ("ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET", "onnx_main_opset", "ONNX_MAX_OPSET")
    return next(int(getattr(_constants, name)) for name in names if hasattr(_constants, name))


def _exporter_failures() -> tuple[type[Exception], ...]:
    """Give what torch's exporter raises: torch 1.12 has no base for its own errors."""
    errors: Any = getattr(torch.onnx, "errors", None)
    own: Any = getattr(torch.onnx, "CheckerError", ValueError) if errors is None else errors.OnnxExporterError
    return ValueError, RuntimeError, own


def _knows_dynamo() -> bool:
    import inspect

    return "dynamo" in inspect.signature(torch.onnx.export).parameters


def set_metadata(model: onnx.ModelProto, about: Mapping[str, Any]) -> None:
    """Write what a file says of itself, each value as Python's text of it, which is YOLOv5's form."""
    for key, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)


def slimmed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make a graph smaller; as it is where onnxslim is not there or fails, with a line in the log."""
    try:
        import onnxslim

        before = len(model.graph.node)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slim: onnx.ModelProto = onnxslim.slim(model)
    except SLIM_FAILS as cause:  # a library's failure costs nothing here
        LOGGER.warning("not simplified: %s", str(cause).partition("\n")[0][:200] or type(cause).__name__)
        return model
    LOGGER.info("simplified: %d nodes, of %d", len(slim.graph.node), before)
    return slim


def checked_bytes(model: onnx.ModelProto) -> bytes:
    """Check a model by onnx's own rules, and give its bytes. Raises ExecutorError."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as cause:
        raise ExecutorError(
            f"the ONNX graph that was made is wrong: {str(cause).partition(chr(10))[0][:200]}"
        ) from cause
    content: bytes = model.SerializeToString()
    return content
