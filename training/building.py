"""A job and its labels -> everything that trains: the network with its parts, and the loader of its batches."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
import torch

from models.checkpoint import read_checkpoint
from models.detector import choose_device, choose_precision, set_threads
from models.resume import ResumeState
from models.yolo import DetectionModel, ModelSpec, parse_spec
from training.autobatch import find_batch_size
from training.data import Scans
from training.initial import has_placeholder_anchors, initial_model, starting_spec
from training.job import PICTURES, TrainJob
from training.resuming import stored_settings
from training.state import Training
from training.step import Stepper
from utils.anchors import Anchors, BoxSizes, fit_anchors
from utils.distributed import World, all_sum, gather_objects
from utils.errors import ConfigError, WeightsError
from utils.label_table import LabelTable
from utils.letterbox import input_stride
from utils.loss import DetectionLoss, HeadShape, LossSettings, make_loss
from utils.machine import count_cpus
from utils.optim import (
    EarlyStop,
    Ema,
    accumulate_for,
    freeze_layers,
    make_optimizer,
    make_schedule,
    scaled_decay,
)
from utils.passes import CPU_NAMES
from utils.picture_store import SHARE_OF_FREE, PictureStore, StoreSettings, free_memory_bytes
from utils.progress import Progress
from utils.sync_norm import to_sync_norm
from utils.train_settings import FIND_BATCH_SIZE, TrainConfig
from utils.training_loader import TrainLoader
from utils.training_set import SampleSettings, TrainingSet

LOGGER = logging.getLogger(__name__)

MOST_FOUND = 65536  # pictures of a batch that a state is believed to have been trained with


@dataclass(frozen=True)
class Machine:
    """What a rank computes on."""

    device: torch.device
    precision: str
    world: World


def choose_machine(config: TrainConfig, world: World) -> Machine:
    """Choose a rank's device and precision. Raises ConfigError, NoDeviceError."""
    device = choose_device(own_device(config.device, world))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    threads = set_threads(0, world.local_size)
    precision = choose_precision(config.precision, device)
    if world.rank == 0:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads"
        ranks = f" on each of {world.size} ranks" if world.size > 1 else ""
        LOGGER.info("training in %s on %s%s; %s", precision, where, ranks, count_cpus())
    return Machine(device, precision, world)


def own_device(device: str, world: World) -> str:
    """Give what of --device is a rank's own: of several GPUs one each; without --device, the one of its number.

    Raises ConfigError where ranks would have to share a GPU.
    """
    ids = [part.strip() for part in device.split(",") if part.strip()]
    if world.size == 1 or device.strip().lower() in CPU_NAMES[1:]:
        return device
    if not ids:
        return str(world.local_rank) if torch.cuda.is_available() else ""
    if len(ids) < world.local_size:
        raise ConfigError(
            f"--device: got {device}, need a GPU for each of the {world.local_size} ranks on this machine, or cpu"
        )
    return ids[world.local_rank]


# ---- the network -----------------------------------------------------------------------------------------------------


def build_network(job: TrainJob, table: LabelTable, resumed: Optional[ResumeState], tells: bool) -> DetectionModel:
    """Build the network that training starts from, its anchors fitted to the labels; of a run that goes on, its own.

    Raises ConfigError, DatasetError, WeightsError.
    """
    config = job.config
    if resumed is not None:
        return network_of(resumed, len(table.names), config.activation)
    checkpoint = None if config.weights is None else read_checkpoint(config.weights)
    anchors = config.hyp.anchors
    spec = starting_spec(config.cfg, checkpoint, len(table.names), config.activation, anchors)
    keeps_anchors = config.cfg is not None or anchors is not None
    model, taken = initial_model(spec, checkpoint, config.seed, keeps_anchors=keeps_anchors)
    if tells:
        weights = sum(parameter.numel() for parameter in model.parameters())
        LOGGER.info("network: %d layers, %d parameters, %d classes", len(spec.rows), weights, spec.classes)
    if tells and checkpoint is not None:
        other = f", {taken.first_left} and others start anew" if taken.first_left else ""
        LOGGER.info("%s: %d of %d entries taken over%s", checkpoint.path.name, taken.taken, taken.total, other)
    if config.autoanchor:
        set_anchors(model, spec, table, config, tells)
    elif has_placeholder_anchors(spec):
        raise ConfigError("--noautoanchor: this model's anchors have to be fitted; leave it out")
    return model


def network_of(state: ResumeState, classes: int, activation: str) -> DetectionModel:
    """Build the network that a state is of, no larger than its weights. Raises WeightsError."""
    spec = parse_spec(state.plain["about"].get("yaml"), "last.pt", classes, activation, WeightsError)
    weights = sum(tensor.numel() for name, tensor in state.tensors.items() if name.startswith("model/"))
    try:
        return DetectionModel(spec, max_weights=weights)
    except ConfigError as cause:
        raise WeightsError(f"last.pt: {cause}") from cause


def set_anchors(model: DetectionModel, spec: ModelSpec, table: LabelTable, config: TrainConfig, tells: bool) -> None:
    """Fit the anchors to the boxes where those that there are suit them badly. Raises DatasetError (no box to fit)."""
    side = training_side(config.img_size, input_stride(model.stride))
    sizes_px = table.boxes_px[:, 2:] - table.boxes_px[:, :2]  # (M, 2)
    pictures = table.picture_of_rows()  # (M,)
    longest = table.sizes_hw.max(axis=1)  # (N,)
    sizes_px = sizes_px * (side / longest[pictures])[:, None].astype(np.float32)
    strides = torch.tensor(model.stride).view(-1, 1, 1)
    now_px = (model.detect.anchors * strides).numpy()
    placeholder = has_placeholder_anchors(spec)
    fit = fit_anchors(
        BoxSizes(sizes_px, pictures),
        Anchors(now_px, model.stride, placeholder),
        config.hyp.anchor_t,
        np.random.default_rng(config.seed),
    )
    if tells:
        LOGGER.info("%s", fit.reason)
    with torch.no_grad():
        model.detect.anchors.copy_(torch.from_numpy(fit.anchors_px) / strides)


def tell_of_side(config: TrainConfig, stride: int) -> None:
    """Say that pictures are trained with at another size than asked for, where that is so."""
    side = training_side(config.img_size, stride)
    if side != config.img_size:
        why = f"a multiple of the model's stride {stride}" if side > 2 * stride else f"two of its strides of {stride}"
        LOGGER.info("img_size %d is rounded up to %d, %s", config.img_size, side, why)


def training_side(img_size: int, stride: int) -> int:
    """Give the input's side: rounded up to the stride, and at least two cells of it."""
    return max(math.ceil(img_size / stride), 2) * stride


def build_training(
    network: DetectionModel, config: TrainConfig, machine: Machine, batch_count: int
) -> tuple[Training, DetectionLoss]:
    """Put a network on its device, with all that changes it; also give the loss that a validation adds up.

    batch_count: of an epoch. Raises ConfigError.
    """
    world, device = machine.world, machine.device
    freeze_layers(network, config.freeze)
    model = network.to(device).to(memory_format=torch.channels_last).train()
    ema = Ema(model)
    for module in model.modules():
        if isinstance(module, torch.nn.SiLU):  # in place it would copy its input first, which its backward needs
            module.inplace = False
    if config.sync_bn and world.size > 1:
        model = to_sync_norm(model)
    hyp = config.hyp
    decay = scaled_decay(hyp.weight_decay, config.batch_size, config.nominal_batch)
    optimizer = make_optimizer(config.optimizer, model, hyp.lr0, hyp.momentum, decay)
    head = HeadShape(model.detect.nc, model.detect.anchors, model.stride)
    side = training_side(config.img_size, input_stride(model.stride))
    settings = LossSettings(hyp, side, config.label_smoothing, config.autobalance, config.quad)
    loss = make_loss(settings, head, all_sum if world.size > 1 else None)
    quietly = make_loss(replace(settings, is_autobalanced=False, is_quad=False), head)
    batch_size = config.batch_size // world.size
    most_at_once = min(batch_size, config.most_at_once or batch_size)
    stepper = Stepper(model, wrap(model, machine), loss, optimizer, ema, device, machine.precision, most_at_once)
    accumulate = accumulate_for(config.batch_size, config.nominal_batch)
    schedule = make_schedule(hyp, config.epochs, config.cos_lr, batch_count, accumulate)
    return Training(model, ema, optimizer, loss, stepper, schedule, EarlyStop(config.patience)), quietly


def wrap(model: DetectionModel, machine: Machine) -> torch.nn.Module:
    """Give what is called instead of the network: on several ranks it averages their gradients."""
    if machine.world.size == 1:
        return model
    ids = [machine.device.index] if machine.device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=False)


# ---- the pictures ----------------------------------------------------------------------------------------------------


def build_loader(
    job: TrainJob, scans: Scans, stride: int, world: World, progress: Progress
) -> tuple[TrainLoader, TrainingSet, PictureStore]:
    """Make the loader of the training pictures; with --cache they are decoded now."""
    config = job.config
    table = scans.train.table
    side = training_side(config.img_size, stride)
    folder = job.folders.root / PICTURES if config.cache == "disk" else None
    limit = None if world.local_size == 1 else int(free_memory_bytes() * SHARE_OF_FREE) // world.local_size
    store = PictureStore(table, StoreSettings(side, config.pictures, config.cache, folder, limit))
    store.fill(config.workers, progress)
    samples = SampleSettings(side, config.seed, rect=config.rect, batch_size=config.batch_size, stride=stride)
    training_set = TrainingSet(table, store, config.hyp, samples)
    loader = TrainLoader(training_set, config.batch_size, config.workers, world.rank, world.size, config.quad)
    return loader, training_set, store


def with_found_batch_size(
    config: TrainConfig, network: DetectionModel, machine: Machine, resumed: Optional[ResumeState]
) -> TrainConfig:
    """Replace --batch-size -1 by what fits, or by what was found when the run began."""
    if config.batch_size != FIND_BATCH_SIZE:
        return config
    before = None if resumed is None else stored_settings(resumed).get("batch_size")
    if isinstance(before, int) and 1 <= before <= MOST_FOUND and not before % machine.world.size:
        return replace(config, batch_size=before)  # else a run would go on with other batches
    side = training_side(config.img_size, input_stride(network.stride))
    each = min(gather_objects(find_batch_size(network, side, machine.device, machine.precision)))
    return replace(config, batch_size=each * machine.world.size)
