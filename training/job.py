"""What a training is given and what it tells: the types that doors, ranks and the loop share. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from utils.errors import StoppedError
from utils.progress import Progress
from utils.train_settings import TrainConfig, TrainFolders
from utils.training_data import TrainingData

LAST, BEST = "last.pt", "best.pt"  # in the weights' folder
PICTURES = "pictures.cache"  # folder of --cache disk, below the run's; gone at the end of a training


@dataclass(frozen=True)
class Checkpointed:
    """What stands on the disk after an epoch, but for its last.pt, which is written next. Figures lie in 0..1.

    epoch: the one just done, from 0. mean_ap, map50: of best.pt, 0 where nothing could be validated. epoch_file: where
    the epoch is also kept under its own name, with epoch_mean_ap. is_over: nothing more is trained.
    """

    epoch: int
    mean_ap: float
    map50: float
    has_best: bool
    epoch_file: Optional[Path]
    epoch_mean_ap: float
    is_over: bool


OnCheckpoint = Callable[[Checkpointed], None]


@dataclass(frozen=True)
class TrainJob:
    """One training, as each of its ranks is given it; a rank's process gets a pickled copy.

    open_data: gives the data set; called in each process. task: what a run to resume must be of. about: kept in
    last.pt for who resumes it. on_begin: called on rank 0 where training starts anew. on_checkpoint: told there when
    an epoch's files are whole. on_file: told at the end of each further file in the weights' folder, by its path there
    (None: none is made). onnx_opset: of ONNX files beside the weights (None: there are none). epoch_file: name of an
    epoch's own file below that folder. caches: labels are kept in the root; False on a rank that doesn't know yet where
    that is.
    """

    config: TrainConfig
    open_data: Callable[[], TrainingData]
    folders: TrainFolders
    task: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    draws: bool = True
    on_begin: Optional[Callable[[], None]] = None
    on_checkpoint: Optional[OnCheckpoint] = None
    on_file: Optional[Callable[[str], None]] = None
    onnx_opset: Optional[int] = None
    epoch_file: str = "epoch{epoch}.pt"
    keeps_pictures: bool = False  # on disk, for the next training of the same ones
    caches: bool = True
    resume_from: Optional[Path] = None  # None: the folder's own last.pt


def never() -> bool:
    """Say that nobody asked to stop."""
    return False


@dataclass(frozen=True)
class Hooks:
    """How a training talks to who started it."""

    progress: Progress = field(default_factory=Progress)
    should_stop: Callable[[], bool] = never

    def stopping(self, progress: Progress) -> Progress:
        """Give a share of the progress whose reports end a training that is asked to stop and has nothing to save.

        They raise StoppedError.
        """

        def report(fraction: float) -> None:
            if self.should_stop():
                raise StoppedError(
                    "training was stopped before its first batch; of this run there is nothing to keep yet"
                )
            progress.at(fraction)

        return Progress(report)


@dataclass(frozen=True)
class FitResult:
    """How a training ended: best.pt's figures, in 0..1, and its val losses (box, objectness, classes).

    epoch_map50, epoch_mean_ap: of the same weights when their epoch was validated, in fp32; best.pt holds them as fp16,
    which changes the last digits. result.yaml has these, since it is written then.
    """

    epochs: int
    precision: float = 0.0
    recall: float = 0.0
    map50: float = 0.0
    mean_ap: float = 0.0
    losses: Sequence[float] = (0.0, 0.0, 0.0)
    epoch_map50: float = 0.0
    epoch_mean_ap: float = 0.0
