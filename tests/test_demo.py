"""The demo's page says what the result files say."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Optional
from urllib.parse import unquote

import pytest
import simplejpeg
import yaml

from demo import FIGURES, clear, main, read_entries, run_demo
from make_task import TaskFolder, TaskOptions, make_task
from utils.errors import ConfigError


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


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--weights", "none.pt", "--images", "."], "none.pt: no such file or folder"),
        (["--images", "."], "--weights: is missing"),
        (["--pictures", "2"], "count: got 2"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line_and_leaves_no_old_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], says: str
) -> None:
    clear(tmp_path)
    (tmp_path / "index.html").write_text("old")
    assert main([*given, "--to", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {says}")
    assert not (tmp_path / "index.html").exists()


def test_an_earlier_demo_is_replaced_and_what_else_lies_there_stays(tmp_path: Path) -> None:
    clear(tmp_path / "demo")
    for name in ("training/in/env.yaml", "mining/out/result.tsv", "mine.txt"):
        (tmp_path / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "demo" / name).write_text("x")
    clear(tmp_path / "demo")
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"demo.txt", "mine.txt"}


def test_a_task_that_fails_says_why_last_and_leaves_no_old_page(
    yolov5n_pt: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    clear(folder)
    (folder / "index.html").write_text("old")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert main(["--images", str(tmp_path / "broken.jpg"), "--weights", str(yolov5n_pt), "--to", str(folder)]) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("error 300003: not one of 1 pictures can be read")
    assert not (folder / "index.html").exists()


class Page(HTMLParser):
    """Collects what a page refers to, and its texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.images: list[bytes] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        for key, value in attrs:
            if key in ("href", "src", "srcset", "action", "data", "xlink:href") and value is not None:
                if value.startswith("data:image/"):
                    self.images.append(base64.b64decode(value.partition(",")[2], validate=True))
                else:
                    self.references.append(value)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_small_demo_trains_mines_and_shows_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a <b> &amp; é"
    assert main(["--epochs", "2", "--pictures", "16", "--to", str(folder)]) == 0
    shown = capfd.readouterr()
    assert shown.out.splitlines()[-1] == f"page: {folder}/index.html"
    assert "trained in " in shown.out
    assert "epoch 2 of 2" in shown.err
    page = Page(folder / "index.html")
    assert len(page.references) == 5
    for reference in page.references:
        assert (folder / unquote(reference)).resolve().is_relative_to(folder)
        assert (folder / unquote(reference)).is_file(), reference
    assert all(simplejpeg.is_jpeg(image) or image.startswith(b"\x89PNG") for image in page.images)
    assert len(page.images) == len(FIGURES) + 2  # two pictures are the pool
    assert sum(text.startswith("score ") for text in page.texts) == 2
    assert {"Training", "Mining and inference", *FIGURES.values()} <= set(page.texts)
    assert any(f"{folder}/data/images/pool" in text for text in page.texts)
    trained, mined = (
        yaml.safe_load((folder / f"{name}/in/config.yaml").read_text()) for name in ("training", "mining")
    )
    assert trained["img_size"] == mined["img_size"]
    assert not re.search(r"https?:|//", re.sub(r'"data:[^"]*"', "", (folder / "index.html").read_text("utf-8")))


def test_given_pictures_are_mined_and_shown_again_and_again(
    coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path
) -> None:
    folder, pictures = tmp_path / "demo", tmp_path / "<b>"
    pictures.mkdir()
    for image in coco_images[:2]:
        (pictures / f"<i>{image.name}").write_bytes(image.read_bytes())
    (pictures / "\tfirst.jpg").write_bytes(b"x")  # no index can hold the name: make_task leaves it out
    for limit in (3, 2):
        given = ["--images", str(pictures), "--weights", str(yolov5n_pt), "--limit", str(limit)]
        assert main([*given, "--to", str(folder)]) == 0
        text = (folder / "index.html").read_text(encoding="utf-8")
        page = Page(folder / "index.html")
        assert len(page.images) == text.count("<li>") == limit - 1
        assert "<rect" in text
        assert any("pictures left out of candidate: 1" in shown for shown in page.texts)
    assert yaml.safe_load((folder / "mining/in/env.yaml").read_text())["task_id"] == "demo"
