"""The report: hostile names stay words, the page stays small, and a browser shows it."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mining.report import MOST_BYTES, ReportRow, Shown, cell, write_csv, write_page
from utils.detections import Detections
from utils.pictures import read_picture
from utils.settings import PictureSettings

HOSTILE = '/in/<script>alert(1)</script>"&.jpg'


def shown(place: int, line: str, rgb: object, parts: tuple[float, ...] = (0.5, -1.0)) -> Shown:
    boxes = Detections(np.array([[10, 10, 90, 80]], np.float32), np.array([0.8], np.float32), np.array([0]))
    row = ReportRow(place, line, 0.5, 0.25, parts, HOSTILE if place == 1 else None)
    return Shown(row, rgb, boxes)  # type: ignore[arg-type]


def page_of(path: Path, best: list[Shown], last: list[Shown]) -> str:
    scores = np.linspace(0, 1, 100)
    names = ("a", "=b<i>")
    write_page(path, {"algorithm": "x<y"}, names, ("<b>cat", "dog"), best, last, scores, [(HOSTILE, "/in/b.jpg")] * 500)
    return path.read_text()


def test_hostile_names_stay_words(tmp_path: Path) -> None:
    rgb = np.full((100, 120, 3), 90, np.uint8)
    page = page_of(tmp_path / "r.html", [shown(0, HOSTILE, rgb), shown(1, "/in/\udcff.jpg", None)], [])
    for bad in ("<script", "<b>cat", "<i>"):
        assert bad not in page
    assert "default-src 'none'" in page and "&lt;b&gt;cat" in page and "and 300 more" in page


def test_a_hundred_large_pictures_stay_below_the_limit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (640, 640, 3), np.uint8)
    page_of(
        tmp_path / "r.html",
        [shown(i, f"/in/{i}.jpg", noise) for i in range(50)],
        [shown(i, "x", noise) for i in range(50)],
    )
    assert (tmp_path / "r.html").stat().st_size < MOST_BYTES


def test_the_table_comes_back_and_holds_no_formula(tmp_path: Path) -> None:
    rows = [ReportRow(0, "=cmd|x", 0.5, 0.25, (1.0, -2.0)), ReportRow(1, 'a,"b\n.jpg', float("nan"), -1.0, ())]
    write_csv(tmp_path / "r.csv", ["+a", "b"], rows)
    with (tmp_path / "r.csv").open(newline="") as file:
        read = list(csv.reader(file))
    assert read[0] == ["place", "image", "score", "value", "near_copy_of", "'+a", "b"]
    assert read[1] == ["1", "'=cmd|x", "0.5", "0.25", "", "1", "-2"]
    assert read[2] == ["2", 'a,"b\n.jpg', "", "-1", "", "", ""]
    assert [cell(text) for text in ("@x", "-1", "ok", "\tx")] == ["'@x", "'-1", "ok", "'\tx"]


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it(tmp_path: Path, coco_images: list[Path], width: int) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium")
    pictures = [read_picture(path, PictureSettings()).rgb for path in coco_images[:6]]
    best = [shown(place, f"/in/{place}.jpg", rgb) for place, rgb in enumerate(pictures)]
    page_of(tmp_path / "r.html", best, best[:2])
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},1600",
        f"--user-data-dir={tmp_path}/b",
    ]
    image = tmp_path / "r.png"
    subprocess.run(
        [browser, *options, f"--screenshot={image}", (tmp_path / "r.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert image.stat().st_size > 20_000
    dumped = subprocess.run(
        [browser, *options, "--dump-dom", (tmp_path / "r.html").as_uri()],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert dumped.count("<figure") == 9 and dumped.count("<meter") == 16
