"""The checks that every door shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import ConfigError
from utils.settings import check_device, check_pt


@pytest.mark.parametrize("text", ["", "cpu", "CPU", " cpu ", "-1", "0", "0,1", "cuda:0", "cuda:0,cuda:1", "12"])
def test_a_device_is_the_cpu_or_gpus_by_number(text: str) -> None:
    check_device("--device", text)


@pytest.mark.parametrize("text", ["gpu", "0,", ",0", "0 1", "-2", "cuda", "cpu,0", "0;1", "\n0\nx"])
def test_another_device_is_told_with_its_key_and_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--device: got .*, need cpu, or GPU indices such as 0 or 0,1"):
        check_device("--device", text)


def test_weights_are_told_by_their_suffix() -> None:
    check_pt("--weights", Path("a/B.PT"))
    for name in ("a.onnx", "a", "a.pt.zip", ""):
        with pytest.raises(ConfigError, match=r"--weights: .* is no \.pt file"):
            check_pt("--weights", Path(name))
