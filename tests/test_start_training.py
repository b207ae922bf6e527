"""start.py's training from outside: what a task leaves in /out, and everything that can be wrong with one."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import yaml

from make_task import TaskOptions, make_task
from models.checkpoint import read_checkpoint
from tests.attacks.pickles import ATTACKS
from tests.conftest import ROOT
from tests.test_start import YAML_BOMB, Change, assert_told, config, edit, monitor, remove, run, run_process, write
from tests.training.started import watching_lines
from training.job import Checkpointed
from training.task import StageWriter
from utils.stats import read_stats

SIDE = 96
QUICK = "--exist-ok --noautoanchor --noplots"
NAMES_CJK = ["人", "汽车", "犬"]
# SPEC section 4, and nothing more in the root.
FOLDERS = {"models", "tensorboard"}
TREE = FOLDERS | {"data.yaml", "train.tsv", "val.tsv", "test.tsv", "train.cache", "val.cache", "monitor.txt"}


@pytest.fixture(scope="session")
def training_template(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> Path:
    """One /in tree for all tests here, to be copied: eight pictures to train on, four of them to validate on."""
    folder = tmp_path_factory.mktemp("set")
    for kind, end in (("train", 8), ("val", 4)):
        for part in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for image in coco_images[:end]:
            shutil.copy(image, folder / kind / "images")
            shutil.copy(image.parents[2] / "labels/train2017" / f"{image.stem}.txt", folder / kind / "labels")
    names = list(read_checkpoint(yolov5n_pt).names)
    (folder / "data.yaml").write_text(yaml.safe_dump({"train": "train/images", "val": "val/images", "names": names}))
    settings = {"epochs": 1, "img_size": SIDE, "batch_size_per_gpu": 4, "num_workers_per_gpu": 2, "args_options": QUICK}
    options = TaskOptions(weights=(yolov5n_pt,), settings=settings, placing="copy")
    return make_task(folder / "data.yaml", tmp_path_factory.mktemp("task") / "t", "train", options).in_dir


@pytest.fixture
def task(training_template: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the tree as `in`."""
    shutil.copytree(training_template, tmp_path / "in", symlinks=True)
    return tmp_path


def result(task: Path) -> Any:
    return yaml.safe_load((task / "out/models/result.yaml").read_text())


def lines(task: Path, name: str = "train") -> list[str]:
    return (task / f"in/{name}-index.tsv").read_text().splitlines()


def annotation(in_dir: Path, place: int = 0) -> Path:
    return sorted((in_dir / "annotations/train").rglob("*.txt"))[place]


def assert_stages_whole(task: Path, content: Any) -> None:
    """Every stage's files are there, and the best one's mAP is the model's (SPEC section 4)."""
    models = task / "out/models"
    for name, stage in content["model_stages"].items():
        assert stage["stage_name"] == name and 0 <= stage["mAP"] <= 1 and isinstance(stage["timestamp"], int)
        assert stage["files"]
        for file in stage["files"]:
            assert (models / name / file).is_file() or (models / file).is_file(), file
    assert content["mAP"] == content["model_stages"][content["best_stage_name"]]["mAP"]
    assert content["mAP"] == max(stage["mAP"] for stage in content["model_stages"].values())
    assert content["evaluate_config"] == {"iou_thr": 0.5, "conf_thr": 0.005}


def at_each_epoch(look: Callable[[int], None]) -> AbstractContextManager[None]:
    """Call `look` with the number of each epoch while it is told: the files are then those of the epoch before."""

    def note(line: str) -> None:
        found = re.match(r"epoch (\d+) of", line)
        if found:
            look(int(found[1]))

    return watching_lines(note)


# ---- what a good task leaves -----------------------------------------------------------------------------------------


def test_the_tree_and_the_stages(task: Path) -> None:
    options = "--noautoanchor --cache disk --exist-ok"
    edit(
        task / "in/config.yaml", epochs=2, save_best_only="False", save_period=1, args_options=options,
        ymir_saved_file_patterns=r"^last\.pt$, .*\.txt",
    )  # fmt: skip
    shown = task / "elsewhere"  # the platform's: a link, with a log that points nowhere
    shown.mkdir()
    (task / "out").mkdir()
    (task / "out/tensorboard").symlink_to(shown)
    (shown / "executor.log").symlink_to("/nowhere/executor.log")
    seen: list[Any] = []

    def look(epoch: int) -> None:
        if epoch == 2:
            seen.append(result(task))
            assert_stages_whole(task, seen[-1])
            assert (task / "out/pictures.cache").is_dir()

    logged: list[str] = []
    with watching_lines(logged.append), at_each_epoch(look):
        assert run(task) == 0
    assert monitor(task)[2:] == ["1.0", "2"]
    assert {path.name for path in (task / "out").iterdir()} == TREE
    assert [list(content["model_stages"]) for content in seen] == [["epoch_1", "yolov5_best"]]
    content = result(task)
    assert_stages_whole(task, content)
    (last,) = (line for line in logged if line.startswith("training: 2 epochs; mAP50 "))
    assert f"mAP {content['mAP']:.4f} at the best one (result.yaml), " in last and " of best.pt, " in last
    table = next(line.split() for line in reversed(logged) if line.split()[:1] == ["all"])
    table_map50, table_map = map(float, table[-2:])  # of best.pt as it is on the disk: another figure
    map50, mean_ap = map(float, re.findall(r"([\d.]+) and ([\d.]+) of best\.pt", last)[0])
    assert (map50, mean_ap) == pytest.approx((table_map50, table_map), rel=0.006)  # it shows three digits
    assert set(content["model_stages"]) == {"epoch_1", "epoch_2", "yolov5_best"}
    assert set(content["model_stages"]["yolov5_best"]["files"]) == {
        "best.pt", "best.onnx", "last.pt", "mining_stats.safetensors",
    }  # fmt: skip
    assert set(content["model_stages"]["epoch_2"]["files"]) == {
        "epoch2.pt", "epoch2.onnx", "mining_stats.safetensors",
    }  # fmt: skip
    models = {str(path.relative_to(task / "out/models")) for path in (task / "out/models").rglob("*")}
    assert models == {
        "best.pt", "best.onnx", "last.pt", "result.yaml", "mining_stats.safetensors", "epoch_1", "epoch_1/epoch1.pt",
        "epoch_1/epoch1.onnx", "epoch_2", "epoch_2/epoch2.pt", "epoch_2/epoch2.onnx",
    }  # fmt: skip
    assert (task / "out/tensorboard").is_symlink() and (shown / "executor.log").is_symlink()
    left = {path.name for path in shown.iterdir()}
    assert left >= {"results.csv", "results.png", "train_batch0.jpg", "train_batch1.jpg", "train_batch2.jpg"}
    assert any(name.startswith("events.out.tfevents.") for name in left)
    told = yaml.safe_load((task / "out/data.yaml").read_text())
    assert told["nc"] == 80 and told["names"][0] == "person"
    assert len((task / "out/train.tsv").read_text().splitlines()) == 8
    stats = read_stats(task / "out/models/mining_stats.safetensors")
    assert stats.boxes_per_class.sum() > 0 and len(stats.features) == 8


def test_only_the_best_stage_with_an_old_protocol(task: Path) -> None:
    content = yaml.safe_load((task / "in/env.yaml").read_text())
    content.pop("protocol_version")
    content.pop("manifest_file", None)
    content["input"] = {
        "root_dir": "/in", "training_index_file": "train-index.tsv", "val_index_file": "val-index.tsv",
        "config_file": "config.yaml",
    }  # fmt: skip
    content["output"] = {"root_dir": "/out"}
    (task / "in/env.yaml").write_text(yaml.safe_dump(content))
    edit(task / "in/config.yaml", epochs=2)
    assert run(task) == 0
    told = result(task)
    assert sorted(told) == ["map", "model"] and 0 < told["map"] <= 1
    assert told["model"] == ["best.pt", "mining_stats.safetensors", "best.onnx"]
    assert {path.name for path in (task / "out").iterdir()} == TREE


def test_other_classes_in_voc_files_of_chinese_names(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for path in (task / "in/annotations").rglob("*.txt"):
        boxes = [line.split(",") for line in path.read_text().splitlines()]
        objects = "".join(
            f"<object><name>{NAMES_CJK[int(row[0]) % 3]}</name><bndbox><xmin>{row[1]}</xmin><ymin>{row[2]}</ymin>"
            f"<xmax>{row[3]}</xmax><ymax>{row[4]}</ymax></bndbox></object>"
            for row in boxes
        )
        path.with_suffix(".xml").write_text(f"<annotation>{objects}</annotation>", encoding="utf-8")
        path.unlink()
    for name in ("train", "val"):
        index = task / f"in/{name}-index.tsv"
        index.write_text(index.read_text().replace(".txt", ".xml"))
    edit(task / "in/config.yaml", class_names=NAMES_CJK, export_format="voc:raw", args_options="--noautoanchor")
    assert run(task) == 0
    best = read_checkpoint(task / "out/models/best.pt")
    assert list(best.names) == NAMES_CJK and best.nc == 3
    assert "start anew" in caplog.text and "3 classes" in caplog.text
    assert "8 pictures" in caplog.text
    assert yaml.safe_load((task / "out/data.yaml").read_text())["names"] == NAMES_CJK
    assert (task / "out/tensorboard/confusion_matrix.png").stat().st_size > 0


def test_without_pictures_to_validate_on_it_trains_and_says_so(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    (task / "in/val-index.tsv").write_text("\n")
    assert run(task) == 0
    assert "no picture to validate on" in caplog.text
    content = result(task)
    assert content["mAP"] == 0 and "best.pt" in content["model_stages"]["yolov5_best"]["files"]


def test_what_is_never_validated_in_between_is_handed_over_all_the_same(task: Path) -> None:
    """A task that is killed in its last epoch keeps the weights of the one before."""
    edit(task / "in/config.yaml", epochs=3, args_options=f"{QUICK} --noval")
    seen: list[Any] = []

    def look(epoch: int) -> None:
        if epoch > 1:
            seen.append(result(task))
            assert_stages_whole(task, seen[-1])

    with at_each_epoch(look):
        assert run(task) == 0
    assert [content["mAP"] for content in seen] == [0, 0] and result(task)["mAP"] > 0
    assert all(content["model_stages"]["yolov5_best"]["files"] == ["best.pt"] for content in seen)


def test_a_search_leaves_its_best_weights(task: Path) -> None:
    edit(task / "in/config.yaml", args_options=f"{QUICK} --evolve 1")
    assert run(task) == 0
    assert monitor(task)[2:] == ["1.0", "2"]
    assert_stages_whole(task, result(task))
    assert {path.name for path in (task / "out").iterdir()} == TREE
    assert {"evolve.csv", "hyp_evolve.yaml", "evolve.png"} <= {p.name for p in (task / "out/tensorboard").iterdir()}


@pytest.mark.parametrize("name", ["models", "data.yaml"])
def test_an_out_that_cannot_be_written_is_told_before_torch(
    name: str, task: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "models":  # a file where a folder is to be
        (task / "out").mkdir()
        (task / "out/models").touch()
    else:  # and the other way round
        (task / "out/data.yaml").mkdir(parents=True)
    assert run(task) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error 160004: ") and str(task / "out") in last and "make room" in last
    assert "defect" not in last and monitor(task)[3:5] == ["4", "160004"]


def test_an_old_model_that_cannot_be_removed_is_told(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (task / "out/models/best.onnx").mkdir(parents=True)
    assert run(task) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error 160004: ") and "models/best.onnx" in last and "defect" not in last


def test_a_search_that_cannot_begin_says_so_and_its_drawing_is_no_matter(
    task: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(task / "in/config.yaml", args_options=f"{QUICK} --evolve 1")
    (task / "out/models/best.pt").mkdir(parents=True)
    (task / "out/tensorboard/evolve.png").mkdir(parents=True)
    assert run(task) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error 160004: ") and "models/best.pt" in last and "defect" not in last
    (task / "out/models/best.pt").rmdir()
    assert run(task) == 0
    assert "evolve.png" in caplog.text and "can't be written" in caplog.text
    assert_stages_whole(task, result(task))


def test_eleven_stages_at_most(tmp_path: Path) -> None:
    writer = StageWriter(tmp_path / "result.yaml", tmp_path, "", is_old_protocol=False)
    (tmp_path / "best.pt").write_bytes(b"x")
    for epoch in range(20):
        file = tmp_path / f"epoch_{epoch + 1}" / f"epoch{epoch + 1}.pt"
        file.parent.mkdir()
        file.write_bytes(b"x")
        writer(Checkpointed(epoch, 0.5, 0.6, True, file, 0.01 * epoch, epoch == 19))
        stages = yaml.safe_load((tmp_path / "result.yaml").read_text())["model_stages"]
        assert len(stages) == min(epoch + 2, 11)
        assert sorted(path.name for path in tmp_path.glob("epoch_*")) == sorted(set(stages) - {"yolov5_best"})
    assert set(stages) == {"yolov5_best", *(f"epoch_{number}" for number in range(11, 21))}


def test_as_an_ordinary_user_with_a_read_only_input(task: Path) -> None:
    """uid 1000, HOME=/, an /in that can't be written, no network: as the platform runs it; and as a process."""
    (task / "out").mkdir(mode=0o777)
    (task / "out").chmod(0o777)
    in_dir = task / "in"
    script = (
        f"mount --bind {in_dir} {in_dir} && mount -o remount,ro,bind {in_dir} && ! touch {in_dir}/x 2>/dev/null && "
        f"exec unshare --user --map-user=1000 --map-group=1000 {sys.executable} {ROOT}/start.py "
        f"--in {in_dir} --out {task}/out"
    )
    command = ["unshare", "--mount", "--net", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*command, "unshare --user true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody leave its network or become another user")
    edit(in_dir / "config.yaml", args_options=f"{QUICK} --cache disk")
    done = subprocess.run([*command, script], capture_output=True, text=True, env={**os.environ, "HOME": "/"})
    assert done.returncode == 0, done.stderr
    assert monitor(task)[2:] == ["1.0", "2"]
    assert_stages_whole(task, result(task))
    assert "\r" not in done.stderr and "Traceback" not in done.stderr


# ---- what is wrong with a picture or a box: counted and named, and the task ends well --------------------------------


def spoil_boxes_and_pictures(in_dir: Path) -> tuple[str, ...]:
    """Spoil boxes, entries and pictures of every kind; gives patterns of what has to be said of them."""
    first, second = annotation(in_dir), annotation(in_dir, 1)
    with first.open("a") as file:
        file.write("0, 5000, 5000, 6000, 6000, 1, 0\n0, nan, 1, 5, 5, 1, 0\n99, 1, 1, 50, 50, 1, 0\n0, 1, 2\n")
    with second.open("a") as file:
        file.write("-1, 1, 1, 50, 50\n0.5, 1, 1, 50, 50\nwords, here, are, five, of\n0, -10, -10, 40, 40, 1, 0\n")
    gone = annotation(in_dir, 2)
    gone.unlink()
    rows = lines(in_dir.parent)
    picture = in_dir / rows[3].split("\t")[0].removeprefix("/in/")
    content = picture.read_bytes()
    picture.write_bytes(content[: len(content) // 2])
    other = in_dir / lines(in_dir.parent, "val")[1].split("\t")[0].removeprefix("/in/")
    content = other.read_bytes()
    other.write_bytes(content[: content.index(b"\xff\xda") + 4])  # the size stands there, not one row of pixels
    (in_dir / "train-index.tsv").write_text(
        "\n".join(["/in/assets/none.jpg\t/in/annotations/none.txt", "/in/../x.jpg\t/in/annotations/x.txt", *rows])
        + "\n"
    )
    return (
        rf"train: +1  boxes dropped, nothing of them inside their picture; first: \S*{first.name} line",
        rf"train: +1  boxes dropped, a coordinate is NaN or infinite; first: \S*{first.name} line",
        rf"train: +3  boxes dropped, not of the task's classes; first: \S*{first.name} line",
        rf"train: +2  entries dropped, malformed; first: \S*{first.name} line \d+: 3 fields",
        rf"train: +1  boxes clipped, partly outside their picture; first: \S*{second.name} line",
        r"train: +3  pictures left out, unreadable; .*none\.jpg.*leads out.*" + re.escape(gone.name),
        rf"1 training pictures are damaged and used as far as they go: \S*{picture.name}",
        rf"1 validation pictures can't be read and are left out: \S*{other.name}",
    )


def test_bad_boxes_and_pictures_are_counted_and_named(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    expected = spoil_boxes_and_pictures(task / "in")
    assert run(task) == 0
    said = caplog.text
    for words in expected:
        assert re.search(words, said), f"{words}\n{said}"
    assert said.count("validation pictures") == 1
    assert "words, here" not in said
    assert result(task)["mAP"] >= 0


def test_a_wrong_annotation_format_is_found_by_itself_where_none_is_told(task: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    edit(task / "in/config.yaml", export_format=None, epochs=1)
    assert run(task) == 0
    assert "8 pictures" in caplog.text


# ---- what is wrong with a task as a whole ----------------------------------------------------------------------------


def options(text: str) -> Change:
    return config(args_options=f"{QUICK} {text}")


def empty_boxes(in_dir: Path) -> None:
    for path in (in_dir / "annotations").rglob("*.txt"):
        path.write_text("")


def no_annotations(in_dir: Path) -> None:
    shutil.rmtree(in_dir / "annotations")


def no_pictures(in_dir: Path) -> None:
    for path in (in_dir / "assets").rglob("*.jpg"):
        path.write_text("words")


def weights_of(in_dir: Path) -> Path:
    return next((in_dir / "models").rglob("*.pt"))


def hostile_weights(in_dir: Path) -> None:
    attack = next(one for one in ATTACKS if one.name.startswith("calls os"))
    weights_of(in_dir).write_bytes(attack.content("touch /tmp/ymir-was-here"))


def onnx_weights(in_dir: Path) -> None:
    weights_of(in_dir).rename(weights_of(in_dir).with_name("best.onnx"))
    edit(in_dir / "config.yaml", pretrained_model_params=["/in/models/yolov5_best/best.onnx"])


def broken_hyp(in_dir: Path) -> None:
    (in_dir / "h.yaml").write_text("lr0: fast\n")
    options("--hyp /in/h.yaml")(in_dir)


def xml_bombs(in_dir: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;">]><annotation>&y;</annotation>'
    for path in (in_dir / "annotations").rglob("*.txt"):
        path.with_suffix(".xml").write_text(bomb)
    for index in in_dir.glob("*-index.tsv"):
        index.write_text(index.read_text().replace(".txt", ".xml"))
    edit(in_dir / "config.yaml", export_format="voc:raw")


def broken_model(in_dir: Path) -> None:
    (in_dir / "m.yaml").write_text("nc: 80\nbackbone: [[-1, 1, os.system, ['touch x']]]\nhead: []\n")
    options("--cfg /in/m.yaml --weights ''")(in_dir)


def coco_garbled(in_dir: Path) -> None:
    (in_dir / "annotations/coco-annotations.json").write_text('{"images": 7}')
    for index in in_dir.glob("*-index.tsv"):
        index.write_text(re.sub(r"\t.*", "\t/in/annotations/coco-annotations.json", index.read_text()))
    edit(in_dir / "config.yaml", export_format="coco:raw")


WRONG: dict[str, tuple[Change, int, str]] = {
    "an empty training index": (write("train-index.tsv", b"\n\r\n"), 300002, "train-index.tsv"),
    "no training index": (remove("train-index.tsv"), 300002, "train-index.tsv"),
    "no validation index": (remove("val-index.tsv"), 300002, "val-index.tsv"),
    "not one box": (empty_boxes, 300002, "without one box"),
    "no annotations": (no_annotations, 300002, "annotations"),
    "no pictures": (no_pictures, 300002, "not one picture"),
    "other files than told": (config(export_format="voc:raw"), 300002, "export_format"),
    "an unknown format": (config(export_format="labelme:raw"), 300001, "export_format"),
    "entities in XML": (xml_bombs, 300002, "DOCTYPE"),
    "a COCO file that is none": (coco_garbled, 300002, "coco-annotations.json"),
    "class names empty": (config(class_names=[]), 300001, "class_names"),
    "class names doubled": (config(class_names=["a", "b", "a"]), 300001, "class_names: got ['a', 'b', 'a']"),
    "another object type": (config(object_type=3), 300005, "object_type"),
    "img_size 0": (config(img_size=0), 300001, "img_size"),
    "img_size abc": (config(img_size="abc"), 300001, "img_size: got 'abc'"),
    "batch 0": (config(batch_size_per_gpu=0), 300001, "batch_size_per_gpu: got 0"),
    "epochs 0": (config(epochs=0), 300001, "epochs: got 0"),
    "a name that weights can not hold": (config(class_names=["cat", "x" * 201]), 300001, "class_names: got "),
    "save_period 0": (config(save_period="0"), 300001, "save_period"),
    "an unknown model": (config(model="yolov9"), 300001, "yolov5x6"),
    "an unknown activation": (config(activation="Rulu"), 300001, "activation: got 'Rulu'"),
    "an unknown option": (options("--nosuch 1"), 300001, "--nosuch"),
    "an unclosed quote": (options("--name 'x"), 300001, "args_options"),
    "other data": (options("--data other.yaml"), 300001, "--data"),
    "another folder": (options("--project /tmp"), 300001, "--project"),
    "another name": (options("--name ../../x"), 300001, "--name"),
    "another device": (options("--device 1"), 300001, "--device"),
    "weights elsewhere": (options("--weights /etc/passwd.pt"), 300001, "--weights"),
    "a hyp outside": (options("--hyp /in/../../etc/passwd"), 300001, "--hyp"),
    "a run outside": (options("--resume /tmp/last.pt"), 300001, "--resume"),
    "nothing to go on with": (options("--resume"), 300001, "--resume"),
    "a service": (options("--bucket gs"), 300001, "--bucket"),
    "a broken hyp": (broken_hyp, 300001, "lr0"),
    "a broken model": (broken_model, 300001, "m.yaml"),
    "too many layers frozen": (options("--freeze 99"), 300001, "freeze"),
    "a GPU that is not there": (config(gpu_id="7"), 300102, "gpu_id"),
    "hostile weights": (hostile_weights, 300004, "isn't on the list"),
    "weights of another kind": (onnx_weights, 300004, "only .pt"),
    "weights cut off": (lambda in_dir: weights_of(in_dir).write_bytes(b"PK"), 300004, ".pt"),
    "weights outside": (config(pretrained_model_params=["/in/models/../../x.pt"]), 300001, "pretrained_model_params"),
    "config bomb": (write("config.yaml", YAML_BOMB), 300001, "config.yaml"),
    "fp16 on a CPU": (config(precision="fp16"), 300001, "fp16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_task_ends_with_its_code_in_one_line(
    case: str, task: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, code, named = WRONG[case]
    change(task / "in")
    monkeypatch.chdir(task)
    assert "Traceback" not in assert_told(task, capfd, code, named)
    assert not (task / "out/models/result.yaml").exists()
    assert not Path("/tmp/ymir-was-here").exists() and not (task / "x").exists()


def test_a_wrong_option_is_told_before_torch_and_before_data(task: Path) -> None:
    options("--optimizer Lion")(task / "in")
    shutil.rmtree(task / "in/assets")
    (task / "in/train-index.tsv").unlink()
    script = "import sys, start; start.main(sys.argv[1:]); print(sorted({'torch'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script, "--in", str(task / "in"), "--out", str(task / "out")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr
    assert monitor(task)[3:5] == ["4", "300001"] and "--optimizer: invalid choice" in monitor(task)[5]
    assert {path.name for path in (task / "out").iterdir()} == {"monitor.txt"}


def test_a_wrong_task_as_a_process(task: Path) -> None:
    hostile_weights(task / "in")
    done = run_process(task)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("error 300004: ") and "Traceback" not in done.stdout


def test_stages_of_a_failed_run_are_kept(task: Path) -> None:
    """The platform reads result.yaml after a failure too."""
    hyp = task / "in/h.yaml"
    hyp.write_text("lr0: 1000.0\nbox: 1e+6\nobj: 1e+6\ncls: 1e+6\n")
    edit(task / "in/config.yaml", epochs=50, args_options=f"{QUICK} --hyp /in/h.yaml --nominal-batch 4")
    assert run(task) == 1
    fields = monitor(task)
    assert fields[3:5] == ["4", "300201"], fields
    assert "lr0" in fields[5]
    if (task / "out/models/result.yaml").exists():
        assert_stages_whole(task, result(task))


def test_an_image_size_is_rounded_up_with_a_note(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    edit(task / "in/config.yaml", img_size="33", activate="ReLU")
    assert run(task) == 0
    assert "img_size 33 is rounded up to 64" in caplog.text
    assert "ReLU" in read_checkpoint(task / "out/models/best.pt").activation
    assert np.isfinite(result(task)["mAP"])
