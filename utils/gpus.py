"""Which GPUs a build of torch has code for, and which of our images has code for a GPU. No torch here.

A GPU's compute capability is (major, minor), such as (7, 5). What torch was built for is a list of names, as
`torch.cuda.get_arch_list()` gives it: sm_75 is machine code, compute_75 is code that the driver translates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Optional

Capability = tuple[int, int]

# What the torch of each image was built for (torch 2.14.1, 2.0.1, 1.12.1), the newest first; tried on 28 Nov 2026.
IMAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cuda": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        "cuda111": ("sm_37", "sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86"),
        "cuda102": ("sm_37", "sm_50", "sm_60", "sm_70"),
    }
)


def has_code_for(capability: Capability, arch_list: Sequence[str]) -> bool:
    """True where code of the list runs on a GPU; also where the list names nothing, which tells nothing.

    Machine code runs on its own major capability from its minor one on, and of an sm_90a or sm_100f on its own alone
    (CUDA's guide to compatibility); a driver translates for every later capability.
    """
    codes = [_parsed(name) for name in arch_list]
    known = [code for code in codes if code is not None]
    return not known or any(_runs(*code, capability) for code in known)


def _parsed(name: str) -> Optional[tuple[str, Capability, str]]:
    """Split sm_90a into its kind, capability and suffix; None for the name of anything else."""
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name.strip())
    return None if parts is None else (parts[1], (int(parts[2]), int(parts[3])), parts[4])


def _runs(kind: str, built_for: Capability, suffix: str, capability: Capability) -> bool:
    if suffix:
        return capability == built_for
    if kind == "compute":
        return capability >= built_for
    return capability[0] == built_for[0] and capability[1] >= built_for[1]


def image_for(capability: Capability) -> str:
    """Give the newest image whose torch has code for a GPU; "" where none has."""
    return next((image for image, arch_list in IMAGES.items() if has_code_for(capability, arch_list)), "")


def told_of_gpu(name: str, capability: Capability, arch_list: Sequence[str], torch_version: str) -> str:
    """Say that torch has no code for a GPU, what it has code for, and what to do."""
    codes = [code[1] for code in map(_parsed, arch_list) if code is not None]
    image = image_for(capability)
    advice = f"take the image made of {image}.dockerfile" if image else "none of our images has; take another GPU"
    return (
        f"gpu_id: {name[:60]} has compute capability {_shown(capability)}, for which torch {torch_version} has no "
        f"code, only for {', '.join(map(_shown, sorted(set(codes))))}; {advice}, or run on the CPU (gpu_id '', "
        "--device cpu)"
    )


def _shown(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
