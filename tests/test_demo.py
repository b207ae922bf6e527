"""The demo's page says what the result files say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from demo import main, read_entries, run_demo
from make_task import TaskFolder, TaskOptions, make_task
from utils.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def finished(coco_images: list[Path], tmp_path: Path) -> TaskFolder:
    """A task of four pictures, one of them broken and two of one name, with result files written by hand."""
    for name, image in zip(("a/1.jpg", "b/1.jpg", "猫 <b>.jpg"), coco_images):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(image.read_bytes())
    (tmp_path / "pictures/broken.jpg").write_bytes(b"no picture")
    options = TaskOptions(class_names=("cat",), settings={"mining_algorithm": "random"})
    made = make_task(tmp_path / "pictures", tmp_path / "task", "mining", options)
    rows = [("猫 <b>.jpg", 9.5), ("b/1.jpg", 3.25), ("a/1.jpg", 1.0), ("broken.jpg", 0.0)]
    ranked = "".join(f"/in/assets/{name}\t{score}\n" for name, score in rows)
    (made.out_dir / "result.tsv").write_text(ranked, encoding="utf-8")
    box = {"box": {"x": 5, "y": 6, "w": 70, "h": 80}, "class_name": "cat", "score": 0.5}
    detection = {"1.jpg": {"boxes": [box]}, "猫 <b>.jpg": {"boxes": [box, box]}, "broken.jpg": {"boxes": []}}
    (made.out_dir / "infer-result.json").write_text(json.dumps({"detection": detection}), encoding="utf-8")
    return made


def test_entries_come_in_mining_order_with_their_own_boxes(finished: TaskFolder) -> None:
    entries = read_entries(finished)
    assert [entry.name for entry in entries] == ["猫 <b>.jpg", "b/1.jpg", "a/1.jpg", "broken.jpg"]
    assert [entry.score for entry in entries] == [9.5, 3.25, 1.0, 0.0]
    assert [len(entry.boxes) for entry in entries] == [2, 0, 1, 0]
    assert list(entries[0].boxes[0].xyxy_px) == [5, 6, 75, 86]
    assert "a/1.jpg has that name" in entries[1].remark
    assert entries[3].remark.startswith("unreadable: ")
    starts = [entry.thumbnail_jpeg[:2] for entry in entries]
    assert starts == [b"\xff\xd8", b"\xff\xd8", b"\xff\xd8", b""]


def test_a_folder_with_another_task_is_not_touched(finished: TaskFolder, yolov5n_pt: Path) -> None:
    with pytest.raises(ConfigError, match="is no demo's"):
        run_demo(yolov5n_pt, finished.in_dir / "assets", finished.in_dir.parent, 0)
    assert (finished.out_dir / "result.tsv").is_file()


def test_without_pictures_two_lines_say_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", str(tmp_path / "none.pt"), "--images", str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {tmp_path}/none.pt: no such file or folder"
    assert "make demo WEIGHTS=" in second


@pytest.mark.slow
def test_the_demo_runs_twice_into_one_folder(coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    images = ["--images", str(coco_images[0].parent), "--weights", str(yolov5n_pt)]
    for limit in (3, 2):
        command = [sys.executable, "demo.py", *images, "--to", str(folder), "--limit", str(limit)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"page:    {folder}/index.html" in done.stdout
        page = (folder / "index.html").read_text(encoding="utf-8")
        assert page.count("<figure>") == page.count("data:image/jpeg") == limit
        assert "<rect" in page
    assert yaml.safe_load((folder / "in/env.yaml").read_text())["task_id"] == "demo"
