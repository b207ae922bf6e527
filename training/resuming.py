"""Going on with a training: the state that there is, whether it is of this training, and the settings it was run with.

Nothing in last.pt is trusted: it may come from anywhere (models/resume.py reads it as weights from a stranger).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Optional

from models.checkpoint_writer import yaml_of
from models.resume import ResumeState, read_resume
from models.yolo import ModelSpec
from training.job import LAST, TrainJob
from utils.errors import ConfigError, WeightsError
from utils.hyp import Hyp, hyp_as_dict
from utils.settings import PictureSettings
from utils.train_settings import FIND_BATCH_SIZE, TrainConfig

LOGGER = logging.getLogger(__name__)

PATHS = ("weights", "cfg")
PARTS = ("about", "ema", "optimizer", "step", "loss", "stop", "accumulation", "position", "means", "best")
# What a run that goes on by itself must have in common with the one before.
KEPT = (
    *("batch_size", "img_size", "optimizer", "seed", "quad", "rect", "single_cls", "nominal_batch", "activation"),
    *("weights", "cfg", "freeze"),
)


def config_as_plain(config: TrainConfig) -> dict[str, Any]:
    """Give settings as JSON can say them."""
    plain = {one.name: getattr(config, one.name) for one in fields(config)}
    plain.update({name: str(plain[name]) if plain[name] is not None else None for name in PATHS})
    return {**plain, "hyp": hyp_as_dict(config.hyp), "pictures": asdict(config.pictures), "freeze": list(config.freeze)}


def config_from_plain(plain: Any, name: str) -> TrainConfig:
    """Read back what `config_as_plain` gave; name: of the file, for messages. Raises WeightsError."""
    try:
        known = {one.name for one in fields(TrainConfig)}
        values = {key: value for key, value in dict(plain).items() if key in known}
        values.update({key: Path(values[key]) if values.get(key) else None for key in PATHS})
        values["hyp"], values["pictures"] = Hyp(**values["hyp"]), PictureSettings(**values["pictures"])
        values["freeze"] = tuple(int(layer) for layer in values["freeze"])
        return TrainConfig(**values)
    except (ConfigError, TypeError, ValueError, KeyError, ArithmeticError) as cause:
        raise WeightsError(f"{name}: its settings can't be read ({cause}); start anew") from cause


def read_last(path: Path) -> ResumeState:
    """Read what a run goes on from. Raises WeightsError where the file holds nothing of the kind."""
    state = read_resume(path)
    if state is None:
        raise WeightsError(f"{path}: holds weights only, nothing to go on from; start anew with --weights {path}")
    if any(not isinstance(state.plain.get(part), Mapping) for part in PARTS):
        raise WeightsError(f"{path}: its part to go on from lacks something; start anew with --weights {path}")
    return state


def stored_settings(state: ResumeState) -> Mapping[str, Any]:
    """Give the settings that a run says it was told, unchecked; nothing where it says none."""
    config = state.plain["about"].get("config")
    return config if isinstance(config, Mapping) else {}


def about_run(job: TrainJob, names: tuple[str, ...], spec: ModelSpec) -> dict[str, Any]:
    """Give what last.pt says of a run: what it is of, and how it was told to train."""
    config = config_as_plain(job.config)
    return {**job.about, "task": job.task, "names": list(names), "yaml": yaml_of(spec), "config": config}


def state_to_resume(job: TrainJob, names: tuple[str, ...]) -> Optional[ResumeState]:
    """Give what the job's run is to go on from, None where it starts anew (a line says why, if there is something).

    Raises ConfigError, WeightsError where it must go on and can't.
    """
    how = job.config.resume
    if how == "never":
        return None
    last = job.resume_from or job.folders.weights / LAST
    last = last / LAST if last.is_dir() else last
    if how == "must":
        if not last.is_file():
            raise ConfigError(f"--resume: there is no {last} to go on from")
        state = read_last(last)
        _check_names(state, names, last)
        return state
    return _own_state(job, names, last) if last.is_file() else None


def _check_names(state: ResumeState, names: tuple[str, ...], last: Path) -> None:
    stored = state.plain["about"].get("names")
    if stored != list(names):
        raise WeightsError(f"{last}: was trained for other classes than the {len(names)} of this data; start anew")


def _own_state(job: TrainJob, names: tuple[str, ...], last: Path) -> Optional[ResumeState]:
    """Give what an earlier run of the same task left, if it can be gone on with."""
    try:
        state = read_last(last)
    except WeightsError as error:
        LOGGER.warning("nothing to resume from, training starts anew: %s", error)
        return None
    about = state.plain["about"]
    if about.get("task") != job.task:
        LOGGER.info("%s is of another task, training starts anew", last)
        return None
    differing = _differing(stored_settings(state), config_as_plain(job.config))
    if about.get("names") != list(names):
        differing.append("class_names")
    if differing:
        LOGGER.warning("%s was trained with another %s, training starts anew", last, ", ".join(differing))
        return None
    return state


def _differing(before: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Give the settings in which a run may not differ from the one it goes on with, and does."""
    differing = [key for key in KEPT if key not in before or _compared(key, before[key]) != _compared(key, mine[key])]
    if mine["batch_size"] == FIND_BATCH_SIZE and "batch_size" in before and "batch_size" in differing:
        differing.remove("batch_size")  # it stays what was found
    return differing


def _compared(key: str, value: Any) -> Any:
    """Give what counts of a setting: of a file its name, as /in may be mounted elsewhere."""
    return Path(value).name if key in PATHS and isinstance(value, str) else value
