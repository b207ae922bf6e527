"""TARGETS: what reads bytes from strangers, each as a function of bytes that succeeds or raises an error of ours.

Nothing here knows a fuzzer: tests/fuzz runs the same functions over seeds and a few hundred mutations.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Callable

import numpy as np
import torch

from formats.exported import inspect_onnx, read_told
from fuzz import seeds
from fuzz.seeds import CLASS_NAMES, PICTURE_HW
from mining.records import decode, encode
from models.archive import opened
from models.checkpoint import read_checkpoint
from models.resume import ResumeState
from models.yolo import DetectionModel, read_spec
from training.building import Machine, build_training, network_of
from training.resuming import config_from_plain, read_last, stored_settings
from training.state import Training
from utils.annotations import write_ark, write_coco, write_voc
from utils.distributed import World
from utils.errors import ConfigError, ExecutorError
from utils.evolve import best_hyp_text, evolution_text, read_evolution
from utils.hyp import read_hyp
from utils.label_scan import read_cache
from utils.labels import READERS, SUFFIXES, Labels, LabelSource, PictureFile, detect_format, read_voc_names
from utils.letterbox import input_stride
from utils.picture_headers import PictureError, read_header, read_orientation
from utils.records import RecordFile
from utils.safe_yaml import read_yaml
from utils.settings import PictureSettings
from utils.stats import read_stats
from utils.train_log import read_results, results_text
from utils.train_settings import TrainConfig
from ymir.config import Roots, infer_config, mining_config, read_env, read_task
from ymir.index import CandidateIndex, PairIndex
from ymir.results import read_stages, write_stages
from ymir.train_config import train_config

MAX_BYTES = 1 << 16  # of an input
MAX_SECONDS = 5  # that one input may take
MAX_MB = 1024  # of the whole process


@dataclass(frozen=True)
class Target:
    """One reader.

    run: reads the bytes; the folder is for files that it needs, and is the same for all inputs. It raises what `raises`
    names for bytes that are no good; any other exception, an endless loop or a lot of memory is a mistake of ours.
    seeds: honest and hostile files. tokens: what a fuzzer should try to put in.
    """

    run: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]
    tokens: tuple[bytes, ...] = ()
    raises: tuple[type[Exception], ...] = (ExecutorError,)


def check(target: Target, content: bytes, folder: Path) -> bool:
    """Run one input; gives whether it was taken. Raises whatever isn't an error of ours in one line."""
    try:
        target.run(content, folder)
    except target.raises as error:
        text = str(error)
        if not text or "\n" in text or "\r" in text:
            raise AssertionError(f"an error isn't one line: {text!r}") from error
        return False
    return True


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


# ---- weights ---------------------------------------------------------------------------------------------------------


def _zip(content: bytes, folder: Path) -> None:
    """A whole .pt."""
    path = _file(folder, "weights.pt", content)
    with opened(path) as archive:
        for name in archive.members:
            archive.read(name)
    _checkpoint(path)


def _pickle(content: bytes, folder: Path) -> None:
    """The data.pkl of a .pt whose zip is true, with the storages of the seeds."""
    _checkpoint(_file(folder, "weights.pt", seeds.zip_around(content)))


def _checkpoint(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    assert len(checkpoint.digest) == 32
    assert len(checkpoint.names) == checkpoint.nc
    assert not any("\n" in name for name in checkpoint.names)
    assert np.isfinite(checkpoint.anchors_px).all()


def _onnx(content: bytes, folder: Path) -> None:
    """An ONNX file, all but its run."""
    shape, _ = inspect_onnx(folder / "weights.onnx", content)
    assert len(shape) == 4


def _metadata(content: bytes, folder: Path) -> None:
    """What an exported file says of itself: a line for each key, the last one for the names."""
    keys = ("stride", "strides", "anchors_per_cell", "names")
    lines = content.decode("utf-8", "surrogateescape").split("\n", len(keys) - 1)
    told = read_told(dict(zip(keys[-len(lines) :], lines)), folder)
    assert told.names is None or all(name.isprintable() for name in told.names)


# ---- trainings -------------------------------------------------------------------------------------------------------

MAX_NETWORK = 300_000  # weights of a network that is built to see whether all that was told of it is true


def _model(content: bytes, folder: Path) -> None:
    """A model yaml; what is let through is built, runs, and has the weights and the maps that were told."""
    spec = read_spec(_file(folder, "m.yaml", content), classes=2)
    sizes = spec.measured()
    side = input_stride(sizes.strides)
    if side > 64:
        return
    try:
        model = DetectionModel(spec, MAX_NETWORK).eval()
    except ConfigError as error:
        assert sizes.weights > MAX_NETWORK or "groups" in str(error), error
        return
    assert sum(parameter.numel() for parameter in model.parameters()) >= sizes.weights
    with torch.no_grad():
        maps, features = model.maps_and_features(torch.zeros(1, 3, side, side))
    assert features.dim() == 4
    assert [tuple(level.shape[2:]) for level in maps] == [(side // stride,) * 2 for stride in sizes.strides]


def _resume(content: bytes, folder: Path) -> None:
    """The data.pkl of a last.pt whose zip is true, with the storages of the seeds; a training goes on from it."""
    path = _file(folder, "last.pt", seeds.zip_around(content, seeds.last_members()))
    _go_on(read_last(path))


def _state(content: bytes, folder: Path) -> None:
    """What a last.pt says in JSON, beside true tensors."""
    path = _file(folder, "last.pt", seeds.last_around(content.decode("utf-8", "surrogateescape")))
    _go_on(read_last(path))


def _go_on(state: ResumeState) -> None:
    """All that a training does with what it read, up to the next batch."""
    config_from_plain(stored_settings(state), "last.pt")
    network = network_of(state, seeds.LAST_CLASSES, "")
    training, _ = build_training(network, TrainConfig(), Machine(torch.device("cpu"), "fp32", World()), 9)
    training.load(state)
    _compare_states(training, state)


def _compare_states(training: Training, state: ResumeState) -> None:
    again = training.state({})
    for name, tensor in again.tensors.items():
        assert tensor.shape == state.tensors[name].shape, name
        assert torch.isfinite(tensor).all(), name


# ---- labels ----------------------------------------------------------------------------------------------------------


def _labels(name: str, content: bytes, folder: Path) -> None:
    """An annotation; what is read is written in all forms and read again."""
    path = _file(folder, f"annotation{SUFFIXES[name]}", content)
    picture = PictureFile(folder / "images/1.jpg", PICTURE_HW)
    labels = READERS[name](path, picture, LabelSource(CLASS_NAMES))
    height, width = PICTURE_HW
    assert ((labels.boxes_px >= 0) & (labels.boxes_px <= [width, height, width, height])).all()
    assert (labels.boxes_px[:, :2] < labels.boxes_px[:, 2:]).all()
    assert ((labels.class_ids >= 0) & (labels.class_ids < len(CLASS_NAMES))).all()
    assert not any("\n" in fault.example for fault in labels.faults)
    detect_format("", [path])
    if name == "voc":
        read_voc_names(path)
    written = {
        "ark": write_ark(labels, picture),
        "voc": write_voc(labels, picture, CLASS_NAMES),
        "coco": write_coco([("1.jpg", picture, labels)], CLASS_NAMES),
    }
    for form, text in written.items():
        again = _file(folder, f"again{SUFFIXES[form]}", text)
        _compare(labels, READERS[form](again, picture, LabelSource(CLASS_NAMES)))


def _compare(labels: Labels, again: Labels) -> None:
    assert again.class_ids.tolist() == labels.class_ids.tolist()


def _label_cache(content: bytes, folder: Path) -> None:
    """The cache of a set of two pictures: taken or not, never an error."""
    found = read_cache(_file(folder, "train.cache", content), seeds.labelled_set(), PictureSettings(), seeds.CACHE_KEY)
    if found is not None:
        found.lines()
        for index in range(len(found.table)):
            class_ids, boxes_px = found.table.labels(index)
            assert len(class_ids) == len(boxes_px)


# ---- tasks -----------------------------------------------------------------------------------------------------------


def _yaml(content: bytes, folder: Path) -> None:
    read_yaml(_file(folder, "any.yaml", content))


def _env(content: bytes, folder: Path) -> None:
    """env.yaml."""
    in_dir, out_dir = _task_dirs(folder)
    _file(in_dir, "env.yaml", content)
    env = read_env(in_dir, out_dir)
    assert env.output.monitor_file is not None
    assert env.output.monitor_file == out_dir or out_dir in env.output.monitor_file.parents


def _config(content: bytes, folder: Path) -> None:
    """config.yaml, as each task reads it."""
    in_dir, out_dir = _task_dirs(folder)
    _file(in_dir, "env.yaml", b"run_training: true\n")
    _file(in_dir, "config.yaml", content)
    task = read_task(in_dir, out_dir)
    infer_config(task)
    mining_config(task)
    train_config(task)


def _task_dirs(folder: Path) -> tuple[Path, Path]:
    dirs = folder / "in", folder / "out"
    for one in dirs:
        one.mkdir(exist_ok=True)
    return dirs


def _hyp(content: bytes, folder: Path) -> None:
    read_hyp(_file(folder, "hyp.yaml", content))


def _left(content: bytes, folder: Path) -> None:
    """What an earlier run left in /out: tables and stages, which are read or begun anew."""
    rows = read_results(_file(folder, "results.csv", content))
    assert results_text(rows).count("\n") == len(rows) + 1
    table = read_evolution(_file(folder, "evolve.csv", content))
    assert evolution_text(table).count("\n") == len(table) + 1
    if table:
        best_hyp_text(table)
    models = folder / "models"
    models.mkdir(exist_ok=True)
    (models / "w.pt").touch()
    stages = read_stages(_file(folder, "result.yaml", content))
    if stages:
        write_stages(folder / "result.yaml", models, stages)


def _index(content: bytes, folder: Path) -> None:
    """An index of either kind."""
    in_dir, out_dir = _task_dirs(folder)
    file = _file(in_dir, "index.tsv", content)
    roots = Roots(in_dir, out_dir)
    candidates = CandidateIndex(file, in_dir, in_dir / "assets", roots)
    assert candidates.count() == len(list(candidates))
    for pair in PairIndex(file, in_dir, in_dir / "assets", in_dir / "annotations", roots):
        assert pair.refused is not None or pair.image.is_absolute()


# ---- pictures, mining ------------------------------------------------------------------------------------------------


def _picture(content: bytes, folder: Path) -> None:
    """A picture's header; nothing is decoded."""
    file = io.BytesIO(content)
    header = read_header(file)
    assert min(header.stored_hw) > 0
    assert 1 <= read_orientation(file, header.kind) <= 8


def _records(content: bytes, folder: Path) -> None:
    """A shard's file of an earlier run, and each record in it; one that can't be read is left out."""
    path = _file(folder, "records.bin", content)
    with RecordFile(path, seeds.RECORDS_DIGEST) as file:
        whole = 0
        for place, record in file:
            assert file.read(place) == record
            whole += 1
            try:
                decode(record)
            except ValueError:
                continue
        file.append(b"one more")
        file.flush()
        assert sum(1 for _ in file) == whole + 1


def _record(content: bytes, folder: Path) -> None:
    """One record of mining."""
    record = decode(content)
    encode(record)


def _stats(content: bytes, folder: Path) -> None:
    read_stats(_file(folder, "mining_stats.safetensors", content))


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "zip": Target(_zip, seeds.zips, (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"\xff\xff\xff\xff")),
        "pickle": Target(_pickle, seeds.pickles, seeds.PICKLE_TOKENS),
        "model": Target(_model, seeds.models, (*seeds.YAML_TOKENS, *seeds.MODEL_TOKENS)),
        "resume": Target(_resume, seeds.lasts, seeds.PICKLE_TOKENS),
        "state": Target(_state, seeds.states, seeds.STATE_TOKENS),
        "onnx": Target(_onnx, seeds.onnx_files),
        "metadata": Target(
            _metadata, seeds.metadata, (b"[", b"{", b"'", b'"', b"0: ", b"True", b"None", b"1e9", b"\\x")
        ),
        "ark": Target(partial(_labels, "ark"), seeds.arks, seeds.NUMBER_TOKENS),
        "voc": Target(partial(_labels, "voc"), seeds.vocs, seeds.VOC_TOKENS),
        "coco": Target(partial(_labels, "coco"), seeds.cocos, seeds.COCO_TOKENS),
        "yolo": Target(partial(_labels, "yolo"), seeds.yolos, seeds.NUMBER_TOKENS),
        "cache": Target(_label_cache, seeds.caches),
        "yaml": Target(_yaml, seeds.yamls, seeds.YAML_TOKENS),
        "env": Target(_env, seeds.envs, (*seeds.YAML_TOKENS, *seeds.ENV_TOKENS)),
        "config": Target(_config, seeds.configs, (*seeds.YAML_TOKENS, *seeds.CONFIG_TOKENS)),
        "hyp": Target(_hyp, seeds.hyps, seeds.YAML_TOKENS),
        "left": Target(_left, seeds.left_behind, (*seeds.YAML_TOKENS, *seeds.LEFT_TOKENS)),
        "index": Target(_index, seeds.indexes, (b"\t", b"\n", b"../", b"/in/", b"/out/", b"\0", b"\xef\xbb\xbf")),
        "picture": Target(_picture, seeds.pictures, seeds.PICTURE_TOKENS, (PictureError,)),
        "records": Target(_records, seeds.record_files),
        "record": Target(_record, seeds.records, raises=(ValueError,)),
        "stats": Target(_stats, seeds.stats, (b"F64", b"I64", b"I16", b"BF16", b'"shape":[', b"__metadata__")),
    }
)
