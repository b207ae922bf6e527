"""env.yaml and config.yaml: what the platform and people write, and how a wrong value is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.ymir.conftest import ENV, Task
from utils.errors import ConfigError, ObjectTypeError
from ymir.config import Roots, TaskConfig, infer_config, mining_config, read_env, read_task
from ymir.params import OTHER_SPELLINGS, TaskParams, read_params

Write = Callable[..., Task]


def read(task: Task) -> TaskConfig:
    return read_task(task.in_dir, task.out_dir)


# env.yaml


def test_paths_come_back_absolute_and_mapped(write_task: Write) -> None:
    task = write_task()
    env = read(task).env
    assert env.input.assets_dir == task.in_dir / "assets"
    assert env.input.candidate_index_file == task.in_dir / "candidate-index.tsv"
    assert env.output.training_result_file == task.out_dir / "models/result.yaml"
    assert env.output.monitor_file == task.out_dir / "monitor.txt"


def test_env_can_be_read_first_so_that_a_wrong_config_can_be_reported(write_task: Write) -> None:
    task = write_task(config={"epochs": "x"})
    env = read_env(task.in_dir, task.out_dir)
    with pytest.raises(ConfigError, match="epochs"):
        read_task(task.in_dir, task.out_dir, env)
    task.write()
    assert read_task(task.in_dir, task.out_dir, env).env is env


def test_an_index_file_that_the_task_does_not_use_is_none(write_task: Write) -> None:
    env = read(write_task()).env
    assert env.input.training_index_file is None
    assert env.input.val_index_file is None


def test_types_are_the_platforms_own_and_frozen(write_task: Write) -> None:
    from ymir_exc.env import EnvConfig

    env = read(write_task()).env
    assert isinstance(env, EnvConfig)
    for holder, key in ((env, "task_id"), (env.input, "root_dir"), (env.output, "root_dir")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(holder, key, "x")


def test_old_env_with_relative_paths_strings_and_few_keys(task_dirs: Task) -> None:
    task = task_dirs.write(
        """
        task_id: 17
        run_infer: 'True'
        input: {root_dir: /in, assets_dir: assets, candidate_index_file: lists/candidate.tsv}
        output: {root_dir: /out, training_result_file: result.yaml}
        """
    )
    env = read(task).env
    assert env.task_id == "17"
    assert env.run_infer is True
    assert env.run_training is False
    assert env.is_old_protocol
    assert env.input.candidate_index_file == task.in_dir / "lists/candidate.tsv"
    assert env.input.models_dir == task.in_dir / "models"
    assert env.output.training_result_file == task.out_dir / "result.yaml"
    assert env.output.infer_result_file == task.out_dir / "infer-result.json"


def test_env_without_sections_takes_the_usual_layout(task_dirs: Task) -> None:
    env = read(task_dirs.write("run_mining: true\n")).env
    assert env.input.config_file == task_dirs.in_dir / "config.yaml"
    assert env.output.mining_result_file == task_dirs.out_dir / "result.tsv"
    assert env.task_id == "default-task"


@pytest.mark.parametrize(
    ("version", "is_old"),
    [("", True), ("0.0.1", True), ("0.9", True), ("1.0.0", False), ("1.1.0", False), ("2.0", False), ("10.0", False)],
)
def test_protocols_before_one_are_old(write_task: Write, version: str, is_old: bool) -> None:
    assert read(write_task(env={"protocol_version": version})).env.is_old_protocol is is_old


def test_version_that_yaml_reads_as_a_number(write_task: Write) -> None:
    assert read(write_task(env={"protocol_version": 1.0})).env.is_old_protocol is False
    assert read(write_task(env={"protocol_version": 0.2})).env.is_old_protocol is True


def test_task_id_loses_tabs_and_line_breaks(write_task: Write) -> None:
    assert read(write_task(env={"task_id": "a\tb\nc "})).env.task_id == "a b c"


def test_manifest_file_is_optional(write_task: Write) -> None:
    assert read(write_task()).env.manifest_file is None
    assert read(write_task(env={"manifest_file": "/img-man/manifest.yaml"})).env.manifest_file == Path(
        "/img-man/manifest.yaml"
    )


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ("", "env.yaml: is empty"),
        ("- a\n- b\n", "env.yaml: holds a list"),
        ("just words\n", "env.yaml: holds a str"),
        ("{unclosed: [\n", "env.yaml line 2: is not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
        ("\x00\x01\x02", "is not valid YAML"),
        ({"run_infer": False}, "run_training, run_mining, run_infer: all are false"),
        ({"run_infer": "perhaps"}, "run_infer: got 'perhaps', need True or False (env.yaml)"),
        ({"run_infer": [True]}, "run_infer: got [True], need True or False (env.yaml)"),
        ({"input": "/in"}, "input: got '/in', need a mapping (env.yaml)"),
        ({"output": ["/out"]}, "output: got ['/out'], need a mapping (env.yaml)"),
        ({"input": {"root_dir": 5}}, "input.root_dir: got 5, need a path (env.yaml)"),
        ({"output": {"monitor_file": ["a"]}}, "output.monitor_file: got ['a'], need a path (env.yaml)"),
    ],
)
def test_wrong_env_is_told_in_one_line(write_task: Write, env: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(write_task(env=env))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_env_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"env\.yaml: No such file"):
        read_env(tmp_path, tmp_path)


def test_env_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "env.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_env(tmp_path, tmp_path)


# --in and --out


@pytest.mark.parametrize(
    ("text", "mapped"),
    [
        ("/in/a.jpg", "/data/x/a.jpg"),
        ("/in", "/data/x"),
        ("/out/models", "/tmp/y/models"),
        ("/input/a.jpg", "/input/a.jpg"),
        ("/outer", "/outer"),
        ("in/a.jpg", "in/a.jpg"),
        ("/data/in/a.jpg", "/data/in/a.jpg"),
        ("", ""),
    ],
)
def test_only_the_exact_first_component_is_mapped(text: str, mapped: str) -> None:
    assert Roots(Path("/data/x"), Path("/tmp/y")).map_text(text) == mapped


def test_inside_the_image_nothing_is_mapped() -> None:
    assert Roots().map_text("/in/assets/a.jpg") == "/in/assets/a.jpg"


# config.yaml


@pytest.mark.parametrize(
    ("key", "given_value", "value"),
    [
        ("epochs", "16", 16),
        ("epochs", 16.0, 16),
        ("epochs", "1e2", 100),
        ("epochs", " 7 ", 7),
        ("epochs", "", 100),
        ("epochs", None, 100),
        ("conf_thres", "0.3", 0.3),
        ("conf_thres", "1e-05", 1e-5),
        ("conf_thres", "0", 0.0),
        ("conf_thres", 1, 1.0),
        ("sync_bn", "True", True),
        ("sync_bn", "true", True),
        ("sync_bn", "1", True),
        ("sync_bn", 1, True),
        ("sync_bn", "yes", True),
        ("save_best_only", "False", False),
        ("save_best_only", "no", False),
        ("save_best_only", 0, False),
        ("save_best_only", "0", False),
        ("save_best_only", "", True),
        ("mining_algorithm", "CALD ", "cald"),
        ("class_names", "cat, dog", ("cat", "dog")),
        ("class_names", "['cat', 'dog']", ("cat", "dog")),
        ("class_names", '["it\'s", "a, b"]', ("it's", "a, b")),
        ("class_names", "person", ("person",)),
        ("class_names", ["猫", "a b"], ("猫", "a b")),
        ("gpu_id", "0,1", "0,1"),
        ("gpu_id", "0, 1", "0,1"),
        ("gpu_id", 0, "0"),
        ("gpu_id", [0, 1], "0,1"),
        ("gpu_id", "", ""),
        ("gpu_id", "cpu", ""),
        ("class_distribution_scores", "1.0,1.0,0.1", (1.0, 1.0, 0.1)),
        ("class_distribution_scores", "[1, 0.5]", (1.0, 0.5)),
        ("class_distribution_scores", [1, 0], (1.0, 0.0)),
        ("class_distribution_scores", 0.5, (0.5,)),
        ("class_distribution_scores", "", None),
        ("model_params_path", ["a/best.pt"], ("a/best.pt",)),
        ("model_params_path", "a/best.pt", ("a/best.pt",)),
        ("args_options", "--exist-ok --epochs 3", "--exist-ok --epochs 3"),
        ("ymir_saved_file_patterns", r".*\.pth, .*\.txt", r".*\.pth, .*\.txt"),
        ("object_type", "2", 2),
        ("activation", "ReLU", "ReLU"),
        ("shm_size", "64G", "64G"),
        ("seed", str(2**40), 2**40),
    ],
)
def test_values_are_read_from_the_platforms_strings(key: str, given_value: Any, value: Any) -> None:
    got = getattr(read_params({key: given_value}), key)
    assert got == value
    assert type(got) is type(value)


WRONG = [
    ("epochs", 0, "epochs: got 0, need a whole number of at least 1 (config.yaml)"),
    ("epochs", "abc", "epochs: got 'abc', need a whole number of at least 1 (config.yaml)"),
    ("epochs", 1.5, "need a whole number"),
    ("epochs", "1e30", "need a whole number, 1 to 2147483647"),
    ("epochs", True, "got True, need a whole number"),
    ("epochs", [1], "got [1], need a whole number"),
    ("epochs", "nan", "need a whole number"),
    ("epochs", "inf", "need a whole number"),
    ("epochs", "9" * 5000, "need a whole number"),
    ("img_size", -640, "need a whole number, 1 to 16384"),
    ("batch_size_per_gpu", 0, "need a whole number, 1 to 65536"),
    ("num_workers_per_gpu", -1, "need a whole number of at least 0"),
    ("opset", 21, "need a whole number, 9 to 20"),
    ("save_period", 0, "need a whole number of at least 1"),
    ("conf_thres", "1.5", "conf_thres: got '1.5', need a number from 0 to 1 (config.yaml)"),
    ("conf_thres", "-0.1", "need a number from 0 to 1"),
    ("iou_thres", "nan", "need a number from 0 to 1"),
    ("diversity", "inf", "need a number of at least 0"),
    ("diversity", {"a": 1}, "need a number of at least 0"),
    ("explore", 2, "need a number from 0 to 1"),
    ("sync_bn", "maybe", "sync_bn: got 'maybe', need True or False (config.yaml)"),
    ("sync_bn", 2, "need True or False"),
    ("precision", "fp8", "precision: got 'fp8', need one of auto, fp32, bf16, fp16 (config.yaml)"),
    ("backend", "tensorrt", "need one of auto, torch, onnxruntime, openvino"),
    ("letterbox", ["square"], "need one of square, minimal"),
    ("mining_algorithm", "best", "need one of random, aldd, cald, entropy, diverse"),
    ("decode", 5, "need one of exact, fast"),
    ("class_names", ["cat", "cat"], "need each name once, 'cat' comes twice"),
    ("class_names", ["cat", 5], "need a list of texts"),
    ("class_names", ["cat", ""], "need a list of texts, none of them empty"),
    ("class_names", "cat,,dog", "need a list of texts, none of them empty"),
    ("class_names", 5, "need a list of texts"),
    ("class_names", [], "need at least one name"),
    ("class_names", ["cat", "x" * 201], "need names of at most 200 letters, that of class 1 has 201"),
    ("class_names", [f"n{number}" for number in range(10_001)], "need at most 10000 names, there are 10001"),
    ("class_names", "[]", "need at least one name"),
    ("gpu_id", "0;1", "gpu_id: got '0;1', need indices of GPUs"),
    ("gpu_id", "0,0", "each once"),
    ("gpu_id", "-1", "need indices of GPUs"),
    ("gpu_id", "0,", "need indices of GPUs"),
    ("gpu_id", True, "need indices of GPUs"),
    ("class_distribution_scores", "1.0,x", "need a list of finite numbers"),
    ("class_distribution_scores", "1.0,-1", "need a list of finite numbers"),
    ("class_distribution_scores", "1.0,nan", "need a list of finite numbers"),
    ("class_distribution_scores", "1.0,", "need a list of finite numbers"),
    ("class_distribution_scores", {"cat": 1}, "need a list of finite numbers"),
    ("ymir_saved_file_patterns", "(", "need regular expressions, '(' is none"),
    ("ymir_saved_file_patterns", "(?i)" + r"[\0-\U0010ffff]" * 300, "of at most 250 letters together"),  # took 5 s
    ("args_options", ["--exist-ok"], "need a text"),
    ("activation", True, "need a text"),
    ("seed", -1, "need a whole number"),
]


@pytest.mark.parametrize(("key", "value", "told"), WRONG)
def test_wrong_value_names_key_value_and_what_is_allowed(key: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_params({key: value})
    message = str(caught.value)
    assert caught.value.code == 300001
    assert message.startswith(f"{key}: got ")
    assert told in message
    assert message.endswith("(config.yaml)")
    assert "\n" not in message


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        read_params({"epochs": "x" * 10_000})
    assert len(str(caught.value)) < 200


def test_a_number_too_long_to_print_is_told() -> None:
    with pytest.raises(ConfigError, match="got a huge number, need a whole number"):
        read_params({"epochs": 16**5000})


@pytest.mark.parametrize("value", [1, 3, "4", "detection", [2], True, 0])
def test_another_object_type_has_a_code_of_its_own(write_task: Write, value: Any) -> None:
    with pytest.raises(ObjectTypeError, match="need 2") as caught:
        read(write_task(config={"object_type": value, "epochs": "also wrong"}))
    assert caught.value.code == 300005


def test_unknown_keys_are_kept_and_ignored(write_task: Write) -> None:
    task = read(write_task(config={"own_key": [1, 2], "5": "x", "copy": "y", "model_config": "z"}))
    assert task.raw["own_key"] == [1, 2]
    assert task.params.model_extra is not None
    assert task.params.model_extra["own_key"] == [1, 2]
    assert task.params.epochs == 100


def test_keys_that_are_no_texts_are_ignored() -> None:
    assert read_params({1: 2, None: 3, "epochs": 4}).epochs == 4


@pytest.mark.parametrize(("other", "key"), sorted(OTHER_SPELLINGS.items()))
def test_both_spellings_are_read(other: str, key: str) -> None:
    expected = read_params({key: "a"})
    assert getattr(read_params({other: "a"}), key) == getattr(expected, key)
    assert getattr(read_params({other: "a", key: ""}), key) == getattr(expected, key)
    assert getattr(read_params({other: "b", key: "a"}), key) == getattr(expected, key)
    with pytest.raises(ConfigError, match=f"^{other}: got 'a', |^{other}: got True"):
        read_params({other: True})


@pytest.mark.parametrize("content", ["", "class_names: []\n", "class_names: ''\n", "epochs: 3\n"])
def test_a_task_needs_class_names(write_task: Write, content: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(write_task(config=content or "# nothing\n"))
    assert "config.yaml" in str(caught.value)


def test_config_that_is_a_list_is_told(write_task: Write) -> None:
    with pytest.raises(ConfigError, match="holds a list"):
        read(write_task(config="- a\n"))


def test_aliases_are_counted(write_task: Write) -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    with pytest.raises(ConfigError, match="aliases count each time"):
        read(write_task(config=bomb + "class_names: [cat]\n"))


def test_params_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_params({}).epochs = 5


# What people write in a form: any text at all, in any key.
@settings(deadline=None)
@given(key=st.sampled_from(sorted(TaskParams.model_fields)), value=st.text() | st.floats() | st.integers() | st.none())
def test_any_value_is_read_or_told_in_one_line(key: str, value: Any) -> None:
    try:
        params = read_params({key: value})
    except (ConfigError, ObjectTypeError) as error:
        assert key in str(error)
        assert len(str(error).splitlines()) == 1
    else:
        assert read_params(params.model_dump(exclude_defaults=True)).model_dump() == params.model_dump()


@settings(deadline=None)
@given(value=st.floats(0, 1))
def test_a_number_survives_the_platforms_string(value: float) -> None:
    assert read_params({"conf_thres": str(value)}).conf_thres == value


@settings(deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=200).filter(str.strip), min_size=1, unique=True))
def test_a_list_of_names_comes_back_as_it_was(names: list[str]) -> None:
    assert read_params({"class_names": names}).class_names == tuple(names)


# what flows inward


def test_inference_takes_the_users_values(write_task: Write) -> None:
    given_keys = {
        "img_size": "320",
        "conf_thres": "0.1",
        "iou_thres": "0.6",
        "max_det": "1000",
        "batch_size_per_gpu": "2",
        "num_workers_per_gpu": "1",
        "pin_memory": "True",
        "letterbox": "square",
        "decode": "fast",
        "gpu_id": "0,1",
        "threads_per_rank": "3",
    }
    config = infer_config(read(write_task(config=given_keys)))
    assert config.class_names == ("cat", "dog")
    assert (config.loader.img_size, config.loader.batch_size, config.loader.workers) == (320, 2, 1)
    assert (config.loader.letterbox, config.loader.pictures.decode) == ("square", "fast")
    assert config.loader.pictures.turn is False
    assert (config.nms.conf_thres, config.nms.iou_thres, config.nms.max_det) == (0.1, 0.6, 1000)
    assert (config.engine.device, config.engine.threads, config.engine.pin_memory) == ("0,1", 3, True)


def test_auto_is_settled_in_mining_and_left_open_in_inference(write_task: Write) -> None:
    task = read(write_task())
    assert infer_config(task).engine.precision == "auto"
    assert infer_config(task).engine.backend == "auto"
    assert mining_config(task).engine.precision == "fp32"
    assert mining_config(task).engine.backend == "auto"
    task = read(write_task(config={"precision": "bf16", "backend": "onnxruntime"}))
    assert mining_config(task).engine.precision == "bf16"
    assert mining_config(task).engine.backend == "onnxruntime"


def test_letterbox_has_each_tasks_own_default(write_task: Write) -> None:
    task = read(write_task())
    assert infer_config(task).loader.letterbox == "minimal"
    assert mining_config(task).loader.letterbox == "square"


def test_with_both_tasks_the_form_is_minings(write_task: Write) -> None:
    task = read(write_task(env={"run_mining": True}, config={"letterbox": "square", "conf_thres": "0.1"}))
    assert infer_config(task).loader.letterbox == "minimal"
    assert infer_config(task).nms.conf_thres == 0.1
    assert mining_config(task).loader.letterbox == "square"


def test_mining_takes_the_users_values(write_task: Write) -> None:
    given_keys = {
        "mining_algorithm": "cald",
        "seed": "7",
        "entropy_of": "class",
        "class_distribution_scores": "1.0,0.5",
        "cald_mode": "ymir",
        "cald_empty": "last",
        "cald_balance": "True",
        "budget": "100",
        "diversity": "0.5",
        "class_balance": "1",
        "dedup": "True",
        "dedup_threshold": "0.9",
        "explore": "0.1",
        "mining_report": "True",
    }
    config = mining_config(read(write_task(env={"run_mining": True}, config=given_keys)))
    assert (config.algorithm, config.seed, config.entropy_of) == ("cald", 7, "class")
    assert config.class_distribution_scores == (1.0, 0.5)
    assert (config.cald_mode, config.cald_empty, config.cald_balance) == ("ymir", "last", True)
    assert (config.budget, config.diversity, config.class_balance) == (100, 0.5, 1.0)
    assert (config.dedup, config.dedup_threshold, config.explore, config.report) == (True, 0.9, 0.1, True)


def test_reading_a_task_imports_nothing_heavy(write_task: Write) -> None:
    task = write_task(env={"input": ENV["input"]})
    code = (
        "import sys; from pathlib import Path; from ymir.config import read_task, infer_config\n"
        f"infer_config(read_task(Path({str(task.in_dir)!r}), Path({str(task.out_dir)!r})))\n"
        "print(sorted({'numpy', 'torch', 'cv2', 'easydict'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_config_file_elsewhere_is_named_in_errors(task_dirs: Task) -> None:
    task_dirs.write(env={"input": {"config_file": "/in/train.yaml"}})
    (task_dirs.in_dir / "train.yaml").write_text(yaml.safe_dump({"class_names": ["cat"], "epochs": "x"}))
    with pytest.raises(ConfigError, match=r"\(train\.yaml\)$"):
        read(task_dirs)
