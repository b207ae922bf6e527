"""A page shows pictures, boxes and order, and nothing that stands in a name can become markup."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Optional
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.pages import PageBox, PageEntry, PageFigure, PageSection, build_page

JPEG = b"\xff\xd8 not looked at"
VOID = {"meta", "img"}  # HTML elements without an end


class Tree(HTMLParser):
    """Collects elements with their attributes and texts, and checks that they are nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, Optional[str]]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, Optional[str]]]:
        return [attributes for name, attributes in self.elements if name == tag]


def entry(name: str = "a/1.jpg", class_name: str = "cat", **more: object) -> PageEntry:
    fields: dict[str, object] = {
        "image_hw": (100, 200),
        "thumbnail_jpeg": JPEG,
        "boxes": (PageBox((10, 20, 40, 80), class_name, 0.913),),
        "score": 12.3456789,
        **more,
    }
    return PageEntry(name, **fields)  # type: ignore[arg-type]  # a test's shorthand


def page_of(title: str, facts: dict[str, str], *entries: PageEntry) -> str:
    return build_page(title, facts, [PageSection(entries=entries)])


def test_order_scores_and_boxes_are_shown() -> None:
    tree = Tree(page_of("Title", {"weights": "best.pt"}, entry("b.jpg"), entry("a.jpg", score=None)))
    texts = [text for _, text in tree.texts]
    assert [text for text in texts if text.endswith(".jpg")] == ["1. b.jpg", "2. a.jpg"]
    assert texts.count("score 12.3457") == 1
    assert "best.pt" in texts
    assert ("text", "cat 0.91") in tree.texts
    assert tree.all("svg")[0]["viewbox"] == "0 0 200 100"
    rect = tree.all("rect")[0]
    assert [rect[key] for key in ("x", "y", "width", "height")] == ["10.0", "20.0", "30.0", "60.0"]
    assert tree.all("img")[0]["src"] == "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()


def test_a_picture_without_boxes_or_pixels_says_so() -> None:
    page = page_of("T", {}, entry(boxes=()), entry(boxes=(), thumbnail_jpeg=b"", remark="unreadable: <cut>"))
    tree = Tree(page)
    assert ("p", "nothing found") in tree.texts
    assert ("p", "unreadable: <cut>") in tree.texts
    assert len(tree.all("img")) == 1


def test_a_page_without_pictures_is_a_page() -> None:
    assert Tree(page_of("T", {})).all("li") == []


def test_figures_stand_between_their_sections_heading_and_pictures() -> None:
    figures = PageFigure("curves", b"\x89PNG\r\n"), PageFigure("batch", JPEG)
    sections = [PageSection("Training", "It went well.", figures, files=("out/a b.csv",)), PageSection("Mining")]
    tree = Tree(build_page("T", {}, sections))
    assert [text for tag, text in tree.texts if tag == "h2"] == ["Training", "Mining"]
    assert ("p", "It went well.") in tree.texts
    assert [str(image["src"]).partition(";")[0] for image in tree.all("img")] == ["data:image/png", "data:image/jpeg"]
    assert ("a", "out/a b.csv") in tree.texts
    assert tree.all("a")[0]["href"] == "./out/a%20b.csv"


def test_the_policy_allows_its_own_style_and_embedded_pictures_only() -> None:
    page = page_of("T", {}, entry())
    policy = next(meta for meta in Tree(page).all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert policy["content"] == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert page.index("Content-Security-Policy") < page.index("<style")
    assert any(meta.get("name") == "viewport" for meta in Tree(page).all("meta"))


NASTY = ['<script>alert(1)</script>"', "' onload='x", "&lt;b&gt; & </title>", "]]>--><svg onload=x>", "猫\u202e"]


@pytest.mark.parametrize("name", NASTY)
def test_names_are_text_wherever_they_stand(name: str) -> None:
    entries = entry(name, name, remark=""), entry(name, name, remark=name)
    section = PageSection(name, name, (PageFigure(name, JPEG),), entries, (name,))
    page = build_page(name, {name: name}, [section])
    tree = Tree(page)
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "dl", "dt", "dd", "ol", "li", "figure", "div"}
    assert {tag for tag, _ in tree.elements} <= allowed | {
        "img",
        "svg",
        "rect",
        "text",
        "figcaption",
        "p",
        "section",
        "h2",
        "a",
    }
    assert not [key for _, attributes in tree.elements for key in attributes if key.startswith("on")]
    for place in ("title", "h1", "h2", "dt", "dd", "p", "figcaption", "a"):
        assert (place, name) in tree.texts
    assert ("text", f"{name} 0.91") in tree.texts
    assert [image["alt"] for image in tree.all("img")] == [name] * 3
    assert [link["href"] for link in tree.all("a")] == [f"./{quote(name)}"]


@settings(max_examples=100, deadline=None)
@given(name=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_name_leaves_the_page_as_it_is(name: str) -> None:
    plain = [tag for tag, _ in Tree(page_of("x", {"x": "x"}, entry("x", "x"))).elements]
    assert [tag for tag, _ in Tree(page_of(name, {name: name}, entry(name, name))).elements] == plain
