"""The report: hostile names stay words, the page stays small, and a browser shows it."""

from __future__ import annotations

import base64
import csv
import html
import re
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.report import MOST_BYTES, ReportRow, Shown, cell, histogram, write_csv, write_page
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
    noise = np.random.default_rng(0).integers(0, 255, (1600, 1600, 3), np.uint8)
    page_of(
        tmp_path / "r.html",
        [shown(i, f"/in/{i}.jpg", noise) for i in range(50)],
        [shown(i, "x", noise) for i in range(50)],
    )
    assert (tmp_path / "r.html").stat().st_size < MOST_BYTES


def test_long_names_and_many_boxes_stay_below_the_limit(tmp_path: Path) -> None:
    """Every letter becomes six in HTML; pictures become smaller until all fits."""
    rgb = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    box = np.array([1, 1, 250, 250], np.float32)
    many = Detections(np.tile(box, (300, 1)), np.ones(300, np.float32), np.arange(300))
    names = ['"' * 200 + str(number) for number in range(300)]
    all_shown = [Shown(ReportRow(i, '"' * 5000, 0.1, 0.1, [1.0] * 300), rgb, many) for i in range(100)]
    copies = [('"' * 5000, '"' * 5000)] * 1000
    path = tmp_path / "r.html"
    write_page(path, {}, names, names, all_shown[:50], all_shown[50:], np.zeros(7), copies)
    assert path.stat().st_size < MOST_BYTES
    assert path.read_text().count("<rect") == 40 * 100


def test_a_page_of_nothing_is_a_page(tmp_path: Path) -> None:
    write_page(tmp_path / "r.html", {}, (), (), [], [], np.zeros(0), [])
    page = (tmp_path / "r.html").read_text()
    assert "There are none." in page and "<figure" not in page and page.endswith("</html>\n")


def test_the_histogram_counts_scores() -> None:
    """Four bars of heights 1, 3, 0 and 2 of 3; a gap between where no score lies. The limits are written below."""
    markup = histogram(np.repeat([0.0, 0.3, 0.9, 1.0], [10, 30, 5, 15]))
    assert "60 candidates, score 0 to 1" in markup
    drawn = ElementTree.fromstring(base64.b64decode(markup.partition("base64,")[2].partition('"')[0]))
    space = "{http://www.w3.org/2000/svg}"
    bars = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)H([\d.]+)V", drawn[0].get("d") or "")
    heights = [float(low) - float(top) for _, low, top, _ in bars]
    assert [round(height / max(heights), 3) for height in heights] == [0.333, 1, 0.167, 0.5]
    texts = [text.text for text in drawn.iter(f"{space}text")]
    assert texts == ["0", "0.5", "1", "highest bar: 30 of 60 candidates"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    write_csv(path, ["a"], [ReportRow(0, "x", 1.0, 1.0, (2.0,))])
    before = path.read_bytes()

    def rows() -> Iterator[ReportRow]:
        yield ReportRow(0, "y", 1.0, 1.0, (3.0,))
        raise OSError(5, "gone")

    with pytest.raises(OSError, match="gone"):
        write_csv(path, ["a"], rows())
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["r.csv"]


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    """200,000 rows of 20 parts, of which never more than one is held."""
    alive: list[weakref.ref[Any]] = []

    class Parts(list):  # type: ignore[type-arg]  # a list has no weak references
        pass

    def rows() -> Iterator[ReportRow]:
        for place in range(2000):
            parts = Parts([place / 7] * 20)
            alive[:] = [ref for ref in alive if ref() is not None]
            assert len(alive) <= 2
            alive.append(weakref.ref(parts))
            yield ReportRow(place, f"/in/{place}.jpg", 0.1, 0.2, parts)

    write_csv(tmp_path / "r.csv", [str(number) for number in range(20)], rows())
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 2001


@settings(max_examples=200, deadline=None)
@given(name=st.text(st.characters(), max_size=30))
def test_any_name_is_a_cell_that_comes_back(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.csv"
        write_csv(path, [name], [ReportRow(0, name, -0.5, -1e-5, (-2.0,), name)])
        with path.open(newline="", encoding="utf-8") as file:
            header, row = csv.reader(line.replace("\0", "") for line in file)
    shown_name = name.encode("utf-8", "backslashreplace").decode().replace("\0", "")
    for text in (header[5], row[1], row[4]):
        assert text in (shown_name, f"'{shown_name}")
        assert not text.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert [float(row[place]) for place in (2, 3, 5)] == [-0.5, -1e-5, -2.0]


def test_the_table_comes_back_and_holds_no_formula(tmp_path: Path) -> None:
    rows = [ReportRow(0, "=cmd|x", 0.5, 0.25, (1.0, -2.0)), ReportRow(1, 'a,"b\n.jpg', float("nan"), -1.0, ())]
    write_csv(tmp_path / "r.csv", ["+a", "b"], rows)
    with (tmp_path / "r.csv").open(newline="") as file:
        read = list(csv.reader(file))
    assert read[0] == ["place", "image", "score", "value", "near_copy_of", "'+a", "b"]
    assert read[1] == ["1", "'=cmd|x", "0.5", "0.25", "", "1", "-2"]
    assert read[2] == ["2", 'a,"b\n.jpg', "", "-1", "", "", ""]
    assert [cell(text) for text in ("@x", "-1", "ok", "\tx")] == ["'@x", "'-1", "ok", "'\tx"]


def browse(folder: Path, page: str, *options: str) -> str:
    """Open a page in a real browser that has no network; gives what it prints."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium")
    path = folder / "page.html"
    path.write_text(page)
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1600", "--proxy-server=127.0.0.1:9"]
    command = [browser, *common, f"--user-data-dir={folder}/b", *options, path.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def real_page(folder: Path, images: list[Path]) -> str:
    pictures = [read_picture(path, PictureSettings()).rgb for path in images[:6]]
    best = [shown(place, f"/in/{'long' * 30}{place}.jpg", rgb) for place, rgb in enumerate(pictures)]
    return page_of(folder / "r.html", best, [*best[:2], shown(8, "/in/gone.jpg", None)])


def test_a_browser_shows_it(tmp_path: Path, coco_images: list[Path]) -> None:
    page = real_page(tmp_path, coco_images)
    image = tmp_path / "r.png"
    browse(tmp_path, page, f"--screenshot={image}")
    seen = read_picture(image, PictureSettings()).rgb
    assert seen.std() > 30  # photographs are not one grey
    dumped = browse(tmp_path, page, "--dump-dom")
    assert dumped.count("<figure") == 10 and dumped.count("<meter") == 18 and dumped.count("<rect") == 8


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_into_a_phone(tmp_path: Path, coco_images: list[Path], width: int) -> None:
    """A browser's window isn't narrower than 500 px, so the page stands in a frame, and its outer page measures it."""
    framed = html.escape(real_page(tmp_path, coco_images), quote=True)
    outer = f"""<!DOCTYPE html><iframe width="{width}" height="900" srcdoc="{framed}"></iframe><p id="said"></p><script>
    const frame = document.querySelector("iframe");
    frame.onload = () => {{
      const page = frame.contentDocument, images = [...page.images], items = [...page.querySelectorAll("li")];
      const right = Math.max(...[...page.querySelectorAll("body *")].map(one => one.getBoundingClientRect().right));
      const columns = new Set(items.map(one => one.getBoundingClientRect().left)).size;
      const loaded = images.filter(one => one.complete && one.naturalWidth > 0).length;
      const found = [page.documentElement.scrollWidth, Math.round(right), columns, loaded, images.length];
      document.querySelector("#said").textContent = found.join(" ");
    }};
    </script>"""
    dumped = browse(tmp_path, outer, "--dump-dom", "--virtual-time-budget=5000")
    said = re.search(r'id="said">([^<]+)<', dumped)
    assert said is not None
    scroll, right, columns, loaded, images = map(int, said[1].split())
    assert scroll <= width and right <= width
    assert columns == {320: 1, 390: 1, 1200: 3}[width]
    assert loaded == images == 9
