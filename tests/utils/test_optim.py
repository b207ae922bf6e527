"""Groups, schedules, the moving average, and runs that go on bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.checkpoint import read_checkpoint
from models.detector import build_model
from utils.errors import ConfigError, WeightsError
from utils.hyp import Hyp
from utils.optim import (
    Accumulation,
    EarlyStop,
    Ema,
    accumulate_for,
    epoch_factor,
    freeze_layers,
    load_optimizer_state,
    load_pending_gradients,
    make_optimizer,
    make_schedule,
    optimizer_state,
    parameter_groups,
    pending_gradients,
    scaled_decay,
    set_rates,
)


def small_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        images = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


def test_yolov5n_has_57_norms_60_weights_60_biases(yolov5n_pt: Path) -> None:
    groups = parameter_groups(build_model(read_checkpoint(yolov5n_pt)))
    assert [len(group) for group in groups] == [57, 60, 60]
    assert {parameter.dim() for parameter in groups[1]} == {4}


def test_every_parameter_is_in_one_group() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.PReLU(), nn.LayerNorm(4), shared, shared)
    found = [id(parameter) for group in parameter_groups(model) for parameter in group]
    assert sorted(found) == sorted({id(parameter) for parameter in model.parameters()})


def test_only_weights_decay() -> None:
    optimizer = make_optimizer("SGD", small_model(), 0.01, 0.937, 0.0005)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0005, 0.0]
    assert all(group["nesterov"] for group in optimizer.param_groups)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="'Lion', need one of SGD, Adam, AdamW"):
        make_optimizer("Lion", small_model(), 0.01, 0.9, 0.0)


@pytest.mark.parametrize(("batch", "accumulate", "decay"), [(16, 4, 5e-4), (128, 1, 1e-3), (40, 2, 6.25e-4)])
def test_weight_decay_follows_the_pictures_a_step_sees(batch: int, accumulate: int, decay: float) -> None:
    # The official yolov5n.pt, made with 128 pictures a batch, says 0.001.
    assert accumulate_for(batch, 64) == accumulate
    assert scaled_decay(0.0005, batch, 64) == pytest.approx(decay)


@given(st.integers(1, 500), st.floats(0.001, 1), st.booleans())
def test_rates_fall_from_one_to_lrf(epochs: int, lrf: float, is_cosine: bool) -> None:
    factors = [epoch_factor(epoch, epochs, lrf, is_cosine) for epoch in range(epochs + 1)]
    assert factors[0] == pytest.approx(1) and factors[-1] == pytest.approx(lrf)
    assert all(after <= before + 1e-12 for before, after in zip(factors, factors[1:]))


def test_half_way_both_schedules_meet() -> None:
    assert epoch_factor(5, 10, 0.1, True) == pytest.approx(epoch_factor(5, 10, 0.1, False)) == pytest.approx(0.55)
    assert epoch_factor(1, 4, 0.0, True) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_warm_up_goes_in_a_straight_line_to_the_schedule() -> None:
    schedule = make_schedule(Hyp(), 300, False, 50, 4)
    assert schedule.warmup_batches == 150
    start, middle, end = schedule.rates(0, 0), schedule.rates(75, 1), schedule.rates(151, 3)
    assert start == ((0.0, 0.0, 0.1), 0.8, 1)
    rate = 0.01 * (299 / 300 * 0.99 + 0.01)
    assert middle.group_rates == pytest.approx((rate / 2, rate / 2, (0.1 + rate) / 2))
    assert middle.momentum == pytest.approx((0.8 + 0.937) / 2)
    assert middle.accumulate == 2  # 2.5, to even
    assert end.group_rates == pytest.approx((0.01 * (297 / 300 * 0.99 + 0.01),) * 3)
    assert (end.momentum, end.accumulate) == (0.937, 4)


def test_warm_up_is_at_least_100_batches() -> None:
    assert make_schedule(Hyp(warmup_epochs=0), 10, False, 5, 1).warmup_batches == 100


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_rates_reach_the_optimizer(name: str) -> None:
    optimizer = make_optimizer(name, small_model(), 0.01, 0.9, 0.0)
    rates = make_schedule(Hyp(), 10, False, 10, 1).rates(50, 0)
    set_rates(optimizer, rates)
    assert tuple(group["lr"] for group in optimizer.param_groups) == rates.group_rates
    momentum = [group.get("momentum", group.get("betas")) for group in optimizer.param_groups]
    assert momentum == [rates.momentum] * 3 if name == "SGD" else [(0.9, 0.999)] * 3


def test_steps_come_after_so_many_batches_over_the_ends_of_epochs() -> None:
    accumulation = Accumulation()
    first = [accumulation.is_due(batch, 4) for batch in range(6)]
    other = Accumulation()
    other.load(json.loads(json.dumps(accumulation.state())))
    assert first == [False, False, False, True, False, False]
    assert [other.is_due(batch, 4) for batch in range(6, 12)] == [False, True, False, False, False, True]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_run_goes_on_bit_for_bit(name: str) -> None:
    whole = small_model().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(name, whole, 0.01, 0.9, 0.01)
    train(whole, optimizer, 0, 3)
    tensors, plain = optimizer_state(optimizer)
    kept = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    plain, weights = json.loads(json.dumps(plain)), {key: value.clone() for key, value in whole.state_dict().items()}
    train(whole, optimizer, 3, 6)

    other = small_model(seed=1).to(memory_format=torch.channels_last)
    other.load_state_dict(weights)
    again = make_optimizer(name, other, 0.5, 0.9, 0.01)
    load_optimizer_state(again, kept, plain)
    train(other, again, 3, 6)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_a_step_counter_may_be_a_plain_number() -> None:
    """As torch before 1.12 kept it."""
    model = small_model()
    optimizer = make_optimizer("Adam", model, 0.01, 0.9, 0.0)
    train(model, optimizer, 0, 2)
    tensors, plain = optimizer_state(optimizer)
    steps = {key: float(value) for key, value in tensors.items() if key.endswith(".step")}
    rest = {key: value for key, value in tensors.items() if key not in steps}
    load_optimizer_state(optimizer, rest, {**plain, "values": steps})
    train(model, optimizer, 2, 3)
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}


def test_another_models_or_optimizers_state_is_refused() -> None:
    model = small_model()
    optimizer = make_optimizer("SGD", model, 0.01, 0.9, 0.0)
    train(model, optimizer, 0, 1)
    tensors, plain = optimizer_state(optimizer)
    with pytest.raises(WeightsError, match="need"):
        load_optimizer_state(make_optimizer("SGD", nn.Linear(3, 3), 0.01, 0.9, 0.0), tensors, plain)
    with pytest.raises(WeightsError, match="another kind"):
        load_optimizer_state(make_optimizer("Adam", model, 0.01, 0.9, 0.0), tensors, plain)


def test_pending_gradients_come_back() -> None:
    model, other = small_model(), small_model()
    model(torch.ones(2, 3, 3, 3)).sum().backward()
    load_pending_gradients(other, pending_gradients(model))
    for ours, theirs in zip(model.parameters(), other.parameters()):
        assert ours.grad is not None and theirs.grad is not None and torch.equal(ours.grad, theirs.grad)
    with pytest.raises(WeightsError, match=r"0\.weight"):
        load_pending_gradients(nn.Sequential(nn.Linear(1, 1)), pending_gradients(model))


def average_by_hand(history: list[Tensor]) -> Tensor:
    average = history[0].double()
    for updates, value in enumerate(history[1:], 1):
        decay = 0.9999 * (1 - math.exp(-updates / 2000))
        average = decay * average + (1 - decay) * value.double()
    return average


def test_the_moving_average_follows_its_formula_buffers_included() -> None:
    model = small_model()
    optimizer = make_optimizer("SGD", model, 0.01, 0.9, 0.0)
    ema = Ema(model)
    history: list[dict[str, Tensor]] = [{key: value.clone() for key, value in model.state_dict().items()}]
    for step in range(4):
        train(model, optimizer, step, step + 1)
        ema.update(model)
        history.append({key: value.clone() for key, value in model.state_dict().items()})
    for key, value in ema.model.state_dict().items():
        if value.is_floating_point():
            expected = average_by_hand([state[key] for state in history])
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    assert not ema.model.training and not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_the_moving_average_goes_on_bit_for_bit() -> None:
    model, other = small_model(), small_model(1)
    ema = Ema(model)
    ema.update(other)
    tensors, plain = ema.state()
    again = Ema(small_model(2))
    again.load(tensors, json.loads(json.dumps(plain)))
    ema.update(other)
    again.update(other)
    assert again.updates == 2
    for key, value in ema.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    with pytest.raises(WeightsError, match="average"):
        Ema(nn.Linear(1, 1)).load(tensors, plain)


def test_early_stop_waits_for_patience_epochs_since_the_best() -> None:
    stop = EarlyStop(3)
    assert [stop.update(epoch, fitness) for epoch, fitness in enumerate([0.0, 0.2, 0.2, 0.1])] == [False] * 4
    other = EarlyStop(3)
    other.load(json.loads(json.dumps(stop.state())))
    assert (other.best, other.best_epoch) == (0.2, 2)
    assert [other.update(epoch, 0.1) for epoch in (4, 5)] == [False, True]
    assert not EarlyStop(3).update(0, math.nan)


def test_no_patience_never_stops() -> None:
    stop = EarlyStop(0)
    assert not any(stop.update(epoch, 1.0 / (1 + epoch)) for epoch in range(1000))


def test_frozen_layers_get_no_gradient(yolov5n_pt: Path) -> None:
    model = build_model(read_checkpoint(yolov5n_pt)).requires_grad_(True)
    freeze_layers(model, range(10))
    frozen: Any = {int(name.split(".")[1]) for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == set(range(10))
    with pytest.raises(ConfigError, match="no layer 25, need 0 to 24"):
        freeze_layers(model, [3, 25])
    with pytest.raises(ConfigError, match="nothing is left"):
        freeze_layers(model, range(25))
