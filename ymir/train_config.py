"""config.yaml's training keys and args_options -> what a training is told (SPEC section 3). No torch here."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional, TypeVar

from utils.errors import ConfigError, WeightsError
from utils.labels import detect_format
from utils.process import one_line
from utils.settings import PictureSettings
from utils.train_options import MODELS, NEWEST, ROOT, WEIGHTS, TrainOptions, apply, find_model, parse_options
from utils.train_settings import TrainConfig
from ymir.config import TaskConfig
from ymir.params import brief
from ymir.weights import task_weights

LOGGER = logging.getLogger(__name__)

Result = TypeVar("Result")

DATA_FILE = "data.yaml"  # of the task, in /out
LAST_FILE = "last.pt"
MOST_WORDS = 1000  # of args_options: argparse takes the square of them, ten seconds for 15,000


@dataclass(frozen=True)
class TrainTask:
    """One training task: what the training is told, and what the platform wants of it."""

    config: TrainConfig
    class_names: tuple[str, ...]
    export_format: str  # of the annotations, such as voc:raw; "": they tell it themselves
    opset: int  # of the ONNX file
    saved_file_patterns: str  # regular expressions with commas between: more files of /out/models to list
    evolve: Optional[int] = None  # generations of a search for hyperparameters
    resume_from: Optional[Path] = None  # a last.pt; None: that in /out/models
    plots: bool = True

    @property
    def save_best_only(self) -> bool:
        """Whether the best stage is the only one."""
        return self.config.save_period < 1

    @property
    def save_period(self) -> int:
        """Every so many epochs another stage is kept; below 1: never."""
        return self.config.save_period


def train_config(task: TaskConfig) -> TrainTask:
    """Give training what it reads of the task: the keys, and over them args_options.

    Raises ConfigError, which names key or option, value and what is allowed; WeightsError.
    """
    params = task.params
    export_format = params.export_format if "export_format" in params.model_fields_set else ""
    detect_format(export_format, ())
    options = read_options(task)
    weights, cfg, why = choose_start(task, options)
    base = _told(lambda: replace(_from_keys(task), weights=weights, cfg=cfg), "")
    config = _told(lambda: apply(options, base, ROOT))
    _tell_of_start(config, why)
    gpus = _gpu_count(task)
    if config.batch_size % gpus and config.batch_size > 0:
        raise ConfigError(
            f"args_options: --batch-size: got {config.batch_size} for {gpus} GPUs together, need a multiple of {gpus} "
            "(config.yaml)"
        )
    return TrainTask(
        config=config,
        class_names=params.class_names,
        export_format=export_format,
        opset=params.opset,
        saved_file_patterns=params.ymir_saved_file_patterns,
        evolve=options.evolve,
        resume_from=_resume_path(task, options),
        plots=options.plots,
    )


def _gpu_count(task: TaskConfig) -> int:
    return len(task.params.gpu_id.split(","))  # "" is the CPU: one


def _from_keys(task: TaskConfig) -> TrainConfig:
    """Give the settings that the keys stand for, without the network to start from."""
    params = task.params
    return TrainConfig(
        epochs=params.epochs,
        batch_size=params.batch_size_per_gpu * _gpu_count(task),
        img_size=params.img_size,
        nominal_batch=params.nominal_batch,
        activation=params.activation,
        workers=params.num_workers_per_gpu,
        device=params.gpu_id,
        sync_bn=params.sync_bn,
        precision=params.precision,
        seed=params.seed,
        save_period=-1 if params.save_best_only else params.save_period,
        resume=params.resume,
        pictures=PictureSettings(decode=params.decode, max_pixels=params.max_pixels),
    )


# ---- args_options ----------------------------------------------------------------------------------------------------


def read_options(task: TaskConfig) -> TrainOptions:
    """Read args_options, split as a shell would; paths come back as those of this machine. Raises ConfigError."""
    text = task.params.args_options
    try:
        argv = shlex.split(text)
    except ValueError as cause:
        words = str(cause)[:1].lower() + str(cause)[1:]
        raise ConfigError(
            f"args_options: got {brief(text)}, need options as a shell splits them: {words} (config.yaml)"
        ) from None
    if len(argv) > MOST_WORDS:
        raise ConfigError(f"args_options: got {len(argv)} words, need at most {MOST_WORDS} (config.yaml)")
    options = _told(lambda: parse_options(argv, with_help=False))
    _keep_to_the_task(task, options)
    return replace(
        options,
        changes={key: value for key, value in options.changes.items() if key != "device"},
        weights=_readable(task, "--weights", options.weights),
        cfg=_readable(task, "--cfg", options.cfg),
        hyp=_readable(task, "--hyp", options.hyp),
    )


def _keep_to_the_task(task: TaskConfig, options: TrainOptions) -> None:
    """Refuse another data set, folder or device than the task's."""
    root, models_dir = task.env.output.root_dir, task.env.output.models_dir

    def path_of(text: Optional[str]) -> Optional[Path]:
        return None if text is None else _absolute(task, text, root)

    device = options.changes.get("device")
    own = (
        ("--data", options.data, path_of(options.data), root / DATA_FILE),
        ("--project", options.project, path_of(options.project), models_dir.parent),
        ("--name", options.name, options.name, models_dir.name),
        ("--device", device, None if device is None else _device_ids(device), task.params.gpu_id),
    )
    for option, text, given, of_task in own:
        if given is not None and given != of_task:
            raise ConfigError(
                f"args_options: {option}: got {brief(text)}, the task's is {str(of_task) or 'cpu'}; leave it out "
                "(config.yaml)"
            )


def _device_ids(text: str) -> str:
    """Give a checked --device text as gpu_id has it: `cuda:0,1` is `0,1`, cpu and '' are ''."""
    cleaned = text.lower().replace("cuda:", "")
    return "" if cleaned in ("", "cpu", "-1") else ",".join(str(int(part)) for part in cleaned.split(","))


def _absolute(task: TaskConfig, text: str, folder: Path) -> Path:
    """Give a path without its dots, by its letters: links stay. /in and /out are mapped."""
    return Path(os.path.normpath(folder / task.roots.map_text(text)))


def _readable(task: TaskConfig, key: str, text: Optional[str], where: str = "args_options: ") -> Optional[str]:
    """Give the path of a file of the image or under /in, or the bare name of one of the image."""
    if not text:
        return text
    path = _absolute(task, text, ROOT)
    if not any(folder in path.parents for folder in (ROOT, task.roots.in_dir)):
        raise ConfigError(f"{where}{key}: got {brief(text)}, need a file of the image or under /in (config.yaml)")
    return text if Path(text).name == text else str(path)


def _resume_path(task: TaskConfig, options: TrainOptions) -> Optional[Path]:
    text = options.resume_from
    if text is None or text == NEWEST:
        return None
    models_dir = task.env.output.models_dir
    path = _absolute(task, text, models_dir)
    if path != models_dir and not any(folder in path.parents for folder in (models_dir, task.roots.in_dir)):
        raise ConfigError(
            f"args_options: --resume: got {brief(text)}, need a file in {models_dir} or under /in (config.yaml)"
        )
    last = path / LAST_FILE if os.path.isdir(path) else path  # noqa: PTH112  # Path's own raises on long names
    if not os.path.isfile(last):  # noqa: PTH113
        there = one_line(str(last))
        raise WeightsError(f"args_options: --resume: got {brief(text)}, there is no file {there} (config.yaml)")
    return last


def _told(read: Callable[[], Result], where: str = "args_options: ") -> Result:
    """Name config.yaml and its key in what is wrong with an option."""
    try:
        return read()
    except (ConfigError, WeightsError) as cause:
        raise type(cause)(f"{where}{one_line(str(cause))} (config.yaml)") from None


# ---- where it starts -------------------------------------------------------------------------------------------------


def choose_start(task: TaskConfig, options: TrainOptions) -> tuple[Optional[Path], Optional[Path], str]:
    """Choose what training starts from: weights, or a model yaml and fresh weights; and say why.

    Weights of the task, else the image's for the model, else none; what args_options says comes before them. Raises
    ConfigError for a model that isn't there, WeightsError for weights that can't be trained.
    """
    text = _readable(task, "model", task.params.model, "") or ""
    model = _told(lambda: find_model(text, ROOT, "model"), "")
    if options.weights is not None:  # "": from scratch
        return None, None if options.weights else model, "args_options says so"
    given = task_weights(task)
    if given is not None and given.suffix.lower() != ".pt":
        raise WeightsError(f"{given}: only .pt weights can be trained; give pretrained_model_params one (config.yaml)")
    if given is not None:
        return given, None, "the task names it, and its own model description counts"
    named = task.params.pretrained_model_params
    why = "pretrained_model_params names none that is there" if named else "the task names no weights"
    shipped = WEIGHTS / f"{model.stem}.pt"
    if model.parent == MODELS and shipped.is_file():
        return shipped, None, why
    return None, model, why


def _tell_of_start(config: TrainConfig, why: str) -> None:
    if config.weights is not None:
        LOGGER.info("training starts from %s, since %s", config.weights, why)
    else:
        # Weights that are named but not there are a likely slip, and cost a whole training.
        level = logging.WARNING if "names none" in why else logging.INFO
        LOGGER.log(level, "training starts from scratch with %s, since %s", config.cfg, why)
