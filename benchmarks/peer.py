"""How to run the public peer (benchmarks/make_peer.sh makes it): its command lines and its environment, on a CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Optional, Union

PEER = Path(__file__).resolve().parent.parent / ".peer"

Kind = Literal["train", "val", "detect", "export"]
Value = Union[bool, int, float, str, Path, Sequence[Union[int, str]]]


def peer_command(kind: Kind, weights: Path, options: Mapping[str, Value], out: Optional[Path] = None) -> list[str]:
    """The command line of one run of the peer; raises FileNotFoundError where the peer is not made.

    options: its options by name, `_` for `-`. True gives the bare flag, False nothing; paths are made absolute.
    out: the folder of its results, fresh for each run: label texts are appended to those that lie there. Its name
    must not look like a number, which the peer would take for one. None for export, which writes beside the weights.

    Give train `workers` and data of its own (it writes label caches and mends damaged pictures), never `noval`: it
    crashes. export wants lists: {"imgsz": [640, 640], "include": ["onnx"]}.
    """
    if not (PEER / "made").is_file():
        raise FileNotFoundError(f"{PEER}: the peer is not made; run benchmarks/make_peer.sh")
    # A bare name of weights would be asked of a hub.
    command = [str(PEER / "bin/yolov5"), kind, "--weights", str(weights.absolute()), "--device", "cpu"]
    if out is not None:
        command += ["--project", str(out.absolute().parent), "--name", out.name, "--exist-ok"]
    for name, value in options.items():
        if value is not False:
            command += [f"--{name.replace('_', '-')}", *_words(kind, value)]
    return command


def peer_environment() -> dict[str, str]:
    """This process's environment, made fit for the peer; the number of threads (OMP_NUM_THREADS) stays the caller's."""
    config = PEER / "cfg"
    environment = {
        **os.environ,
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # its checkpoints are pickles: official weights and our own only
        "YOLOV5_CONFIG_DIR": str(config),  # holds the font that it would fetch
        "YOLO_CONFIG_DIR": str(config),  # else ultralytics and matplotlib write into the user's home
        "MPLCONFIGDIR": str(config / "matplotlib"),
        "HF_HUB_OFFLINE": "1",
        "YOLO_OFFLINE": "true",
    }
    # Pickled checkpoints name `models.yolo`: with our root on the path that would be ours.
    for name in ("PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)
    return environment


def _words(kind: Kind, value: Value) -> list[str]:
    """What follows an option's name: train has an ordinary command line, the others read Python literals."""
    if value is True:
        return []
    if isinstance(value, Path):
        return [str(value.absolute())]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(item) for item in value] if kind == "train" else [json.dumps(list(value))]
    return [str(value)]
