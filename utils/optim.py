"""How weights move: parameter groups, schedules as pure functions, accumulated gradients, the moving average, the end.

What changes during a run (`Ema`, `Accumulation`, `EarlyStop`, the optimizer) gives its state and takes it back, bit for
bit: tensors in one flat dict, the rest as plain values that JSON can hold.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from utils.errors import ConfigError, WeightsError
from utils.hyp import Hyp

Model = TypeVar("Model", bound=nn.Module)

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
LEAST_WARMUP_BATCHES = 100
EMA_DECAY, EMA_RAMP = 0.9999, 2000
ADAM_BETA2 = 0.999
# Of a group's entries, what says how this torch computes and not what: never taken from a file.
ENGINE_KEYS = ("params", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Sort a model's parameters as YOLOv5 v6.1 does: weights of norms, other weights, biases; each once."""
    norms: list[nn.Parameter] = []
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if name.endswith("bias"):
                biases.append(parameter)
            else:
                (norms if isinstance(module, NORMS) else weights).append(parameter)
    return norms, weights, biases


def make_optimizer(
    name: str, model: nn.Module, rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make SGD (Nesterov), Adam or AdamW over three groups: norms, other weights (these alone decay), biases.

    momentum: Adam's first beta. Raises ConfigError for another name.
    """
    groups = [
        {"params": parameters, "weight_decay": weight_decay if place == 1 else 0.0}
        for place, parameters in enumerate(parameter_groups(model))
    ]
    if name == "SGD":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
    if name == "Adam":
        return torch.optim.Adam(groups, lr=rate, betas=(momentum, ADAM_BETA2))
    if name == "AdamW":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, ADAM_BETA2))
    raise ConfigError(f"optimizer: got {name!r}, need one of SGD, Adam, AdamW")


def accumulate_for(batch_size: int, nominal_batch: int) -> int:
    """Give how many batches make one step, so that a step sees about the nominal number of pictures."""
    return max(round(nominal_batch / batch_size), 1)


def scaled_decay(weight_decay: float, batch_size: int, nominal_batch: int) -> float:
    """Give the weight decay for the pictures that a step really sees."""
    return weight_decay * batch_size * accumulate_for(batch_size, nominal_batch) / nominal_batch


def epoch_factor(epoch: int, epochs: int, lrf: float, is_cosine: bool) -> float:
    """Give an epoch's share of the first learning rate: 1 at epoch 0 to lrf at `epochs`, a line or half a cosine."""
    if is_cosine:
        return lrf + (1 - lrf) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return (1 - epoch / epochs) * (1 - lrf) + lrf


class Rates(NamedTuple):
    """What one batch is trained with. group_rates: learning rates of norms, other weights, biases."""

    group_rates: tuple[float, float, float]
    momentum: float
    accumulate: int  # batches a step


@dataclass(frozen=True)
class Schedule:
    """Learning rates, momentum and batches a step, as a function of where training is."""

    hyp: Hyp
    epochs: int
    is_cosine: bool
    warmup_batches: int
    accumulate: int

    def rates(self, batch: int, epoch: int) -> Rates:
        """Give what to train a batch with; `batch` counts from the start of the run, both from 0.

        During warm-up the biases' rate falls from warmup_bias_lr, the others' rises from 0, momentum and batches a step
        move likewise, all in a straight line (Goyal et al., Accurate, Large Minibatch SGD, 2017, section 2.2).
        """
        hyp = self.hyp
        rate = hyp.lr0 * epoch_factor(epoch, self.epochs, hyp.lrf, self.is_cosine)
        if batch > self.warmup_batches:
            return Rates((rate, rate, rate), hyp.momentum, self.accumulate)
        share = batch / self.warmup_batches
        rising, biases = rate * share, _between(hyp.warmup_bias_lr, rate, share)
        accumulate = max(round(_between(1, self.accumulate, share)), 1)
        return Rates((rising, rising, biases), _between(hyp.warmup_momentum, hyp.momentum, share), accumulate)


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def make_schedule(hyp: Hyp, epochs: int, is_cosine: bool, epoch_batches: int, accumulate: int) -> Schedule:
    """Make a run's schedule; warm-up takes warmup_epochs, but at least 100 batches."""
    warmup = max(round(hyp.warmup_epochs * epoch_batches), LEAST_WARMUP_BATCHES)
    return Schedule(hyp, epochs, is_cosine, warmup, accumulate)


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Put rates into an optimizer that `make_optimizer` made; Adam's betas stay."""
    for group, rate in zip(optimizer.param_groups, rates.group_rates):
        group["lr"] = rate
        if "momentum" in group:
            group["momentum"] = rates.momentum


class Accumulation:
    """Says after which batches the optimizer steps; gradients add up in between, over the ends of epochs too."""

    def __init__(self) -> None:
        self.last_step = -1

    def is_due(self, batch: int, accumulate: int) -> bool:
        """Tell whether to step after this batch, counted from the start of the run; if so, note it."""
        if batch - self.last_step < accumulate:
            return False
        self.last_step = batch
        return True

    def state(self) -> dict[str, Any]:
        """Give plain values."""
        return {"last_step": self.last_step}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken."""
        self.last_step = int(state["last_step"])


def pending_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Give the gradients that no step has used yet, by parameter."""
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def load_pending_gradients(model: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Put back what `pending_gradients` gave. Raises WeightsError for what doesn't fit the model."""
    parameters = dict(model.named_parameters())
    for name, gradient in gradients.items():
        if name not in parameters or parameters[name].shape != gradient.shape:
            raise WeightsError(f"saved gradient {name}: no such parameter of shape {tuple(gradient.shape)}")
        parameters[name].grad = torch.empty_like(parameters[name]).copy_(gradient)


class Ema(Generic[Model]):
    """A model's exponential moving average: `model`, in eval mode, without gradients; young averages follow faster.

    Every float of the state dict is averaged, running statistics too (Polyak & Juditsky, 1992; the ramp is YOLOv5's).
    """

    def __init__(self, model: Model) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present weights: average = d * average + (1 - d) * weights."""
        self.updates += 1
        decay = EMA_DECAY * (1 - math.exp(-self.updates / EMA_RAMP))
        new = model.state_dict()
        pairs = [(mean, new[key].detach()) for key, mean in self.model.state_dict().items() if mean.is_floating_point()]
        means, values = [mean for mean, _ in pairs], [value for _, value in pairs]
        torch._foreach_mul_(means, decay)
        torch._foreach_add_(means, values, alpha=1 - decay)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give the average's tensors, by state-dict name, and plain values."""
        return dict(self.model.state_dict()), {"updates": self.updates}

    def load(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken. Raises WeightsError for tensors of another model."""
        try:
            self.model.load_state_dict(dict(tensors))
        except RuntimeError as cause:
            raise WeightsError(f"saved average of the weights: {str(cause).splitlines()[-1].strip()}") from cause
        self.updates = int(plain["updates"])


class EarlyStop:
    """Knows the best epoch, and ends a run that has not reached its fitness for `patience` epochs; 0: never."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best = 0.0
        self.best_epoch = 0

    def update(self, epoch: int, fitness: float) -> bool:
        """Take in an epoch's fitness, of equal ones the later is best; tell whether training should stop."""
        if fitness >= self.best:  # also at 0: the first epochs may detect nothing
            self.best, self.best_epoch = fitness, epoch
        return 0 < self.patience <= epoch - self.best_epoch

    def state(self) -> dict[str, Any]:
        """Give plain values."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken."""
        self.best, self.best_epoch = float(state["best"]), int(state["best_epoch"])


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give an optimizer's state: tensors named NUMBER.NAME by the parameter's place, the rest as plain values."""
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for number, entries in saved["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else values)[f"{number}.{name}"] = value
    groups = [
        {key: list(value) if isinstance(value, tuple) else value for key, value in group.items() if _is_kept(key)}
        for group in saved["param_groups"]
    ]
    return tensors, {"values": values, "groups": groups}


def _is_kept(key: str) -> bool:
    return key not in ENGINE_KEYS


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """Put back what `optimizer_state` gave; the next steps are bit for bit those that would have followed.

    The file may come from another torch: what only says how it computes is this one's own. Raises WeightsError where
    the state is another optimizer's or another model's.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    for key, value in {**plain["values"], **tensors}.items():
        number, _, name = key.partition(".")
        if not number.isdigit() or int(number) >= len(parameters):
            raise WeightsError(f"saved optimizer: {key}: the model has {len(parameters)} parameters")
        entries.setdefault(int(number), {})[name] = _like(value, parameters[int(number)], key)
    now = optimizer.state_dict()["param_groups"]
    if len(now) != len(plain["groups"]):
        raise WeightsError(f"saved optimizer: {len(plain['groups'])} groups of parameters, need {len(now)}")
    groups = [_updated(group, saved) for group, saved in zip(now, plain["groups"])]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _like(value: Any, parameter: Tensor, key: str) -> Any:
    """Copy a tensor of a parameter's shape into the parameter's own layout in memory and onto its device."""
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0 and key.endswith(".step"):
        return value.clone()
    if value.shape != parameter.shape:
        raise WeightsError(f"saved optimizer: {key} is {tuple(value.shape)}, need {tuple(parameter.shape)}")
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _updated(group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    if ("momentum" in group) != ("momentum" in saved):
        raise WeightsError("saved optimizer: is of another kind than the one asked for; use the same --optimizer")
    taken = {key: saved[key] for key in group if key in saved and _is_kept(key)}
    return {**group, **{key: tuple(value) if isinstance(value, list) else value for key, value in taken.items()}}


def freeze_layers(model: nn.Module, numbers: Sequence[int]) -> None:
    """Let some layers' parameters get no gradient: those named model.NUMBER. Raises ConfigError for unknown layers."""
    layers = {int(name.split(".")[1]) for name, _ in model.named_modules() if name.count(".") == 1}
    unknown = sorted(set(numbers) - layers)
    if unknown:
        raise ConfigError(f"freeze: there is no layer {unknown[0]}, need 0 to {max(layers)}")
    prefixes = tuple(f"model.{number}." for number in numbers)
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("freeze: every layer is frozen, nothing is left to train")
