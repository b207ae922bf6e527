"""Pictures: a file's bytes -> RGB pixels, with the type told and the size checked before anything is decoded."""

from __future__ import annotations

import functools
import io
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Optional

import cv2
import numpy as np

from utils.errors import ImageError
from utils.files import open_regular, read_bytes
from utils.jpeg import Pixels, decode_jpeg, reduced_hw
from utils.picture_headers import (
    TIFF_BITS,
    TIFF_ORIENTATION,
    TIFF_TILE_HEIGHT,
    TIFF_TILE_WIDTH,
    PictureError,
    PictureHeader,
    png_chunks,
    read_header,
    read_orientation,
    tiff_entries,
)
from utils.settings import PictureSettings

EnoughFor = Callable[[tuple[int, int]], tuple[int, int]]  # full (h, w) -> (h, w) the model will resize to

MAX_BYTES = 1 << 30  # of a file; 200 million pixels of uncompressed RGB are 0.6 GB
MAX_TILE_PIXELS = 1 << 24  # of a TIFF; usual are 256 x 256
MOST_AT_ONCE = 256_000_000  # pixels that are being decoded by all threads together; each takes up to 7 bytes meanwhile
NEVER_WAITS = 4_000_000  # pixels; that many in each thread are no matter


@dataclass(frozen=True)
class Picture:
    """One decoded picture."""

    rgb: Pixels  # (h, w, 3) RGB; smaller than full size where decode="fast" reduced it
    full_hw: tuple[int, int]  # the picture's own size, turned if settings.turn
    warning: Optional[str] = None  # the rest of a sentence that begins with the file's name: "breaks off; ..."


def read_picture(path: Path, settings: PictureSettings, enough_for: Optional[EnoughFor] = None) -> Picture:
    """Read and decode a picture file; any failure is an ImageError in one line, without the file's content.

    enough_for: from the full (h, w), the (h, w) the model will resize to; with decode="fast" a JPEG is decoded at 1/2,
    1/4 or 1/8 where that is still as large on both axes. None: never reduced.
    """
    return decode_picture(read_bytes(path, MAX_BYTES, ImageError), str(path), settings, enough_for)


def read_picture_hw(path: Path, settings: PictureSettings) -> tuple[int, int]:
    """Give a picture's full (h, w) as read_picture would, from its header alone."""
    with open_regular(path, ImageError) as file:
        header = _checked_header(file, str(path), settings)
        return _turned_hw(header.stored_hw, read_orientation(file, header.kind) if settings.turn else 1)


def decode_picture(
    content: bytes, name: str, settings: PictureSettings, enough_for: Optional[EnoughFor] = None
) -> Picture:
    """Decode a picture file's content as read_picture does; `name` is what messages call it.

    Colours are as OpenCV's IMREAD_COLOR gives them: grey and palettes become RGB, alpha is dropped (a TIFF's is
    multiplied in), 16 bits are divided by 256, inks are taken as Adobe's. Of several frames the first counts.
    """
    file = io.BytesIO(content)
    header = _checked_header(file, name, settings)
    orientation = read_orientation(file, header.kind) if settings.turn else 1
    full_hw = _turned_hw(header.stored_hw, orientation)
    factor = _reduction(full_hw, enough_for(full_hw)) if enough_for and settings.decode == "fast" else 1
    try:
        with _memory().room_for(math.prod(reduced_hw(header.stored_hw, factor))):
            rgb, warning = _decode(content, header, factor)
    except PictureError as cause:
        raise ImageError(f"{name}: {cause}") from cause.__cause__
    except MemoryError as cause:
        raise ImageError(f"{name}: needs more memory than there is") from cause
    return Picture(_TURNS[orientation](rgb), full_hw, warning)


class _Memory:
    """What all threads of a process decode at the same moment, in pixels.

    A picture of max_pixels may lie in a file of 34 bytes, and a thread on each of many cores would unpack one. Ordinary
    pictures never wait, large ones for each other; one that is larger than the limit is decoded alone.
    """

    def __init__(self) -> None:
        self._pixels = 0
        self._changed = threading.Condition()

    @contextmanager
    def room_for(self, pixels: int) -> Iterator[None]:
        """Wait for room, and hold it."""
        if pixels <= NEVER_WAITS:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._pixels or self._pixels + pixels <= MOST_AT_ONCE)
            self._pixels += pixels
        try:
            yield
        finally:
            with self._changed:
                self._pixels -= pixels
                self._changed.notify_all()


@functools.cache
def _memory() -> _Memory:
    """Give the process's one: memory is shared by all that read pictures, whoever made them."""
    return _Memory()


def _checked_header(file: IO[bytes], name: str, settings: PictureSettings) -> PictureHeader:
    try:
        header = read_header(file)
    except PictureError as cause:
        raise ImageError(f"{name}: {cause}") from cause.__cause__
    height, width = header.stored_hw
    if height * width > settings.max_pixels:
        raise ImageError(f"{name}: is {width} x {height} pixels, more than max_pixels: {settings.max_pixels}")
    return header


def _decode(content: bytes, header: PictureHeader, factor: int) -> tuple[Pixels, Optional[str]]:
    """Give a picture's pixels in the order in which they are stored and, where it isn't whole, a warning."""
    rgb, warning = decode_jpeg(content, header, factor) if header.kind == "JPEG" else (None, None)
    if rgb is None:
        rgb = _decode_by_opencv(content, header)
    if rgb.shape[:2] not in (header.stored_hw, reduced_hw(header.stored_hw, factor)):
        raise PictureError(f"its {header.kind} header and its data tell different sizes")
    return rgb, warning


def _reduction(full_hw: tuple[int, int], enough_hw: tuple[int, int]) -> int:
    """Give the largest of 8, 4, 2 and 1 that leaves at least `enough_hw`."""
    for factor in (8, 4, 2):
        height, width = reduced_hw(full_hw, factor)
        if height >= enough_hw[0] and width >= enough_hw[1]:
            return factor
    return 1


# --- which way up -----------------------------------------------------------------------------------------------------

# EXIF orientation -> what turns the stored pixels upright (CIPA DC-008, Orientation).
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda rgb: rgb,
    2: lambda rgb: cv2.flip(rgb, 1),
    3: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_180),
    4: lambda rgb: cv2.flip(rgb, 0),
    5: lambda rgb: cv2.transpose(rgb),
    6: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_90_CLOCKWISE),
    7: lambda rgb: cv2.rotate(cv2.transpose(rgb), cv2.ROTATE_180),
    8: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def _turned_hw(stored_hw: tuple[int, int], orientation: int) -> tuple[int, int]:
    height, width = stored_hw
    return (width, height) if orientation >= 5 else (height, width)


# --- the other types --------------------------------------------------------------------------------------------------


def _decode_by_opencv(content: bytes, header: PictureHeader) -> Pixels:
    """Decode with OpenCV, in the order in which the pixels are stored."""
    content = _PREPARATIONS.get(header.kind, bytes)(content)
    _quiet_opencv()
    try:
        bgr: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as cause:
        raise PictureError(f"can't be decoded as {header.kind}") from cause
    if bgr is None:
        raise PictureError(f"breaks off or is damaged, can't be decoded as {header.kind}")
    rgb: Pixels = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return rgb


@functools.cache
def _quiet_opencv() -> None:
    """Keep OpenCV's own lines off stderr, once; on the platform they would hide the message that we give."""
    logging: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 has it there, 4 at the top
    logging.setLogLevel(0)


def _prepare_tiff(content: bytes) -> bytes:
    """Refuse what OpenCVs disagree on or fill the memory with; take out the orientation, which they always follow."""
    entries = tiff_entries(io.BytesIO(content))
    bits, tile_height, tile_width = (
        entries[tag].value if tag in entries else 1 for tag in (TIFF_BITS, TIFF_TILE_HEIGHT, TIFF_TILE_WIDTH)
    )
    if bits > 16:
        raise PictureError(f"is a TIFF of {bits} bits a sample, at most 16 can be read")
    if tile_height * tile_width > MAX_TILE_PIXELS:  # each is unpacked whole, however small the picture is
        raise PictureError(f"is a TIFF of tiles of {tile_width} x {tile_height} pixels")
    found = entries.get(TIFF_ORIENTATION)
    if found is None or found.value == 1:
        return content
    upright = struct.pack(found.struct_format, 1)
    return content[: found.position] + upright + content[found.position + len(upright) :]


def _prepare_png(content: bytes) -> bytes:
    """Keep only what pixels are made from: OpenCV plays animations, and libpng prints what it dislikes on stderr."""
    kept = [content[:8]]
    for name, begin, end in png_chunks(io.BytesIO(content)):
        if name[0] & 0x20:  # a small first letter: no decoder needs it
            continue
        if zlib.crc32(content[begin - 4 : end]).to_bytes(4, "big") != content[end : end + 4]:
            raise PictureError("breaks off or is damaged, can't be decoded as PNG")
        kept.append(content[begin - 8 : end + 4])
    return b"".join(kept)


_PREPARATIONS: dict[str, Callable[[bytes], bytes]] = {"PNG": _prepare_png, "TIFF": _prepare_tiff}
