"""A trained network made fast: batch norms folded away, and on a CPU each convolution packed for oneDNN.

Packing keeps a convolution's weights in the layouts that the machine's kernels want and lets the kernel apply the
activation while the result is still in its registers; maps stay channels-last, as the pictures come.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from models.common import BottleneckCSP, Conv

MOST_SHAPES = 48  # more than there are of minimal letterboxes at 640 px
MOST_PACKED_BYTES = 512 << 20  # of weights in all their layouts


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it, in place; the model must be in eval mode.

    w' = w x gamma / sqrt(var + eps), b' = beta - mean x gamma / sqrt(var + eps), computed in fp64 and rounded once.
    """
    for module in model.modules():
        if isinstance(module, Conv) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = _folded(module.conv, module.bn)
            module.bn = nn.Identity()  # type: ignore[assignment]  # from now on there is nothing to normalise
    return model


def _folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    assert bn.running_mean is not None and bn.running_var is not None and conv.bias is None
    factor = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()  # (out,)
    weight = conv.weight.double() * factor.view(-1, 1, 1, 1)
    bias = bn.bias.double() - bn.running_mean.double() * factor
    folded = copy.copy(conv)
    folded._parameters = dict(conv._parameters)  # copy.copy shares the dict; the original keeps its weights
    folded.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    folded.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return folded


def pack_for_cpu(model: nn.Module, dtype: torch.dtype) -> bool:
    """Replace convolutions by packed ones, in place; says whether this torch can.

    dtype: float32 or bfloat16, of weights and maps. The model must be folded. Where it can't (other builds, other
    processors), the model is as it was and runs as plain torch.
    """
    if not _can_pack(dtype):
        return False
    itemsize = torch.empty((), dtype=dtype).element_size()  # torch 2.0 packs, and its dtypes have no itemsize
    weights_bytes = sum(parameter.numel() * itemsize for parameter in model.parameters())
    most_shapes = max(1, min(MOST_SHAPES, MOST_PACKED_BYTES // max(weights_bytes, 1)))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            packed = _packed(child, dtype, most_shapes)
            if packed is not None:
                for attribute in ("i", "f", "type"):  # a layer's place in the model
                    if hasattr(child, attribute):
                        setattr(packed, attribute, getattr(child, attribute))
                setattr(module, name, packed)
    return True


def _can_pack(dtype: torch.dtype) -> bool:
    """True where torch has the operators that its own compiler uses for this (2.x on x86), and they work."""
    try:
        conv = PackedConv(nn.Conv2d(8, 8, 3, padding=1), dtype, "swish", [], 1)
        conv(torch.zeros(1, 8, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return True


class PackedConv(nn.Module):
    """A convolution and its activation as one oneDNN call on channels-last maps."""

    def __init__(
        self, conv: nn.Conv2d, dtype: torch.dtype, activation: str, numbers: Sequence[float], most_shapes: int
    ) -> None:
        super().__init__()
        self._geometry: tuple[list[int], list[int], list[int], int] = (
            [int(value) for value in conv.padding],
            [int(value) for value in conv.stride],
            [int(value) for value in conv.dilation],
            conv.groups,
        )
        self._weight = conv.weight.detach().to(dtype)
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self._activation = (activation, list(numbers))
        self._most_shapes = most_shapes
        # The layout that oneDNN wants differs from input shape to input shape, and it would lay the weights out anew at
        # every call that brings another: up to 2.3 x the time of the whole network.
        self._packed: OrderedDict[torch.Size, Tensor] = OrderedDict()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._packed_for(x.shape), self._bias, *self._geometry, *self._activation, None
        )
        return out

    def _packed_for(self, shape: torch.Size) -> Tensor:
        weight = self._packed.get(shape)
        if weight is None:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            weight = reorder(self._weight.to_mkldnn(), *self._geometry, list(shape))
            self._packed[shape] = weight
            if len(self._packed) > self._most_shapes:
                self._packed.popitem(last=False)
        else:
            self._packed.move_to_end(shape)
        return weight


def _packed(module: nn.Module, dtype: torch.dtype, most_shapes: int) -> Optional[nn.Module]:
    """Give what replaces a module, or None where it stays (or its children are packed)."""
    if isinstance(module, Conv):
        fused = _fused_activation(module.act)
        if fused is None:
            return nn.Sequential(PackedConv(module.conv, dtype, "none", [], most_shapes), module.act)
        return PackedConv(module.conv, dtype, *fused, most_shapes)
    if type(module) is nn.Conv2d:
        return PackedConv(module, dtype, "none", [], most_shapes)
    if isinstance(module, BottleneckCSP):
        module.bn.to(dtype)
    return None


def _fused_activation(act: Any) -> Optional[tuple[str, list[float]]]:
    """Give oneDNN's name and numbers for an activation, or None if it has to stay a module."""
    plain = {nn.Identity: "none", nn.SiLU: "swish", nn.ReLU: "relu", nn.Hardswish: "hardswish", nn.Sigmoid: "sigmoid"}
    if type(act) in plain:
        return plain[type(act)], []
    if type(act) is nn.LeakyReLU:
        return "leaky_relu", [float(act.negative_slope)]
    return None
