"""Tasks of a few real pictures at 64 px, and a look at what stands in /out at some moment: whole, or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import yaml

from make_task import TaskOptions, make_task
from models.checkpoint import read_checkpoint
from models.resume import read_resume
from tests.labelled import labelled_folder
from utils.stats import read_stats

SIDE = 64
COUNT = 4
QUICK = "--exist-ok --noplots --noautoanchor"
# Of each kind of task.
RESULTS = {"infer": "infer-result.json", "mining": "result.tsv", "train": "models/result.yaml"}
CODES = {"160004", "300001", "300002", "300003", "300004", "300005", "300101", "300102", "300103", "300201", "300301"}


def pictures_task(images: Sequence[Path], weights: Path, folder: Path, steps: str, **settings: Any) -> Path:
    """Make a mining or inference task of pictures; gives its folder, with `in`."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for image in images:
        shutil.copy(image, pictures / image.name)
    sizes = {"img_size": SIDE, "batch_size_per_gpu": 2, "num_workers_per_gpu": 1, "threads_per_rank": 1, **settings}
    make_task(pictures, folder / "task", steps, TaskOptions(weights=(weights,), settings=sizes, placing="copy"))
    return folder / "task"


def training_task(images: Sequence[Path], weights: Path, folder: Path, **settings: Any) -> Path:
    """Make a training of one epoch; gives its folder, with `in`."""
    sizes = {"epochs": 1, "img_size": SIDE, "batch_size_per_gpu": 2, "num_workers_per_gpu": 1, "nominal_batch": 2}
    options = TaskOptions(
        weights=(weights,), settings={**sizes, "args_options": QUICK, "precision": "fp32", **settings}, placing="copy"
    )
    make_task(labelled_folder(images, weights, folder), folder / "task", "train", options)
    return folder / "task"


def copied(task: Path, folder: Path) -> Path:
    """Give a task of the same /in with an empty /out."""
    folder.mkdir(parents=True)
    (folder / "in").symlink_to(task / "in")
    (folder / "out").mkdir()
    return folder


def lines_of(task: Path) -> list[str]:
    """Give the candidates of a mining or inference task."""
    return (task / "in/candidate-index.tsv").read_text().splitlines()


def monitor_of(task: Path) -> list[str]:
    """Give the fields of monitor.txt's first line; it has to be whole."""
    text = (task / "out/monitor.txt").read_text()
    assert text.endswith("\n"), text
    fields = text.split("\n")[0].split("\t")
    assert len(fields) in (4, 6) and int(fields[1]) and 0 <= float(fields[2]) <= 1, fields
    assert fields[3] == "2" if len(fields) == 4 else fields[3] == "4" and fields[4] in CODES and fields[5], fields
    return fields


def assert_whole(task: Path) -> set[str]:
    """Every file that the platform or the next start reads is whole; gives the names of those that are there."""
    out = task / "out"
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    if "monitor.txt" in names:
        monitor_of(task)
    if "result.tsv" in names:
        rows = [row.rsplit("\t", 1) for row in (out / "result.tsv").read_text().splitlines()]
        assert sorted(line for line, _ in rows) == sorted(lines_of(task))
        scores = [float(score) for _, score in rows]
        assert scores == sorted(scores, reverse=True)
    if "infer-result.json" in names:
        found = json.loads((out / "infer-result.json").read_text())["detection"]
        assert set(found) == {Path(line).name for line in lines_of(task)}
    for name in names:
        if not Path(name).name.startswith("."):
            assert_readable(out / name)
    if "models/result.yaml" in names:
        content = yaml.safe_load((out / "models/result.yaml").read_text())
        assert content["best_stage_name"] in content["model_stages"] and 0 <= content["mAP"] <= 1
        for stage in content["model_stages"].values():
            assert stage["files"]
            for file in stage["files"]:
                assert f"models/{file}" in names or f"models/{stage['stage_name']}/{file}" in names, file
    return names


def assert_readable(path: Path) -> None:
    """A file of models/ and what the next start reads is whole."""
    if path.name == "last.pt":
        assert read_resume(path) is not None
    if path.suffix == ".pt":
        assert read_checkpoint(path).nc == 80
    if path.name == "mining_stats.safetensors":
        read_stats(path)
    if path.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(str(path)))
    if path.name == "data.yaml":
        assert yaml.safe_load(path.read_text())["nc"] == 80
    if path.name == "results.csv":
        assert len({line.count(",") for line in path.read_text().splitlines()}) == 1
