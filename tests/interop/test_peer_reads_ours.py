"""The files that we write, in the hands of the public peer: it validates and exports them, and gets what we get.

Slow, and skipped where the peer isn't made: `make interop` makes it and runs these.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peer import PEER, Value, peer_command, peer_environment
from models.checkpoint import read_checkpoint
from models.checkpoint_writer import SavedTraining, stripped, write_checkpoint, yaml_of
from models.decode import RawMaps
from models.detector import build_model
from models.resume import ResumeState
from models.yolo import DetectionModel
from tests.conftest import ROOT
from tests.labelled import labelled_folder
from tests.models.test_checkpoint_writer import OTHER_LAYERS, small

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PEER / "made").is_file(), reason="the peer is not made: make interop"),
]
SIDE, PICTURES = 160, 32


def run(command: list[str]) -> str:
    environment = {**peer_environment(), "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> Path:
    """The data.yaml of a folder of pictures that the peer may write into."""
    return labelled_folder(coco_images[:PICTURES], yolov5n_pt, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, yolov5n_pt: Path) -> Path:
    """A folder with last.pt, as a training leaves it between two epochs, and best.pt, all of the official weights."""
    checkpoint = read_checkpoint(yolov5n_pt)
    ema, model = build_model(checkpoint), build_model(checkpoint)
    model.train().requires_grad_(True)
    with torch.no_grad():  # the model's own weights are others: the EMA is what counts
        model.detect.m[0].get_parameter("weight").zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = optimizer.state_dict()
    tensors = {
        f"optimizer/{number}/momentum_buffer": entry["momentum_buffer"] for number, entry in state["state"].items()
    }
    tensors.update({f"model/{name}": tensor for name, tensor in model.state_dict().items()})
    saved = SavedTraining(model, ema, checkpoint.names, yaml_of(model.spec), 3, 0.4, 99, state, "2026-11-25T01:02:03",
                          {"lr0": 0.01}, resume=ResumeState(tensors, {"epoch": 3}))  # fmt: skip
    folder = tmp_path_factory.mktemp("weights")
    write_checkpoint(folder / "last.pt", saved)
    write_checkpoint(folder / "best.pt", stripped(saved))
    return folder


@pytest.fixture(scope="module")
def official(data: Path, yolov5n_pt: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return validated(yolov5n_pt, data, tmp_path_factory.mktemp("official"))


def validated(weights: Path, data: Path, out: Path) -> list[float]:
    """What the peer prints for all classes: precision, recall, mAP at 0.5, mAP."""
    options: dict[str, Value] = {"data": data, "img": SIDE, "batch_size": 16, "workers": 1}
    printed = run(peer_command("val", weights, options, out / "val"))
    line = re.findall(rf"\ball +{PICTURES} +\d+((?: +[\d.e-]+){{4}})", printed)
    assert line, printed[-1000:]
    return [float(figure) for figure in line[-1].split()]


@pytest.mark.parametrize("file", ["best.pt", "last.pt"])
def test_the_peer_validates_ours_as_the_official_file(
    file: str, ours: Path, data: Path, official: list[float], tmp_path: Path
) -> None:
    figures = validated(ours / file, data, tmp_path)
    assert figures == pytest.approx(official, abs=0.002)
    assert figures[3] > 0.1


def exported(weights: Path, folder: Path) -> Any:
    """The peer's TorchScript of a file of ours, which it writes beside a copy."""
    copy = shutil.copy(weights, folder / weights.name)
    run(peer_command("export", Path(copy), {"imgsz": [SIDE, SIDE], "include": ["torchscript"]}))
    load: Any = torch.jit.load  # untyped in torch
    return load(str(folder / f"{weights.stem}.torchscript"))


def rows_of(model: DetectionModel, images: torch.Tensor) -> torch.Tensor:
    """(B, R, 5 + nc) as YOLOv5's head gives them: input px and probabilities."""
    levels = [level.unflatten(1, (model.detect.na, -1)).permute(0, 3, 4, 1, 2) for level in model(images)]
    strides = torch.tensor(model.stride).view(-1, 1, 1)
    return RawMaps(levels, model.stride, model.detect.anchors * strides).rows()


def assert_exports_what_we_compute(weights: Path, folder: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        theirs = exported(weights, folder)(images)
        rows = rows_of(build_model(read_checkpoint(weights)), images)
    theirs = theirs[0] if isinstance(theirs, (tuple, list)) else theirs
    torch.testing.assert_close(theirs, rows, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("file", ["best.pt", "last.pt"])
def test_the_peer_exports_ours(file: str, ours: Path, tmp_path: Path) -> None:
    assert_exports_what_we_compute(ours / file, tmp_path)


@pytest.mark.parametrize("name", ["yolov5s-transformer", "yolov5s-ghost", "yolov3-tiny", "other layers"])
def test_the_peer_computes_every_kind_of_layer_of_ours(name: str, tmp_path: Path) -> None:
    model = small(OTHER_LAYERS, "LeakyReLU(0.2)") if name == "other layers" else small(ROOT / f"models/{name}.yaml")
    for module in model.modules():  # fresh norms would let an eps or a mean that is lost pass
        if isinstance(module, torch.nn.BatchNorm2d):
            module.get_buffer("running_mean").uniform_(-0.1, 0.1)
            module.get_buffer("running_var").uniform_(0.001, 0.5)
    classes = tuple(f"class {number}" for number in range(model.spec.classes))
    saved = SavedTraining(model, None, classes, yaml_of(model.spec), -1, None, None, None, "", {})
    write_checkpoint(tmp_path / "ours.pt", saved)
    (tmp_path / "export").mkdir()
    assert_exports_what_we_compute(tmp_path / "ours.pt", tmp_path / "export")
