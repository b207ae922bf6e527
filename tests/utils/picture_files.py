"""Picture files for the tests: from Pillow, from OpenCV, or byte by byte where no tool writes the odd thing."""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(path: Any, width: int = 160) -> Image.Image:
    """A real picture, small enough to be decoded hundreds of times."""
    image = Image.open(path).convert("RGB")
    return image.resize((width, round(image.height * width / image.width)))


def by_opencv(content: bytes, turn: bool = False) -> Pixels:
    """RGB pixels as OpenCV's IMREAD_COLOR gives them."""
    flags = cv2.IMREAD_COLOR if turn else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    assert bgr is not None
    return np.asarray(bgr[..., ::-1])


def with_orientation(value: int) -> Image.Exif:
    """An EXIF block that holds an orientation and a maker."""
    exif = Image.Exif()
    exif[271] = "a maker"
    exif[274] = value
    return exif


def segment(marker: int, payload: bytes) -> bytes:
    """One JPEG segment."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def grey_jpeg(height: int, width: int, sampling: list[int], frame: int = 0xC0, scans: int = 1) -> bytes:
    """A JPEG whose every block is mid-grey, with any sampling factors (0x22 = 2 x 2): code 0 is "no difference".

    scans: how often the one interleaved scan is repeated.
    """
    bits = bytes([1] + [0] * 15) + b"\0"  # one code of one bit, for the value 0
    parts = [b"\xff\xd8", segment(0xDB, b"\0" + bytes([1]) * 64)]
    components = b"".join(bytes([number + 1, factors, 0]) for number, factors in enumerate(sampling))
    parts.append(segment(frame, struct.pack(">BHHB", 8, height, width, len(sampling)) + components))
    parts += [segment(0xC4, b"\x00" + bits), segment(0xC4, b"\x10" + bits)]
    across, down = 8 * max(s >> 4 for s in sampling), 8 * max(s & 15 for s in sampling)
    units = -(-height // down) * -(-width // across)
    blocks = units * sum((s >> 4) * (s & 15) for s in sampling)
    data = np.packbits([0] * (2 * blocks) + [1] * (-2 * blocks % 8)).tobytes().replace(b"\xff", b"\xff\0")
    selectors = b"".join(bytes([number + 1, 0]) for number in range(len(sampling)))
    parts += [segment(0xDA, bytes([len(sampling)]) + selectors + b"\0\x3f\0") + data] * scans
    return b"".join([*parts, b"\xff\xd9"])


def tiff_of(
    entries: list[tuple[int, int, int]], order: str = "<", big: bool = False, data: bytes = b"", data_tag: int = 273
) -> bytes:
    """A TIFF of one directory, entries = (tag, type, value); entry `data_tag` gets the position of `data`."""
    letters = b"II" if order == "<" else b"MM"
    formats = {1: "B", 3: "H", 4: "I", 16: "Q"}
    value_size = 8 if big else 4
    start = 16 if big else 8
    head = letters + (struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start))
    data_at = start + (8 if big else 2) + len(entries) * (20 if big else 12) + value_size
    body = struct.pack(order + ("Q" if big else "H"), len(entries))
    for tag, number_type, value in entries:
        body += struct.pack(order + ("HHQ" if big else "HHI"), tag, number_type, 1)
        value = data_at if tag == data_tag else value
        body += struct.pack(order + formats[number_type], value).ljust(value_size, b"\0")
    return head + body + b"\0" * value_size + data
