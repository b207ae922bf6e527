"""Show what the executor does: mine and infer on a folder of pictures, then draw the outcome on one HTML page.

python demo.py --weights best.pt --images FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import simplejpeg

from make_task import TaskFolder, TaskOptions, make_task
from utils.errors import ConfigError, ExecutorError, ImageError
from utils.files import read_bytes, write_whole
from utils.pages import PageBox, PageEntry, build_page
from utils.pictures import read_picture
from utils.safe_yaml import read_yaml
from utils.settings import PictureSettings

ROOT = Path(__file__).resolve().parent
SHARED = ROOT.parent / "shared"  # of the project's own machines
TASK_ID = "demo"
MAX_RESULT_BYTES = 1_000_000_000
THUMBNAIL_PX = 416  # longer side
ALGORITHM = "entropy"


def run_demo(weights: Path, images: Path, folder: Path, limit: int) -> Path:
    """Make a task of the pictures in folder/in, run start.py on it, write folder/index.html; give the page's path.

    What an earlier demo left in the folder is replaced. Raises ExecutorError where something can't be used;
    subprocess.CalledProcessError where start.py failed (it has said why).
    """
    _clear(folder)
    settings = {"mining_algorithm": ALGORITHM, "task_id": TASK_ID}
    made = make_task(images, folder, "mining+infer", TaskOptions(weights=(weights,), settings=settings, limit=limit))
    command = [sys.executable, str(ROOT / "start.py"), "--in", str(made.in_dir), "--out", str(made.out_dir)]
    subprocess.run(command, check=True)  # noqa: S603 (our own script, no shell)
    entries = read_entries(made)
    facts = {
        "pictures": f"{len(entries)} of {images}" + (f" (at most {limit})" if len(entries) == limit else ""),
        "weights": str(weights),
        "order": f"mining by {ALGORITHM}: the first ones are worth labelling most",
        "results": f"result.tsv and infer-result.json in {made.out_dir}",
    }
    page = folder / "index.html"
    write_whole(page, build_page("YOLOv5: mining and inference", facts, entries).encode("utf-8", "replace"))
    return page


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


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left; what is no demo's is not touched."""
    if not (folder / "in").exists():
        return
    env: Any = None
    with contextlib.suppress(ConfigError):
        env = read_yaml(folder / "in" / "env.yaml")
    if not isinstance(env, dict) or env.get("task_id") != TASK_ID:
        raise ConfigError(f"{folder}: holds a task that is no demo's; name another folder with --to")
    shutil.rmtree(folder / "in")
    shutil.rmtree(folder / "out", ignore_errors=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "yolov5n.pt", metavar="FILE")
    parser.add_argument("--images", type=Path, default=SHARED / "data" / "coco128" / "images", metavar="FOLDER")
    parser.add_argument("--to", type=Path, default=ROOT / "demo-out", metavar="DIR")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="only the first N pictures; 0: all")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; give the exit code."""
    given = _parse(arguments)
    missing = [path for path in (given.weights, given.images) if not path.exists()]
    if missing:
        sys.stderr.write(f"error: {missing[0]}: no such file or folder\n")
        sys.stderr.write("give a YOLOv5 .pt file and a folder of pictures: make demo WEIGHTS=best.pt IMAGES=pictures\n")
        return 1
    try:
        page = run_demo(given.weights, given.images, given.to, given.limit)
    except ExecutorError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 1
    sys.stdout.write(f"page:    {page}\nresults: {given.to / 'out'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
