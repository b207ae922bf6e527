"""Tiny YMIR tasks on real pictures, and what must be true of their /out at every moment and at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import yaml

from make_task import TaskOptions, make_task
from models.checkpoint import read_checkpoint
from models.resume import read_resume
from utils.errors import ExecutorError
from utils.stats import read_stats

SIDE = 64
PICTURES = 4
QUICK = "--exist-ok --noautoanchor --noplots"
KINDS = ("infer", "mining", "train")


@dataclass(frozen=True)
class Task:
    """A folder with in and out."""

    folder: Path

    @property
    def out(self) -> Path:
        """/out."""
        return self.folder / "out"

    @property
    def arguments(self) -> list[str]:
        """start.py's."""
        return ["--in", str(self.folder / "in"), "--out", str(self.out)]

    def configure(self, **settings: Any) -> None:
        """Change keys of config.yaml."""
        file = self.folder / "in/config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **settings}))

    def lines(self) -> list[str]:
        """Give the candidates."""
        return (self.folder / "in/candidate-index.tsv").read_text().splitlines()

    def monitor(self) -> list[str]:
        """Give the fields of monitor.txt's first line."""
        return (self.out / "monitor.txt").read_text().split("\n")[0].split("\t")


def tiny_task(kind: str, coco_images: Sequence[Path], weights: Path, folder: Path, **settings: Any) -> Task:
    """Make a task: inference or mining of four pictures, or a training of two epochs of two batches."""
    common: dict[str, Any] = {"img_size": SIDE, "batch_size_per_gpu": 2, "num_workers_per_gpu": 2}
    source = folder / "source"
    for part in ("images", "labels"):
        (source / part).mkdir(parents=True)
    for path in coco_images[:PICTURES]:
        shutil.copy(path, source / "images" / path.name)
        shutil.copy(path.parents[2] / "labels/train2017" / f"{path.stem}.txt", source / "labels")
    if kind == "train":
        names = list(read_checkpoint(weights).names)
        data = source / "data.yaml"
        data.write_text(yaml.safe_dump({"train": "images", "val": "images", "names": names}))
        common.update({"epochs": 2, "args_options": QUICK, "save_best_only": False, "save_period": 1})
    else:
        data = source / "images"
        common.update({"mining_algorithm": "entropy", "mining_report": True} if kind == "mining" else {})
    options = TaskOptions(weights=(weights,), settings={**common, **settings}, placing="copy")
    make_task(data, folder, kind, options)
    return Task(folder)


def faults_of(task: Task, kind: str) -> list[str]:
    """Say what is torn, half there or contradictory in /out, as whoever reads it at this moment would find it."""
    found: list[str] = []
    if (task.out / "monitor.txt").exists():
        found += _in_monitor(task)
    if kind == "mining" and (task.out / "result.tsv").exists():
        rows = [row.split("\t") for row in (task.out / "result.tsv").read_text().splitlines()]
        if sorted(row[0] for row in rows) != sorted(task.lines()):
            found.append("result.tsv: other lines than the candidates")
    if kind == "infer" and (task.out / "infer-result.json").exists():
        names = set(json.loads((task.out / "infer-result.json").read_text())["detection"])
        if names != {Path(line).name for line in task.lines()}:
            found.append("infer-result.json: other pictures than the candidates")
    if kind == "train":
        found += _in_models(task)
    return found


def _in_monitor(task: Task) -> list[str]:
    fields = task.monitor()
    if len(fields) < 4 or fields[3] not in ("2", "4") or not 0 <= float(fields[2]) <= 1 or not int(fields[1]):
        return [f"monitor.txt: {fields}"]
    return []


def _in_models(task: Task) -> list[str]:
    models, found = task.out / "models", []
    listed = [models / "last.pt"] if (models / "last.pt").exists() else []
    if (models / "result.yaml").exists():
        content = yaml.safe_load((models / "result.yaml").read_text())
        stages = content["model_stages"]
        if content["best_stage_name"] not in stages or not 0 <= content["mAP"] <= 1:
            found.append("result.yaml: its best stage is none")
        for name, stage in stages.items():
            places = [(models / name / file, models / file) for file in stage["files"]]
            listed += [own if own.exists() else common for own, common in places]
            if not places:
                found.append(f"result.yaml: {name} without files")
    for path in listed:
        found += _in_file(path)
    return found


def _in_file(path: Path) -> list[str]:
    try:
        if path.name == "last.pt" and read_resume(path) is None:
            return [f"{path}: nothing to go on from"]
        if path.suffix == ".pt":
            read_checkpoint(path)
        elif path.suffix == ".onnx":
            onnx.checker.check_model(onnx.load(str(path)))
        elif path.suffix == ".safetensors":
            read_stats(path)
        elif not path.is_file():
            return [f"{path}: is listed and not there"]
    except (ExecutorError, OSError, onnx.checker.ValidationError, ValueError) as error:
        return [f"{path}: {error}"]
    return []


def missing_of(task: Task, kind: str) -> list[str]:
    """Say what a task that ended well should have left and has not, and what it should not have left."""
    wanted = {
        "infer": ["infer-result.json"],
        "mining": ["result.tsv"],
        "train": ["models/result.yaml", "models/best.pt", "models/last.pt"],
    }[kind]
    missing = [f"{name}: isn't there" for name in wanted if not (task.out / name).exists()]
    if task.monitor()[2:] != ["1.0", "2"]:
        missing.append(f"monitor.txt: {task.monitor()}")
    left = [path for path in task.out.rglob("*") if path.name.endswith((".tmp", ".records"))]
    return missing + [f"{path}: was left" for path in left]


def result_of(task: Task, kind: str) -> Any:
    """Give what must be the same however often a task was begun."""
    if kind == "train":
        rows = (task.out / "tensorboard/results.csv").read_text().splitlines()
        stages = yaml.safe_load((task.out / "models/result.yaml").read_text())["model_stages"]
        return [
            [row.split(",")[0].strip() for row in rows],
            sorted((name, sorted(stage["files"]), stage["mAP"]) for name, stage in stages.items()),
        ]
    return (task.out / ("result.tsv" if kind == "mining" else "infer-result.json")).read_text()
