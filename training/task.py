"""A YMIR training task -> a job, and its results as the platform wants them (SPEC section 4)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from training.job import BEST, LAST, Checkpointed, Hooks, TrainJob
from utils.errors import ExecutorError
from utils.stats import FILE_NAME
from utils.train_settings import TrainFolders
from ymir.config import TaskConfig
from ymir.results import BEST_STAGE, OLD_STAGE, ModelStage, matching_files, read_stages, write_stages
from ymir.train_config import TrainTask, train_config
from ymir.training_data import ymir_training_data
from ymir.ymir_yolov5 import convert_ymir_to_yolov5, merged_config

LOGGER = logging.getLogger("train")

EPOCH_STAGE = "epoch_{epoch}"
BEST_ONNX = "best.onnx"


@dataclass(frozen=True)
class StageWriter:
    """Keeps result.yaml in step with the files of a training; called when an epoch's are whole.

    Picklable: on several ranks rank 0's process calls it.
    """

    result_file: Path
    models_dir: Path
    patterns: str
    is_old_protocol: bool

    def __call__(self, told: Checkpointed) -> None:
        """Replace result.yaml by one with this epoch's stage, if it has one, and the best one's."""
        stages = {stage.name: stage for stage in read_stages(self.result_file)}
        if told.epoch_file is not None:
            name = EPOCH_STAGE.format(epoch=told.epoch + 1)
            stages[name] = self._stage(name, [told.epoch_file.name], told.epoch_mean_ap)
        if told.has_best:
            stages.pop(BEST_STAGE, None)  # last, so that of equal ones it is the best
            stages[BEST_STAGE] = self._stage(BEST_STAGE, [BEST], told.mean_ap)
        kept = write_stages(self.result_file, self.models_dir, list(stages.values()), old_protocol=self.is_old_protocol)
        self._remove_others({stage.name for stage in kept})

    def clear(self) -> None:
        """Take away what an earlier run left, so that nobody takes it for this one's."""
        self.result_file.unlink(missing_ok=True)
        for name in (BEST, LAST, FILE_NAME, BEST_ONNX):
            (self.models_dir / name).unlink(missing_ok=True)
        self._remove_others(set())

    def add_file(self, path: str) -> None:
        """List one more file, now that it is whole: a stage's own with it, one of all stages with every one.

        path: in the models' folder.
        """
        folder, _, name = path.rpartition("/")
        owners = (BEST_STAGE, OLD_STAGE) if name == BEST_ONNX else (folder,) if folder else ()
        stages = [
            replace(stage, files=(*stage.files, name))
            if name not in stage.files and (not owners or stage.name in owners)
            else stage
            for stage in read_stages(self.result_file)
        ]
        write_stages(self.result_file, self.models_dir, stages, old_protocol=self.is_old_protocol)

    def _stage(self, name: str, files: Sequence[str], mean_ap: float) -> ModelStage:
        # An epoch's stage must hold no other weights: who takes it would find best.pt first, or the newest .pt.
        own = files if name == BEST_STAGE else [BEST, LAST, *files]
        more = [found for found in matching_files(self.models_dir, self.patterns) if found not in own]
        return ModelStage(name, (*files, *more), mean_ap, int(time.time()))

    def _remove_others(self, kept: set[str]) -> None:
        """Delete the files of stages that result.yaml no longer names."""
        for folder in self._stage_folders():
            if folder.name not in kept:
                for file in folder.iterdir():
                    file.unlink(missing_ok=True)
                folder.rmdir()

    def _stage_folders(self) -> Iterator[Path]:
        pattern = EPOCH_STAGE.format(epoch="*")
        return (folder for folder in self.models_dir.glob(pattern) if folder.is_dir() and not folder.is_symlink())


def run_training(task: TaskConfig, hooks: Hooks) -> None:
    """Train as a task says; its results are in /out at every moment. Raises ExecutorError."""
    told = train_config(task)
    job = make_job(task, told)
    write_tree(task)
    if told.evolve is not None:
        from training.evolving import evolve

        evolve(job, told.evolve, hooks)
        return
    from training.ranks import train

    result = train(job, hooks)
    LOGGER.info(
        "training: %d epochs; mAP50 %.4f, mAP %.4f at the best one (%s), %.4f and %.4f of best.pt, whose weights are "
        "kept as fp16, in %s; curves and pictures in %s",
        result.epochs,
        result.epoch_map50,
        result.epoch_mean_ap,
        task.env.output.training_result_file.name,
        result.map50,
        result.mean_ap,
        job.folders.weights,
        job.folders.logs,
    )
    hooks.progress.at(1)


def make_job(task: TaskConfig, told: TrainTask) -> TrainJob:
    """Give a task's job."""
    output = task.env.output
    writer = StageWriter(
        result_file=output.training_result_file,
        models_dir=output.models_dir,
        patterns=task.params.ymir_saved_file_patterns,
        is_old_protocol=task.env.is_old_protocol,
    )
    return TrainJob(
        config=told.config,
        open_data=partial(ymir_training_data, task),
        folders=TrainFolders(output.root_dir, output.models_dir, output.tensorboard_dir),
        task=task.env.task_id,
        draws=told.plots,
        on_begin=writer.clear,
        on_checkpoint=writer,
        on_file=writer.add_file,
        onnx_opset=told.opset,
        epoch_file=f"{EPOCH_STAGE}/epoch{{epoch}}.pt",
        resume_from=told.resume_from,
    )


def write_tree(task: TaskConfig) -> None:
    """Write data.yaml, train.tsv, val.tsv and test.tsv, as the plug-ins know them. Raises ExecutorError."""
    output = task.env.output
    try:
        for folder in (output.models_dir, output.tensorboard_dir):
            folder.mkdir(parents=True, exist_ok=True)
        convert_ymir_to_yolov5(merged_config(task))
    except OSError as cause:
        raise ExecutorError(
            f"{cause.filename or output.root_dir}: can't be written ({cause.strerror}); make room there, "
            "see that this user may write there, and start again"
        ) from cause
