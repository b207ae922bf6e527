"""--batch-size -1: how many pictures a GPU takes at once, from its memory at a few small batches."""

from __future__ import annotations

import copy
import logging

import numpy as np
import torch

from models.detector import DTYPES
from models.yolo import DetectionModel
from utils.errors import DeviceMemoryError

LOGGER = logging.getLogger(__name__)

CPU_BATCH = 16
TRIED = (1, 2, 4, 8, 16)
SHARE = 0.9  # of what is free


def find_batch_size(model: DetectionModel, side: int, device: torch.device, precision: str) -> int:
    """Give the batch size that takes nine tenths of a GPU's free memory; on a CPU always 16.

    Raises DeviceMemoryError where not one picture fits.
    """
    if device.type == "cpu":
        LOGGER.info("batch size: %d (nothing is measured on a CPU)", CPU_BATCH)
        return CPU_BATCH
    used = {count: bytes_ for count in TRIED if (bytes_ := _bytes_of(model, count, side, device, precision))}
    if not used:
        raise DeviceMemoryError(f"not one picture of {side} px fits into the GPU's memory; use a smaller img_size")
    free, _ = torch.cuda.mem_get_info(device)
    if len(used) == 1:
        return min(used)
    slope, start = np.polyfit(list(used), list(used.values()), 1)
    fitting = max(int((free * SHARE - start) / max(slope, 1)), 1)
    LOGGER.info("batch size: %d, about %.1f GB of %.1f GB free", fitting, (start + slope * fitting) / 1e9, free / 1e9)
    return fitting


def _bytes_of(model: DetectionModel, count: int, side: int, device: torch.device, precision: str) -> int:
    """Give the most memory that a step with so many pictures takes; 0 where it doesn't fit."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        tried = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
        images = torch.zeros((count, 3, side, side), device=device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
            maps = tried(images)
        torch.autograd.backward(torch.stack([level.float().mean() for level in maps]).sum())
    except RuntimeError as cause:
        if "out of memory" not in str(cause):
            raise
        return 0
    return int(torch.cuda.max_memory_allocated(device) - before)
