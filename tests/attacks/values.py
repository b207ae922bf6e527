"""True zips and true pickles of a model that isn't one, or whose plain values are hostile."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from tests.attacks import Attack
from tests.attacks.writing import ANCHORS_CELLS, YAML, Call, Make, Name, checkpoint, conv, module, root, tree


def _value(name: str, says: Optional[str], **changes: Any) -> Attack:
    """A true checkpoint with one thing of its tree changed."""
    return Attack(name, lambda _: checkpoint(root(**changes)), says)


def _root(name: str, says: Optional[str], value: Any) -> Attack:
    return Attack(name, lambda _: checkpoint(value), says)


def _floats(*values: float) -> Any:
    return np.array(values, np.float32)


NO_LIST = "aren't a list"
STRIDES = "rising powers of two"
SIZES = "aren't sizes"
_WEIGHT = np.ones(3, np.float32)
_SEGMENT = {"0": conv(), "1": Make(Name("models.yolo", "Segment"), {"_buffers": {"anchors": ANCHORS_CELLS}, "nc": 2})}
_BOUND = Call(Name("__builtin__", "getattr"), (Name("models.yolo", "Detect"), "forward"))
_BOUND_SEGMENT = {"0": Make(Name("models.yolo", "Segment"), {"detect": _BOUND})}
_CLASSIFY = {"0": conv(), "1": module("models.common.Classify", {})}

NAMES = [
    _value("names of numbers", None, names=[0, 1]),
    _value("names by number", None, names={1: "dog", 0: "cat"}),
    _value("names of bytes", "is no text", names=[Call(Name("_codecs", "encode"), ("cat", "latin1")), "dog"]),
    _value("names of lists", "is no text", names=[["cat"], "dog"]),
    _value("names of nothing", "is no text", names=[None, "dog"]),
    _value("names of truth", "is no text", names=[True, "dog"]),
    _value("a name of a megabyte", "longer than 200", names=["x" * 1_000_000, "dog"]),
    _value("names in a text", NO_LIST, names="cat, dog"),
    _value("no names", NO_LIST, names=[]),
    _value("names that are a number", NO_LIST, names=2),
    _value("names numbered from 1", "numbered from 0", names={1: "cat", 2: "dog"}),
    _value("names numbered by text", "numbered from 0", names={"0": "cat", "1": "dog"}),
    _value("a name too many", "has 2 classes, but 3 names", names=["cat", "dog", "cow"]),
    _value("20,000 names", NO_LIST, names=["x"] * 20_000),
    _value("a number of classes that is none", "has list classes", nc=[2]),
    _value("a number of classes that is text", "classes, but", nc="2"),
    _value("truth for a number of classes", "has True classes", nc=True, names=["cat"]),
]

NUMBERS = [
    _value("a stride of 0", STRIDES, stride=_floats(0, 16)),
    _value("a negative stride", STRIDES, stride=_floats(-8, 16)),
    _value("a stride of NaN", STRIDES, stride=_floats(float("nan"), 16)),
    _value("a stride without an end", STRIDES, stride=_floats(8, float("inf"))),
    _value("a stride of 12", STRIDES, stride=_floats(8, 12)),
    _value("a stride of 256", STRIDES, stride=_floats(8, 256)),
    _value("falling strides", STRIDES, stride=_floats(16, 8)),
    _value("equal strides", STRIDES, stride=_floats(8, 8)),
    _value("a million strides", "no stride", stride=np.ones(1_000_000, np.float32)),
    _value("strides in a square", "no stride", stride=np.ones((2, 2), np.float32)),
    _value("no strides", "no stride", stride=None),
    _value("strides in a list", "no stride", stride=[8, 16]),
    _value("more strides than anchors", "have the shape (2, 1, 2) with 3 strides", stride=_floats(8, 16, 32)),
    _value("anchors of NaN", SIZES, anchors=ANCHORS_CELLS * np.float32("nan")),
    _value("anchors without an end", SIZES, anchors=ANCHORS_CELLS * np.float32("inf")),
    _value("negative anchors", SIZES, anchors=-ANCHORS_CELLS),
    _value("anchors to be fitted", None, anchors=np.arange(4, dtype=np.float32).reshape(2, 1, 2)),
    _value("anchors of three sides", "shape (2, 1, 3)", anchors=np.ones((2, 1, 3), np.float32)),
    _value("anchors in a row", "no anchors", anchors=np.ones(4, np.float32)),
    _value("no anchors", "anchor-free", anchors=None),
    _value("anchors of v5.0, twice", None, buffers={"anchor_grid": np.ones((2, 1, 1, 1, 1, 2), np.float32)}),
]

TREES = [
    _value("no yaml", "no yaml", yaml=None),
    _value("a yaml of text", "no yaml", yaml="nc: 2"),
    _value("a yaml without a head", "no yaml", yaml={"backbone": []}),
    _value("a yaml of NaN", "usual numbers", yaml={**YAML, "depth_multiple": float("nan")}),
    _value("a yaml of huge numbers", "usual numbers", yaml={**YAML, "width_multiple": 1e300}),
    _value("a yaml of huge integers", "usual numbers", yaml={**YAML, "ch": 1 << 100}),
    _value("a yaml of long text", "short texts", yaml={**YAML, "backbone": ["x" * 1000]}),
    _value("a yaml of modules", "usual numbers", yaml={**YAML, "backbone": [conv()]}),
    _value("a yaml of tensors", "usual numbers", yaml={**YAML, "anchors": ANCHORS_CELLS}),
    _value("a segmentation model", "segmentation", layers=_SEGMENT),
    _value("a segmentation model with its bound method", "segmentation", layers=_BOUND_SEGMENT),
    _value("a fused model with its bound method", "fused", conv=conv(forward=_BOUND)),
    _value("a classification model", "classification", layers=_CLASSIFY),
    _value("no head", "0 detection heads", layers={"0": conv()}),
    _value("two heads", "2 detection heads", layers={"0": tree(), "1": tree()}),
    _value("another head", "0 detection heads", head="models.yolo.IDetect"),
    _value("a module that is none", "is no module", layers={"0": "conv"}),
    _value("a module of no name", "names a module", layers={"": conv()}),
    _value("a module named by a number", "names a module", layers={7: conv()}),
    _value("a module named by two lines", "names a module", layers={"0\n\t": conv()}),
    _value("a module named by dots", "names a module", layers={"0.conv": conv()}),
    _value("a weight that is none", "is no tensor", conv=conv(_parameters={"weight": 1.0})),
    _value("a weight of no name", "names a module or a tensor", conv=conv(_parameters={"a b": _WEIGHT})),
    _value("modules in a list", "0 detection heads", layers=[conv()]),
    _value("an activation of nobody", "isn't torch.nn's", conv=conv(act=module("models.common.system", {}))),
    _value(
        "an activation that isn't one", "isn't torch.nn's", conv=conv(act=module("torch.nn.modules.conv.Conv2d", {}))
    ),
    _value(
        "a slope of NaN",
        "lacks its numbers",
        conv=conv(act=module("torch.nn.modules.activation.LeakyReLU", {}, negative_slope=float("nan"))),
    ),
    _root("weights only", "weights only", {"model.0.conv.weight": _WEIGHT}),
    _root("weights only, as a model", "weights only", {"model": {"model.0.conv.weight": _WEIGHT}}),
    _root("a dict of something", "neither ema nor model", {"epoch": 1}),
    _root("no model", "neither ema nor model", {"model": None, "ema": None}),
    _root("a list", "weights only", [1, 2]),
    _root("nothing at all", "weights only", None),
    _root("a text for a model", "weights only", {"model": "best"}),
    _root("a Namespace for a model", "0 detection heads", {"model": Make(Name("argparse", "Namespace"), {})}),
    _root("a model without a state", "0 detection heads", {"model": Make(Name("models.yolo", "Model"), None)}),
    _root("a model whose state is text", "0 detection heads", {"model": Make(Name("models.yolo", "Model"), "x")}),
]

ATTACKS = NAMES + NUMBERS + TREES
