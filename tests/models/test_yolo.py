"""The 23 configurations: parameter counts, wiring and strides against golden figures."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch

from models.yolo import DetectionModel, make_model, parse_activation, parse_spec, read_spec
from utils.errors import ConfigError

MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = sorted(path.stem for path in MODELS.glob("*.yaml"))


def fill_by_formula(model: DetectionModel) -> int:
    """Fill the weights as golden/README.md says for raw_formula.json; gives the number of tensors filled."""
    state = model.state_dict()
    names = sorted(name for name in state if state[name].is_floating_point() and not name.endswith("anchors"))
    for k, name in enumerate(names):
        tensor = state[name]
        v = np.sin(0.37 * np.arange(tensor.numel()) + 1.3 * k)
        if name.endswith("running_var"):
            v = 1 + 0.1 * v
        elif name.endswith("running_mean"):
            v = 0.1 * v
        elif tensor.dim() >= 2:
            v = v * np.sqrt(3 / (tensor.numel() / tensor.shape[0]))
        elif name.endswith((".bias", "_bias")):
            v = 0.1 * v
        else:
            v = 1 + 0.1 * v
        tensor.copy_(torch.from_numpy(v.astype(np.float32)).view(tensor.shape))
    return len(names)


def formula_input() -> torch.Tensor:
    y, x, c = np.arange(128)[:, None], np.arange(256)[None], np.arange(3)[:, None, None]
    values = 0.5 + 0.5 * np.sin(0.05 * (y + 1) * (c + 1) + 0.03 * x)  # (3, 128, 256)
    return torch.from_numpy(values.astype(np.float32))[None]


@pytest.mark.parametrize("name", NAMES)
def test_configuration_has_goldens_parameters_and_wiring(name: str, golden: Callable[[str], Any]) -> None:
    model = DetectionModel(read_spec(MODELS / f"{name}.yaml")).eval()
    assert sum(p.numel() for p in model.parameters()) == golden("parameters.json")[name]
    expected = golden("raw_formula.json")[name]
    with torch.no_grad():
        assert fill_by_formula(model) == expected["tensors"]
        maps = model(formula_input())
    assert [list(level.shape) for level in maps] == [level["shape"] for level in expected["levels"]]
    for level, figures in zip(maps, expected["levels"]):
        flat = level.double().flatten()
        assert float(flat.sum()) == pytest.approx(figures["sum"], abs=1e-4 * figures["abs_sum"])
        assert float(flat.abs().sum()) == pytest.approx(figures["abs_sum"], rel=1e-4)
        assert flat[:4].tolist() == pytest.approx(figures["first"], abs=1e-3)
        assert flat[-2:].tolist() == pytest.approx(figures["last"], abs=1e-3)


def test_all_23_configurations_are_here(golden: Callable[[str], Any]) -> None:
    assert sorted(golden("architectures.json")) == NAMES
    assert len(NAMES) == 23


def without_memory() -> Any:
    """Make tensors of sizes alone; torch 1 can't, and takes some gigabytes."""
    return nullcontext() if torch.__version__.startswith("1.") else torch.device("meta")


def test_model_table(golden: Callable[[str], Any]) -> None:
    for name, row in golden("model_table.json").items():
        with without_memory():
            model = DetectionModel(read_spec(MODELS / f"{name}.yaml"))
        assert list(model.stride) == row["strides"]
        assert len(model.state_dict()) == row["state_dict_entries"]
        assert model.spec.anchors_px == tuple(
            tuple(number for pair in level for number in pair) for level in row["anchors_pixels"]
        )
        assert [conv.in_channels for conv in model.detect.m] == row["detect_inputs_channels"]
        with without_memory():
            twenty = DetectionModel(read_spec(MODELS / f"{name}.yaml", classes=20))
        assert sum(p.numel() for p in twenty.parameters()) == row["parameters_nc20"]


def test_state_dict_names_are_goldens(golden: Callable[[str], Any]) -> None:
    state = make_model(read_spec(MODELS / "yolov5n.yaml")).state_dict()
    found = [[name, list(tensor.shape), str(tensor.dtype)[6:]] for name, tensor in state.items()]
    assert found == golden("yolov5n_state_dict.json")


def test_fresh_head_starts_with_few_objects() -> None:
    torch.manual_seed(0)
    model = make_model(read_spec(MODELS / "yolov5n.yaml", classes=3))
    head: Any = model.detect.m[0]
    bias = head.bias.detach().view(3, -1)
    assert float(bias[:, 4].mean()) == pytest.approx(np.log(8 / 80**2), abs=0.2)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        [],
        {"nc": 1, "depth_multiple": 1, "width_multiple": 1, "anchors": 3, "backbone": [], "head": []},
        {
            "nc": 1,
            "depth_multiple": 1e9,
            "width_multiple": 1,
            "anchors": 3,
            "backbone": [[-1, 1, "Conv", [8]]],
            "head": [[[0], 1, "Detect", ["nc", "anchors"]]],
        },
        {
            "nc": 1,
            "depth_multiple": 1,
            "width_multiple": float("nan"),
            "anchors": 3,
            "backbone": [[-1, 1, "Conv", [8]]],
            "head": [[[0], 1, "Detect", ["nc", "anchors"]]],
        },
        {
            "nc": 1,
            "depth_multiple": 1,
            "width_multiple": 1,
            "anchors": [[1, 2, 3]],
            "backbone": [[-1, 1, "Conv", [8]]],
            "head": [[[0], 1, "Detect", ["nc", "anchors"]]],
        },
    ],
)
def test_what_is_no_model_is_refused(plain: Any) -> None:
    with pytest.raises(ConfigError):
        parse_spec(plain, "x.yaml")


@pytest.mark.parametrize(
    "row",
    [
        [-1, 1, "os.system", ["touch x"]],
        [-1, 1, "Conv", [10**9, 3]],
        [-1, 1, "Conv", [8, 10**6]],
        [5, 1, "Conv", [8, 1]],
        [-9, 1, "Conv", [8, 1]],
        [-1, 1, "Conv", ["eight"]],
        [-1, 1, "Conv", []],
        [-1, 1, "nn.Upsample", [None, 0, "nearest"]],
    ],
)
def test_what_is_no_layer_is_refused(row: list[Any]) -> None:
    plain = {
        "nc": 1,
        "depth_multiple": 1,
        "width_multiple": 1,
        "anchors": 3,
        "backbone": [row],
        "head": [[[0], 1, "Detect", ["nc", "anchors"]]],
    }
    with pytest.raises(ConfigError):
        DetectionModel(parse_spec(plain, "x.yaml"))


def test_activation_is_parsed_not_evaluated() -> None:
    assert isinstance(parse_activation("", "x")(), torch.nn.SiLU)
    leaky = parse_activation("nn.LeakyReLU(0.1)", "x")()
    assert isinstance(leaky, torch.nn.LeakyReLU) and leaky.negative_slope == 0.1
    assert isinstance(parse_activation("Hardswish", "x")(), torch.nn.Hardswish)
    for text in ("Linear(3,3)", "__import__('os')", "nn.ReLU; x", "LeakyReLU(a)", "ReLU(1,2,3)", "Hardtanh(2)",
                 "GELU(1)", "CELU(0)", "ELU(1e300)", "PReLU(2)", "RReLU(2, 1)"):  # fmt: skip
        with pytest.raises(ConfigError):
            parse_activation(text, "x")
