"""Mining against one plain fp32 forward pass (fused, eager torch) for each picture; the scorer's own pass included.

python -m benchmarks.mining [--pictures 8] [--rounds 5]
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Callable

from utils.process import prepare_process

prepare_process()

from benchmarks.inference import forward, refuse  # noqa: E402
from benchmarks.plain import PlainProcess  # noqa: E402
from benchmarks.rounds import ROUNDS, SHARED, interleave, machine, ratio  # noqa: E402
from mining import MINERS  # noqa: E402
from mining.runner import looks  # noqa: E402
from mining.scored import Look  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from models.decode import RawMaps  # noqa: E402
from models.detector import Detector, make_detector  # noqa: E402
from utils.batches import Batch, BatchReader, Placing, load_whole  # noqa: E402
from utils.passes import CPU_PASS  # noqa: E402
from utils.settings import EngineSettings, LoaderSettings, MiningConfig  # noqa: E402
from ymir.index import Candidate  # noqa: E402

SIDE, FEW = 640, 3


def score(detector: Detector, batches: Sequence[Batch[Any]], config: MiningConfig, classes: int) -> None:
    """Score decoded pictures; classes: only the first so many are looked at."""
    miner = MINERS[config.algorithm]
    for batch in batches:
        for look in looks(batch, detector):
            assert isinstance(look.raw, RawMaps)
            levels = [level[..., : 5 + classes] for level in look.raw.levels]
            raw = RawMaps(levels, look.raw.strides, look.raw.anchors_px)
            miner.score(Look(look.batch, detector, raw), config)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    checkpoint = read_checkpoint(SHARED / "weights/yolov5n.pt")
    exact = make_detector(checkpoint, EngineSettings(precision="fp32"), CPU_PASS)
    seeing = replace(exact, gives_features=True)
    images = sorted((SHARED / "data/coco128/images/train2017").glob("*.jpg"))[: options.pictures]
    items = [Candidate(number, path.name, path) for number, path in enumerate(images)]
    settings = LoaderSettings(SIDE, "square", CPU_PASS)
    reader = BatchReader(items, Placing("square", SIDE, 32), settings, refuse, loading=load_whole)
    batches = list(reader)
    names = exact.names

    def scoring(algorithm: str, classes: int = len(names)) -> Callable[[], None]:
        return functools.partial(score, exact, batches, MiningConfig(names[:classes], algorithm=algorithm), classes)

    variants: dict[str, Callable[[], object]] = {
        "our forward": functools.partial(forward, exact, batches),
        "our forward with features": functools.partial(forward, seeing, batches),
        "entropy": scoring("entropy"),
        f"aldd, {len(names)} classes": scoring("aldd"),
        f"aldd, {FEW} classes": scoring("aldd", FEW),
        "cald": scoring("cald"),
    }
    with PlainProcess(len(items), SIDE) as plain:
        times = interleave({"plain forward": plain, **variants}, options.rounds)
    print(f"mining, yolov5n, {SIDE} px, {len(items)} pictures, decoded beforehand; {machine()}")
    for name, seconds in times.items():
        each = 1000 * sorted(seconds)[len(seconds) // 2] / len(items)
        print(
            f"  {name:<26} {ratio(seconds, times['plain forward'])} x the plain forward pass, {each:.0f} ms a picture"
        )


if __name__ == "__main__":
    main()
