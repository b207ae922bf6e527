"""Boxes instead of rows: the standard NonMaxSuppression put behind a network, inside the ONNX graph.

Outputs have the names that TensorRT's users know (facts: export): num_dets (B, 1), det_boxes (B, K, 4) as x1 y1 x2 y2
in input px, det_scores (B, K), det_classes (B, K), best first; places beyond num_dets hold zeros. As in inference, a
row has one class, its likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from formats.options import ExportOptions

if TYPE_CHECKING:
    import onnx

AXES_AS_INPUT = {"Unsqueeze": 13, "ReduceSum": 13, "ReduceMax": 18}  # from which opset on


class _Graph:
    """A graph that grows at its end."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
        self._count = 0

    def numbers(self, values: Any, dtype: Any = np.int64) -> str:
        """Add constants; gives their name."""
        from onnx import numpy_helper

        name = self._new_name("numbers")
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node; gives its output's name."""
        return self.add_two(kind, *inputs, names=(name or self._new_name(kind),), **attributes)[0]

    def add_two(self, kind: str, *inputs: str, names: Sequence[str], **attributes: Any) -> Sequence[str]:
        """Add a node of named outputs."""
        from onnx import helper

        # Nodes have names of their own: of those without, onnxruntime 1.19 makes two of one name when it joins some.
        self.model.graph.node.append(helper.make_node(kind, list(inputs), list(names), name=names[0], **attributes))
        return names

    def over_axis(self, kind: str, value: str, axis: int, name: str = "", **attributes: Any) -> str:
        """Add a node whose axes are an attribute in older opsets, an input in newer ones."""
        if self._opset >= AXES_AS_INPUT[kind]:
            return self.add(kind, value, self.numbers([axis]), name=name, **attributes)
        return self.add(kind, value, name=name, axes=[axis], **attributes)

    def columns(self, value: str, start: int, end: int) -> str:
        """Take columns of the last of three axes."""
        return self.add("Slice", value, *(self.numbers([number]) for number in (start, end, 2)))

    def cast(self, value: str, kind: str, name: str = "") -> str:
        """Change numbers' type."""
        from onnx import TensorProto

        return self.add("Cast", value, name=name, to=getattr(TensorProto, kind))

    def _new_name(self, kind: str) -> str:
        self._count += 1
        return f"end/{kind}{self._count}"


def with_nms(model: onnx.ModelProto, classes: int, options: ExportOptions) -> onnx.ModelProto:
    """Give a copy of a network of rows, (B, R, 5 + classes), that ends with boxes."""
    import onnx
    from onnx import TensorProto, helper

    ended = onnx.ModelProto()
    ended.CopyFrom(model)
    graph, output = _Graph(ended), ended.graph.output[0]
    batch = output.type.tensor_type.shape.dim[0]
    first: Any = batch.dim_param or batch.dim_value
    _add_boxes(graph, output.name, classes, options)
    most = options.topk_all
    del ended.graph.output[:]
    for name, kind, shape in (
        ("num_dets", TensorProto.INT32, (first, 1)),
        ("det_boxes", TensorProto.FLOAT, (first, most, 4)),
        ("det_scores", TensorProto.FLOAT, (first, most)),
        ("det_classes", TensorProto.INT32, (first, most)),
    ):
        ended.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    return ended


def _add_boxes(graph: _Graph, rows: str, classes: int, options: ExportOptions) -> None:
    # scores (B, C, R): each row's for its likeliest class, else 0; of agnostic suppression C is 1
    centres = graph.columns(rows, 0, 4)  # (B, R, 4)
    products = graph.add("Mul", graph.columns(rows, 4, 5), graph.columns(rows, 5, 5 + classes))  # (B, R, nc)
    by_class = graph.add("Transpose", products, perm=[0, 2, 1])
    best = graph.over_axis("ReduceMax", by_class, 1, keepdims=1)  # (B, 1, R)
    if options.agnostic_nms:
        scores = best
    else:
        is_best = graph.cast(graph.add("Not", graph.add("Less", by_class, best)), "FLOAT")
        scores = graph.add("Mul", by_class, is_best)
    limits = (
        graph.numbers([options.topk_per_class]),
        graph.numbers([options.iou_thres], np.float32),
        graph.numbers([options.conf_thres], np.float32),
    )
    kept = graph.add("NonMaxSuppression", centres, scores, *limits, center_point_box=1)  # (N, 3) batch, class, box
    # What is kept, in its own place among zeros; then the best of each picture.
    nothing = graph.add("Mul", scores, graph.numbers(0, np.float32))
    in_place = graph.add("ScatterND", nothing, kept, graph.add("GatherND", scores, kept))
    flat = graph.add("Reshape", in_place, graph.numbers([0, -1]))  # (B, C R)
    padded = graph.add("Pad", flat, graph.numbers([0, 0, 0, options.topk_all]))
    most = graph.numbers([options.topk_all])
    _, places = graph.add_two("TopK", padded, most, names=("det_scores", "end/places"), axis=1)  # (B, K) each
    count = graph.add("Gather", graph.add("Shape", rows), graph.numbers(1))
    row = graph.add("Mod", places, count)  # (B, K)
    is_there = graph.add("Greater", "det_scores", graph.numbers(0, np.float32))
    _add_numbers(graph, centres, by_class, row, graph.add("Div", places, count), is_there, options)


def _add_numbers(
    graph: _Graph, centres: str, by_class: str, row: str, class_id: str, is_there: str, options: ExportOptions
) -> None:
    """Add num_dets, det_boxes and det_classes of the rows (B, K) that were chosen."""
    as_whole = graph.cast(is_there, "INT32")
    graph.over_axis("ReduceSum", as_whole, 1, name="num_dets", keepdims=1)
    middle, size = graph.columns(centres, 0, 2), graph.columns(centres, 2, 4)
    half = graph.add("Mul", size, graph.numbers(0.5, np.float32))
    corners = graph.add("Concat", graph.add("Sub", middle, half), graph.add("Add", middle, half), axis=2)
    column = graph.over_axis("Unsqueeze", row, 2)  # (B, K, 1)
    chosen = graph.add("GatherElements", corners, graph.add("Concat", *[column] * 4, axis=2), axis=1)
    shown = graph.over_axis("Unsqueeze", graph.cast(is_there, "FLOAT"), 2)
    graph.add("Mul", chosen, shown, name="det_boxes")
    if options.agnostic_nms:
        class_id = graph.add("GatherElements", graph.add("ArgMax", by_class, axis=1, keepdims=0), row, axis=1)
    graph.add("Mul", graph.cast(class_id, "INT32"), as_whole, name="det_classes")
