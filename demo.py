"""Show what the executor does, on one HTML page: draw a data set, train on it, mine and detect with what was trained.

python demo.py                                     # all of it, some minutes on a CPU, nothing needed
python demo.py --weights best.pt --images FOLDER   # mine and detect only, with your own weights and pictures
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Optional

import cv2
import simplejpeg
import yaml

from make_task import TaskFolder, TaskOptions, make_task
from utils.errors import ConfigError, ExecutorError, ImageError
from utils.files import read_bytes, write_whole
from utils.pages import PageBox, PageEntry, PageFigure, PageSection, build_page
from utils.pictures import read_picture
from utils.process import INTERRUPTED
from utils.safe_yaml import read_yaml
from utils.settings import PictureSettings
from utils.shapes import write_shapes
from utils.train_log import RESULTS_CSV, RESULTS_PNG, EpochRow, read_results

ROOT = Path(__file__).resolve().parent
MARKER = "demo.txt"  # tells a folder that a demo may clear
MADE = ("data", "training", "mining", "in", "out")  # in, out: of the first release's demo
PAGE = "index.html"
TASK_ID = "demo"
MAX_RESULT_BYTES = 1_000_000_000
THUMBNAIL_PX = 416  # longer side
ALGORITHM = "entropy"
# Few pictures, so small batches; without mosaics, which need many more epochs; shapes have no up and down.
HYP = MappingProxyType({"lr0": 0.004, "lrf": 0.05, "mosaic": 0.0, "scale": 0.3, "flipud": 0.5})
TRAINING = MappingProxyType(
    {
        "model": "yolov5n",
        "img_size": 160,
        "batch_size_per_gpu": 8,
        "nominal_batch": 8,
        "num_workers_per_gpu": 1,
        "args_options": "--weights '' --hyp /in/hyp.yaml --optimizer AdamW --cache ram",
    }
)
FIGURES = MappingProxyType(
    {
        RESULTS_PNG: "losses and metrics by epoch",
        "val_batch0_labels.jpg": "validation pictures with their labels",
        "val_batch0_pred.jpg": "the same pictures with what the trained network finds",
        "train_batch0.jpg": "pictures as training sees them, with their labels",
        "PR_curve.png": "precision and recall by class",
        "confusion_matrix.png": "which class is taken for which",
    }
)


@dataclass
class Story:
    """What a demo has to tell: the page's facts and sections, and what was left out on the way."""

    facts: dict[str, str] = field(default_factory=dict)
    sections: list[PageSection] = field(default_factory=list)

    def note(self, made: TaskFolder) -> None:
        """Tell what make_task noticed, such as pictures that it left out."""
        for line in made.notes:
            say(f"  note: {line}")
        if made.notes:
            earlier = self.facts.get("notes", "")
            self.facts["notes"] = "; ".join([*([earlier] if earlier else []), *made.notes])


def say(text: str) -> None:
    """Show a line at once, so that it stands before what a started process shows."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show_all(folder: Path, pictures: int, epochs: int) -> Path:
    """Draw a data set, train, mine in its unlabelled part; give the path of the page.

    Raises ExecutorError, subprocess.CalledProcessError as run_demo does.
    """
    clear(folder)
    say(f"1 of 3: drawing {pictures} pictures in {folder / 'data'}")
    data = write_shapes(folder / "data", pictures)
    say(f"2 of 3: training yolov5n from scratch, {epochs} epochs")
    story = Story()
    weights = train(data, folder / "training", epochs, story)
    say("3 of 3: mining and detecting in the pictures that have no labels")
    settings = {"img_size": TRAINING["img_size"]}  # as it was trained
    options = TaskOptions(weights=(weights,), settings=settings)
    return mine(data.parent / "images" / "pool", folder, options, story)


def run_demo(weights: Path, images: Path, folder: Path, limit: int) -> Path:
    """Mine and detect in a folder of pictures with given weights; give the path of the page.

    What an earlier demo left in the folder is replaced. Raises ExecutorError where something can't be used;
    subprocess.CalledProcessError where start.py failed (it has said why).
    """
    clear(folder)
    return mine(images, folder, TaskOptions(weights=(weights,), limit=limit), Story())


# ---- training --------------------------------------------------------------------------------------------------------


def train(data: Path, folder: Path, epochs: int, story: Story) -> Path:
    """Run a training task on a data set and tell of it; give the best weights' path."""
    settings = {**TRAINING, "epochs": epochs, "task_id": TASK_ID}
    made = make_task(data, folder, "train", TaskOptions(settings=settings))
    story.note(made)
    write_whole(made.in_dir / "hyp.yaml", yaml.safe_dump(dict(HYP), sort_keys=False).encode())
    before_s, before_cpu_s = time.monotonic(), _children_cpu_s()
    run_task(made)
    taken = f"{time.monotonic() - before_s:.0f} s, {_children_cpu_s() - before_cpu_s:.0f} CPU-seconds"
    tell_of_training(made, taken, epochs, story)
    return made.out_dir / "models" / "best.pt"


def tell_of_training(made: TaskFolder, taken: str, epochs: int, story: Story) -> None:
    """Tell of a finished training: what it reached, in how much time, and its pictures."""
    logs = made.out_dir / "tensorboard"
    best = best_epoch(read_results(logs / RESULTS_CSV))
    reached = (
        "not validated" if best is None else f"mAP50 {best.map50:.2f}, mAP {best.map:.2f} in epoch {best.epoch + 1}"
    )
    say(f"trained in {taken}: {reached}")
    story.facts["training"] = f"yolov5n from scratch, {epochs} epochs of {made.counts['train']} pictures: {taken}"
    story.facts["best epoch"] = f"{reached}, of {made.counts['val']} validation pictures"
    figures = tuple(
        PageFigure(caption, read_bytes(logs / name, MAX_RESULT_BYTES, ExecutorError), name == RESULTS_PNG)
        for name, caption in FIGURES.items()
        if (logs / name).is_file()
    )
    base = f"{made.in_dir.parent.name}/out"
    files = (f"{base}/models/best.pt", f"{base}/models/result.yaml", f"{base}/tensorboard/{RESULTS_CSV}")
    remark = "A network that knew nothing is shown drawn shapes with their labels, and validated after each epoch."
    story.sections.append(PageSection("Training", remark, figures, files=files))


def best_epoch(rows: Sequence[EpochRow]) -> Optional[EpochRow]:
    """Give the epoch whose weights were kept, None where none was validated."""
    return max((row for row in rows if row.is_validated), key=lambda row: row.map, default=None)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- mining ----------------------------------------------------------------------------------------------------------


def mine(images: Path, folder: Path, options: TaskOptions, story: Story) -> Path:
    """Run a mining and inference task on pictures, and write the page."""
    settings = {**options.settings, "mining_algorithm": ALGORITHM, "task_id": TASK_ID}
    made = make_task(images, folder / "mining", "mining+infer", replace(options, settings=settings))
    story.note(made)
    run_task(made)
    entries = read_entries(made)
    limited = f" (at most {options.limit})" if len(entries) == options.limit else ""
    story.facts["mined"] = f"{len(entries)} pictures of {images}{limited}, with {options.weights[0]}"
    remark = (
        f"In mining order by {ALGORITHM}, with what the network finds: the first ones leave it most in doubt and are "
        "worth labelling most."
    )
    files = ("mining/out/result.tsv", "mining/out/infer-result.json")
    story.sections.append(PageSection("Mining and inference", remark, entries=tuple(entries), files=files))
    page = folder / PAGE
    write_whole(page, build_page("YOLOv5 as a YMIR executor", story.facts, story.sections).encode("utf-8", "replace"))
    return page


def run_task(made: TaskFolder) -> None:
    """Run start.py on a task; what it shows is seen. Raises subprocess.CalledProcessError."""
    command = [sys.executable, str(ROOT / "start.py"), "--in", str(made.in_dir), "--out", str(made.out_dir)]
    say(f"  {shlex.join(['python', *command[1:]])}")
    subprocess.run(command, check=True)  # noqa: S603 (our own script, no shell)


def read_entries(made: TaskFolder) -> list[PageEntry]:
    """Give a finished task's pictures in the mining order, with their boxes.

    infer-result.json knows pictures by base name alone: of two with the same one, the first of the index has the boxes.
    """
    candidates = (made.in_dir / "candidate-index.tsv").read_text(encoding="utf-8").splitlines()
    owners: dict[str, str] = {}
    for line in candidates:
        owners.setdefault(PurePosixPath(line).name, line)
    found = json.loads(read_bytes(made.out_dir / "infer-result.json", MAX_RESULT_BYTES, ExecutorError))["detection"]
    ranked = read_bytes(made.out_dir / "result.tsv", MAX_RESULT_BYTES, ExecutorError).decode("utf-8").splitlines()
    entries = []
    for row in ranked:
        line, _, score = row.rpartition("\t")
        base = PurePosixPath(line).name
        is_owner = owners.get(base) == line
        rows = found.get(base, {}).get("boxes", []) if is_owner else []
        remark = "" if is_owner else f"its boxes are not in infer-result.json: {owners.get(base, line)} has that name"
        entries.append(_entry(made.in_dir, line, float(score), tuple(map(_page_box, rows)), remark))
    return entries


def _entry(in_dir: Path, line: str, score: float, boxes: tuple[PageBox, ...], remark: str) -> PageEntry:
    name = line[len("/in/assets/") :]
    try:
        picture = read_picture(in_dir / "assets" / name, PictureSettings(decode="fast"), _thumbnail_hw)
    except ImageError as error:
        return PageEntry(name, (1, 1), b"", (), score, f"unreadable: {error}")
    height, width = _thumbnail_hw(picture.full_hw)
    small = cv2.resize(picture.rgb, (width, height), interpolation=cv2.INTER_AREA)
    jpeg = simplejpeg.encode_jpeg(small, quality=75)
    return PageEntry(name, picture.full_hw, jpeg, boxes, score, remark)


def _thumbnail_hw(image_hw: tuple[int, int]) -> tuple[int, int]:
    """Give the (height, width) to show a picture at; never larger than it is."""
    scale = min(THUMBNAIL_PX / max(image_hw), 1)
    return max(round(image_hw[0] * scale), 1), max(round(image_hw[1] * scale), 1)


def _page_box(row: dict[str, Any]) -> PageBox:
    box = row["box"]
    corners = (box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"])
    return PageBox(corners, row["class_name"], row["score"])


# ---- the folder ------------------------------------------------------------------------------------------------------


def clear(folder: Path) -> None:
    """Make a folder ready for a demo: what an earlier one left is removed, first of all its page.

    Raises ConfigError for a folder that holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; name another one with --to")
    if folder.is_dir() and any(folder.iterdir()):
        if not _is_demos(folder):
            raise ConfigError(f"{folder}: holds something that is no demo's; name another folder with --to")
        (folder / PAGE).unlink(missing_ok=True)  # first
        for name in MADE:
            shutil.rmtree(folder / name, ignore_errors=True)
    write_whole(folder / MARKER, b"demo.py made this folder, and replaces what it made when it runs again.\n")


def _is_demos(folder: Path) -> bool:
    if (folder / MARKER).is_file():
        return True
    env: Any = None
    with contextlib.suppress(ConfigError):
        env = read_yaml(folder / "in" / "env.yaml")
    return isinstance(env, dict) and env.get("task_id") == TASK_ID


# ---- command line ----------------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a YOLOv5 .pt: don't train; needs --images")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="pictures to mine in; needs --weights")
    parser.add_argument("--to", type=Path, default=ROOT / "demo-out", metavar="DIR", help="where all of it goes")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="only the first N of --images; 0: all")
    parser.add_argument("--pictures", type=int, default=340, metavar="N", help="to draw")
    parser.add_argument("--epochs", type=int, default=24, metavar="N", help="to train")
    return parser.parse_args(arguments)


def _show(given: argparse.Namespace) -> Path:
    if _is_demos(given.to):  # whatever fails from here on, no old page is left to be taken for a new one
        (given.to / PAGE).unlink(missing_ok=True)
    if given.weights is None and given.images is None:
        return show_all(given.to, given.pictures, given.epochs)
    usage = "give a YOLOv5 .pt file and a folder of pictures, or neither: make demo WEIGHTS=best.pt IMAGES=pictures"
    if given.weights is None or given.images is None:
        raise ConfigError(f"{'--weights' if given.weights is None else '--images'}: is missing; {usage}")
    for path in (given.weights, given.images):
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder; {usage}")
    return run_demo(given.weights, given.images, given.to, given.limit)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; give the exit code."""
    try:
        page = _show(_parse(arguments))
    except (ExecutorError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    say(f"page: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
