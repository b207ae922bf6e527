"""What a run goes on from comes back bit for bit, and is believed no more than any file from /in."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoint_writer import SavedTraining, write_checkpoint
from models.resume import ResumeState, read_resume
from tests.attacks.writing import Call, Make, Name, View, checkpoint, root
from utils.errors import WeightsError

JSON = json.dumps({"version": 1, "plain": {"epoch": 3}})


def written(path: Path, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> Path:
    """A file with this to resume from, and no model."""
    state = ResumeState(tensors, plain)
    write_checkpoint(path, SavedTraining(None, None, ("a",), {}, 3, None, None, None, "", {}, resume=state))
    return path


def assert_same(read: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Equal names in their order, types, shapes and bytes."""
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape), name
        ours, wanted = (value.contiguous().reshape(-1).view(torch.uint8) for value in (read[name], tensor))
        assert torch.equal(ours, wanted), name


def test_tensors_of_every_type_come_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    special = torch.tensor([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38])
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
    tensors = {f"of/{kind}": (torch.randn(3, 4, 5) * 100).to(kind) for kind in kinds}
    tensors.update({f"special/{kind}": special.to(kind) for kind in kinds[:4]})
    tensors["bool"] = torch.tensor([True, False])
    tensors["one number"] = torch.tensor(2**62 + 1)
    tensors["nothing"] = torch.zeros(0, 3)
    read = read_resume(written(tmp_path / "last.pt", tensors, {}))
    assert read is not None
    assert_same(read.tensors, tensors)


def test_nan_payloads_survive(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([0x7FC12345, 0x7F800001, -1], dtype=torch.int32).view(torch.float32),
               "b": torch.tensor([0x7FC1, -1], dtype=torch.int16).view(torch.bfloat16)}  # fmt: skip
    read = read_resume(written(tmp_path / "last.pt", tensors, {}))
    assert read is not None
    assert_same(read.tensors, tensors)


def test_views_come_back_contiguous_and_apart(tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    tensors = {"base": base, "turned": base.permute(2, 0, 1), "part": base[1:, ::2], "same": base,
               "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
               "asks for gradients": torch.ones(3, requires_grad=True)}  # fmt: skip
    read = read_resume(written(tmp_path / "last.pt", tensors, {}))
    assert read is not None
    assert_same(read.tensors, tensors)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in read.tensors.values())
    read.tensors["base"].zero_()
    assert torch.equal(read.tensors["same"], base)


def test_plain_values_come_back(tmp_path: Path) -> None:
    plain = {"position": {"epoch": 3}, "best": 0.1 + 0.2, "worst": float("-inf"), "names": ["猫", "\ud800"],
             "none": None, "large": 2**70, "yes": True}  # fmt: skip
    read = read_resume(written(tmp_path / "last.pt", {}, plain))
    assert read is not None and dict(read.plain) == plain


def test_what_json_cant_say_isnt_written(tmp_path: Path) -> None:
    written(tmp_path / "last.pt", {}, {"epoch": 1})
    with pytest.raises(TypeError):
        written(tmp_path / "last.pt", {}, {"epoch": {1, 2}})
    read = read_resume(tmp_path / "last.pt")
    assert read is not None and read.plain == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_yolov5s_own_file_has_nothing_to_resume_from(yolov5n_pt: Path) -> None:
    assert read_resume(yolov5n_pt) is None


# --- damage -----------------------------------------------------------------------------------------------------


def resume_of(folder: Path, resume: Any) -> Any:
    path = folder / "forged.pt"
    path.write_bytes(checkpoint({**root(), "resume": resume}))
    return read_resume(path)


def test_a_forged_file_of_true_parts_is_read(tmp_path: Path) -> None:
    read = resume_of(tmp_path, {"json": JSON, "tensors": {"a": np.arange(3.0)}})
    assert read.plain == {"epoch": 3} and read.tensors["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("resume", "says"),
    [
        ([], "isn't what"),
        ("text", "isn't what"),
        (Make(Name("models.yolo", "Model"), {}), "isn't what"),
        ({"tensors": {}}, "JSON"),
        ({"json": 7, "tensors": {}}, "JSON"),
        ({"json": "{", "tensors": {}}, "JSON"),
        ({"json": "[" * 100_000, "tensors": {}}, "JSON"),
        ({"json": '{"version": 1, "plain": ' + "9" * 5000 + "}", "tensors": {}}, "JSON"),
        ({"json": JSON + " " * (2 << 20), "tensors": {}}, "too long"),
        ({"json": "[]", "tensors": {}}, "version"),
        ({"json": '{"version": 1, "plain": []}', "tensors": {}}, "version"),
        ({"json": '{"version": 2, "plain": {}}', "tensors": {}}, "version"),
        ({"json": JSON}, "no tensors"),
        ({"json": JSON, "tensors": []}, "no tensors"),
        ({"json": JSON, "tensors": {str(number): None for number in range(20_001)}}, "no tensors, or more"),
        ({"json": JSON, "tensors": {"a": 1}}, "something else"),
        ({"json": JSON, "tensors": {1: np.zeros(1)}}, "something else"),
        ({"json": JSON, "tensors": {"a" * 301: np.zeros(1)}}, "something else"),
        ({"json": JSON, "tensors": {"a": Call(Name("torch", "Size"), ((1,),))}}, "something else"),
        ({"json": JSON, "tensors": {"a": View(np.zeros(2), shape=(3,))}}, "outside its storage"),
        ({"json": JSON, "tensors": {"a": View(np.zeros(2), shape=(1 << 40,), stride=(0,))}}, "more than the file"),
        ({"json": JSON, "tensors": {"a": Call(Name("os", "system"), ("true",))}}, "isn't on the list"),
    ],
)
def test_a_forged_part_is_refused(tmp_path: Path, resume: Any, says: str) -> None:
    with pytest.raises(WeightsError, match=says) as raised:
        resume_of(tmp_path, resume)
    assert "forged.pt" in str(raised.value) and str(raised.value).isprintable() and len(str(raised.value)) < 500


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "last.pt", {"a": torch.ones(1000)}, {})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("last/data/0").header_offset
    content[at + 500] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="checksum"):
        read_resume(path)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=3))
def test_a_damaged_file_is_read_or_refused(damage: list[tuple[float, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "last.pt", {"a": torch.ones(8), "b": torch.zeros(2)}, {"epoch": 3})
        content = bytearray(path.read_bytes())
        for place, new in damage:
            at = int(place * len(content))
            content[at : at + len(new)] = new
        path.write_bytes(content)
        try:
            read = read_resume(path)
        except WeightsError as error:
            assert str(error).isprintable()
        else:
            assert read is None or "epoch" in read.plain
