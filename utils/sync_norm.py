"""Batch norm over the pictures of all ranks, on a CPU too, where torch's own refuses.

Formulas: Ioffe & Szegedy, Batch Normalization, 2015, algorithm 1 and section 3 (its gradients), sums taken over ranks.
"""

from __future__ import annotations

from typing import Any, Callable, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class SyncNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of all ranks' pictures, as many or few as each rank has.

    In eval mode, or without a process group, it is a plain batch norm. Weights' gradients are of own pictures, to be
    averaged as any other's. Every rank must call it equally often.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Norm (B, C, H, W), of any floating dtype and either memory format."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(images)
        normed, mean, variance, count = _Normalize.apply(images, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance, count)
        result: Tensor = normed
        return result

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1).clamp(min=1)).to(variance)
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased.to(self.running_var), share)


class _Normalize(torch.autograd.Function):
    """(B, C, H, W), weight, bias, eps -> normed, mean (C,), biased variance (C,), count; sums over ranks in fp64."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Any, bias: Any, eps: float) -> tuple[Tensor, ...]:
        values = images.to(torch.promote_types(images.dtype, torch.float32))
        sums = _sums(values)
        dist.all_reduce(sums)
        total = sums[0, 0].clamp(min=1)
        mean = sums[1] / total
        variance = (sums[2] / total - mean.square()).clamp(min=0)
        mean, variance = mean.to(values.dtype), variance.to(values.dtype)
        ctx.save_for_backward(images, weight, mean, (variance + eps).rsqrt(), total)
        ctx.mark_non_differentiable(mean, variance, total)
        normed = F.batch_norm(values, mean, variance, weight, bias, False, 0.0, eps)
        return normed.to(images.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        images, weight, mean, inverse, total = ctx.saved_tensors
        gradient = gradients[0].to(mean.dtype)  # (B, C, H, W)
        each = (1, -1, 1, 1)
        centred = images.to(mean.dtype) - mean.view(each)
        of_bias = gradient.sum((0, 2, 3))
        of_weight = (gradient * centred).sum((0, 2, 3)) * inverse
        sums = torch.stack([of_bias, of_weight]).double()
        dist.all_reduce(sums)
        shift, slope = (sums / total).to(mean.dtype)  # (C,) each: means over all ranks
        scale = inverse if weight is None else inverse * weight
        # scale * (gradient - shift - normed * slope), without the normed values themselves
        of_images = gradient.sub(shift.view(each)).addcmul_(centred, (inverse * slope).view(each), value=-1)
        of_images = of_images.mul_(scale.view(each)).to(images.dtype)
        has_weight = weight is not None
        return of_images, of_weight if has_weight else None, of_bias if has_weight else None, None


def _sums(values: Tensor) -> Tensor:
    """Give (3, C) in fp64: how many values each channel has, their sum, and their sum of squares.

    fp64 keeps what the difference of large squares needs; so that the values need not be fp64 too, they are summed from
    about their mean. (var_mean gives the same and takes twice as long on a CPU.)
    """
    count = values.numel() // values.shape[1]
    if not count:  # a rank without pictures
        return torch.zeros(3, values.shape[1], dtype=torch.float64, device=values.device)
    about = values.mean((0, 2, 3))
    centred = values - about.view(1, -1, 1, 1)
    mean = about.double() + centred.mean((0, 2, 3)).double()
    squares = centred.square_().mean((0, 2, 3)).double() - (mean - about).square()  # about the mean itself
    return torch.stack([torch.full_like(mean, count), mean * count, (squares + mean.square()) * count])


def to_sync_norm(model: Model) -> Model:
    """Let a model's batch norms share statistics over ranks; names in the state dict and parameters stay the same.

    On a GPU they become torch's own; elsewhere SyncNorm2d. Before DistributedDataParallel wraps the model, and after
    its Ema was made, which so keeps plain norms: they need no ranks, and can be folded.
    """
    first = next(model.parameters(), None)
    if first is not None and first.is_cuda:
        convert: Callable[[Model], Model] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # Neither class has state of its own, so nothing has to be moved; hooks and attributes stay too.
            module.__class__ = SyncNorm2d
    return model
