"""What is written is YOLOv5's own file: held against the official one, against torch, and against a killed writer."""

from __future__ import annotations

import inspect
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import torch
from torch import nn

import models.yolo
from models.allowed import Holder
from models.archive import opened
from models.checkpoint import read_checkpoint
from models.checkpoint_writer import SavedTraining, stripped, write_checkpoint, yaml_of
from models.detector import build_model
from models.resume import ResumeState, read_resume
from models.tensors import TensorData
from models.unpickle import read_pickle
from models.yolo import DetectionModel, make_model, parse_spec, read_spec
from tests.conftest import ROOT

YAMLS = sorted((ROOT / "models").glob("*.yaml"))
# The layers that no yaml of models/ has, and those it has in another form.
OTHER_LAYERS: dict[str, Any] = {
    "nc": 3,
    "depth_multiple": 1.0,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30.5], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Focus", [64, 3]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 2, "BottleneckCSP", [128]],
        [-1, 1, "DWConv", [128, 3, 2]],
        [-1, 2, "Bottleneck", [128]],
        [-1, 1, "GhostConv", [256, 3, 2]],
        [-1, 1, "SPP", [256, [5, 9, 13]]],
    ],
    "head": [
        [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]],
        [-1, 1, "nn.MaxPool2d", [2, 1, 0]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 2, "Conv", [512, 1, 1]],
        [[4, 10], 1, "Detect", ["nc", "anchors"]],
    ],
}


def content(model: DetectionModel, ema: Optional[DetectionModel] = None, **changes: Any) -> SavedTraining:
    names = tuple(f"class {number}" for number in range(model.spec.classes))
    saved = SavedTraining(
        model, ema, names, yaml_of(model.spec), 3, 0.25, 17, None, "2026-11-25T01:02:03", {"lr0": 0.01}
    )
    return replace(saved, **changes)


def small(yaml: Any, activation: str = "", classes: Optional[int] = None) -> DetectionModel:
    """A network of every layer of a description, narrow."""
    spec = (
        parse_spec(yaml, "test", classes, activation)
        if isinstance(yaml, dict)
        else read_spec(yaml, classes, activation)
    )
    narrow = replace(spec, width_multiple=min(spec.width_multiple, 0.125), depth_multiple=min(spec.depth_multiple, 0.7))
    torch.manual_seed(0)
    return make_model(narrow).eval()


def official(path: Path) -> DetectionModel:
    return build_model(read_checkpoint(path))


def root_of(path: Path) -> Any:
    with opened(path) as archive:
        return read_pickle(archive)


def assert_same_state(path: Path, model: DetectionModel, dtype: torch.dtype = torch.float16) -> None:
    """The file holds the model's names in their order, and its numbers rounded to dtype, bit for bit."""
    read, expected = read_checkpoint(path).state, model.state_dict()
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        wanted = tensor.to(dtype) if tensor.is_floating_point() else tensor
        np.testing.assert_array_equal(read[name], wanted.numpy(), err_msg=name)
        assert read[name].dtype == wanted.numpy().dtype


# --- there and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["yolov5n.pt", "users_face_yolov5n.pt", "users_helmet_vest_yolov5n.pt"])
def test_a_file_that_yolov5_wrote_is_written_again_with_equal_weights(shared: Path, tmp_path: Path, file: str) -> None:
    before = read_checkpoint(shared / "weights" / file)
    model = build_model(before)
    write_checkpoint(tmp_path / "again.pt", stripped(content(model, names=before.names)))
    after = read_checkpoint(tmp_path / "again.pt")
    assert (after.digest, after.names, after.strides, after.activation) == (
        before.digest, before.names, before.strides, before.activation)  # fmt: skip
    np.testing.assert_array_equal(after.anchors_px, before.anchors_px)
    assert build_model(after).spec == model.spec


@pytest.mark.parametrize("yaml", [*YAMLS, OTHER_LAYERS], ids=lambda yaml: getattr(yaml, "stem", "other layers"))
def test_every_configuration_comes_back(tmp_path: Path, yaml: Any) -> None:
    model = small(yaml)
    write_checkpoint(tmp_path / "best.pt", content(model))
    assert_same_state(tmp_path / "best.pt", model)
    built = build_model(read_checkpoint(tmp_path / "best.pt"))
    assert built.spec == model.spec
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():  # of the rounded weights, both
        expected = build_model_of(model, {k: v.half() if v.is_floating_point() else v for k, v in
                                          model.state_dict().items()})(images)  # fmt: skip
        for ours, wanted in zip(built(images), expected):
            torch.testing.assert_close(ours, wanted, rtol=0, atol=0)


def build_model_of(model: DetectionModel, state: dict[str, torch.Tensor]) -> DetectionModel:
    """The same network with other weights."""
    other = DetectionModel(model.spec).eval()
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize(
    ("activation", "read"),
    [("LeakyReLU", "nn.LeakyReLU(0.01)"), ("torch.nn.Hardswish()", "nn.Hardswish()"), ("nn.ELU(0.5)", "nn.ELU(0.5)"),
     ("PReLU", "nn.PReLU()"), ("GELU", "nn.GELU()"), ("SiLU", "")],
)  # fmt: skip
def test_the_activation_comes_back(tmp_path: Path, activation: str, read: str) -> None:
    model = small(ROOT / "models/yolov5n.yaml", activation, 1)
    write_checkpoint(tmp_path / "best.pt", content(model))
    assert read_checkpoint(tmp_path / "best.pt").activation == read
    assert yaml_of(model.spec)["activation"].startswith("nn.") and yaml_of(model.spec)["activation"].endswith(")")
    assert_same_state(tmp_path / "best.pt", model)


def test_anchors_that_training_fitted_are_kept(tmp_path: Path) -> None:
    model = small(ROOT / "models/yolov5-p2.yaml")
    assert yaml_of(model.spec)["anchors"] == 3
    fitted = torch.arange(1.0, 25.0).view(4, 3, 2)
    model.detect.anchors.copy_(fitted)  # cells
    write_checkpoint(tmp_path / "best.pt", content(model))
    strides = torch.tensor([4.0, 8, 16, 32]).view(4, 1, 1)
    assert read_checkpoint(tmp_path / "best.pt").anchors_px.tolist() == (fitted * strides).tolist()


def test_full_precision_is_kept_where_asked_for(tmp_path: Path) -> None:
    model = small(OTHER_LAYERS)
    write_checkpoint(tmp_path / "best.pt", content(model, half=False))
    assert_same_state(tmp_path / "best.pt", model, torch.float32)


def test_names_and_figures_come_back(tmp_path: Path) -> None:
    names = ("猫", "fire hydrant", "")
    model = small(OTHER_LAYERS)
    write_checkpoint(tmp_path / "猫 1.pt", content(model, names=names, best_fitness=np.float64(0.5)))
    read = read_checkpoint(tmp_path / "猫 1.pt")
    assert read.names == names
    assert dict(read.meta) == {
        "epoch": 3, "best_fitness": 0.5, "updates": 17, "date": "2026-11-25T01:02:03", "ema": None, "optimizer": None,
        "wandb_id": None,
    }  # fmt: skip


def test_synchronised_norms_are_written_as_plain_ones(tmp_path: Path) -> None:
    model = small(OTHER_LAYERS)
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm  # untyped in torch
    synchronised = convert(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
    write_checkpoint(tmp_path / "best.pt", content(synchronised))
    kinds = {module.name for _, module in tree(root_of(tmp_path / "best.pt")["model"])}
    assert "torch.nn.modules.batchnorm.BatchNorm2d" in kinds and not any("Sync" in kind for kind in kinds)
    assert_same_state(tmp_path / "best.pt", model)


# --- against the official file ----------------------------------------------------------------------------------


def tree(module: Holder, name: str = "") -> Iterator[tuple[str, Holder]]:
    yield name, module
    for key, child in module.get("_modules").items():
        yield from tree(child, f"{name}.{key}")


def comparable(value: Any) -> Any:
    """A stored value without where its bytes lie; of a tensor, what it is."""
    if isinstance(value, TensorData):
        return ("tensor", value.storage.dtype.name, value.shape)
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def test_our_file_has_every_attribute_of_the_official_one(yolov5n_pt: Path, tmp_path: Path) -> None:
    before = read_checkpoint(yolov5n_pt)
    hyp = root_of(yolov5n_pt)["model"].get("hyp")
    write_checkpoint(tmp_path / "best.pt", stripped(content(build_model(before), names=before.names, hyp=hyp)))
    theirs, ours = root_of(yolov5n_pt), root_of(tmp_path / "best.pt")
    assert list(ours) == list(theirs)
    assert {key: value for key, value in ours.items() if key not in ("model", "date")} == {
        key: value for key, value in theirs.items() if key not in ("model", "date")}  # fmt: skip
    compared = 0
    for (name, module), (our_name, our_module) in zip(tree(theirs["model"]), tree(ours["model"])):
        assert (our_name, our_module.name) == (name, module.name)
        for attribute, value in module.state.items():
            # The grids are of the last picture; weights for training and a file's name, no engine needs.
            if attribute not in ("_modules", "grid", "anchor_grid", "class_weights", "yaml_file"):
                wanted, got = comparable(value), comparable(our_module.get(attribute))
                if attribute == "_reversed_padding_repeated_twice":
                    got = tuple(got)  # a list in newer torch
                if attribute == "stride" and name.endswith(".24"):
                    wanted = ("tensor", "float32", (3,))  # in half precision there
                if attribute == "yaml":
                    wanted["head"][1][3] = wanted["head"][5][3] = [None, 2, "nearest"]  # the text "None" there
                assert got == wanted, f"{name}: {attribute}"
                compared += 1
    assert compared > 3000


def test_a_training_is_kept_in_yolov5s_keys_and_stripped_as_yolov5_does(tmp_path: Path) -> None:
    model, ema = small(OTHER_LAYERS), small(OTHER_LAYERS)
    with torch.no_grad():
        ema.state_dict()["model.11.m.0.bias"].fill_(7)  # shares memory
    optimizer, state = stepped(model)
    saved = content(model, ema, optimizer=optimizer.state_dict(), resume=state)
    write_checkpoint(tmp_path / "last.pt", saved)
    root = root_of(tmp_path / "last.pt")
    assert [root["ema"].name, root["model"].name] == ["models.yolo.Model"] * 2
    assert set(root["optimizer"]) == {"state", "param_groups"}
    assert_same_state(tmp_path / "last.pt", ema)
    write_checkpoint(tmp_path / "best.pt", stripped(saved))
    assert_same_state(tmp_path / "best.pt", ema)
    root = root_of(tmp_path / "best.pt")
    assert root.pop("model").get("hyp") == {"lr0": 0.01}
    assert root == {"epoch": -1, "best_fitness": None, "ema": None, "updates": None, "optimizer": None,
                    "wandb_id": None, "date": saved.date}  # fmt: skip
    assert read_checkpoint(tmp_path / "best.pt").names == saved.names


def stepped(model: DetectionModel) -> tuple[torch.optim.Optimizer, ResumeState]:
    """An optimizer with momentum, and a state that holds the same tensors."""
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors[f"optimizer/{number}/momentum_buffer"] = state["momentum_buffer"]
    return optimizer, ResumeState(tensors, {"epoch": 3})


# --- against torch ----------------------------------------------------------------------------------------------


def test_torch_loads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The one class of YOLOv5's whose name differs here; the others are found in our modules, with the file's state.
    monkeypatch.setattr(models.yolo, "Model", DetectionModel, raising=False)
    model = small(ROOT / "models/yolov5s-transformer.yaml")
    optimizer, state = stepped(model)
    path = tmp_path / "last.pt"
    write_checkpoint(path, content(model, optimizer=optimizer.state_dict(), resume=state, half=False))
    options: dict[str, Any] = (
        {"weights_only": False, "mmap": True} if "mmap" in inspect.signature(torch.load).parameters else {}
    )
    loaded = torch.load(path, **options)
    for name, tensor in loaded["model"].state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for theirs, ours in zip(loaded["model"](images), model(images)):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    again = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.1)
    again.load_state_dict(loaded["optimizer"])
    assert again.param_groups[0]["momentum"] == 0.9 and again.param_groups[0]["nesterov"] is True
    for weight, momentum in optimizer.state.items():
        torch.testing.assert_close(again.state[weight]["momentum_buffer"], momentum["momentum_buffer"], rtol=0, atol=0)


def test_tensors_of_one_memory_are_written_once(tmp_path: Path) -> None:
    model = small(OTHER_LAYERS)
    optimizer, state = stepped(model)
    sizes = {}
    cases: dict[str, dict[str, Any]] = {
        "alone": {"half": False},
        "with optimizer": {"half": False, "optimizer": optimizer.state_dict()},
        "with all": {"half": False, "optimizer": optimizer.state_dict(), "resume": state, "ema": model},
    }
    for name, changes in cases.items():
        write_checkpoint(tmp_path / f"{name}.pt", content(model, **changes))
        with zipfile.ZipFile(tmp_path / f"{name}.pt") as archive:
            sizes[name] = sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
    weights = sum(tensor.numel() * 4 for tensor in model.parameters())
    assert sizes["with optimizer"] == sizes["alone"] + weights
    assert sizes["with all"] == sizes["with optimizer"]


def test_every_member_is_stored_whole_and_begins_at_a_multiple_of_64(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, content(small(OTHER_LAYERS)))
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {entry.filename.split("/")[0] for entry in archive.infolist()} == {"last"}
        assert archive.read("last/version") == b"3\n" and archive.read("last/byteorder") == sys.byteorder.encode()
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            name_length, extra_length = np.frombuffer(whole, "<u2", 2, entry.header_offset + 26)
            start = entry.header_offset + 30 + int(name_length) + int(extra_length)
            assert start % 64 == 0
            assert whole[start : start + entry.file_size] == archive.read(entry)


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    model = small(OTHER_LAYERS)
    for folder in ("a", "b"):
        write_checkpoint(tmp_path / folder / "best.pt", content(model))
    assert (tmp_path / "a/best.pt").read_bytes() == (tmp_path / "b/best.pt").read_bytes()


# --- a writer that is killed ------------------------------------------------------------------------------------

# For each line of input: a process of its own that writes for ever, its number in the weights and beside them.
WRITER = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
from models.checkpoint import read_checkpoint
from models.checkpoint_writer import SavedTraining, write_checkpoint, yaml_of
from models.detector import build_model
from models.resume import ResumeState
torch.set_num_threads(1)
source, path = map(Path, sys.argv[1:])
checkpoint = read_checkpoint(source)
model = build_model(checkpoint)
saved = SavedTraining(model, None, checkpoint.names, yaml_of(model.spec), 0, None, 0, None, "", {})
epoch = 0
for _ in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        epoch += 100
        continue
    while True:
        epoch += 1
        model.detect.m[0].bias.fill_(epoch)
        state = ResumeState({"bias": model.detect.m[0].bias}, {"epoch": epoch})
        write_checkpoint(path, replace(saved, epoch=epoch, resume=state))
"""


def identity(path: Path) -> int:
    """Of the file that is there, so that a new one is noticed; 0 where there is none."""
    return path.stat().st_ino if path.is_file() else 0


def test_a_killed_writer_leaves_a_whole_file(yolov5n_pt: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    command = [sys.executable, "-c", WRITER, str(yolov5n_pt), str(path)]
    pauses = random.Random(0)
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        known = 0
        for _ in range(6):
            writer.stdin.write("go\n")
            writer.stdin.flush()
            child = int(writer.stdout.readline())
            deadline = time.monotonic() + 60
            beside = tmp_path / f".last.pt.{child}.tmp"  # until it has written once and is at it again
            while (identity(path) == known or not beside.is_file()) and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(pauses.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
            checkpoint, resume = read_checkpoint(path), read_resume(path)
            assert resume is not None and resume.plain["epoch"] == checkpoint.meta["epoch"]
            assert set(checkpoint.state["model.24.m.0.bias"]) == {checkpoint.meta["epoch"]}
            assert set(resume.tensors["bias"].tolist()) == {checkpoint.meta["epoch"]}
            known = identity(path)
        writer.stdin.close()
        assert writer.wait(30) == 0
    assert list(tmp_path.glob(".last.pt.*.tmp"))  # some were killed in the middle of a file
