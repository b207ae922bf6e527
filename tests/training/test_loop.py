"""Training end to end on a few real pictures: repeatable, resumable, and ending with a word when it must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import read_checkpoint
from models.resume import ResumeState, read_resume
from tests.training.conftest import Making
from tests.training.started import assert_equal
from training.job import Hooks, TrainJob
from training.ranks import train
from training.resuming import state_to_resume
from utils.errors import NotFiniteError, StoppedError
from utils.hyp import Hyp
from utils.progress import Progress


def last_of(job: TrainJob) -> ResumeState:
    state = read_resume(job.folders.weights / "last.pt")
    assert state is not None
    return state


def stop_after(calls: int) -> Hooks:
    """Ask for a stop at the calls-th question once all is built, and from then on."""
    asked = iter(range(10**9))
    seen = [0.0]
    return Hooks(Progress(seen.append), lambda: seen[-1] > 0.025 and next(asked) >= calls - 1)


@pytest.fixture(scope="module")
def whole_run(making: Making, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A training of three epochs that nothing stopped."""
    job = making.job(tmp_path_factory.mktemp("whole"), epochs=3)
    train(job, Hooks())
    return job


def test_equal_runs_give_equal_weights_with_any_number_of_workers(
    making: Making, whole_run: TrainJob, tmp_path: Path
) -> None:
    again = making.job(tmp_path, epochs=3, workers=0)
    train(again, Hooks())
    assert_equal(last_of(again), last_of(whole_run))
    best, other = (read_checkpoint(job.folders.weights / "best.pt") for job in (again, whole_run))
    assert best.digest == other.digest
    assert (tmp_path / "results.csv").read_bytes() == (whole_run.folders.logs / "results.csv").read_bytes()


@pytest.mark.parametrize("batches", [2, 3, 8])
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(
    making: Making, whole_run: TrainJob, tmp_path: Path, batches: int
) -> None:
    job = making.job(tmp_path, epochs=3, resume="auto")
    with pytest.raises(StoppedError, match=r"kept|no epoch was done"):
        train(job, stop_after(batches))
    train(job, Hooks())
    assert_equal(last_of(job), last_of(whole_run))
    assert (tmp_path / "results.csv").read_bytes() == (whole_run.folders.logs / "results.csv").read_bytes()


def test_a_finished_run_takes_more_epochs(making: Making, tmp_path: Path) -> None:
    job = making.job(tmp_path, epochs=1)
    train(job, Hooks())
    assert read_checkpoint(job.folders.weights / "last.pt").meta["epoch"] == -1
    longer = replace(job, config=replace(job.config, epochs=2, resume="must"))
    assert train(longer, Hooks()).epochs == 2
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


def test_another_task_starts_anew(making: Making, whole_run: TrainJob, tmp_path: Path) -> None:
    job = replace(whole_run, task="another", config=replace(whole_run.config, resume="auto"))
    names = read_checkpoint(whole_run.folders.weights / "best.pt").names
    assert state_to_resume(job, names) is None
    assert state_to_resume(replace(job, task=whole_run.task), names) is not None
    assert state_to_resume(replace(job, task=whole_run.task), names[1:]) is None


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_epoch(making: Making, tmp_path: Path) -> None:
    job = making.job(tmp_path, epochs=1)
    train(job, Hooks())
    kept = (job.folders.weights / "best.pt").read_bytes()
    wild = making.job(tmp_path, epochs=4, resume="must", hyp=Hyp(lr0=1000.0, box=1e6, obj=1e6, cls=1e6))
    with pytest.raises(NotFiniteError, match=r"epoch \d, batch \d of 3.*lr0.*kept"):
        train(wild, Hooks())
    assert read_resume(job.folders.weights / "last.pt") is not None
    assert (job.folders.weights / "best.pt").read_bytes() == kept or read_checkpoint(job.folders.weights / "best.pt")


def test_progress_never_falls_and_ends_at_one(making: Making, tmp_path: Path) -> None:
    seen: list[float] = []
    train(making.job(tmp_path, epochs=1), Hooks(Progress(seen.append)))
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1)


def test_without_pictures_to_validate_on_the_last_weights_are_the_best(
    making: Making, tmp_path: Path, few_pictures: Path, caplog: Any
) -> None:
    data = tmp_path / "data.yaml"
    data.write_text(few_pictures.read_text().replace("val: images", "val: []") + f"path: {few_pictures.parent}\n")
    job = Making(data, making.config).job(tmp_path / "run", epochs=1)
    result = train(job, Hooks())
    assert result.mean_ap == 0
    assert "no picture to validate on" in caplog.text
    assert read_checkpoint(job.folders.weights / "best.pt").nc == 80
