"""Types, sizes and orientations from headers alone, compared with Pillow's."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.utils.picture_files import grey_jpeg, saved, segment, tiff_of, with_orientation
from utils.picture_headers import KINDS, PictureError, read_header, read_orientation

STARTS = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "BMP": b"BM",
    "WebP": b"RIFF\0\0\0\0WEBP",
    "TIFF": b"II*\0",
}


class CountingFile(io.BytesIO):
    """Counts the bytes that are read."""

    taken = 0

    def read(self, size: Any = -1, /) -> bytes:
        content = super().read(size)
        self.taken += len(content)
        return content


def size_of(content: bytes) -> tuple[int, int]:
    return read_header(io.BytesIO(content)).stored_hw


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (300, 200), (1, 2000), (2000, 1), (16383, 2)])
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "1", {}),
        ("BMP", "RGB", {}),
        ("BMP", "P", {}),
        ("WebP", "RGB", {}),
        ("WebP", "RGB", {"lossless": True}),
        ("WebP", "RGBA", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ],
)
def test_size_is_the_one_the_file_was_written_with(
    size: tuple[int, int], kind: str, mode: str, options: dict[str, Any]
) -> None:
    header = read_header(io.BytesIO(saved(Image.new(mode, size), kind, **options)))
    assert (header.kind, header.stored_hw) == (kind, size[::-1])


def test_real_pictures_have_pillows_size_and_little_is_read(coco_images: list[Path]) -> None:
    for path in coco_images:
        file = CountingFile(path.read_bytes())
        with Image.open(path) as image:
            assert read_header(file).stored_hw == image.size[::-1]
        assert file.taken < 65536


def test_animated_webp_has_the_size_of_its_canvas() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green")]
    assert size_of(saved(frames[0], "WebP", save_all=True, append_images=frames[1:])) == (30, 40)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("number_type", [3, 4, 16])
def test_tiff_size_in_either_byte_order_and_every_integer_type(order: str, big: bool, number_type: int) -> None:
    if number_type == 16 and not big:
        pytest.skip("LONG8 came with BigTIFF")
    assert size_of(tiff_of([(256, number_type, 300), (257, number_type, 200)], order, big)) == (200, 300)


@pytest.mark.parametrize("big", [False, True])
def test_hand_made_tiff_is_one_that_opencv_reads(big: bool) -> None:
    entries = [(256, 3, 5), (257, 3, 4), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1), (278, 3, 4)]
    content = tiff_of([*entries, (279, 4, 20)], ">", big, data=bytes(range(20)))
    grey = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    assert grey.tolist() == np.arange(20).reshape(4, 5).tolist()
    assert size_of(content) == (4, 5)


def test_bmp_of_os2_and_top_down_bmp() -> None:
    core = b"BM" + struct.pack("<IHHI", 26 + 8, 0, 0, 26) + struct.pack("<IHHHH", 12, 2, 1, 1, 24) + b"\1" * 8
    top_down = b"BM" + struct.pack("<IHHI", 54 + 8, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2, -1, 1, 24, *[0] * 6)
    for content in (core, top_down + b"\1" * 8):
        assert size_of(content) == (1, 2)
        assert Image.open(io.BytesIO(content)).size == (2, 1)


def test_jpeg_markers_may_be_padded_and_follow_long_metadata() -> None:
    plain = grey_jpeg(37, 53, [0x11])
    metadata = segment(0xE2, b"\xff\xc0\x00\x11\x08" * 13000)  # what looks like a frame, in the metadata
    padded = plain[:2] + metadata * 40 + b"\xff" * 5000 + plain[2:]
    assert size_of(padded) == (37, 53)
    with Image.open(io.BytesIO(padded)) as image:
        assert image.size == (53, 37)


def test_thumbnail_within_a_jpeg_is_not_its_size() -> None:
    thumbnail = segment(0xE1, b"Exif\0\0" + grey_jpeg(8, 8, [0x11]))
    content = grey_jpeg(37, 53, [0x11])
    assert size_of(content[:2] + thumbnail + content[2:]) == (37, 53)


def test_marker_across_two_read_blocks_is_found() -> None:
    content = grey_jpeg(37, 53, [0x11])
    frame = content.index(b"\xff\xc0")
    for filler in range(4000, 4100):
        assert size_of(content[:frame] + bytes(filler) + content[frame:]) == (37, 53)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"GIF89a" + bytes(100),
        b"%PDF-1.7",
        b"PK\3\4" + bytes(100),
        b"\x7fELF" + bytes(100),
        b"RIFF\0\0\0\0AVI LIST",
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        b"P6 2 2 255 ABCDEFGHIJKL",
        b"II*\1" + bytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_other_types_are_no_picture(content: bytes) -> None:
    with pytest.raises(PictureError, match="is no JPEG, PNG, BMP, WebP or TIFF picture"):
        read_header(io.BytesIO(content))


def test_text_that_begins_like_a_bmp_is_refused() -> None:
    with pytest.raises(PictureError, match="damaged BMP header"):
        read_header(io.BytesIO(b"BMW 320 d, Baujahr 2009, unfallfrei"))


@pytest.mark.parametrize(
    "content",
    [
        grey_jpeg(1, 1, [0x11]).replace(b"\xff\xc0\0\x0b\x08\0\1", b"\xff\xc0\0\x0b\x08\0\0"),
        saved(Image.new("RGB", (1, 1)), "PNG")[:16] + bytes(8),
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 0, 5) + bytes(40),
        b"BM" + bytes(12) + struct.pack("<Iii", 40, -5, 5) + bytes(40),
        b"RIFF\0\0\0\0WEBPVP8 " + bytes(7) + b"\x9d\x01\x2a" + bytes(4),
        tiff_of([(256, 3, 0), (257, 3, 7)]),
    ],
)
def test_sizes_below_one_are_refused(content: bytes) -> None:
    with pytest.raises(PictureError, match=r"is -?\d+ x -?\d+ pixels|breaks off"):
        read_header(io.BytesIO(content))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 1, 4, 10, 20, 30])
def test_header_that_breaks_off_is_an_error(kind: str, keep: int) -> None:
    with pytest.raises(PictureError):
        read_header(io.BytesIO(saved(Image.new("RGB", (9, 9)), kind)[: len(STARTS[kind]) + keep][:20]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_is_the_one_pillow_wrote(kind: str, value: int) -> None:
    content = saved(Image.new("RGB", (9, 5)), kind, exif=with_orientation(value))
    assert read_orientation(io.BytesIO(content), kind) == value


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "BMP"])
def test_picture_without_orientation_is_upright(kind: str) -> None:
    assert read_orientation(io.BytesIO(saved(Image.new("RGB", (9, 5)), kind)), kind) == 1


def exif_of(block: bytes) -> bytes:
    content = grey_jpeg(37, 53, [0x11])
    return content[:2] + segment(0xE1, b"Exif\0\0" + block) + content[2:]


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_in_either_byte_order_behind_other_metadata(order: str) -> None:
    content = exif_of(tiff_of([(271, 4, 9), (274, 3, 6)], order))
    content = content[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>") + content[2:]
    assert read_orientation(io.BytesIO(content), "JPEG") == 6


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II",
        b"XX*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + bytes(20),
        b"II+\0\x08\0\0\0" + b"\xff" * 40,
        tiff_of([(274, 3, 0)]),
        tiff_of([(274, 3, 9)]),
        tiff_of([(274, 4, 65536 + 6)]),
        tiff_of([(275, 3, 6)]),
        tiff_of([(274, 3, 6)])[:-9],
        tiff_of([(274, 3, 6)]).replace(struct.pack("<HHI", 274, 3, 1), struct.pack("<HHI", 274, 3, 9)),
        tiff_of([(274, 3, 6)]).replace(struct.pack("<HHI", 274, 3, 1), struct.pack("<HHI", 274, 2, 1)),
    ],
)
def test_hostile_exif_is_upright(block: bytes) -> None:
    assert read_orientation(io.BytesIO(exif_of(block)), "JPEG") == 1


@pytest.mark.parametrize(
    "content",
    [
        STARTS["JPEG"] + b"\xff" * 1_000_000,
        STARTS["JPEG"] + b"\xff\xe0\0\2" * 300_000,
        STARTS["JPEG"] + b"\xff\xd0" * 1_000_000,
        STARTS["TIFF"] + struct.pack("<I", 8) + b"\xff" * 1_000_000,
        b"II+\0" + struct.pack("<HHQ", 8, 0, 2**64 - 1),
        b"II+\0" + struct.pack("<HHQ", 8, 0, 2**63 - 1),
    ],
)
def test_header_that_leads_nowhere_ends(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(content)
    with (tmp_path / "picture").open("rb") as file, pytest.raises(PictureError):
        read_header(file)


@given(kind=st.sampled_from(sorted(STARTS)), rest=st.binary(max_size=300))
def test_any_bytes_give_a_size_or_a_picture_error(kind: str, rest: bytes) -> None:
    file = io.BytesIO(STARTS[kind] + rest)
    try:
        header = read_header(file)
    except PictureError as error:
        assert "\n" not in str(error)
    else:
        assert min(header.stored_hw) >= 1
    assert 1 <= read_orientation(file, kind) <= 8
