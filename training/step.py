"""Stepper: batches in, steps of the optimizer out. Owns what computing needs: precision, scaler, memory, ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable, Optional

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.detector import DTYPES, device_errors
from models.yolo import DetectionModel
from utils.errors import DeviceMemoryError, NotFiniteError
from utils.letterbox import input_stride
from utils.loss import DetectionLoss
from utils.optim import Ema, load_pending_gradients, pending_gradients
from utils.process import give_memory_back

LOGGER = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]  # (B, H, W, 3) RGB
Rows = npt.NDArray[np.float32]  # (n, 6): place in the batch, class, cx, cy, w, h in 0..1


class Stepper:
    """Turns batches into gradients and gradients into steps.

    model: in training mode, on its device. wrapped: what is called instead of it, where several ranks share the work.
    precision: fp32, bf16 or fp16 (only on a GPU, with a scaled loss). most_at_once: pictures of one pass.
    """

    def __init__(
        self,
        model: DetectionModel,
        wrapped: nn.Module,
        loss: DetectionLoss,
        optimizer: torch.optim.Optimizer,
        ema: Ema[DetectionModel],
        device: torch.device,
        precision: str,
        most_at_once: int,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.most_at_once = most_at_once
        self._wrapped = wrapped
        self._loss = loss
        self._device = device
        self._stride = input_stride(model.stride)
        self._precision = precision
        self._scaler: Any = _make_scaler(precision)
        self._may_split = wrapped is model  # ranks must pass through the network equally often

    def backward(self, pixels: Pixels, rows: Rows, side: Optional[int] = None) -> Tensor:
        """Add a batch's gradients to those that are pending; give (3,) losses: box, objectness, class.

        side: resize the batch so that its longer side is this, in px, a multiple of the stride. Where memory runs out,
        the batch goes through in halves from now on, and the pending gradients are lost. Raises DeviceMemoryError where
        one picture alone doesn't fit, NotFiniteError where the loss is NaN or infinite.
        """
        while True:
            try:
                return self._in_parts(pixels, rows, side)
            except DeviceMemoryError as error:
                at_once = min(self.most_at_once, len(pixels))
                if at_once == 1 or not self._may_split:
                    raise
                self.most_at_once = math.ceil(at_once / 2)
                LOGGER.warning(
                    "%s: %d go through the network at once from now on, and their gradients are added up",
                    str(error).split(";")[0],
                    self.most_at_once,
                )
            # Outside the handler: the error's traceback holds what filled the memory.
            self._forget()

    def _forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        give_memory_back()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _in_parts(self, pixels: Pixels, rows: Rows, side: Optional[int]) -> Tensor:
        parts = torch.zeros(3)
        for first in range(0, len(pixels), self.most_at_once):
            some = pixels[first : first + self.most_at_once]
            own = rows[(rows[:, 0] >= first) & (rows[:, 0] < first + len(some))]
            own[:, 0] -= first
            parts += self._pass(some, own, side) * (len(some) / len(pixels))
        return parts

    def _pass(self, pixels: Pixels, rows: Rows, side: Optional[int]) -> Tensor:
        with device_errors():
            images = self._images(pixels, side)
            targets = torch.from_numpy(rows).to(self._device, non_blocking=True)
            with self._autocast():
                maps = self._wrapped(images)
            losses = self._loss(maps, targets)
            parts = losses.parts.float().cpu()
            if not bool(torch.isfinite(parts).all()):
                raise NotFiniteError("the loss became NaN or infinite")
            self._scaler.scale(losses.total).backward()
        return parts

    def _images(self, pixels: Pixels, side: Optional[int]) -> Tensor:
        """Make uint8 pictures (B, 3, H, W) in 0..1 on the device; they are channels-last as they come."""
        moved = torch.from_numpy(pixels).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        images = moved.float() / 255
        longer = max(images.shape[2:])
        if side is None or side == longer:
            return images
        # In whole numbers: a float may lie a trifle above the whole number that it means.
        size_hw = [-(-length * side // (longer * self._stride)) * self._stride for length in images.shape[2:]]
        return F.interpolate(images, size=size_hw, mode="bilinear", align_corners=False)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=DTYPES[self._precision])

    def step(self) -> None:
        """Change the weights by the pending gradients, forget those, and let the EMA follow."""
        with device_errors():
            self._scaler.step(self.optimizer)
            self._scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            self.ema.update(self.model)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give the pending gradients and the scaler: what is under way between two steps."""
        return pending_gradients(self.model), {
            "scaler": dict(self._scaler.state_dict()),
            "most_at_once": self.most_at_once,
        }

    def load(self, gradients: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        load_pending_gradients(self.model, gradients)
        if plain.get("scaler"):
            self._scaler.load_state_dict(dict(plain["scaler"]))
        self.most_at_once = max(min(self.most_at_once, int(plain.get("most_at_once", self.most_at_once))), 1)


def _make_scaler(precision: str) -> Any:
    """Give torch's scaler of the loss; where the precision needs none it is off, and hands everything through."""
    enabled = precision == "fp16"
    newer: Optional[Callable[..., Any]] = getattr(torch.amp, "GradScaler", None)  # torch 1.12 has only cuda's
    return torch.cuda.amp.GradScaler(enabled=enabled) if newer is None else newer("cuda", enabled=enabled)
