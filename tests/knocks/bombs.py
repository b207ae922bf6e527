"""Small pictures that say they are huge, or unpack to far more than their size; made by hand.

Sources, PNG: W3C; JPEG: ITU T.81; BMP: Microsoft's BITMAPINFOHEADER; WebP: RFC 9649; TIFF: Adobe, TIFF 6.0.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Callable

HUGE = 20_000  # a side; twice what max_pixels allows
UNPACKED = 128 << 20  # bytes


@functools.cache
def zeros(count: int) -> bytes:
    """Give so many zeros deflated, a thousandth of them, without having them in memory."""
    packer = zlib.compressobj(9)
    whole, rest = divmod(count, 1 << 20)
    return b"".join(
        [*(packer.compress(bytes(1 << 20)) for _ in range(whole)), packer.compress(bytes(rest)), packer.flush()]
    )


# ---- PNG -------------------------------------------------------------------------------------------------------------


def png(side: int, packed: bytes, before: bytes = b"") -> bytes:
    """A grey PNG with this IDAT. before: other chunks."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _pixels(side: int) -> bytes:
    return zlib.compress(bytes(side * (side + 1)))


# ---- JPEG ------------------------------------------------------------------------------------------------------------


def _frame(side: int, kind: int = 0xC0) -> bytes:
    """A frame header: 8 bits, three components without subsampling."""
    parts = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    return bytes([0xFF, kind]) + struct.pack(">HBHHB", 17, 8, side, side, 3) + parts


_SCAN = b"\xff\xda" + struct.pack(">HB", 12, 3) + bytes([1, 0, 2, 0, 3, 0, 0, 63, 0])


def jpeg(*frames: bytes) -> bytes:
    """A JPEG of these frame headers, a scan of nothing, and no tables."""
    return b"\xff\xd8" + b"".join(frames) + _SCAN + bytes(50) + b"\xff\xd9"


# ---- BMP -------------------------------------------------------------------------------------------------------------


def bmp(width: int, height: int, bits: int = 24, packing: int = 0, data: bytes = b"") -> bytes:
    """A BMP; packing 1: run lengths."""
    palette = bytes(1024) if bits == 8 else b""
    start = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


# ---- WebP ------------------------------------------------------------------------------------------------------------


def webp(*chunks: bytes) -> bytes:
    """A WebP of these chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _part(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _three(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _canvas(side: int, flags: int = 0) -> bytes:
    return _part(b"VP8X", bytes([flags, 0, 0, 0]) + 2 * _three(side - 1))


def lossless(side: int) -> bytes:
    """A whole lossless picture of one colour: five prefix codes of one symbol each, so that a pixel takes no bit."""
    bits = "".join(f"{value:0{count}b}"[::-1] for value, count in ((side - 1, 14), (side - 1, 14), (0, 1), (0, 3)))
    bits += "000"  # no transform, no colour cache, no other prefix codes
    bits += "1000" * 5  # a simple code, one symbol, of one bit: 0
    packed = int(bits[::-1], 2).to_bytes(len(bits) // 8 + 1, "little")
    return _part(b"VP8L", b"\x2f" + packed + bytes(8))  # OpenCV takes no file below 32 bytes


def lossy(side: int) -> bytes:
    """The head of a key frame and no data."""
    return _part(b"VP8 ", b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", side, side) + bytes(20))


def _animated(canvas: int, frame: int) -> bytes:
    place = 2 * _three(0) + 2 * _three(frame - 1) + _three(100) + b"\0"
    return webp(_canvas(canvas, 2), _part(b"ANIM", bytes(6)), _part(b"ANMF", place + lossless(frame)))


# ---- TIFF ------------------------------------------------------------------------------------------------------------

_LONG, _SHORT, _LONG8 = 4, 3, 16
_TIFF_NAMES = {"width": 256, "height": 257, "bits": 258, "packing": 259, "photometric": 262, "offset": 273,
               "samples": 277, "rows": 278, "count": 279, "planar": 284, "tile_width": 322, "tile_height": 323,
               "tile_offset": 324, "tile_count": 325}  # fmt: skip


def tiff(side: int, data: bytes = b"", is_big: bool = False, **changes: int) -> bytes:
    """A deflated grey TIFF of one strip. is_big: BigTIFF. changes: of tags, by name."""
    tags = {"width": side, "height": side, "bits": 8, "packing": 8, "photometric": 1, "samples": 1, "rows": side}
    tags.update(changes)
    where, size = ("tile_offset", "tile_count") if "tile_width" in tags else ("offset", "count")
    tags.setdefault(size, len(data))
    entry, first = (20, 16) if is_big else (12, 8)
    tags[where] = first + (16 if is_big else 6) + entry * (len(tags) + 1)
    form = "<HHQQ" if is_big else "<HHII"
    entries = [
        struct.pack(form, _TIFF_NAMES[name], _LONG8 if is_big else _LONG, 1, value)
        for name, value in sorted(tags.items(), key=lambda item: _TIFF_NAMES[item[0]])
    ]
    if is_big:
        return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(entries)) + b"".join(entries) + bytes(8) + data
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + data


# ---- all -------------------------------------------------------------------------------------------------------------

Makers = Mapping[str, Callable[[], bytes]]

# By the suffix: what is to be refused, five at most, as many as a log line names.
BOMBS: Mapping[str, Makers] = MappingProxyType(
    {
        "png": {
            "header": lambda: png(HUGE, zlib.compress(bytes(100))),
            "largest": lambda: png(2**31 - 1, zlib.compress(bytes(100))),
            "whole": lambda: png(HUGE, zeros(HUGE * (HUGE + 1))),
            "nothing": lambda: png(14_000, b""),
            "short": lambda: png(14_000, zeros(1 << 20)),
        },
        "jpg": {
            "header": lambda: jpeg(_frame(HUGE)),
            "largest": lambda: jpeg(_frame(65_535)),
            "progressive": lambda: jpeg(_frame(HUGE, 0xC2)),
            "second": lambda: jpeg(_frame(64), _frame(HUGE)),
        },
        "bmp": {
            "header": lambda: bmp(HUGE, HUGE),
            "down": lambda: bmp(HUGE, -HUGE),
            "lowest": lambda: bmp(14_000, -(2**31)),
            "runs": lambda: bmp(HUGE, HUGE, 8, 1, b"\0\1"),
            "nothing": lambda: bmp(14_000, 14_000),
        },
        "webp": {
            "canvas": lambda: webp(_canvas(1 << 24), lossless(64)),
            "whole": lambda: webp(lossless(16_384)),
            "header": lambda: webp(lossy(16_383)),
            "inside": lambda: webp(_canvas(64), lossless(16_384)),
            "frame": lambda: _animated(64, 16_384),
        },
        "tiff": {
            "header": lambda: tiff(HUGE, zeros(1 << 20)),
            "big": lambda: tiff(HUGE, zeros(1 << 20), is_big=True, rows=2**40),
            "samples": lambda: tiff(100, zeros(UNPACKED), samples=60_000),
            "planes": lambda: tiff(100, zeros(UNPACKED), samples=60_000, photometric=2, planar=2),
            "tile": lambda: tiff(64, zeros(UNPACKED), tile_width=16_384, tile_height=16_384),
        },
    }
)
# What is read, as the small picture that it is, and the rest left where it is.
HARMLESS: Mapping[str, Makers] = MappingProxyType(
    {
        "png": {
            "profile": lambda: png(64, _pixels(64), _chunk(b"iCCP", b"a\0\0" + zeros(UNPACKED))),
            "text": lambda: png(64, _pixels(64), _chunk(b"zTXt", b"a\0\0" + zeros(UNPACKED))),
            "more pixels": lambda: png(64, zeros(UNPACKED)),
        },
        "webp": {"profile": lambda: webp(_canvas(64, 0x20), _part(b"ICCP", zeros(UNPACKED)), lossless(64))},
        "tiff": {
            "long strip": lambda: tiff(64, zeros(UNPACKED)),
            "endless rows": lambda: tiff(64, zeros(64 * 64), rows=2**32 - 1),
        },
    }
)
