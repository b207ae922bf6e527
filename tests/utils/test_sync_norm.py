"""Two ranks with shared statistics are one rank with both batches; and a loss with shared counts likewise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checkpoint import read_checkpoint
from models.detector import build_model
from utils.distributed import World, all_sum, joined, launch
from utils.hyp import Hyp
from utils.loss import HeadShape, LossSettings, make_loss
from utils.sync_norm import SyncNorm2d, to_sync_norm

SIDE = 160
PICTURES = 3  # a rank gets one, the other two


def everything(weights: Path, world: World) -> dict[str, dict[str, Any]]:
    """All that the tests compare, so that the ranks are started once."""
    return {
        "small": small_step(world),
        "frozen": yolov5n_step(weights, world, is_synced=False),
        "synced": yolov5n_step(weights, world, is_synced=True),
    }


def rank(weights: Path, world: World, send: Callable[[Any], None]) -> None:
    with joined(world, "gloo"):
        send(everything(weights, world))


@pytest.fixture(scope="module")
def of_ranks(shared: Path) -> list[dict[str, dict[str, Any]]]:
    """What each of two ranks gives."""
    said: dict[int, Any] = {}
    assert launch(rank, shared / "weights/yolov5n.pt", 2, said.__setitem__)
    return [said[0], said[1]]


@pytest.fixture(scope="module")
def of_one(shared: Path) -> dict[str, dict[str, Any]]:
    """What one process with all pictures gives."""
    return everything(shared / "weights/yolov5n.pt", World())


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=0.03), nn.SiLU(), nn.BatchNorm2d(4))


def small_images() -> Tensor:
    return torch.randn(PICTURES, 3, 9, 7, generator=torch.Generator().manual_seed(1)) * 3 + 20


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.detach().numpy().copy() for name, value in tensors.items()}


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def share(world: World) -> range:
    """Give the places of a rank's pictures."""
    return range(PICTURES * world.rank // world.size, PICTURES * (world.rank + 1) // world.size)


def small_step(world: World) -> dict[str, Any]:
    """A forward and backward in train mode, then a forward in eval mode."""
    net = small_net()
    if world.size > 1:
        net = to_sync_norm(net)
    own = list(share(world))
    results: dict[str, Tensor] = {}
    for name, layout in (("plain", torch.contiguous_format), ("last", torch.channels_last)):
        images = small_images()[own].to(memory_format=layout).requires_grad_()
        net.zero_grad()
        output = net(images)
        (output**3).sum().backward()
        assert images.grad is not None
        results.update({f"{name} output": output, f"{name} input": images.grad})
        results.update({f"{name} {key}": all_sum(gradient) for key, gradient in gradients_of(net).items()})
    results.update(net.state_dict())
    results["eval output"] = net.eval()(small_images()[own])
    return as_arrays(results)


def test_two_ranks_norm_as_one_batch(of_ranks: list[Any], of_one: dict[str, Any]) -> None:
    first, second = (results["small"] for results in of_ranks)
    assert {"last 0.weight", "plain input", "1.running_var", "eval output"} < set(of_one["small"])
    for name, expected in of_one["small"].items():
        per_picture = name.endswith(("output", "input"))
        ours = np.concatenate([first[name], second[name]]) if per_picture else first[name]
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=name)
        assert per_picture or np.array_equal(first[name], second[name]), name


def yolov5n_step(weights: Path, world: World, is_synced: bool) -> dict[str, Any]:
    """Gradients of yolov5n, averaged over ranks as DistributedDataParallel would; and the mean of the parts."""
    model = build_model(read_checkpoint(weights)).requires_grad_(True).train(is_synced)
    if is_synced and world.size > 1:
        model = to_sync_norm(model)
    images = torch.rand(PICTURES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    rows = torch.tensor(
        [
            [0, 0, 0.5, 0.5, 0.6, 0.8],
            [1, 16, 0.3, 0.4, 0.2, 0.1],
            [2, 2, 0.6, 0.7, 0.3, 0.5],
            [2, 5, 0.2, 0.2, 0.1, 0.1],
        ]
    )
    own = share(world)
    mine = rows[(rows[:, 0] >= own.start) & (rows[:, 0] < own.stop)] - torch.tensor([own.start, 0, 0, 0, 0, 0])
    head = HeadShape(model.detect.nc, model.detect.anchors, model.stride)
    loss = make_loss(LossSettings(Hyp(), SIDE), head, all_sum if world.size > 1 else None)
    total, parts = loss(model(images[list(own)]), mine)
    total.backward()  # type: ignore[no-untyped-call]
    gradients = [gradient.flatten() for gradient in gradients_of(model).values()]
    return as_arrays({"gradients": all_sum(torch.cat(gradients)) / world.size, "parts": all_sum(parts) / world.size})


@pytest.mark.parametrize(("name", "tolerance"), [("frozen", 1e-5), ("synced", 2e-4)])
def test_gradients_of_two_ranks_are_those_of_the_whole_batch(
    name: str, tolerance: float, of_ranks: list[Any], of_one: dict[str, Any]
) -> None:
    ours, alone = of_ranks[0][name], of_one[name]
    apart = np.linalg.norm(ours["gradients"] - alone["gradients"]) / np.linalg.norm(alone["gradients"])
    assert apart < tolerance
    np.testing.assert_allclose(ours["parts"], alone["parts"], rtol=tolerance)


def test_names_and_values_of_the_state_stay_the_same() -> None:
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    parameters = list(net.parameters())
    synced = to_sync_norm(net)
    assert [type(module) for module in synced][1::2] == [SyncNorm2d, SyncNorm2d]
    assert list(synced.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in synced.state_dict().items())
    assert all(ours is theirs for ours, theirs in zip(synced.parameters(), parameters))


def test_alone_it_is_a_plain_batch_norm() -> None:
    images = small_images()
    net, plain = to_sync_norm(small_net()), small_net()
    assert torch.equal(net(images), plain(images))
    assert torch.equal(net.eval()(images), plain.eval()(images))
