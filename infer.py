"""A YMIR inference task: boxes in every candidate. `start.py` is its door."""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np
import numpy.typing as npt

from utils.batches import BatchReader, load
from utils.detections import Detections
from utils.errors import ImageError
from utils.passes import cpu_pass, whole_passes
from utils.process import one_line
from utils.progress import Progress
from utils.records import RecordFile, digest_of, line_hashes
from utils.settings import EngineSettings, InferConfig
from utils.shards import INFERENCE, Shard, check_all_done, joining
from ymir.config import TaskConfig, infer_config
from ymir.index import Candidate, CandidateIndex, candidate_index
from ymir.pictures import placing_of, read_weights, tell_of, tell_of_pictures
from ymir.results import InferResultWriter, InferSummary

if TYPE_CHECKING:
    from formats.exported import Weights

LOGGER = logging.getLogger("infer")

VERSION = 2  # of what records hold
DETECTED = 0.95  # share of the progress; the rest is the writing
UNREADABLE = (0, 0)  # stands for the size of a picture that can't be read
HEAD = struct.Struct("<2Q2I2I")  # index, hash of its line, height and width, bytes of the name, boxes

Found = Callable[[Candidate, Detections, "tuple[int, int]"], None]  # picture, boxes, its (height, width)


@dataclass(frozen=True)
class Inference:
    """A task, read."""

    task: TaskConfig
    config: InferConfig
    candidates: CandidateIndex
    checkpoint: Weights

    @property
    def digest(self) -> str:
        """Give all that a candidate's record depends on."""
        config = self.config
        return digest_of(
            version=VERSION,
            task=self.task.env.task_id,
            weights=self.checkpoint.digest,
            classes=config.class_names,
            pictures=[config.loader.img_size, config.loader.letterbox, config.loader.pictures],
            engine=[config.engine.precision, config.engine.backend],
            boxes=config.nms,
        )

    def file(self, shard: Shard, *, anew: bool = False) -> RecordFile:
        """Open a shard's records, to go on with them."""
        return RecordFile(shard.file(self.task.env.output.root_dir, INFERENCE), self.digest, anew=anew)

    def results(self) -> InferResultWriter:
        """Begin the result file."""
        env = self.task.env
        return InferResultWriter(
            env.output.infer_result_file,
            self.config.class_names,
            old_protocol=env.is_old_protocol,
            by_stem=env.run_mining,
        )


def read_inference(task: TaskConfig) -> Inference:
    """Read what an inference task names. Raises ConfigError, DatasetError, WeightsError, before torch is imported."""
    return Inference(task, infer_config(task), candidate_index(task), read_weights(task))


def infer(inference: Inference, progress: Progress) -> None:
    """Detect in every candidate and write infer-result.json. Raises ExecutorError."""
    with inference.results() as results:

        def add(item: Candidate, found: Detections, image_hw: tuple[int, int]) -> None:
            results.add(item.index, item.name, found, image_hw)

        total = inference.candidates.count()
        readable = detect(inference, Shard(), total, add, progress.part(0, DETECTED), inference.config.engine)
        tell_of(total, readable, inference.candidates, inference.config.loader.pictures)
        tell_of_result(results.finish(), inference)
    progress.at(1)


def detect(
    inference: Inference,
    shard: Shard,
    total: int,
    found: Found,
    progress: Progress,
    engine: EngineSettings,
    ranks: int = 1,
    is_done: Optional[npt.NDArray[np.bool_]] = None,
) -> int:
    """Tell `found` of each picture of a shard; gives how many could be read.

    is_done: (total,) those to leave out.
    """
    config, candidates, checkpoint = inference.config, inference.candidates, inference.checkpoint

    def set_aside(item: Candidate, error: ImageError) -> None:
        found(item, Detections.empty(), UNREADABLE)

    is_done = np.zeros(total, np.bool_) if is_done is None else is_done
    pending = (item for item in shard.of(candidates) if not is_done[item.index])
    count = int((~is_done[shard.number :: shard.count]).sum())
    # By the whole list: a picture's boxes mustn't depend on how many shards there are.
    at_once = cpu_pass(total)
    loader = whole_passes(config.loader, engine, at_once)
    placing = placing_of(loader, checkpoint)
    reader = BatchReader(pending, placing, loader, set_aside, progress, count, load)
    readable = 0
    if count:
        from formats.engines import make_engine

        detector = make_engine(checkpoint, engine, loader.batch_size, at_once, ranks)
        for batch in reader:
            readable += len(batch)
            for item, letterbox, detections in zip(batch.items, batch.letterboxes, detector.detect(batch, config.nms)):
                found(item, detections, letterbox.image_hw)
    tell_of_pictures(reader)
    return readable


def tell_of_result(summary: InferSummary, inference: Inference) -> None:
    """Log what stands in the result."""
    if summary.repeats.count:
        LOGGER.warning(
            "%d candidates have the name of an earlier one and no entry of their own: %s",
            summary.repeats.count,
            one_line(summary.repeats.first),
        )
    LOGGER.info(
        "inference: %d boxes in %d pictures in %s",
        summary.boxes,
        summary.pictures,
        inference.task.env.output.infer_result_file,
    )


# ---- shards ----------------------------------------------------------------------------------------------------------


def detect_shard(
    inference: Inference, shard: Shard, progress: Progress, engine: EngineSettings, ranks: int = 1
) -> None:
    """Leave a record of each of a shard's pictures that has none yet. Raises ExecutorError."""
    hashes = line_hashes(item.line for item in inference.candidates)
    total = len(hashes)
    with inference.file(shard, anew=inference.task.params.resume == "never") as file:
        is_done = np.zeros(total, np.bool_)
        for _, content in file:
            found_of = decode(content)
            is_done[found_of.index : found_of.index + 1] |= found_of.is_of(hashes)
        if is_done.any():
            LOGGER.info("%d candidates were looked at before and are not looked at again", is_done.sum())

        def keep(item: Candidate, found: Detections, image_hw: tuple[int, int]) -> None:
            file.append(encode(FoundOf(item.index, int(hashes[item.index]), item.name, found, image_hw)))
            file.flush()  # or all would wait in memory

        detect(inference, shard, total, keep, progress, engine, ranks, is_done)


def detect_as_rank(roots: tuple[Path, Path], world: Any, send: Callable[[Any], None]) -> None:
    """Detect as one of several ranks of this machine, in a process of its own. roots: of /in and /out."""
    from utils.process import prepare_process
    from ymir.config import read_env, read_task

    prepare_process()
    inference = read_inference(read_task(*roots, read_env(*roots)))
    engine = inference.config.engine.of_rank(world.rank)
    detect_shard(inference, Shard(world.rank, world.size), Progress(send), engine, world.size)


def merge(inference: Inference, count: int, progress: Progress) -> None:
    """Write infer-result.json of the records of `count` shards, which stay.

    Raises DatasetError where records are not this task's, or a picture has none, ImageError where none could be read.
    """
    folder = inference.task.env.output.root_dir
    hashes = line_hashes(item.line for item in inference.candidates)
    total = len(hashes)
    done, readable = np.zeros(total, np.bool_), 0
    with joining(folder, INFERENCE, count, inference.digest) as files, inference.results() as results:
        for file in files:
            for _, content in file:
                one = decode(content)
                if one.is_of(hashes) and not done[one.index]:
                    done[one.index] = True
                    readable += one.image_hw != UNREADABLE
                    results.add(one.index, one.name, one.detections, one.image_hw)
        check_all_done(done, count)
        tell_of(total, readable, inference.candidates, inference.config.loader.pictures)
        tell_of_result(results.finish(), inference)
    progress.at(1)


@dataclass(frozen=True)
class FoundOf:
    """A record: what was found in one candidate."""

    index: int
    line_hash: int
    name: str
    detections: Detections
    image_hw: tuple[int, int]

    def is_of(self, hashes: npt.NDArray[np.uint64]) -> bool:
        """Say whether it is of the index with these lines."""
        return self.index < len(hashes) and int(hashes[self.index]) == self.line_hash


def encode(found: FoundOf) -> bytes:
    """Give a record's bytes."""
    name_bytes = found.name.encode("utf-8", "surrogateescape")
    boxes = found.detections
    head = HEAD.pack(found.index, found.line_hash, *found.image_hw, len(name_bytes), len(boxes))
    floats = np.concatenate([boxes.boxes_px, boxes.scores[:, None], boxes.class_ids[:, None]], axis=1)  # (N, 6)
    return head + name_bytes + floats.astype(np.float64).tobytes()


def decode(content: bytes) -> FoundOf:
    """Give what `encode` made these bytes of."""
    index, line, height, width, name_bytes, count = HEAD.unpack_from(content)
    place = HEAD.size + name_bytes
    name = content[HEAD.size : place].decode("utf-8", "surrogateescape")
    floats = np.frombuffer(content, np.float64, 6 * count, place).reshape(count, 6)
    boxes_px, scores = floats[:, :4].astype(np.float32), floats[:, 4].astype(np.float32)
    return FoundOf(index, line, name, Detections(boxes_px, scores, floats[:, 5].astype(np.int64)), (height, width))
