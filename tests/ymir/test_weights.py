"""Which weights file is taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Optional

import pytest

from tests.ymir.conftest import Task
from utils.errors import ConfigError
from ymir.config import read_task
from ymir.weights import choose_weights, place_weights, task_weights

Write = Callable[..., Task]


def make(folder: Path, name: str, at: int = 1000) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (at, at))
    return path


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ({"best.pt": 1, "last.pt": 9, "best.onnx": 9}, "best.pt"),
        ({"last.pt": 1, "epoch_3.PT": 2, "best.onnx": 9}, "epoch_3.PT"),
        ({"a.pt": 5, "b.pt": 5}, "b.pt"),
        ({"best.onnx": 1, "other.onnx": 9}, "best.onnx"),
        ({"a.onnx": 1, "b.onnx": 2, "notes.yaml": 9}, "b.onnx"),
        ({"best_openvino_model/best.xml": 1, "best_openvino_model/best.bin": 1}, "best_openvino_model"),
        ({"best_openvino_model/best.xml": 9, "a.onnx": 1}, "a.onnx"),
        ({"epoch_1/best.pt": 1, "epoch_2/best.pt": 2}, "epoch_2/best.pt"),
        ({"notes.txt": 1, "best.torchscript": 1}, None),
        ({}, None),
    ],
)
def test_the_order_of_choice(tmp_path: Path, files: dict[str, int], chosen: Optional[str]) -> None:
    paths = [make(tmp_path, name, at) for name, at in files.items()]
    expected = tmp_path / chosen if chosen else None
    assert choose_weights(paths) == expected
    assert choose_weights(paths[::-1]) == expected


def test_an_openvino_folder_itself_may_be_given(tmp_path: Path) -> None:
    make(tmp_path, "best_openvino_model/best.xml")
    assert choose_weights([tmp_path / "best_openvino_model", tmp_path]) == tmp_path / "best_openvino_model"


def test_files_that_are_not_there_and_pipes_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "best.pt")
    last = make(tmp_path, "last.pt")
    assert choose_weights([tmp_path / "best.pt", tmp_path / "gone.pt", tmp_path / ("x" * 300), last]) == last


@pytest.mark.parametrize(
    "text", ["/in/models/stage/best.pt", "stage/best.pt", "models/stage/best.pt", "/in/models/./a/../stage/best.pt"]
)
def test_paths_are_mapped_and_found_in_stage_folders(write_task: Write, text: str) -> None:
    task = write_task(config={"model_params_path": [text]})
    path = make(task.in_dir, "models/stage/best.pt")
    assert task_weights(read_task(task.in_dir, task.out_dir)) == path


@pytest.mark.parametrize(
    "text",
    ["/in/secret.pt", "../secret.pt", "/in/models/../secret.pt", "/etc/passwd", "a/../../secret.pt", "/in/models"],
)
def test_paths_outside_models_dir_are_refused(write_task: Write, text: str) -> None:
    task = write_task(config={"model_params_path": [text]})
    make(task.in_dir, "secret.pt")
    with pytest.raises(ConfigError, match=r"^model_params_path: got '.*, need a file in .*models \(config.yaml\)$"):
        task_weights(read_task(task.in_dir, task.out_dir))


def test_training_reads_its_own_key(write_task: Write) -> None:
    keys = {"pretrained_model_params": ["a.pt"], "model_params_path": ["b.pt"]}
    task = write_task(env={"run_training": True, "run_infer": False}, config=keys)
    first = make(task.in_dir, "models/a.pt")
    make(task.in_dir, "models/b.pt")
    assert task_weights(read_task(task.in_dir, task.out_dir)) == first


def test_no_weights_are_none(write_task: Write) -> None:
    task = write_task()
    assert task_weights(read_task(task.in_dir, task.out_dir)) is None


def test_a_name_too_long_for_the_system_is_no_crash(tmp_path: Path) -> None:
    assert choose_weights(place_weights(["x" * 5000 + ".pt"], tmp_path)) is None
