"""What is told of a network before it is built, against the golden figures and against what is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.yolo import DetectionModel, parse_spec, read_spec
from utils.errors import ConfigError, WeightsError
from utils.letterbox import input_stride

MODELS = Path(__file__).resolve().parents[2] / "models"
DETECT = [-1, 1, "Detect", ["nc", "anchors"]]


def described(rows: list[Any], heads: tuple[int, ...] = (-1,), **changes: Any) -> dict[str, Any]:
    """A description of these rows and a Detect."""
    head = [list(heads), *DETECT[1:]]
    plain = {"nc": 1, "depth_multiple": 1, "width_multiple": 1, "anchors": 3, "backbone": rows, "head": [head]}
    return {**plain, **changes}


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_weights_and_strides_of_all_configurations_are_the_golden_ones(
    path: Path, golden: Callable[[str], Any]
) -> None:
    sizes = read_spec(path).measured()
    assert sizes.weights == golden("parameters.json")[path.stem]
    row = golden("model_table.json").get(path.stem)
    assert row is None or list(sizes.strides) == row["strides"]


# ---- what is told is what is built -----------------------------------------------------------------------------------

KERNELS = st.sampled_from([1, 2, 3, 5, 6, None, 0])
STRIDES = st.sampled_from([1, 2, 2, 3, None])
CHANNELS = st.sampled_from([1, 8, 16, 20])
SQUARES = st.lists(st.sampled_from([1, 3, 4, 5, 9]), max_size=3)
ROWS = st.one_of(
    st.tuples(
        st.just("Conv"),
        st.tuples(CHANNELS, KERNELS, STRIDES, st.sampled_from([None, 0, 1, 2]), st.sampled_from([1, 8])),
    ),
    st.tuples(st.sampled_from(["Conv", "DWConv", "GhostConv", "Focus"]), st.tuples(CHANNELS, KERNELS, STRIDES)),
    st.tuples(
        st.sampled_from(["C3", "C3TR", "C3Ghost", "Bottleneck", "BottleneckCSP"]), st.tuples(CHANNELS, st.booleans())
    ),
    st.tuples(st.just("SPP"), st.tuples(CHANNELS, SQUARES)),
    st.tuples(st.just("SPPF"), st.tuples(CHANNELS, st.sampled_from([2, 3, 5]))),
    st.tuples(st.just("nn.Upsample"), st.tuples(st.none(), st.sampled_from([2, 1.5, 0.5]), st.just("nearest"))),
    st.tuples(st.just("nn.MaxPool2d"), st.tuples(st.integers(1, 3), STRIDES, st.integers(0, 2))),
    st.tuples(st.just("nn.ZeroPad2d"), st.tuples(st.lists(st.integers(0, 2), min_size=4, max_size=4))),
    st.tuples(st.just("Concat"), st.sampled_from([(), (1,), (2,)])),
)


@st.composite
def descriptions(draw: Any) -> dict[str, Any]:
    """One to seven layers of any kind, each behind the one before, joins of two, and two heads or one."""
    rows = []
    for number in range(draw(st.integers(1, 7))):
        name, arguments = draw(ROWS)
        source: Any = -1
        if name == "Concat":
            source = [-1, draw(st.integers(-number - 1, number))]
        rows.append([source, draw(st.sampled_from([1, 1, 1, 2, 3])), name, list(arguments)])
    heads = tuple(draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=2)))
    return described(rows, heads, depth_multiple=draw(st.sampled_from([1, 0.67])), backbone=rows[:1], head=[
        *rows[1:], [list(heads), *DETECT[1:]]])  # fmt: skip


def forward(model: DetectionModel, side: int) -> list[torch.Tensor]:
    with torch.no_grad():
        maps, features = model.eval().maps_and_features(torch.zeros(1, 3, side, side))
    assert features.dim() == 4
    return maps


@settings(max_examples=300, deadline=None)
@given(descriptions())
def test_what_is_not_refused_is_built_and_runs_with_the_sizes_told(plain: dict[str, Any]) -> None:
    try:
        spec = parse_spec(plain, "x.yaml")
    except ConfigError as error:
        assert str(error).startswith("x.yaml: ") and str(error).isprintable()
        return
    sizes = spec.measured()
    model = DetectionModel(spec, max_weights=sizes.weights)
    assert sum(parameter.numel() for parameter in model.parameters()) == sizes.weights
    for count in (1, 2):
        side = count * input_stride(sizes.strides)
        assert [tuple(level.shape[2:]) for level in forward(model, side)] == [
            (side // stride,) * 2 for stride in sizes.strides
        ]


@pytest.mark.parametrize("module", ["Conv", "DWConv", "GhostConv", "Focus", "C3", "C3TR", "C3Ghost", "SPP", "SPPF",
                                    "Bottleneck", "BottleneckCSP"])  # fmt: skip
@pytest.mark.parametrize("repeats", [1, 3])
def test_each_layer_is_counted_to_the_weight(module: str, repeats: int) -> None:
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, repeats, module, [24]], [-1, 1, "Conv", [8]]]
    spec = parse_spec(described(rows), "x.yaml")
    model = DetectionModel(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.measured().weights
    forward(model, 64)


# ---- what is refused -------------------------------------------------------------------------------------------------

CONV = [-1, 1, "Conv", [8, 3, 2]]
DEEP = [[-1, 100, "C3", [8]]] * 2
REFUSED: dict[str, tuple[list[Any], str]] = {
    "a thousand million channels": ([[-1, 1, "Conv", [10**9, 3]]], "layer 0 .*output is 1000000000"),
    "channels that are scaled up": ([[-1, 1, "Conv", [16_000]]], "layer 0 .*channels, at most"),
    "a million repeats": ([[-1, 10**6, "C3", [64]]], "1000000 repeats"),
    "repeats that are scaled up": (DEEP, "layer 1 .*blocks"),
    "one layer of 4 TB": ([CONV, [-1, 1, "Conv", [16_000, 64]], [-1, 1, "Conv", [16_000, 64]]], "layer 1 .*weights"),
    "a kernel in quotes": ([[-1, 1, "Conv", [8, "5000"]]], "kernel is 5000"),
    "many layers of 80 MB": ([[-1, 1, "Conv", [1600, 3]]] * 50, "layer 22 .*weights"),
    "pools without end": ([[-1, 1, "SPP", [8, [1] * 10_000]]], "pools"),
    "maps that grow": ([[-1, 1, "nn.Upsample", [None, 64, "nearest"]]] * 9, "layer 0 .*too much"),
    "slow at full size": ([[-1, 1, "Conv", [1000, 3]], [-1, 1, "Conv", [1000, 3]]], "too much to compute"),
    "outputs without end": ([[-1, 1, "Conv", [8, 1, 1]]], "too many numbers"),
    "a stride of 512": ([CONV] * 9, "strides have to be"),
    "a stride below one": ([[-1, 1, "nn.Upsample", [None, 2, "nearest"]]], "strides have to be"),
    "maps of other sizes joined": ([CONV, CONV, [[-1, 0], 1, "Concat", [1]]], "layer 2 .*different sizes"),
    "an even pool": ([CONV, [-1, 1, "SPPF", [8, 4]]], "odd number"),
    "a list for one": ([CONV, [[-1, 0], 1, "Conv", [8]]], "one layer"),
    "one for a list": ([CONV, [-1, 1, "Concat", [1]]], "list of layers"),
    "the picture from afar": ([CONV, [-2, 1, "Conv", [8]]], "not before it"),
    "groups that do not divide": ([CONV, [-1, 1, "Conv", [8, 1, 1, None, 3]]], "3 groups"),
    "a Detect within": ([CONV, [[-1], 1, "Detect", ["nc"]], CONV], "unknown layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_that_is_too_large_or_cannot_run_is_refused_before_it_is_built(case: str) -> None:
    rows, says = REFUSED[case]
    changes: dict[str, Any] = {"width_multiple": 20 if "channels that are" in case else 1}
    if "repeats that are" in case:
        changes["depth_multiple"] = 6
    if "outputs" in case:
        changes.update(nc=10_000, anchors=20)
    with pytest.raises(ConfigError, match=says) as raised:
        parse_spec(described(rows, **changes), "x.yaml")
    assert str(raised.value).startswith("x.yaml: ") and str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"anchors": [[1, 2] * 21]}, "21 a level"),
        ({"anchors": 10**9}, "1000000000 a level"),
        ({"head": [[[-1] * 11, *DETECT[1:]]]}, "11 levels"),
        ({"head": [DETECT]}, "list of layers"),
        ({"head": []}, "need Detect"),
        ({"head": [[[10**400], *DETECT[1:]]]}, "very large"),
        ({"backbone": [[-1, 1, "Conv", []]]}, "no output channels"),
    ],
)
def test_wrong_heads_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(WeightsError, match=says) as raised:
        parse_spec(described([CONV], **changes), "x.pt", error=WeightsError)
    assert len(str(raised.value)) < 300


def test_more_weights_than_a_file_has_are_refused_as_a_sum() -> None:
    spec = parse_spec(described([CONV] * 4), "x.yaml")
    needs = spec.measured().weights
    DetectionModel(spec, max_weights=needs)
    with pytest.raises(ConfigError, match=f"needs {needs:,} weights"):
        DetectionModel(spec, max_weights=needs - 1)
