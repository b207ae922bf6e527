"""A study: how a model's mAP and its time change with the size of its input, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from utils.files import replacing, write_whole

DPI = 200


@dataclass(frozen=True)
class StudyRow:
    """One validation of a study."""

    img_size: int
    p: float
    r: float
    map50: float
    map: float
    preprocess_ms: float  # a picture; so are the others
    inference_ms: float
    nms_ms: float

    @property
    def total_ms(self) -> float:
        """All that a picture takes."""
        return self.preprocess_ms + self.inference_ms + self.nms_ms


def write_study(rows: Sequence[StudyRow], path: Path) -> None:
    """Write one model's study as a text table with a head."""
    head = "".join(f"{field.name:>14}" for field in fields(StudyRow))
    lines = ["".join(f"{value:>14.4g}" for value in astuple(row)) for row in rows]
    write_whole(path, "\n".join([head, *lines, ""]).encode())


def draw_study(studies: Mapping[str, Sequence[StudyRow]], path: Path) -> None:
    """Draw mAP over milliseconds a picture as a PNG, a line for each model, its sizes beside the points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second's work, for those who draw
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, rows in studies.items():
        line = axes.plot([row.total_ms for row in rows], [row.map for row in rows], marker="o", linewidth=2)[0]
        line.set_label(name.lstrip("_").replace("$", ""))  # else left out, or read as mathematics
        for row in rows:
            place = (row.total_ms, row.map)
            axes.annotate(str(row.img_size), place, textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    axes.set_xlabel("ms an image (pre-process, inference, NMS)")
    axes.set_ylabel("mAP50-95")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="best")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
