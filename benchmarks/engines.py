"""The engines against each other: pictures a second as a ratio to torch in fp32, and what each finds on coco128.

python -m benchmarks.engines [--pictures 16] [--rounds 5] [--no-map]
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from utils.process import prepare_process

prepare_process()

from benchmarks.inference import forward, refuse  # noqa: E402
from benchmarks.rounds import ROUNDS, SHARED, interleave, machine, ratio  # noqa: E402
from benchmarks.training import make_data  # noqa: E402
from formats.agreement import sample_images  # noqa: E402
from formats.engines import make_engine  # noqa: E402
from formats.exported import Weights, open_weights  # noqa: E402
from formats.options import ExportOptions  # noqa: E402
from formats.quantised import write_int8  # noqa: E402
from formats.writers import handed, write_onnx  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from models.detector import Detector, cpu_has_bf16  # noqa: E402
from utils.batches import Batch, BatchReader, Placing  # noqa: E402
from utils.settings import EngineSettings, LoaderSettings, PictureSettings  # noqa: E402
from val import SaveSettings, ValSettings, validate  # noqa: E402
from ymir.index import Candidate  # noqa: E402

SIDE = 640


def engines_of(folder: Path) -> dict[str, tuple[Weights, EngineSettings]]:
    """Write what is to be run; give each engine's weights and settings."""
    pt = read_checkpoint(SHARED / "weights/yolov5n.pt")
    pictures = sorted((SHARED / "data/coco128/images/train2017").glob("*.jpg"))
    options = ExportOptions((SIDE, SIDE), opset=13, dynamic=True)
    ours = handed(pt, sample_images(pictures, (SIDE, SIDE), 2), options, threads=2)
    (onnx_file,) = write_onnx(ours, folder / "best")
    int8_file = write_int8(ours, folder / "best", pictures, lambda path: 0.0)  # its mAP is measured below
    fp32 = EngineSettings(precision="fp32")
    found: dict[str, tuple[Weights, EngineSettings]] = {
        "torch fp32": (pt, fp32),
        "onnxruntime fp32": (open_weights(onnx_file), fp32),
        "onnxruntime int8": (open_weights(int8_file), fp32),
    }
    precisions = ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]
    if cpu_has_bf16():
        found["torch bf16"] = (pt, replace(fp32, precision="bf16"))
    if importlib.util.find_spec("openvino"):
        for precision in precisions:
            found[f"openvino {precision}"] = (pt, EngineSettings(precision=precision, backend="openvino"))
    return found


def mean_ap(data: Path, weights: Path) -> float:
    """Validate on coco128."""
    loader = LoaderSettings(SIDE, batch_size=16, workers=2, pictures=PictureSettings(turn=True))
    return validate(ValSettings(data, weights, loader=loader), SaveSettings(plots=False)).evaluation.metrics.map


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-map", action="store_true")
    given = parser.parse_args()
    images = sorted((SHARED / "data/coco128/images/train2017").glob("*.jpg"))[: given.pictures]
    items = [Candidate(number, path.name, path) for number, path in enumerate(images)]
    with tempfile.TemporaryDirectory() as folder:
        engines = engines_of(Path(folder))
        print(f"yolov5n, {SIDE} px, {len(items)} pictures, decoded beforehand; {machine()}")
        for size in (1, 16):
            settings = LoaderSettings(SIDE, "square", size)
            batches: Sequence[Batch[Any]] = list(BatchReader(items, Placing("square", SIDE, 32), settings, refuse))
            made: dict[str, Detector] = {
                name: make_engine(weights, engine, size, cpu_chunk=size) for name, (weights, engine) in engines.items()
            }
            variants: dict[str, Callable[[], object]] = {
                name: functools.partial(forward, detector, batches) for name, detector in made.items()
            }
            times = interleave(variants, given.rounds)
            for name, seconds in times.items():
                print(f"  batch {size:>2}, {name:<18} {ratio(times['torch fp32'], seconds)} x torch fp32's pictures/s")
        if not given.no_map:
            data = make_data(Path(folder) / "data")
            files = {name: weights.path for name, (weights, _) in engines.items() if name != "torch bf16"}
            for name, path in files.items():
                print(f"  mAP on coco128, {name}: {mean_ap(data, path):.4f}")


if __name__ == "__main__":
    main()
