"""Checkpoints of three trainings, against the golden names and against what was known of them before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from models.checkpoint import read_checkpoint


def test_official_weights_have_the_golden_names_and_shapes_in_order(
    yolov5n_pt: Path, golden: Callable[[str], Any]
) -> None:
    checkpoint = read_checkpoint(yolov5n_pt)
    read = [[name, list(array.shape)] for name, array in checkpoint.state.items()]
    assert read == [entry[:2] for entry in golden("yolov5n_state_dict.json")]
    # The golden types are of the loaded model; the official file stores floats in half precision.
    kinds = [array.dtype for array in checkpoint.state.values()]
    wanted = ["int64" if entry[2] == "int64" else "float16" for entry in golden("yolov5n_state_dict.json")]
    assert kinds == [np.dtype(name) for name in wanted]


def test_official_weights_describe_their_model(yolov5n_pt: Path) -> None:
    checkpoint = read_checkpoint(yolov5n_pt)
    assert (checkpoint.nc, len(checkpoint.names)) == (80, 80)
    assert (checkpoint.names[0], checkpoint.names[79]) == ("person", "toothbrush")
    assert checkpoint.strides == (8, 16, 32)
    assert checkpoint.anchors_px.tolist()[0] == [[10, 13], [16, 30], [33, 23]]  # YOLOv5's own, published
    assert checkpoint.activation == ""
    assert (checkpoint.yaml["depth_multiple"], checkpoint.yaml["width_multiple"]) == (0.33, 0.25)
    assert checkpoint.meta["epoch"] == -1


@pytest.mark.parametrize(
    ("file", "names"), [("users_face_yolov5n.pt", ("face",)), ("users_helmet_vest_yolov5n.pt", ("helmet", "vest"))]
)
def test_users_weights_are_read(shared: Path, file: str, names: tuple[str, ...]) -> None:
    checkpoint = read_checkpoint(shared / "weights" / file)
    assert (checkpoint.names, checkpoint.nc, len(checkpoint.state)) == (names, len(names), 349)
    assert checkpoint.state["model.24.m.0.weight"].shape == (3 * (5 + len(names)), 64, 1, 1)
