"""Reading checkpoints that torch really wrote, against torch itself, and hostile ones, against what they must say."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.allowed import Guard, Holder, found, numbers_of
from models.archive import opened
from models.checkpoint import read_checkpoint
from models.tensors import arrays_of
from models.unpickle import read_pickle
from tests.attacks import Attack, pickles, values, zips
from tests.conftest import ROOT
from utils.errors import WeightsError

ATTACKS = [*pickles.ATTACKS, *zips.ATTACKS, *values.ATTACKS]


def saved(folder: Path, content: Any, **options: Any) -> Path:
    """What torch.save makes of it."""
    path = folder / "saved.pt"
    torch.save(content, path, **options)
    return path


def arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A file that holds one dict of tensors."""
    with opened(path) as archive:
        return arrays_of(archive, read_pickle(archive))


def root_of(path: Path) -> Any:
    with opened(path) as archive:
        return read_pickle(archive)


# --- true files -------------------------------------------------------------------------------------------------


def test_tensors_of_every_type_equal_torchs(tmp_path: Path) -> None:
    kinds = [torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    kinds += [torch.int8, torch.uint8, torch.bool]
    values = torch.linspace(-3, 100, 24).reshape(2, 3, 4)
    tensors = {str(kind): values.to(kind) for kind in kinds}
    read = arrays(saved(tmp_path, tensors))
    assert read["torch.bfloat16"].dtype == np.float32
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
        np.testing.assert_array_equal(read[name], expected.numpy())
        assert read[name].dtype == expected.numpy().dtype


def test_numbers_that_are_none_keep_their_bits(tmp_path: Path) -> None:
    tensors = {kind: torch.tensor([np.nan, np.inf, -np.inf, -0.0]).to(getattr(torch, kind)) for kind in
               ("float16", "float32", "bfloat16")}  # fmt: skip
    for name, array in arrays(saved(tmp_path, tensors)).items():
        np.testing.assert_array_equal(array, tensors[name].float().numpy())
        assert np.signbit(array[3])


def test_views_of_every_shape_equal_torchs(tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    tensors = {
        "transposed": base.permute(2, 0, 1),
        "a part": base[1:, ::2, 3],
        "channels last": torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "the storage again": base,
        "spread": torch.tensor([7.0, 8.0]).unsqueeze(1).expand(2, 9),
        "one number": torch.tensor(3, dtype=torch.int64),
        "nothing": torch.empty(0),
        "nothing, with sides": torch.empty(2, 0, 3),
        "nothing at the end": base.reshape(-1)[60:],
        "one of many": torch.arange(1000.0)[500],
    }
    read = arrays(saved(tmp_path, tensors))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())
        assert read[name].shape == tuple(tensor.shape)
        assert read[name].flags.c_contiguous and read[name].flags.writeable


def test_arrays_of_one_storage_are_apart(tmp_path: Path) -> None:
    base = torch.zeros(4)
    read = arrays(saved(tmp_path, {"a": base, "b": base, "c": base[1:3]}))
    read["a"][:] = 1
    assert read["b"].tolist() == [0] * 4 and read["c"].tolist() == [0] * 2


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back(tmp_path: Path, protocol: int) -> None:
    plain = {
        "numbers": [0, 255, 256, 65536, -1, 2**40, -(2**70), 0.5, float("inf"), True, False, None],
        "texts": ("", "a", "x" * 300, "猫\n", {"deep": {1: [(), ((),), (1, 2, 3, 4)]}}),
        "bytes": b"\x00\xff",
        "set": {"a", "b"},
    }
    assert root_of(saved(tmp_path, plain, pickle_protocol=protocol)) == plain


def test_torch_and_numpy_values_become_plain(tmp_path: Path) -> None:
    read = root_of(
        saved(
            tmp_path,
            {
                "size": torch.Size([2, 3]),
                "device": torch.device("cuda", 1),
                "dtype": torch.float16,
                "scalar": np.float64(0.25),
                "small": np.float32(0.5),
                "whole": np.int64(-3),
                "truth": np.bool_(True),
                "array": np.array([0.125, 7.0]),
                "path": Path("/tmp/x"),
                "linear": torch.nn.Linear(2, 1),
            },
        )
    )
    assert (read["size"], read["dtype"], read["device"]) == ((2, 3), "torch.float16", "torch.device:cuda")
    assert (read["scalar"], read["small"], read["whole"], read["truth"]) == (0.25, 0.5, -3, True)
    assert all(type(read[name]) in (float, int, bool) for name in ("scalar", "small", "whole", "truth"))
    assert numbers_of(read["array"]) == [0.125, 7.0]
    assert isinstance(read["path"], Holder) and read["path"].kind == "PosixPath"
    assert read["linear"].name == "torch.nn.modules.linear.Linear"
    assert read["linear"].get("in_features") == 2


def test_a_state_dict_is_read_with_its_metadata_left_out(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    read = arrays(saved(tmp_path, state))
    assert list(read) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


@pytest.mark.parametrize("order", ["little", "big"])
def test_byte_order_is_honoured(tmp_path: Path, order: str) -> None:
    tensors = {
        "half": torch.tensor([1.5, -2.0]).half(),
        "long": torch.tensor([1, 2**40]),
        "b": torch.ones(2).bfloat16(),
    }
    path = saved(tmp_path, tensors)
    turned = tmp_path / "turned.pt"
    sizes = {"saved/data/0": 2, "saved/data/1": 8, "saved/data/2": 2}
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(turned, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("byteorder"):
                content = order.encode()
            elif name in sizes and order == "big":
                content = np.frombuffer(content, f"V{sizes[name]}").view(f"u{sizes[name]}").byteswap().tobytes()
            target.writestr(name, content)
    read = arrays(turned)
    assert {name: array.tolist() for name, array in read.items()} == {
        "half": [1.5, -2],
        "long": [1, 2**40],
        "b": [1, 1],
    }
    assert all(array.dtype.isnative for array in read.values())


def test_a_file_that_zip_wrote_is_read(tmp_path: Path) -> None:
    """Users repack: with compression, with zip64 headers, in another order."""
    path, packed = saved(tmp_path, {"a": torch.zeros(1000), "b": torch.arange(4)}), tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in reversed(source.namelist()):
            with target.open(name, "w", force_zip64=True) as file:
                file.write(source.read(name))
    assert {name: array.sum() for name, array in arrays(packed).items()} == {"a": 0, "b": 6}


def test_types_off_the_list_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"torch\._utils\._rebuild_sparse_tensor"):
        root_of(saved(tmp_path, torch.eye(2).to_sparse()))


def test_torchs_legacy_files_are_told_what_to_do(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.ones(1)}, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="older than"):
        root_of(path)


# --- hostile files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_refused_in_one_line_and_leaves_no_trace(attack: Attack, tmp_path: Path) -> None:
    marker, path = tmp_path / "was here", tmp_path / "hostile.pt"
    path.write_bytes(attack.content(f"touch {shlex.quote(str(marker))}"))
    if attack.says is None:
        read_checkpoint(path)
    else:
        with pytest.raises(WeightsError) as caught:
            read_checkpoint(path)
        text = str(caught.value)
        assert attack.says in text
        assert text.startswith(f"{path}: ") and text.isprintable() and len(text) < len(str(path)) + 250
    assert not marker.exists()


def test_attacks_have_names_of_their_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack.runs_in_pickle], ids=lambda a: a.name)
def test_attack_is_a_real_one(attack: Attack, tmp_path: Path) -> None:
    """Python's own machine falls for it: otherwise the tests above would prove little."""
    marker = tmp_path / "was here"
    content = attack.content(f"touch {shlex.quote(str(marker))}")
    if content.startswith(b"PK"):
        (tmp_path / "hostile.pt").write_bytes(content)
        content = zipfile.ZipFile(tmp_path / "hostile.pt").read("archive/data.pkl")
    with pytest.raises(Exception):  # noqa: B017  # the rest of the pickle names classes that aren't there
        pickle.loads(content)
        raise ValueError("it ran to its end")
    assert marker.exists()


def test_a_function_of_the_list_can_not_be_changed(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    before = found(guard, "torch._utils", "_rebuild_tensor_v2")
    for attack in pickles.OPCODES:
        path = tmp_path / "hostile.pt"
        path.write_bytes(attack.content("true"))
        try:
            root_of(path)
        except WeightsError:
            continue
    assert found(guard, "torch._utils", "_rebuild_tensor_v2") is before
    assert before.call.__defaults__ is None


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(WeightsError, match="is not a regular file"):
            read_checkpoint(path)
    with pytest.raises(WeightsError, match="No such file"):
        read_checkpoint(tmp_path / "missing.pt")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "loop")


FRUGAL = """
import json, resource, sys
from pathlib import Path
from models.checkpoint import read_checkpoint
from utils.errors import WeightsError
base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + (400 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
ended = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_checkpoint(path)
        ended[path.name] = "read"
    except WeightsError:
        ended[path.name] = "refused"
    except BaseException as cause:
        ended[path.name] = type(cause).__name__
print(json.dumps([ended, sorted({"torch", "pickle", "models.yolo"} & set(sys.modules))]))
"""


def test_no_attack_costs_much_memory_or_time_nor_imports_torch(tmp_path: Path) -> None:
    """All attacks in one process that may have 400 MB and a minute; torch is never loaded in it."""
    for number, attack in enumerate(ATTACKS):
        (tmp_path / f"{number:04d}.pt").write_bytes(attack.content("true"))
    frugal = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FRUGAL, str(tmp_path)], env=frugal, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ended, loaded = json.loads(done.stdout)
    assert ended == {
        f"{number:04d}.pt": "read" if attack.says is None else "refused" for number, attack in enumerate(ATTACKS)
    }
    assert loaded in ([], ["pickle"])  # numpy loads pickle, at least in some versions
