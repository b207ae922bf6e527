"""What fuzzing begins with: a few small honest files for each target."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.attacks.pickles import ATTACKS
from utils.records import RecordFile
from utils.stats import MiningStats, write_stats


def seeds(target: str, folder: Path) -> list[bytes]:
    """Give honest files. folder: for scratch."""
    if target in ("pickle", "zip"):
        return _weights(target)
    if target in ("header", "picture"):
        pixels = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
        return [cv2.imencode(suffix, pixels)[1].tobytes() for suffix in (".jpg", ".png", ".bmp", ".webp", ".tiff")]
    if target == "onnx":
        return [_onnx()]
    if target == "stats":
        counts = np.ones(2, np.int64)
        stats = MiningStats(("a", "b"), counts, counts, np.ones(2), np.zeros((2, 3), np.int16), 0, "d")
        write_stats(folder / "s", stats)
        return [(folder / "s").read_bytes()]
    if target == "records":
        from mining.records import Record, encode

        with RecordFile(folder / "r", "d") as file:
            file.append(encode(Record(0, "/in/a.jpg", 0.5)))
        return [(folder / "r").read_bytes()]
    return _TEXTS[target]


_TEXTS = {
    "annotations": [
        b"\0000, 1, 2, 30, 40, -1, 0\n1, 5, 5, 9.5, 9\n",
        b"\1<annotation><size><width>64</width><height>48</height></size><object><name>dog</name><difficult>0"
        b"</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>",
        b'\2{"images":[{"id":1,"file_name":"x.jpg","width":64,"height":48}],"categories":[{"id":1,"name":"dog"}],'
        b'"annotations":[{"id":1,"image_id":1,"category_id":1,"bbox":[1,2,30,40],"iscrowd":0}]}',
        b"\0030 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.9 0.1 0.9 0.9\n",
    ],
    "yaml": [b"lr0: 0.01\nlrf: 0.1\n", b"a: &x [1, 2.5, true]\nb: *x\nc: {d: !!str 1e5}\n"],
    "config": [
        b"\0gpu_id: ''\nclass_names: [a, b]\nimg_size: '640'\nconf_thres: 0.25\n",
        b"\1task_id: t\nprotocol_version: 1.1.0\nrun_mining: true\ninput: {root_dir: /in}\noutput: {root_dir: /out}\n",
    ],
}


def _weights(target: str) -> list[bytes]:
    found = []
    for attack in ATTACKS[:40]:
        content = attack.content("true")
        if target == "zip":
            found.append(content)
            continue
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                found += [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    return found


def _onnx() -> bytes:
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 64, 64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", sides[:1], sides[1:])
    model = helper.make_model(graph)
    onnx.helper.set_model_props(model, {"stride": "32", "names": "{0: 'a'}"})
    return bytes(model.SerializeToString())
