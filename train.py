"""YOLOv5's train command line: trains a model on a labelled data set. start.py trains YMIR's tasks in the same way.

    python train.py --data data.yaml --weights yolov5n.pt --epochs 30
    torchrun --nproc_per_node 2 train.py --data data.yaml --weights yolov5n.pt

Modules that cost time are imported where they are needed: a wrong option is told before torch is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Optional

import yaml

from training.job import Hooks, TrainJob
from utils.console import Console
from utils.errors import ConfigError, WeightsError
from utils.files import write_whole
from utils.hyp import hyp_as_dict
from utils.process import exit_code, leave, prepare_process, stoppable
from utils.progress import Progress
from utils.run_folder import make_run_folder
from utils.train_options import (
    DEFAULT_DATA,
    DEFAULT_NAME,
    DEFAULT_PROJECT,
    DEFAULT_WEIGHTS,
    NEWEST,
    TrainOptions,
    apply,
    find_weights,
    parse_options,
)
from utils.train_settings import TrainConfig, TrainFolders
from utils.training_data import yolo_training_data


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; gives the exit code. The last line, on a failure, is its cause."""
    prepare_process("%(message)s")
    return exit_code(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> None:
    """Run one command line. Raises ExecutorError."""
    options = parse_options(argv)
    job = resumed_job(options) if options.resume_from is not None else new_job(options)
    with stoppable() as should_stop, Console("train") as console:
        hooks = Hooks(Progress(console.report), should_stop)
        if options.evolve is not None:
            if "RANK" in os.environ:
                raise ConfigError("--evolve: can't be started by torchrun; use python train.py --device 0,1")
            from training.evolving import evolve

            evolve(job, options.evolve, hooks)
            return
        from training.ranks import train

        train(job, hooks)
    if is_first_rank():
        sys.stdout.write(f"Results saved to {job.folders.logs}\n")


def is_first_rank() -> bool:
    """Say whether this process is the one of several (torchrun's) that writes."""
    return int(os.environ.get("RANK", "0") or 0) == 0


# ---- jobs ------------------------------------------------------------------------------------------------------------


def new_job(options: TrainOptions) -> TrainJob:
    """Make a job of a command line, and its run folder. Raises ConfigError, DatasetError, WeightsError."""
    from_defaults = replace(options, weights=DEFAULT_WEIGHTS) if options.weights is None else options
    config = apply(from_defaults, TrainConfig(pictures=replace(TrainConfig().pictures, turn=True)))
    data = Path(options.data or DEFAULT_DATA)
    project, name = Path(options.project or DEFAULT_PROJECT), options.name or DEFAULT_NAME
    yolo_training_data(data)  # what is wrong with it is told before there is a folder
    if "device" not in options.changes:
        config = replace(config, device=first_device())
    if not is_first_rank():  # it is told the run's folder when the ranks have met, and writes nothing
        return replace(make_job(config, data, project / name, options.plots), caches=False)
    folder = make_run_folder(project, name, options.exist_ok)
    write_settings(config, data, folder)
    return make_job(config, data, folder, options.plots)


def first_device() -> str:
    """Give what is trained on where --device says nothing: GPU 0 if there is one; torchrun's ranks find their own."""
    if "RANK" in os.environ:
        return ""
    import torch

    return "0" if torch.cuda.is_available() else ""


def make_job(config: TrainConfig, data: Path, folder: Path, draws: bool) -> TrainJob:
    """Make a job that trains in a run folder."""
    return TrainJob(
        config=config,
        open_data=partial(yolo_training_data, data),
        folders=TrainFolders(folder, folder / "weights", folder),
        about={"data": os.path.abspath(data)},  # noqa: PTH100  # links stay
        draws=draws,
    )


def resumed_job(options: TrainOptions) -> TrainJob:
    """Make the job that goes on with a run: as its last.pt says, but for what is given anew.

    Raises ConfigError, WeightsError.
    """
    from training.resuming import config_from_plain, read_last

    last = find_last(options)
    about = read_last(last).plain["about"]
    data = Path(options.data or str(about.get("data", "")))
    if options.data is None and not about.get("data"):
        raise ConfigError(f"--resume: {last} doesn't say what it was trained on; give --data")
    config = apply(options, config_from_plain(about.get("config"), str(last)))
    job = make_job(replace(config, resume="must"), data, last.parent.parent, options.plots)
    return replace(job, resume_from=last)


def find_last(options: TrainOptions) -> Path:
    """Give the last.pt that --resume means: a file, a run's folder, or the newest below --project."""
    text = options.resume_from
    if text != NEWEST:
        place = Path(str(text))
        if not place.exists():
            raise WeightsError(f"--resume: got {str(text)[:200]!r}, there is no such run's folder or last.pt")
        return place / "weights" / "last.pt" if place.is_dir() else find_weights(str(text))
    project = Path(options.project or DEFAULT_PROJECT)
    found = sorted(project.glob("*/weights/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"--resume: there is no */weights/last.pt in {project}; name one")
    return found[-1]


def write_settings(config: TrainConfig, data: Path, folder: Path) -> None:
    """Write opt.yaml and hyp.yaml, as YOLOv5 does, for people."""
    from training.resuming import config_as_plain

    options: dict[str, Any] = {"data": str(data), **config_as_plain(config)}
    hyp = hyp_as_dict(config.hyp)
    options.pop("hyp")
    for name, content in (("opt.yaml", options), ("hyp.yaml", hyp)):
        write_whole(folder / name, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


if __name__ == "__main__":
    leave(main())
