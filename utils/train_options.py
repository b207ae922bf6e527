"""YOLOv5's train.py command line: what was given, read and checked, and put over other settings. No torch here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Optional

from utils.errors import ConfigError, WeightsError
from utils.hyp import HYPS, read_hyp
from utils.process import OneLineParser, share, whole
from utils.settings import MOST_SIDE_PX, PRECISIONS, check_device, check_pt
from utils.train_settings import CACHES, FIND_BATCH_SIZE, FITNESSES, OPTIMIZERS, TrainConfig

ROOT = Path(__file__).resolve().parent.parent
MODELS, WEIGHTS = ROOT / "models", ROOT / "weights"
# What the command line means where an option is left out; the rest are TrainConfig's defaults.
DEFAULT_WEIGHTS, DEFAULT_DATA = "yolov5s.pt", "data/coco128.yaml"
DEFAULT_PROJECT, DEFAULT_NAME = "runs/train", "exp"
DEFAULT_GENERATIONS = 300  # of a bare --evolve
NEWEST = ""  # resume_from of a bare --resume
# Weights & Biases' and Google's services: their options are taken where they ask for nothing.
SERVICES = MappingProxyType(
    {
        "bucket": ("", "Google Cloud Storage"),
        "entity": ("", "Weights & Biases"),
        "upload_dataset": ("", "Weights & Biases"),
        "bbox_interval": (-1, "Weights & Biases"),
        "artifact_alias": ("latest", "Weights & Biases"),
    }
)


@dataclass(frozen=True)
class TrainOptions:
    """What a train.py command line gave; what it left out is None, or is not in `changes`."""

    changes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # TrainConfig's fields, checked
    weights: Optional[str] = None  # a file, or the bare name of one in weights/; "": from scratch
    cfg: Optional[str] = None  # a file, or the name of one in models/
    hyp: Optional[str] = None  # a file, or the name of one in data/hyps
    data: Optional[str] = None
    project: Optional[str] = None
    name: Optional[str] = None
    exist_ok: bool = False
    resume_from: Optional[str] = None  # a last.pt or its run's folder; "": the newest run's
    evolve: Optional[int] = None  # generations
    plots: bool = True


# ---- reading ---------------------------------------------------------------------------------------------------------


def parse_options(argv: Sequence[str], with_help: bool = True) -> TrainOptions:
    """Read a train.py command line. Of a repeated option the last one counts.

    with_help: --help prints the options and ends the process. Raises ConfigError, which names option, value and what is
    allowed.
    """
    given = vars(_parser(with_help).parse_args(argv))
    _refuse_services(given)
    resume_from = given.get("resume")
    if resume_from is not None and "evolve" in given:
        raise ConfigError("--evolve: starts many short runs, --resume goes on with one; leave one of them out")
    known = {one.name for one in fields(TrainConfig)} - {"weights", "cfg", "hyp", "resume"}
    changes = {key: value for key, value in given.items() if key in known}
    if "freeze" in changes:
        changes["freeze"] = frozen_layers(changes["freeze"])
    if resume_from is not None:
        changes["resume"] = "must"
    replace(TrainConfig(), **changes)  # what contradicts is told now
    names = ("weights", "cfg", "hyp", "data", "project", "name", "exist_ok", "evolve", "plots")
    others: dict[str, Any] = {name: given[name] for name in names if name in given}
    for name in ("cfg", "hyp"):
        if others.get(name) == "":  # YOLOv5's own default of --cfg
            del others[name]
    return TrainOptions(MappingProxyType(changes), resume_from=resume_from, **others)


def frozen_layers(numbers: Sequence[int]) -> tuple[int, ...]:
    """Give the layers that --freeze means: one number N is layers 0 to N - 1, several are those layers."""
    return tuple(range(numbers[0])) if len(numbers) == 1 else tuple(sorted(set(numbers)))


def _refuse_services(given: Mapping[str, Any]) -> None:
    for name, (nothing, service) in SERVICES.items():
        if given.get(name, nothing) != nothing:
            raise ConfigError(f"--{name}: got {str(given[name])[:40]!r}, but {service} is not offered; leave it out")


def _device(text: str) -> str:
    check_device("--device", text)
    return text.strip()


def _parser(with_help: bool) -> argparse.ArgumentParser:
    """A parser whose namespace holds only what was given."""
    parser = OneLineParser(
        prog="train.py",
        description="Train a YOLOv5 model on a data set.",
        argument_default=argparse.SUPPRESS,
        add_help=with_help,
    )
    _add_what(parser.add_argument)
    _add_how(parser.add_argument)
    _add_run(parser.add_argument)
    _add_services(parser.add_argument)
    return parser


def _add_what(add: Callable[..., Any]) -> None:
    add("--weights", metavar="FILE", help=f"a .pt to start from, '' to start from scratch (default {DEFAULT_WEIGHTS})")
    add("--cfg", metavar="YAML", help="a model: a file, or a name such as yolov5s.yaml (default: the weights' own)")
    add("--data", metavar="YAML", help=f"names the classes and the pictures (default {DEFAULT_DATA})")
    add("--hyp", metavar="YAML", help="hyperparameters: a file, or the name of a set (default hyp.scratch-low.yaml)")
    sizes = ("--imgsz", "--img", "--img-size")
    add(*sizes, dest="img_size", type=whole(1, MOST_SIDE_PX), metavar="PX", help="long side of the input (640)")
    add("--rect", action="store_true", help="batches of like shapes instead of mosaics")
    add("--single-cls", action="store_true", help="take all classes for one")
    add("--image-weights", action="store_true", help="draw pictures of poorly found classes more often")
    add("--quad", action="store_true", help="batches of pictures twice as large, a quarter as many")
    add("--multi-scale", action="store_true", help="another input size for each batch, 0.5 to 1.5 of --imgsz")
    add("--cache", nargs="?", const="ram", choices=CACHES[1:], help="keep decoded pictures in ram (bare), or on disk")


def _add_how(add: Callable[..., Any]) -> None:
    batch = whole(1, also=FIND_BATCH_SIZE)
    add("--epochs", type=whole(1), metavar="N", help="times that the pictures are seen (300)")
    add("--batch-size", type=batch, metavar="N", help="of all GPUs together (16); -1: as many as fit")
    add("--nominal-batch", type=whole(1), metavar="N", help="ours: what learning rate and decay are meant for (64)")
    add("--optimizer", choices=OPTIMIZERS, help="SGD if left out")
    add("--cos-lr", action="store_true", help="the learning rate falls along a cosine, not a line")
    add("--label-smoothing", type=share, metavar="SHARE", help="0 if left out")
    add("--patience", type=whole(0), metavar="N", help="epochs without a better one until it ends (100; 0: never)")
    add("--freeze", nargs="+", type=whole(0, 1000), metavar="N", help="the first N layers; or several: these layers")
    add("--activation", metavar="NAME", help="ours: of torch.nn, for all layers")
    add("--fitness", choices=FITNESSES, help="ours: what the best epoch is the best in; map if left out")
    add("--autobalance", action="store_true", help="ours: balance the objectness of the levels while training")
    add("--noautoanchor", dest="autoanchor", action="store_false", help="keep anchors that don't suit the boxes")
    add("--precision", choices=PRECISIONS, help="ours: by the hardware if left out")
    add("--seed", type=whole(0, 2**63 - 1), metavar="N", help="of everything that is random (0)")
    add("--sync-bn", action="store_true", help="batch norm over all GPUs together")


def _add_run(add: Callable[..., Any]) -> None:
    add("--resume", nargs="?", const=NEWEST, metavar="PATH", help="go on with a run: its last.pt, or the newest (bare)")
    add("--evolve", nargs="?", const=DEFAULT_GENERATIONS, type=whole(1), metavar="N", help="search hyperparameters")
    add("--nosave", dest="save", action="store_false", help="write weights after the last epoch only")
    add("--noval", dest="validate", action="store_false", help="validate after the last epoch only")
    add("--noplots", dest="plots", action="store_false", help="draw nothing")
    add("--save-period", type=whole(1, also=-1), metavar="N", help="also keep every N-th epoch's weights (-1: none)")
    add("--device", type=_device, metavar="WHICH", help="cpu, or GPUs' indices such as 0 or 0,1,2,3")
    add("--workers", type=whole(0), metavar="N", help="threads that make pictures, for each GPU (8)")
    add("--project", metavar="DIR", help=f"where the folder of results goes (default {DEFAULT_PROJECT})")
    add("--name", help=f"of that folder (default {DEFAULT_NAME})")
    add("--exist-ok", action="store_true", help="write into that folder if it is there")
    add("--local_rank", "--local-rank", type=whole(-1), metavar="N", help="torchrun's; not read, it sets LOCAL_RANK")


def _add_services(add: Callable[..., Any]) -> None:
    add("--bucket", metavar="NAME", help="(not offered)")
    add("--entity", metavar="NAME", help="(not offered)")
    add("--upload_dataset", "--upload-dataset", nargs="?", const="all", metavar="WHAT", help="(not offered)")
    add("--bbox_interval", "--bbox-interval", type=whole(-1), metavar="N", help="(not offered)")
    add("--artifact_alias", "--artifact-alias", metavar="NAME", help="(not offered)")


# ---- applying --------------------------------------------------------------------------------------------------------


def apply(options: TrainOptions, base: TrainConfig, here: Path = Path()) -> TrainConfig:
    """Put what was given over other settings; names of files are meant from `here`, or are those of our own files.

    Raises ConfigError; WeightsError where --weights names nothing that is there.
    """
    changes = dict(options.changes)
    if options.weights is not None:
        changes["weights"] = find_weights(options.weights, here) if options.weights else None
    if options.cfg is not None:
        changes["cfg"] = find_model(options.cfg, here)
    if options.hyp is not None:
        changes["hyp"] = read_hyp(find_hyp(options.hyp, here))
    config = replace(base, **changes)
    if options.weights == "" and config.cfg is None:
        raise ConfigError("--weights: is '', which means from scratch, and then needs a --cfg such as yolov5s.yaml")
    return config


def find_weights(text: str, here: Path = Path()) -> Path:
    """Give the path of a .pt; a bare name may be that of one in our weights/. Raises ConfigError, WeightsError."""
    check_pt("--weights", Path(text))
    found = _first_file([here / text, ROOT / text, WEIGHTS / text])
    if found is None:
        raise WeightsError(
            f"--weights: got {text[:200]!r}, there is no such file; give a .pt that is there, or '' to start from "
            "scratch (nothing is downloaded)"
        )
    return found


def find_model(text: str, here: Path = Path(), key: str = "--cfg") -> Path:
    """Give the path of a model yaml: a file, or one of models/ by its name, with or without suffix and folder.

    key: what messages call the setting. Raises ConfigError, which lists what there is.
    """
    path = Path(text)
    is_named = path.parts[:-1] in ((), ("models",), ("models", "hub"))  # where YOLOv5 keeps them
    ours = [MODELS / path.name, MODELS / f"{path.name}.yaml"] if is_named else []
    found = _first_file([here / text, ROOT / text, *ours], ".yaml", ".yml")
    if found is None:
        known = ", ".join(sorted(one.stem for one in MODELS.glob("*.yaml")))
        raise ConfigError(f"{key}: got {text[:200]!r}, need a model yaml that is there, or one of {known}")
    return found


def find_hyp(text: str, here: Path = Path()) -> Path:
    """Give the path of a hyp file: a file, or one of data/hyps as `hyp.scratch-low.yaml` or `scratch-low`.

    Raises ConfigError, which lists what there is.
    """
    name = Path(text).name
    ours = [HYPS / text, HYPS / f"{text}.yaml", HYPS / f"hyp.{text}.yaml"] if name == text else []
    found = _first_file([here / text, ROOT / text, *ours], ".yaml", ".yml")
    if found is None:
        known = ", ".join(sorted(one.name[len("hyp.") : -len(".yaml")] for one in HYPS.glob("hyp.*.yaml")))
        raise ConfigError(f"--hyp: got {text[:200]!r}, need a file that is there, or one of {known}")
    return found


def _first_file(places: Sequence[Path], *suffixes: str) -> Optional[Path]:
    """Give the first that is a file, and has one of the suffixes where some are named."""
    fitting = (place for place in places if not suffixes or place.suffix.lower() in suffixes)
    # os.path: Path's own question raises on names that are too long.
    return next((place for place in fitting if os.path.isfile(place)), None)  # noqa: PTH113
