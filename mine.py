"""A YMIR mining task: each candidate looked at once, all put into one order. `start.py` is its door."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np

from formats.exported import Exported, Weights, choose_backend
from mining import MINERS
from mining.mining_aldd import check_weights
from mining.ranking import Order, OrderOptions, Pool, order_of
from mining.runner import Keeper, Ledger, score_all
from mining.scored import Miner
from mining.sight import Wants, wants_of
from utils.batches import BatchReader, Loading, check, load, load_whole
from utils.errors import ConfigError, DatasetError, ImageError
from utils.labelled import ignore
from utils.passes import CPU_PASS, whole_passes
from utils.process import one_line
from utils.progress import Progress
from utils.records import RecordFile, digest_of, line_hash
from utils.settings import EngineSettings, MiningConfig
from utils.shards import MINING, Shard, check_all_done, joining
from ymir.config import TaskConfig, mining_config
from ymir.index import Candidate, CandidateIndex, candidate_index
from ymir.pictures import placing_of, read_weights, side_of, tell_of, tell_of_pictures
from ymir.results import LineTable, MiningSummary, rounded_scores

if TYPE_CHECKING:
    from mining.report import ReportRow, Shown
    from utils.stats import MiningStats

LOGGER = logging.getLogger("mining")

VERSION = 1  # of what records hold; another one's are made anew
SCORED = 0.95  # share of the progress; the rest is the order
MOST_REPORTED = 50  # best ones, and last ones


@dataclass(frozen=True)
class Mining:
    """A task, read: what scoring and ordering share."""

    task: TaskConfig
    config: MiningConfig
    miner: Miner
    wants: Wants
    candidates: CandidateIndex
    checkpoint: Optional[Weights]  # None: nobody looks at the pixels

    @property
    def digest(self) -> str:
        """Give all that a candidate's record depends on."""
        config, checkpoint = self.config, self.checkpoint
        return digest_of(
            version=VERSION,
            task=self.task.env.task_id,
            weights=checkpoint.digest if checkpoint else "",
            algorithm=config.algorithm,
            options=[
                config.seed,
                config.entropy_of,
                config.class_distribution_scores,
                config.cald_mode,
                config.cald_empty,
            ],
            pictures=[config.loader.img_size, config.loader.letterbox, config.loader.pictures],
            engine=[config.engine.precision, config.engine.backend],
            boxes=config.nms,
            kept=self.wants,
        )

    def file(self, shard: Shard, *, anew: bool = False) -> RecordFile:
        """Open a shard's records, to go on with them."""
        return RecordFile(shard.file(self.task.env.output.root_dir, MINING), self.digest, anew=anew)


def read_mining(task: TaskConfig) -> Mining:
    """Read what a mining task names. Raises ConfigError, DatasetError, WeightsError, before torch is imported."""
    config = mining_config(task)
    miner, wants = MINERS[config.algorithm], wants_of(config)
    candidates = candidate_index(task)
    if config.algorithm == "aldd":
        check_weights(config)
    looks = miner.needs_model or wants.needs_model
    checkpoint = read_weights(task, same_classes=miner.same_classes or wants.needs_classes) if looks else None
    if wants.features and checkpoint is not None and choose_backend(checkpoint, config.engine.backend) != "torch":
        raise ConfigError(
            f"mining_algorithm diverse, diversity, dedup: {checkpoint.path} run by another engine gives no features; "
            "give a .pt, and leave backend out (config.yaml)"
        )
    return Mining(task, config, miner, wants, candidates, checkpoint)


# ---- scoring ---------------------------------------------------------------------------------------------------------


def score_shard(
    mining: Mining, shard: Shard, progress: Progress, engine: Optional[EngineSettings] = None, ranks: int = 1
) -> None:
    """Make the record of each of a shard's candidates that has none yet.

    engine: instead of the task's, for one of several ranks on this machine. Raises ExecutorError.
    """
    config, candidates = mining.config, mining.candidates
    engine = engine or config.engine
    with mining.file(shard, anew=mining.task.params.resume == "never") as file:
        ledger = Ledger(candidates)
        ledger.take(file)
        done = int(ledger.is_done.sum())
        if done:
            LOGGER.info("%d candidates were scored before and are not scored again", done)
        own = len(range(shard.number, len(ledger), shard.count))
        pending = (item for item in shard.of(candidates) if not ledger.is_done[item.index])
        keeper = Keeper(file, config, mining.wants)
        loader = whole_passes(config.loader, engine, CPU_PASS)
        reader = BatchReader(
            pending,
            placing_of(loader, mining.checkpoint),
            loader,
            keeper.set_aside,
            progress,
            max(own - done, 1),
            loading_of(mining),
        )
        detector = None
        if mining.checkpoint and own > done:
            from formats.engines import make_engine

            detector = make_engine(mining.checkpoint, engine, loader.batch_size, CPU_PASS, ranks)
            detector = replace(detector, gives_features=mining.wants.features)
        score_all(reader, keeper, mining.miner, detector, config)
    tell_of_pictures(reader)


def loading_of(mining: Mining) -> Loading[Candidate]:
    """Give how much of each picture must be read."""
    if mining.checkpoint is None:
        return check
    return load_whole if mining.miner.needs_picture else load


def score_as_rank(roots: tuple[Path, Path], world: Any, send: Callable[[Any], None]) -> None:
    """Score as one of several ranks of this machine, in a process of its own. roots: of /in and /out."""
    from utils.process import prepare_process
    from ymir.config import read_env, read_task

    prepare_process()
    task = read_task(*roots, read_env(*roots))
    mining = read_mining(task)
    score_shard(
        mining, Shard(world.rank, world.size), Progress(send), mining.config.engine.of_rank(world.rank), world.size
    )


# ---- ordering --------------------------------------------------------------------------------------------------------


def merge(mining: Mining, count: int, progress: Progress) -> MiningSummary:
    """Put the records of `count` shards into one order and write result.tsv. The records stay.

    Raises DatasetError where records are not this task's, or a candidate has none, ImageError where no picture could
    be read.
    """
    env, table = mining.task.env, LineTable()
    ledger = Ledger(mining.candidates)
    for item in mining.candidates:
        table.add(item.line)
    with joining(env.output.root_dir, MINING, count, mining.digest) as files:
        for file in files:
            ledger.take(file)
        check_all_done(ledger.is_done, count)
        tell_of(len(ledger), int(ledger.is_readable.sum()), mining.candidates, mining.config.loader.pictures)
        progress.at(0.2)
        summary = Ordering(mining, ledger, table).write(env.output.mining_result_file, progress.part(0.2, 0.9))
    tell_of_result(summary)
    LOGGER.info(
        "mining by %s: %d candidates in %s", mining.config.algorithm, summary.lines, env.output.mining_result_file
    )
    progress.at(1)
    return summary


def tell_of_result(summary: MiningSummary) -> None:
    """Log what the platform can't tell apart."""
    if summary.repeated_lines:
        LOGGER.warning("%d lines of the index repeat an earlier one and stand once", summary.repeated_lines)
    if summary.same_name.count:
        LOGGER.warning(
            "%d candidates share their name without suffix with another, the platform can't tell them apart: %s",
            summary.same_name.count,
            one_line(summary.same_name.first),
        )


class Ordering:
    """Puts the distinct candidates of a ledger into their order. A row is a candidate's place in the index."""

    def __init__(self, mining: Mining, ledger: Ledger, table: LineTable) -> None:
        self._mining, self._ledger, self._table = mining, ledger, table
        distinct = table.distinct()
        is_readable = ledger.is_readable[distinct]
        self._rows, self._unreadable = distinct[is_readable], distinct[~is_readable]
        self._scores = rounded_scores(ledger.scores[self._rows])

    def write(self, path: Path, progress: Progress) -> MiningSummary:
        """Order them and write result.tsv, and the report where one is wanted."""
        config = self._mining.config
        options = order_options(config)
        if options.reorders:
            stats = find_stats(self._mining) if options.uses_stats else None
            order = order_of(self._pool(), options, stats)
        else:  # what a pool needs would cost a million candidates more than their order
            places = self._table.best_first(self._rows, self._scores)
            order = Order(places, self._scores[places])
        tell_of_empty(config, self._scores, self._scores[order.rows])
        tell_of_turning(config)
        lowest = min(float(values.min()) if len(values) else 0.0 for values in (order.values, self._scores))
        unreadable = self._unreadable[np.argsort(self._table.line_ranks(self._unreadable))]
        rows = np.concatenate([self._rows[order.rows], unreadable])
        values = rounded_scores(np.concatenate([order.values, np.full(len(unreadable), lowest - 1)]))
        summary = self._table.write(path, rows, values)
        progress.at(0.5)
        if config.report:
            write_report(Reported(self._mining, self._ledger, self._table, rows, values, self._near_copies(order)))
        return summary

    def _pool(self) -> Pool:
        wants, rows, record = self._mining.wants, self._rows, self._ledger.record
        lines = (self._table.line(row).decode("utf-8", "surrogateescape") for row in rows.tolist())
        seed = self._mining.config.seed
        hashes = np.fromiter((line_hash(f"{seed}\0{line}") for line in lines), np.uint64, len(rows))

        def reader(is_wanted: bool, name: str) -> Optional[Callable[[Any], Any]]:
            """Give what reads one array of some candidates' records from the disk."""

            def read(places: Any) -> Any:
                return np.stack([getattr(record(int(rows[place])), name) for place in places])

            return read if is_wanted else None

        return Pool(
            scores=self._scores,
            line_ranks=self._table.line_ranks(rows),
            hashes=hashes,
            features=reader(wants.features, "feature"),
            confidences=reader(wants.confidences, "confidences"),
            class_vectors=reader(wants.class_sums, "class_sums"),
        )

    def _near_copies(self, order: Order) -> dict[int, int]:
        """Give which row each sunk one is a near copy of."""
        return {int(self._rows[copy]): int(self._rows[of]) for copy, of in order.duplicates}


def tell_of_empty(config: MiningConfig, scores: Any, in_order: Any) -> None:
    """Log how many pictures cald found no box in, and whether they fill the beginning of the order.

    scores: (N,) plain ones; in_order: (N,) the same in their order. Only theirs lie above 0, or below -2 (SPEC 6).
    """
    if config.algorithm != "cald" or config.cald_mode != "paper" or not len(scores):
        return
    count = int(((scores > 0) | (scores < -2)).sum())
    LOGGER.info("cald: nothing was found in %d of %d pictures, they come %s", count, len(scores), config.cald_empty)
    tenth = in_order[: max(len(in_order) // 10, 1)]
    if 2 * int((tenth > 0).sum()) > len(tenth):
        LOGGER.warning(
            "cald: pictures without a box fill %d of the first %d places; cald_empty: last puts them behind",
            int((tenth > 0).sum()),
            len(tenth),
        )


def tell_of_turning(config: MiningConfig) -> None:
    """Log that the original's figures can't be had with this OpenCV, where they were asked for."""
    if config.algorithm != "cald" or config.cald_mode != "ymir":
        return
    from mining.data_augment import turns_in_steps

    if turns_in_steps():
        LOGGER.warning(
            "cald_mode: ymir: OpenCV 4 turns pictures otherwise than OpenCV 5, which the original's figures need"
        )


def order_options(config: MiningConfig) -> OrderOptions:
    """Give what the order is made by."""
    return OrderOptions(
        diverse=config.algorithm == "diverse",
        diversity=config.diversity,
        class_balance=config.class_balance,
        cald_balance=config.cald_balance,
        dedup=config.dedup,
        dedup_threshold=config.dedup_threshold,
        explore=config.explore,
        budget=config.budget,
    )


def find_stats(mining: Mining) -> Optional[MiningStats]:
    """Read what training left for mining beside the weights; None, said in the log, where it can't be used."""
    from utils.stats import FILE_NAME, features_digest, read_stats

    checkpoint, config = mining.checkpoint, mining.config
    if checkpoint is None:
        return None
    path = checkpoint.path.parent / FILE_NAME
    if not path.exists():
        LOGGER.info("%s: isn't there; the pool of candidates alone decides", path)
        return None
    try:
        stats = read_stats(path)
    except DatasetError as error:
        LOGGER.warning("%s", one_line(str(error)))
        return None
    if stats.names != config.class_names:
        LOGGER.warning("%s: is of other classes and isn't used; the pool of candidates alone decides", path)
        return None
    if isinstance(checkpoint, Exported):
        return replace(stats, features=stats.features[:0])
    layer = len(dict(checkpoint.yaml)["backbone"]) - 1
    side = side_of(config.loader, checkpoint)
    if stats.digest != features_digest(checkpoint.digest, layer, side, config.loader.letterbox):
        LOGGER.warning("%s: its features are of other weights or another img_size and aren't used", path)
        return replace(stats, features=stats.features[:0])
    return stats


# ---- why ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reported:
    """An order, and what is needed to say why it is so. rows, values: (N,) as in result.tsv."""

    mining: Mining
    ledger: Ledger
    table: LineTable
    rows: Any
    values: Any
    near_copies: Mapping[int, int]

    def line(self, row: int) -> str:
        """Give a row's index line."""
        return self.table.line(row).decode("utf-8", "surrogateescape")


def write_report(reported: Reported) -> None:
    """Write mining_report.html and mining_report.csv beside result.tsv; a failure is a warning, the result stands."""
    from mining.report import write_csv, write_page

    mining, count = reported.mining, len(reported.rows)
    folder = mining.task.env.output.mining_result_file.parent
    names = mining.miner.part_names(mining.config)
    try:
        write_csv(folder / "mining_report.csv", names, (report_row(reported, place) for place in range(count)))
        first = range(min(MOST_REPORTED, count))
        last = range(max(count - MOST_REPORTED, len(first)), count)
        shown = show(reported, [*first, *last])
        copies = [(reported.line(copy), reported.line(of)) for copy, of in reported.near_copies.items()]
        scores = reported.ledger.scores[reported.rows[reported.ledger.is_readable[reported.rows]]]
        write_page(
            folder / "mining_report.html",
            facts_of(reported),
            names,
            mining.config.class_names,
            shown[: len(first)],
            shown[len(first) :],
            scores,
            copies,
        )
    except OSError as error:
        LOGGER.warning("mining_report: can't be written (%s); the result stands", error.strerror)
        return
    LOGGER.info("mining_report: %s and .csv", folder / "mining_report.html")


def facts_of(reported: Reported) -> dict[str, str]:
    """Give what heads the page."""
    config, checkpoint = reported.mining.config, reported.mining.checkpoint
    facts = {"algorithm": config.algorithm, "candidates": str(len(reported.rows))}
    if checkpoint:
        facts["weights"] = checkpoint.path.name
    for name in ("diversity", "class_balance", "cald_balance", "dedup", "explore", "budget"):
        value = getattr(config, name)
        if value:
            facts[name] = str(value)
    unreadable = len(reported.rows) - int(reported.ledger.is_readable[reported.rows].sum())
    return {**facts, "unreadable": str(unreadable), "near-duplicates": str(len(reported.near_copies))}


def report_row(reported: Reported, place: int) -> ReportRow:
    """Give the line of the table for a place of the order, from 0."""
    from mining.report import ReportRow

    row = int(reported.rows[place])
    record = reported.ledger.record(row)
    of = reported.near_copies.get(row)
    near = None if of is None else reported.line(of)
    score = record.score if record.is_readable else float("nan")
    return ReportRow(place, reported.line(row), score, float(reported.values[place]), record.parts.tolist(), near)


def show(reported: Reported, places: Sequence[int]) -> list[Shown]:
    """Look again at the pictures of some places: as records hold no boxes, they are found anew."""
    from mining.report import THUMBNAIL_PX, Shown, shrunk
    from utils.detections import Detections
    from utils.pictures import read_picture

    mining = reported.mining
    wanted = {int(reported.rows[place]) for place in places}
    items = {item.index: item for item in mining.candidates if item.index in wanted}
    found: dict[int, Detections] = {}
    pictures: dict[int, Any] = {}
    none = Detections.empty()
    if mining.checkpoint is not None:
        from formats.engines import make_engine

        loader = whole_passes(mining.config.loader, mining.config.engine, CPU_PASS)
        detector = make_engine(mining.checkpoint, mining.config.engine.of_rank(0), loader.batch_size, CPU_PASS)
        reader = BatchReader(items.values(), placing_of(loader, mining.checkpoint), loader, ignore)
        for batch in reader:
            for item, detections in zip(batch.items, detector.detect(batch, mining.config.nms)):
                found[item.index] = detections
    for index, item in items.items():
        with suppress(ImageError):
            if item.refused is None:
                rgb = read_picture(item.path, mining.config.loader.pictures).rgb
                pictures[index] = shrunk(rgb, THUMBNAIL_PX)
                boxes = found.get(index, none)
                scale = np.float32(pictures[index].shape[1] / rgb.shape[1])
                found[index] = replace(boxes, boxes_px=boxes.boxes_px * scale)
    rows = [int(reported.rows[place]) for place in places]
    return [
        Shown(report_row(reported, place), pictures.get(row), found.get(row, none)) for place, row in zip(places, rows)
    ]
