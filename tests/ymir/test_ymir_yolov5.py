"""The named helpers, called as plug-ins call them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from tests.ymir.conftest import ENV, Task
from utils.errors import ConfigError, DatasetError, ExecutorError
from ymir.config import read_task
from ymir.index import training_index, validation_index
from ymir.ymir_yolov5 import (
    convert_ymir_to_yolov5,
    get_merged_config,
    get_weight_file,
    write_ymir_training_result,
)

Write = Callable[..., Task]
TRAINING: dict[str, Any] = {
    "run_training": True,
    "run_infer": False,
    "input": {
        **ENV["input"],
        "training_index_file": "/in/train-index.tsv",
        "val_index_file": "/in/val-index.tsv",
        "candidate_index_file": "",
    },
}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def result(task: Task) -> Any:
    return yaml.safe_load((task.out_dir / "models/result.yaml").read_text())


# get_merged_config


def test_merged_config_has_paths_as_text_and_every_default(write_task: Write) -> None:
    task = write_task(config={"epochs": "3", "own": {"a": 1}, "class_distribution_scores": "1.0,0.5"})
    cfg = get_merged_config(task.in_dir, task.out_dir)
    assert cfg.ymir.run_infer is True
    assert cfg.ymir.input.assets_dir == str(task.in_dir / "assets")
    assert cfg.ymir.input.training_index_file == ""
    assert cfg.ymir.output.root_dir == str(task.out_dir)
    assert (cfg.param.epochs, cfg.param.img_size, cfg.param.own.a) == (3, 640, 1)
    assert cfg.param.class_names == ["cat", "dog"]
    assert cfg.param.class_distribution_scores == "1.0,0.5"
    assert cfg.param.letterbox == "minimal"
    assert cfg.param.get("no_such_key", 7) == 7
    json.dumps(cfg)


def test_merged_config_knows_both_spellings(write_task: Write) -> None:
    task = write_task(config={"activate": "ReLU", "model_param_path": ["/in/models/a.pt"]})
    cfg = get_merged_config(str(task.in_dir), str(task.out_dir))
    assert cfg.param.activate == cfg.param.activation == "ReLU"
    assert cfg.param.model_params_path == cfg.param.model_param_path == [str(task.in_dir / "models/a.pt")]


def test_keys_that_are_pythons_own_do_no_harm(write_task: Write) -> None:
    task = write_task(config={"__class__": "x", "__init__": "y", "update": "z"})
    assert get_merged_config(task.in_dir, task.out_dir).param.epochs == 100


# convert_ymir_to_yolov5


def test_data_files_are_written_with_mapped_paths(write_task: Write) -> None:
    task = write_task(env=TRAINING)
    task.index(
        "/in/assets/a b.jpg\t/in/annotations/a.txt\r\n\n/in/assets/猫.jpg\t/in/annotations/b.txt".encode(),
        "train-index.tsv",
    )
    task.index(b"", "val-index.tsv")
    path = convert_ymir_to_yolov5(get_merged_config(task.in_dir, task.out_dir))
    assert path == str(task.out_dir / "data.yaml")
    assert yaml.safe_load(Path(path).read_text()) == {
        "path": str(task.out_dir),
        "train": "train.tsv",
        "val": "val.tsv",
        "test": "test.tsv",
        "nc": 2,
        "names": ["cat", "dog"],
    }
    root = task.in_dir
    assert (task.out_dir / "train.tsv").read_text(encoding="utf-8") == (
        f"{root}/assets/a b.jpg\t{root}/annotations/a.txt\n{root}/assets/猫.jpg\t{root}/annotations/b.txt\n"
    )
    assert (task.out_dir / "val.tsv").read_bytes() == b""
    assert (task.out_dir / "test.tsv").read_bytes() == b""


def test_data_files_can_go_elsewhere_and_unused_indices_are_empty(write_task: Write) -> None:
    task = write_task()
    path = convert_ymir_to_yolov5(get_merged_config(task.in_dir, task.out_dir), task.out_dir / "data")
    assert path == str(task.out_dir / "data/data.yaml")
    assert (task.out_dir / "data/train.tsv").read_bytes() == b""


def test_an_index_that_is_not_there_is_told(write_task: Write) -> None:
    task = write_task(env=TRAINING)
    with pytest.raises(DatasetError, match=r"train-index\.tsv: No such file"):
        convert_ymir_to_yolov5(get_merged_config(task.in_dir, task.out_dir))
    with pytest.raises(DatasetError, match=r"train-index\.tsv: No such file"):
        training_index(read_task(task.in_dir, task.out_dir))


def test_pairs_are_split_where_both_files_are_there(write_task: Write) -> None:
    task = write_task(env=TRAINING)
    touch(task.in_dir, "assets/a\tb.jpg", "annotations/a\tb.txt")
    lines = [
        b"/in/assets/a\tb.jpg\t/in/annotations/a\tb.txt",
        b"/in/assets/c.jpg\t/in/annotations/c.txt\textra",
        b"/in/assets/d.jpg",
        b"/in/assets/e.jpg\t",
        b"/in/assets/../../f.jpg\t/in/annotations/f.txt",
        b"/in/assets/g.jpg\t/in/annotations/../../g.txt",
        b"assets/h.jpg\tannotations/h.txt",
    ]
    task.index(b"\n".join(lines), "train-index.tsv")
    pairs = list(training_index(read_task(task.in_dir, task.out_dir)))
    names = [
        (pair.image.name, pair.annotation.name if pair.annotation else None, pair.refused is None) for pair in pairs
    ]
    assert names == [
        ("a\tb.jpg", "a\tb.txt", True),
        ("c.jpg", "c.txt\textra", True),
        ("d.jpg", None, True),
        ("e.jpg", None, True),
        ("f.jpg", "f.txt", False),
        ("g.jpg", "g.txt", False),
        ("h.jpg", "h.txt", True),
    ]
    cfg = get_merged_config(task.in_dir, task.out_dir)
    task.index(b"", "val-index.tsv")
    convert_ymir_to_yolov5(cfg)
    assert len((task.out_dir / "train.tsv").read_text().splitlines()) == 5


def test_an_unused_validation_index_holds_nothing_and_a_missing_training_index_is_an_error(write_task: Write) -> None:
    task = read_task(*(lambda dirs: (dirs.in_dir, dirs.out_dir))(write_task()))
    assert list(validation_index(task)) == []
    with pytest.raises(DatasetError, match="training_index_file: is empty"):
        training_index(task)


# get_weight_file


def test_weight_file_is_the_tasks_or_nothing(write_task: Write) -> None:
    task = write_task(config={"model_params_path": ["/in/models/s/last.pt", "s/best.pt"]})
    cfg = get_merged_config(task.in_dir, task.out_dir)
    assert get_weight_file(cfg) == ""
    touch(task.in_dir, "models/s/last.pt")
    assert get_weight_file(cfg) == str(task.in_dir / "models/s/last.pt")
    touch(task.in_dir, "models/s/best.pt")
    assert get_weight_file(cfg) == str(task.in_dir / "models/s/best.pt")


def test_weight_file_stays_inside_models_dir(write_task: Write) -> None:
    task = write_task(config={"model_params_path": ["../env.yaml"]})
    with pytest.raises(ConfigError, match="model_params_path"):
        get_weight_file(get_merged_config(task.in_dir, task.out_dir))


# write_ymir_training_result


def test_stages_are_added_and_replaced(write_task: Write) -> None:
    task = write_task(env=TRAINING)
    cfg = get_merged_config(task.in_dir, task.out_dir)
    touch(task.out_dir / "models", "a.pt", "b.pt", "best/c.pt")
    write_ymir_training_result(cfg, map50=0.25, files=["a.pt"], id="first")
    write_ymir_training_result(cfg, map50=0.5, files=[task.out_dir / "models/best/c.pt"], id="best")
    write_ymir_training_result(cfg, evaluation_result={"mAP": 0.3}, files=["a.pt", "b.pt"], id="first")
    stages = result(task)["model_stages"]
    assert {name: (entry["files"], entry["mAP"]) for name, entry in stages.items()} == {
        "best": (["c.pt"], 0.5),
        "first": (["a.pt", "b.pt"], 0.3),
    }
    assert result(task)["best_stage_name"] == "best"


def test_old_callers_pass_an_epoch_and_a_weight_file(write_task: Write) -> None:
    task = write_task(env=TRAINING)
    cfg = get_merged_config(task.in_dir, task.out_dir)
    touch(task.out_dir / "models", "epoch10.pt", "best.onnx")
    write_ymir_training_result(cfg, map50=0.25, epoch=10, weight_file=str(task.out_dir / "models/epoch10.pt"))
    write_ymir_training_result(cfg)
    stages = result(task)["model_stages"]
    assert stages["yolov5s_10"]["files"] == ["epoch10.pt"]
    assert stages["yolov5s_last_and_best"]["files"] == ["best.onnx", "epoch10.pt"]
    assert stages["yolov5s_last_and_best"]["mAP"] == 0.25


def test_a_number_as_name_and_more_files_by_pattern(write_task: Write) -> None:
    task = write_task(env=TRAINING, config={"ymir_saved_file_patterns": r".*\.txt, ^notes"})
    touch(task.out_dir / "models", "a.pt", "log.txt", "notes.md", "other.bin")
    write_ymir_training_result(
        get_merged_config(task.in_dir, task.out_dir), 0.5, ["a.pt"], "7", evaluate_config={"iou_thr": 0.6}
    )
    assert result(task)["model_stages"]["stage_7"]["files"] == ["a.pt", "log.txt", "notes.md"]
    assert result(task)["evaluate_config"] == {"iou_thr": 0.6}


def test_old_protocols_keep_the_best_model(write_task: Write) -> None:
    task = write_task(env={**TRAINING, "protocol_version": "0.9"})
    cfg = get_merged_config(task.in_dir, task.out_dir)
    touch(task.out_dir / "models", "a.pt", "b.pt")
    write_ymir_training_result(cfg, 0.5, ["a.pt"], "one")
    write_ymir_training_result(cfg, 0.25, ["b.pt"], "two")
    assert result(task) == {"model": ["a.pt"], "map": 0.5}


def test_a_percentage_is_refused(write_task: Write) -> None:
    task = write_task(env=TRAINING)
    touch(task.out_dir / "models", "a.pt")
    with pytest.raises(ExecutorError, match="need a number from 0 to 1"):
        write_ymir_training_result(get_merged_config(task.in_dir, task.out_dir), 56.8, ["a.pt"], "one")
