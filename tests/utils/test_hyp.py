"""Hyperparameters: the six sets against the golden ones, and what a user's file may hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from tests.conftest import ROOT
from utils.errors import ConfigError
from utils.hyp import HYPS, Hyp, hyp_as_dict, read_hyp

SETS = ("scratch-low", "scratch-med", "scratch-high", "Objects365", "VOC", "no-augmentation")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_one(text: str) -> Path:
        file = tmp_path / "hyp.yaml"
        file.write_text(text)
        return file

    return write_one


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_as_it_stands(name: str, golden: Callable[[str], Any]) -> None:
    expected = golden("hyperparameters.json")[name]
    values = hyp_as_dict(read_hyp(HYPS / f"hyp.{name}.yaml"))
    assert {key: values[key] for key in expected} == expected
    assert set(values) - set(expected) <= {"copy_paste", "anchors"}


def test_the_defaults_are_those_of_the_scratch_low_set() -> None:
    assert read_hyp(ROOT / "data/hyps/hyp.scratch-low.yaml") == Hyp()


def test_what_is_written_is_read_again(write: Callable[[str], Path]) -> None:
    hyp = replace(Hyp(), lr0=0.02, anchors=3.0)
    assert read_hyp(write(yaml.safe_dump(hyp_as_dict(hyp)))) == hyp


def test_keys_that_a_file_lacks_have_their_defaults(write: Callable[[str], Path]) -> None:
    assert read_hyp(write("lr0: 1e-3\nanchors: null\n")) == replace(Hyp(), lr0=0.001)  # YAML reads 1e-3 as a text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr0: fast", r"hyp lr0: got 'fast', need a number"),
        ("lr0: true", r"hyp lr0: got 'True', need a number"),
        ("lr0: [1]", r"hyp lr0: got '\[1\]', need a number"),
        ("lr0: null", r"hyp lr0: got 'None', need a number"),
        ("lr0: .nan", r"hyp lr0: got 'nan', need a number"),
        ("lr0: .inf", r"hyp lr0: got inf, need a number from 0 to 1000"),
        ("mosaic: 2", r"hyp mosaic: got 2\.0, need a number from 0 to 1"),
        ("degrees: 200", r"hyp degrees: got 200\.0, need a number from 0 to 180"),
        ("anchor_t: 0.5", r"hyp anchor_t: got 0\.5, need a number from 1 to"),
        ("anchors: 30", r"hyp anchors: got 30\.0, need 1 to 20"),
        ("learning_rate: 1", r"learning_rate: unknown hyperparameter, known are .*lr0"),
        ("- 1", r"is no set of hyperparameters"),
        ("", r"is no set of hyperparameters"),
        ("a: [", r"is not valid YAML"),
    ],
)
def test_a_wrong_file_is_told_with_its_name_and_the_key(text: str, words: str, write: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=rf"hyp\.yaml.*{words}"):
        read_hyp(write(text))
