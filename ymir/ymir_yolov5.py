"""The helpers that plug-ins of the original executor call by name, over the typed code of this room.

`cfg` is what they know: an EasyDict with `cfg.ymir` (env.yaml, paths as strings) and `cfg.param` (config.yaml with
every default filled in). Paths in it are mapped already (start.py --in, --out).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import yaml
from easydict import EasyDict

from utils.files import replacing, write_whole
from ymir.config import IN_ROOT, OUT_ROOT, Roots, TaskConfig, read_task
from ymir.index import PairIndex
from ymir.params import OTHER_SPELLINGS
from ymir.results import EVALUATE_CONFIG, ModelStage, matching_files, read_stages, write_stages
from ymir.weights import choose_weights, place_weights

WEIGHT_KEYS = ("pretrained_model_params", "model_params_path")


def get_merged_config(in_dir: Union[str, Path] = IN_ROOT, out_dir: Union[str, Path] = OUT_ROOT) -> EasyDict:
    """Read env.yaml and config.yaml into the EasyDict that plug-ins know; also cfg.in_dir and cfg.out_dir."""
    return merged_config(read_task(Path(in_dir), Path(out_dir)))


def merged_config(task: TaskConfig) -> EasyDict:
    """Give the same of a task that was read already."""
    return EasyDict(
        ymir={**_as_text(task.env.model_dump()), "is_old_protocol": task.env.is_old_protocol},
        param=_merged_params(task),
        in_dir=str(task.roots.in_dir),
        out_dir=str(task.roots.out_dir),
    )


def convert_ymir_to_yolov5(cfg: EasyDict, out_dir: Union[str, Path, None] = None) -> str:
    """Write data.yaml, train.tsv, val.tsv and test.tsv (empty) into out_dir, by default /out; give data.yaml's path.

    A line is `IMAGE<TAB>ANNOTATION` with absolute paths. Lines whose `..` leads out of /in are left out.
    """
    folder = Path(out_dir or cfg.ymir.output.root_dir)
    for split, key in (("train", "training_index_file"), ("val", "val_index_file"), ("test", "")):
        file = cfg.ymir.input[key] if key else ""
        _write_pairs(folder / f"{split}.tsv", _pair_index(cfg, file))
    names = list(cfg.param.class_names)
    data = {"path": str(folder), **{split: f"{split}.tsv" for split in ("train", "val", "test")}}
    text = yaml.safe_dump({**data, "nc": len(names), "names": names}, sort_keys=False, allow_unicode=True)
    write_whole(folder / "data.yaml", text.encode("utf-8", "backslashreplace"))
    return str(folder / "data.yaml")


def get_weight_file(cfg: EasyDict) -> str:
    """Give the path of the weights that the task names, '' where none is there (SPEC section 3, Weights)."""
    key = WEIGHT_KEYS[0] if cfg.ymir.run_training else WEIGHT_KEYS[1]
    chosen = choose_weights(place_weights(cfg.param.get(key) or (), Path(cfg.ymir.input.models_dir), key))
    return str(chosen) if chosen else ""


def write_ymir_training_result(
    cfg: EasyDict,
    map50: Optional[float] = None,
    files: Sequence[Union[str, Path]] = (),
    id: str = "",  # noqa: A002  # its name since ever
    epoch: int = 0,
    weight_file: Union[str, Path] = "",
    evaluation_result: Optional[Mapping[str, float]] = None,
    evaluate_config: Optional[Mapping[str, float]] = None,
    attachments: Optional[Mapping[str, Sequence[str]]] = None,
) -> None:
    """Add a stage to result.yaml, or replace the one of its name.

    map50: the figure to publish, in 0..1; the platform expects COCO's 0.5:0.95, the name is an old one, and
    evaluation_result["mAP"] goes before it. None: the best that stands there. files: names in models_dir or the
    stage's folder, or absolute paths there; none: weight_file, or else every file of models_dir. id: the stage's
    name; none: MODEL_EPOCH with a weight_file, else MODEL_last_and_best.
    """
    output = cfg.ymir.output
    models_dir, result = Path(output.models_dir), Path(output.training_result_file)
    stages = read_stages(result)
    figure = (evaluation_result or {}).get("mAP", map50)
    if figure is None:
        figure = max((stage.mean_ap for stage in stages), default=0.0)
    name = str(id) or (f"{cfg.param.model}_{epoch}" if weight_file else f"{cfg.param.model}_last_and_best")
    name = f"stage_{name}" if name.isnumeric() else Path(name).name
    wanted = [*files] or ([weight_file] if weight_file else _files_of(models_dir, result))
    more = matching_files(models_dir, cfg.param.get("ymir_saved_file_patterns") or "")
    stage = ModelStage(
        name, tuple(_inside(file, models_dir, name) for file in (*wanted, *more)), float(figure), int(time.time())
    )
    write_stages(
        result,
        models_dir,
        [*(other for other in stages if other.name != name), stage],
        old_protocol=bool(cfg.ymir.is_old_protocol),
        attachments=attachments,
        evaluate_config=evaluate_config or EVALUATE_CONFIG,
    )


def _merged_params(task: TaskConfig) -> dict[str, Any]:
    params = task.params.model_dump()
    for other, key in OTHER_SPELLINGS.items():
        params[other] = params[key]
    for key in (*WEIGHT_KEYS, "model_param_path"):
        params[key] = [task.roots.map_text(text) for text in params[key]]
    params["class_names"] = list(params["class_names"])
    params["class_distribution_scores"] = ",".join(map(str, params["class_distribution_scores"] or ()))
    params["letterbox"] = params["letterbox"] or ("square" if task.env.run_mining else "minimal")
    # EasyDict makes every key an attribute: these would be its own.
    return {key: value for key, value in params.items() if not key.startswith("__")}


def _as_text(value: Any) -> Any:
    """Turn the paths of a dumped model into strings, None into ''."""
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else "" if value is None else value


def _pair_index(cfg: EasyDict, file: str) -> PairIndex:
    places = cfg.ymir.input
    return PairIndex(
        file=Path(file) if file else None,
        root_dir=Path(places.root_dir),
        assets_dir=Path(places.assets_dir),
        annotations_dir=Path(places.annotations_dir),
        roots=Roots(Path(cfg.in_dir), Path(cfg.out_dir)),
    )


def _write_pairs(path: Path, pairs: PairIndex) -> None:
    with replacing(path) as file:
        for pair in pairs:
            if not pair.refused:
                fields = [str(part) for part in (pair.image, pair.annotation) if part]
                file.write("\t".join(fields).encode("utf-8", "surrogateescape") + b"\n")


def _files_of(models_dir: Path, result: Path) -> list[str]:
    found = [file for file in models_dir.iterdir() if file.is_file() and file != result]
    return sorted(file.name for file in found if not file.name.startswith("."))


def _inside(file: Union[str, Path], models_dir: Path, stage: str) -> str:
    """Give a file's name as a stage lists it: relative to the stage's folder or to models_dir."""
    path = Path(os.path.normpath(models_dir / file))
    for folder in (models_dir / stage, models_dir):
        if folder in path.parents:
            return str(path.relative_to(folder))
    return str(file)
