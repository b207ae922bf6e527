"""Two ranks train as one process with their pictures together, and end together. On CPUs, with gloo."""

from __future__ import annotations

import csv
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import pytest
import torch
import yaml

from make_task import main as make_task
from models.resume import ResumeState, read_resume
from tests.conftest import ROOT
from tests.training.conftest import PICTURES, Making
from training.building import Machine, build_loader, build_network, build_training
from training.data import scan_sets
from training.job import Checkpointed, Hooks, TrainJob
from training.loop import make_run, train_epochs
from training.ranks import train, train_on
from training.validation import Validated, Validator
from utils.distributed import World, joined, launch
from utils.errors import ConfigError, DeviceMemoryError, ExecutorError, NoDeviceError, StoppedError
from utils.progress import Progress
from utils.settings import LoaderSettings
from utils.training_data import TrainingData, yolo_training_data
from utils.training_loader import epoch_order

SOON_S = 20.0  # in which all processes of a broken training are to have ended


def machine_of(world: World) -> Machine:
    return Machine(torch.device("cpu"), "fp32", world)


# ---- one step --------------------------------------------------------------------------------------------------------


def gradients(job: TrainJob, world: World, is_frozen: bool) -> dict[str, Any]:
    """The gradients of an epoch's first two batches added up, and the losses and pictures of both."""
    scans = scan_sets(job, Progress(), tells=False)
    network = build_network(job, scans.train.table, None, tells=False)
    training, _ = build_training(network, job.config, machine_of(world), batch_count=3)
    loader, training_set, _ = build_loader(job, scans, max(network.stride), world, Progress())
    order = epoch_order(len(training_set), job.config.seed, 0, shuffle=True, world_size=world.size)
    if is_frozen:  # else each rank would norm by its own pictures
        training.model.eval()
    losses, indices = [], []
    for batch, _ in zip(loader.batches(order, 0), range(2)):
        losses.append(training.stepper.backward(batch.pixels, batch.rows).numpy())
        indices.append(batch.indices)
    found = torch.cat([gradient.flatten() for gradient in training.stepper.state()[0].values()])
    return {"gradients": found.numpy(), "losses": np.stack(losses), "indices": np.stack(indices)}


def steps(job: TrainJob, world: World) -> dict[str, Any]:
    """What one process, or each of several ranks, gives."""
    halves = replace(job, config=replace(job.config, most_at_once=2 // world.size))
    synced = replace(job, config=replace(job.config, sync_bn=True))
    return {
        "frozen": gradients(job, world, is_frozen=True),
        "frozen, in halves": gradients(halves, world, is_frozen=True),
        "synced": gradients(synced, world, is_frozen=False),
    }


def validated(job: TrainJob, world: World) -> Validated:
    """A validation in batches of four, whatever the number of ranks; running statistics as rank 0 has them."""
    table = scan_sets(job, Progress(), tells=False).val.table
    network = build_network(job, table, None, tells=False)
    _, loss = build_training(network, job.config, machine_of(World()), batch_count=3)
    if world.rank:
        for buffer in network.buffers():
            buffer.zero_()
    settings = LoaderSettings(96, batch_size=4 // world.size, workers=1, pictures=job.config.pictures)
    return Validator(table, settings, lambda maps, rows: loss(maps, rows).parts, machine_of(world))(network, Progress())


def whole_runs(jobs: list[TrainJob], world: World) -> list[dict[str, Any]]:
    """What ranks must have in common after a run, for each job."""
    results = []
    for job in jobs:
        scans = scan_sets(job, Progress(), tells=False)
        run = make_run(job, scans, machine_of(world), Progress())
        train_epochs(run, Hooks())
        result = {
            "class maps": np.asarray(run.class_maps),
            "order": run.order(),
            "sides": np.array([run.side_of(number) or 0 for number in range(9)]),
            "weights": torch.cat([value.flatten() for value in run.training.model.parameters()]).detach().numpy(),
            "losses": np.array(run.last.losses),
        }
        results.append(result)
    return results


def rank(jobs: tuple[TrainJob, list[TrainJob]], world: World, send: Callable[[Any], None]) -> None:
    torch.set_num_threads(1)
    job, odd = jobs
    with joined(world, "gloo"):
        send((steps(job, world), validated(job, world), whole_runs(odd, world)))


@pytest.fixture(scope="module")
def job(making: Making, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    return making.job(tmp_path_factory.mktemp("steps"), workers=1)


@pytest.fixture(scope="module")
def odd_jobs(making: Making, few_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainJob]:
    """Runs on a number of pictures that two ranks can't share evenly, and on one that they can't share at all."""
    jobs = []
    changes: dict[int, dict[str, Any]] = {
        11: {"image_weights": True, "multi_scale": True, "quad": True, "autobalance": True, "batch_size": 8},
        1: {"rect": True},
    }
    for count, change in changes.items():
        folder = tmp_path_factory.mktemp("odd")
        images = sorted((few_pictures.parent / "images").iterdir())[:count]
        (folder / "train.txt").write_text("".join(f"{image}\n" for image in images))
        data = {**yaml.safe_load(few_pictures.read_text()), "path": str(few_pictures.parent)}
        (folder / "data.yaml").write_text(yaml.safe_dump({**data, "train": str(folder / "train.txt")}))
        jobs.append(Making(folder / "data.yaml", making.config).job(folder / "run", workers=1, epochs=1, **change))
    return jobs


@pytest.fixture(scope="module")
def of_ranks(job: TrainJob, odd_jobs: list[TrainJob]) -> list[Any]:
    """What each of two ranks gives; they are started once."""
    said: dict[int, Any] = {}
    assert launch(rank, (job, odd_jobs), 2, said.__setitem__)
    return [said[0], said[1]]


@pytest.fixture(scope="module")
def of_one(job: TrainJob) -> dict[str, Any]:
    """What one process with all pictures gives."""
    return steps(job, World())


def apart(ours: Any, theirs: Any) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize(("name", "tolerance"), [("frozen", 1e-5), ("frozen, in halves", 1e-5), ("synced", 2e-4)])
def test_two_ranks_add_up_the_gradients_of_the_whole_batches(
    of_ranks: list[Any], of_one: dict[str, Any], name: str, tolerance: float
) -> None:
    first, second = (results[0][name] for results in of_ranks)
    assert np.array_equal(first["gradients"], second["gradients"])
    together = np.stack([first["indices"], second["indices"]], axis=2).reshape(2, -1)
    assert np.array_equal(together, of_one[name]["indices"])
    assert apart(first["gradients"], of_one[name]["gradients"]) < tolerance
    np.testing.assert_allclose((first["losses"] + second["losses"]) / 2, of_one[name]["losses"], rtol=tolerance)


def test_ranks_that_share_a_validation_find_what_one_finds(of_ranks: list[Any], job: TrainJob) -> None:
    alone = validated(job, World())
    for _, shared, _ in of_ranks:
        ours, theirs = shared.evaluation.metrics, alone.evaluation.metrics
        assert (ours.images, ours.instances) == (theirs.images, theirs.instances) == (PICTURES, ours.instances)
        figures = [(one.p, one.r, one.map50, one.map) for one in (ours, theirs)]
        assert figures[0] == pytest.approx(figures[1], abs=1e-6)
        assert [(one.class_id, one.ap) for one in ours.classes] == [(one.class_id, one.ap) for one in theirs.classes]
        assert np.array_equal(shared.evaluation.confusion, alone.evaluation.confusion)
        # A pass's loss is a mean over its matches, so that it depends a little on which pictures are in it.
        assert shared.losses == pytest.approx(alone.losses, rel=0.1)


@pytest.mark.parametrize("number", [0, 1])
def test_ranks_agree_however_few_pictures_there_are(of_ranks: list[Any], number: int) -> None:
    first, second = (results[2][number] for results in of_ranks)
    assert set(first) == {"class maps", "order", "sides", "weights", "losses"}
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name
    assert np.isfinite(first["weights"]).all()
    assert len(set(first["sides"].tolist())) > (2 if number == 0 else 0)


# ---- whole trainings -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(making: Making, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A training of two ranks that nothing stopped."""
    job = making.job(tmp_path_factory.mktemp("two"), sync_bn=True)
    assert train_on(2, job, Hooks()).epochs == 2
    return job


def curve(job: TrainJob) -> Any:
    """The losses of each epoch: box, objectness, classes."""
    rows = list(csv.DictReader((job.folders.logs / "results.csv").read_text().splitlines(), skipinitialspace=True))
    return np.array(
        [[float(value) for name, value in row.items() if name.strip().startswith("train/")] for row in rows]
    )


def last_of(job: TrainJob) -> ResumeState:
    state = read_resume(job.folders.weights / "last.pt")
    assert state is not None
    return state


def test_a_training_of_two_ranks_is_that_of_one_process(making: Making, two_ranks: TrainJob, tmp_path: Path) -> None:
    alone = making.job(tmp_path)
    train(alone, Hooks())
    assert curve(two_ranks).shape == (2, 3)
    np.testing.assert_allclose(curve(two_ranks), curve(alone), rtol=0.01)
    ours, theirs = last_of(two_ranks).tensors, last_of(alone).tensors
    names = [name for name in theirs if name.startswith("model/") and name.endswith("weight")]
    far = apart(*(torch.cat([tensors[name].flatten() for name in names]).numpy() for tensors in (ours, theirs)))
    assert far < 1e-3
    assert set(ours) == set(theirs)


@pytest.mark.slow
def test_ranks_that_were_stopped_go_on_as_if_they_had_never_stopped(
    making: Making, two_ranks: TrainJob, tmp_path: Path
) -> None:
    job = making.job(tmp_path, sync_bn=True, resume="auto")
    seen: list[float] = []
    with pytest.raises(StoppedError, match="training was stopped in epoch 1 of 2; no epoch was done before"):
        train_on(2, job, Hooks(Progress(seen.append), lambda: bool(seen) and seen[-1] > 0.06))
    assert 0 < last_of(job).plain["position"]["batch"] < 3
    train_on(2, job, Hooks())
    ours, theirs = last_of(job), last_of(two_ranks)
    assert [name for name, value in theirs.tensors.items() if not torch.equal(value, ours.tensors[name])] == []
    assert (tmp_path / "results.csv").read_bytes() == (two_ranks.folders.logs / "results.csv").read_bytes()


def test_a_batch_that_ranks_can_not_share_is_refused(making: Making, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--batch-size: got 5, need a multiple of the 2 GPUs"):
        train_on(2, making.job(tmp_path, batch_size=5), Hooks())


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="needs a GPU that isn't there")
def test_a_missing_gpu_is_told_before_anything_is_read(making: Making, tmp_path: Path) -> None:
    with pytest.raises(NoDeviceError, match="GPU 7 was asked for"):
        train(making.job(tmp_path, device="7,8"), Hooks())
    assert not list(tmp_path.iterdir())


# ---- ends ------------------------------------------------------------------------------------------------------------


def fail_to_write(stamp: Path, told: Checkpointed) -> None:
    stamp.touch()
    raise ExecutorError("/out/models: can't be written (No space left on device)")


def test_what_ends_one_rank_ends_all_and_is_told(making: Making, tmp_path: Path) -> None:
    stamp = tmp_path / "failed"
    job = replace(making.job(tmp_path, epochs=50), on_checkpoint=partial(fail_to_write, stamp))
    with pytest.raises(ExecutorError, match=r"^/out/models: can't be written") as caught:
        train_on(2, job, Hooks())
    assert type(caught.value) is ExecutorError
    assert time.time() - stamp.stat().st_mtime < SOON_S


def starved(data: Path, spare_bytes: int) -> TrainingData:
    """In a rank, leave so much memory; else only give the data."""
    if multiprocessing.parent_process() is not None:
        found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        resource.setrlimit(resource.RLIMIT_AS, (int(found[1]) * 1024 + spare_bytes, resource.RLIM_INFINITY))
    return yolo_training_data(data)


@pytest.mark.slow
def test_ranks_without_memory_take_halves_until_one_picture_is_too_many(
    making: Making, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spare_bytes = 420 << 20  # for what a rank needs without pictures, but not for a pass at 640 px
    job = making.job(tmp_path, img_size=640, epochs=1, batch_size=6, workers=0)
    with pytest.raises(DeviceMemoryError, match="memory ran out"):
        train_on(2, replace(job, open_data=partial(starved, making.data, spare_bytes)), Hooks())
    told = [record.getMessage()[-4:] for record in caplog.records if "begin anew" in record.getMessage()]
    assert told == ["e: 2", "e: 1"]


TASK_ON_TWO_RANKS = """
import functools, sys
from training import ranks
ranks.train = functools.partial(ranks.train_on, 2)  # as with gpu_id 0,1, but on the CPU
import start
sys.exit(start.main(sys.argv[1:]))
"""


def children_of(pid: int) -> list[int]:
    """The ranks' processes; multiprocessing has one of its own beside them."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            command = (folder / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        if int(stat[1]) == pid and "spawn_main" in command:
            found.append(int(folder.name))
    return sorted(found)


def wait_for(what: Callable[[], Any], process: Optional[Any] = None) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        found = what()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it didn't happen")


@pytest.mark.parametrize(
    ("who", "number", "words"),
    [
        ("rank", signal.SIGKILL, "300101 rank 1 was ended by SIGKILL; perhaps memory ran out"),
        ("task", signal.SIGTERM, "160004 training was stopped in epoch"),
    ],
)
def test_a_task_whose_ranks_end_early_tells_the_platform_why(
    few_pictures: Path, yolov5n_pt: Path, tmp_path: Path, who: str, number: int, words: str
) -> None:
    settings = ["model=yolov5n", "epochs=100", "img_size=96", "batch_size_per_gpu=4", "precision=fp32"]
    told = ["--to", str(tmp_path), "--task", "train", "--weights", str(yolov5n_pt), "--set", *settings]
    assert make_task([str(few_pictures), *told]) == 0
    command = [sys.executable, "-c", TASK_ON_TWO_RANKS, "--in", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_for((tmp_path / "out/models/best.pt").is_file, process)
        ranks = children_of(process.pid)
        assert len(ranks) == 2
        os.kill(ranks[1] if who == "rank" else process.pid, number)
        process.communicate(timeout=SOON_S)
    finally:
        process.kill()
    assert process.returncode == 1
    monitor = (tmp_path / "out/monitor.txt").read_text()
    assert monitor.split("\n")[0].split("\t")[3] == "4"
    assert words in " ".join(monitor.split())
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_torchrun_starts_ranks_that_write_once(few_pictures: Path, yolov5n_pt: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "exp").mkdir(parents=True)  # an earlier run, which is to stay
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ["--master_addr", "127.0.0.1", "--master_port", str(free.getsockname()[1])]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *address]
    told = ["--data", str(few_pictures), "--weights", str(yolov5n_pt), "--epochs", "1", "--img", "96"]
    more = ["--batch-size", "4", "--device", "cpu", "--noautoanchor", "--noplots", "--project", str(runs)]
    command = [*torchrun, "train.py", *told, *more, "--local_rank", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Results saved to") == 1
    assert sorted(path.name for path in runs.iterdir()) == ["exp", "exp2"]
    assert not list((runs / "exp").iterdir())
    assert (runs / "exp2/weights/best.pt").is_file()
    assert len((runs / "exp2/results.csv").read_text().splitlines()) == 2
    assert done.stderr.count("epoch 1 of 1") == 1
