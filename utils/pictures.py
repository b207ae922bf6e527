"""Pictures: a file's bytes -> RGB pixels, with the type told and the size checked before anything is decoded."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Optional

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from utils.errors import ImageError
from utils.files import open_regular, read_bytes
from utils.picture_headers import (
    JPEG_FRAMES,
    JPEG_PROGRESSIVE,
    JPEG_SCAN,
    TIFF_BITS,
    TIFF_ORIENTATION,
    PictureError,
    PictureHeader,
    jpeg_segments,
    read_header,
    read_orientation,
    tiff_entries,
)
from utils.settings import PictureSettings

Pixels = npt.NDArray[np.uint8]
EnoughFor = Callable[[tuple[int, int]], tuple[int, int]]  # full (h, w) -> (h, w) the model will resize to

MAX_BYTES = 1 << 30  # of a file; 200 million pixels of uncompressed RGB are 0.6 GB
MAX_SCANS = 500  # of a JPEG; real ones have about ten, and each costs as much as decoding the whole picture

BREAKS_OFF = "breaks off; decoded as far as it goes"
DAMAGED = "is damaged; decoded as far as it goes"
_JPEG_END = b"\xff\xd9"


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
        rgb, warning = _decode(content, header, factor)
    except PictureError as cause:
        raise ImageError(f"{name}: {cause}") from cause.__cause__
    return Picture(_TURNS[orientation](rgb), full_hw, warning)


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
    if header.kind == "JPEG":
        rgb, warning = _decode_jpeg(content, header, factor)
    else:
        rgb, warning = _decode_other(content, header), None
    if rgb.shape[:2] not in (header.stored_hw, _reduced(header.stored_hw, factor)):
        raise PictureError(f"its {header.kind} header and its data tell different sizes")
    return rgb, warning


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


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _reduced(full_hw: tuple[int, int], factor: int) -> tuple[int, int]:
    return -(-full_hw[0] // factor), -(-full_hw[1] // factor)  # libjpeg rounds up


def _reduction(full_hw: tuple[int, int], enough_hw: tuple[int, int]) -> int:
    """Give the largest of 8, 4, 2 and 1 that leaves at least `enough_hw`."""
    for factor in (8, 4, 2):
        height, width = _reduced(full_hw, factor)
        if height >= enough_hw[0] and width >= enough_hw[1]:
            return factor
    return 1


def _decode_jpeg(content: bytes, header: PictureHeader, factor: int) -> tuple[Pixels, Optional[str]]:
    """Decode a JPEG that may break off or be damaged: RGB pixels and, if it was, a warning."""
    if _count_scans(content, header.channels) > MAX_SCANS:
        raise PictureError(f"is a JPEG of more than {MAX_SCANS} scans")
    min_height, min_width = _reduced(header.stored_hw, factor)

    def decode(jpeg: bytes, strict: bool) -> Optional[Pixels]:
        try:
            pixels = simplejpeg.decode_jpeg(
                jpeg,
                "CMYK" if header.channels == 4 else "RGB",
                min_height=min_height,
                min_width=min_width,
                min_factor=factor,
                strict=strict,
            )
        except (ValueError, RuntimeError):
            return None
        except MemoryError as cause:
            raise PictureError("needs more memory than there is") from cause
        return np.asarray(pixels)

    to_rgb = _inks_to_rgb if header.channels == 4 else _as_it_is
    pixels = decode(content, strict=True)
    if pixels is not None:
        return to_rgb(pixels), None
    ended = content + _JPEG_END
    pixels = decode(ended, strict=True)
    if pixels is not None and _has_all_scans(content):
        return to_rgb(pixels), None  # only the end marker was missing
    warning = DAMAGED if content.endswith(_JPEG_END) else BREAKS_OFF
    for attempt in _as_far_as_it_goes(ended):
        pixels = decode(attempt, strict=False)
        if pixels is not None:
            if _lacks_first_row(pixels, factor):
                raise PictureError("breaks off before its first row of pixels")
            return to_rgb(pixels), warning
    # libjpeg reads more subsamplings than TurboJPEG's interface.
    return _decode_other(content, header), None


def _as_it_is(pixels: Pixels) -> Pixels:
    return pixels


def _inks_to_rgb(cmyk: Pixels) -> Pixels:
    """Turn (h, w, 4) inks as Adobe stores them (255 = no ink) into RGB, by the formula of OpenCV's decoder."""
    black = cmyk[..., 3:].astype(np.uint16)
    return (black - ((255 - cmyk[..., :3].astype(np.uint16)) * black >> 8)).astype(np.uint8)


def _lacks_first_row(pixels: Pixels, factor: int) -> bool:
    """Tell whether decoding stopped within the first row of blocks, so that nothing of use is there.

    Blocks without data come out as mid-grey (the inks of a YCCK: 127). Smoothing spreads the first row of a progressive
    JPEG's 16 px blocks over two more; a real grey corner is told by what lies below.
    """
    corner, below = pixels[0, -1], pixels[64 // factor :]
    return all(bool(((part == 128) | (part == 127)).all()) for part in (corner, below))


def _count_scans(content: bytes, channels: int) -> int:
    """Count a JPEG's scans; the decoder reads one only where the first holds all channels and is not progressive."""
    scans, is_progressive = 0, False
    for marker, begin, _ in jpeg_segments(io.BytesIO(content)):
        is_progressive |= marker in JPEG_PROGRESSIVE
        if marker == JPEG_SCAN:
            scans += 1
            if not is_progressive and content[begin : begin + 1] == bytes([channels]):
                break
    return scans


def _has_all_scans(content: bytes) -> bool:
    """Tell whether a JPEG without end marker holds every coefficient of every component to its last bit.

    One that breaks off between two scans of a progressive JPEG decodes without complaint, but coarsely.
    """
    missing_bits: dict[int, list[int]] = {}  # component -> for each coefficient, how many low bits are still to come
    components: set[int] = set()
    for marker, begin, end in jpeg_segments(io.BytesIO(content)):
        payload = content[begin:end]
        if marker in JPEG_FRAMES and len(payload) > 6:
            components = set(payload[6::3])
        if marker == JPEG_SCAN and len(payload) > 5:
            count = payload[0]
            first, last, bits = payload[-3], min(payload[-2], 63), payload[-1] & 15
            for component in payload[1 : 1 + 2 * count : 2]:
                left = missing_bits.setdefault(component, [99] * 64)
                left[first : last + 1] = [bits] * (last + 1 - first)
    return bool(components) and all(not any(missing_bits.get(component, [99])) for component in components)


def _as_far_as_it_goes(ended: bytes) -> Iterator[bytes]:
    """Give the JPEG itself, then, since a half segment stops the decoder, what comes before its last segment."""
    yield ended
    positions = [begin for _, begin, _ in jpeg_segments(io.BytesIO(ended))]
    if positions:
        yield ended[: positions[-1] - 4] + _JPEG_END


# --- the other types --------------------------------------------------------------------------------------------------


def _decode_other(content: bytes, header: PictureHeader) -> Pixels:
    """Decode with OpenCV, in the order in which the pixels are stored."""
    if header.kind == "TIFF":
        content = _check_tiff(content)
    _quiet_opencv()
    try:
        bgr: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, MemoryError) as cause:
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


def _check_tiff(content: bytes) -> bytes:
    """Refuse samples over 16 bits, where OpenCVs differ, and take out the orientation, which it always follows."""
    entries = tiff_entries(io.BytesIO(content))
    if TIFF_BITS in entries and entries[TIFF_BITS].value > 16:
        raise PictureError(f"is a TIFF of {entries[TIFF_BITS].value} bits a sample, at most 16 can be read")
    found = entries.get(TIFF_ORIENTATION)
    if found is None or found.value == 1:
        return content
    upright = struct.pack(found.struct_format, 1)
    return content[: found.position] + upright + content[found.position + len(upright) :]
