"""Make a ready /in of a folder of pictures or a data set, and say how to run it.

python make_task.py PICTURES --to DIR --task mining --weights best.pt
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Optional

import yaml

from formats.exported import Exported, open_weights
from utils.annotations import WRITERS
from utils.errors import ConfigError, DatasetError, ExecutorError, ImageError, WeightsError
from utils.labels import FaultLog
from utils.safe_yaml import parse_yaml, read_yaml
from utils.settings import OPENVINO_SUFFIX
from utils.sources import Source, open_source
from utils.stats import FILE_NAME
from ymir.params import KNOWN_KEYS, nearest_key, read_params
from ymir.weights import choose_weights

TASKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": ("run_training",),
        "infer": ("run_infer",),
        "mining": ("run_mining",),
        "mining+infer": ("run_mining", "run_infer"),
    }
)
TEMPLATES: Mapping[str, str] = MappingProxyType({"train": "training", "infer": "infer", "mining": "mining"})
PLACINGS = ("auto", "copy", "link")  # auto: hard links, copies where the file system has none
STAGE = "yolov5_best"
TOLD_OF_TRAINING = ("model", "epochs", "img_size", "batch_size_per_gpu", "gpu_id")


@dataclass(frozen=True)
class TaskOptions:
    """How a task is to be made. class_names (): the weights' or the source's own; limit 0: all pictures."""

    weights: tuple[Path, ...] = ()
    class_names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # of config.yaml, over everything else
    limit: int = 0
    placing: str = "auto"
    label_format: str = "ark"
    val_share: float = 0.1
    protocol: str = "1.1.0"
    seed: int = 0
    images_dir: Optional[Path] = None

    def __post_init__(self) -> None:
        for key, value, allowed in (("placing", self.placing, PLACINGS), ("format", self.label_format, tuple(WRITERS))):
            if value not in allowed:
                raise ConfigError(f"{key}: got {value!r}, need one of {', '.join(allowed)}")
        if "class_names" in self.settings:
            raise ConfigError("--set class_names: give --class-names a,b")
        for key in self.unread_keys:
            near = nearest_key(key)
            if near:
                raise ConfigError(f"--set {key}: there is no such key; the nearest one is {near}")
        if self.limit < 0 or not 0 <= self.val_share < 1:
            raise ConfigError(
                "limit: need 0 or more" if self.limit < 0 else "val-share: need a share from 0 to below 1"
            )
        if not all(part.isdigit() for part in self.protocol.split(".")):
            raise ConfigError(f"protocol: got {self.protocol!r}, need a version such as 1.1.0")

    @property
    def unread_keys(self) -> tuple[str, ...]:
        """Keys of the settings that no task of ours reads."""
        return tuple(key for key in self.settings if key not in KNOWN_KEYS)

    @property
    def has_stages(self) -> bool:
        """Whether the protocol lays models into a folder for each stage and names absolute paths."""
        return tuple(int(part) for part in self.protocol.split(".")) >= (1, 1)


@dataclass(frozen=True)
class TaskFolder:
    """What was made: the folders to run with, how many pictures each index lists, and what a person should know."""

    in_dir: Path
    out_dir: Path
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    gpus: tuple[str, ...] = ()  # that the task asks for

    @property
    def commands(self) -> tuple[str, str]:
        """The commands that run the task: on this machine, and in an image."""
        here, out = str(self.in_dir), str(self.out_dir)
        volumes = shlex.join(["-v", f"{self.in_dir.resolve()}:/in:ro", "-v", f"{self.out_dir.resolve()}:/out"])
        gpus = (" --gpus all" if self.gpus else "") + (" --shm-size 16g" if len(self.gpus) > 1 else "")
        return (
            shlex.join(["python", "start.py", "--in", here, "--out", out]),
            f"docker run --rm {volumes} --user {os.getuid()}:{os.getgid()}{gpus} IMAGE",
        )


def make_task(source: Path, destination: Path, task: str, options: Optional[TaskOptions] = None) -> TaskFolder:
    """Make destination/in and destination/out for one task.

    Nothing is left behind where it fails. Raises an ExecutorError in one line: the source, the weights or an option
    can't be used, or destination/in is there already.
    """
    options = options or TaskOptions()
    if task not in TASKS:
        raise ConfigError(f"task: got {task!r}, need one of {', '.join(TASKS)}")
    in_dir, out_dir = destination / "in", destination / "out"
    if in_dir.exists():
        raise ConfigError(f"{in_dir}: is there already; name another folder with --to, or remove it")
    opened = open_source(source, options.class_names, options.images_dir)
    building = destination / f".in.{os.getpid()}"
    is_new = not destination.exists()
    try:
        building.mkdir(parents=True)
        maker = _Maker(opened, building, task, options)
        maker.make()
        out_dir.mkdir(exist_ok=True)
        building.rename(in_dir)
    except OSError as cause:
        raise ExecutorError(f"{cause.filename or destination}: {cause.strerror or cause}") from cause
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if is_new and not in_dir.exists():
            shutil.rmtree(destination, ignore_errors=True)
    return TaskFolder(in_dir, out_dir, maker.counts, tuple(maker.notes), maker.gpus)


class _Maker:
    """Fills one folder with a task's files."""

    def __init__(self, source: Source, folder: Path, task: str, options: TaskOptions) -> None:
        self.source = source
        self.folder = folder
        self.task = task
        self.options = options
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []
        self.gpus: tuple[str, ...] = ()

    def make(self) -> None:
        """Write everything; env.yaml, without which nothing can be run, last."""
        if self.task == "train" and self.source.labels_of is None:
            raise DatasetError(f"{self.source.root}: has no labels to train with; need a YOLO, VOC or COCO data set")
        for name in ("assets", "annotations", "models"):
            (self.folder / name).mkdir()
        weights = self._place_weights()
        config = self._config(weights)
        if self.task == "train":
            self._write_training(config["class_names"])
        else:
            self._write_candidates()
        _write_yaml(self.folder / "config.yaml", config)
        _write_yaml(self.folder / "env.yaml", self._env(str(config["task_id"])))

    # --- pictures and labels ---

    def _limited(self, images: Sequence[Path]) -> Sequence[Path]:
        if not images:
            raise DatasetError(f"{self.source.root}: holds no pictures (.jpg, .png, .bmp, .webp, .tif)")
        return images[: self.options.limit or None]

    def _splits(self) -> dict[str, Sequence[Path]]:
        """Give the pictures to train with and those to validate with: the source's own, or drawn by the seed."""
        if "train" in self.source.splits and "val" in self.source.splits:
            return {name: self._limited(self.source.splits[name]) for name in ("train", "val")}
        images = self._limited(self.source.splits.get("train", self.source.images))
        share = self.options.val_share
        count = min(max(round(len(images) * share), 1), len(images) - 1) if share else 0
        drawn = set(random.Random(self.options.seed).sample(range(len(images)), count))
        return {
            "train": [image for number, image in enumerate(images) if number not in drawn],
            "val": [image for number, image in enumerate(images) if number in drawn],
        }

    def _write_candidates(self) -> None:
        images = self._limited(self.source.images)
        self._write_index("candidate", images, lambda image: f"/in/assets/{self._place_picture(image)}")

    def _write_training(self, class_names: Sequence[str]) -> None:
        labels_of = self.source.labels_of
        assert labels_of is not None
        writer = WRITERS[self.options.label_format](self.folder / "annotations", class_names)
        faults = FaultLog()
        seen: set[Path] = set()

        def line_of(image: Path) -> str:
            picture, labels = labels_of(image)
            name = self._place_picture(image)
            if image not in seen:  # a picture may be in both splits
                faults.add(labels.faults)
                seen.add(image)
            return f"/in/assets/{name}\t/in/annotations/{writer.add(name, picture, labels)}"

        for split, images in self._splits().items():
            self._write_index(split, images, line_of)
        writer.finish()
        self.notes += faults.lines()

    def _write_index(self, name: str, images: Sequence[Path], line_of: Callable[[Path], str]) -> None:
        """Write one line for each picture; one that can't be used is left out and noted, but not all of them may."""
        lines, causes = [], []
        for image in images:
            try:
                lines.append(line_of(image))
            except (ImageError, DatasetError) as cause:
                causes.append(cause)
        if causes and not lines:
            raise causes[0]
        if causes:
            self.notes.append(f"pictures left out of {name}: {len(causes)}; first: {causes[0]}")
        text = "".join(f"{line}\n" for line in lines)
        (self.folder / f"{name}-index.tsv").write_bytes(text.encode())
        self.counts[name] = len(lines)

    def _place_picture(self, image: Path) -> str:
        """Bring a picture to assets/, below its own folder's name; give its path there."""
        name = _index_text(os.path.relpath(image, self.source.root))
        place = self.folder / "assets" / name
        if not place.exists():
            _place(image, place, self.options.placing, DatasetError)
        return name

    # --- weights ---

    def _place_weights(self) -> list[str]:
        """Bring the weights to models/; give their container paths, or for an old protocol their names."""
        stage = STAGE if self.options.has_stages else ""
        names = []
        self._refuse_other_files()
        for path in self.options.weights:
            place = self.folder / "models" / stage / path.name
            if place.exists():
                raise WeightsError(f"{path}: a second weights file of this name; rename one of them")
            if path.is_dir():  # an OpenVINO model
                shutil.copytree(path, place)
            else:
                _place(path, place, "copy" if self.options.placing == "link" else self.options.placing, WeightsError)
            names.append(f"/in/models/{stage}/{path.name}" if stage else path.name)
        if "run_mining" in TASKS[self.task]:
            self._place_stats(self.folder / "models" / stage / FILE_NAME)
        return names

    def _refuse_other_files(self) -> None:
        """Say of what is no weights file what it is. Raises WeightsError."""
        for path in self.options.weights:
            if not path.exists():
                raise WeightsError(f"{path}: no such file")
            is_folder = path.is_dir()
            if (is_folder and not path.name.endswith(OPENVINO_SUFFIX)) or choose_weights(self.options.weights) is None:
                kind = (
                    "a folder" if is_folder else f"a {path.suffix} file" if path.suffix else "a file without a suffix"
                )
                raise WeightsError(
                    f"--weights {path}: is {kind}, no weights; need a .pt, an .onnx or a folder *{OPENVINO_SUFFIX}"
                )

    def _place_stats(self, place: Path) -> None:
        """Take along what a training left for mining beside the weights: there mining looks for it."""
        chosen = choose_weights(self.options.weights)  # as the task will
        if chosen is None or place.exists():
            return
        stats = chosen.parent / FILE_NAME
        if stats.is_file():
            _place(stats, place, "copy", WeightsError)
            self.notes.append(f"{stats}: taken along, mining looks for it beside the weights")

    def _class_names(self) -> tuple[str, ...]:
        """Give the task's classes: those asked for, or the data set's in training, else the weights' before it."""
        names = self.options.class_names
        if self.task == "train":
            names = names or self.source.class_names
        chosen = choose_weights(self.options.weights)  # as the task will
        if chosen is not None and not names:
            names = self._stored_names(chosen)
        if not names and self.source.class_names:
            names = self.source.class_names
        if not names:
            asked = "neither weights nor source name any"
            if chosen is not None:
                asked = f"{chosen.name} doesn't tell them, and the source names none"
            raise ConfigError(f"class_names: {asked}; give --class-names a,b")
        return tuple(names)

    def _stored_names(self, path: Path) -> tuple[str, ...]:
        """Give the classes that stand in a weights file; () and a note where it tells none."""
        weights = open_weights(path)
        if isinstance(weights, Exported) and not weights.are_names_told:
            self.notes.append(f"class_names: {path.name} doesn't tell them")
            return ()
        return weights.names

    # --- configuration ---

    def _config(self, weights: Sequence[str]) -> dict[str, Any]:
        """Give config.yaml: the template, what the platform adds, what the user set."""
        kind = self.task.partition("+")[0]
        template = Path(__file__).parent / "ymir" / "img-man" / f"{TEMPLATES[kind]}-template.yaml"
        config: dict[str, Any] = dict(read_yaml(template) or {}) if template.is_file() else {}
        config.update(gpu_id="", gpu_count=0, object_type=2, task_id=f"local-{self.task.replace('+', '-')}")
        if kind == "train":
            config["export_format"] = f"{self.options.label_format}:raw"
        config["pretrained_model_params" if kind == "train" else "model_params_path"] = list(weights)
        config.update(self.options.settings)
        if self.options.unread_keys:
            self.notes.append(f"keys that no task reads: {', '.join(self.options.unread_keys)}")
        config.setdefault("class_names", list(self._class_names()))
        if kind != "train" and not weights and config.get("mining_algorithm") != "random":
            raise WeightsError(f"--weights: missing; {self.task} needs a weights file, such as a training's best.pt")
        self.gpus = tuple(filter(None, read_params(config).gpu_id.split(",")))
        return config

    def _env(self, task_id: str) -> dict[str, Any]:
        """Give env.yaml; for a protocol before 1.1.0 with fewer keys and with paths relative to root_dir."""
        named = {name: f"{name}-index.tsv" if name in self.counts else "" for name in ("train", "val", "candidate")}
        inputs = {
            "assets_dir": "assets",
            "annotations_dir": "annotations",
            "models_dir": "models",
            "training_index_file": named["train"],
            "val_index_file": named["val"],
            "candidate_index_file": named["candidate"],
            "config_file": "config.yaml",
        }
        outputs = {
            "models_dir": "models",
            "training_result_file": "models/result.yaml",
            "mining_result_file": "result.tsv",
            "infer_result_file": "infer-result.json",
            "monitor_file": "monitor.txt",
        }
        if self.options.has_stages:
            outputs.update(tensorboard_dir="tensorboard", executor_log_file="ymir-executor-out.log")
        env: dict[str, Any] = {"task_id": task_id, "protocol_version": self.options.protocol}
        for flag in ("run_training", "run_mining", "run_infer"):
            env[flag] = flag in TASKS[self.task]
        for section, root, paths in (("input", "/in", inputs), ("output", "/out", outputs)):
            absolute = {key: f"{root}/{path}" if path else "" for key, path in paths.items()}
            env[section] = {"root_dir": root, **(absolute if self.options.has_stages else paths)}
        return env


def _place(source: Path, place: Path, placing: str, error: type[ExecutorError]) -> None:
    """Bring a regular file to its place: a symbolic link, a hard link, or a copy."""
    if not source.is_file():
        raise error(f"{source}: no such file")
    place.parent.mkdir(parents=True, exist_ok=True)
    if placing == "link":
        place.symlink_to(source.resolve())
        return
    if placing == "auto":
        try:
            os.link(source.resolve(), place)
            return
        except OSError as cause:
            if cause.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP):
                raise
    shutil.copyfile(source, place)


def _index_text(name: str) -> str:
    """Give a name as an index line can hold it, or raise DatasetError."""
    if any(mark in name for mark in "\t\n\r"):
        raise DatasetError(f"{name!r}: a tab or line break in the name, which no index file can hold; rename it")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DatasetError(f"{name}: lies outside the source's folder")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"{name!r}: the name is not UTF-8; rename it") from None
    return name


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")


# --- command line ---


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="a picture, a folder, a data.yaml, a VOC folder, or a COCO .json")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="gets the folders in and out")
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--weights", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--class-names", default="", metavar="A,B", help="else the weights' or the data set's own")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for config.yaml")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N pictures; 0: all of them")
    placing = parser.add_mutually_exclusive_group()
    placing.add_argument("--copy", action="store_const", dest="placing", const="copy", help="copy pictures, don't link")
    placing.add_argument(
        "--link", action="store_const", dest="placing", const="link", help="symbolic links to pictures"
    )
    parser.add_argument("--format", choices=tuple(WRITERS), default="ark", help="of the annotations (train)")
    parser.add_argument("--val-share", type=float, default=0.1, help="share to validate with, if the source has none")
    parser.add_argument("--protocol", default="1.1.0", help="of env.yaml")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of validation pictures")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where a COCO file's pictures lie")
    return parser.parse_args(arguments)


def _read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Turn KEY=VALUE into settings: true, numbers and [lists] as YAML has them, the rest as the text that it is."""
    settings: dict[str, Any] = {}
    for text in texts:
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise ConfigError(f"--set: got {text!r}, need KEY=VALUE")
        settings[key] = value
        with contextlib.suppress(ConfigError):  # no YAML: then it is text
            parsed = parse_yaml(value.encode(), key)
            if isinstance(parsed, (bool, int, float, list)):
                settings[key] = parsed
    return settings


def main(arguments: Sequence[str]) -> int:
    """Run the command line; give the exit code."""
    given = _parse(arguments)
    try:
        options = TaskOptions(
            weights=tuple(given.weights),
            class_names=tuple(name.strip() for name in given.class_names.split(",") if name.strip()),
            settings=_read_settings(given.set),
            limit=given.limit,
            placing=given.placing or "auto",
            label_format=given.format,
            val_share=given.val_share,
            protocol=given.protocol,
            seed=given.seed,
            images_dir=given.images,
        )
        made = make_task(given.source, given.to, given.task, options)
    except ExecutorError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    counts = ", ".join(f"{count} {name}" for name, count in made.counts.items())
    here, docker = made.commands
    lines = [f"made {made.in_dir}: pictures: {counts}", *made.notes]
    if given.task == "train":
        config = read_yaml(made.in_dir / "config.yaml")
        told = ", ".join(f"{key}={config[key]}" for key in TOLD_OF_TRAINING)
        lines.append(f"trains with {told} (--set changes them)")
    lines += ["run it:", f"  {here}", "or in an image:"]
    sys.stdout.write("\n".join([*lines, f"  {docker}"]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
