"""Why these pictures: one page to look at, and a table of every part of every score. No torch."""

from __future__ import annotations

import base64
import codecs
import csv
import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from utils.detections import Detections
from utils.files import replacing, write_whole
from utils.pages import PageBar, PageBox, PageEntry, PageSection, build_page

THUMBNAIL_PX = 300  # the longer side
THUMBNAIL_QUALITY = 70
MOST_BYTES = 5_000_000  # of a page
MOST_BARS = 4
MOST_BOXES = 40  # drawn in one picture, best first
MOST_COPIES = 200  # named
MOST_LETTERS, MOST_LABEL = 80, 40  # letters of a name; of a class's, which stands at each box
CHART_WH = 420, 190  # px; on a phone it is shown a little smaller, and its texts stay readable
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a table's program would compute a cell that begins so


class ReportRow(NamedTuple):
    """One candidate. place: in the order, from 0. score: the plain one, NaN for a picture that can't be read."""

    place: int
    line: str
    score: float
    value: float  # as in result.tsv
    parts: Sequence[float]
    near_copy_of: Optional[str] = None


@dataclass(frozen=True, eq=False)
class Shown:
    """One candidate to look at. rgb: (h, w, 3) uint8, None where it can't be read; detections: in its pixels."""

    row: ReportRow
    rgb: Optional[npt.NDArray[np.uint8]]
    detections: Detections


def write_csv(path: Path, part_names: Sequence[str], rows: Iterable[ReportRow]) -> None:
    """Write the table, a line for each candidate, whole or not at all. Raises OSError."""
    with replacing(path) as file:
        writer = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"))
        writer.writerow(["place", "image", "score", "value", "near_copy_of", *map(cell, part_names)])
        for row in rows:
            parts = [f"{part:.9g}" for part in row.parts] or [""] * len(part_names)
            score = "" if math.isnan(row.score) else f"{row.score:.9g}"
            writer.writerow(
                [row.place + 1, cell(row.line), score, f"{row.value:.9g}", cell(row.near_copy_of or ""), *parts]
            )


def cell(text: str) -> str:
    """Give a text that no table's program takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def write_page(
    path: Path,
    facts: Mapping[str, str],
    part_names: Sequence[str],
    class_names: Sequence[str],
    best: Sequence[Shown],
    last: Sequence[Shown],
    scores: npt.NDArray[np.float64],
    near_copies: Sequence[tuple[str, str]],
) -> None:
    """Write the page, below 5 MB, whole or not at all. Raises OSError.

    scores: (N,) plain ones of all readable candidates. near_copies: (line, line that it is like).
    """
    quality, side = THUMBNAIL_QUALITY, THUMBNAIL_PX
    while True:
        sections = [PageSection("How the scores lie", "" if len(scores) else "There are none.")]
        for title, some in (("First in the order", best), ("Last in the order", last)):
            entries = tuple(entry_of(shown, part_names, class_names, side, quality) for shown in some)
            sections.append(PageSection(title, "" if entries else "There are no more.", entries=entries))
        if near_copies:
            named = (f"{base_name(copy)} is like {base_name(of)}" for copy, of in near_copies[:MOST_COPIES])
            listed = "; ".join(named)
            more = f"; and {len(near_copies) - MOST_COPIES} more" if len(near_copies) > MOST_COPIES else ""
            sections.append(PageSection("Near-duplicates, behind all others", listed + more))
        text = build_page("Why these pictures", facts, sections)
        before, end, after = text.partition("</h2>")  # of the first section: names can't hold markup
        page = f"{before}{end}{histogram(scores)}{after}".encode("utf-8", "backslashreplace")
        if len(page) <= MOST_BYTES or side < 40:
            break
        side = side * 2 // 3
    write_whole(path, page)


def histogram(scores: npt.NDArray[np.float64]) -> str:
    """Draw how many candidates have which score, as the markup of a figure; none of no scores.

    An SVG within an image has no part in the page's policy and styles. Grey letters can be read on light and on dark.
    """
    if not len(scores):
        return ""
    counts, edges = np.histogram(scores, bins=min(max(len(scores) // 4, 5), 60))
    width, height = CHART_WH
    left, right, top, bottom = 10.0, width - 10.0, 24.0, height - 24.0  # of the bars
    lefts = np.linspace(left, right, len(counts) + 1)
    bars = "".join(
        f"M{x1:.1f} {bottom}V{bottom - (bottom - top) * count / counts.max():.1f}H{x2:.1f}V{bottom}z"
        for x1, x2, count in zip(lefts, lefts[1:], counts.tolist())
        if count
    )
    ends = (
        (left, "start", edges[0]),
        ((left + right) / 2, "middle", (edges[0] + edges[-1]) / 2),
        (right, "end", edges[-1]),
    )
    words = [f'<text x="{x}" y="{height - 7}" text-anchor="{anchor}">{score:.4g}</text>' for x, anchor, score in ends]
    words.append(f'<text x="{left}" y="15">highest bar: {counts.max()} of {len(scores)} candidates</text>')
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<path d="{bars}" fill="#4a7fb5"/><path d="M{left} {bottom}H{right}" stroke="#888"/>'
        f'<g fill="#888" font-family="sans-serif" font-size="13">{"".join(words)}</g></svg>'
    )
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    caption = html.escape(f"{len(scores)} candidates, score {scores.min():.4g} to {scores.max():.4g}")
    return (
        f'<div class="figures"><figure><img src="{source}" width="{width}" height="{height}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure></div>"
    )


def entry_of(shown: Shown, part_names: Sequence[str], class_names: Sequence[str], side: int, quality: int) -> PageEntry:
    """Give a candidate's picture with its boxes, and what its score is made of."""
    row = shown.row
    remarks = []
    if row.near_copy_of is not None:
        remarks.append(f"nearly {base_name(row.near_copy_of)}")
    if shown.rgb is None:
        remarks.append("can't be read")
    elif row.value != row.score:
        remarks.append(f"value of the choice {row.value:.4g}")
    image_hw, thumbnail = (1, 1), b""
    if shown.rgb is not None:
        image_hw, thumbnail = (shown.rgb.shape[0], shown.rgb.shape[1]), thumbnail_of(shown.rgb, side, quality)
    found = shown.detections.pick(slice(0, MOST_BOXES))
    names = {class_id: shortened(name, MOST_LABEL) for class_id, name in enumerate(class_names)}
    boxes = tuple(
        PageBox((x1, y1, x2, y2), names.get(class_id, str(class_id)), score)
        for (x1, y1, x2, y2), class_id, score in zip(
            found.boxes_px.tolist(), found.class_ids.tolist(), found.scores.tolist()
        )
    )
    return PageEntry(
        base_name(row.line),
        image_hw,
        thumbnail,
        boxes,
        None if math.isnan(row.score) else row.score,
        "; ".join(remarks),
        row.place + 1,
        bars_of(row.parts, part_names),
    )


def base_name(line: str) -> str:
    """Give the last part of an index line."""
    return shortened(os.path.basename(line))  # noqa: PTH119  # a NUL byte would make Path raise on old Pythons


def shortened(name: str, most: int = MOST_LETTERS) -> str:
    """Give a name whose middle is left out where it is very long: names must not make a page large."""
    half = most // 2
    return name if len(name) <= most else f"{name[: half - 1]}…{name[-half:]}"


def bars_of(parts: Sequence[float], names: Sequence[str]) -> tuple[PageBar, ...]:
    """Give the largest parts of a score as shares of all, and their own figures."""
    total = sum(abs(part) for part in parts)
    if not total:
        return ()
    largest = sorted(zip(parts, names), key=lambda pair: -abs(pair[0]))[:MOST_BARS]
    return tuple(PageBar(f"{shortened(name)} {part:.4g}", abs(part) / total) for part, name in largest if part)


def thumbnail_of(rgb: npt.NDArray[np.uint8], side: int, quality: int) -> bytes:
    """Give a small JPEG."""
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(shrunk(rgb, side)), quality=quality)
    return content


def shrunk(rgb: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Make a picture's longer side at most so many px."""
    scale = min(side / max(rgb.shape[:2]), 1.0)
    size = max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1)
    small: Any = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)
