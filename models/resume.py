"""What a run goes on from, as it lies in last.pt beside the model: tensors under flat names, and one JSON text.

Read like weights from a stranger: the file may come from anywhere, and is no more trusted than any checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

import torch
from torch import Tensor

from models.archive import opened
from models.tensors import Array, TensorData, arrays_of
from models.unpickle import read_pickle
from utils.errors import WeightsError

VERSION = 1
_MAX_JSON = 2 << 20  # letters; 300 epochs of figures take 100,000
_MAX_TENSORS, _MAX_NAME = 20_000, 300  # yolov5x6 with an EMA and Adam has 5,000


@dataclass(frozen=True, eq=False)
class ResumeState:
    """tensors: such as "model/model.0.conv.weight", "optimizer/0/momentum_buffer". plain: what JSON can say."""

    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]

    def to_json(self) -> str:
        """The plain part and the version of this form, as one text. Raises TypeError for what JSON can't say."""
        return json.dumps({"version": VERSION, "plain": dict(self.plain)}, ensure_ascii=True)


def read_resume(path: Path) -> Optional[ResumeState]:
    """Read what a run goes on from; None where the file has no such part (YOLOv5's own, or a finished training's).

    Tensors are on the CPU, contiguous, in the types they were written in, each in memory of its own. Raises
    WeightsError, naming file and cause, where the file is damaged.
    """
    with opened(path) as archive:
        root = read_pickle(archive)
        stored = root.get("resume") if isinstance(root, dict) else None
        if stored is None:
            return None
        if not isinstance(stored, dict):
            raise _refusal(path, "isn't what this executor writes")
        plain = _parsed(path, stored.get("json"))
        described = _checked(path, stored.get("tensors"))
        arrays = arrays_of(archive, described)
    # A name at a time, so that an array that was widened doesn't stay beside its tensor.
    tensors = {name: _tensor(arrays.pop(name), described[name]) for name in list(arrays)}
    return ResumeState(MappingProxyType(tensors), MappingProxyType(plain))


def _refusal(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path}: its part to resume from {reason}; start anew, with these weights if you like")


def _parsed(path: Path, text: Any) -> dict[str, Any]:
    """The plain values of the JSON text."""
    if not isinstance(text, str) or len(text) > _MAX_JSON:
        raise _refusal(path, "has no JSON text, or one that is too long")
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise _refusal(path, "has a JSON text that can't be read") from cause
    if not isinstance(parsed, dict) or parsed.get("version") != VERSION or not isinstance(parsed.get("plain"), dict):
        raise _refusal(path, f"is of another version than {VERSION}")
    plain: dict[str, Any] = parsed["plain"]
    return plain


def _checked(path: Path, stored: Any) -> dict[str, TensorData]:
    """The tensors by name, still on disk."""
    if not isinstance(stored, dict) or len(stored) > _MAX_TENSORS:
        raise _refusal(path, f"has no tensors, or more than {_MAX_TENSORS}")
    for name, tensor in stored.items():
        if not isinstance(name, str) or len(name) > _MAX_NAME or not isinstance(tensor, TensorData):
            raise _refusal(path, "holds something else than tensors with names")
    return stored


def _tensor(array: Array, described: TensorData) -> Tensor:
    tensor = torch.from_numpy(array)
    if not described.storage.dtype.is_bfloat16:
        return tensor
    # It was widened by zeros; a conversion of floats would make one NaN of them all.
    return (tensor.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
