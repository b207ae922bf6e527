"""One command makes a ready /in of whatever pictures a person has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image, ImageOps

from formats.agreement import sample_images
from formats.options import ExportOptions
from formats.writers import handed, write_onnx
from make_task import TaskFolder, TaskOptions, main, make_task
from models.checkpoint import read_checkpoint
from utils.errors import ConfigError, DatasetError, ExecutorError, WeightsError
from utils.labels import READERS, Labels, LabelSource, PictureFile, yolo_label_path
from utils.shapes import write_shapes
from utils.sources import stored_boxes
from ymir.config import read_task

ROOT = Path(__file__).resolve().parent.parent


def save_picture(path: Path, width: int = 40, height: int = 20, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    return path


def index_of(made: TaskFolder, name: str) -> list[list[str]]:
    text = (made.in_dir / f"{name}-index.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]


def on_disk(made: TaskFolder, container_path: str) -> Path:
    assert container_path.startswith("/in/")
    return made.in_dir / container_path[len("/in/") :]


def config_of(made: TaskFolder) -> Mapping[str, Any]:
    content: Mapping[str, Any] = yaml.safe_load((made.in_dir / "config.yaml").read_text(encoding="utf-8"))
    return content


def labels_in(made: TaskFolder, split: str, names: list[str], label_format: str) -> list[Labels]:
    source = LabelSource(names)
    read = []
    for image, annotation in index_of(made, split):
        path = on_disk(made, image)
        with Image.open(path) as picture:
            file = PictureFile(Path(image), (picture.height, picture.width))
        read.append(READERS[label_format](on_disk(made, annotation), file, source))
    return read


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with four pictures: two of one base name, one with a blank and Chinese in its name."""
    folder = tmp_path / "my pictures"
    for name in ("a/1.jpg", "b/1.jpg", "b/1.png", "街 角/猫.JPG"):
        save_picture(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_becomes_a_mining_task_that_our_own_reader_takes(
    pictures: Path, tmp_path: Path, yolov5n_pt: Path
) -> None:
    options = TaskOptions(weights=(yolov5n_pt,), settings={"mining_algorithm": "entropy", "task_id": "t1"})
    made = make_task(pictures, tmp_path / "task", "mining", options)
    lines = [image for (image,) in index_of(made, "candidate")]
    names = ["a/1.jpg", "b/1.jpg", "b/1.png", "街 角/猫.JPG"]
    assert lines == [f"/in/assets/{name}" for name in names]
    for name, line in zip(names, lines):
        assert on_disk(made, line).read_bytes() == (pictures / name).read_bytes()
    task = read_task(made.in_dir, made.out_dir)
    assert (task.env.run_training, task.env.run_mining, task.env.run_infer) == (False, True, False)
    assert task.env.task_id == "t1"
    assert task.params.mining_algorithm == "entropy"
    assert len(task.params.class_names) == 80
    assert task.env.input.candidate_index_file == made.in_dir / "candidate-index.tsv"
    assert config_of(made)["model_params_path"] == ["/in/models/yolov5_best/yolov5n.pt"]
    assert (made.in_dir / "models/yolov5_best/yolov5n.pt").read_bytes() == yolov5n_pt.read_bytes()
    assert made.out_dir.is_dir()


def test_mining_and_infer_at_once(pictures: Path, tmp_path: Path) -> None:
    options = TaskOptions(class_names=("cat",), settings={"mining_algorithm": "random"}, limit=2)
    made = make_task(pictures, tmp_path / "task", "mining+infer", options)
    task = read_task(made.in_dir, made.out_dir)
    assert task.env.run_mining
    assert task.env.run_infer
    assert len(index_of(made, "candidate")) == made.counts["candidate"] == 2
    assert task.params.class_names == ("cat",)


@pytest.mark.parametrize("label_format", ["ark", "voc", "coco"])
def test_coco128_becomes_a_training_task_with_the_same_boxes(shared: Path, tmp_path: Path, label_format: str) -> None:
    data_yaml = shared / "data/coco128/coco128.yaml"
    names = list(yaml.safe_load(data_yaml.read_text())["names"].values())
    made = make_task(data_yaml, tmp_path / "task", "train", TaskOptions(label_format=label_format, limit=20))
    images = sorted((shared / "data/coco128/images/train2017").glob("*.jpg"))[:20]
    assert [Path(image).name for image, _ in index_of(made, "train")] == [image.name for image in images]
    assert index_of(made, "val") == index_of(made, "train")  # as coco128.yaml says
    assert config_of(made)["export_format"] == f"{label_format}:raw"
    assert config_of(made)["class_names"] == names
    assert read_task(made.in_dir, made.out_dir).env.run_training
    source = LabelSource(names)
    for image, got in zip(images, labels_in(made, "train", names, label_format)):
        with Image.open(image) as picture:
            hw = (picture.height, picture.width)
        expected = READERS["yolo"](yolo_label_path(image), PictureFile(image, hw), source)
        np.testing.assert_array_equal(got.class_ids, expected.class_ids)
        # Whole pixels in ark and voc; a box thinner than one becomes one pixel wide.
        np.testing.assert_allclose(got.boxes_px, expected.boxes_px, rtol=0, atol=1e-9 if label_format == "coco" else 1)


def write_voc_set(folder: Path) -> Path:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>1</xmin><ymin>2</ymin>"
        f"<xmax>9</xmax><ymax>{9 + number}</ymax></bndbox></object>"
        for number, name in enumerate(("dog", "cat", "Dog"))
    )
    (folder / "Annotations").mkdir(parents=True)
    for number in range(10):
        save_picture(folder / f"JPEGImages/{number}.jpg")
        (folder / f"Annotations/{number}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


def test_a_voc_set_is_divided_by_the_seed(tmp_path: Path) -> None:
    folder = write_voc_set(tmp_path / "set")
    options = TaskOptions(val_share=0.3, class_names=("cat", "dog"))
    made = make_task(folder, tmp_path / "one", "train", options)
    again = make_task(folder, tmp_path / "two", "train", options)
    other = make_task(folder, tmp_path / "three", "train", TaskOptions(val_share=0.3, seed=1))
    train, val = index_of(made, "train"), index_of(made, "val")
    assert (len(train), len(val)) == (7, 3)
    assert sorted(image for image, _ in train + val) == [f"/in/assets/{number}.jpg" for number in range(10)]
    assert index_of(again, "val") == val != index_of(other, "val")
    first = labels_in(made, "train", ["cat", "dog"], "ark")[0]
    assert first.class_ids.tolist() == [1, 0, 1]
    assert first.boxes_px.tolist() == [[1, 2, 10, 10], [1, 2, 10, 11], [1, 2, 10, 12]]
    assert config_of(other)["class_names"] == ["Dog", "cat", "dog"]


def test_what_cannot_be_used_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_voc_set(tmp_path / "set")
    (folder / "JPEGImages/0.jpg").write_bytes(b"no picture at all")
    (folder / "Annotations/1.xml").write_text("<annotation>")
    (folder / "Annotations/2.xml").unlink()
    made = make_task(folder, tmp_path / "task", "train", TaskOptions(val_share=0, class_names=("cat",)))
    assert [image for image, _ in index_of(made, "train")] == [f"/in/assets/{number}.jpg" for number in range(3, 10)]
    assert index_of(made, "val") == []
    left_out, unknown = made.notes
    assert left_out.startswith("pictures left out of train: 3; first: ")
    assert "0.jpg" in left_out
    assert unknown.startswith("boxes dropped, not of the task's classes: 14; first: ")


def test_a_coco_file_with_its_pictures_elsewhere(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "y/1.jpg"):
        save_picture(tmp_path / "pictures" / name)
    images = [{"id": number, "file_name": f"{folder}/1.jpg"} for number, folder in enumerate("xyz")]
    annotations = [{"image_id": number, "category_id": 5, "bbox": [number, 0, 5.5, 5]} for number in (1, 0)]
    categories = [{"id": 5, "name": "猫"}]
    path = tmp_path / "labels/instances.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    options = TaskOptions(label_format="coco", val_share=0, images_dir=tmp_path / "pictures")
    made = make_task(path, tmp_path / "task", "train", options)
    assert [image for image, _ in index_of(made, "train")] == ["/in/assets/x/1.jpg", "/in/assets/y/1.jpg"]
    assert [labels.boxes_px.tolist() for labels in labels_in(made, "train", ["猫"], "coco")] == [
        [[0, 0, 5.5, 5]],
        [[1, 0, 6.5, 5]],
    ]
    assert "left out of train: 1; first: " in made.notes[0]
    with pytest.raises(DatasetError, match="--images"):
        make_task(path, tmp_path / "other", "train", TaskOptions())


@pytest.mark.parametrize("task", ["train", "mining"])
def test_a_coco_file_names_no_picture_outside_its_folder(tmp_path: Path, task: str) -> None:
    outside = save_picture(tmp_path / "outside/3.jpg")
    save_picture(tmp_path / "set/1.jpg")
    names = ["1.jpg", "../outside/3.jpg", str(outside)]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    path = tmp_path / "set/coco.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 5, "name": "a"}]}))
    options = TaskOptions(val_share=0, settings={"mining_algorithm": "random"})
    made = make_task(path, tmp_path / "task", task, options)
    assert [path.name for path in (made.in_dir / "assets").rglob("*")] == ["1.jpg"]
    assert ": 2; first: " in made.notes[0]
    assert "lies outside" in made.notes[0]


def test_two_pictures_of_one_stem_get_two_annotations(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png"):
        save_picture(tmp_path / "set/images" / name)
    labels = tmp_path / "set/labels/1.txt"
    labels.parent.mkdir()
    labels.write_text("0 .5 .5 1 1\n")
    (tmp_path / "set/data.yaml").write_text("{train: images, val: images, names: [a, b]}")
    made = make_task(tmp_path / "set", tmp_path / "task", "train", TaskOptions())
    assert [line[1] for line in index_of(made, "train")] == ["/in/annotations/1.txt", "/in/annotations/1.png.txt"]
    assert [len(labels) for labels in labels_in(made, "train", ["a", "b"], "ark")] == [1, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_a_turned_picture_come_out_in_stored_pixels(tmp_path: Path, orientation: int) -> None:
    """A white patch is stored in black, the picture turned by pillow, the patch found: that is the upright box."""
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[3:8, 10:25] = 255
    path = tmp_path / "set/images/1.png"
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(path, exif=exif)
    with Image.open(path) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture))
    rows, columns = np.nonzero(upright[..., 0])
    x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    height, width = upright.shape[:2]
    box = np.array([[x1, y1, x2, y2]], float)
    assert stored_boxes(box, (height, width), orientation).tolist() == [[10, 3, 25, 8]]
    (tmp_path / "set/labels").mkdir()
    line = f"0 {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}\n"
    (tmp_path / "set/labels/1.txt").write_text(line)
    (tmp_path / "set/data.yaml").write_text("{train: images, val: images, names: [a]}")
    made = make_task(tmp_path / "set", tmp_path / "task", "train")
    assert (made.in_dir / "annotations/1.txt").read_text() == "0, 10, 3, 24, 7, -1, 0\n"


def test_an_old_protocol_has_flat_models_and_relative_paths(pictures: Path, tmp_path: Path, yolov5n_pt: Path) -> None:
    made = make_task(pictures, tmp_path / "task", "infer", TaskOptions(weights=(yolov5n_pt,), protocol="0.0.1"))
    env = yaml.safe_load((made.in_dir / "env.yaml").read_text())
    assert env["input"]["candidate_index_file"] == "candidate-index.tsv"
    assert (made.in_dir / "models/yolov5n.pt").is_file()
    assert config_of(made)["model_params_path"] == ["yolov5n.pt"]
    task = read_task(made.in_dir, made.out_dir)
    assert task.env.is_old_protocol
    assert task.env.output.infer_result_file == made.out_dir / "infer-result.json"


def test_pictures_are_linked_or_copied(pictures: Path, tmp_path: Path) -> None:
    settings = {"mining_algorithm": "random"}
    found = {}
    for placing in ("auto", "copy", "link"):
        options = TaskOptions(class_names=("a",), settings=settings, placing=placing)
        path = make_task(pictures, tmp_path / placing, "mining", options).in_dir / "assets/a/1.jpg"
        assert path.read_bytes() == (pictures / "a/1.jpg").read_bytes()
        found[placing] = (path.is_symlink(), path.samefile(pictures / "a/1.jpg"))
    assert found == {"auto": (False, True), "copy": (False, False), "link": (True, True)}


def test_a_linked_picture_is_placed_as_a_file(pictures: Path, tmp_path: Path) -> None:
    (pictures / "link.jpg").symlink_to("a/1.jpg")
    (pictures / "nowhere.jpg").symlink_to("gone.jpg")
    os.mkfifo(pictures / "pipe.jpg")
    options = TaskOptions(class_names=("a",), settings={"mining_algorithm": "random"})
    made = make_task(pictures, tmp_path / "task", "mining", options)
    assert not (made.in_dir / "assets/link.jpg").is_symlink()
    assert len(index_of(made, "candidate")) == 5
    assert "pictures left out of candidate: 2" in made.notes[0]


def test_bad_input_is_an_error_and_leaves_nothing_behind(pictures: Path, tmp_path: Path, yolov5n_pt: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"x" * 100)
    twice = tmp_path / "twice/yolov5n.pt"
    twice.parent.mkdir()
    shutil.copyfile(yolov5n_pt, twice)
    cases: list[tuple[Path, str, TaskOptions, type[ExecutorError], str]] = [
        (tmp_path / "gone", "infer", TaskOptions(), DatasetError, "gone: no such file or folder"),
        (broken, "infer", TaskOptions(), DatasetError, "need a picture, a folder"),
        (pictures, "infer", TaskOptions(class_names=("a",)), WeightsError, "--weights: missing"),
        (pictures, "infer", TaskOptions(weights=(broken,)), WeightsError, "broken.pt"),
        (pictures, "infer", TaskOptions(weights=(tmp_path / "no.pt",)), WeightsError, "no.pt: no such file"),
        (pictures, "infer", TaskOptions(weights=(yolov5n_pt, twice)), WeightsError, "a second weights file"),
        (pictures, "train", TaskOptions(), DatasetError, "has no labels to train with"),
        (pictures, "dance", TaskOptions(), ConfigError, "task: got 'dance'"),
        (tmp_path / "empty", "infer", TaskOptions(weights=(yolov5n_pt,)), DatasetError, "holds no pictures"),
        (pictures, "mining", TaskOptions(settings={"mining_algorithm": "random"}), ConfigError, "class_names"),
    ]
    for source, task, options, kind, says in cases:
        with pytest.raises(kind) as error:
            make_task(source, tmp_path / "task", task, options)
        assert says in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "task").exists()


@pytest.mark.parametrize(
    "options",
    [{"limit": -1}, {"val_share": 1.0}, {"val_share": float("nan")}, {"protocol": "new"}, {"label_format": "yolo"}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TaskOptions(**options)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("mining_algoritm", "mining_algorithm"), ("Epochs", "epochs"), ("batch_size", "batch_size_per_gpu")],
)
def test_a_misspelt_key_is_refused_with_the_nearest_one(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"--set {key}: there is no such key; the nearest one is {nearest}"):
        TaskOptions(settings={key: 1})


def test_keys_of_nobody_are_kept_and_said_and_other_spellings_are_known(pictures: Path, tmp_path: Path) -> None:
    settings = {"mining_algorithm": "random", "my_plugin": 1, "activate": "ReLU"}
    made = make_task(pictures, tmp_path / "task", "mining", TaskOptions(class_names=("a",), settings=settings))
    assert made.notes == ("keys that no task reads: my_plugin",)
    assert config_of(made)["my_plugin"] == 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, yolov5n_pt: Path) -> Path:
    """An .onnx of ours."""
    options = ExportOptions((64, 64), opset=11)
    ours = handed(read_checkpoint(yolov5n_pt), sample_images([], (64, 64), 2), options)
    (path,) = write_onnx(ours, tmp_path_factory.mktemp("exported") / "best")
    return path


def test_an_onnx_file_tells_its_classes(pictures: Path, tmp_path: Path, exported: Path) -> None:
    made = make_task(pictures, tmp_path / "task", "infer", TaskOptions(weights=(exported,)))
    assert config_of(made)["class_names"][:2] == ["person", "bicycle"] and made.notes == ()


def test_classes_that_weights_do_not_tell_are_the_sources_or_have_to_be_given(
    pictures: Path, tmp_path: Path, exported: Path
) -> None:
    model = onnx.load(exported)
    del model.metadata_props[:]
    weights = tmp_path / "best.onnx"
    onnx.save(model, weights)
    options = TaskOptions(weights=(weights,))
    with pytest.raises(ConfigError, match=r"best\.onnx doesn't tell them, .*; give --class-names a,b"):
        make_task(pictures, tmp_path / "task", "infer", options)
    (pictures / "data.yaml").write_text("{path: ., train: a, val: a, nc: 1, names: [cat]}")
    made = make_task(pictures / "data.yaml", tmp_path / "task", "infer", options)
    assert config_of(made)["class_names"] == ["cat"]
    assert made.notes == ("class_names: best.onnx doesn't tell them",)


def test_what_is_no_weights_file_is_told_of_as_what_it_is(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [a]")
    (tmp_path / "weights").write_text("")
    cases = {"data.yaml": "is a .yaml file, no weights", "weights": "is a file without a", "my pictures": "is a folder"}
    for name, says in cases.items():
        for task in ("infer", "mining"):
            with pytest.raises(WeightsError) as error:
                make_task(pictures, tmp_path / "task", task, TaskOptions(weights=(tmp_path / name,)))
            assert says in str(error.value) and f"--weights {tmp_path / name}: " in str(error.value)
        assert not (tmp_path / "task").exists()


def test_what_a_training_left_for_mining_is_taken_along(pictures: Path, tmp_path: Path, yolov5n_pt: Path) -> None:
    best = tmp_path / "models/best.pt"
    best.parent.mkdir()
    shutil.copyfile(yolov5n_pt, best)
    stats = tmp_path / "models/mining_stats.safetensors"
    stats.write_bytes(b"of the training")
    for task, stage, protocol in (("mining", "yolov5_best/", "1.1.0"), ("mining+infer", "", "1.0.0")):
        made = make_task(pictures, tmp_path / task, task, TaskOptions(weights=(best,), protocol=protocol))
        placed = made.in_dir / f"models/{stage}mining_stats.safetensors"
        assert placed.read_bytes() == b"of the training" and placed.with_name("best.pt").is_file()
        assert made.notes == (f"{stats}: taken along, mining looks for it beside the weights",)
        assert config_of(made)["model_params_path"] == [f"/in/models/{stage}best.pt" if stage else "best.pt"]
    made = make_task(pictures, tmp_path / "infer", "infer", TaskOptions(weights=(best,)))
    assert made.notes == () and not list(made.in_dir.rglob("*.safetensors"))
    named = make_task(pictures, tmp_path / "named", "mining", TaskOptions(weights=(best, stats)))
    assert named.notes == () and len(list(named.in_dir.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("gpu_id", "options"),
    [("", ""), ("cpu", ""), (0, " --gpus all"), ("0,1", " --gpus all --shm-size 16g"), ([1], " --gpus all")],
)
def test_the_command_of_an_image_has_what_the_gpus_need(
    pictures: Path, tmp_path: Path, gpu_id: Any, options: str
) -> None:
    settings = {"mining_algorithm": "random", "gpu_id": gpu_id}
    made = make_task(pictures, tmp_path / "task", "mining", TaskOptions(class_names=("a",), settings=settings))
    assert made.commands[1].endswith(f" --user {os.getuid()}:{os.getgid()}{options} IMAGE")


def test_a_value_that_no_task_takes_is_refused_at_once(pictures: Path, tmp_path: Path) -> None:
    for settings, says in (({"gpu_id": "zero"}, "gpu_id: got 'zero'"), ({"img_size": 0}, "img_size: got 0")):
        options = TaskOptions(class_names=("a",), settings={"mining_algorithm": "random", **settings})
        with pytest.raises(ConfigError, match=says):
            make_task(pictures, tmp_path / "task", "mining", options)


def test_weights_that_are_none_are_told_of_before_a_task_is(pictures: Path, tmp_path: Path) -> None:
    weights = tmp_path / "best.onnx"
    weights.write_bytes(b"no graph")
    with pytest.raises(WeightsError, match=r"best\.onnx: is no ONNX file"):
        make_task(pictures, tmp_path / "task", "infer", TaskOptions(weights=(weights,)))


def test_the_classes_are_those_of_the_weights_that_the_task_will_load(
    pictures: Path, tmp_path: Path, yolov5n_pt: Path
) -> None:
    best = tmp_path / "best.pt"
    shutil.copyfile(yolov5n_pt, best)
    (tmp_path / "a.pt").write_bytes(b"broken")
    made = make_task(pictures, tmp_path / "task", "infer", TaskOptions(weights=(tmp_path / "a.pt", best)))
    assert len(config_of(made)["class_names"]) == 80


def test_a_training_task_says_what_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_shapes(tmp_path / "data", 3, side=96)
    assert main([str(data), "--to", str(tmp_path / "task"), "--task", "train", "--set", "epochs=7"]) == 0
    told = "trains with model=yolov5s, epochs=7, img_size=640, batch_size_per_gpu=16, gpu_id= (--set changes them)"
    assert told in capsys.readouterr().out.splitlines()


def test_a_task_that_is_there_is_not_touched(pictures: Path, tmp_path: Path) -> None:
    options = TaskOptions(class_names=("a",), settings={"mining_algorithm": "random"})
    made = make_task(pictures, tmp_path / "task", "mining", options)
    before = sorted(made.in_dir.rglob("*"))
    with pytest.raises(ConfigError, match="is there already"):
        make_task(pictures, tmp_path / "task", "mining", options)
    assert sorted(made.in_dir.rglob("*")) == before


def test_the_command_line_prints_what_to_run(pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "make_task.py", str(pictures), "--to", str(tmp_path / "a task"), "--task", "mining"]
    settings = ["--set", "mining_algorithm=random", "gpu_id=0,1", "img_size=320", "args_options=a: b # c"]
    done = subprocess.run(
        [*command, "--class-names", "cat, 狗", *settings], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"python start.py --in '{tmp_path}/a task/in' --out '{tmp_path}/a task/out'" in done.stdout
    assert f"-v '{tmp_path}/a task/in:/in:ro' -v '{tmp_path}/a task/out:/out' --user" in done.stdout
    config = yaml.safe_load((tmp_path / "a task/in/config.yaml").read_text(encoding="utf-8"))
    assert config["class_names"] == ["cat", "狗"]
    assert (config["gpu_id"], config["img_size"], config["args_options"]) == ("0,1", 320, "a: b # c")


def test_a_failing_command_line_says_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--to", str(tmp_path / "task"), "--task", "infer"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {tmp_path}/none: no such file or folder\n"
    assert main([str(tmp_path), "--to", str(tmp_path / "task"), "--task", "infer", "--set", "novalue"]) == 1
    assert capsys.readouterr().err == "error: --set: got 'novalue', need KEY=VALUE\n"
