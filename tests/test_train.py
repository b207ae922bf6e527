"""train.py from outside: what each option of YOLOv5's command line really does, seen on a few real pictures."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import train
from models.checkpoint import read_checkpoint
from models.common import Conv
from models.resume import ResumeState, read_resume
from models.yolo import DetectionModel
from tests.conftest import ROOT
from tests.training.started import watching_lines
from training.building import choose_machine
from training.data import scan_sets
from training.loop import make_run
from training.run import Run
from utils.distributed import World
from utils.metrics import MAP50_WEIGHT, MAP_WEIGHT
from utils.progress import Progress
from utils.train_log import EpochRow, read_results
from utils.train_options import parse_options
from utils.training_loader import TrainBatch

TRAINED, VALIDATED_ON = 8, 4  # pictures: two batches and one
USUAL = shlex.split("--epochs 1 --img 96 --batch-size 4 --device cpu --workers 2 --noplots --noautoanchor")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> Path:
    """The data.yaml of eight real pictures to train on, four of them to validate on."""
    folder = tmp_path_factory.mktemp("set")
    for kind, first, end in (("train", 0, TRAINED), ("val", 0, VALIDATED_ON)):
        for part in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for image in coco_images[first:end]:
            shutil.copy(image, folder / kind / "images")
            shutil.copy(image.parents[2] / "labels/train2017" / f"{image.stem}.txt", folder / kind / "labels")
    names = list(read_checkpoint(yolov5n_pt).names)
    (folder / "data.yaml").write_text(yaml.safe_dump({"train": "train/images", "val": "val/images", "names": names}))
    return folder / "data.yaml"


@pytest.fixture
def usual(data: Path, yolov5n_pt: Path, tmp_path: Path) -> list[str]:
    """The options that all trainings here begin with; later ones win."""
    return ["--data", str(data), "--weights", str(yolov5n_pt), "--project", str(tmp_path / "runs"), *USUAL]


Training = Callable[..., Path]


@pytest.fixture
def trained(usual: list[str], tmp_path: Path) -> Training:
    """trained("--quad") trains and gives the run's folder, which must be named exp."""

    def run(*options: str, folder: str = "exp") -> Path:
        assert train.main([*usual, *options]) == 0
        return tmp_path / "runs" / folder

    return run


Making = Callable[..., Run]


@pytest.fixture
def made(usual: list[str]) -> Making:
    """made("--quad") gives what would train: everything that a command line builds, before its first batch."""

    def make(*options: str) -> Run:
        job = train.new_job(parse_options([*usual, *options]))
        world = World()
        return make_run(job, scan_sets(job, Progress()), choose_machine(job.config, world), Progress())

    return make


def refused(capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """Run a command line that must fail; give its last line."""
    assert train.main(list(options)) == 1
    printed = capfd.readouterr()
    lines = (printed.out + printed.err).splitlines()
    assert not any("Traceback" in line for line in lines)
    assert lines[-1].startswith("error: ")
    return lines[-1]


def rows_of(folder: Path) -> tuple[EpochRow, ...]:
    return read_results(folder / "results.csv")


def last_of(folder: Path) -> ResumeState:
    state = read_resume(folder / "weights/last.pt")
    assert state is not None
    return state


def weights_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "weights").glob("*"))


def first_batch(run: Run) -> TrainBatch:
    batches = run.loader.batches(run.order(), 0)
    return next(iter(batches))


@contextmanager
def watching_inputs() -> Iterator[list[tuple[int, int, int, int]]]:
    """Note the shape of each batch that is trained on."""
    shapes: list[tuple[int, int, int, int]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, DetectionModel) and module.training:
            batch, channels, height, width = inputs[0].shape
            shapes.append((batch, channels, height, width))

    handle = register_module_forward_hook(note)
    try:
        yield shapes
    finally:
        handle.remove()


# ---- what a run leaves -----------------------------------------------------------------------------------------------

PICTURES = {
    "labels.jpg", "labels_correlogram.jpg", "train_batch0.jpg", "train_batch1.jpg", "val_batch0_labels.jpg",
    "val_batch0_pred.jpg", "F1_curve.png", "P_curve.png", "R_curve.png", "PR_curve.png", "confusion_matrix.png",
    "results.png",
}  # fmt: skip
# YOLOv5's (facts: results.csv); the same names are TensorBoard's tags.
COLUMNS = [
    "epoch", "train/box_loss", "train/obj_loss", "train/cls_loss", "metrics/precision", "metrics/recall",
    "metrics/mAP_0.5", "metrics/mAP_0.5:0.95", "val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1",
    "x/lr2",
]  # fmt: skip


def test_a_run_leaves_all_that_yolov5_leaves(usual: list[str], data: Path, tmp_path: Path, yolov5n_pt: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    before = sorted(data.parent.rglob("*"))
    options = [option for option in usual if option not in ("--noplots", "--noautoanchor")]
    assert train.main([*options, "--hyp", "scratch-med", "--artifact_alias", "latest", "--local_rank", "-1"]) == 0
    folder = tmp_path / "runs/exp"
    others = {"results.csv", "opt.yaml", "hyp.yaml", "train.cache", "val.cache", "weights"}
    left = {path.name for path in folder.iterdir()}
    events = [name for name in left if name.startswith("events.out.tfevents.")]
    assert left == PICTURES | others | set(events) and len(events) == 1
    assert weights_in(folder) == ["best.pt", "last.pt"]
    for name in PICTURES:
        picture: Any = cv2.imread(str(folder / name))
        assert picture is not None and min(picture.shape[:2]) >= 96 and picture.std() > 1, name
    head, *lines = (folder / "results.csv").read_text().splitlines()
    assert [cell.strip() for cell in head.split(",")] == COLUMNS
    assert len(lines) == 1 and len(lines[0].split(",")) == len(COLUMNS)
    seen = EventAccumulator(str(folder))
    seen.Reload()
    assert set(seen.Tags()["scalars"]) == set(COLUMNS[1:])
    assert {"train_batch0", "val_batch0_labels", "val_batch0_pred"} <= set(seen.Tags()["images"])
    told = yaml.safe_load((folder / "opt.yaml").read_text())
    assert (told["data"], told["weights"], told["epochs"], told["img_size"]) == (str(data), str(yolov5n_pt), 1, 96)
    given = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-med.yaml").read_text())
    kept = yaml.safe_load((folder / "hyp.yaml").read_text())
    assert {key: kept[key] for key in given} == given and given["mixup"] == 0.1
    best, own = read_checkpoint(folder / "weights/best.pt"), read_checkpoint(yolov5n_pt)
    assert best.names == own.names and best.meta["epoch"] == -1
    assert not np.allclose(best.anchors_px, own.anchors_px)  # they don't suit pictures of 96 px
    assert sorted(data.parent.rglob("*")) == before  # nothing is written beside the data


def test_noplots_draws_nothing(trained: Training) -> None:
    folder = trained()
    assert not [path.name for path in folder.iterdir() if path.suffix in (".jpg", ".png")]


# ---- whole trainings -------------------------------------------------------------------------------------------------


def test_noval_cosine_periods_and_a_run_that_goes_on(trained: Training, tmp_path: Path) -> None:
    folder = trained(*["--epochs", "2", "--noval", "--cos-lr", "--save-period", "1", "--optimizer", "Adam"])
    first, second = rows_of(folder)
    assert not first.is_validated and second.is_validated and second.map > 0
    assert weights_in(folder) == ["best.pt", "epoch1.pt", "epoch2.pt", "last.pt"]
    # Warm-up to batch 100 (facts: Optimisation), scratch-low's lr0 0.01 and lrf 0.01; rates of an epoch's last batch.
    for row, batch, epoch in ((first, 1, 0), (second, 3, 1)):
        factor = 0.01 + (1 - 0.01) * (1 + math.cos(math.pi * epoch / 2)) / 2
        assert row.lr0 == row.lr1 == pytest.approx(batch / 100 * 0.01 * factor, rel=1e-4)
        assert row.lr2 == pytest.approx(0.1 + batch / 100 * (0.01 * factor - 0.1), rel=1e-4)
    state = last_of(folder)
    assert any("exp_avg" in name for name in state.tensors)
    assert state.plain["about"]["config"]["cos_lr"] is True
    # bare --resume: the newest of the project; options given anew win, all others are the run's own
    assert train.main(["--resume", "--project", str(tmp_path / "runs"), "--epochs", "3", "--noplots"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["exp"]
    rows = rows_of(folder)
    assert rows[:2] == (first, second) and rows[2].epoch == 2
    assert "epoch3.pt" in weights_in(folder)
    assert last_of(folder).plain["about"]["config"]["optimizer"] == "Adam"


def test_nosave_writes_no_weights_before_the_end(trained: Training, tmp_path: Path) -> None:
    seen: dict[str, list[str]] = {}

    def look(line: str) -> None:
        if line.startswith("epoch 2 of 2"):
            (folder,) = (tmp_path / "runs").iterdir()
            seen[folder.name] = weights_in(folder)

    with watching_lines(look):
        folder = trained("--epochs", "2", "--nosave", "--save-period", "1")
    assert seen == {"exp": []}
    assert {"best.pt", "last.pt"} <= set(weights_in(folder))


def test_weights_are_there_after_each_epoch_and_patience_ends_a_run(trained: Training, tmp_path: Path) -> None:
    hyp = tmp_path / "h.yaml"
    hyp.write_text("lr0: 0.1\nwarmup_bias_lr: 0.1\nwarmup_epochs: 0\n")
    seen: list[list[str]] = []

    def look(line: str) -> None:
        if line.startswith("epoch 2 of"):
            seen.append(weights_in(tmp_path / "runs/exp"))

    with watching_lines(look):
        folder = trained("--epochs", "40", "--patience", "1", "--nominal-batch", "4", "--hyp", str(hyp))
    assert seen == [["best.pt", "last.pt"]]
    maps = [row.map for row in rows_of(folder)]
    best = max(place for place, value in enumerate(maps) if value == max(maps))
    assert len(maps) == best + 2 < 40  # one epoch after the best one


def test_frozen_layers_stay_and_the_others_learn(trained: Training, yolov5n_pt: Path) -> None:
    with watching_inputs() as shapes:
        folder = trained("--freeze", "10", "--multi-scale", "--epochs", "2", "--nominal-batch", "4", "--seed", "1")
    before, after = read_checkpoint(yolov5n_pt).state, read_checkpoint(folder / "weights/last.pt").state
    learned = {name for name in before if name.endswith((".weight", ".bias"))}
    changed = {name for name in learned if not np.array_equal(before[name], after[name])}
    assert not [name for name in changed if int(name.split(".")[1]) < 10]
    assert {int(name.split(".")[1]) for name in changed} >= {10, 13, 17, 20, 23, 24}
    sides = [shape[2] for shape in shapes]
    assert len(set(sides)) > 1 and all(side % 32 == 0 and 32 <= side <= 1.5 * 96 + 32 for side in sides)


def test_one_class_on_pictures_kept_on_disk(trained: Training, data: Path, tmp_path: Path) -> None:
    before = sorted(data.parent.rglob("*"))
    seen: list[int] = []

    def look(line: str) -> None:
        if line.startswith("epoch 1"):
            seen.append(len(list((tmp_path / "runs").glob("exp/pictures.cache/**/*.npy"))))

    with watching_lines(look):
        folder = trained("--single-cls", "--cache", "disk")
    best = read_checkpoint(folder / "weights/best.pt")
    assert (best.names, best.nc) == (("item",), 1)
    assert rows_of(folder)[0].val_cls == 0  # one class has no class loss
    assert seen == [TRAINED]
    assert not (folder / "pictures.cache").exists()
    assert sorted(data.parent.rglob("*")) == before


def test_a_found_batch_size_and_an_odd_image_size(trained: Training, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with watching_inputs() as shapes:
        trained("--batch-size", "-1", "--img-size", "33")
    assert "batch size: 16 (nothing is measured on a CPU)" in caplog.text
    assert "img_size 33 is rounded up to 64" in caplog.text
    assert shapes == [(TRAINED, 3, 64, 64)]


def test_a_network_with_anchors_to_be_fitted_from_scratch(usual: list[str], tmp_path: Path) -> None:
    options = [option for option in usual if option != "--noautoanchor"]
    assert train.main([*options, "--weights", "", "--cfg", "models/hub/yolov5-p34.yaml"]) == 0
    best = read_checkpoint(tmp_path / "runs/exp/weights/best.pt")
    assert best.anchors_px.shape == (2, 3, 2)
    areas = best.anchors_px.reshape(-1, 2).prod(axis=1)
    assert (np.diff(areas) >= 0).all() and best.anchors_px.min() > 2 and best.anchors_px.max() <= 110


def test_bf16_four_pictures_as_one(trained: Training, caplog: pytest.LogCaptureFixture) -> None:
    kinds: set[torch.dtype] = set()

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d) and module.training:
            kinds.add(output.dtype)

    handle = register_module_forward_hook(note)
    try:
        caplog.set_level(logging.INFO)
        with watching_inputs() as shapes:
            folder = trained("--precision", "bf16", "--quad")
    finally:
        handle.remove()
    assert kinds == {torch.bfloat16} and "training in bf16 on CPU" in caplog.text
    assert shapes == [(1, 3, 192, 192)] * 2
    assert rows_of(folder)[0].map > 0


def test_fitness_autobalance_and_smoothing(trained: Training, yolov5n_pt: Path) -> None:
    folder = trained("--fitness", "yolov5", "--autobalance", "--label-smoothing", "0.1")
    (row,) = rows_of(folder)
    state = last_of(folder)
    best = state.plain["best"]
    assert best["fitness"] == pytest.approx(MAP50_WEIGHT * row.map50 + MAP_WEIGHT * row.map, rel=1e-3)
    assert best["mean_ap"] == pytest.approx(row.map, rel=1e-3)
    balance = state.plain["loss"]["level_weights"]
    assert balance != [4.0, 1.0, 0.4] and balance == pytest.approx([4.0, 1.0, 0.4], rel=0.2)
    assert np.array_equal(  # --noautoanchor
        read_checkpoint(folder / "weights/best.pt").anchors_px, read_checkpoint(yolov5n_pt).anchors_px
    )


def test_evolve_searches_and_goes_on(trained: Training, tmp_path: Path) -> None:
    folder = trained("--evolve", "1")
    assert len((folder / "evolve.csv").read_text().splitlines()) == 2
    trained("--evolve", "2", "--exist-ok", "--cache")
    head, first, second = (folder / "evolve.csv").read_text().splitlines()
    assert first != second and len(head.split(",")) == len(second.split(","))
    best = yaml.safe_load((folder / "hyp_evolve.yaml").read_text())
    assert 1e-5 <= best["lr0"] <= 0.1
    picture: Any = cv2.imread(str(folder / "evolve.png"))
    assert picture is not None and picture.std() > 1
    assert read_checkpoint(folder / "weights/best.pt").nc == 80
    assert not (folder / "generation").exists()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["exp"]


def test_a_new_run_gets_a_new_folder_unless_told_otherwise(made: Making, tmp_path: Path) -> None:
    made(), made(), made("--exist-ok"), made("--name", "mine"), made("--name", "mine")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["exp", "exp2", "mine", "mine2"]


@pytest.mark.slow
def test_two_ranks_with_synchronised_norms(usual: list[str], tmp_path: Path) -> None:
    options = [*usual, "--sync-bn"]
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*starter, str(ROOT / "train.py"), *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "on each of 2 ranks" in done.stderr
    assert rows_of(tmp_path / "runs/exp")[0].map > 0


# ---- what is built ---------------------------------------------------------------------------------------------------


OPTIMIZERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


@pytest.mark.parametrize(("name", "kind"), OPTIMIZERS.items())
def test_optimizers(name: str, kind: type[torch.optim.Optimizer], made: Making) -> None:
    optimizer = made("--optimizer", name).training.optimizer
    assert type(optimizer) is kind
    if name == "SGD":
        assert all(group["nesterov"] for group in optimizer.param_groups)
    else:
        assert optimizer.param_groups[0]["betas"] == (0.937, 0.999)


def test_nominal_batch_decides_steps_and_decay(made: Making) -> None:
    for nominal, batches, decay in ((64, 16, 5e-4), (4, 1, 5e-4), (6, 2, 5e-4 * 8 / 6)):
        run = made("--nominal-batch", str(nominal))
        assert run.training.schedule.accumulate == batches
        decays = sorted(group["weight_decay"] for group in run.training.optimizer.param_groups)
        assert decays == [0, 0, pytest.approx(decay)]


def test_label_smoothing_changes_the_class_loss_alone(made: Making) -> None:
    parts = []
    for share in ("0", "0.1"):
        run = made("--label-smoothing", share)
        batch = first_batch(run)
        parts.append(run.training.learn(batch.pixels, batch.rows, 0, None))
    assert torch.equal(parts[0][:2], parts[1][:2]) and parts[0][2] < parts[1][2]


def test_activation_replaces_all(made: Making) -> None:
    run = made("--activation", "Hardswish")
    kinds = {type(module.act) for module in run.training.model.modules() if isinstance(module, Conv)}
    assert kinds == {nn.Hardswish}
    assert {type(module.act) for module in made().training.model.modules() if isinstance(module, Conv)} == {nn.SiLU}


def test_a_cfg_wins_over_the_weights_own(made: Making, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = made("--cfg", "yolov5s-LeakyReLU")
    kinds = {type(module.act) for module in run.training.model.modules() if isinstance(module, Conv)}
    assert kinds == {nn.LeakyReLU}
    assert "network: 25 layers, 7235389 parameters" in caplog.text  # facts: parameters
    path = ROOT / "models/yolov5n.yaml"
    assert made("--cfg", str(path)).training.model.state_dict()["model.0.conv.weight"].shape[0] == 16
    assert "348 of 349 entries taken over" in caplog.text  # all but the anchors, the cfg's own


def test_rectangles_keep_their_order(made: Making) -> None:
    run = made("--rect", "--img", "192", "--batch-size", "2")
    assert np.array_equal(run.order(), run.training_set.base_order)
    shapes = {batch.pixels.shape[1:3] for batch in run.loader.batches(run.order(), 0)}
    assert any(height != width for height, width in shapes)
    assert all(side % 32 == 0 for hw in shapes for side in hw) and max(max(hw) for hw in shapes) == 192
    assert first_batch(made()).pixels.shape == (4, 96, 96, 3)


def test_image_weights_draw_with_replacement(made: Making) -> None:
    plain, weighted = made(), made("--image-weights")
    assert sorted(plain.order().tolist()) == list(range(TRAINED))
    drawn = weighted.order().tolist()
    assert len(drawn) == TRAINED and len(set(drawn)) < TRAINED


def test_a_cache_in_memory_gives_the_same_pictures(made: Making) -> None:
    kept, plain = made("--cache", "ram"), made("--workers", "0")
    assert kept.store.read(3) is kept.store.read(3)  # not decoded anew
    assert plain.store.read(3) is not plain.store.read(3)
    for one, other in zip(kept.loader.batches(kept.order(), 0), plain.loader.batches(plain.order(), 0)):
        assert np.array_equal(one.pixels, other.pixels) and np.array_equal(one.rows, other.rows)


def test_the_seed_decides_what_is_drawn(made: Making) -> None:
    one, same, other = made(), made("--seed", "0"), made("--seed", "1")
    assert np.array_equal(first_batch(one).pixels, first_batch(same).pixels)
    assert not np.array_equal(one.order(), other.order())


@pytest.mark.parametrize("option", ["--imgsz", "--img", "--img-size"])
@pytest.mark.parametrize(("given", "side"), [(1, 64), (64, 64), (65, 96), (128, 128)])
def test_sizes(option: str, given: int, side: int, made: Making) -> None:
    assert first_batch(made(option, str(given))).pixels.shape == (4, side, side, 3)


@pytest.mark.parametrize("name", ["yolov5-p2", "yolov5-p6"])
def test_placeholder_anchors_are_fitted(name: str, usual: list[str]) -> None:
    options = [option for option in usual if option != "--noautoanchor"]
    job = train.new_job(parse_options([*options, "--cfg", name]))
    run = make_run(job, scan_sets(job, Progress()), choose_machine(job.config, World()), Progress())
    detect = run.training.model.detect
    anchors_px = detect.anchors * torch.tensor(run.training.model.stride).view(-1, 1, 1)
    assert anchors_px.shape == (4, 3, 2) and float(anchors_px.min()) > 2
    assert bool((anchors_px.prod(2).flatten().diff() >= 0).all())


def test_without_a_device_it_is_the_first_gpu_if_there_is_one(usual: list[str]) -> None:
    place = usual.index("--device")
    job = train.new_job(parse_options([*usual[:place], *usual[place + 2 :]]))
    assert job.config.device == ("0" if torch.cuda.is_available() else "")


def test_single_ranks_take_sync_bn(made: Making) -> None:
    kinds = {type(module) for module in made("--sync-bn").training.model.modules() if hasattr(module, "running_mean")}
    assert kinds == {nn.BatchNorm2d}


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "weights that are not there": ("--weights none.pt", r"--weights: got 'none\.pt', there is no such file"),
    "weights of another kind": ("--weights x.onnx", r"--weights: x\.onnx is no \.pt file"),
    "from scratch without a model": ("--weights ''", r"--weights: is ''.*--cfg"),
    "an unknown model": ("--cfg yolov9", r"--cfg: got 'yolov9'.*yolov5n.*yolov5x6"),
    "an unknown set": ("--hyp mine", r"--hyp: got 'mine'.*scratch-low"),
    "a GPU that is not there": ("--device 7", r"GPU|CUDA"),
    "data that is not there": ("--data none.yaml", r"none\.yaml"),
    "a bucket": ("--bucket b", r"--bucket: .*not offered"),
    "an entity": ("--entity me", r"--entity: .*not offered"),
    "an upload": ("--upload_dataset", r"--upload_dataset: .*not offered"),
    "boxes in the web": ("--bbox_interval 3", r"--bbox_interval: .*not offered"),
    "an alias": ("--artifact_alias v1", r"--artifact_alias: .*not offered"),
    "no epochs": ("--epochs 0", r"--epochs: got '0'"),
    "no batch": ("--batch-size 0", r"--batch-size: got '0'"),
    "no size": ("--img 0", r"--img.*got '0'"),
    "fp16 on a CPU": ("--precision fp16", r"precision.*fp16"),
    "an unknown activation": ("--activation Rulu", r"activation: got 'Rulu'"),
    "anchors to be fitted, not fitted": ("--cfg yolov5-p34 --noautoanchor", r"--noautoanchor: .*leave it out"),
    "nothing to resume": ("--resume --project none", r"--resume: there is no \*/weights/last\.pt in none"),
    "weights only to resume": ("--resume WEIGHTS", r"holds weights only, nothing to go on from"),
    "more frozen than there is": ("--freeze 99", r"freeze"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_told_in_the_last_line(
    case: str, usual: list[str], yolov5n_pt: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options, words = REFUSED[case]
    line = refused(capfd, *usual, *shlex.split(options.replace("WEIGHTS", str(yolov5n_pt))))
    assert re.search(words, line), line


@pytest.mark.parametrize(
    ("text", "words"),
    [("lr0: fast\n", r"hyp lr0: got 'fast'"), ("{", r"h\.yaml"), ("- 1\n", r"h\.yaml"), ("mosaic: 2\n", "mosaic")],
)
def test_a_broken_hyp_file(text: str, words: str, usual: list[str], tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "h.yaml").write_text(text)
    assert re.search(words, refused(capfd, *usual, "--hyp", str(tmp_path / "h.yaml")))
    assert not (tmp_path / "runs").exists()


def test_a_wrong_option_is_told_before_torch_loads(data: Path) -> None:
    code = "import sys, train; code = train.main(sys.argv[1:]); sys.exit(9 if 'torch' not in sys.modules else code)"
    done = subprocess.run(
        [sys.executable, "-c", code, "--data", str(data), "--optimizer", "Lion"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 9, done.stderr
    assert "--optimizer: invalid choice" in done.stderr.splitlines()[-1]
