"""config.yaml's keys: one default and one conversion for each (SPEC section 3).

The platform's form turns everything into strings and drops what is empty or false, so an empty value means the
default, and each value is read from any spelling that says the same.
"""

# No `from __future__ import annotations`: pydantic would have to evaluate every annotation again, at every start.
import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Optional

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, model_validator

from utils.class_names import unusable_names
from utils.errors import ConfigError, ObjectTypeError
from utils.safe_yaml import parse_yaml
from utils.settings import (
    BACKENDS,
    CALD_EMPTIES,
    CALD_MODES,
    DECODES,
    ENTROPIES,
    LETTERBOX_NAMES,
    MINING_ALGORITHMS,
    MOST_SIDE_PX,
    PRECISIONS,
)

OBJECT_TYPE_DETECTION = 2
RESUMES = ("auto", "never")
LARGEST = 2**31 - 1  # a whole number without a limit of its own
MOST_BATCH, MOST_THREADS = 65_536, 1024  # beyond these it can only be a slip
MOST_PATTERN_LETTERS = 250  # Python takes 20 ms to compile some five letters: (?i)[\0-\U0010ffff]
SHOWN = 80  # characters of a wrong value that a message repeats
TRUE_WORDS = ("true", "1", "yes", "on", "t", "y")
FALSE_WORDS = ("false", "0", "no", "off", "f", "n")
OTHER_SPELLINGS = {"activate": "activation", "model_param_path": "model_params_path"}


def brief(value: Any) -> str:
    """Give a value as a message may show it: one line of at most 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = "a huge number"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


# Conversions. Each gives a validator which raises ValueError("need ...") for what it can't convert.


def whole(least: int, most: int = LARGEST) -> PlainValidator:
    """Read a whole number from `least` to `most`; '16', 16.0 and '1e2' are whole numbers, True is none."""
    return PlainValidator(lambda value: _to_whole(value, least, most))


def number(least: float, most: float = math.inf) -> PlainValidator:
    """Read a finite number from `least` to `most`."""
    return PlainValidator(lambda value: _to_number(value, least, most))


def choice(allowed: tuple[str, ...]) -> PlainValidator:
    """Read one of a few words, in any case."""

    def convert(value: Any) -> str:
        word = value.strip().lower() if isinstance(value, str) else value
        if word not in allowed:
            raise ValueError(f"need one of {', '.join(allowed)}")
        return str(word)

    return PlainValidator(convert)


def _to_whole(value: Any, least: int, most: int) -> int:
    need = f"need a whole number of at least {least}" if most == LARGEST else f"need a whole number, {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(need)
    try:
        result = int(value)
        exact = isinstance(value, str) or result == value
    except (ValueError, OverflowError):  # '1e2', 'abc', inf
        result, exact = _whole_from_float(value)
    if exact and result > most:
        raise ValueError(f"need a whole number, {least} to {most}")
    if not exact or result < least:
        raise ValueError(need)
    return result


def _whole_from_float(value: Any) -> tuple[int, bool]:
    try:
        real = float(value)
    except (ValueError, OverflowError):
        return 0, False
    return (int(real), True) if real.is_integer() else (0, False)


def _to_number(value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    limits = f"a number of at least {least:g}" if most == math.inf else f"a number from {least:g} to {most:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"need {limits}")
    try:
        result = float(value)
    except (ValueError, OverflowError):
        result = math.nan
    if not (math.isfinite(result) and least <= result <= most):
        raise ValueError(f"need {limits}")
    return result


def to_flag(value: Any) -> bool:
    """Read a boolean from any of its spellings; '' is false. Raises ValueError("need ...")."""
    if isinstance(value, (bool, int, str)):
        word = str(value).strip().lower()
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS or word == "":
            return False
    raise ValueError("need True or False")


def _to_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("need a text")
    return str(value).strip()


def _to_list(value: Any) -> list[Any]:
    """Read a list, a list that was turned into a string ("['a', 'b']"), or a text with commas."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str):
        return [value]
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            items = parse_yaml(text.encode(), "list")
        except (ConfigError, UnicodeEncodeError):
            raise ValueError("need a list") from None
        return list(items)
    return [item.strip() for item in text.split(",")]


def _to_texts(value: Any) -> tuple[str, ...]:
    """Read a list of texts, none of them empty."""
    items = _to_list(value)
    if not all(isinstance(item, str) and item.strip() for item in items):
        raise ValueError("need a list of texts, none of them empty (put quotes around numbers, yes and no)")
    return tuple(items)


def _to_class_names(value: Any) -> tuple[str, ...]:
    """Read the names of the classes: at least one, each once."""
    names = _to_texts(value)
    if len(set(names)) < len(names):
        doubled = Counter(names).most_common(1)[0][0]
        raise ValueError(f"need each name once, {brief(doubled)} comes twice")
    if not names:
        raise ValueError("need at least one name")
    need = unusable_names(names)
    if need:
        raise ValueError(need)
    return names


def _to_class_weights(value: Any) -> Optional[tuple[float, ...]]:
    need = "need a list of finite numbers of at least 0, such as 1.0,1.0,0.1"
    try:
        weights = tuple(_to_number(item, least=0.0) for item in _to_list(value))
    except ValueError:
        raise ValueError(need) from None
    return weights or None


def _to_gpu_ids(value: Any) -> str:
    """Read "0,1", "0, 1", 0 or [0, 1] into "0,1"; "cpu" into "". Whether the devices exist is not asked here."""
    if isinstance(value, str) and value.strip().lower() == "cpu":
        return ""
    ids = [str(item).strip() for item in _to_list(value)]
    plain = all(re.fullmatch(r"[0-9]{1,4}", item) for item in ids) and not isinstance(value, bool)
    if not plain or len({int(item) for item in ids}) < len(ids):
        raise ValueError("need indices of GPUs, each once, such as 0,1, or '' for the CPU")
    return ",".join(str(int(item)) for item in ids)


def _to_patterns(value: Any) -> str:
    """Check comma-separated regular expressions; they stay one text."""
    text = _to_text(value)
    if len(text) > MOST_PATTERN_LETTERS:
        raise ValueError(f"need regular expressions of at most {MOST_PATTERN_LETTERS} letters together")
    for pattern in text.split(","):
        try:
            re.compile(pattern.strip())
        except (re.error, RecursionError, OverflowError):
            raise ValueError(f"need regular expressions, {brief(pattern.strip())} is none") from None
    return text


def _to_object_type(value: Any) -> int:
    try:
        return _to_whole(value, OBJECT_TYPE_DETECTION, OBJECT_TYPE_DETECTION)
    except ValueError:
        # Not a ValueError: pydantic lets it through, and the task ends with a code of its own.
        raise ObjectTypeError(f"object_type: got {brief(value)}, need 2: this image detects (config.yaml)") from None


Flag = Annotated[bool, PlainValidator(to_flag)]
Text = Annotated[str, PlainValidator(_to_text)]
Texts = Annotated[tuple[str, ...], PlainValidator(_to_texts)]


class TaskParams(BaseModel):
    """Every key of config.yaml, converted and checked; each default is the templates' value.

    Keys that we don't know are kept (`model_extra`) and ignored.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    # given by the platform
    object_type: Annotated[int, PlainValidator(_to_object_type)] = OBJECT_TYPE_DETECTION
    class_names: Annotated[tuple[str, ...], PlainValidator(_to_class_names)] = ()  # read_task wants at least one
    gpu_id: Annotated[str, PlainValidator(_to_gpu_ids)] = ""  # "" = CPU, else indices inside the container
    gpu_count: Annotated[int, whole(0)] = 0
    task_id: Text = ""
    pretrained_model_params: Texts = ()
    model_params_path: Texts = ()
    shm_size: Text = "128G"
    export_format: Text = "ark:raw"  # whether it was given: "export_format" in params.model_fields_set

    # all tasks
    batch_size_per_gpu: Annotated[int, whole(1, MOST_BATCH)] = 16
    num_workers_per_gpu: Annotated[int, whole(0)] = 4
    img_size: Annotated[int, whole(1, MOST_SIDE_PX)] = 640
    precision: Annotated[str, choice(PRECISIONS)] = "auto"
    decode: Annotated[str, choice(DECODES)] = "exact"
    max_pixels: Annotated[int, whole(1)] = 200_000_000
    seed: Annotated[int, whole(0, 2**63 - 1)] = 0
    resume: Annotated[str, choice(RESUMES)] = "auto"

    # training
    model: Text = "yolov5s"
    epochs: Annotated[int, whole(1)] = 100
    opset: Annotated[int, whole(9, 20)] = 11  # what torch's exporter writes
    args_options: Text = "--exist-ok"
    save_best_only: Flag = True
    save_period: Annotated[int, whole(1)] = 10
    sync_bn: Flag = False
    activation: Text = ""  # "" = the model's own
    ymir_saved_file_patterns: Annotated[str, PlainValidator(_to_patterns)] = ""
    nominal_batch: Annotated[int, whole(1)] = 64

    # inference and mining
    conf_thres: Annotated[float, number(0, 1)] = 0.25
    iou_thres: Annotated[float, number(0, 1)] = 0.45
    pin_memory: Flag = False
    backend: Annotated[str, choice(BACKENDS)] = "auto"
    letterbox: Annotated[str, choice(LETTERBOX_NAMES)] = ""  # "" = the task's own: infer minimal, mining square
    max_det: Annotated[int, whole(1)] = 300
    threads_per_rank: Annotated[int, whole(0, MOST_THREADS)] = 0

    # mining
    mining_algorithm: Annotated[str, choice(MINING_ALGORITHMS)] = "aldd"
    class_distribution_scores: Annotated[Optional[tuple[float, ...]], PlainValidator(_to_class_weights)] = None
    entropy_of: Annotated[str, choice(ENTROPIES)] = "objectness"
    cald_mode: Annotated[str, choice(CALD_MODES)] = "paper"
    cald_empty: Annotated[str, choice(CALD_EMPTIES)] = "first"
    cald_balance: Flag = False
    budget: Annotated[int, whole(0)] = 0
    diversity: Annotated[float, number(0)] = 0.0
    class_balance: Annotated[float, number(0)] = 0.0
    dedup: Flag = False
    dedup_threshold: Annotated[float, number(0, 1)] = 0.97
    explore: Annotated[float, number(0, 1)] = 0.0
    mining_report: Flag = False

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, raw: Any) -> Any:
        """Leave out what means "the default", and bring other spellings to one."""
        if not isinstance(raw, Mapping):
            return raw
        given = {key: value for key, value in raw.items() if isinstance(key, str) and not _is_empty(value)}
        for other, key in OTHER_SPELLINGS.items():
            if other in given:
                given.setdefault(key, given[other])
        return given


KNOWN_KEYS = (*TaskParams.model_fields, *OTHER_SPELLINGS)


def nearest_key(key: str) -> Optional[str]:
    """Give the key that somebody may have meant by one that nobody reads."""
    near = difflib.get_close_matches(key.lower(), KNOWN_KEYS, n=1, cutoff=0.7)
    return near[0] if near else None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def read_params(raw: Mapping[Any, Any], file_name: str = "config.yaml") -> TaskParams:
    """Convert config.yaml's mapping; the first value that can't be used raises ConfigError."""
    try:
        return TaskParams.model_validate(raw)
    except ValidationError as cause:
        wrong = cause.errors(include_url=False)[0]
    key = str(wrong["loc"][0])
    if key not in raw:
        key = next(other for other, known in OTHER_SPELLINGS.items() if known == key)
    need = wrong["ctx"]["error"]
    raise ConfigError(f"{key}: got {brief(wrong['input'])}, {need} ({file_name})") from None
