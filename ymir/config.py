"""env.yaml and config.yaml, read once, checked and frozen: what the platform wants this container to do.

Fast on purpose: a wrong key must be told before anything heavy is imported, so nothing here knows numpy or torch.
"""

# No `from __future__ import annotations`: pydantic would have to evaluate every annotation again, at every start.
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from pydantic import ConfigDict
from ymir_exc.env import EnvConfig, EnvInputConfig, EnvOutputConfig

from utils.errors import ConfigError
from utils.safe_yaml import read_yaml
from utils.settings import EngineSettings, InferConfig, LoaderSettings, MiningConfig, NmsSettings, PictureSettings
from ymir.params import TaskParams, brief, read_params, to_flag

LOGGER = logging.getLogger(__name__)

IN_ROOT, OUT_ROOT = "/in", "/out"
ENV_FILE = "env.yaml"
DEFAULT_TASK = "default-task"
TASKS = ("run_training", "run_mining", "run_infer")

# Where things lie when env.yaml doesn't say (protocol 0.x and 1.0.0): relative to root_dir, as the platform lays them.
INPUT_PATHS = {
    "assets_dir": "assets",
    "annotations_dir": "annotations",
    "models_dir": "models",
    "training_index_file": "",
    "val_index_file": "",
    "candidate_index_file": "",
    "config_file": "config.yaml",
}
OUTPUT_PATHS = {
    "models_dir": "models",
    "tensorboard_dir": "tensorboard",
    "training_result_file": "models/result.yaml",
    "mining_result_file": "result.tsv",
    "infer_result_file": "infer-result.json",
    "monitor_file": "monitor.txt",
    "executor_log_file": "ymir-executor-out.log",
}
INDEX_FILES = ("training_index_file", "val_index_file", "candidate_index_file")


@dataclass(frozen=True)
class Roots:
    """Where /in and /out really lie: start.py's --in and --out."""

    in_dir: Path = Path(IN_ROOT)
    out_dir: Path = Path(OUT_ROOT)

    def map_text(self, text: str) -> str:
        """Replace a leading /in or /out (that very component); other texts come back as they are."""
        for root, folder in ((IN_ROOT, self.in_dir), (OUT_ROOT, self.out_dir)):
            if text.startswith(root) and text[len(root) : len(root) + 1] in ("", "/"):
                return f"{folder}{text[len(root) :]}"
        return text


# The platform's own types, frozen, with mapped absolute paths for its strings.


class EnvInput(EnvInputConfig):  # type: ignore[misc]  # ymir_exc has no types
    """The input section of env.yaml. None: an index file that the task doesn't use."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    root_dir: Path
    assets_dir: Path
    annotations_dir: Path
    models_dir: Path
    training_index_file: Optional[Path]
    val_index_file: Optional[Path]
    candidate_index_file: Optional[Path]
    config_file: Path


class EnvOutput(EnvOutputConfig):  # type: ignore[misc]  # ymir_exc has no types
    """The output section of env.yaml."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    root_dir: Path
    models_dir: Path
    tensorboard_dir: Path
    training_result_file: Path
    mining_result_file: Path
    infer_result_file: Path
    monitor_file: Path
    executor_log_file: Path


class Env(EnvConfig):  # type: ignore[misc]  # ymir_exc has no types
    """env.yaml: which tasks to run, and where everything lies."""

    model_config = ConfigDict(frozen=True)

    protocol_version: str  # "" = older than the key: 0.x
    task_id: str
    run_training: bool
    run_mining: bool
    run_infer: bool
    input: EnvInput
    output: EnvOutput
    manifest_file: Optional[Path]

    @property
    def is_old_protocol(self) -> bool:
        """Say whether the platform speaks a protocol before 1.0.0, which has other result forms."""
        version: str = self.protocol_version
        return re.match(r"\s*v?0*(\.|$)", version) is not None


@dataclass(frozen=True)
class TaskConfig:
    """One task: where everything lies, what the user chose, and config.yaml as it was read."""

    env: Env
    params: TaskParams
    raw: Mapping[str, Any]
    roots: Roots


def read_task(in_dir: Path = Path(IN_ROOT), out_dir: Path = Path(OUT_ROOT), env: Optional[Env] = None) -> TaskConfig:
    """Read env.yaml, unless `env` was read already, and the configuration it names.

    Raises ConfigError or ObjectTypeError, in one line.
    """
    env = read_env(in_dir, out_dir) if env is None else env
    file: Path = env.input.config_file
    raw = _read_mapping(file)
    params = read_params(raw, file.name)
    if not params.class_names:
        raise ConfigError(f"class_names: is missing or empty, need at least one name ({file.name})")
    return TaskConfig(env, params, raw, _roots(in_dir, out_dir))


def read_env(in_dir: Path = Path(IN_ROOT), out_dir: Path = Path(OUT_ROOT)) -> Env:
    """Read in_dir/env.yaml; every path comes back absolute, with /in and /out mapped."""
    roots = _roots(in_dir, out_dir)
    raw = _read_mapping(roots.in_dir / ENV_FILE)
    flags = {task: _read_flag(raw, task) for task in TASKS}
    if not any(flags.values()):
        raise ConfigError(f"{', '.join(TASKS)}: all are false, need one that is true ({ENV_FILE})")
    version = _clean(raw.get("protocol_version"))
    if not version:
        LOGGER.info("%s has no protocol_version: results are written as for protocols before 1.0.0", ENV_FILE)
    manifest = _read_path(raw, "manifest_file", "")
    output = _read_section(raw, "output", OUT_ROOT, OUTPUT_PATHS, roots)
    _keep_inside(output, roots.out_dir)
    return Env(
        task_id=_clean(raw.get("task_id")) or DEFAULT_TASK,
        protocol_version=version,
        **flags,
        input=EnvInput(**_read_section(raw, "input", IN_ROOT, INPUT_PATHS, roots)),
        output=EnvOutput(**output),
        manifest_file=Path(roots.map_text(manifest)) if manifest else None,
    )


def read_task_id(in_dir: Path) -> str:
    """Give env.yaml's task_id, also where the rest of it is wrong; default-task where it can't be read."""
    with suppress(ConfigError):
        return _clean(_read_mapping(in_dir / ENV_FILE).get("task_id")) or DEFAULT_TASK
    return DEFAULT_TASK


def _keep_inside(output: Mapping[str, Optional[Path]], out_dir: Path) -> None:
    """Refuse output paths that lead out of /out, by their letters: nothing is written anywhere else."""
    for key, path in output.items():
        if path is not None and path != out_dir and out_dir not in path.parents:
            raise ConfigError(f"output.{key}: got {brief(str(path))}, need a path in {out_dir} ({ENV_FILE})")


def _roots(in_dir: Path, out_dir: Path) -> Roots:
    # Not resolved: a link stays the name that the user gave.
    return Roots(Path(os.path.abspath(in_dir)), Path(os.path.abspath(out_dir)))  # noqa: PTH100


def _read_mapping(file: Path) -> dict[str, Any]:
    content = read_yaml(file, ConfigError)
    if content is None:
        raise ConfigError(f"{file}: is empty, need a mapping of keys to values")
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: holds a {type(content).__name__}, need a mapping of keys to values")
    return content


def _read_flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key)
    try:
        return value is not None and to_flag(value)
    except ValueError as need:
        raise ConfigError(f"{key}: got {brief(value)}, {need} ({ENV_FILE})") from None


def _clean(value: Any) -> str:
    """Give a value as one line without tabs; a list or a mapping counts as missing."""
    return " ".join(str(value).split()) if isinstance(value, (str, int, float)) else ""


def _read_path(section: Mapping[str, Any], key: str, default: str, name: str = "") -> str:
    value = section.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{name or key}: got {brief(value)}, need a path ({ENV_FILE})")
    return value.strip() or default


def _read_section(
    raw: Mapping[str, Any], name: str, root_default: str, defaults: Mapping[str, str], roots: Roots
) -> dict[str, Optional[Path]]:
    """Read the paths of one section: absolute ones mapped, relative ones below the section's root_dir."""
    section = {} if raw.get(name) is None else raw[name]
    if not isinstance(section, dict):
        raise ConfigError(f"{name}: got {brief(section)}, need a mapping ({ENV_FILE})")
    root = os.path.abspath(roots.map_text(_read_path(section, "root_dir", root_default, f"{name}.root_dir")))  # noqa: PTH100
    paths: dict[str, Optional[Path]] = {"root_dir": Path(root)}
    for key, default in defaults.items():
        text = roots.map_text(_read_path(section, key, default, f"{name}.{key}"))
        # normpath, not resolve: /in/assets may be a link to a folder outside, and must stay under its own name.
        paths[key] = Path(os.path.normpath(f"{root}/{text}" if not text.startswith("/") else text)) if text else None
    return paths


def infer_config(task: TaskConfig) -> InferConfig:
    """Give inference what it reads of the task.

    With mining and inference at once config.yaml holds the mining form. Keys that both know (img_size, conf_thres,
    batch_size_per_gpu and the like) are the user's and hold for both; letterbox is not taken over, since the form
    then names mining's own default: inference keeps "minimal".
    """
    params = task.params
    letterbox = "" if task.env.run_mining else params.letterbox
    return InferConfig(
        class_names=params.class_names,
        loader=_loader(params, letterbox or "minimal"),
        engine=_engine(params, params.precision, params.backend),
        nms=_nms(params),
    )


def mining_config(task: TaskConfig) -> MiningConfig:
    """Give mining what it reads of the task. Its precision "auto" is fp32: others change the order (SPEC section 3)."""
    params = task.params
    precision = "fp32" if params.precision == "auto" else params.precision
    return MiningConfig(
        class_names=params.class_names,
        algorithm=params.mining_algorithm,
        seed=params.seed,
        entropy_of=params.entropy_of,
        class_distribution_scores=params.class_distribution_scores,
        cald_mode=params.cald_mode,
        cald_empty=params.cald_empty,
        cald_balance=params.cald_balance,
        budget=params.budget,
        diversity=params.diversity,
        class_balance=params.class_balance,
        dedup=params.dedup,
        dedup_threshold=params.dedup_threshold,
        explore=params.explore,
        report=params.mining_report,
        loader=_loader(params, params.letterbox or "square"),
        engine=_engine(params, precision, params.backend),
        nms=_nms(params),
    )


def _loader(params: TaskParams, letterbox: str) -> LoaderSettings:
    return LoaderSettings(
        img_size=params.img_size,
        letterbox=letterbox,
        batch_size=params.batch_size_per_gpu,
        workers=params.num_workers_per_gpu,
        pictures=PictureSettings(decode=params.decode, max_pixels=params.max_pixels),
    )


def _engine(params: TaskParams, precision: str, backend: str) -> EngineSettings:
    return EngineSettings(
        device=params.gpu_id,
        precision=precision,
        backend=backend,
        threads=params.threads_per_rank,
        pin_memory=params.pin_memory,
    )


def _nms(params: TaskParams) -> NmsSettings:
    return NmsSettings(conf_thres=params.conf_thres, iou_thres=params.iou_thres, max_det=params.max_det)
