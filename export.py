"""YOLOv5's export command line: hands a network over to other engines, and proves each file by running it.

python export.py --weights best.pt --include onnx --simplify --dynamic
python export.py --weights best.pt --include onnx openvino --imgsz 640 --opset 13 --nms
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from formats.options import ELSEWHERE, LEAST_CALIBRATION, ExportCommand, parse_command
from utils.datasets import read_data_yaml, read_yolo_dataset
from utils.errors import ConfigError, ExecutorError
from utils.process import exit_code, leave, prepare_process

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; gives the exit code. The last line, on a failure, is its cause."""
    prepare_process("%(message)s")
    return exit_code(lambda: run(parse_command(argv)))


def run(command: ExportCommand) -> None:
    """Write each format of each weights file; one that fails costs only itself. Raises ExecutorError at the end."""
    from models.checkpoint import read_checkpoint

    checkpoints = [read_checkpoint(path) for path in command.weights]
    pictures = pictures_of(command.data)
    if command.options.int8 and len(pictures) < LEAST_CALIBRATION:
        told = "none is given" if command.data is None else f"{command.data} has {len(pictures)}"
        raise ConfigError(f"--int8: needs --data with at least {LEAST_CALIBRATION} pictures to calibrate by, {told}")
    failures: list[ExecutorError] = []
    for checkpoint in checkpoints:
        failures += write_all(checkpoint, command, pictures)
    if failures:
        raise failures[0] if len(failures) == 1 else ExecutorError("; ".join(map(str, failures)))


def pictures_of(data: Optional[Path]) -> list[Path]:
    """Give the pictures to compare with: of train, or of val where there is no train. Raises DatasetError."""
    if data is None:
        return []
    split = "train" if read_data_yaml(data).get("train") else "val"
    return list(read_yolo_dataset(data, split).images)


def write_all(checkpoint: Checkpoint, command: ExportCommand, pictures: Sequence[Path]) -> list[ExecutorError]:
    """Write one weights file's formats, beside it; gives what failed. Raises WeightsError, ImageError."""
    from formats.agreement import sample_images
    from formats.writers import WRITERS, handed, whole_input
    from models.detector import set_threads

    input_hw = whole_input(checkpoint, command.options.input_hw)
    ours = handed(checkpoint, sample_images(pictures, input_hw), command.options, set_threads(0))
    stem = checkpoint.path.with_suffix("")
    failures: list[ExecutorError] = []
    for name, write in WRITERS.items():
        if name in command.options.include:
            try:
                tell(write(ours, stem))
                if name == "onnx" and command.options.int8 and command.data:
                    from formats.quantised import write_int8

                    tell([write_int8(ours, stem, pictures, partial(mean_ap, command.data, max(input_hw)))])
            except OSError as cause:
                failures.append(ExecutorError(f"{name}: {cause.filename or stem.parent}: {cause.strerror or cause}"))
            except ExecutorError as error:
                failures.append(error)
    for name in command.options.include:
        if name in ELSEWHERE:
            how = ELSEWHERE[name].format(onnx=stem.with_suffix(".onnx"), stem=stem)
            failures.append(ConfigError(f"{name}: isn't written here, it needs {how}"))
    return failures


def mean_ap(data: Path, side: int, weights: Path) -> float:
    """Validate a file on a data set; gives mAP 0.5:0.95 in 0..1. Raises ExecutorError."""
    from utils.settings import LoaderSettings, PictureSettings
    from val import SaveSettings, ValSettings, validate

    loader = LoaderSettings(side, batch_size=8, workers=8, pictures=PictureSettings(turn=True))
    split = "val" if read_data_yaml(data).get("val") else "train"
    settings = ValSettings(data, weights, split, loader, is_rect=False)
    return validate(settings, SaveSettings(plots=False)).evaluation.metrics.map


def tell(paths: Sequence[Path]) -> None:
    """Show what was written, a path a line."""
    sys.stdout.write("".join(f"{path}\n" for path in paths))


if __name__ == "__main__":
    leave(main())
