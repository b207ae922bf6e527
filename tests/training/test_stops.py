"""SIGTERM at any stage of a training ends it soon, with a word and a code, and the next start goes on with it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import start as start_door
from models.resume import ResumeState, read_resume
from tests.training.started import (
    ROOT,
    Ended,
    Task,
    assert_done,
    assert_equal,
    assert_whole,
    ended,
    start,
    task_of,
    wait_until,
)
from utils.train_log import read_results


@pytest.fixture(scope="module")
def template(few_pictures: Path, yolov5n_pt: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return task_of(few_pictures, yolov5n_pt, tmp_path_factory.mktemp("task") / "t")


@pytest.fixture(scope="module")
def undisturbed(template: Task, tmp_path_factory: pytest.TempPathFactory) -> Task:
    task = template.copy(tmp_path_factory.mktemp("undisturbed"))
    assert_done(task, task.run())
    return task


def percent(task: Task) -> float:
    return float(task.monitor()[2]) if (task.out / "monitor.txt").exists() else 0


def stop(process: subprocess.Popen[str]) -> Ended:
    process.send_signal(signal.SIGTERM)
    return ended(process)


# ---- start.py --------------------------------------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.parametrize(  # in the scan, the first epoch, its validation, the second epoch
    "share", [pytest.param(0.001, marks=SLOW), pytest.param(0.2, marks=SLOW), 0.345, pytest.param(0.65, marks=SLOW)]
)
def test_a_stopped_task_says_so_and_goes_on(template: Task, undisturbed: Task, tmp_path: Path, share: float) -> None:
    task = template.copy(tmp_path)
    process = task.start()
    wait_until(lambda: percent(task) >= share, process)
    end = stop(process)
    assert end.code == 1
    assert "160004" in end.last and "training was stopped" in end.last
    assert task.monitor()[3:5] == ["4", "160004"]
    assert_whole(task)
    assert_done(task, task.run())
    assert_equal(task.last(), undisturbed.last())


def test_what_a_finished_task_leaves_is_weights_to_others(undisturbed: Task) -> None:
    from models.checkpoint import read_checkpoint

    last, best = (read_checkpoint(undisturbed.out / "models" / name) for name in ("last.pt", "best.pt"))
    assert (last.meta["epoch"], best.meta["epoch"]) == (-1, -1)
    assert read_resume(undisturbed.out / "models/last.pt") is not None
    assert read_resume(undisturbed.out / "models/best.pt") is None


# ---- start.py in this process: what needs no signal ------------------------------------------------------------------


def run_here(task: Task) -> int:
    return start_door.main(["--in", str(task.folder / "in"), "--out", str(task.out)])


def with_results_of(other: Task, template: Task, folder: Path) -> Task:
    task = template.copy(folder)
    shutil.rmtree(task.out)
    shutil.copytree(other.out, task.out)
    return task


def test_never_starts_anew_and_takes_old_results_away(template: Task, undisturbed: Task, tmp_path: Path) -> None:
    task = with_results_of(undisturbed, template, tmp_path)
    task.configure(resume="never", epochs=1)
    stage = task.out / "models/epoch_9"
    stage.mkdir()
    (stage / "epoch9.pt").write_bytes(b"old")
    assert run_here(task) == 0
    assert task.epochs() == [0]
    assert task.last().plain["position"]["epoch"] == 1
    assert not stage.exists()


def test_a_torn_last_pt_is_no_end(
    template: Task, undisturbed: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = with_results_of(undisturbed, template, tmp_path)
    task.configure(epochs=1)
    last = task.out / "models/last.pt"
    last.write_bytes(last.read_bytes()[:50_000])
    assert run_here(task) == 0
    assert "training starts anew" in caplog.text
    assert task.epochs() == [0]


def test_a_torn_last_pt_that_must_be_gone_on_with_is_300004(
    template: Task, undisturbed: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = with_results_of(undisturbed, template, tmp_path)
    task.configure(args_options="--resume --noplots")
    last = task.out / "models/last.pt"
    last.write_bytes(last.read_bytes()[:50_000])
    assert run_here(task) == 1
    assert task.monitor()[3:5] == ["4", "300004"]
    assert "last.pt" in capfd.readouterr().err.splitlines()[-1]
    assert (task.out / "models/result.yaml").exists()


def test_a_loss_that_is_no_number_is_300201_and_keeps_what_there_was(
    template: Task, undisturbed: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = with_results_of(undisturbed, template, tmp_path)
    hyp = {"lr0": 1000.0, "box": 1e6, "obj": 1e6, "cls": 1e6, "warmup_epochs": 0.0}
    (task.folder / "in/hyp.yaml").write_text(yaml.safe_dump(hyp))
    task.configure(epochs=9, args_options="--noplots --noautoanchor --hyp /in/hyp.yaml")
    before = (task.out / "models/result.yaml").read_bytes()
    assert run_here(task) == 1
    assert task.monitor()[3:5] == ["4", "300201"]
    last_line = capfd.readouterr().err.splitlines()[-1]
    assert "300201" in last_line and "epoch 4, batch" in last_line and "kept" in last_line
    assert_whole(task)
    assert (task.out / "models/result.yaml").read_bytes() == before
    assert_equal(task.last(), undisturbed.last())


# ---- train.py --------------------------------------------------------------------------------------------------------


def train(data: Path, project: Path, *options: str) -> subprocess.Popen[str]:
    sizes = ["--img", "96", "--batch-size", "4", "--device", "cpu", "--workers", "2", "--noplots", "--noautoanchor"]
    command = [sys.executable, str(ROOT / "train.py"), "--project", str(project)]
    more = [] if "--resume" in options else ["--data", str(data), "--epochs", "2", *sizes]
    return start([*command, *more, *options])


def last_of(run: Path) -> ResumeState:
    state = read_resume(run / "weights/last.pt")
    assert state is not None
    return state


def has_trained(run: Path) -> bool:
    return (run / "weights/last.pt").exists()


@pytest.fixture(scope="module")
def whole_run(few_pictures: Path, yolov5n_pt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("runs")
    end = ended(train(few_pictures, project, "--weights", str(yolov5n_pt)))
    assert end.code == 0, end.lines[-5:]
    return project / "exp"


@pytest.mark.parametrize("names_file", [False, pytest.param(True, marks=SLOW)])
def test_a_stopped_run_goes_on_by_resume(
    few_pictures: Path, yolov5n_pt: Path, whole_run: Path, tmp_path: Path, names_file: bool
) -> None:
    run = tmp_path / "exp"
    process = train(few_pictures, tmp_path, "--weights", str(yolov5n_pt))
    wait_until(lambda: has_trained(run), process)
    end = stop(process)
    assert end.code == 1 and "training was stopped" in end.last
    named = [str(run / "weights/last.pt")] if names_file else []
    end = ended(train(few_pictures, tmp_path, "--resume", *named))
    assert end.code == 0, end.lines[-5:]
    assert_equal(last_of(run), last_of(whole_run))
    assert (run / "results.csv").read_bytes() == (whole_run / "results.csv").read_bytes()


def test_a_finished_run_takes_more_epochs_and_options(few_pictures: Path, whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "exp")
    end = ended(train(few_pictures, tmp_path, "--resume", "--epochs", "3", "--patience", "7"))
    assert end.code == 0, end.lines[-5:]
    assert [row.epoch for row in read_results(tmp_path / "exp/results.csv")] == [0, 1, 2]
    config = last_of(tmp_path / "exp").plain["about"]["config"]
    assert (config["epochs"], config["patience"], config["batch_size"]) == (3, 7, 4)


def test_a_run_that_lacks_its_settings_is_refused(few_pictures: Path, tmp_path: Path) -> None:
    weights = tmp_path / "exp/weights"
    weights.mkdir(parents=True)
    (weights / "last.pt").write_bytes(b"PK")
    end = ended(train(few_pictures, tmp_path, "--resume"))
    assert end.code == 1 and "last.pt" in end.last and len(end.lines) == 1
