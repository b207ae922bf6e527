"""What a training is told: YOLOv5's defaults, and what is refused whatever door it came through."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from utils.errors import ConfigError
from utils.train_settings import TrainConfig


def test_the_defaults_are_yolov5s() -> None:
    config = TrainConfig()
    assert (config.epochs, config.batch_size, config.img_size, config.workers) == (300, 16, 640, 8)
    assert (config.optimizer, config.patience, config.save_period, config.label_smoothing) == ("SGD", 100, -1, 0.0)
    assert (config.freeze, config.cache, config.nominal_batch) == ((), "", 64)
    assert not any((config.rect, config.quad, config.cos_lr, config.sync_bn, config.single_cls, config.image_weights))


def test_the_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig().epochs = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": 0}, r"epochs: got 0, need at least 1"),
        ({"img_size": 0}, r"img_size: got 0, need at least 1"),
        ({"batch_size": 0}, r"batch_size: got 0, need at least 1"),
        ({"batch_size": -2}, r"batch_size: got -2, need at least 1"),
        ({"nominal_batch": 0}, r"nominal_batch: got 0"),
        ({"workers": -1}, r"workers: got -1"),
        ({"patience": -1}, r"patience: got -1"),
        ({"label_smoothing": float("nan")}, r"label_smoothing: got nan"),
        ({"optimizer": "sgd"}, r"optimizer: got 'sgd', need one of SGD, Adam, AdamW"),
        ({"cache": "vram"}, r"cache: got 'vram'"),
        ({"precision": "fp8"}, r"precision: got 'fp8', need one of auto, fp32, bf16, fp16"),
        ({"resume": "yes"}, r"resume: got 'yes'"),
        ({"fitness": "f1"}, r"fitness: got 'f1', need one of map, yolov5"),
        ({"activation": "Rulu"}, r"activation: got 'Rulu' .*need one of CELU, .*SiLU"),
        ({"activation": "ReLU; x"}, r"activation: got"),
        ({"activation": "LeakyReLU(0.1.2)"}, r"activation: 'LeakyReLU\(0\.1\.2\)'"),
        ({"rect": True, "image_weights": True}, r"--image-weights: .*--rect"),
    ],
)
def test_what_can_not_be_meant_is_told(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**wrong)


@pytest.mark.parametrize("name", ["SiLU", "nn.ReLU", "nn.LeakyReLU(0.1)", "torch.nn.Hardswish()"])
def test_an_activation_may_be_written_as_torch_writes_it(name: str) -> None:
    assert TrainConfig(activation=name).activation == name
