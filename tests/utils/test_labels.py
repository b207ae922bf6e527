"""The four annotation formats say the same, and what is wrong in them costs no more than itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.annotations import write_ark, write_coco, write_voc
from utils.coco_index import id_key, read_coco_index
from utils.errors import ConfigError, DatasetError
from utils.labels import (
    CLIPPED,
    EMPTY,
    MALFORMED,
    NO_ENTRY,
    NO_PICTURE,
    NOT_FINITE,
    READERS,
    REPEATED,
    SUFFIXES,
    UNKNOWN_CLASS,
    FaultLog,
    Labels,
    LabelSource,
    PictureFile,
    detect_format,
    yolo_label_path,
)

NAMES = ("person", "bicycle", "car")
PICTURE = PictureFile(Path("/in/assets/a b/猫.JPG"), (100, 200))  # 200 px wide, 100 high


def labels_of(boxes: Sequence[Sequence[float]], class_ids: Sequence[int]) -> Labels:
    count = len(class_ids)
    return Labels(
        np.array(class_ids, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.zeros(count, bool),
        (None,) * count,
    )


def write_yolo(labels: Labels, picture: PictureFile) -> bytes:
    """Give YOLO lines with all digits: what a tool that rounds nothing would write."""
    height, width = picture.hw
    lines = []
    for class_id, (x1, y1, x2, y2) in zip(labels.class_ids.tolist(), labels.boxes_px.tolist()):
        centre = f"{(x1 + x2) / 2 / width!r} {(y1 + y2) / 2 / height!r}"
        lines.append(f"{class_id} {centre} {(x2 - x1) / width!r} {(y2 - y1) / height!r}\n")
    return "".join(lines).encode()


def read_in_each_format(
    folder: Path, labels: Labels, picture: PictureFile, names: Sequence[str], formats: Sequence[str] = tuple(READERS)
) -> dict[str, Labels]:
    written = {
        "ark": write_ark(labels, picture),
        "voc": write_voc(labels, picture, names),
        "coco": write_coco([(picture.path.name, picture, labels)], names),
        "yolo": write_yolo(labels, picture),
    }
    read = {}
    for name in formats:
        path = folder / f"labels.{name}"
        path.write_bytes(written[name])
        read[name] = READERS[name](path, picture, LabelSource(names))
    return read


def read_text(
    folder: Path, name: str, text: str, picture: PictureFile = PICTURE, names: Sequence[str] = NAMES
) -> Labels:
    path = folder / f"one.{name}"
    path.write_text(text, encoding="utf-8")
    return READERS[name](path, picture, LabelSource(names))


def counts(labels: Labels) -> dict[str, int]:
    return {fault.kind: fault.count for fault in labels.faults}


@pytest.fixture(scope="module")
def coco128(coco_images: list[Path]) -> list[tuple[PictureFile, Labels]]:
    source = LabelSource([str(number) for number in range(80)])
    read = []
    for path in coco_images:
        with Image.open(path) as image:
            picture = PictureFile(path, (image.height, image.width))
        read.append((picture, READERS["yolo"](yolo_label_path(path), picture, source)))
    return read


def test_coco128_reads_as_929_boxes(coco128: list[tuple[PictureFile, Labels]], shared: Path) -> None:
    rows = [
        line.split()
        for picture, _ in coco128
        if yolo_label_path(picture.path).exists()
        for line in yolo_label_path(picture.path).read_text().splitlines()
    ]
    assert sum(len(labels) for _, labels in coco128) == len(rows) == 929  # coco128 has 929 labels
    got = np.concatenate([labels.class_ids for _, labels in coco128]).tolist()
    assert got == [int(row[0]) for row in rows]


def test_four_formats_of_coco128_agree(coco128: list[tuple[PictureFile, Labels]], tmp_path: Path) -> None:
    """ark and voc hold whole pixels: half a pixel at most, one where the box is thinner than a pixel."""
    names = [str(number) for number in range(80)]
    for picture, labels in coco128:
        read = read_in_each_format(tmp_path, labels, picture, names)
        for name, other in read.items():
            assert not other.faults, name
            np.testing.assert_array_equal(other.class_ids, labels.class_ids)
        np.testing.assert_array_equal(read["ark"].boxes_px, read["voc"].boxes_px)
        np.testing.assert_allclose(read["coco"].boxes_px, labels.boxes_px, rtol=0, atol=1e-9)
        np.testing.assert_allclose(read["yolo"].boxes_px, labels.boxes_px, rtol=0, atol=1e-9)
        sides = np.minimum(*np.split(labels.boxes_px[:, 2:] - labels.boxes_px[:, :2], 2, axis=1))  # (N, 1)
        moved = np.abs(read["ark"].boxes_px - labels.boxes_px)  # (N, 4)
        assert (moved <= np.where(sides < 1, 1, 0.5) + 1e-9).all()


def test_four_formats_of_whole_pixels_are_identical(coco128: list[tuple[PictureFile, Labels]], tmp_path: Path) -> None:
    names = [str(number) for number in range(80)]
    for picture, labels in coco128:
        whole = read_in_each_format(tmp_path, labels, picture, names, ["ark"])["ark"]
        read = read_in_each_format(tmp_path, whole, picture, names)
        for name in ("ark", "voc", "coco"):
            np.testing.assert_array_equal(read[name].boxes_px, whole.boxes_px)
        # A share of the picture has to be multiplied out again: the last bits of a double.
        np.testing.assert_allclose(read["yolo"].boxes_px, whole.boxes_px, rtol=0, atol=1e-9)


@st.composite
def drawn_labels(draw: st.DrawFn) -> tuple[PictureFile, Labels]:
    height, width = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    boxes = []
    for _ in range(draw(st.integers(0, 5))):
        x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))))
    boxes = list(dict.fromkeys(boxes))
    class_ids = draw(st.lists(st.integers(0, 2), min_size=len(boxes), max_size=len(boxes)))
    return PictureFile(Path("/in/assets/x.jpg"), (height, width)), labels_of(boxes, class_ids)


@settings(max_examples=60, deadline=None)
@given(drawn=drawn_labels())
def test_whole_pixels_survive_every_format(drawn: tuple[PictureFile, Labels], tmp_path_factory: Any) -> None:
    picture, labels = drawn
    for name, read in read_in_each_format(tmp_path_factory.getbasetemp(), labels, picture, NAMES).items():
        np.testing.assert_array_equal(read.class_ids, labels.class_ids, err_msg=name)
        np.testing.assert_allclose(read.boxes_px, labels.boxes_px, rtol=0, atol=1e-9, err_msg=name)
        assert not read.faults


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-50, 250).map(float)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(-1, 4), numbers, numbers, numbers, numbers), max_size=6))
def test_whatever_numbers_stand_there_boxes_are_inside_and_none_is_lost_uncounted(
    rows: list[tuple[float, ...]], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    commas = "\n".join(", ".join(map(str, row)) for row in rows)
    blanks = "\n".join(" ".join(map(str, row)) for row in rows)
    annotations = [{"image_id": 1, "category_id": row[0], "bbox": row[1:]} for row in rows]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    images = [{"id": 1, "file_name": PICTURE.path.name}]
    coco = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    for name, text in (("ark", commas), ("yolo", blanks), ("coco", coco)):
        read = read_text(folder, name, text)
        x1, y1, x2, y2 = read.boxes_px.T
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= 200) & (y1 >= 0) & (y1 < y2) & (y2 <= 100)).all()
        assert set(read.class_ids.tolist()) <= {0, 1, 2}
        dropped = sum(fault.count for fault in read.faults if fault.kind != CLIPPED)
        assert len(read) + dropped == len(rows)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_give_labels_or_a_dataset_error(content: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    for reader in READERS.values():
        try:
            reader(path, PICTURE, LabelSource(NAMES))
        except DatasetError as error:
            assert "any" in str(error)


def test_ark_corners_are_inclusive(tmp_path: Path) -> None:
    read = read_text(tmp_path, "ark", "1, 10, 20, 19, 49, -1.0, 0.0\r\n\r\n2,0,0,0,0\r\n")
    assert read.boxes_px.tolist() == [[10, 20, 20, 50], [0, 0, 1, 1]]
    assert read.class_ids.tolist() == [1, 2]
    assert not read.faults


def test_voc_as_the_platform_writes_it(tmp_path: Path) -> None:
    text = """<?xml version="1.0" encoding="utf-8"?>
      <annotation><size><width>200</width><height>100</height></size>
        <object><name>CAR</name><difficult>1</difficult>
          <bndbox><xmin>0</xmin><ymin>5.0</ymin><xmax>199</xmax><ymax>99</ymax></bndbox></object>
        <object><name>unicorn</name>
          <bndbox><xmin>0</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
        <object><name>person</name>
          <part><name>head</name><bndbox><xmin>0</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>
        </object>
      </annotation>"""
    read = read_text(tmp_path, "voc", text)
    assert read.boxes_px.tolist() == [[0, 5, 200, 100]]
    assert read.class_ids.tolist() == [2]
    assert counts(read) == {UNKNOWN_CLASS: 1, MALFORMED: 1}


def test_a_name_in_the_same_spelling_wins_over_one_in_another() -> None:
    source = LabelSource(["Car", "car", "猫"])
    assert [source.class_id_of(name) for name in ("Car", "car", " 猫 ", "dog")] == [0, 1, 2, -1]


def coco_text(annotations: Sequence[Any], images: Optional[Sequence[Any]] = None) -> str:
    categories = [{"id": 7, "name": "Bicycle"}, {"id": 9, "name": "unicorn"}]
    listed = [{"id": "x", "file_name": "a b/猫.JPG"}] if images is None else images
    return json.dumps({"images": listed, "annotations": annotations, "categories": categories})


def test_coco_maps_by_name_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    box = {"image_id": "x", "category_id": 7, "bbox": [10, 20, 30.5, 40]}
    rows: list[Any] = [
        box,
        {**box, "iscrowd": 1},
        {**box, "category_id": 9},
        {**box, "category_id": []},
        {**box, "bbox": "1234"},
        {**box, "bbox": [10**400, 0, 1, 1]},
        {**box, "image_id": 12},
        17,
    ]
    path = tmp_path / "one.coco"
    path.write_text(coco_text(rows))
    source = LabelSource(NAMES)
    read = READERS["coco"](path, PICTURE, source)
    assert read.boxes_px.tolist() == [[10, 20, 40.5, 60]] * 2
    assert read.class_ids.tolist() == [1, 1]
    assert read.is_crowd.tolist() == [False, True]
    assert counts(read) == {UNKNOWN_CLASS: 2, NOT_FINITE: 2}
    assert [(fault.kind, fault.count) for fault in source.shared_faults()] == [(NO_PICTURE, 2)]
    assert "annotation 7" in source.shared_faults()[0].example


def test_huge_ids_of_coco_are_found_and_do_not_hash_alike(tmp_path: Path) -> None:
    alike = [number * sys.hash_info.modulus for number in (2, 3, 5, 8)]
    assert len(set(map(hash, alike))) == 1
    assert len({hash(id_key(number)) for number in alike}) == 4
    rows = [{"image_id": number, "category_id": 7, "bbox": [1, 1, 2, 2]} for number in (alike[1], str(alike[1]), 7)]
    images = [{"id": number, "file_name": f"{place}.jpg"} for place, number in enumerate(alike)]
    (tmp_path / "a.json").write_text(coco_text(rows, images))
    index = read_coco_index(tmp_path / "a.json")
    assert [len(index.rows_of(Path(f"{place}.jpg")) or ()) for place in range(4)] == [0, 1, 0, 0]


def test_coco_is_parsed_once(tmp_path: Path) -> None:
    path = tmp_path / "coco-annotations.json"
    path.write_text(coco_text([{"image_id": "x", "category_id": 7, "bbox": [0, 0, 1, 1]}]))
    source = LabelSource(NAMES)
    first = READERS["coco"](path, PICTURE, source)
    path.unlink()
    second = READERS["coco"](path, PICTURE, source)
    assert first.boxes_px.tolist() == second.boxes_px.tolist() == [[0, 0, 1, 1]]


def test_coco_pictures_of_one_base_name_are_told_apart(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a/1.jpg"}, {"id": 2, "file_name": "b/1.jpg"}, {"id": 3, "file_name": "c/3.jpg"}]
    boxes = [{"image_id": number, "category_id": 7, "bbox": [number, 0, 5, 5]} for number in (3, 2, 1)]
    path = tmp_path / "coco.json"
    path.write_text(coco_text(boxes, images))
    source = LabelSource(NAMES)
    got = {}
    for name in ("a/1.jpg", "b/1.jpg", "other/3.jpg", "c/1.jpg"):
        read = READERS["coco"](path, PictureFile(Path("/in/assets") / name, (100, 200)), source)
        got[name] = read.boxes_px[:, 0].tolist() or list(counts(read))
    assert got == {"a/1.jpg": [1], "b/1.jpg": [2], "other/3.jpg": [3], "c/1.jpg": [NO_ENTRY]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "line 1: is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "no list 'images'"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "images entry 1: has no file_name"),
        ('{"images": [], "annotations": [], "categories": [3]}', "categories entry 1: has no id"),
    ],
)
def test_a_json_that_is_no_coco_file_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DatasetError, match=r"one\.coco") as error:
        read_text(tmp_path, "coco", text)
    assert says in str(error.value)


def test_a_repeated_yolo_row_is_seen_whatever_the_sign_of_its_zeros(tmp_path: Path) -> None:
    read = read_text(tmp_path, "yolo", "0 0 0.5 0.5 0.2\n-0 -0.0 0.5 5e-1 0.2\n0 nan 0 0 0\n")
    assert counts(read) == {REPEATED: 1, NOT_FINITE: 1, CLIPPED: 1}


def test_yolo_boxes_polygons_and_repeated_rows(tmp_path: Path) -> None:
    text = "0 0.5 0.5 0.5 0.2\n1 0.1 0.1 0.3 0.2 0.2 0.6\n0 0.50 0.5 0.5 0.2\n2 .5 .5 .1 .1 .9\n0 0.5 0.5 0.5\n"
    read = read_text(tmp_path, "yolo", text)
    np.testing.assert_allclose(read.boxes_px, [[50, 40, 150, 60], [20, 10, 60, 60]])
    assert read.polygons_px[0] is None
    assert read.polygons_px[1] is not None
    np.testing.assert_allclose(read.polygons_px[1], [[20, 10], [60, 20], [40, 60]])
    assert counts(read) == {REPEATED: 1, MALFORMED: 2}
    assert "one.yolo line 4: 6 fields" in next(fault.example for fault in read.faults if fault.kind == MALFORMED)


def test_a_yolo_picture_without_a_file_has_no_objects(tmp_path: Path) -> None:
    read = READERS["yolo"](tmp_path / "none.txt", PICTURE, LabelSource(NAMES))
    assert len(read) == 0
    assert counts(read) == {NO_ENTRY: 1}


def test_a_bad_box_is_counted_and_its_neighbours_stay(tmp_path: Path) -> None:
    text = "0, -5, 0, 9, 9\n0, 1, 1, 2, 2\n0, 300, 0, 310, 9\n0, nan, 0, 1, 1\n9, 0, 0, 1, 1\n0.5, 0, 0, 1, 1\nx, 1\n"
    read = read_text(tmp_path, "ark", text)
    assert read.boxes_px.tolist() == [[0, 0, 10, 10], [1, 1, 3, 3]]
    assert counts(read) == {CLIPPED: 1, EMPTY: 1, NOT_FINITE: 1, UNKNOWN_CLASS: 2, MALFORMED: 1}
    log = FaultLog()
    log.add(read.faults)
    log.add(read.faults)
    clipped = log.lines()[0]
    assert clipped.startswith(f"{CLIPPED}: 2; first: ")
    assert clipped.endswith("one.ark line 1")


def test_six_decimals_at_the_border_are_not_called_clipped(tmp_path: Path) -> None:
    read = read_text(tmp_path, "yolo", "0 0.25 0.5 0.500001 1.000001\n")
    assert read.boxes_px.tolist() == [[0, 0, pytest.approx(100, abs=1e-3), 100]]
    assert not read.faults


ENTITIES = '<!DOCTYPE a [<!ENTITY b "xx">{}]><annotation><object><name>&b;</name></object></annotation>'


@pytest.mark.parametrize(
    "text",
    [
        ENTITIES.format(""),
        ENTITIES.format('<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;">'),
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><annotation/>',
    ],
)
def test_xml_with_a_document_type_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match=r"one\.voc: declares a document type"):
        read_text(tmp_path, "voc", text)


@pytest.mark.parametrize(
    "text", ["", "<annotation>", "a secret", "<annotation>&b;</annotation>", "<?xml version='1.0' encoding='q'?><a/>"]
)
def test_broken_xml_is_an_error_that_shows_none_of_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match=r"one\.voc.*is not valid XML") as error:
        read_text(tmp_path, "voc", text)
    assert "secret" not in str(error.value)


def test_deep_xml_is_read_or_refused_but_does_not_crash(tmp_path: Path) -> None:
    read = read_text(tmp_path, "voc", "<a>" * 200_000 + "</a>" * 200_000)
    assert len(read) == 0


def test_a_pipe_is_an_error_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DatasetError, match="regular file"):
        READERS["ark"](tmp_path / "pipe.txt", PICTURE, LabelSource(NAMES))


@pytest.mark.parametrize(
    ("told", "expected"),
    [("ark:raw", "ark"), ("voc:raw", "voc"), ("VOC", "voc"), ("det-coco:raw", "coco"), ("yolo:raw", "yolo")],
)
def test_format_as_told(told: str, expected: str) -> None:
    assert detect_format(told, []) == expected


def test_format_by_the_files(tmp_path: Path) -> None:
    contents = {
        "empty.txt": "\n \n",
        "ark.txt": "0, 1, 2, 3, 4",
        "yolo.txt": "0 .1 .2 .3 .4",
        "a.XML": "",
        "b.json": "",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    for names, expected in (
        (["empty.txt", "ark.txt"], "ark"),
        (["yolo.txt"], "yolo"),
        (["a.XML"], "voc"),
        (["b.json"], "coco"),
        (["empty.txt"], "ark"),
        ([], "ark"),
    ):
        assert detect_format("", [tmp_path / name for name in names]) == expected


def test_a_byte_order_mark_costs_no_box(coco128: list[tuple[PictureFile, Labels]], tmp_path: Path) -> None:
    picture, labels = next(found for found in coco128 if len(found[1]) > 2)
    names = [str(number) for number in range(80)]
    for name, read in read_in_each_format(tmp_path, labels, picture, names).items():
        marked = tmp_path / f"{name}{SUFFIXES[name]}"
        marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / f"labels.{name}").read_bytes())
        assert detect_format("", [marked]) == name
        again = READERS[name](marked, picture, LabelSource(names))
        assert len(again) == len(labels) and again.faults == read.faults
        np.testing.assert_array_equal(again.boxes_px, read.boxes_px)


def test_a_format_that_is_not_known_or_not_there_is_an_error() -> None:
    for told in ("tfrecord:raw", "ark:lmdb"):
        with pytest.raises(ConfigError, match=r"export_format: got .*ark:raw, voc:raw, coco:raw, yolo:raw"):
            detect_format(told, [])
    with pytest.raises(DatasetError, match=r"1\.xml: export_format is ark:raw"):
        detect_format("ark:raw", ["1.xml"])
    with pytest.raises(DatasetError, match=r"1\.csv"):
        detect_format("", ["1.csv"])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("/d/images/train/a.b.JPG", "/d/labels/train/a.b.txt"),
        ("/images/x/images/1.png", "/images/x/labels/1.txt"),
        ("/d/myimages/1.png", "/d/myimages/1.txt"),
        ("images/images.jpg", "labels/images.txt"),
    ],
)
def test_yolo_label_path(image: str, expected: str) -> None:
    assert yolo_label_path(Path(image)) == Path(expected)


def test_labels_of_unequal_lengths_are_refused() -> None:
    flags: npt.NDArray[np.bool_] = np.zeros(1, bool)
    with pytest.raises(ValueError, match="expected 2 boxes"):
        Labels(np.zeros(2, np.int64), np.zeros((1, 4)), flags, (None,))
