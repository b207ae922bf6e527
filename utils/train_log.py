"""What a training leaves of its epochs: results.csv, TensorBoard's events, results.png. No torch here.

An epoch that was not validated has 0 in the seven columns that a validation fills, as YOLOv5 writes it; TensorBoard
gets no value then, and the figure no point.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Optional

import numpy as np

from utils.errors import ConfigError
from utils.files import read_bytes, write_whole
from utils.metrics import FloatArray
from utils.picture_headers import read_header
from utils.plots import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG = logging.getLogger(__name__)

RESULTS_CSV, RESULTS_PNG = "results.csv", "results.png"
COLUMN_WIDTH = 20
MAX_CSV_BYTES = 100_000_000
SMOOTHING_EPOCHS = 3.0  # standard deviation of the bell that the dotted line is smoothed with
# Field of EpochRow -> column of results.csv and TensorBoard's tag: YOLOv5's names (facts: results.csv).
COLUMNS = MappingProxyType(
    {
        "epoch": "epoch",
        "train_box": "train/box_loss",
        "train_obj": "train/obj_loss",
        "train_cls": "train/cls_loss",
        "precision": "metrics/precision",
        "recall": "metrics/recall",
        "map50": "metrics/mAP_0.5",
        "map": "metrics/mAP_0.5:0.95",
        "val_box": "val/box_loss",
        "val_obj": "val/obj_loss",
        "val_cls": "val/cls_loss",
        "lr0": "x/lr0",
        "lr1": "x/lr1",
        "lr2": "x/lr2",
    }
)
VALIDATED = ("precision", "recall", "map50", "map", "val_box", "val_obj", "val_cls")
# The panels of results.png, row by row.
PANELS = (
    ("train_box", "train_obj", "train_cls", "precision", "recall"),
    ("val_box", "val_obj", "val_cls", "map50", "map"),
)


@dataclass(frozen=True)
class EpochRow:
    """One epoch's figures: mean losses (after their gains), the validation of the EMA, and the learning rates.

    lr0, lr1, lr2: of the weights of norms, of the weights that decay, of the biases. See no_validation().
    """

    epoch: int  # from 0
    train_box: float
    train_obj: float
    train_cls: float
    precision: float
    recall: float
    map50: float
    map: float
    val_box: float
    val_obj: float
    val_cls: float
    lr0: float
    lr1: float
    lr2: float

    @property
    def is_validated(self) -> bool:
        """Tell whether a validation was made; one always has losses, so that all seven are 0 only without."""
        return any(getattr(self, name) != 0 for name in VALIDATED)


def no_validation() -> dict[str, float]:
    """Give what an epoch without a validation has in its seven fields: EpochRow(..., **no_validation())."""
    return dict.fromkeys(VALIDATED, 0.0)


# ---- results.csv -----------------------------------------------------------------------------------------------------


def padded(cells: Iterable[str]) -> str:
    """Give one line of a table in YOLOv5's form: each cell at the right of 20 columns, commas between."""
    return ",".join(f"{cell:>{COLUMN_WIDTH}}" for cell in cells) + "\n"


def results_text(rows: Sequence[EpochRow]) -> str:
    """Give the text of results.csv."""
    lines = [padded([str(row.epoch), *(f"{value:.5g}" for value in astuple(row)[1:])]) for row in rows]
    return "".join([padded(COLUMNS.values()), *lines])


def read_results(path: Path) -> tuple[EpochRow, ...]:
    """Read the rows of a results.csv; what is no row of ours is left out with a warning, a missing file has none.

    Epochs rise: of two rows for one epoch, or one that falls back, the first is kept.
    """
    try:
        text = read_bytes(path, MAX_CSV_BYTES, ConfigError).decode("utf-8", "replace")
    except ConfigError as cause:
        LOG.warning("%s: it begins anew", cause)
        return ()
    head, *lines = text.splitlines() or [""]
    if [cell.strip() for cell in head.split(",")] != list(COLUMNS.values()):
        LOG.warning("%s: has other columns than ours, its rows are dropped", path)
        return ()
    rows: list[EpochRow] = []
    for number, line in enumerate(lines, start=2):
        row = _parse_row(line)
        if row is None or (rows and row.epoch <= rows[-1].epoch):
            LOG.warning("%s line %d: is no further epoch of %d numbers, left out", path, number, len(COLUMNS))
        else:
            rows.append(row)
    return tuple(rows)


def _parse_row(line: str) -> Optional[EpochRow]:
    epoch, *cells = line.split(",")
    if len(cells) != len(COLUMNS) - 1 or not epoch.strip().isdecimal() or len(epoch) > COLUMN_WIDTH:
        return None
    with suppress(ValueError):
        return EpochRow(int(epoch), *map(float, cells))
    return None


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


class EventFile:
    """One event file of TensorBoard's, written by its own record writer and message types.

    A program that goes on at a later step says so in its file: TensorBoard then drops what older files have from
    that step on. No other file in the folder is touched.
    """

    _numbers = itertools.count()  # of the files of this process, which may begin several within a second

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open a new file in a folder that is there. Raises OSError."""
        # Half a second's work, for those who train; TensorBoard has no types.
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        file: IO[bytes] = (folder / name.replace("/", "_")).open("xb")
        self._writer: Any = RecordWriter(file)
        self._write(file_version="brain.Event:2")
        if first_step > 0:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=first_step, session_log=start)
        self.flush()

    def _write(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Write one value for each tag."""
        entries = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary(value=entries))

    def add_picture(self, tag: str, content: bytes, step: int) -> None:
        """Write a picture, the bytes of a JPEG or PNG file. Raises PictureError where they are none."""
        height, width = read_header(io.BytesIO(content)).stored_hw
        picture = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self._write(step=step, summary=self._summary(value=[self._summary.Value(tag=tag, image=picture)]))

    def flush(self) -> None:
        """Let readers see all that was written."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close; a second time does nothing."""
        if not self._writer.closed:
            self._writer.close()


# ---- the log ---------------------------------------------------------------------------------------------------------


class TrainLog:
    """The record of a training in a folder; results.csv is whole at every instant.

    first_epoch: the epoch to go on at. Rows of an earlier run before it are kept, later ones dropped; 0 keeps none.
    """

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        """Make the folder where it isn't there, and begin. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        earlier = read_results(folder / RESULTS_CSV) if first_epoch > 0 else ()
        self._rows = [row for row in earlier if row.epoch < first_epoch]
        self._write_csv()
        self._events = EventFile(folder, first_epoch)

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """All rows, those of an earlier run that was gone on with too."""
        return tuple(self._rows)

    def add(self, row: EpochRow) -> None:
        """Write an epoch's figures; a row that is there for it, or for a later epoch, gives way."""
        self._rows = [*(earlier for earlier in self._rows if earlier.epoch < row.epoch), row]
        self._write_csv()
        names = [name for name in COLUMNS if name != "epoch" and (row.is_validated or name not in VALIDATED)]
        self._events.add_scalars({COLUMNS[name]: getattr(row, name) for name in names}, row.epoch)
        self._events.flush()

    def add_pictures(self, paths: Iterable[Path], epoch: int) -> None:
        """Show picture files (JPEG, PNG) in TensorBoard under their names without suffix; what isn't there is not."""
        for path in paths:
            with suppress(FileNotFoundError):
                self._events.add_picture(path.stem, path.read_bytes(), epoch)
        self._events.flush()

    def close(self, draws: bool = True) -> None:
        """Close the event file and, unless told not to, draw results.png; a second time draws it again."""
        self._events.close()
        if draws:
            write_results(self._rows, self._folder)

    def _write_csv(self) -> None:
        write_whole(self._folder / RESULTS_CSV, results_text(self._rows).encode())


# ---- results.png -----------------------------------------------------------------------------------------------------


def write_results(rows: Sequence[EpochRow], folder: Path) -> Path:
    """Write results.png into a folder: losses and metrics over the epochs, the smoothed ones dotted."""
    figure = new_figure(15, 6)
    grid = figure.subplots(2, 5)
    figure.subplots_adjust(0.04, 0.07, 0.99, 0.94, wspace=0.27, hspace=0.25)
    for axes, name in zip(grid.flat, itertools.chain(*PANELS)):
        axes.set_title(COLUMNS[name], fontsize=11)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        shown = [row for row in rows if row.is_validated or name not in VALIDATED]
        _draw_panel(axes, [(row.epoch, getattr(row, name)) for row in shown if math.isfinite(getattr(row, name))])
    figure.text(0.5, 0.01, f"epoch (dotted: smoothed over {SMOOTHING_EPOCHS:g} epochs)", ha="center", fontsize=10)
    return save_figure(figure, folder / RESULTS_PNG)


def _draw_panel(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    """Draw values over epochs; an empty panel says that there are none."""
    from matplotlib.ticker import MaxNLocator

    if not points:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no values", ha="center", color="0.5", transform=axes.transAxes)
        return
    epochs, values = np.array(points, np.float64).T
    many = len(points) > 60  # marks would hide the line
    axes.plot(epochs, values, color="#1f77b4", linewidth=1.5, marker="" if many else "o", markersize=3.5)
    if len(points) > 2:
        axes.plot(epochs, smoothed(values), color="#d9700e", linewidth=1.8, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def smoothed(values: FloatArray) -> FloatArray:
    """Average each of (N,) values with its neighbours under a bell of 3 epochs; at the ends with those there are."""
    reach = np.arange(-math.ceil(4 * SMOOTHING_EPOCHS), math.ceil(4 * SMOOTHING_EPOCHS) + 1)
    bell = np.exp(-0.5 * (reach / SMOOTHING_EPOCHS) ** 2)
    half = len(bell) // 2
    whole = np.convolve(values, bell)[half : half + len(values)]
    weight = np.convolve(np.ones(len(values)), bell)[half : half + len(values)]
    return np.asarray(whole / weight, np.float64)
