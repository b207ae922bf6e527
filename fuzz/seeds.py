"""What fuzzing begins with: small files, drawn here or taken from ../shared where that is there."""

from __future__ import annotations

import functools
import io
import json
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import yaml

from mining.records import Record, encode
from models.checkpoint_writer import yaml_of
from models.resume import ResumeState
from models.yolo import make_model, parse_spec
from tests.attacks import pickles as hostile_pickles
from tests.attacks import zips as hostile_zips
from tests.attacks.writing import Call, Entry, Name, View, checkpoint, members, root, zipped
from training.building import Machine, build_training
from training.resuming import config_as_plain
from utils.distributed import World
from utils.evolve import Generation, evolution_text
from utils.hyp import Hyp
from utils.labelled import LabelledSet, yolo_set
from utils.records import RecordFile
from utils.stats import MiningStats, write_stats
from utils.train_log import EpochRow, results_text
from utils.train_settings import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
MOST_BYTES = 1 << 15  # a larger seed leaves no room to grow

CLASS_NAMES = ("cat", "dog", "\N{CAT} face")
PICTURE_HW = (480, 640)
CACHE_KEY = "key"
RECORDS_DIGEST = '{"weights": "1"}'

TRUE = members(root())  # data.pkl and the storages it names

NUMBER_TOKENS = (b"nan", b"inf", b"-1", b"1e308", b"1_0", b"0x1", b"\xef\xbb\xbf", b", ", b" 0.5")
LITERAL_TOKENS = (b"[", b"{", b"'", b'"', b"0: ", b"True", b"None", b"1e9", b"\\x", b"\\N{")
VOC_TOKENS = (
    *(f"<{tag}>".encode() for tag in ("annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax")),
    *(b"</object>", b"</annotation>", b"<!DOCTYPE a [", b"<!ENTITY a 'b'>", b"&a;", b"<![CDATA[", b"]]>", b"<?xml"),
    *(b'encoding="utf-7"', b'encoding="utf-16"', b'encoding="idna"', b'encoding="cp037"'),
)
COCO_TOKENS = (
    *(f'"{key}":'.encode() for key in ("images", "annotations", "categories", "id", "image_id", "category_id")),
    *(f'"{key}":'.encode() for key in ("bbox", "iscrowd", "file_name", "name")),
    *(b"[", b"]", b"{", b"}", b"null", b"true", b"NaN", b"Infinity", b"1e999", b'"\\ud800"', b"\\\\"),
)
YAML_TOKENS = (
    *(f"!!{tag} ".encode() for tag in ("int", "float", "bool", "timestamp", "binary", "omap", "pairs", "set", "str")),
    *(f"!!{tag} ".encode() for tag in ("null", "merge", "value", "map", "seq", "python/name:os.system")),
    *(
        b"&a ",
        b"*a",
        b"<<: *a",
        b"? ",
        b": ",
        b"- ",
        b"| ",
        b"> ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"---",
        b"...",
        b"%YAML 1.1",
    ),
    *(
        b"%YAML 1.1",
        b"1:1:1",
        b"0b1",
        b"0x_",
        b".inf",
        b".nan",
        b"2001-12-14t21:59:43.10-05:00",
        b"=",
        b"~",
        b"\\ud800",
        b"\\0",
    ),
)
ENV_TOKENS = (
    *(f"{key}: ".encode() for key in ("task_id", "protocol_version", "run_training", "run_infer", "input", "output")),
    *(f"{key}: ".encode() for key in ("root_dir", "assets_dir", "monitor_file", "config_file", "manifest_file")),
    *(b"/in", b"/out", b"../", b'"\\0"'),
)
CONFIG_TOKENS = (
    *(f"{key}: ".encode() for key in ("class_names", "gpu_id", "args_options", "ymir_saved_file_patterns", "epochs")),
    *(f"{key}: ".encode() for key in ("class_distribution_scores", "pretrained_model_params", "model", "seed")),
    *(b"--batch-size ", b"--hyp ", b"--cfg ", b"--weights ", b"--freeze ", b"--help", b"(?i)", b"{1,9}", b"(?P<a>"),
)
MODEL_TOKENS = (
    *(f"{key}: ".encode() for key in ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head", "ch")),
    *(f"{name}, [".encode() for name in ("Conv", "DWConv", "GhostConv", "Focus", "C3", "C3TR", "C3Ghost", "SPP")),
    *(f"{name}, [".encode() for name in ("SPPF", "Bottleneck", "BottleneckCSP", "nn.Upsample", "nn.MaxPool2d")),
    *(f"{name}, [".encode() for name in ("nn.ZeroPad2d", "Concat", "Detect")),
    *(
        b"  - [-1, 1, ",
        b"  - [[-1, 0], 1, ",
        b"None, 2, 'nearest'",
        b"activation: ",
        b"PReLU(2)",
        b"LeakyReLU(-1e300)",
        b"GELU(1)",
    ),
    *(b"1000000000", b"16384", b"100", b"0.0001", b"1e9"),
)
STATE_TOKENS = (
    *(f'"{key}": '.encode() for key in ("version", "plain", "about", "ema", "optimizer", "step", "loss", "stop")),
    *(f'"{key}": '.encode() for key in ("accumulation", "position", "means", "best", "groups", "values", "config")),
    *(f'"{key}": '.encode() for key in ("yaml", "names", "updates", "level_weights", "freeze", "hyp", "pictures")),
    *(b"NaN", b"Infinity", b"-1", b"1e999", b"null", b"[]", b"{}", b'"0.exp_avg"', b"10000000000000000000"),
)
LEFT_TOKENS = (
    b", ",
    b"nan",
    b"inf",
    b"timestamp: ",
    b"mAP: ",
    b"stage_name: ",
    b"files: ",
    b"model: ",
    b"w.pt",
    b"../",
)
PICTURE_TOKENS = (
    *(b"\xff\xd8\xff", b"\xff\xc0", b"\xff\xc2", b"\xff\xe1", b"Exif\0\0", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\x89PNG\r\n\x1a\n", b"IHDR", b"eXIf", b"IEND", b"RIFF", b"WEBP", b"VP8X", b"VP8L", b"VP8 ", b"EXIF", b"BM"),
)
PICKLE_TOKENS = (
    *(
        bytes([code])
        for code in b"\x80\x95(10N\x88\x89JKMG\x8aX\x8c\x8dBC\x8e)]}\x8ft\x85\x86\x87qr\x94hjaesu\x90c\x93R\x81bQ."
    ),
    *(f"c{name}\n".encode() for name in ("torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter")),
    *(f"c{name}\n".encode() for name in ("collections\nOrderedDict", "torch\nSize", "torch\ndevice", "builtins\nset")),
    *(f"c{name}\n".encode() for name in ("torch\nFloatStorage", "torch\nHalfStorage", "torch\nBoolStorage")),
    *(f"c{name}\n".encode() for name in ("numpy.core.multiarray\n_reconstruct", "numpy.core.multiarray\nscalar")),
    *(f"c{name}\n".encode() for name in ("numpy\ndtype", "numpy\nndarray", "_codecs\nencode", "models.yolo\nDetect")),
    *(b"_modules", b"_parameters", b"_buffers", b"anchors", b"stride", b"names", b"yaml", b"ema", b"model", b"storage"),
)


def _small(files: Iterable[bytes]) -> list[bytes]:
    return [content for content in files if len(content) <= MOST_BYTES]


def _shared(pattern: str, count: int) -> list[Path]:
    return sorted(SHARED.glob(pattern))[:count]


# ---- weights ---------------------------------------------------------------------------------------------------------


def zip_around(pickle: bytes, parts: Sequence[Entry] = TRUE) -> bytes:
    """Give a .pt with this data.pkl and the storages of a small true one. parts: its members, data.pkl first."""
    return zipped([Entry(parts[0].name, pickle), *parts[1:]])


def zips() -> list[bytes]:
    """Give a small true .pt, as stored and as deflated, and hostile ones."""
    packed = zipped([Entry(entry.name, entry.content, deflated=True) for entry in TRUE])
    return _small([checkpoint(root()), packed, *(attack.content("true") for attack in hostile_zips.ATTACKS)])


def pickles() -> list[bytes]:
    """Give the data.pkl of a small true .pt and of hostile ones."""
    hostile = [attack.content("true") for attack in hostile_pickles.ATTACKS]
    return _small([TRUE[0].content, *filter(None, map(_pickle_of, hostile))])


def _pickle_of(content: bytes) -> bytes:
    """The first member of a zip that tests.attacks.writing wrote, if that is data.pkl and stored."""
    signature, _, _, method, _, _, _, packed, _, name, extra = struct.unpack_from("<4s5H3L2H", content)
    start = 30 + name + extra
    is_pickle = signature == b"PK\3\4" and method == 0 and content[30 : 30 + name].endswith(b"data.pkl")
    return content[start : start + packed] if is_pickle else b""


def onnx_files() -> list[bytes]:
    """Give small graphs: a plain one with metadata, one with graphs inside, and one each that is refused."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.zeros((1, 3, 1, 1), np.float32), "w")

    def model(nodes: list[Any], shape: list[Any], tensors: list[Any], **about: str) -> Any:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
        output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)
        made = helper.make_model(helper.make_graph(nodes, "g", [images], [output], tensors))
        helper.set_model_props(made, about)
        return made

    conv = helper.make_node("Conv", ["images", "w"], ["output0"])
    plain = model([conv], [1, 3, 64, 64], [weight], stride="32", names="{0: 'cat', 1: 'dog'}")
    free = model([conv], ["b", 3, "h", "w"], [weight], stride="32.0", names="['cat']", strides="[8, 16, 32]")
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "i", [], [], [weight])
    for _ in range(3):
        inner = helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)], "i", [], []
        )
    nested = model([helper.make_node("If", ["c"], ["output0"], then_branch=inner, else_branch=inner)], [1, 3, 8, 8], [])
    foreign = model([helper.make_node("Evil", ["images"], ["output0"], domain="com.other")], [1, 3, 8, 8], [])
    outside = model([conv], [1, 3, 8, 8], [weight])
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    half = model([conv], [1, 3, 8, 8], [weight])
    half.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    sparse = model([conv], [1, 3, 8, 8], [])
    sparse.graph.sparse_initializer.add().values.CopyFrom(weight)
    return [one.SerializeToString() for one in (plain, free, nested, foreign, outside, half, sparse)]


def _choice(graph: Any) -> Any:
    """A node with graphs inside."""
    from onnx import helper

    return helper.make_node("If", ["c"], ["output0"], then_branch=graph, else_branch=graph)


def metadata() -> list[bytes]:
    """Give lines of stride, strides, anchors_per_cell and names."""
    return [
        b"32\n[8, 16, 32]\n3\n{0: 'cat', 1: 'dog'}",
        b"32.0\n(8,)\n1\n['it\\'s', \"two\", '\\u732b', '\\x00']",
        b"None\nNone\nNone\n{'0': 'cat', '1': 7}",
        b"-1\n[]\n\n(True, None, 1.5, b'x', -2j, 1 + 1)",
        b"'" + b"a" * 300 + b"'",
        b"1" + b"+1" * 15_000,  # of longer ones Python 3.9's own reader dies
        b"a" + b"[0]" * 10_000,
        b"-" * 20_000 + b"1",
        b"[" * 300,
    ]


# ---- trainings -------------------------------------------------------------------------------------------------------

LAST_CLASSES = 2
_STEM = "[-1, 1, Conv, [8, 8, 8, 0]]"
_SMALL = f"""\
nc: 2
depth_multiple: 1.0
width_multiple: 1.0
anchors: [[1, 2, 3, 4]]
backbone: [{_STEM}]
head: [[[-1], 1, Detect, [nc, anchors]]]
"""


def models() -> list[bytes]:
    """Give our own model yamls, narrow, and small ones of every layer, and some that are too large."""
    ours = []
    for path in sorted((ROOT / "models").glob("*.yaml")):
        text = path.read_text()
        ours.append(re.sub(r"width_multiple: .*", "width_multiple: 0.02", text).encode())
    every = """\
nc: 2
depth_multiple: 0.5
width_multiple: 1
anchors: 2
activation: nn.LeakyReLU(0.1)
backbone:
  - [-1, 1, Focus, [8, 3]]
  - [-1, 1, DWConv, [16, 3, 2]]
  - [-1, 2, GhostConv, [8, 3, 1]]
  - [-1, 1, nn.ZeroPad2d, [[0, 1, 0, 1]]]
  - [-1, 1, nn.MaxPool2d, [2, 1, 0]]
  - [-1, 3, BottleneckCSP, [8]]
  - [-1, 2, Bottleneck, [8, False]]
  - [-1, 1, SPP, [8, [3, 5]]]
head:
  - [-1, 1, Conv, [16, 3, 2, None, 8]]
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 7], 1, Concat, [1]]
  - [-1, 2, C3TR, [8]]
  - [-1, 2, C3Ghost, [8, False]]
  - [[12, 8], 1, Detect, [nc, anchors]]
"""
    changes = [
        ("8, 8, 8, 0", "1000000000, 8, 8, 0"),
        ("-1, 1, Conv", "-1, 1000000, Conv"),
        ("8, 8, 8, 0", "8, '50000'"),
    ]
    changes += [("[-1]", "[" + "0, " * 200 + "]"), (_STEM, ", ".join([_STEM] * 300)), ("width_multiple: 1", "w: .nan")]
    wrong = [_SMALL.replace(old, new, 1).encode() for old, new in changes]
    wrong += [every.replace("nn.LeakyReLU(0.1)", text).encode() for text in ("Hardtanh(2)", "GELU(1)", "CELU(0)")]
    return [*_small(ours), every.encode(), _SMALL.encode(), *wrong]


@functools.cache
def _last() -> ResumeState:
    """A training of the smallest network, after a step."""
    torch.manual_seed(0)
    spec = parse_spec(yaml.safe_load(_SMALL), "small")
    network = make_model(spec)
    machine = Machine(torch.device("cpu"), "fp32", World())
    training, _ = build_training(network, TrainConfig(), machine, 9)
    sum((level.mean() for level in training.model(torch.rand(2, 3, 32, 32))), torch.zeros(())).backward()
    training.optimizer.step()
    about = {"task": "t", "names": ["a", "b"], "yaml": yaml_of(spec), "config": config_as_plain(TrainConfig())}
    return training.state(about)


def _last_root(resume: dict[str, Any]) -> dict[str, Any]:
    """What a last.pt holds, without the model that nothing here reads."""
    return {"epoch": 0, "model": None, "resume": resume}


def _last_arrays() -> dict[str, Any]:
    arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in _last().tensors.items()}
    return {name: array if array.ndim else View(array, (), ()) for name, array in arrays.items()}


@functools.cache
def last_members() -> list[Entry]:
    """Give the parts of a true last.pt."""
    return members(_last_root({"json": _last().to_json(), "tensors": _last_arrays()}))


def last_around(text: str) -> bytes:
    """Give a last.pt that says this in JSON, with true tensors."""
    return checkpoint(_last_root({"json": text, "tensors": _last_arrays()}))


def lasts() -> list[bytes]:
    """Give the data.pkl of a true last.pt, and of some that are forged; the storages are the true one's."""
    state, arrays = _last().to_json(), _last_arrays()
    hostile: list[Any] = [
        [],
        {"json": state, "tensors": {}},
        {"json": state, "tensors": {**arrays, "model/model.9.x": np.zeros(3)}},
        {"json": state, "tensors": {"a": Call(Name("os", "system"), ("true",))}},
        {"json": "{}", "tensors": arrays},
    ]
    return _small([last_members()[0].content, *(members(_last_root(resume))[0].content for resume in hostile)])


def states() -> list[bytes]:
    """Give the JSON text of a last.pt, and wrong ones."""
    text = _last().to_json()
    changes = [('"position"', '"positions"'), ('"updates": 0', '"updates": 1e999'), ('"nc": 2', '"nc": 9')]
    changes += [("Conv", "C3"), ('"groups": [', '"groups": [{},'), ('"level_weights": [', '"level_weights": [NaN, ')]
    return [text.encode(), *(text.replace(old, new).encode() for old, new in changes), b"[" * 2_000]


# ---- labels ----------------------------------------------------------------------------------------------------------

_ROWS = [(0, 10, 20, 30, 40), (1, 0, 0, 639, 479), (2, -5, 5, 700, 9)]


def arks() -> list[bytes]:
    """Give ark annotations."""
    rows = "".join(f"{class_id}, {x1}, {y1}, {x2}, {y2}, -1, 0\n" for class_id, x1, y1, x2, y2 in _ROWS)
    return [rows.encode(), b"0,1,2,3,4\r\n7,1,2,3,4\n0,nan,1,2,3\n0,1\n", b"\xef\xbb\xbf0,1e400,1,1_0,3\n", b""]


def vocs() -> list[bytes]:
    """Give VOC annotations, one in UTF-16, one with an entity."""
    objects = "".join(
        f"<object><name>{CLASS_NAMES[class_id]}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for class_id, x1, y1, x2, y2 in _ROWS
    )
    text = f"<annotation><size><width>640</width><height>480</height></size>{objects}</annotation>"
    declared = '<?xml version="1.0" encoding="{}"?>'
    return [
        text.encode(),
        (declared.format("utf-16") + text).encode("utf-16"),
        (declared.format("windows-1252") + "<annotation><object/></annotation>").encode(),
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>",
        b"<a>" * 5_000,
    ]


def cocos() -> list[bytes]:
    """Give COCO files."""
    content = {
        "images": [{"id": 1, "file_name": "images/1.jpg"}, {"id": "2", "file_name": "a\\2.jpg"}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES)],
        "annotations": [
            {"image_id": 1, "category_id": class_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": class_id}
            for class_id, x1, y1, x2, y2 in _ROWS
        ],
    }
    odd: dict[str, Any] = {**content, "annotations": [3, {"image_id": 9}, {"image_id": 1, "bbox": [1, 2, 3]}]}
    return [json.dumps(content).encode(), json.dumps(odd, ensure_ascii=False).encode(), b"[" * 2_000, b"{}"]


def yolos() -> list[bytes]:
    """Give real labels of coco128, a polygon, and rows that are wrong."""
    real = [path.read_bytes() for path in _shared("data/coco128/labels/train2017/*.txt", 8)]
    return [*_small(real), b"0 0.5 0.5 0.2 0.2\n1 0 0 1 0 1 1\n", b"0 0.5 0.5\n0 nan 0 0 0\n1e9 1e308 1e308 1e308 -1\n"]


def labelled_set() -> LabelledSet:
    """Give the set that caches are of: two pictures, none of which is there."""
    return yolo_set(CLASS_NAMES, [Path("/nowhere/images/1.jpg"), Path("/nowhere/images/2.jpg")])


def caches() -> list[bytes]:
    """Give a cache of that set, one of another key and one with damaged arrays."""
    notes = {"version": 1, "key": CACHE_KEY, "faults": [["a", 1, "b"]], "unreadable": [1, ["c"]]}
    arrays: dict[str, Any] = {
        "sizes_hw": np.array([[480, 640], [10, 20]], np.int32),
        "starts": np.array([0, 2, 3], np.int64),
        "class_ids": np.array([0, 1, 2], np.int32),
        "boxes_px": np.array([[0, 0, 9, 9], [1, 1, 4, 5], [2, 3, 4, 5]], np.float32),
        "points_px": np.array([[0, 0], [9, 0], [9, 9]], np.float32),
        "point_starts": np.array([0, 3, 3, 3], np.int64),
        "kept": np.array([0, 1], np.int64),
    }

    def saved(notes: Any, **changes: Any) -> bytes:
        text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
        return bytes(safetensors.numpy.save({**arrays, "notes": text, **changes}))

    other = saved({**notes, "key": "other"})
    return [
        saved(notes),
        other,
        saved(notes, starts=np.array([0, 9, 3], np.int64)),
        saved(notes, kept=np.array([1, 0])),
    ]


# ---- tasks -----------------------------------------------------------------------------------------------------------


def yamls() -> list[bytes]:
    """Give YAML with most of what it can do."""
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 8))
    return [
        b"a: 1\nb: [1, 2.5, true, null, 'x', \"y\\u1234\"]\nc: {d: e}\n",
        b"a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: *x\n",
        b"- !!timestamp 2001-12-14\n- !!binary aGk=\n- !!set {a, b}\n- !!omap [a: 1]\n- 1:30:00\n- 0x1F\n- .inf\n",
        b"? [a, b]\n: |\n  text\n  more\n--- >\n folded\n...\n",
        b"a: !!python/object/apply:os.system ['true']\n",
        b"&a [*a]\n",
        *(b"!!bool x", b'!!int ""', b"!!timestamp x", b"!!float x", b"!!binary x", b"? {a: b}\n: c", b"<<: 1\n"),
        b"[" * 200,
        b"1:" * 2_000 + b"1",
        laughs.encode(),
    ]


def envs() -> list[bytes]:
    """Give env.yaml of three protocols."""
    return [
        b"protocol_version: 1.0.0\ntask_id: t\nrun_training: false\nrun_mining: true\nrun_infer: true\n"
        b"input: {root_dir: /in, assets_dir: /in/assets, candidate_index_file: /in/candidate-index.tsv}\n"
        b"output: {root_dir: /out, monitor_file: /out/monitor.txt}\n",
        b"task_id: 17\nrun_infer: 'True'\ninput: {root_dir: /in, models_dir: models}\n",
        b"run_mining: 1\noutput: {root_dir: /elsewhere, monitor_file: ../x}\nmanifest_file: /img-man/manifest.yaml\n",
    ]


def configs() -> list[bytes]:
    """Give the templates that the platform shows, each with class names, and odd values of their keys."""
    templates = [path.read_bytes() for path in sorted((ROOT / "ymir/img-man").glob("*-template.yaml"))]
    named = [content + b"\nclass_names: [cat, dog]\ngpu_id: '0,1'\ntask_id: t\n" for content in templates]
    return [
        *named,
        b"class_names: \"['cat', 'dog']\"\nargs_options: --img 320 --batch-size 8 --hyp scratch-low --freeze 0 1 2\n",
        b"class_names: [cat]\nargs_options: \"--name 'a b' --data x --device 1; touch y $(z)\"\nmodel: yolov5n.yaml\n",
        b"class_names: [cat]\nclass_distribution_scores: 1.0,0.5\nepochs: '1e2'\nseed: 9223372036854775807\n",
        b"class_names: [cat]\nymir_saved_file_patterns: '.*\\.txt, (a|b)+$'\nsave_best_only: 'no'\nlr: 1e-05\n",
        b'class_names: [cat]\nymir_saved_file_patterns: "(?i)' + b"[\\0-\\U0010ffff]" * 8 + b'"\n',
        b"object_type: 3\nclass_names: cat\n",
        b"class_names: [cat]\nargs_options: '" + b"-v " * 10_000 + b"'\n",
    ]


def hyps() -> list[bytes]:
    """Give our own hyperparameters, and some that are wrong."""
    ours = [path.read_bytes() for path in sorted((ROOT / "data/hyps").glob("*.yaml"))]
    return [*ours, b"lr0: '1e-3'\nmosaic: true\n", b"lr0: .nan\n", b"box: 1e999\nnosuch: 1\n", b"{}", b"- lr0\n"]


def left_behind() -> list[bytes]:
    """Give results.csv, evolve.csv and result.yaml of both protocols."""
    row = EpochRow(0, 0.1, 0.02, 0.03, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.01, 0.01, 0.1)
    stage = "{stage_name: a, files: [w.pt, x.onnx], mAP: 0.5, timestamp: 1700000000}"
    return [
        results_text([row, replace(row, epoch=1)]).encode(),
        evolution_text([Generation(Hyp(), 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1)]).encode(),
        f"model_stages: {{a: {stage}}}\nbest_stage_name: a\nmAP: 0.5\n".encode(),
        f"model_stages: {{{', '.join(f'{n}: {stage}' for n in range(13))}}}\n".encode(),
        b"model: [w.pt, ../x]\nmap: 0.25\n",
        b"model_stages: {a: {stage_name: a, files: [1], mAP: .nan, timestamp: .inf}}\n",
    ]


def indexes() -> list[bytes]:
    """Give index files of both kinds."""
    return [
        b"/in/assets/a.jpg\n/in/assets/b c.jpg\nassets/d.jpg\n",
        b"/in/assets/a.jpg\t/in/annotations/a.txt\r\n/in/assets/b.jpg\t/in/annotations/b.txt\n",
        b"\xef\xbb\xbf../../etc/passwd\n\n \n\xff\xfe.jpg\na\tb\tc\td\n/out/../x\n",
        b"a\0b\n" + b"x" * 5_000 + b"\n",
        b"a\t" * 15_000,
    ]


# ---- pictures, mining ------------------------------------------------------------------------------------------------


def pictures() -> list[bytes]:
    """Give the beginnings of real JPEGs, and small pictures of every kind with an EXIF orientation where it has one."""
    import PIL.Image

    real = [path.read_bytes()[:4096] for path in _shared("data/coco128/images/train2017/*.jpg", 6)]
    drawn = []
    picture = PIL.Image.new("RGB", (8, 5), (9, 99, 199))
    exif = PIL.Image.Exif()
    exif[274] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        picture.save(file, kind, exif=exif)
        drawn.append(file.getvalue())
    for kind, options in (("BMP", {}), ("WEBP", {"lossless": True}), ("JPEG", {"progressive": True})):
        file = io.BytesIO()
        picture.save(file, kind, **options)
        drawn.append(file.getvalue())
    big_tiff = (
        b"II+\0"
        + struct.pack("<HHQQ", 8, 0, 16, 3)
        + b"".join(struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in ((256, 8), (257, 5), (274, 3)))
    )
    return [*real, *drawn, big_tiff, b"BM" + bytes(12) + struct.pack("<IHH", 12, 8, 5)]


def records() -> list[bytes]:
    """Give records of mining with few and with all parts."""
    floats = np.arange(3, dtype=np.float32)
    full = Record(7, "a\udcffb.jpg", 0.5, True, floats, floats, floats, np.arange(4, dtype=np.int16))
    return [encode(Record(0, "a.jpg", is_readable=False)), encode(full)]


def record_files() -> list[bytes]:
    """Give a file of two records, and the same broken off."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "records.bin")
        with RecordFile(path, RECORDS_DIGEST) as file:
            for record in records():
                file.append(record)
        content = path.read_bytes()
    return [content, content[:-3], content[:9], b"records 2\n", b""]


def stats() -> list[bytes]:
    """Give the statistics of three classes, and of none."""
    counts = np.array([1, 2, 3], np.int64)
    features = np.zeros((2, 4), np.int16)
    content = MiningStats(CLASS_NAMES, counts, counts, np.array([0.5, 1, np.nan]), features, 7, "digest")
    with TemporaryDirectory() as folder:
        path = Path(folder, "stats.safetensors")
        write_stats(path, content)
        whole = path.read_bytes()
    return [whole, whole[:40], bytes(safetensors.numpy.save({"features": features}, {"version": "1"}))]
