"""What a training leaves for mining: counts and AP of each class, and how its pictures look to the best weights."""

from __future__ import annotations

from typing import Optional

import numpy as np
import numpy.typing as npt
import torch

from models.checkpoint import read_checkpoint
from models.detector import build_model, device_errors
from models.features import Features, pooled_features
from models.yolo import DetectionModel
from training.building import training_side
from training.job import BEST
from training.run import Run
from utils.batches import Batch, BatchReader, Placing, Shot
from utils.label_table import LabelTable
from utils.labelled import ignore
from utils.letterbox import input_stride
from utils.metrics import Metrics
from utils.progress import Progress
from utils.settings import LoaderSettings
from utils.stats import FILE_NAME, MAX_FEATURES, MiningStats, features_digest, write_stats
from utils.training_set import generator

LETTERBOX = "square"  # mining's own
SEED_WORD = 4  # beside the seed in a generator, see utils.training_loader
AT_ONCE = 8  # pictures


def write_mining_stats(run: Run, metrics: Optional[Metrics], progress: Progress) -> str:
    """Write mining_stats.safetensors beside best.pt; give its name. Raises OSError where it can't be written.

    metrics: of best.pt, None where nothing was validated.
    """
    checkpoint = read_checkpoint(run.job.folders.weights / BEST)
    model = build_model(checkpoint).to(run.device)
    table, config = run.training_set.table, run.config
    drawn = generator(config.seed, 0, 0, SEED_WORD).permutation(len(table))[:MAX_FEATURES]
    shots = [table.shots[index] for index in sorted(drawn.tolist())]
    stride = input_stride(checkpoint.strides)
    placing = Placing(LETTERBOX, training_side(config.img_size, stride), stride)
    loader = LoaderSettings(
        placing.side, LETTERBOX, batch_size=AT_ONCE, workers=config.workers, pictures=config.pictures
    )
    reader = BatchReader(shots, placing, loader, ignore, progress, len(shots))
    parts = [features_of(model, batch, run.device) for batch in reader]
    features = np.concatenate(parts) if parts else np.zeros((0, 1), np.int16)
    pictures, boxes = class_counts(table)
    ap = np.full(len(table.names), np.nan)
    for one in metrics.classes if metrics is not None else ():
        ap[one.class_id] = one.ap
    digest = features_digest(checkpoint.digest, model.feature_layer, placing.side, LETTERBOX)
    write_stats(
        run.job.folders.weights / FILE_NAME,
        MiningStats(table.names, pictures, boxes, ap, features, config.seed, digest),
    )
    return FILE_NAME


def features_of(model: DetectionModel, batch: Batch[Shot], device: torch.device) -> Features:
    """Give the (B, C) features of a batch."""
    with device_errors(), torch.inference_mode():
        pixels = torch.from_numpy(np.stack(batch.canvases)).to(device).permute(0, 3, 1, 2)
        return pooled_features(model.features(pixels.float() / 255))


def class_counts(table: LabelTable) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give for each class the pictures that hold it and the boxes of it: (C,) each."""
    classes = len(table.names)
    boxes = np.bincount(table.class_ids, minlength=classes).astype(np.int64)
    pairs = np.unique(table.picture_of_rows() * classes + table.class_ids)  # one of each picture and class
    return np.bincount(pairs % classes, minlength=classes).astype(np.int64), boxes
