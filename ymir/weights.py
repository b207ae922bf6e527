"""Which of the weights files that a task names is loaded (SPEC section 3)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from utils.errors import ConfigError
from utils.settings import OPENVINO_SUFFIX
from ymir.config import TaskConfig
from ymir.params import brief

NOT_WEIGHTS = 9


def task_weights(task: TaskConfig) -> Optional[Path]:
    """Give the weights that the task is to load, None where it names none that is there.

    Raises ConfigError for a path that leads out of input.models_dir.
    """
    key = "pretrained_model_params" if task.env.run_training else "model_params_path"
    texts = [task.roots.map_text(text) for text in getattr(task.params, key)]
    return choose_weights(place_weights(texts, task.env.input.models_dir, key))


def place_weights(texts: Sequence[str], models_dir: Path, key: str = "model_params_path") -> list[Path]:
    """Give the absolute paths of weights named as in config.yaml, which must lie in models_dir by their letters.

    A relative path is meant from models_dir or, as old platforms write it, from the folder that holds models_dir.
    """
    paths = []
    for text in texts:
        path = _below(models_dir, text)
        older = _below(models_dir.parent, text)
        if not os.path.exists(path) and models_dir in older.parents:  # noqa: PTH110
            path = older
        if models_dir not in path.parents:
            raise ConfigError(f"{key}: got {brief(text)}, need a file in {models_dir} (config.yaml)")
        paths.append(path)
    return paths


def choose_weights(paths: Sequence[Path]) -> Optional[Path]:
    """Choose: best.pt, the newest .pt, best.onnx, the newest .onnx, a folder *_openvino_model; None if none is there.

    Newest: by the time of change, then by name. Files of an OpenVINO folder stand for the folder.
    """
    present = {_openvino_folder(path) or path for path in paths}
    ranked = [(_rank(path), path) for path in sorted(present)]
    best = min((rank for rank, _ in ranked), default=NOT_WEIGHTS)
    if best == NOT_WEIGHTS:
        return None
    return max((path for rank, path in ranked if rank == best), key=lambda path: (path.stat().st_mtime_ns, path.name))


def _rank(path: Path) -> int:
    # os.path: Path's own questions raise on names that are too long.
    if os.path.isdir(path):  # noqa: PTH112
        return 4 if path.name.endswith(OPENVINO_SUFFIX) else NOT_WEIGHTS
    if not os.path.isfile(path):  # noqa: PTH113
        return NOT_WEIGHTS
    by_name = {"best.pt": 0, "best.onnx": 2}
    by_suffix = {".pt": 1, ".onnx": 3}
    return by_name.get(path.name, by_suffix.get(path.suffix.lower(), NOT_WEIGHTS))


def _openvino_folder(path: Path) -> Optional[Path]:
    holds_it = path.parent.name.endswith(OPENVINO_SUFFIX) and os.path.isfile(path)  # noqa: PTH113
    return path.parent if holds_it else None


def _below(folder: Path, text: str) -> Path:
    return Path(os.path.normpath(folder / text))
