"""start.py --check: what it says of a task is what the task then ends with, and it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import start
from check import Level, of_memory
from tests import test_start, test_start_training
from tests.conftest import ROOT
from tests.test_start import config, env, template  # noqa: F401  # a fixture
from tests.test_start_training import training_template  # noqa: F401  # a fixture
from utils.picture_store import free_memory_bytes


@pytest.fixture
def task(template: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A folder with an inference task as `in`."""
    shutil.copytree(template, tmp_path / "in", symlinks=True)
    return tmp_path


@pytest.fixture
def training(training_template: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A folder with a training task as `in`."""
    shutil.copytree(training_template, tmp_path / "in", symlinks=True)
    return tmp_path


def checked(task: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Give the exit code and the lines of --check, which leaves /out as it was."""
    before = sorted((task / "out").rglob("*"))
    capfd.readouterr()
    code = start.main(["--check", "--in", str(task / "in"), "--out", str(task / "out")])
    printed = capfd.readouterr()
    assert sorted((task / "out").rglob("*")) == before and "Traceback" not in printed.err
    return code, printed.out.splitlines()


def of_level(lines: list[str], level: Level) -> list[str]:
    return [line for line in lines if line.startswith(f"{level.value} ")]


@pytest.mark.parametrize("case", test_start.WRONG)
def test_what_would_end_a_task_is_said_with_its_code(case: str, task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, error, named = test_start.WRONG[case]
    change(task / "in")
    code, lines = checked(task, capfd)
    failing = of_level(lines, Level.FAILS)
    assert code == 1 and failing, lines
    assert f"error {error}: " in failing[0] and named in failing[0]


@pytest.mark.parametrize("case", test_start_training.WRONG)
def test_what_would_end_a_training_is_said_with_its_code(
    case: str, training: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, error, named = test_start_training.WRONG[case]
    change(training / "in")
    monkeypatch.chdir(training)
    code, lines = checked(training, capfd)
    failing = of_level(lines, Level.FAILS)
    assert code == 1 and failing, lines
    assert f"error {error}: " in failing[0] and named in failing[0]
    assert not Path("/tmp/ymir-was-here").exists()


def test_nothing_stands_in_the_way_of_a_good_task(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, lines = checked(task, capfd)
    assert code == 0 and not of_level(lines, Level.FAILS) and lines[-1].startswith("nothing stands in"), lines


def test_a_good_training_on_a_cpu_is_slow(training: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, lines = checked(training, capfd)
    assert code == 0 and "gpu_id" in of_level(lines, Level.SLOW)[0]
    assert any("8 pictures looked at (ark)" in line for line in lines)


def test_large_sets_are_looked_at_in_samples(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = task / "in/candidate-index.tsv"
    lines = index.read_text().splitlines()
    gone = [f"/in/assets/gone{number}.jpg" for number in range(100)]
    index.write_text("\n".join([*lines * 150, *gone, "/in/../../etc/passwd"]) + "\n")
    code, lines = checked(task, capfd)
    (found,) = (line for line in lines if line.startswith("look   pictures: of "))
    assert code == 0 and found.startswith("look   pictures: of 200 of 1001 20 can't be read") and "gone" in found
    assert any("894 share their base name" in line for line in lines)


def test_keys_that_nobody_reads_and_classes_in_another_order(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config(num_worker_per_gpu=3, my_plugin=1)(task / "in")
    names = yaml.safe_load((task / "in/config.yaml").read_text())["class_names"]
    config(class_names=names[::-1])(task / "in")
    code, lines = checked(task, capfd)
    looks = of_level(lines, Level.LOOK)
    assert code == 0 and any("num_workers_per_gpu is a key" in line for line in looks)
    assert not any("my_plugin" in line for line in lines)
    assert any("weights" in line and names[-1] in line for line in looks)


def test_what_lies_in_out_and_how_much_room_there_is(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (task / "out").mkdir()
    (task / "out/result.tsv").write_text("of an earlier run")
    (task / "out/mining.0-of-2.records").write_bytes(b"")
    code, lines = checked(task, capfd)
    assert code == 0 and any("result.tsv of an earlier run" in line for line in lines)
    assert any("goes on from it" in line for line in lines)


@pytest.mark.parametrize("name", ["result.tsv", "infer-result.json", "monitor.txt"])
def test_a_folder_in_the_place_of_a_result_ends_the_task(
    name: str, task: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    env(run_mining=True)(task / "in")
    (task / "out" / name / "inner").mkdir(parents=True)
    code, lines = checked(task, capfd)
    (failing,) = of_level(lines, Level.FAILS)
    assert code == 1 and failing.startswith("fails  results: error 160004: ") and f"{name}: is a folder" in failing
    assert not any("removed or replaced" in line for line in lines)
    assert start.main(["--in", str(task / "in"), "--out", str(task / "out")]) == 1  # and so it is
    assert f"error 160004: {task / 'out' / name}: " in capfd.readouterr().err.splitlines()[-1]


def test_a_folder_in_the_place_of_a_trainings_result_ends_it(training: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = training / "out/models/result.yaml"
    (place / "inner").mkdir(parents=True)
    code, lines = checked(training, capfd)
    (failing,) = of_level(lines, Level.FAILS)
    assert code == 1 and failing.startswith("fails  results: error 160004: ") and "result.yaml: is a folder" in failing
    assert start.main(["--in", str(training / "in"), "--out", str(training / "out")]) == 1
    assert f"error 160004: {place}: " in capfd.readouterr().err.splitlines()[-1]


def test_an_index_that_is_none_is_said_once_and_with_the_pictures(
    task: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (task / "in/candidate-index.tsv").unlink()
    os.mkfifo(task / "in/candidate-index.tsv")
    code, lines = checked(task, capfd)
    (failing,) = of_level(lines, Level.FAILS)
    assert code == 1 and failing.startswith("fails  pictures: error 300002: ") and "not a regular file" in failing
    assert any(line.startswith("ok     results: ") for line in lines)


def test_memory_is_held_against_what_may_be_wanted(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = {free: of_memory(free << 20, 3000 << 20) for free in (999, 1000, 3000, 3001)}
    assert [one.level for one in found.values()] == [Level.FAILS, Level.LOOK, Level.LOOK, Level.OK]
    assert [one.code for one in found.values()] == [300103, 0, 0, 0]
    assert "--memory" in str(found[999]) and "137" in str(found[999])
    if free_memory_bytes() < 190 << 30:  # a third of what the largest batch may want
        config(batch_size_per_gpu=65536)(task / "in")
        code, lines = checked(task, capfd)
        assert code == 1 and of_level(lines, Level.FAILS)[0].startswith("fails  memory: error 300103: ")


def test_what_was_left_out_is_told_without_runs_of_blanks(training: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for picture in (training / "in/assets").rglob("*.jpg"):
        picture.unlink()
        picture.write_bytes(b"no picture")
    code, lines = checked(training, capfd)
    failing = of_level(lines, Level.FAILS)[0]
    assert code == 1 and "8 pictures left out, unreadable; " in failing and "  " not in failing[len("fails  ") :]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_that_another_user_owns(task: Path, tmp_path: Path) -> None:
    (task / "out").mkdir(mode=0o755)
    (task / "in/models").chmod(0o700)
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import check; from pathlib import Path;"
        "from ymir.config import read_env, read_task; task = read_task(*map(Path, sys.argv[2:]));"
        "os.setuid(1000);"
        "[print(one) for look in (check.check_rights, check.check_out) for one in look(task)]"
    )
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own are 0700, as many as there are workers' folders
        if folder.stat().st_uid == 0 and "pytest" in str(folder):
            folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(task / "in"), str(task / "out")], capture_output=True, text=True
    )
    rights, results = done.stdout.splitlines()
    assert rights.startswith("fails  rights: ") and "models: can't be opened by user 1000" in rights, done
    assert results.startswith("fails  results: ") and "can't be written by user 1000" in results


def test_a_check_of_an_inference_needs_no_torch(task: Path) -> None:
    script = "import sys, start; start.main(sys.argv[1:]); print(sorted({'torch'} & set(sys.modules)))"
    command = [sys.executable, "-c", script, "--check", "--in", str(task / "in"), "--out", str(task / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_door(task: Path) -> None:
    done = test_start.run_process(task, "--check")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("nothing stands in this task's way")
    assert not (task / "out").exists()
