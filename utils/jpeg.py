"""JPEGs, whole, broken off or damaged -> RGB pixels, the same ones each time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Optional

import numpy as np
import numpy.typing as npt
import simplejpeg

from utils.picture_headers import (
    JPEG_FRAMES,
    JPEG_PROGRESSIVE,
    JPEG_SCAN,
    PictureError,
    PictureHeader,
    jpeg_segments,
)

Pixels = npt.NDArray[np.uint8]

MAX_SCANS = 500  # real files have about ten, and each costs as much as decoding the whole picture
BREAKS_OFF = "breaks off; decoded as far as it goes"
DAMAGED = "is damaged; decoded as far as it goes"

_REFUSALS = (ValueError, RuntimeError, KeyError)  # simplejpeg's; KeyError: a colour space it has no name for
_END = b"\xff\xd9"  # the end marker
_NO_DATA = 128  # what libjpeg makes of blocks without data, but for the inks of a YCCK: 127


def decode_jpeg(content: bytes, header: PictureHeader, factor: int) -> tuple[Optional[Pixels], Optional[str]]:
    """Decode at 1/factor (1, 2, 4 or 8) of the full size: (h, w, 3) RGB pixels and, where it isn't whole, a warning.

    (None, None) for a file that may be whole, but of a subsampling that TurboJPEG's interface doesn't know (4:1:0).
    Raises PictureError where the decoder refuses the file or stops before the first row of pixels.
    """
    if _count_scans(content, header.channels) > MAX_SCANS:
        raise PictureError(f"is a JPEG of more than {MAX_SCANS} scans")
    channels = 4 if header.channels == 4 else 3
    to_rgb = _inks_to_rgb if channels == 4 else _as_it_is
    canvas = np.empty((*reduced_hw(header.stored_hw, factor), channels), np.uint8)
    if _decode_onto(canvas, content, factor, strict=True):
        return to_rgb(canvas), None
    is_ended = content.rstrip(b"\0").endswith(_END)
    ended = content if is_ended else content + _END
    if not is_ended and _has_all_scans(content) and _decode_onto(canvas, ended, factor, strict=True):
        return to_rgb(canvas), None  # only the end marker was missing
    for attempt in _as_far_as_it_goes(ended):
        # Without `strict` the decoder may come back in good order with nothing written: old memory must not show.
        canvas[...] = _NO_DATA
        if _decode_onto(canvas, attempt, factor, strict=False) and _has_first_row(canvas, factor):
            return to_rgb(canvas), DAMAGED if is_ended else BREAKS_OFF
    if is_ended and not _is_known(content):
        return None, None
    raise PictureError("is damaged or breaks off before its first row of pixels")


def reduced_hw(full_hw: tuple[int, int], factor: int) -> tuple[int, int]:
    """Give the size at 1/factor; libjpeg rounds up."""
    return -(-full_hw[0] // factor), -(-full_hw[1] // factor)


def _decode_onto(canvas: Pixels, jpeg: bytes, factor: int, strict: bool) -> bool:
    """Decode onto a canvas of the expected size; False where the decoder refuses or finds another size."""
    height, width, channels = canvas.shape
    colours = "CMYK" if channels == 4 else "RGB"
    try:
        decoded = simplejpeg.decode_jpeg(
            jpeg, colours, min_height=height, min_width=width, min_factor=factor, buffer=canvas, strict=strict
        )
    except _REFUSALS:
        return False
    return bool(decoded.shape == canvas.shape)


def _is_known(content: bytes) -> bool:
    """Tell whether TurboJPEG's interface can read the headers at all."""
    try:
        simplejpeg.decode_jpeg_header(content, strict=False)
    except _REFUSALS:
        return False
    return True


def _as_it_is(pixels: Pixels) -> Pixels:
    return pixels


def _inks_to_rgb(cmyk: Pixels) -> Pixels:
    """Turn (h, w, 4) inks as Adobe stores them (255 = no ink) into RGB, by the formula of OpenCV's decoder."""
    black = cmyk[..., 3:].astype(np.uint16)
    return (black - ((255 - cmyk[..., :3].astype(np.uint16)) * black >> 8)).astype(np.uint8)


def _has_first_row(pixels: Pixels, factor: int) -> bool:
    """Tell whether decoding got beyond the first row of blocks, so that there is something to see.

    If not, the right end of the first row is grey, and so is all below; at most 64 px of a progressive JPEG may not be,
    because the decoder smooths its 16 px blocks into the two rows below. A picture may have a grey corner of its own.
    """
    corner, below = pixels[0, -1], pixels[64 // factor :]
    return any(bool(((part != _NO_DATA) & (part != _NO_DATA - 1)).any()) for part in (corner, below))


def _count_scans(content: bytes, channels: int) -> int:
    """Count a JPEG's scans; the decoder reads one only where the first holds all channels and isn't progressive."""
    scans, is_progressive = 0, False
    for marker, begin, _ in jpeg_segments(io.BytesIO(content)):
        is_progressive |= marker in JPEG_PROGRESSIVE
        if marker == JPEG_SCAN:
            scans += 1
            if not is_progressive and content[begin : begin + 1] == bytes([channels]):
                break
    return scans


def _has_all_scans(content: bytes) -> bool:
    """Tell whether a JPEG without end marker has a scan for every bit of every coefficient of every component.

    One that breaks off between two scans decodes without complaint, but coarsely or without its colours.
    """
    missing_bits: dict[int, list[int]] = {}  # component -> for each of 64 coefficients, low bits still to come
    for marker, begin, end in jpeg_segments(io.BytesIO(content)):
        payload = content[begin:end]
        if marker in JPEG_FRAMES:
            missing_bits = {component: [99] * 64 for component in payload[6::3]}
        if marker == JPEG_SCAN and len(payload) > 5:
            first, last, bits = payload[-3], min(payload[-2], 63), payload[-1] & 15
            for component in payload[1:-3:2]:
                if component in missing_bits:
                    missing_bits[component][first : last + 1] = [bits] * (last + 1 - first)
    return not any(any(bits) for bits in missing_bits.values())


def _as_far_as_it_goes(ended: bytes) -> Iterator[bytes]:
    """Give the JPEG itself, then, since half a segment stops the decoder, what comes before its last segment."""
    yield ended
    positions = [begin for _, begin, _ in jpeg_segments(io.BytesIO(ended))]
    if positions:
        yield ended[: positions[-1] - 4] + _END
