"""Which runs go on by themselves, and which last.pt they may go on from: nothing in one is believed unchecked."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
import torch

from models.checkpoint import read_checkpoint
from models.checkpoint_writer import SavedTraining, write_checkpoint, yaml_of
from models.detector import build_model
from models.resume import ResumeState, read_resume
from tests.training.conftest import Making
from training.building import choose_machine
from training.data import scan_sets
from training.job import Hooks, TrainJob
from training.loop import make_run
from training.ranks import train
from training.resuming import config_as_plain, config_from_plain, state_to_resume
from training.run import Run
from utils.distributed import World
from utils.errors import StoppedError, WeightsError
from utils.hyp import Hyp
from utils.progress import Progress

Plain = dict[str, Any]


@pytest.fixture(scope="module")
def stopped(making: Making, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A run of three epochs that was stopped after its first batch, before it had a best.pt."""
    job = replace(making.job(tmp_path_factory.mktemp("stopped"), epochs=3, resume="auto"), task="t")
    seen = [0.0]
    with pytest.raises(StoppedError, match=r"epoch 1 of 3; no epoch was done before"):
        train(job, Hooks(Progress(seen.append), lambda: seen[-1] > 0.025))
    return job


def copied(job: TrainJob, folder: Path, **changes: Any) -> TrainJob:
    """Give a job in a folder of its own, with the files of another."""
    shutil.copytree(job.folders.root, folder, dirs_exist_ok=True)
    folders = replace(job.folders, root=folder, weights=folder / "weights", logs=folder)
    return replace(job, folders=folders, config=replace(job.config, **changes))


def last_of(job: TrainJob) -> ResumeState:
    state = read_resume(job.folders.weights / "last.pt")
    assert state is not None
    return state


def rewrite(job: TrainJob, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> None:
    """Replace last.pt by one that holds another state."""
    path = job.folders.weights / "last.pt"
    checkpoint = read_checkpoint(path)
    model = build_model(checkpoint)
    content = SavedTraining(
        model=model,
        ema=None,
        names=checkpoint.names,
        yaml=yaml_of(model.spec),
        epoch=0,
        best_fitness=0.0,
        updates=0,
        optimizer=None,
        date="",
        hyp={},
        resume=ResumeState(tensors, plain),
    )
    write_checkpoint(path, content)


def built(job: TrainJob) -> Run:
    """Build a run up to its first batch."""
    machine = choose_machine(job.config, World())
    return make_run(job, scan_sets(job, Progress()), machine, Progress())


# ---- the same run ----------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_stopped(stopped: TrainJob, tmp_path: Path) -> None:
    assert built(copied(stopped, tmp_path)).training.position.batch == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 6},
        {"img_size": 128},
        {"optimizer": "Adam"},
        {"seed": 5},
        {"rect": True},
        {"single_cls": True},
        {"nominal_batch": 16},
        {"activation": "ReLU"},
        {"weights": Path("other.pt")},
        {"cfg": Path("yolov5s.yaml")},
        {"freeze": (0, 1)},
    ],
)
def test_a_run_told_to_train_otherwise_starts_anew(
    stopped: TrainJob, changes: Plain, caplog: pytest.LogCaptureFixture
) -> None:
    names = tuple(last_of(stopped).plain["about"]["names"])
    other = replace(stopped, config=replace(stopped.config, **changes))
    assert state_to_resume(other, names) is None
    assert f"with another {next(iter(changes))}, training starts anew" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 9},
        {"patience": 3},
        {"workers": 0},
        {"cache": "ram"},
        {"save_period": 2},
        {"batch_size": -1},
        {"weights": Path("/elsewhere/yolov5n.pt")},
    ],
)
def test_a_run_told_what_changes_no_batch_goes_on(stopped: TrainJob, changes: Plain) -> None:
    names = tuple(last_of(stopped).plain["about"]["names"])
    assert state_to_resume(replace(stopped, config=replace(stopped.config, **changes)), names) is not None


def test_another_task_and_other_classes_start_anew(stopped: TrainJob) -> None:
    names = tuple(last_of(stopped).plain["about"]["names"])
    assert state_to_resume(replace(stopped, task="another"), names) is None
    assert state_to_resume(stopped, names[:-1]) is None
    must = replace(stopped, config=replace(stopped.config, resume="must"))
    with pytest.raises(WeightsError, match=r"last\.pt: was trained for other classes"):
        state_to_resume(must, names[:-1])


def test_never_starts_anew(stopped: TrainJob) -> None:
    names = tuple(last_of(stopped).plain["about"]["names"])
    assert state_to_resume(replace(stopped, config=replace(stopped.config, resume="never")), names) is None


def test_a_batch_size_that_was_looked_for_stays_what_was_found(stopped: TrainJob, tmp_path: Path) -> None:
    run = built(copied(stopped, tmp_path, batch_size=-1))
    assert (run.config.batch_size, run.training.position.batch) == (4, 1)


def test_batches_of_another_size_go_on_at_the_same_picture(stopped: TrainJob, tmp_path: Path) -> None:
    run = built(copied(stopped, tmp_path, batch_size=2, resume="must"))
    assert run.training.position.batch == 2


def test_settings_come_back_as_they_were(making: Making, tmp_path: Path) -> None:
    config = making.job(tmp_path, freeze=(0, 3), hyp=Hyp(lr0=0.5), cfg=Path("a.yaml")).config
    assert config_from_plain(config_as_plain(config), "last.pt") == config


@pytest.mark.parametrize(
    "spoilt", [None, [], {}, {"hyp": 3}, {"freeze": [1e400]}, {"epochs": "x"}, {"hyp": {"lr0": "x"}}, {"pictures": []}]
)
def test_settings_of_a_stranger_are_refused(making: Making, tmp_path: Path, spoilt: Any) -> None:
    plain = config_as_plain(making.job(tmp_path).config)
    given = {**plain, **spoilt} if isinstance(spoilt, dict) and spoilt else spoilt
    with pytest.raises(WeightsError, match=r"last\.pt: its settings can't be read .*start anew"):
        config_from_plain(given, "last.pt")


# ---- a hostile last.pt -----------------------------------------------------------------------------------------------


def of_part(part: str, **values: Any) -> Callable[[Plain], None]:
    return lambda plain: plain[part].update(values)


SPOILT: dict[str, Callable[[Plain], object]] = {
    "epoch below 0": of_part("position", epoch=-1),
    "batch below 0": of_part("position", batch=-7),
    "infinite epoch": of_part("position", epoch=float("inf")),
    "epoch in words": of_part("position", epoch="two"),
    "a part left out": lambda plain: plain.pop("position"),
    "a part that is none": lambda plain: plain.update(best=3),
    "too many means": of_part("means", sum=[1, 2, 3, 4]),
    "means that are none": of_part("means", sum=None),
    "no groups": of_part("optimizer", groups=[]),
    "groups that are none": of_part("optimizer", groups=[1, 2, 3]),
    "no updates": of_part("ema", updates=None),
    "another network": lambda plain: plain["about"]["yaml"].update(width_multiple=0.5),
    "a huge network": lambda plain: plain["about"]["yaml"].update(width_multiple=20, depth_multiple=10),
    "no network": lambda plain: plain["about"].pop("yaml"),
    "levels of another network": of_part("loss", level_weights=[1.0]),
    "a step in words": of_part("accumulation", last_step="x"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_state_that_makes_no_sense_is_told_and_left(
    stopped: TrainJob, tmp_path: Path, spoil: Callable[[Plain], object], caplog: pytest.LogCaptureFixture
) -> None:
    job, state = copied(stopped, tmp_path), last_of(stopped)
    plain = dict(state.plain)
    spoil(plain)
    rewrite(job, state.tensors, plain)
    with pytest.raises(WeightsError):
        built(replace(job, config=replace(job.config, resume="must")))
    caplog.clear()
    run = built(job)
    assert (run.training.position.epoch, run.training.position.batch) == (0, 0)
    assert "starts anew" in caplog.text


@pytest.mark.parametrize(
    ("group", "how"),
    [
        ("model", "NaN"),
        ("ema", "NaN"),
        ("optimizer", "NaN"),
        ("model", "gone"),
        ("ema", "gone"),
        ("optimizer", "shape"),
    ],
)
def test_tensors_that_are_spoilt_are_told_and_left(stopped: TrainJob, tmp_path: Path, group: str, how: str) -> None:
    job, state = copied(stopped, tmp_path), last_of(stopped)
    tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
    name = next(name for name, one in tensors.items() if name.startswith(f"{group}/") and one.dim() == 4)
    if how == "NaN":
        tensors[name].view(-1)[-1] = float("nan")
    elif how == "gone":
        del tensors[name]
    else:
        tensors[name] = tensors[name].flatten()
    rewrite(job, tensors, state.plain)
    run = built(job)
    assert (run.training.position.epoch, run.training.position.batch) == (0, 0)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in run.training.model.state_dict().values())


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.", None],
    ids=["empty", "no zip", "a program", "torn"],
)
def test_a_file_that_is_no_checkpoint_is_told_and_left(
    stopped: TrainJob, tmp_path: Path, content: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = copied(stopped, tmp_path)
    last = job.folders.weights / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000] if content is None else content)
    names = tuple(last_of(stopped).plain["about"]["names"])
    assert state_to_resume(job, names) is None
    assert "training starts anew" in caplog.text and str(last) in caplog.text
    with pytest.raises(WeightsError, match=r"last\.pt"):
        state_to_resume(replace(job, config=replace(job.config, resume="must")), names)


def test_a_state_far_ahead_of_its_run_still_leaves_results(stopped: TrainJob, tmp_path: Path) -> None:
    job, state = copied(stopped, tmp_path), last_of(stopped)
    rewrite(job, state.tensors, {**state.plain, "position": {"epoch": 10**9, "batch": 10**9}})
    told: list[Any] = []
    train(replace(job, on_checkpoint=told.append), Hooks())
    assert told[-1].has_best and told[-1].is_over
    assert read_checkpoint(job.folders.weights / "best.pt").nc == 80
