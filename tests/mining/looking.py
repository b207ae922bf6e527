"""Real pictures through a real network and a scorer, for the tests of scorers."""

from __future__ import annotations

from pathlib import Path

from mining.runner import looks
from mining.scored import Miner, Scored
from models.checkpoint import read_checkpoint
from models.detector import make_detector
from utils.batches import BatchReader, Placing, load, load_whole
from utils.errors import ImageError
from utils.settings import LoaderSettings, MiningConfig
from ymir.index import Candidate


def refuse(item: Candidate, error: ImageError) -> None:
    raise error


def scores_of(
    miner: Miner, images: list[Path], weights: Path, config: MiningConfig, side: int = 640, batch_size: int = 16
) -> dict[str, Scored]:
    """Score pictures as the runner does; by file name."""
    detector = make_detector(read_checkpoint(weights), config.engine, batch_size, batch_size)
    items = [Candidate(index, path.name, path) for index, path in enumerate(images)]
    settings = LoaderSettings(side, "square", batch_size, workers=1)
    loading = load_whole if miner.needs_picture else load
    reader = BatchReader(items, Placing("square", side, 32), settings, refuse, loading=loading)
    return {
        item.line: scored
        for batch in reader
        for look in looks(batch, detector)
        for item, scored in zip(look.batch.items, miner.score(look, config))
    }
