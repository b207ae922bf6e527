"""What is fuzzed: each reader of hostile bytes, which gives a value or one of our own errors and nothing else."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from models.archive import opened
from models.checkpoint import read_checkpoint
from utils.errors import DatasetError, ExecutorError
from utils.hyp import read_hyp
from utils.labels import LabelSource, PictureFile, read_ark, read_coco, read_voc, read_yolo
from utils.picture_headers import PictureError, read_header, read_orientation
from utils.safe_yaml import parse_yaml
from utils.settings import PictureSettings
from utils.stats import read_stats
from ymir.config import read_env, read_task

EXPECTED = (ExecutorError, PictureError)
NAMES = ("person", "dog", "人")
HW = (48, 64)

Target = Callable[[bytes, Path], Any]  # bytes, and a folder that is the target's own


def written(content: bytes, folder: Path, name: str) -> Path:
    """Put bytes into a file."""
    path = folder / name
    path.write_bytes(content)
    return path


def fuzz_pickle(content: bytes, folder: Path) -> None:
    """The unpickler and what takes a checkpoint apart: in an honest zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", b"\0" * 64)
        archive.writestr("archive/version", b"3\n")
    read_checkpoint(written(packed.getvalue(), folder, "x.pt"))


def fuzz_zip(content: bytes, folder: Path) -> None:
    """The zip reader, and the first look at a legacy file."""
    path = written(content, folder, "x.pt")
    with opened(path):
        pass
    read_checkpoint(path)


def fuzz_annotations(content: bytes, folder: Path) -> None:
    """The first byte picks the format."""
    reader, name = [
        (read_ark, "x.txt"), (read_voc, "x.xml"), (read_coco, "coco-annotations.json"), (read_yolo, "x.txt"),
    ][content[0] % 4 if content else 0]  # fmt: skip
    found = reader(written(content[1:], folder, name), PictureFile(folder / "x.jpg", HW), LabelSource(NAMES))
    assert all(0 <= class_id < len(NAMES) for class_id in found.class_ids)
    assert not len(found) or (found.boxes_px.min() >= 0 and found.boxes_px.max() <= max(HW))


def fuzz_yaml(content: bytes, folder: Path) -> None:
    """Safe YAML by itself, and as hyperparameters."""
    parse_yaml(content, "x.yaml")
    read_hyp(written(content, folder, "hyp.yaml"))


def fuzz_config(content: bytes, folder: Path) -> None:
    """config.yaml beside a good env.yaml, or, by the first byte, the other way round."""
    good = {"env.yaml": b"task_id: t\nrun_infer: true\n", "config.yaml": b"class_names: [a, b]\n"}
    name = ("config.yaml", "env.yaml")[content[0] % 2 if content else 0]
    for each, text in {**good, name: content[1:]}.items():
        written(text, folder, each)
    read_task(folder, folder / "out", read_env(folder, folder / "out"))


def fuzz_onnx(content: bytes, folder: Path) -> None:
    """What is checked of an .onnx before an engine sees it."""
    from formats import exported

    path = folder / "x.onnx"
    model = exported._parsed(path, content)
    exported._check_graph(path, model)
    exported._input_shape(path, model)
    exported._told_by({one.key: one.value for one in model.metadata_props[:100]}, path)


def fuzz_header(content: bytes, folder: Path) -> None:
    """Picture headers and their EXIF marks."""
    file = io.BytesIO(content)
    header = read_header(file)
    assert read_orientation(file, header.kind) in range(1, 9)


def fuzz_picture(content: bytes, folder: Path) -> None:
    """The whole way of a picture, with at most a million pixels."""
    from utils.pictures import read_picture

    read_picture(written(content, folder, "x"), PictureSettings(max_pixels=1_000_000))


def fuzz_stats(content: bytes, folder: Path) -> None:
    """mining_stats.safetensors."""
    read_stats(written(content, folder, "x.safetensors"))


def fuzz_records(content: bytes, folder: Path) -> None:
    """A mining task's record file, and its records."""
    from mining.records import decode
    from utils.records import RecordFile

    with RecordFile(written(content, folder, "x.records"), "d") as file:
        for _, record in file:
            try:
                decode(record)
            except ValueError as error:
                raise DatasetError("is no record") from error


TARGETS: Mapping[str, Target] = {
    "pickle": fuzz_pickle,
    "zip": fuzz_zip,
    "annotations": fuzz_annotations,
    "yaml": fuzz_yaml,
    "config": fuzz_config,
    "onnx": fuzz_onnx,
    "header": fuzz_header,
    "picture": fuzz_picture,
    "stats": fuzz_stats,
    "records": fuzz_records,
}
