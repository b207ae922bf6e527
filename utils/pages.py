"""Pages: figures, and pictures with boxes drawn on them, as one HTML text that needs no script and no network."""

from __future__ import annotations

import base64
import hashlib
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional
from urllib.parse import quote

GOLDEN_ANGLE = 137.508  # degrees: hues that many apart stay distinct, however many there are
PNG = b"\x89PNG"
FONT_SHARE = 1 / 24  # of a picture's width: all are shown equally wide

STYLE = """
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { border-top: 1px solid #8886; font-size: 1.2rem; margin: 2rem 0 .5rem; padding-top: 1rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 0 1.5rem; }
dt { opacity: .7; }
dd { margin: 0; overflow-wrap: anywhere; }
ol { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
ol { list-style: none; margin: 0; padding: 0; }
figure { border: 1px solid #8886; border-radius: .5rem; margin: 0; overflow: hidden; }
figure > div { background: #8882; position: relative; }
img { display: block; height: auto; width: 100%; }
svg { height: 100%; left: 0; position: absolute; top: 0; width: 100%; }
rect { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke; }
text { font-weight: 600; paint-order: stroke; stroke: #000; stroke-width: .25em; stroke-linejoin: round; }
.figures { align-items: start; display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
.figures > figure { max-width: min(100%, 38rem); }
.figures > .wide { max-width: 100%; }
.figures img { max-width: 100%; width: auto; }
figcaption { padding: .5rem .75rem; }
figcaption p { margin: 0; overflow-wrap: anywhere; }
.name { font-weight: 600; }
.quiet { opacity: .75; }
.bar { font-size: .85rem; }
meter { vertical-align: middle; width: 5rem; }
"""


@dataclass(frozen=True)
class PageBox:
    """One box to draw: corners in the pixels of the picture at its full size."""

    xyxy_px: tuple[float, float, float, float]
    class_name: str
    score: float


@dataclass(frozen=True)
class PageBar:
    """A bar: `share` of the whole width, 0..1."""

    label: str
    share: float


@dataclass(frozen=True)
class PageEntry:
    """One picture of a page.

    image_hw: (height, width) of the picture that the boxes belong to; the thumbnail is the same picture, smaller.
    thumbnail_jpeg: b"" where there is none to show; the remark should then say why. number: instead of its place in the
    section. bars: shares of something, below the picture.
    """

    name: str
    image_hw: tuple[int, int]
    thumbnail_jpeg: bytes
    boxes: tuple[PageBox, ...] = ()
    score: Optional[float] = None
    remark: str = ""
    number: Optional[int] = None
    bars: tuple[PageBar, ...] = ()


@dataclass(frozen=True)
class PageFigure:
    """A picture that is shown as it is, such as curves: the bytes of a JPEG or PNG. is_wide: alone in its line."""

    caption: str
    content: bytes
    is_wide: bool = False


@dataclass(frozen=True)
class PageSection:
    """A part of a page: a heading, a sentence, figures, pictures with boxes, and files to open.

    files: paths from the page's folder, which become links.
    """

    title: str = ""
    remark: str = ""
    figures: tuple[PageFigure, ...] = ()
    entries: tuple[PageEntry, ...] = ()
    files: tuple[str, ...] = ()


def build_page(title: str, facts: Mapping[str, str], sections: Sequence[PageSection]) -> str:
    """Give the HTML text: the title, facts as a list, then the sections, whose pictures are numbered in their order.

    All names come out escaped. The page's own policy allows its one style sheet and embedded pictures, nothing else.
    """
    hues: dict[str, float] = {}
    for box in (box for section in sections for entry in section.entries for box in entry.boxes):
        hues.setdefault(box.class_name, len(hues) * GOLDEN_ANGLE % 360)
    body = "\n".join(_section(section, hues) for section in sections)
    listed = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<dl>{listed}</dl>
{body}
</body>
</html>
"""


def _section(section: PageSection, hues: Mapping[str, float]) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"] if section.title else []
    if section.remark:
        parts.append(f"<p>{html.escape(section.remark)}</p>")
    if section.files:
        links = (f'<a href="./{quote(file)}">{html.escape(file)}</a>' for file in section.files)
        parts.append(f"<p>{', '.join(links)}</p>")
    if section.figures:
        parts.append(f'<div class="figures">{"".join(map(_figure, section.figures))}</div>')
    if section.entries:
        items = "\n".join(_item(number, entry, hues) for number, entry in enumerate(section.entries, start=1))
        parts.append(f"<ol>\n{items}\n</ol>")
    return f"<section>{''.join(parts)}</section>"


def _figure(figure: PageFigure) -> str:
    caption = html.escape(figure.caption)
    image = f'<img src="{_embedded(figure.content)}" alt="{caption}">'
    wide = ' class="wide"' if figure.is_wide else ""
    return f"<figure{wide}>{image}<figcaption>{caption}</figcaption></figure>"


def _embedded(content: bytes) -> str:
    kind = "png" if content.startswith(PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _item(number: int, entry: PageEntry, hues: Mapping[str, float]) -> str:
    name = html.escape(entry.name)
    found = Counter(box.class_name for box in entry.boxes)
    counts = ", ".join(f"{count} {html.escape(class_name)}" for class_name, count in found.items())
    lines = [f'<p class="name">{entry.number or number}. {name}</p>']
    if entry.score is not None:
        lines.append(f"<p>score {entry.score:.6g}</p>")
    lines.append(f'<p class="quiet">{html.escape(entry.remark) or counts or "nothing found"}</p>')
    lines += map(_bar, entry.bars)
    picture = ""
    if entry.thumbnail_jpeg:
        height, width = entry.image_hw
        size = f'width="{width}" height="{height}"'
        picture = (
            f'<div><img src="{_embedded(entry.thumbnail_jpeg)}" {size} alt="{name}">'
            f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{_drawing(entry, hues)}</svg></div>'
        )
    return f"<li><figure>{picture}<figcaption>{''.join(lines)}</figcaption></figure></li>"


def _bar(bar: PageBar) -> str:
    # A style of its own would need another policy: a meter's length is an attribute.
    value = f"{min(max(bar.share, 0), 1):.4f}"
    return f'<p class="bar"><meter value="{value}">{value}</meter> {html.escape(bar.label)}</p>'


def _drawing(entry: PageEntry, hues: Mapping[str, float]) -> str:
    """Give the boxes as SVG, the best last, on top; a label stands in its box's corner, and inside the picture."""
    height, width = entry.image_hw
    font_px = width * FONT_SHARE
    parts = []
    for box in sorted(entry.boxes, key=lambda box: box.score):
        x1, y1, x2, y2 = box.xyxy_px
        colour = f"hsl({hues[box.class_name]:.0f} 90% 65%)"
        place = f'x="{x1:.1f}" y="{y1:.1f}" width="{max(x2 - x1, 0):.1f}" height="{max(y2 - y1, 0):.1f}"'
        is_right = x1 > width * 0.6  # from there a label would run out of the picture: it ends at the box's right side
        left = f'x="{x2 - font_px / 4:.1f}" text-anchor="end"' if is_right else f'x="{x1 + font_px / 4:.1f}"'
        baseline = f'y="{min(y1 + font_px, height - font_px / 4):.1f}" font-size="{font_px:.1f}"'
        label = f"{html.escape(box.class_name)} {box.score:.2f}"
        parts.append(f'<rect {place} stroke="{colour}"/><text {left} {baseline} fill="{colour}">{label}</text>')
    return "".join(parts)
