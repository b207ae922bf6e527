"""Checkpoints of three trainings, against the golden names and against what was known of them before."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.checkpoint import Checkpoint, read_checkpoint
from tests.attacks.writing import YAML, Call, Entry, Make, Name, checkpoint, conv, members, module, root, tree, zipped
from tests.conftest import ROOT
from utils.errors import WeightsError


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


# --- files made here --------------------------------------------------------------------------------------------


def made(folder: Path, content: Any) -> Checkpoint:
    """The checkpoint of a root that is written as torch would."""
    path = folder / "made.pt"
    path.write_bytes(checkpoint(content))
    return read_checkpoint(path)


def act(kind: str, **attributes: Any) -> Any:
    return module(f"torch.nn.modules.activation.{kind}", {}, **attributes)


def test_the_ema_is_preferred_to_the_model(tmp_path: Path) -> None:
    ema = tree(conv=conv(weight=np.full((1, 6, 1, 1), 7, np.float16)))
    weights = made(tmp_path, {**root(), "ema": ema}).state["model.0.conv.weight"]
    assert weights.dtype == np.float16 and set(weights.ravel()) == {7}


@pytest.mark.parametrize(
    "wrapper", ["parallel.data_parallel.DataParallel", "parallel.distributed.DistributedDataParallel"]
)
def test_a_wrapped_model_is_taken_out(tmp_path: Path, wrapper: str) -> None:
    wrapped = module(f"torch.nn.{wrapper}", {"module": tree()})
    assert list(made(tmp_path, {"model": wrapped}).state) == list(made(tmp_path, root()).state)


@pytest.mark.parametrize("package", ["models", "yolov5.models"])
@pytest.mark.parametrize("kind", ["Model", "DetectionModel"])
def test_models_of_all_versions_and_of_the_package_are_read(tmp_path: Path, package: str, kind: str) -> None:
    model = tree(head=f"{package}.yolo.Detect", names={0: "cat", 1: "dog"})
    read = made(tmp_path, {"model": Make(Name(f"{package}.yolo", kind), model.state)})
    assert (read.names, read.strides) == (("cat", "dog"), (8, 16))


def test_anchors_are_those_of_training_in_pixels(tmp_path: Path) -> None:
    cells = np.array([[[1.5, 2], [3, 4.5]], [[1, 1], [2, 8]]], np.float16)  # not the yaml's: AutoAnchor wrote them
    read = made(tmp_path, root(anchors=cells, stride=np.array([16, 32], np.float32)))
    assert read.anchors_px.tolist() == [[[24, 32], [48, 72]], [[32, 32], [64, 256]]]
    assert read.anchors_px.dtype == np.float32
    assert read.state["model.1.anchors"].tolist() == cells.tolist()


def test_buffers_that_arent_saved_are_left_out(tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    layer = conv(_buffers={"kept": one, "passing": one, "none": None}, _non_persistent_buffers_set=Call(
        Name("__builtin__", "set"), (["passing"],)))  # fmt: skip
    read = made(tmp_path, root(conv=layer, buffers={"anchor_grid": one}))
    assert list(read.state) == ["model.0.kept", "model.0.conv.weight", "model.1.anchors"]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (act("SiLU"), ""),
        (act("LeakyReLU", negative_slope=0.1, inplace=True), "nn.LeakyReLU(0.1)"),
        (act("Hardswish"), "nn.Hardswish()"),
        (act("Hardtanh", min_val=-1, max_val=6.0), "nn.Hardtanh(-1, 6.0)"),
        (act("GELU", approximate="none"), "nn.GELU()"),
        (module("torch.nn.modules.linear.Identity", {}), ""),
        (None, ""),
    ],
)
def test_the_activation_is_named(tmp_path: Path, layer: Any, text: str) -> None:
    assert made(tmp_path, root(conv=conv(act=layer))).activation == text


def test_an_activation_that_cant_be_said_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="unusual arguments"):
        made(tmp_path, root(conv=conv(act=act("GELU", approximate="tanh"))))
    mixed = {"0": conv(), "1": conv(act=act("ReLU")), "2": tree()}
    with pytest.raises(WeightsError, match="different activations"):
        made(tmp_path, root(layers=mixed))


def test_names_are_one_line_each(tmp_path: Path) -> None:
    read = made(tmp_path, root(names=["fire\thydrant\n", " 猫 "]))
    assert read.names == ("fire hydrant", " 猫 ")
    assert made(tmp_path, root(names=[0, 17])).names == ("0", "17")


def test_the_yaml_has_the_number_of_classes_of_the_head(tmp_path: Path) -> None:
    read = made(tmp_path, root(yaml={**YAML, "nc": 80}))
    assert {**read.yaml} == {**YAML, "nc": 2}


def test_plain_values_beside_the_model_are_kept(tmp_path: Path) -> None:
    scalar = Call(Name("numpy", "dtype"), ("f8", False, True))
    fitness = Call(Name("numpy.core.multiarray", "scalar"), (scalar, Call(Name("_codecs", "encode"),
        ("\0\0\0\0\0\0\xe0?", "latin1"))))  # fmt: skip
    read = made(tmp_path, {**root(), "best_fitness": fitness, "date": "2022-02-08\n", "opt": {"lr": 1}})
    assert dict(read.meta) == {"epoch": -1, "best_fitness": 0.5, "ema": None, "optimizer": None, "date": "2022-02-08 "}


def test_the_digest_is_of_the_weights_alone(tmp_path: Path) -> None:
    digest = made(tmp_path, root()).digest
    assert made(tmp_path, {"epoch": 7, "ema": tree(names=["a", "b"])}).digest == digest
    assert made(tmp_path, root(conv=conv(weight=np.zeros((1, 6, 1, 1), np.float32)))).digest != digest
    assert made(tmp_path, root(conv=conv(weight=np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1)))).digest != digest


def test_reading_imports_no_torch(yolov5n_pt: Path) -> None:
    code = "import sys; from pathlib import Path; from models.checkpoint import read_checkpoint\n"
    code += "read_checkpoint(Path(sys.argv[1])); print(sorted({'torch', 'torchvision', 'cv2'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, yolov5n_pt], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- damage -----------------------------------------------------------------------------------------------------


def reads_or_refuses(content: bytes) -> None:
    """Nothing but a Checkpoint or a WeightsError of one line, whatever the bytes."""
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        file.write(content)
        file.flush()
        try:
            read = read_checkpoint(Path(file.name))
        except WeightsError as error:
            assert str(error).isprintable() and len(str(error)) < 400
        else:
            assert read.digest and len(read.names) == read.nc


KINDS = st.sampled_from(["set", "insert", "cut", "repeat"])
DAMAGE = st.lists(st.tuples(st.floats(0, 1), KINDS, st.binary(max_size=6)), min_size=1, max_size=4)
Damage = list[tuple[float, str, bytes]]


def damaged(content: bytes, damage: Damage) -> bytes:
    """content with bytes set, put in, cut out or repeated at relative places."""
    for place, kind, new in damage:
        at = int(place * len(content))
        end = at + len(new)
        middle = {"set": new, "insert": new + content[at:end], "cut": b"", "repeat": content[at:end] * 2}[kind]
        content = content[:at] + middle + content[end:]
    return content


def repacked(path: Path, damage: Damage) -> bytes:
    """The file with a damaged data.pkl whose checksum is right, so that the damage gets past the zip."""
    with zipfile.ZipFile(path) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    contents["archive/data.pkl"] = damaged(contents["archive/data.pkl"], damage)
    return zipped([Entry(name.encode(), content) for name, content in contents.items()])


@settings(max_examples=300, deadline=None)
@given(DAMAGE)
def test_a_damaged_small_pickle_is_read_or_refused(damage: Damage) -> None:
    entries = members(root())
    reads_or_refuses(zipped([Entry(entries[0].name, damaged(entries[0].content, damage)), *entries[1:]]))


@settings(max_examples=200, deadline=None)
@given(DAMAGE)
def test_a_damaged_zip_is_read_or_refused(damage: Damage) -> None:
    reads_or_refuses(damaged(checkpoint(root()), damage))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGE)
def test_the_official_weights_with_a_damaged_pickle_are_read_or_refused(yolov5n_pt: Path, damage: Damage) -> None:
    reads_or_refuses(repacked(yolov5n_pt, damage))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_a_pickle_are_refused(content: bytes) -> None:
    reads_or_refuses(zipped([Entry(b"a/data.pkl", b"\x80\x02" + content)]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4_062_132))
def test_the_official_weights_broken_off_anywhere_are_refused(yolov5n_pt: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(yolov5n_pt.read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"is empty|not a zip|doesn't end"):
        read_checkpoint(path)
