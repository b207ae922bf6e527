"""JPEGs that break off, are damaged, hold inks or are decoded smaller; whole ones are in test_pictures.py."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from PIL import Image

from tests.utils.picture_files import Pixels, by_opencv, grey_jpeg, photo, saved
from utils.jpeg import BREAKS_OFF, DAMAGED, MAX_SCANS, decode_jpeg
from utils.picture_headers import JPEG_SCAN, PictureError, jpeg_segments, read_header

DHT = 0xC4
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("RGB", {}),
    "no subsampling": ("RGB", {"subsampling": 0}),
    "restart markers": ("RGB", {"restart_marker_rows": 1}),
    "progressive": ("RGB", {"progressive": True}),
    "grey": ("L", {}),
    "grey progressive": ("L", {"progressive": True}),
    "inks": ("CMYK", {}),
}


@pytest.fixture(scope="module", params=FORMS)
def jpeg(request: pytest.FixtureRequest, coco_images: list[Path]) -> bytes:
    """A real picture as a JPEG of each form."""
    mode, options = FORMS[request.param]
    return saved(photo(coco_images[3], 320).convert(mode), "JPEG", quality=90, **options)


@pytest.fixture(scope="module")
def baseline(coco_images: list[Path]) -> bytes:
    return saved(photo(coco_images[3], 320), "JPEG", quality=90)


@pytest.fixture(scope="module")
def progressive(coco_images: list[Path]) -> bytes:
    return saved(photo(coco_images[3], 320), "JPEG", quality=90, progressive=True)


def decode(content: bytes, factor: int = 1) -> tuple[Pixels, Optional[str]]:
    rgb, warning = decode_jpeg(content, read_header(io.BytesIO(content)), factor)
    assert rgb is not None
    return rgb, warning


def positions(content: bytes, marker: int) -> list[int]:
    """Where the payloads of the segments with this marker begin."""
    return [begin for found, begin, _ in jpeg_segments(io.BytesIO(content)) if found == marker]


def test_whole_jpeg_is_what_opencv_makes_of_it(jpeg: bytes) -> None:
    rgb, warning = decode(jpeg)
    assert warning is None
    assert np.array_equal(rgb, by_opencv(jpeg))


@pytest.mark.parametrize("cut", [1, 2])
def test_jpeg_that_only_lacks_its_end_marker_is_decoded_in_full_without_a_warning(jpeg: bytes, cut: int) -> None:
    rgb, warning = decode(jpeg[:-cut])
    assert warning is None
    assert np.array_equal(rgb, by_opencv(jpeg))


@pytest.mark.parametrize("percent", range(10, 100, 6))
def test_jpeg_that_breaks_off_is_decoded_as_far_as_it_goes(jpeg: bytes, percent: int) -> None:
    rgb, warning = decode(jpeg[: len(jpeg) * percent // 100])
    whole = by_opencv(jpeg)
    assert warning == BREAKS_OFF
    assert rgb.shape == whole.shape
    error = np.abs(rgb.astype(int) - whole).mean(axis=(1, 2))  # one a row
    assert error[:8].mean() < 12


@pytest.mark.parametrize("form", ["baseline", "restart markers"])
def test_rows_before_the_break_are_exact_and_those_behind_it_grey(form: str, coco_images: list[Path]) -> None:
    mode, options = FORMS[form]
    content = saved(photo(coco_images[3], 320).convert(mode), "JPEG", quality=90, **options)
    whole = by_opencv(content)
    exact_rows = []
    for percent in range(10, 100, 6):
        rgb, _ = decode(content[: len(content) * percent // 100])
        differs = (rgb != whole).any(axis=(1, 2))
        exact_rows.append(int(differs.argmax()))
        assert (rgb[exact_rows[-1] + 34 :] == 128).all()  # two rows of blocks of 16 and the one smoothed row
    assert exact_rows == sorted(exact_rows)
    assert exact_rows[0] >= 8
    assert exact_rows[-1] > 0.8 * len(whole)


@pytest.mark.parametrize("at", ["middle of the tables", "before the scan", "in the scan's header"])
def test_jpeg_that_breaks_off_before_its_pixels_is_unreadable(jpeg: bytes, at: str) -> None:
    scan = positions(jpeg, JPEG_SCAN)[0]
    cut = {"middle of the tables": positions(jpeg, DHT)[0] + 5, "before the scan": scan - 4}.get(at, scan + 3)
    with pytest.raises(PictureError, match="before its first row of pixels"):
        decode(jpeg[:cut])


@pytest.mark.parametrize("more", [0, 1, 5, 12])
def test_jpeg_that_breaks_off_within_its_first_blocks_is_unreadable(jpeg: bytes, more: int) -> None:
    begin = positions(jpeg, JPEG_SCAN)[0]
    header = int.from_bytes(jpeg[begin - 2 : begin], "big") - 2
    with pytest.raises(PictureError, match="before its first row of pixels"):
        decode(jpeg[: begin + header + more])


def test_end_marker_right_after_the_scan_header_is_unreadable(baseline: bytes) -> None:
    begin = positions(baseline, JPEG_SCAN)[0]
    with pytest.raises(PictureError):
        decode(baseline[: begin + 10] + b"\xff\xd9")


def test_broken_picture_with_a_grey_corner_of_its_own_is_readable(coco_images: list[Path]) -> None:
    image = photo(coco_images[3], 320)
    image.paste((128, 128, 128), (200, 0, 320, 40))
    content = saved(image, "JPEG", quality=95)
    assert decode(content[: len(content) * 8 // 10])[1] == BREAKS_OFF


def test_broken_jpeg_is_the_same_again_after_another_picture(jpeg: bytes, coco_images: list[Path]) -> None:
    for percent in (2, 5, 20, 50, 90):
        broken = jpeg[: len(jpeg) * percent // 100]
        seen = []
        for other in coco_images[:3]:
            try:
                seen.append(decode(broken)[0].tobytes())
            except PictureError as error:
                seen.append(str(error).encode())
            decode(other.read_bytes())
        assert seen[0] == seen[1] == seen[2]


def test_progressive_jpeg_that_breaks_off_between_two_scans_is_named(progressive: bytes) -> None:
    whole = by_opencv(progressive)
    errors = []
    for begin in positions(progressive, JPEG_SCAN)[1:]:
        rgb, warning = decode(progressive[: begin - 4])
        assert warning == BREAKS_OFF
        errors.append(np.abs(rgb.astype(int) - whole).mean())
    assert errors[-1] < errors[0] / 3  # scans add to the picture


def test_progressive_jpeg_that_breaks_off_in_a_table_between_scans_is_decoded(progressive: bytes) -> None:
    tables = [begin for begin in positions(progressive, DHT) if begin > positions(progressive, JPEG_SCAN)[0]]
    assert tables
    for begin in tables:
        for cut in (begin - 3, begin - 2, begin - 1, begin, begin + 1, begin + 9, begin + 18):
            rgb, warning = decode(progressive[:cut])
            assert warning == BREAKS_OFF
            assert np.abs(rgb.astype(int) - by_opencv(progressive)).mean() < 40


@pytest.mark.parametrize("zeros", [1, 100, 20000])
def test_rest_of_zeros_counts_as_broken_off(baseline: bytes, zeros: int) -> None:
    half = len(baseline) // 2
    rgb, warning = decode(baseline[:half] + bytes(zeros))
    assert warning == BREAKS_OFF
    assert np.array_equal(rgb[:64], by_opencv(baseline)[:64])


def test_trailing_bytes_after_the_end_do_no_harm(jpeg: bytes) -> None:
    rgb, warning = decode(jpeg + b"\0\0trailing" * 100)
    assert warning is None
    assert np.array_equal(rgb, by_opencv(jpeg))


def test_damage_in_the_middle_is_named(baseline: bytes) -> None:
    half = len(baseline) // 2
    rgb, warning = decode(baseline[:half] + b"\xff\xd0\xff\x01" * 4 + baseline[half + 16 :])
    assert warning == DAMAGED
    assert np.array_equal(rgb[:64], by_opencv(baseline)[:64])


def test_inks_of_either_adobe_transform_are_opencvs(coco_images: list[Path]) -> None:
    image = photo(coco_images[3])
    content = saved(image.convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert b"Adobe" in content
    at = content.index(b"Adobe") + 11
    assert content[at] == 0
    as_ycck = content[:at] + b"\2" + content[at + 1 :]
    for one in (content, as_ycck):
        assert np.array_equal(decode(one)[0], by_opencv(one))
    assert np.abs(decode(content)[0].astype(int) - np.asarray(image)).mean() < 3


@pytest.mark.parametrize("sampling", [[0x42, 0x11, 0x11], [0x31, 0x11, 0x11], [0x22, 0x21, 0x12]])
def test_whole_jpeg_of_unusual_subsampling_is_left_to_another_decoder(sampling: list[int]) -> None:
    content = grey_jpeg(37, 53, sampling)
    assert decode_jpeg(content, read_header(io.BytesIO(content)), 1) == (None, None)
    assert by_opencv(content).shape == (37, 53, 3)


@pytest.mark.parametrize("frame", [0xC0, 0xC2])
def test_thousands_of_scans_are_refused(frame: int) -> None:
    one_component = grey_jpeg(1000, 1000, [0x11, 0x11, 0x11], frame, scans=MAX_SCANS + 1)
    header = b"\xff\xda\0\x0c\3"
    content = one_component if frame == 0xC2 else one_component.replace(header, b"\xff\xda\0\x0c\1")
    with pytest.raises(PictureError, match="scans"):
        decode(content)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_picture_is_the_whole_one_averaged(jpeg: bytes, factor: int) -> None:
    rgb, warning = decode(jpeg, factor)
    height, width = by_opencv(jpeg).shape[:2]
    assert warning is None
    assert rgb.shape == (-(-height // factor), -(-width // factor), 3)
    averaged = Image.fromarray(by_opencv(jpeg)).resize((rgb.shape[1], rgb.shape[0]), Image.Resampling.BOX)
    assert np.abs(rgb.astype(int) - np.asarray(averaged)).mean() < 2 * factor


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_picture_that_breaks_off_is_decoded_as_far_as_it_goes(jpeg: bytes, factor: int) -> None:
    rgb, warning = decode(jpeg[: len(jpeg) * 7 // 10], factor)
    assert warning == BREAKS_OFF
    assert np.abs(rgb[: 64 // factor].astype(int) - decode(jpeg, factor)[0][: 64 // factor]).mean() < 5
