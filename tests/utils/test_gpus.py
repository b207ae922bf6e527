"""Which GPUs a torch has code for. The capabilities are those that NVIDIA publishes for its products."""

from __future__ import annotations

import pytest

from utils.gpus import IMAGES, has_code_for, image_for, told_of_gpu

# name, capability, and whether the images cuda, cuda111, cuda102 have code for it
GPUS = [
    ("Tesla M2090", (2, 0), False, False, False),
    ("GeForce GTX 680", (3, 0), False, False, False),
    ("Tesla K40", (3, 5), False, False, False),
    ("Tesla K80", (3, 7), False, True, True),
    ("GeForce GTX 980", (5, 2), False, True, True),
    ("Tesla P100", (6, 0), False, True, True),
    ("GeForce GTX 1080", (6, 1), False, True, True),
    ("Tesla V100", (7, 0), False, True, True),
    ("Tesla T4", (7, 5), True, True, True),
    ("A100", (8, 0), True, True, False),
    ("GeForce RTX 3090", (8, 6), True, True, False),
    ("L4", (8, 9), True, True, False),
    ("H100", (9, 0), True, False, False),
    ("B200", (10, 0), True, False, False),
    ("B300", (10, 3), True, False, False),
    ("GeForce RTX 5090", (12, 0), True, False, False),
    ("DGX Spark", (12, 1), True, False, False),
    ("one that is not made yet", (13, 0), False, False, False),
]


@pytest.mark.parametrize(("name", "capability", "cuda", "cuda111", "cuda102"), GPUS)
def test_gpus_and_images(name: str, capability: tuple[int, int], cuda: bool, cuda111: bool, cuda102: bool) -> None:
    assert [has_code_for(capability, IMAGES[image]) for image in ("cuda", "cuda111", "cuda102")] == [
        cuda,
        cuda111,
        cuda102,
    ]
    assert image_for(capability) == ("cuda" if cuda else "cuda111" if cuda111 else "cuda102" if cuda102 else "")


@pytest.mark.parametrize(
    ("capability", "arch_list", "expected"),
    [
        ((8, 0), ["sm_70", "compute_70"], True),  # the driver translates
        ((6, 1), ["sm_70", "compute_70"], False),  # but not for an older one
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),  # for its own capability alone
        ((10, 3), ["sm_100f"], False),
        ((8, 6), ["sm_89"], False),
        ((12, 0), ["sm_12"], False),  # is 1.2
        ((7, 0), [], True),  # not known
        ((9, 0), ["gfx900"], True),  # another maker's: not known
        ((7, 0), ["gfx900", "sm_75"], False),
    ],
)
def test_what_a_build_runs_on(capability: tuple[int, int], arch_list: list[str], expected: bool) -> None:
    assert has_code_for(capability, arch_list) is expected


def test_the_line_says_which_gpu_what_there_is_and_what_to_do() -> None:
    assert told_of_gpu("Tesla V100", (7, 0), IMAGES["cuda"], "2.14.1+cu130") == (
        "gpu_id: Tesla V100 has compute capability 7.0, for which torch 2.14.1+cu130 has no code, only for 7.5, 8.0, "
        "8.6, 9.0, 10.0, 12.0; take the image made of cuda111.dockerfile, or run on the CPU (gpu_id '', --device cpu)"
    )
    assert "cuda.dockerfile" in told_of_gpu("H100", (9, 0), IMAGES["cuda102"], "1.12.1")
    assert "none of our images" in told_of_gpu("K40", (3, 5), IMAGES["cuda"], "2.14.1")
