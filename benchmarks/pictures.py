"""Where the time of a picture goes: read, decode, resize, forward, suppression; at 0.3, 3 and 12 MP, exact and fast.

python -m benchmarks.pictures
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.process import prepare_process

prepare_process()

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.rounds import ROUNDS, SHARED, machine  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from models.detector import Detector, make_detector  # noqa: E402
from utils.batches import Batch, Placing, Shot  # noqa: E402
from utils.letterbox import letterbox_minimal  # noqa: E402
from utils.nms import select_boxes  # noqa: E402
from utils.pictures import decode_picture  # noqa: E402
from utils.settings import EngineSettings, NmsSettings, PictureSettings  # noqa: E402

PARTS = ("read", "decode", "resize", "forward", "suppression")


def enlarged(path: Path, megapixels: float, target: Path) -> Path:
    """Write a picture at about that size, with noise as a camera has it (an enlarged JPEG alone decodes too fast)."""
    bgr = cv2.imread(str(path))
    assert bgr is not None
    factor = (megapixels * 1e6 / (bgr.shape[0] * bgr.shape[1])) ** 0.5
    if factor > 1.1:
        bgr = cv2.resize(bgr, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        noise = np.random.default_rng(0).normal(0, 4, bgr.shape)
        bgr = np.clip(bgr + noise, 0, 255).astype(np.uint8)
    cv2.imwrite(str(target), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return target


def parts_of(path: Path, detector: Detector, settings: PictureSettings) -> dict[str, float]:
    """Time each part once; milliseconds."""
    spent: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        spent[part] = 1000 * (time.perf_counter() - begin)

    with timed("read"):
        content = path.read_bytes()
    placing = Placing("minimal", 640, 32)
    with timed("decode"):
        picture = decode_picture(content, str(path), settings, lambda hw: placing(Shot(0, path), hw).resized_hw)
    letterbox = letterbox_minimal(picture.full_hw, 640, 32)
    canvas = np.empty((*letterbox.canvas_hw, 3), np.uint8)
    with timed("resize"):
        letterbox.draw(picture.rgb, canvas)
    batch = Batch([Shot(0, path)], [canvas], [letterbox])
    with timed("forward"):
        raw = next(detector.maps(batch))
    with timed("suppression"), torch.inference_mode():
        select_boxes(raw.rows_above(0.25)[0], NmsSettings())
    return spent


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(0)
    detector = make_detector(read_checkpoint(SHARED / "weights/yolov5n.pt"), EngineSettings(), 16, cpu_chunk=1)
    sources = sorted((SHARED / "data/coco128/images/train2017").glob("*.jpg"))[:8]
    print(f"milliseconds a picture, median of {ROUNDS} rounds over {len(sources)} pictures; {machine()}")
    print("  size    decode " + "".join(f"{part:>13}" for part in PARTS))
    with tempfile.TemporaryDirectory() as scratch:
        for megapixels in (0.3, 3, 12):
            files = [enlarged(path, megapixels, Path(scratch) / f"{megapixels}-{path.name}") for path in sources]
            for decode in ("exact", "fast"):
                settings = PictureSettings(decode=decode)
                rows = [parts_of(path, detector, settings) for _ in range(ROUNDS + 1) for path in files][len(files) :]
                medians = [statistics.median(row[part] for row in rows) for part in PARTS]
                print(f"  {megapixels:>4} MP  {decode:<6}" + "".join(f"{figure:>13.2f}" for figure in medians))


if __name__ == "__main__":
    main()
