"""train.py's command line: every option of YOLOv5's, what it means, and how a wrong one is told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from utils.errors import ConfigError, WeightsError
from utils.hyp import read_hyp
from utils.train_options import TrainOptions, apply, find_hyp, find_model, find_weights, frozen_layers, parse_options
from utils.train_settings import OPTIMIZERS, TrainConfig

BASE = TrainConfig(cfg=ROOT / "models/yolov5s.yaml")


def config_of(*argv: str, base: TrainConfig = BASE) -> TrainConfig:
    return apply(parse_options(argv), base)


# what is given


def test_an_empty_command_line_gives_nothing_and_changes_nothing() -> None:
    options = parse_options([])
    assert options == TrainOptions()
    assert apply(options, BASE) is not BASE
    assert apply(options, BASE) == BASE


@pytest.mark.parametrize(
    ("argv", "changes"),
    [
        ("--epochs 3", {"epochs": 3}),
        ("--batch-size 5", {"batch_size": 5}),
        ("--batch-size -1", {"batch_size": -1}),
        ("--batch 16", {"batch_size": 16}),  # YOLOv5's own pages abbreviate it
        ("--imgsz 320", {"img_size": 320}),
        ("--img 320", {"img_size": 320}),
        ("--img-size 320", {"img_size": 320}),
        ("--rect", {"rect": True}),
        ("--nosave", {"save": False}),
        ("--noval", {"validate": False}),
        ("--noautoanchor", {"autoanchor": False}),
        ("--cache", {"cache": "ram"}),
        ("--cache ram", {"cache": "ram"}),
        ("--cache disk", {"cache": "disk"}),
        ("--cache --rect", {"cache": "ram", "rect": True}),
        ("--image-weights", {"image_weights": True}),
        ("--device 0,1", {"device": "0,1"}),
        ("--device cpu", {"device": "cpu"}),
        ("--multi-scale", {"multi_scale": True}),
        ("--single-cls", {"single_cls": True}),
        ("--optimizer AdamW", {"optimizer": "AdamW"}),
        ("--sync-bn", {"sync_bn": True}),
        ("--workers 0", {"workers": 0}),
        ("--quad", {"quad": True}),
        ("--cos-lr", {"cos_lr": True}),
        ("--label-smoothing 0.1", {"label_smoothing": 0.1}),
        ("--patience 0", {"patience": 0}),
        ("--freeze 0", {"freeze": ()}),
        ("--freeze 3", {"freeze": (0, 1, 2)}),
        ("--freeze 7 2 7", {"freeze": (2, 7)}),
        ("--save-period 5", {"save_period": 5}),
        ("--save-period -1", {"save_period": -1}),
        ("--seed 7", {"seed": 7}),
        ("--resume", {"resume": "must"}),
        ("--precision bf16", {"precision": "bf16"}),
        ("--nominal-batch 128", {"nominal_batch": 128}),
        ("--activation ReLU", {"activation": "ReLU"}),
        ("--activation nn.LeakyReLU(0.1)", {"activation": "nn.LeakyReLU(0.1)"}),
        ("--fitness yolov5", {"fitness": "yolov5"}),
        ("--autobalance", {"autobalance": True}),
    ],
)
def test_an_option_changes_its_own_setting_and_no_other(argv: str, changes: dict[str, Any]) -> None:
    options = parse_options(argv.split())
    assert dict(options.changes) == changes
    assert apply(options, BASE) == replace(BASE, **changes)


def test_what_is_not_given_keeps_the_value_of_the_settings_below() -> None:
    below = replace(BASE, epochs=7, rect=True, cache="disk", seed=5, save=False)
    assert config_of("--epochs", "9", base=below) == replace(below, epochs=9)


@pytest.mark.parametrize(
    ("argv", "attribute", "value"),
    [
        ("--data d.yaml", "data", "d.yaml"),
        ("--project out", "project", "out"),
        ("--name run", "name", "run"),
        ("--exist-ok", "exist_ok", True),
        ("--evolve", "evolve", 300),
        ("--evolve 7", "evolve", 7),
        ("--resume", "resume_from", ""),
        ("--resume runs/train/exp/weights/last.pt", "resume_from", "runs/train/exp/weights/last.pt"),
        ("--noplots", "plots", False),
        ("--weights x.pt", "weights", "x.pt"),
        ("--cfg x.yaml", "cfg", "x.yaml"),
        ("--hyp x.yaml", "hyp", "x.yaml"),
    ],
)
def test_what_belongs_to_the_door_comes_as_it_was_written(argv: str, attribute: str, value: Any) -> None:
    assert getattr(parse_options(argv.split()), attribute) == value


def test_options_are_frozen() -> None:
    options = parse_options(["--epochs", "3"])
    with pytest.raises(FrozenInstanceError):
        options.weights = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        options.changes["epochs"] = 4  # type: ignore[index]


def test_of_a_repeated_option_the_last_one_counts() -> None:
    argv = "--epochs 3 --cache --epochs 5 --img 320 --imgsz 640 --cache disk"
    assert config_of(*argv.split()) == replace(BASE, epochs=5, img_size=640, cache="disk")


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=4))
def test_the_last_of_any_number_counts(numbers: list[int]) -> None:
    argv = [text for number in numbers for text in ("--epochs", str(number))]
    assert parse_options(argv).changes["epochs"] == numbers[-1]


def test_one_number_freezes_so_many_layers_and_several_freeze_those() -> None:
    assert frozen_layers([10]) == tuple(range(10))
    assert frozen_layers([0]) == ()
    assert frozen_layers([4, 0]) == (0, 4)


def test_torchrun_may_say_the_rank_in_both_spellings() -> None:
    assert parse_options(["--local_rank", "1"]) == parse_options(["--local-rank=0"]) == TrainOptions()


def test_services_that_are_asked_for_nothing_are_no_matter() -> None:
    argv = ["--bucket", "", "--entity", "", "--bbox_interval", "-1", "--artifact_alias", "latest"]
    assert parse_options(argv) == TrainOptions()


# wrong ones


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--epochs abc", r"--epochs: got 'abc', need a whole number of at least 1"),
        ("--epochs 0", r"--epochs: got '0', need a whole number of at least 1"),
        ("--epochs 1.5", r"--epochs: got '1.5', need a whole number"),
        ("--epochs", r"--epochs: expected one argument"),
        ("--batch-size 0", r"--batch-size: got '0', need a whole number of at least 1, or -1"),
        ("--batch-size -2", r"--batch-size: got '-2', need a whole number of at least 1, or -1"),
        ("--imgsz 0", r"--imgsz.*: got '0', need a whole number from 1 to 16384"),
        ("--imgsz 99999", r"--imgsz.*: got '99999', need a whole number from 1 to 16384"),
        ("--label-smoothing nan", r"--label-smoothing: got 'nan', need a number from 0 to 1"),
        ("--label-smoothing 2", r"--label-smoothing: got '2', need a number from 0 to 1"),
        ("--cache vram", r"--cache: invalid choice: 'vram' \(choose from '?ram'?, '?disk'?\)"),
        ("--optimizer sgdm", r"--optimizer: invalid choice: 'sgdm' \(choose from '?SGD'?, '?Adam'?, '?AdamW'?\)"),
        ("--precision fp8", r"--precision: invalid choice: 'fp8' \(choose from .*bf16"),
        ("--fitness f1", r"--fitness: invalid choice: 'f1' \(choose from '?map'?, '?yolov5'?\)"),
        ("--device gpu0", r"--device: got 'gpu0', need cpu, or GPU indices"),
        ("--patience -1", r"--patience: got '-1', need a whole number of at least 0"),
        ("--save-period 0", r"--save-period: got '0', need a whole number of at least 1, or -1"),
        ("--freeze -3", r"--freeze: got '-3', need a whole number from 0"),
        ("--freeze", r"--freeze: expected at least one argument"),
        ("--evolve 0", r"--evolve: got '0', need a whole number of at least 1"),
        (
            "--seed -1",
            r"--seed: got '-1', need a whole number from 0",
        ),
        ("--activation Rulu", r"activation: got 'Rulu' .*need one of .*ReLU"),
        ("--nosuch 3", r"unrecognized arguments: --nosuch 3 \(--help lists the options\)"),
        ("stray", r"unrecognized arguments: stray"),
        ("--evolve --resume", r"--evolve: .*--resume.*leave one of them out"),
        ("--rect --image-weights", r"--image-weights: .*--rect.*leave one of them out"),
        ("--bucket mine", r"--bucket: got 'mine', but Google Cloud Storage is not offered; leave it out"),
        ("--entity me", r"--entity: got 'me', but Weights & Biases is not offered; leave it out"),
        ("--upload_dataset", r"--upload_dataset: .*Weights & Biases is not offered"),
        ("--upload-dataset val", r"--upload_dataset: got 'val', .*not offered"),
        ("--bbox-interval 4", r"--bbox_interval: got '4', .*not offered"),
        ("--artifact-alias v1", r"--artifact_alias: got 'v1', .*not offered"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(argv: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_options(argv.split())
    assert "\n" not in str(caught.value)
    assert caught.value.code == 300001


def test_without_help_an_option_can_not_end_the_process() -> None:
    with pytest.raises(ConfigError, match=r"unrecognized arguments: --help$"):
        parse_options(["--help"], with_help=False)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    text = capsys.readouterr().out
    for name in ("--weights", "--imgsz", "--local_rank", "--artifact_alias", *OPTIMIZERS):
        assert name in text


# files


@pytest.mark.parametrize("text", ["yolov5s.yaml", "yolov5s", "models/yolov5s.yaml", str(ROOT / "models/yolov5s.yaml")])
def test_a_model_is_found_by_its_name(text: str, tmp_path: Path) -> None:
    assert find_model(text, tmp_path).samefile(ROOT / "models/yolov5s.yaml")


def test_a_model_is_found_where_yolov5_keeps_it(tmp_path: Path) -> None:
    assert find_model("models/hub/yolov5s6.yaml", tmp_path) == ROOT / "models/yolov5s6.yaml"


def test_a_file_that_is_there_comes_before_ours_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "yolov5s.yaml").write_text("nc: 1\n")
    (tmp_path / "hyp.VOC.yaml").write_text("lr0: 0.5\n")
    assert find_model("yolov5s.yaml", tmp_path) == tmp_path / "yolov5s.yaml"
    assert find_hyp("hyp.VOC.yaml", tmp_path) == tmp_path / "hyp.VOC.yaml"


@pytest.mark.parametrize("text", ["yolov9", "", ".", "models", "README.md", "../x.yaml", "a\0b.yaml", "x" * 5000])
def test_an_unknown_model_is_told_with_all_that_there_are(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--cfg: got .*yolov3, .*yolov5-bifpn, .*yolov5s, .*yolov5x6"):
        find_model(text, tmp_path)


@pytest.mark.parametrize(
    "text", ["scratch-high", "hyp.scratch-high", "hyp.scratch-high.yaml", "data/hyps/hyp.scratch-high.yaml"]
)
def test_a_set_of_hyperparameters_is_found_by_its_name(text: str, tmp_path: Path) -> None:
    assert find_hyp(text, tmp_path) == ROOT / "data/hyps/hyp.scratch-high.yaml"


def test_hyperparameters_are_read_and_take_the_place_of_the_others() -> None:
    assert config_of("--hyp", "VOC").hyp == read_hyp(ROOT / "data/hyps/hyp.VOC.yaml")
    assert config_of("--hyp", "VOC", "--hyp", "scratch-low") == BASE


def test_an_unknown_set_is_told_with_all_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--hyp: got 'mine', .*Objects365, VOC, no-augmentation, scratch-high"):
        find_hyp("mine", tmp_path)


def test_broken_hyperparameters_are_told_with_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text("lr0: fast\n")
    with pytest.raises(ConfigError, match=r"h\.yaml: hyp lr0: got 'fast', need a number"):
        config_of("--hyp", str(file))


def test_weights_are_a_file_or_one_of_the_image(tmp_path: Path, yolov5n_pt: Path) -> None:
    assert find_weights(str(yolov5n_pt), tmp_path) == yolov5n_pt
    (tmp_path / "a b.pt").write_bytes(b"x")
    assert find_weights("a b.pt", tmp_path) == tmp_path / "a b.pt"
    assert config_of("--weights", str(yolov5n_pt)).weights == yolov5n_pt


def test_weights_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--weights: got 'none\.pt', there is no such file"):
        find_weights("none.pt", tmp_path)
    with pytest.raises(ConfigError, match=r"--weights: x\.onnx is no \.pt file"):
        find_weights("x.onnx", tmp_path)


def test_from_scratch_needs_a_model() -> None:
    scratch = apply(parse_options(["--weights", "", "--cfg", "yolov5n.yaml"]), TrainConfig(weights=Path("x.pt")))
    assert scratch.weights is None
    assert scratch.cfg is not None and scratch.cfg.name == "yolov5n.yaml"
    with pytest.raises(ConfigError, match=r"--weights: is ''.*--cfg"):
        config_of("--weights", "", base=TrainConfig(weights=Path("x.pt")))


def test_an_empty_cfg_means_the_models_own() -> None:
    assert parse_options(["--cfg", "", "--hyp", ""]) == TrainOptions()


def test_the_command_line_is_read_before_torch() -> None:
    code = "import sys, utils.train_options; sys.exit(bool({'torch', 'cv2', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
