"""The network that a training starts from: built from a model yaml or from weights, with what fits of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import torch

from models.checkpoint import Checkpoint
from models.detector import as_tensor
from models.yolo import DetectionModel, ModelSpec, make_model, parse_spec, read_spec
from utils.errors import ConfigError, WeightsError

ANCHOR_ENTRIES = ("anchors", "anchor_grid")


@dataclass(frozen=True)
class Transfer:
    """What a network took over from a checkpoint: counts of state-dict entries, and the first that it could not."""

    taken: int
    total: int
    first_left: str = ""


def starting_spec(
    cfg: Optional[Path],
    checkpoint: Optional[Checkpoint],
    classes: int,
    activation: str,
    anchors: Optional[float] = None,
) -> ModelSpec:
    """Give the description of the network to train.

    cfg: wins over the checkpoint's own description. activation: "" = the description's own. anchors: so many a level,
    to be fitted before use, instead of the description's. Raises ConfigError, WeightsError.
    """
    if cfg is not None:
        spec = read_spec(cfg, classes, activation)
    elif checkpoint is not None:
        plain = {**checkpoint.yaml, "anchors": checkpoint.anchors_px.reshape(len(checkpoint.strides), -1).tolist()}
        name = str(checkpoint.path)
        spec = parse_spec(plain, name, classes, activation or checkpoint.activation, WeightsError)
    else:
        raise ConfigError("--cfg: is needed to train from scratch (--weights ''), such as yolov5s.yaml")
    if anchors is None:
        return spec
    placeholder = tuple(float(number) for number in range(2 * round(anchors)))
    return replace(spec, anchors_px=(placeholder,) * spec.levels)


def has_placeholder_anchors(spec: ModelSpec) -> bool:
    """Say whether a description leaves its anchors to be fitted: 0, 1, 2, ... on each level."""
    return all(level == tuple(float(number) for number in range(len(level))) for level in spec.anchors_px)


def initial_model(
    spec: ModelSpec, checkpoint: Optional[Checkpoint], seed: int, *, keeps_anchors: bool
) -> tuple[DetectionModel, Transfer]:
    """Build a network with weights drawn from `seed`, and fill in every entry of equal name and shape.

    keeps_anchors: the description's stay, those of the weights are left out.
    """
    torch.manual_seed(seed)
    model = make_model(spec)
    if checkpoint is None:
        return model, Transfer(0, len(model.state_dict()))
    return model, transfer(model, checkpoint.state, keeps_anchors)


def transfer(model: DetectionModel, state: Mapping[str, Any], keeps_anchors: bool) -> Transfer:
    """Copy arrays into the entries of a network that have their name and shape."""
    entries = model.state_dict()
    fitting = {
        name: as_tensor(array)
        for name, array in state.items()
        if name in entries
        and tuple(entries[name].shape) == array.shape
        and not (keeps_anchors and name.rpartition(".")[2] in ANCHOR_ENTRIES)
    }
    model.load_state_dict({**entries, **fitting})
    left = [name for name in entries if name not in fitting]
    return Transfer(len(fitting), len(entries), left[0] if left else "")
