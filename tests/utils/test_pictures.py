"""Picture files -> RGB pixels: against OpenCV and Pillow, and against files that are none."""

from __future__ import annotations

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.utils.picture_files import by_opencv, grey_jpeg, photo, saved, tiff_of, with_orientation
from utils.errors import ImageError
from utils.pictures import Picture, decode_picture, read_picture, read_picture_hw
from utils.settings import PictureSettings

EXACT = PictureSettings()
TURN = PictureSettings(turn=True)
FAST = PictureSettings(decode="fast")
SECRET = b"BEGIN RSA PRIVATE KEY"


def decode(content: bytes, how: PictureSettings = EXACT) -> Picture:
    return decode_picture(content, "x", how)


# --- real pictures


def test_real_pictures_are_opencvs_pixel_by_pixel(coco_images: list[Path]) -> None:
    for path in coco_images:
        picture = read_picture(path, EXACT)
        reference = cv2.imread(str(path))
        assert reference is not None
        assert np.array_equal(picture.rgb, reference[..., ::-1])
        assert picture.full_hw == picture.rgb.shape[:2] == read_picture_hw(path, EXACT)
        assert picture.warning is None


def test_threads_give_what_one_thread_gives(coco_images: list[Path]) -> None:
    def read(path: Path) -> bytes:
        return read_picture(path, EXACT).rgb.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, coco_images[:24])) == [read(path) for path in coco_images[:24]]


def test_path_may_hold_blanks_and_any_letters(tmp_path: Path, coco_images: list[Path]) -> None:
    path = tmp_path / "ein Bild 图片 №1.JPEG"
    path.symlink_to(coco_images[0])
    assert read_picture(path, EXACT).full_hw == read_picture_hw(coco_images[0], EXACT)


@pytest.mark.parametrize(
    ("wanted", "factor"), [((640, 640), 1), ((240, 320), 2), ((241, 320), 1), ((120, 100), 4), ((1, 1), 8)]
)
def test_fast_decodes_at_the_smallest_size_that_is_enough(
    coco_images: list[Path], wanted: tuple[int, int], factor: int
) -> None:
    picture = read_picture(coco_images[0], FAST, lambda full_hw: wanted)
    assert picture.full_hw == (480, 640)
    assert picture.rgb.shape == (480 // factor, 640 // factor, 3)


def test_only_fast_reduces_and_only_where_the_need_is_known(coco_images: list[Path]) -> None:
    assert read_picture(coco_images[0], FAST).rgb.shape == (480, 640, 3)
    assert read_picture(coco_images[0], EXACT, lambda full_hw: (1, 1)).rgb.shape == (480, 640, 3)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700), share=st.floats(0.01, 2))
def test_fast_is_never_smaller_than_what_is_needed(height: int, width: int, share: float) -> None:
    def need(full_hw: tuple[int, int]) -> tuple[int, int]:
        assert full_hw == (height, width)
        return max(round(height * share), 1), max(round(width * share), 1)

    rgb = decode_picture(grey_jpeg(height, width, [0x11]), "x", FAST, need).rgb
    wanted = need((height, width))
    assert rgb.shape[0] >= min(wanted[0], height)
    assert rgb.shape[1] >= min(wanted[1], width)


def test_picture_of_another_type_is_never_reduced() -> None:
    assert decode_picture(saved(Image.new("RGB", (640, 480)), "PNG"), "x", FAST, lambda hw: (1, 1)).rgb.shape[0] == 480


# --- every form


def forms(image: Image.Image) -> dict[str, tuple[bytes, Image.Image]]:
    """Files without loss, and what they should look like."""
    alpha = Image.linear_gradient("L").resize(image.size)
    with_alpha = image.copy()
    with_alpha.putalpha(alpha)
    grey, palette, bits = image.convert("L"), image.quantize(17), image.convert("1")
    grey_alpha = Image.merge("LA", (grey, alpha))
    frames: dict[str, Any] = {"save_all": True, "append_images": [ImageOps.mirror(image)]}
    return {
        "png": (saved(image, "PNG"), image),
        "png alpha": (saved(with_alpha, "PNG"), image),
        "png grey": (saved(grey, "PNG"), grey),
        "png grey alpha": (saved(grey_alpha, "PNG"), grey),
        "png palette": (saved(palette, "PNG"), palette),
        "png palette transparent": (saved(palette, "PNG", transparency=3), palette),
        "png 1 bit": (saved(bits, "PNG"), bits),
        "png animated": (saved(image, "PNG", **frames), image),
        "bmp": (saved(image, "BMP"), image),
        "bmp alpha": (saved(with_alpha, "BMP"), image),
        "bmp grey": (saved(grey, "BMP"), grey),
        "bmp palette": (saved(palette, "BMP"), palette),
        "bmp 1 bit": (saved(bits, "BMP"), bits),
        "webp": (saved(image, "WebP", lossless=True), image),
        "webp alpha": (saved(with_alpha, "WebP", lossless=True, exact=True), image),
        "webp animated": (saved(image, "WebP", lossless=True, **frames), image),
        "tiff": (saved(image, "TIFF"), image),
        "tiff lzw": (saved(image, "TIFF", compression="tiff_lzw"), image),
        "tiff deflate": (saved(image, "TIFF", compression="tiff_adobe_deflate"), image),
        "tiff grey": (saved(grey, "TIFF"), grey),
        "tiff grey alpha": (saved(grey_alpha, "TIFF"), grey),
        "tiff palette": (saved(palette, "TIFF"), palette),
        "tiff 1 bit": (saved(bits, "TIFF", compression="group4"), bits),
        "tiff pages": (saved(image, "TIFF", **frames), image),
    }


@pytest.fixture(scope="module")
def lossless(coco_images: list[Path]) -> dict[str, tuple[bytes, Image.Image]]:
    return forms(photo(coco_images[3]))


@pytest.mark.parametrize("form", forms(Image.new("RGB", (2, 2))))
def test_file_without_loss_gives_the_pixels_that_went_in(
    form: str, lossless: dict[str, tuple[bytes, Image.Image]]
) -> None:
    content, image = lossless[form]
    picture = decode(content)
    assert np.array_equal(picture.rgb, np.asarray(image.convert("RGB")))
    assert (picture.full_hw, picture.warning) == ((image.height, image.width), None)
    assert picture.rgb.flags.c_contiguous


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_divided_by_256(suffix: str, channels: int) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (30, 40, channels), dtype=np.uint16)
    wide[..., 3:] = 65535
    content = cv2.imencode(suffix, wide)[1].tobytes()
    expected = (wide[..., :3] >> 8)[..., ::-1] if channels > 1 else (wide >> 8).repeat(3, axis=2)
    assert np.abs(decode(content).rgb.astype(int) - expected).max() <= 1  # OpenCV's TIFF reader rounds


def test_lossy_webp_and_jpeg_within_tiff_are_opencvs(coco_images: list[Path]) -> None:
    image = photo(coco_images[3])
    for content in (saved(image, "WebP"), saved(image, "TIFF", compression="jpeg")):
        assert np.array_equal(decode(content).rgb, by_opencv(content))


def test_png_metadata_changes_no_colour_and_prints_nothing(
    coco_images: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    plain = saved(Image.fromarray(np.asarray(photo(coco_images[3]))), "PNG")
    metadata = b"".join(
        struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))
        for name, payload in (
            (b"gAMA", struct.pack(">I", 100000)),
            (b"sBIT", b"\5\5\5"),
            (b"iCCP", b"x\0\0not deflate"),
        )
    )
    assert np.array_equal(decode(plain[:33] + metadata + plain[33:]).rgb, by_opencv(plain))
    assert capfd.readouterr() == ("", "")


def test_jpeg_of_unusual_subsampling_is_read() -> None:
    for behind in (b"", bytes(500)):
        assert decode(grey_jpeg(37, 53, [0x42, 0x11, 0x11]) + behind).rgb.tolist() == [[[128] * 3] * 53] * 37


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (17, 1), (1, 17)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WebP", "TIFF"])
def test_one_pixel_and_very_long_pictures(kind: str, size: tuple[int, int]) -> None:
    if kind == "WebP" and max(size) > 16383:
        pytest.skip("WebP ends at 16383")
    rgb = decode(saved(Image.new("RGB", size, (10, 200, 90)), kind)).rgb
    assert rgb.shape == (size[1], size[0], 3)
    assert np.abs(rgb.astype(int) - (10, 200, 90)).max() <= 6


@pytest.mark.parametrize("mode", ["F", "I"])
def test_tiff_of_more_than_16_bits_is_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="32 bits a sample"):
        decode(saved(Image.new(mode, (9, 9), 1), "TIFF"))


# --- which way up


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_turned_only_where_asked(kind: str, value: int, tmp_path: Path, coco_images: list[Path]) -> None:
    options = {"lossless": True} if kind == "WebP" else {}
    content = saved(photo(coco_images[3]), kind, exif=with_orientation(value), **options)
    path = tmp_path / "picture"
    path.write_bytes(content)
    with Image.open(io.BytesIO(content)) as image:
        stored = np.asarray(Image.frombytes("RGB", image.size, image.convert("RGB").tobytes()))
        upright = np.asarray(ImageOps.exif_transpose(image))
    if kind == "TIFF":  # Pillow turns it on its own
        stored, upright = np.asarray(photo(coco_images[3])), np.asarray(image)
    if kind == "JPEG":
        stored, upright = by_opencv(content), by_opencv(content, turn=True)
    for how, expected in ((EXACT, stored), (TURN, upright)):
        picture = decode(content, how)
        assert np.array_equal(picture.rgb, expected)
        assert picture.rgb.flags.c_contiguous
        assert picture.full_hw == expected.shape[:2] == read_picture_hw(path, how)


def test_need_is_asked_for_the_turned_picture(coco_images: list[Path]) -> None:
    content = saved(photo(coco_images[3], 640), "JPEG", exif=with_orientation(6))
    seen = []

    def need(full_hw: tuple[int, int]) -> tuple[int, int]:
        seen.append(full_hw)
        return full_hw[0] // 3, full_hw[1] // 3

    picture = decode_picture(content, "x", PictureSettings(decode="fast", turn=True), need)
    assert seen == [(640, 425)]
    assert picture.rgb.shape == (320, 213, 3)


# --- what is refused


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WebP", "TIFF"])
def test_more_than_max_pixels_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(saved(Image.new("RGB", (20, 10)), kind))
    assert read_picture(path, PictureSettings(max_pixels=200)).full_hw == (10, 20)
    for read in (read_picture, read_picture_hw):
        with pytest.raises(ImageError, match=r"20 x 10 pixels, more than max_pixels: 199"):
            read(path, PictureSettings(max_pixels=199))


def test_declared_size_is_refused_before_anything_is_decoded() -> None:
    png = saved(Image.new("RGB", (1, 1)), "PNG")
    header = b"IHDR" + struct.pack(">II", 200_000, 200_000) + png[24:29]
    bomb = png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
    with pytest.raises(ImageError, match="max_pixels"):
        decode(bomb)
    with pytest.raises(ImageError, match="max_pixels"):
        decode(tiff_of([(256, 4, 2**32 - 1), (257, 4, 2**32 - 1)]))


def test_giant_tiles_of_a_small_tiff_are_refused() -> None:
    entries = [(256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    entries += [(322, 4, 16384), (323, 4, 16384), (324, 4, 0), (325, 4, 300_000)]
    data = zlib.compress(bytes(16384 * 16384), 1)
    with pytest.raises(ImageError, match="tiles of 16384 x 16384"):
        decode(tiff_of(entries, data=data, data_tag=324))


def test_header_that_tells_another_size_than_the_data_is_refused() -> None:
    content = bytearray(saved(Image.new("RGBA", (40, 30), (1, 2, 3, 4)), "WebP"))
    assert content[12:16] == b"VP8X"
    content[24] = 19
    with pytest.raises(ImageError):
        decode(bytes(content))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WebP", "TIFF"])
@pytest.mark.parametrize("percent", [5, 50, 95])
def test_other_types_that_break_off_are_unreadable_and_nothing_is_printed(
    kind: str, percent: int, coco_images: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    content = saved(photo(coco_images[3]), kind)
    with pytest.raises(ImageError):
        decode(content[: len(content) * percent // 100])
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_for_a_damaged_png_or_jpeg(
    coco_images: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(np.asarray(photo(coco_images[3])))  # without metadata
    png, jpeg = saved(image, "PNG"), saved(image, "JPEG")
    for at in range(33, len(png) - 12, 997):
        with pytest.raises(ImageError):
            decode(png[:at] + bytes([png[at] ^ 85]) + png[at + 1 :])
    decode(jpeg[: len(jpeg) // 2])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        SECRET,
        b"\n" + SECRET,
        b"\xff\xd8\xff" + SECRET,
        b"BM" + SECRET * 3,
        b"II*\0" + SECRET,
        b"MM\0*\0\0\0\x08" + SECRET,
        b"RIFF1234WEBPVP8 " + SECRET,
        b"\x89PNG\r\n\x1a\n" + SECRET,
    ],
)
def test_message_is_one_line_that_names_the_file_and_holds_none_of_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "secrets.jpg"
    path.write_bytes(content)
    for read in (read_picture, read_picture_hw):
        with pytest.raises(ImageError) as caught:
            read(path, TURN)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert not any(word in message for word in ("RSA", "PRIVATE", "KEY"))


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "device", "loop"])
def test_only_regular_files_are_opened(what: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    if what == "folder":
        path.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    if what == "loop":
        path.symlink_to(path)
    if what == "device":
        path = Path("/dev/zero")
    for read in (read_picture, read_picture_hw):
        with pytest.raises(ImageError, match=str(path)):
            read(path, EXACT)


# --- anything


@pytest.fixture(scope="module")
def seed_file(coco_images: list[Path]) -> Callable[[int], bytes]:
    """seed_file(number) gives one of many small files, each of another form, with metadata."""
    image = photo(coco_images[3], 64)
    jpegs: list[dict[str, Any]] = [{}, {"progressive": True}, {"restart_marker_rows": 1}]
    files = [saved(image, "JPEG", exif=with_orientation(6), **options) for options in jpegs]
    files += [saved(image.convert("CMYK"), "JPEG"), saved(image.convert("L"), "JPEG", progressive=True)]
    files += [
        saved(image, "WebP"),
        saved(image, "TIFF", compression="jpeg"),
        saved(image, "PNG", exif=with_orientation(5)),
    ]
    files += [content for content, _ in forms(image).values()]
    return lambda number: files[number % len(files)]


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_gives_a_picture_or_an_image_error_and_always_the_same(
    data: st.DataObject, seed_file: Callable[[int], bytes]
) -> None:
    content = bytearray(seed_file(data.draw(st.integers(0, 99))))
    reach = data.draw(st.sampled_from([64, 700, len(content)]))  # headers are short and matter most
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(reach, len(content)) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    how = PictureSettings(turn=data.draw(st.booleans()), decode="fast", max_pixels=4_000_000)

    def outcome() -> object:
        try:
            picture = decode_picture(broken, "x", how, lambda full_hw: (full_hw[0] // 2, full_hw[1] // 2))
        except ImageError as error:
            assert "\n" not in str(error)
            return str(error)
        assert picture.rgb.dtype == np.uint8
        assert picture.rgb.ndim == 3
        return picture.rgb.shape, picture.rgb.tobytes(), picture.warning, picture.full_hw

    assert outcome() == outcome()
