"""start.py with networks that were handed over: the same results as with the .pt, and nothing of a hostile file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import start
from formats.agreement import sample_images
from formats.options import ExportOptions
from formats.writers import handed, write_onnx, write_openvino, write_torchscript
from make_task import TaskOptions, make_task
from models.checkpoint import read_checkpoint
from tests.labelled import labelled_folder

ROOT = Path(__file__).resolve().parent.parent
SIDE = 160


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> Path:
    """One /in tree, six pictures, and in models/ one network in all forms."""
    pictures = tmp_path_factory.mktemp("pictures")
    for path in coco_images[:6]:
        shutil.copy(path, pictures / path.name)
    settings = {"mining_algorithm": "entropy", "img_size": SIDE, "num_workers_per_gpu": 1, "letterbox": "square"}
    options = TaskOptions(weights=(yolov5n_pt,), settings=settings, placing="copy")
    in_dir = make_task(pictures, tmp_path_factory.mktemp("task") / "t", "mining+infer", options).in_dir
    models = in_dir / "models"
    checkpoint = read_checkpoint(yolov5n_pt)
    images = sample_images(coco_images, (SIDE, SIDE), 2)
    for stem, dynamic in (("fixed", False), ("best", True)):
        ours = handed(checkpoint, images, ExportOptions((SIDE, SIDE), opset=11, dynamic=dynamic))
        write_onnx(ours, models / stem)
    write_openvino(ours, models / "best")
    write_torchscript(ours, models / "best")
    return in_dir


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> Path:
    """The data.yaml of eight pictures with labels."""
    return labelled_folder(coco_images[:8], yolov5n_pt, tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def task(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "in", symlinks=True)
    return tmp_path


def edit(task: Path, **values: Any) -> None:
    path = task / "in/config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


def run(task: Path) -> int:
    shutil.rmtree(task / "out", ignore_errors=True)
    return start.main(["--in", str(task / "in"), "--out", str(task / "out")])


def error(task: Path) -> tuple[str, str]:
    fields = (task / "out/monitor.txt").read_text().splitlines()[0].split("\t")
    return fields[4], fields[5]


def results(task: Path) -> tuple[list[str], Any, Any]:
    """The mining order, its scores, and the number and places of the boxes of each picture."""
    rows = [row.split("\t") for row in (task / "out/result.tsv").read_text().splitlines()]
    found = json.loads((task / "out/infer-result.json").read_text())["detection"]
    boxes = {
        name: [[*one["box"].values(), 100 * one["score"]] for one in entry["boxes"]] for name, entry in found.items()
    }
    return [row[0] for row in rows], np.array([float(row[1]) for row in rows]), boxes


FORMS: list[dict[str, Any]] = [
    {"model_params_path": ["/in/models/best.onnx"]},
    {"model_params_path": ["/in/models/fixed.onnx"]},
    {"model_params_path": ["/in/models/best_openvino_model"]},
    {"model_params_path": ["/in/models/best_openvino_model/best.xml", "/in/models/best_openvino_model/best.bin"]},
    {"model_params_path": ["/in/models/best.onnx"], "backend": "openvino"},
    {"backend": "onnxruntime"},
    {"backend": "openvino"},
]


@pytest.mark.parametrize("algorithm", ["entropy", "aldd", "cald"])
def test_every_form_gives_the_pts_results(algorithm: str, task: Path) -> None:
    edit(task, mining_algorithm=algorithm, precision="fp32")
    assert run(task) == 0
    order, scores, boxes = results(task)
    shutil.copy(task / "in/config.yaml", task / "kept.yaml")
    forms = FORMS if algorithm == "entropy" else FORMS[:2]
    for form in forms:
        shutil.copy(task / "kept.yaml", task / "in/config.yaml")
        edit(task, **form)
        assert run(task) == 0, error(task)
        found_order, found_scores, found_boxes = results(task)
        assert found_order == order
        np.testing.assert_allclose(found_scores, scores, rtol=2e-3, atol=1e-6)
        if form is FORMS[1]:  # one size alone: inference's own letterbox, minimal, would need others
            continue
        assert {name: len(one) for name, one in found_boxes.items()} == {name: len(one) for name, one in boxes.items()}
        for name, rows in boxes.items():
            if rows:
                assert np.abs(np.array(found_boxes[name]) - rows).max() <= 1


@pytest.mark.parametrize(
    "activation", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("ReLU", "Hardswish")), "LeakyReLU"]
)
def test_an_activation_is_trained_handed_over_and_run(activation: str, labelled: Path, tmp_path: Path) -> None:
    """Two tasks: one trains and leaves best.onnx, the other infers with it and with best.pt, and finds the same."""
    settings = {"epochs": 1, "img_size": 96, "batch_size_per_gpu": 4, "num_workers_per_gpu": 1, "model": "yolov5n"}
    settings.update(activation=activation, args_options="--exist-ok --noautoanchor --noplots")
    make_task(labelled, tmp_path / "train", "train", TaskOptions(settings=settings))
    assert run(tmp_path / "train") == 0
    models = tmp_path / "train/out/models"
    assert activation in read_checkpoint(models / "best.pt").activation
    told = yaml.safe_load((models / "result.yaml").read_text())
    assert {"best.pt", "best.onnx"} <= set(told["model_stages"][told["best_stage_name"]]["files"])
    found = []
    for form in ("pt", "onnx"):
        # After one epoch from scratch all scores are low.
        settings = {"img_size": 96, "letterbox": "square", "conf_thres": 1e-4, "max_det": 20, "precision": "fp32"}
        folder = tmp_path / form
        make_task(
            labelled.parent / "images",
            folder,
            "infer",
            TaskOptions(weights=(models / f"best.{form}",), settings=settings),
        )
        assert run(folder) == 0
        entries = json.loads((folder / "out/infer-result.json").read_text())["detection"]
        found.append({name: sorted(box["score"] for box in entry["boxes"]) for name, entry in entries.items()})
    assert found[0].keys() == found[1].keys() and sum(map(len, found[0].values())) > 0
    for name, scores in found[0].items():
        np.testing.assert_allclose(found[1][name], scores, atol=1e-5)


def test_names_that_a_file_does_not_tell_are_the_tasks(task: Path) -> None:
    import onnx

    path = task / "in/models/best.onnx"
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    edit(task, **FORMS[0])
    assert run(task) == 0
    found = json.loads((task / "out/infer-result.json").read_text())["detection"]
    names = set(yaml.safe_load((task / "in/config.yaml").read_text())["class_names"])
    assert {one["class_name"] for entry in found.values() for one in entry["boxes"]} <= names
    edit(task, class_names=["one", "two"])
    assert run(task) == 1
    assert error(task)[0] == "300004" and "has 80 classes, the task has 2" in error(task)[1]


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a fixed file at another size": (
        {**FORMS[1], "img_size": 320}, "300001", "was exported for 160 x 160 px alone, not 320 x 320"
    ),
    "features of an onnx": ({**FORMS[0], "diversity": 1}, "300001", "gives no features; give a .pt"),
    "features by another engine": ({"backend": "onnxruntime", "dedup": True}, "300001", "gives no features"),
    "an onnx by torch": ({**FORMS[0], "backend": "torch"}, "300001", "backend: torch can't run"),
    "a folder by onnxruntime": ({**FORMS[2], "backend": "onnxruntime"}, "300001", "backend: onnxruntime can't run"),
    "half precision": ({**FORMS[0], "precision": "bf16"}, "300001", "onnxruntime computes in fp32"),
    "an unknown engine": ({"backend": "tensorrt"}, "300001", "need one of auto, torch, onnxruntime, openvino"),
    "torchscript": ({"model_params_path": ["/in/models/best.torchscript"]}, "300004", "names /in/models/best.torch"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_run_is_told(case: str, task: Path) -> None:
    values, code, says = WRONG[case]
    edit(task, **values)
    assert run(task) == 1
    assert error(task)[0] == code and says in error(task)[1]


def test_hostile_files_leave_no_trace(task: Path) -> None:
    """Weights in another file, a program under an ONNX name: refused, and nothing happened."""
    import onnx
    from onnx import TensorProto

    mark = task / "was-here"
    model = onnx.load(task / "in/models/best.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", str(mark)
    (task / "in/models/best.onnx").write_bytes(model.SerializeToString())
    edit(task, **FORMS[0])
    assert run(task) == 1
    assert error(task)[0] == "300004" and "keeps weights in another file" in error(task)[1]
    shutil.copy(task / "in/models/best.torchscript", task / "in/models/best.onnx")
    assert run(task) == 1
    assert error(task)[0] == "300004" and "is no ONNX file" in error(task)[1]
    assert not mark.exists()
    assert {path.name for path in (task / "out").iterdir()} == {"monitor.txt"}


@pytest.mark.parametrize("form", [FORMS[0], FORMS[2]])
def test_no_engine_leaves_anything_at_home(form: dict[str, Any], task: Path) -> None:
    """onnxruntime and OpenVINO would keep numbers for this machine there."""
    home = task / "home"
    home.mkdir()
    edit(task, **form)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    command = [sys.executable, str(ROOT / "start.py"), "--in", str(task / "in"), "--out", str(task / "out")]
    done = subprocess.run(command, env={**kept, "HOME": str(home)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
    assert "telemetry" not in done.stderr
