"""The files of /img-man: what the platform shows in its forms is what the code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from ymir.params import TaskParams, read_params

FOLDER = ROOT / "ymir/img-man"
TEMPLATES = ("training", "infer", "mining")

# SPEC section 3: which keys each task has.
ALL = {"shm_size", "batch_size_per_gpu", "num_workers_per_gpu", "img_size", "precision", "decode", "max_pixels", "seed"}
DETECTING = ALL | {
    "conf_thres", "iou_thres", "pin_memory", "backend", "letterbox", "max_det", "threads_per_rank",
}  # fmt: skip
KEYS = {
    "training": ALL
    | {
        "export_format", "model", "epochs", "opset", "args_options", "save_best_only", "save_period", "sync_bn",
        "activation", "ymir_saved_file_patterns", "resume", "nominal_batch",
    },
    "infer": DETECTING,
    "mining": DETECTING
    | {
        "mining_algorithm", "class_distribution_scores", "resume", "entropy_of", "cald_mode", "cald_empty",
        "cald_balance", "budget", "diversity", "class_balance", "dedup", "dedup_threshold", "explore", "mining_report",
    },
}  # fmt: skip
PLATFORM = {"object_type", "class_names", "gpu_id", "gpu_count", "task_id", "pretrained_model_params"} | {
    "model_params_path"
}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}-template.yaml").read_text())
    return content


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_files_can_be_read_one_after_the_other(file: Path) -> None:
    text = file.read_text(encoding="ascii")
    assert text.startswith("---\n")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_the_manifest_says_detection() -> None:
    assert yaml.safe_load((FOLDER / "manifest.yaml").read_text()) == {"object_type": 2}


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_task_has_its_keys(name: str) -> None:
    assert set(read(name)) == KEYS[name]


def test_every_key_of_the_code_is_in_a_form_or_the_platforms() -> None:
    assert set().union(*KEYS.values()) | PLATFORM == set(TaskParams.model_fields)


@pytest.mark.parametrize("name", TEMPLATES)
def test_values_are_scalars_and_the_codes_defaults(name: str) -> None:
    for key, value in read(name).items():
        assert isinstance(value, (str, int, float, bool)), key
        default = TaskParams.model_fields[key].default
        if key == "letterbox":
            assert value == {"infer": "minimal", "mining": "square"}[name]
        elif key == "class_distribution_scores":
            assert (value, default) == ("", None)
        else:
            assert (value, type(value)) == (default, type(default)), key


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_form_left_as_it_is_is_the_default_even_as_strings(name: str) -> None:
    form = {key: value for key, value in read(name).items() if key != "letterbox"}
    assert read_params(form) == TaskParams() or read_params(form).model_dump() == TaskParams().model_dump()
    # the platform drops what is falsy and writes the rest as strings
    as_strings = {key: str(value) for key, value in form.items() if value}
    assert read_params(as_strings).model_dump() == TaskParams().model_dump()
