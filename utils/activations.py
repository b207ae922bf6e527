"""Names of activations, as a configuration or a model yaml writes them. No torch: a wrong name is told before it."""

from __future__ import annotations

import re

from utils.errors import ConfigError, ExecutorError

# fmt: off
ACTIVATIONS = (
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish",
    "PReLU", "ReLU", "ReLU6", "RReLU", "SELU", "Sigmoid", "SiLU", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink", "Threshold",
)
# fmt: on


def split_activation(text: str, where: str, error: type[ExecutorError] = ConfigError) -> tuple[str, tuple[float, ...]]:
    """Split `nn.LeakyReLU(0.1)` or `ReLU` into the name and its numbers; nothing is evaluated.

    where: what the message calls the place. Raises `error` for an unknown name or other than numbers.
    """
    match = re.fullmatch(r"(?:torch\.)?(?:nn\.)?([A-Za-z0-9]+)(?:\(([0-9eE+\-., ]*)\))?", text.strip())
    if not match or match[1] not in ACTIVATIONS:
        raise error(f"activation: got {text[:60]!r} ({where}), need one of {', '.join(ACTIVATIONS)}")
    try:
        return match[1], tuple(float(number) for number in (match[2] or "").split(",") if number.strip())
    except ValueError as cause:
        raise error(f"activation: {text[:60]!r} ({where}): {cause}") from None
