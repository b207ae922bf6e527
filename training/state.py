"""Training: everything that changes while a network is trained; each part of it saves and loads itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor, optim

from models.resume import ResumeState
from models.yolo import DetectionModel
from training.run_state import Best, Means, Position
from training.saver import Snapshot
from training.step import Pixels, Rows, Stepper
from utils.errors import WeightsError
from utils.loss import DetectionLoss
from utils.optim import Accumulation, EarlyStop, Ema, Schedule, load_optimizer_state, optimizer_state, set_rates

# What SGD and Adam keep of a parameter.
OPTIMIZER_ENTRIES = (frozenset({"momentum_buffer"}), frozenset({"step", "exp_avg", "exp_avg_sq"}), frozenset[str]())


@dataclass(eq=False)
class Training:
    """A network and what a training of it remembers."""

    model: DetectionModel
    ema: Ema[DetectionModel]
    optimizer: optim.Optimizer
    loss: DetectionLoss
    stepper: Stepper
    schedule: Schedule
    stop: EarlyStop
    accumulation: Accumulation = field(default_factory=Accumulation)
    position: Position = field(default_factory=Position)
    means: Means = field(default_factory=Means)
    best: Best = field(default_factory=Best)

    def learn(self, pixels: Pixels, rows: Rows, number: int, side: Optional[int]) -> Tensor:
        """Take one batch: add its gradients, and step when enough have come together; give its (3,) losses.

        They are this rank's; the means are of all ranks, so that whoever calls adds to them. number: of the batch since
        the start of the training. side: see Stepper.backward.
        """
        rates = self.schedule.rates(number, self.position.epoch)
        set_rates(self.optimizer, rates)
        parts = self.stepper.backward(pixels, rows, side)
        if self.accumulation.is_due(number, rates.accumulate):
            self.stepper.step()
        return parts

    def state(self, about: dict[str, Any]) -> ResumeState:
        """Give all of it. about: what else to keep, plain values."""
        gradients, step = self.stepper.state()
        shadow, ema = self.ema.state()
        moments, optimizer = optimizer_state(self.optimizer)
        groups = {"model": self.model.state_dict(), "ema": shadow, "optimizer": moments, "gradients": gradients}
        tensors = {f"{group}/{name}": tensor for group, some in groups.items() for name, tensor in some.items()}
        plain = {
            "about": about,
            "ema": ema,
            "optimizer": optimizer,
            "step": step,
            "loss": self.loss.state(),
            "stop": self.stop.state(),
            "accumulation": self.accumulation.state(),
            "position": self.position.state(),
            "means": self.means.state(),
            "best": self.best.state(),
        }
        return ResumeState(tensors, plain)

    def load(self, state: ResumeState) -> None:
        """Take up what `state` gave: the next batch is as if there had been no break. Raises WeightsError."""
        spoiled = [name for name, tensor in state.tensors.items() if not _is_sound(name, tensor)]
        if spoiled:
            raise WeightsError(f"what to go on from holds NaN or infinite values in {spoiled[0]}; start anew")
        try:
            self._load(state)
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as cause:
            # Written by whom? torch's own message has many lines.
            words = " ".join(str(cause).split())[:200]
            raise WeightsError(f"what to go on from is not of this network ({words}); start anew") from cause

    def _load(self, state: ResumeState) -> None:
        plain = state.plain
        self.model.load_state_dict(_group(state, "model"))
        self.ema.load(_group(state, "ema"), plain["ema"])
        load_optimizer_state(self.optimizer, _group(state, "optimizer"), plain["optimizer"])
        self.stepper.load(_group(state, "gradients"), plain["step"])
        levels = len(self.loss.level_weights)
        self.loss.load(plain["loss"])
        if len(self.loss.level_weights) != levels:
            raise ValueError(f"{len(self.loss.level_weights)} levels, need {levels}")
        kept = {frozenset(entries) for entries in self.optimizer.state.values()}
        if not kept <= set(OPTIMIZER_ENTRIES):
            raise ValueError("an optimizer's entries are missing")
        for name in ("stop", "accumulation", "position", "means", "best"):
            getattr(self, name).load(plain[name])

    def snapshot(self, about: dict[str, Any]) -> Snapshot:
        """Give what the weights files are written from."""
        return Snapshot(
            model=self.model,
            ema=self.ema.model,
            epoch=self.position.epoch - 1,
            best_fitness=self.best.fitness,
            updates=self.ema.updates,
            optimizer=self.optimizer.state_dict(),
            resume=self.state(about),
        )


def _is_sound(name: str, tensor: Tensor) -> bool:
    """Say whether an entry can be computed with; gradients of a scaled loss may be infinite, their step is left out."""
    if name.startswith("gradients/") or not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor).all())


def _group(state: ResumeState, group: str) -> dict[str, Tensor]:
    prefix = f"{group}/"
    return {name[len(prefix) :]: tensor for name, tensor in state.tensors.items() if name.startswith(prefix)}
