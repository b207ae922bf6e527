"""config.yaml's training keys and args_options: what a training is told, and how a wrong value is told."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.conftest import ROOT
from tests.ymir.conftest import CONFIG, Task
from utils.errors import ConfigError, WeightsError
from utils.hyp import read_hyp
from utils.settings import PictureSettings
from utils.train_settings import TrainConfig
from ymir.config import read_task
from ymir.train_config import TrainTask, train_config

Write = Callable[..., Task]
TRAINING = {"run_training": True, "run_infer": False}


@pytest.fixture
def told(write_task: Write) -> Callable[..., TrainTask]:
    """told(epochs=3) gives what training is told by a config.yaml with that key."""

    def read(**config: Any) -> TrainTask:
        task = write_task(env=TRAINING, config=config)
        return train_config(read_task(task.in_dir, task.out_dir))

    return read


Told = Callable[..., TrainTask]


# keys


def test_a_task_without_keys_is_told_the_templates_values(told: Told) -> None:
    task = told()
    assert task.config == TrainConfig(
        cfg=ROOT / "models/yolov5s.yaml", epochs=100, batch_size=16, workers=4, resume="auto"
    )
    assert (task.class_names, task.export_format, task.opset) == (("cat", "dog"), "", 11)
    assert (task.save_best_only, task.evolve, task.resume_from, task.plots) == (True, None, None, True)
    assert task.saved_file_patterns == ""


def test_every_key_arrives(told: Told) -> None:
    task = told(
        model="yolov5n", batch_size_per_gpu="8", num_workers_per_gpu=2, epochs="7", img_size=320, opset=13,
        save_best_only="False", save_period="3", sync_bn="True", activate="ReLU", nominal_batch=32, seed=5,
        precision="bf16", resume="never", decode="fast", max_pixels="1e6", gpu_id="0,1", export_format="voc:raw",
        ymir_saved_file_patterns=r".*\.csv, hyp.*",
    )  # fmt: skip
    assert task.config == TrainConfig(
        cfg=ROOT / "models/yolov5n.yaml", batch_size=16, workers=2, epochs=7, img_size=320, save_period=3, sync_bn=True,
        activation="ReLU", nominal_batch=32, seed=5, precision="bf16", resume="never", device="0,1",
        pictures=PictureSettings(decode="fast", max_pixels=1_000_000),
    )  # fmt: skip
    assert (task.export_format, task.opset, task.saved_file_patterns) == ("voc:raw", 13, r".*\.csv, hyp.*")
    assert (task.save_best_only, task.save_period) == (False, 3)


def test_what_is_told_is_frozen(told: Told) -> None:
    with pytest.raises(FrozenInstanceError):
        told().opset = 12  # type: ignore[misc]


@pytest.mark.parametrize(("gpus", "total"), [("", 6), ("0", 6), ("0,1", 12), ("3,1,2", 18)])
def test_the_batch_is_that_of_all_gpus(gpus: str, total: int, told: Told) -> None:
    assert told(batch_size_per_gpu=6, gpu_id=gpus).config.batch_size == total


# args_options


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ("--exist-ok", {}),
        ("--epochs 3", {"epochs": 3}),
        ("--epochs 3 --epochs 4", {"epochs": 4}),
        ("--batch-size 24", {"batch_size": 24}),
        ("--img 320 --rect --cache ram", {"img_size": 320, "rect": True, "cache": "ram"}),
        ("--optimizer Adam --cos-lr --patience 0", {"optimizer": "Adam", "cos_lr": True, "patience": 0}),
        ("--freeze 2", {"freeze": (0, 1)}),
        ("--resume", {"resume": "must"}),
        ("--save-period 5", {"save_period": 5}),
        ("--activation 'nn.LeakyReLU(0.1)'", {"activation": "nn.LeakyReLU(0.1)"}),
        ("--device cpu", {}),
        ("--project /out --name models --data /out/data.yaml --exist-ok", {}),
        ("--local_rank -1 --bbox_interval -1 --entity ''", {}),
        ("--hyp scratch-high", {"hyp": read_hyp(ROOT / "data/hyps/hyp.scratch-high.yaml")}),
        ("--hyp data/hyps/hyp.VOC.yaml", {"hyp": read_hyp(ROOT / "data/hyps/hyp.VOC.yaml")}),
        (f"--hyp {ROOT}/data/hyps/hyp.VOC.yaml", {"hyp": read_hyp(ROOT / "data/hyps/hyp.VOC.yaml")}),
        ("--cfg models/../models/yolov5m.yaml", {"cfg": ROOT / "models/yolov5m.yaml"}),
        ("--weights '' --cfg yolov5l.yaml", {"cfg": ROOT / "models/yolov5l.yaml"}),
        ("--weights ''", {}),
    ],
)
def test_options_win_over_keys_and_touch_nothing_else(options: str, changes: dict[str, Any], told: Told) -> None:
    keys: dict[str, Any] = {"epochs": 9, "batch_size_per_gpu": 4, "img_size": 96}
    assert told(**keys, args_options=options).config == replace(told(**keys).config, **changes)


def test_the_tasks_gpus_may_be_named_again(told: Told) -> None:
    assert told(gpu_id="0,1", args_options="--device cuda:0,cuda:1").config.device == "0,1"


def test_a_search_and_pictures_left_out_are_told(told: Told) -> None:
    task = told(args_options="--evolve 5 --noplots")
    assert (task.evolve, task.plots) == (5, False)


def test_a_stage_now_and_then_may_be_asked_for_by_either_name(told: Told) -> None:
    assert told(args_options="--save-period 4").save_best_only is False
    assert told(save_best_only="False", save_period=4).save_period == 4


def test_files_under_in_may_be_named(told: Told, task_dirs: Task) -> None:
    (task_dirs.in_dir / "my hyp.yaml").write_text("lr0: 0.5\n")
    (task_dirs.in_dir / "net.yaml").write_text("nc: 1\n")
    config = told(args_options="--hyp '/in/my hyp.yaml' --cfg /in/net.yaml").config
    assert config.hyp.lr0 == 0.5
    assert config.cfg == task_dirs.in_dir / "net.yaml"
    assert told(model="/in/net.yaml").config.cfg == task_dirs.in_dir / "net.yaml"


def test_a_run_to_go_on_with_lies_in_out_or_in(told: Told, task_dirs: Task) -> None:
    for folder in (task_dirs.in_dir / "models", task_dirs.out_dir / "models"):
        folder.mkdir(exist_ok=True)
        (folder / "last.pt").write_bytes(b"x")
    task = told(args_options="--resume /out/models/last.pt")
    assert (task.resume_from, task.config.resume) == (task_dirs.out_dir / "models/last.pt", "must")
    assert told(args_options="--resume /in/models/last.pt").resume_from == task_dirs.in_dir / "models/last.pt"
    assert told(args_options="--resume /in/models").resume_from == task_dirs.in_dir / "models/last.pt"
    assert told(args_options="--resume").resume_from is None


def test_a_run_to_go_on_with_that_is_not_there_is_told(told: Told) -> None:
    with pytest.raises(WeightsError, match=r"args_options: --resume: got '/in/models', there is no file .*/last\.pt"):
        told(args_options="--resume /in/models")


# wrong values


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"img_size": 0}, r"img_size: got 0, need a whole number, 1 to 16384 \(config\.yaml\)"),
        ({"img_size": "abc"}, r"img_size: got 'abc', need a whole number"),
        ({"batch_size_per_gpu": 0}, r"batch_size_per_gpu: got 0, need a whole number, 1 to"),
        ({"epochs": 0}, r"epochs: got 0, need a whole number of at least 1"),
        ({"model": "yolov9"}, r"model: got 'yolov9', need .*yolov5n, .*yolov5x6 \(config\.yaml\)"),
        ({"model": "../yolov5s.yaml"}, r"model: got '\.\./yolov5s\.yaml', need a file of the image or under /in"),
        ({"activation": "Rulu"}, r"activation: got 'Rulu' .*need one of CELU, .*SiLU.*\(config\.yaml\)"),
        ({"export_format": "xml:raw"}, r"export_format: got 'xml:raw', need one of ark:raw, voc:raw"),
        ({"precision": "fp8"}, r"precision: got 'fp8', need one of auto, fp32"),
        ({"args_options": "--epochs abc"}, r"args_options: .*--epochs: got 'abc', need a whole number.*config"),
        ({"args_options": "--nosuch 1"}, r"args_options: unrecognized arguments: --nosuch 1 \(config\.yaml\)"),
        ({"args_options": "-v " * 20_000}, r"args_options: got 20000 words, need at most 1000 \(config\.yaml\)"),
        ({"args_options": "--help"}, r"args_options: unrecognized arguments: --help"),
        ({"args_options": "--name 'x"}, r"args_options: got \"--name 'x\", need options .*no closing quotation"),
        ({"args_options": "--data other.yaml"}, r"args_options: --data: got 'other\.yaml', the task's is .*data"),
        ({"args_options": "--data /in/data.yaml"}, r"args_options: --data: got"),
        ({"args_options": "--project /tmp"}, r"args_options: --project: got '/tmp', the task's is .*; leave it out"),
        ({"args_options": "--project /out/../tmp"}, r"args_options: --project: got"),
        ({"args_options": "--name ../x"}, r"args_options: --name: got '\.\./x', the task's is models; leave it out"),
        ({"args_options": "--device 0"}, r"args_options: --device: got '0', the task's is cpu; leave it out"),
        ({"args_options": "--weights /etc/x.pt"}, r"args_options: --weights: got '/etc/x\.pt', need a file of"),
        ({"args_options": "--weights /out/models/x.pt"}, r"args_options: --weights: got"),
        ({"args_options": "--weights 'a\nb'"}, r"args_options: --weights: a b is no \.pt file"),
        ({"args_options": "--weights ../../x.pt"}, r"args_options: --weights: got '\.\./\.\./x\.pt', need"),
        ({"args_options": "--hyp /in/../etc/passwd"}, r"args_options: --hyp: got '/in/\.\./etc/passwd', need"),
        ({"args_options": "--hyp /inner/h.yaml"}, r"args_options: --hyp: got '/inner/h\.yaml', need"),
        ({"args_options": "--hyp mine"}, r"args_options: --hyp: got 'mine', need .*scratch-low"),
        ({"args_options": "--cfg yolov9.yaml"}, r"args_options: --cfg: got 'yolov9\.yaml', need .*yolov5s"),
        ({"args_options": "--resume /tmp/last.pt"}, r"args_options: --resume: got '/tmp/last\.pt', need a file in"),
        ({"args_options": "--resume /out/last.pt"}, r"args_options: --resume: got"),
        ({"args_options": "--evolve --resume"}, r"args_options: --evolve: .*--resume"),
        ({"args_options": "--bucket b"}, r"args_options: --bucket: got 'b', but Google Cloud Storage is not offered"),
        ({"args_options": "--batch-size 3", "gpu_id": "0,1"}, r"--batch-size: got 3 for 2 GPUs .*multiple of 2"),
        ({"args_options": "--rect --image-weights"}, r"args_options: --image-weights: .*--rect"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_its_key(config: dict[str, Any], words: str, told: Told) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        told(**config)
    assert caught.value.code == 300001
    assert "\n" not in str(caught.value)


def test_a_path_of_several_lines_is_told_in_one(told: Told) -> None:
    with pytest.raises(WeightsError, match=r"there is no file .*out/models/a b \(config\.yaml\)") as caught:
        told(args_options="--resume 'a\nb'")
    assert "\n" not in str(caught.value)


def test_a_broken_hyp_file_is_told_with_its_key(told: Told, task_dirs: Task) -> None:
    (task_dirs.in_dir / "h.yaml").write_text("mosaic: 2\n")
    with pytest.raises(
        ConfigError, match=r"args_options: .*in/h\.yaml: hyp mosaic: got 2\.0, need a number from 0 to 1"
    ):
        told(args_options="--hyp /in/h.yaml")


@pytest.mark.parametrize("side", [33, "33", 33.0])
def test_a_size_that_is_no_multiple_of_the_stride_is_rounded_later(side: Any, told: Told) -> None:
    assert told(img_size=side).config.img_size == 33


def test_wrong_values_are_told_before_torch(write_task: Write) -> None:
    task = write_task(env=TRAINING, config={**CONFIG, "args_options": "--hyp none"})
    code = (
        "import sys; from pathlib import Path; from ymir.config import read_task\n"
        "from ymir.train_config import train_config\nfrom utils.errors import ConfigError\n"
        f"try: train_config(read_task(Path({str(task.in_dir)!r}), Path({str(task.out_dir)!r})))\n"
        "except ConfigError: sys.exit(9 + ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9


# where it starts


def test_the_tasks_weights_come_first(told: Told, task_dirs: Task, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    weights = task_dirs.in_dir / "models/stage/best.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"x")
    config = told(pretrained_model_params=["/in/models/stage/best.pt"]).config
    assert (config.weights, config.cfg) == (weights, None)
    assert f"training starts from {weights}, since the task names it" in caplog.text


def test_without_weights_it_starts_from_scratch_and_says_so(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = told(model="yolov5-bifpn", pretrained_model_params=["/in/models/gone.pt"]).config
    assert (config.weights, config.cfg) == (None, ROOT / "models/yolov5-bifpn.yaml")
    assert "training starts from scratch with" in caplog.text
    assert "pretrained_model_params names none that is there" in caplog.text


def test_the_images_own_weights_stand_in(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ymir.train_config.WEIGHTS", tmp_path / "weights")
    shipped = tmp_path / "weights/yolov5n.pt"
    shipped.parent.mkdir()
    shipped.write_bytes(b"x")
    for name in ("yolov5n", "yolov5n.yaml"):
        config = told(model=name).config
        assert (config.weights, config.cfg) == (shipped, None)
    assert told(model="yolov5m").config.weights is None
    assert told(model="yolov5n", args_options="--weights ''").config.weights is None


def test_the_options_weights_come_before_the_tasks(told: Told, task_dirs: Task, yolov5n_pt: Path) -> None:
    for name in ("best.pt", "other.pt"):
        (task_dirs.in_dir / "models" / name).write_bytes(b"x")
    task = told(pretrained_model_params=["/in/models/best.pt"], args_options="--weights /in/models/other.pt")
    assert (task.config.weights, task.config.cfg) == (task_dirs.in_dir / "models/other.pt", None)


def test_weights_that_can_not_be_used_are_told(told: Told, task_dirs: Task) -> None:
    with pytest.raises(WeightsError, match=r"args_options: --weights: got '.*/in/none\.pt', there is no such file"):
        told(args_options="--weights /in/none.pt")
    (task_dirs.in_dir / "models/best.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"best\.onnx: only \.pt weights can be trained"):
        told(pretrained_model_params=["/in/models/best.onnx"])
