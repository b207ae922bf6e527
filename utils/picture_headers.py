"""What a picture file's first bytes tell: its type, its size, which way up it is. Nothing is decoded here.

The parsers trust no number in the file: every read is checked, every loop is bounded, any failure is a PictureError.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Callable, Optional

MAX_ENTRIES = 200_000  # segments of a JPEG, chunks of a PNG or WebP, entries of a TIFF directory
MAX_BLOCK = 1 << 20  # bytes of a block of metadata; an EXIF block has at most 64 KB
MAX_POSITION = 1 << 62  # seeking beyond fails, in ways that differ with the kind of file

# A marker with a length: not 0xFF00 (data), 0xFFFF (padding), TEM, RST0 to RST7 (between data) or a second SOI.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\x01\xd0-\xd8])")
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG and DAC
JPEG_PROGRESSIVE = frozenset([0xC2, 0xC6, 0xCA, 0xCE])
JPEG_EXIF, JPEG_SCAN, JPEG_END = 0xE1, 0xDA, 0xD9

_TIFF_ORDERS = {b"II": "<", b"MM": ">"}
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8
_TIFF_TAGS = (256, 257, 258, 274, 322, 323)
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_ORIENTATION, TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = _TIFF_TAGS


class PictureError(Exception):
    """A picture can't be read; the text is the rest of a sentence that begins with the file's name."""


@dataclass(frozen=True)
class PictureHeader:
    """What is known of a picture before it is decoded."""

    kind: str  # a key of KINDS
    stored_hw: tuple[int, int]  # in the order in which the pixels are stored, not turned
    channels: int = 3  # only told for JPEG, where 4 means inks


@dataclass(frozen=True)
class TiffValue:
    """The first number of a TIFF entry, and where in the file it stands."""

    value: int
    position: int
    struct_format: str


def read_header(file: IO[bytes]) -> PictureHeader:
    """Tell a picture's type and size, or raise PictureError. Reads from a seekable file no more than it needs."""
    try:
        file.seek(0)
        start = file.read(16)
        kind = next((kind for kind, (is_kind, _) in KINDS.items() if is_kind(start)), None)
        if kind is None:
            raise PictureError("is no JPEG, PNG, BMP, WebP or TIFF picture")
        height, width, channels = KINDS[kind][1](file)
    except OSError as cause:  # a damaged disk
        raise PictureError(f"its header can't be read ({type(cause).__name__})") from cause
    if height < 1 or width < 1:
        raise PictureError(f"is {width} x {height} pixels by its {kind} header")
    return PictureHeader(kind, (height, width), channels)


def read_orientation(file: IO[bytes], kind: str) -> int:
    """Give the EXIF orientation, 1 to 8; 1 (upright) also where there is none or it makes no sense."""
    try:
        value = _ORIENTATIONS[kind](file)
    except (PictureError, OSError):
        return 1
    return value if 1 <= value <= 8 else 1


def jpeg_segments(file: IO[bytes]) -> Iterator[tuple[int, int, int]]:
    """Walk a JPEG's segments: marker, first and end position of the payload (the end may lie past the file's).

    Compressed data between segments is skipped; the walk ends at the end marker or where the file breaks off.
    """
    file.seek(2)
    for _ in range(MAX_ENTRIES):
        marker = _next_marker(file)
        if marker is None or marker == JPEG_END:
            return
        length = file.read(2)
        if len(length) < 2:
            return
        begin = file.tell()
        end = begin + max(int.from_bytes(length, "big") - 2, 0)
        yield marker, begin, end
        file.seek(end)
    raise PictureError(f"is a JPEG of more than {MAX_ENTRIES} segments")


def _next_marker(file: IO[bytes]) -> Optional[int]:
    """Move behind the next JPEG marker and give it, or None at the end."""
    while chunk := file.read(4096):
        if found := _JPEG_MARKER.search(chunk):
            file.seek(found.end() - len(chunk), io.SEEK_CUR)
            return found[1][0]
        if chunk.endswith(b"\xff") and len(chunk) > 1:  # the marker's second byte is in the next chunk
            file.seek(-1, io.SEEK_CUR)
    return None


def png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Walk a PNG's chunks up to and with IEND: name, first and end position of the payload."""
    at = 8
    for _ in range(MAX_ENTRIES):
        length, name = _unpack(file, at, ">I4s")
        yield name, at + 8, at + 8 + length
        if name == b"IEND":
            return
        at += 12 + length  # the checksum, 4 bytes, comes last
    raise PictureError(f"is a PNG of more than {MAX_ENTRIES} chunks")


def tiff_entries(file: IO[bytes]) -> dict[int, TiffValue]:
    """Read the entries named above from the first directory of a TIFF, a BigTIFF or the TIFF within an EXIF block."""
    order = _TIFF_ORDERS.get(_read(file, 0, 2))
    if order is None:
        raise PictureError("has a damaged TIFF header")
    (version,) = _unpack(file, 2, order + "H")
    big = version == 43
    (directory,) = _unpack(file, 8, order + "Q") if big else _unpack(file, 4, order + "I")
    (count,) = _unpack(file, directory, order + ("Q" if big else "H"))
    inline, head = (8, "HHQ") if big else (4, "HHI")
    entry = directory + (8 if big else 2)
    entries: dict[int, TiffValue] = {}
    for _ in range(min(count, MAX_ENTRIES)):
        tag, number_type, amount = _unpack(file, entry, order + head)
        position = entry + struct.calcsize("=" + head)
        form = order + _TIFF_INTEGERS.get(number_type, "")
        entry = position + inline
        if tag not in _TIFF_TAGS or number_type not in _TIFF_INTEGERS or amount < 1:
            continue
        if amount * struct.calcsize(form) > inline:
            (position,) = _unpack(file, position, order + ("Q" if big else "I"))
        entries.setdefault(tag, TiffValue(_unpack(file, position, form)[0], position, form))
    return entries


def _read(file: IO[bytes], at: int, count: int) -> bytes:
    if at >= MAX_POSITION:
        raise PictureError("breaks off")
    file.seek(at)
    content = file.read(min(count, MAX_BLOCK))
    if len(content) < count:
        raise PictureError("breaks off")
    return content


def _unpack(file: IO[bytes], at: int, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, _read(file, at, struct.calcsize(form)))


def _size_jpeg(file: IO[bytes]) -> tuple[int, int, int]:
    for marker, begin, _ in jpeg_segments(file):
        if marker in JPEG_FRAMES:
            height, width, channels = _unpack(file, begin + 1, ">HHB")
            return height, width, channels
        if marker == JPEG_SCAN:
            break
    raise PictureError("breaks off before its size")


def _size_png(file: IO[bytes]) -> tuple[int, int, int]:
    length, name, width, height = _unpack(file, 8, ">I4sII")
    if (length, name) != (13, b"IHDR"):
        raise PictureError("has a damaged PNG header")
    return height, width, 3


def _size_bmp(file: IO[bytes]) -> tuple[int, int, int]:
    (length,) = _unpack(file, 14, "<I")
    if length == 12:  # BITMAPCOREHEADER, OS/2 1.x
        width, height = _unpack(file, 18, "<HH")
    elif 16 <= length <= 1024:
        width, height = _unpack(file, 18, "<ii")
    else:
        raise PictureError("has a damaged BMP header")
    return abs(height), width, 3  # a negative height: the top row comes first


def _size_webp(file: IO[bytes]) -> tuple[int, int, int]:
    name = _read(file, 12, 4)
    if name == b"VP8X":  # the canvas, 24 bits each, less one
        canvas = _read(file, 24, 6)
        return int.from_bytes(canvas[3:], "little") + 1, int.from_bytes(canvas[:3], "little") + 1, 3
    if name == b"VP8L":
        signature, bits = _unpack(file, 20, "<BI")
        if signature == 0x2F:
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 3
    if name == b"VP8 ":
        start_code, width, height = _unpack(file, 23, "<3sHH")
        if start_code == b"\x9d\x01\x2a":
            return height & 0x3FFF, width & 0x3FFF, 3  # the two bits above are a scale for display
    raise PictureError("has a damaged WebP header")


def _size_tiff(file: IO[bytes]) -> tuple[int, int, int]:
    entries = tiff_entries(file)
    if TIFF_WIDTH not in entries or TIFF_HEIGHT not in entries:
        raise PictureError("is a TIFF without a size")
    return entries[TIFF_HEIGHT].value, entries[TIFF_WIDTH].value, 3


def _orientation_jpeg(file: IO[bytes]) -> int:
    for marker, begin, end in jpeg_segments(file):
        if marker == JPEG_EXIF and _read(file, begin, 6) == b"Exif\0\0":
            return _orientation_exif(_read(file, begin, end - begin))
        if marker == JPEG_SCAN:
            break
    return 1


def _orientation_png(file: IO[bytes]) -> int:
    for name, begin, end in png_chunks(file):
        if name == b"eXIf":
            return _orientation_exif(_read(file, begin, end - begin))
    return 1


def _orientation_webp(file: IO[bytes]) -> int:
    at = 12
    for _ in range(MAX_ENTRIES):
        name, length = _unpack(file, at, "<4sI")
        if name == b"EXIF":
            return _orientation_exif(_read(file, at + 8, length))
        at += 8 + length + length % 2
    return 1


def _orientation_exif(block: bytes) -> int:
    prefix = 6 if block.startswith(b"Exif\0\0") else 0  # WebP has it or not
    return _orientation_tiff(io.BytesIO(block[prefix:]))


def _orientation_tiff(file: IO[bytes]) -> int:
    entry = tiff_entries(file).get(TIFF_ORIENTATION)
    return entry.value if entry else 1


# Type -> (do the first 16 bytes say so, reader of height, width and channels).
KINDS: dict[str, tuple[Callable[[bytes], bool], Callable[[IO[bytes]], tuple[int, int, int]]]] = {
    "JPEG": (lambda start: start.startswith(b"\xff\xd8\xff"), _size_jpeg),
    "PNG": (lambda start: start.startswith(b"\x89PNG\r\n\x1a\n"), _size_png),
    "BMP": (lambda start: start.startswith(b"BM"), _size_bmp),
    "WebP": (lambda start: start.startswith(b"RIFF") and start[8:12] == b"WEBP", _size_webp),
    "TIFF": (lambda start: start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _size_tiff),
}

_ORIENTATIONS: dict[str, Callable[[IO[bytes]], int]] = {
    "JPEG": _orientation_jpeg,
    "PNG": _orientation_png,
    "BMP": lambda file: 1,
    "WebP": _orientation_webp,
    "TIFF": _orientation_tiff,
}
