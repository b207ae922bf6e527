"""What a training leaves of its epochs: YOLOv5's table, events that TensorBoard's own reader reads, one figure."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

from tests.conftest import ROOT
from utils.train_log import EpochRow, TrainLog, no_validation, read_results, results_text, smoothed, write_results

TAGS = [  # from the facts
    *("train/box_loss", "train/obj_loss", "train/cls_loss"),
    *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
    *("val/box_loss", "val/obj_loss", "val/cls_loss"),
    *("x/lr0", "x/lr1", "x/lr2"),
]
BARE = EpochRow(0, 0.1, 0.02, 0.03, **no_validation(), lr0=0.01, lr1=0.01, lr2=0.1)


def epoch_row(epoch: int) -> EpochRow:
    """A row of values that fall or rise with the epoch, all different."""
    decay = 0.9**epoch
    losses = (0.11 * decay, 0.052 * decay, 0.043 * decay)
    metrics = [share * (1 - decay) + 0.001 for share in (0.8, 0.7, 0.6, 0.4)]
    others = [share * decay for share in (0.09, 0.04, 0.03, 0.01, 0.011, 0.1)]
    return EpochRow(epoch, *[*losses, *metrics, *others])


def log_of(folder: Path, epochs: range) -> None:
    log = TrainLog(folder, epochs.start)
    for epoch in epochs:
        log.add(epoch_row(epoch))
    log.close()


def events_of(folder: Path) -> Any:
    reader = event_accumulator.EventAccumulator(str(folder), {"scalars": 0, "images": 0})
    reader.Reload()
    return reader


# ---- results.csv -----------------------------------------------------------------------------------------------------


def test_the_table_has_yolov5s_columns_padded_to_20() -> None:
    head, line = results_text([replace(BARE, train_box=0.123456789, epoch=12)]).splitlines()
    assert head == ",".join(f"{tag:>20}" for tag in ["epoch", *TAGS])
    assert line[:42] == "                  12,             0.12346,"
    assert [len(cell) for cell in line.split(",")] == [20] * 14
    assert line.split(",")[4:11] == [f"{0:20}"] * 7  # no validation


def test_pandas_reads_the_table_as_yolov5s_tools_do(tmp_path: Path) -> None:
    log_of(tmp_path, range(3))
    table = pd.read_csv(tmp_path / "results.csv", skipinitialspace=True)
    assert list(table.columns) == ["epoch", *TAGS]
    assert table["epoch"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(table["metrics/mAP_0.5"], [epoch_row(epoch).map50 for epoch in range(3)], rtol=1e-4)


@given(st.lists(st.floats(width=32), min_size=13, max_size=13), st.integers(0, 10**6))
def test_what_was_written_is_read_and_written_the_same(tmp_path_factory: Any, values: list[float], epoch: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(results_text([EpochRow(epoch, *values)]))
    (row,) = read_results(path)
    np.testing.assert_allclose(astuple(row)[1:], values, rtol=1e-4)
    assert results_text([row]) == path.read_text()


def test_a_run_that_goes_on_keeps_the_earlier_rows_and_drops_the_others(tmp_path: Path) -> None:
    log_of(tmp_path, range(5))
    before = (tmp_path / "results.csv").read_text().splitlines()
    log = TrainLog(tmp_path, 3)
    assert (tmp_path / "results.csv").read_text().splitlines() == before[:4]
    log.add(epoch_row(3))
    log.close()
    assert (tmp_path / "results.csv").read_text().splitlines() == before[:5]
    assert [row.epoch for row in log.rows] == [0, 1, 2, 3]


def test_a_run_from_the_start_keeps_nothing(tmp_path: Path) -> None:
    log_of(tmp_path, range(5))
    TrainLog(tmp_path).close()
    assert read_results(tmp_path / "results.csv") == ()


@pytest.mark.parametrize(
    "torn", ["   7,  0.1, 0.", "hello", "", ",".join(["x"] * 14), "1" * 5000 + ",1" * 13, "-1" + ",1" * 13]
)
def test_a_torn_row_is_left_out_and_said(torn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "results.csv"
    path.write_text(results_text([epoch_row(0), epoch_row(1)]) + torn + "\n")
    assert [row.epoch for row in read_results(path)] == [0, 1]
    assert "line 4" in caplog.text


def test_a_foreign_table_is_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    assert TrainLog(tmp_path, 3).rows == ()
    assert "other columns" in caplog.text


def test_a_reader_never_sees_a_part_of_the_table(tmp_path: Path) -> None:
    """Each state of the file is another file: who has it open reads on in the old one."""
    log = TrainLog(tmp_path)
    with (tmp_path / "results.csv").open() as reader:
        log.add(epoch_row(0))
        assert reader.read() == results_text([])
    assert (tmp_path / "results.csv").read_text() == results_text([epoch_row(0)])
    log.close()


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def test_tensorboard_reads_each_value_under_its_columns_name(tmp_path: Path) -> None:
    log_of(tmp_path, range(3))
    events = events_of(tmp_path)
    assert sorted(events.Tags()["scalars"]) == sorted(TAGS)
    for place, tag in enumerate(TAGS, start=1):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(epoch, np.float32(astuple(epoch_row(epoch))[place])) for epoch in range(3)]
        assert found == expected


def test_an_epoch_can_be_read_while_the_training_goes_on(tmp_path: Path) -> None:
    log = TrainLog(tmp_path)
    log.add(epoch_row(0))
    assert len(events_of(tmp_path).Scalars("x/lr2")) == 1
    log.close()


def test_an_epoch_without_validation_has_no_metrics_in_tensorboard(tmp_path: Path) -> None:
    log = TrainLog(tmp_path)
    log.add(BARE)
    log.close()
    assert sorted(events_of(tmp_path).Tags()["scalars"]) == sorted(TAGS[:3] + TAGS[-3:])


def test_tensorboard_drops_what_a_run_that_went_on_did_again(tmp_path: Path) -> None:
    log_of(tmp_path, range(5))
    os.rename(*(next(tmp_path.glob("events*")), tmp_path / "events.out.tfevents.0000000001.host"))  # noqa: PTH104
    log_of(tmp_path, range(3, 6))
    assert [event.step for event in events_of(tmp_path).Scalars("x/lr0")] == [0, 1, 2, 3, 4, 5]


def test_pictures_are_shown_as_their_files_are(tmp_path: Path, coco_images: list[Path]) -> None:
    log = TrainLog(tmp_path / "log")
    log.add_pictures([coco_images[0], tmp_path / "missing.jpg"], 0)
    log.close()
    events = events_of(tmp_path / "log")
    assert events.Tags()["images"] == [coco_images[0].stem]
    (shown,) = events.Images(coco_images[0].stem)
    assert shown.encoded_image_string == coco_images[0].read_bytes()
    pixels: Any = cv2.imread(str(coco_images[0]))
    assert (shown.height, shown.width) == pixels.shape[:2]


def test_what_others_left_in_the_folder_stays(tmp_path: Path) -> None:
    """The platform's folder may be a link and hold one that points nowhere."""
    real, link = tmp_path / "real", tmp_path / "tensorboard"
    real.mkdir()
    link.symlink_to(real)
    (real / "executor.log").symlink_to(tmp_path / "nowhere")
    (real / "events.out.tfevents.1.other").write_bytes(b"theirs")
    log_of(link, range(2))
    assert link.is_symlink() and (real / "executor.log").is_symlink() and not (tmp_path / "nowhere").exists()
    assert (real / "events.out.tfevents.1.other").read_bytes() == b"theirs"
    assert len(list(real.glob("events.out.tfevents.*"))) == 2
    assert {"results.csv", "results.png"} <= {path.name for path in real.iterdir()}


def test_the_log_does_not_bring_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from utils.train_log import TrainLog\n"
        "assert not {'tensorboard', 'matplotlib'} & set(sys.modules)\n"
        "TrainLog(Path(sys.argv[1])).close()\n"
        "sys.exit(bool({'torch', 'tensorflow', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == 0


# ---- results.png -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [epoch_row(0)],
        [replace(BARE, epoch=epoch) for epoch in range(5)],
        [replace(epoch_row(epoch), val_box=float("nan"), train_obj=float("inf")) for epoch in range(4)],
        [epoch_row(epoch) for epoch in range(300)],
    ],
    ids=["none", "one", "not validated", "not finite", "many"],
)
def test_the_figure_is_a_picture_of_any_rows(rows: list[EpochRow], tmp_path: Path) -> None:
    picture: Any = cv2.imread(str(write_results(rows, tmp_path)))
    assert picture.shape == (900, 2250, 3)
    assert picture.min() < 100  # something is drawn


def test_panels_without_values_have_no_line(tmp_path: Path) -> None:
    """The lower row and the upper right of a training that never validated are as empty as one without epochs."""
    empty: Any = cv2.imread(str(write_results([], tmp_path)))
    bare: Any = cv2.imread(str(write_results([replace(BARE, epoch=epoch) for epoch in range(4)], tmp_path)))
    np.testing.assert_array_equal(bare[460:], empty[460:])
    assert not np.array_equal(bare[:440, :400], empty[:440, :400])


def test_smoothing_leaves_a_level_line_and_evens_out_a_zigzag() -> None:
    np.testing.assert_allclose(smoothed(np.full(50, 0.7)), 0.7)
    zigzag = np.array([0.0, 1.0] * 20)
    np.testing.assert_allclose(smoothed(zigzag)[12:-12], 0.5, atol=1e-3)
    assert len(smoothed(np.array([1.0, 2.0]))) == 2
