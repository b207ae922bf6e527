"""How many pictures go through a network at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from utils.passes import CPU_PASS, MANY_PICTURES, cpu_pass, even_share, whole_passes
from utils.settings import EngineSettings, LoaderSettings

SIZES = st.integers(1, 1000)
CPU = EngineSettings()


def test_a_few_pictures_of_many_shapes_go_one_by_one_and_many_eight_at_once() -> None:
    assert [cpu_pass(count) for count in (0, 1, MANY_PICTURES - 1, MANY_PICTURES)] == [1, 1, 1, CPU_PASS]
    assert (CPU_PASS, MANY_PICTURES) == (8, 256)  # measured: docs/performance.md


@pytest.mark.parametrize(
    ("count", "share"), [(1, 1), (5, 5), (8, 8), (9, 5), (12, 6), (15, 8), (16, 8), (17, 6), (32, 8)]
)
def test_passes_share_a_batch_evenly(count: int, share: int) -> None:
    assert even_share(count, 8) == share


@given(SIZES, SIZES)
def test_equal_passes_are_the_fewest_and_waste_less_than_one_picture_each(count: int, most: int) -> None:
    share = even_share(count, most)
    passes = -(-count // share)
    assert 1 <= share <= most
    assert passes == -(-count // most)
    assert passes * share - count < passes


@pytest.mark.parametrize(("batch", "size", "rounded"), [(1, 8, 8), (8, 8, 8), (9, 8, 16), (16, 8, 16), (5, 1, 5)])
def test_a_batch_is_rounded_up_to_whole_passes(batch: int, size: int, rounded: int) -> None:
    loader = LoaderSettings(img_size=96, batch_size=batch, workers=3)
    assert whole_passes(loader, CPU, size) == replace(loader, batch_size=rounded)
    assert whole_passes(loader, EngineSettings(device="0"), size) == loader


@given(SIZES, SIZES)
def test_no_pass_of_a_full_batch_is_filled_up(batch: int, size: int) -> None:
    rounded = whole_passes(LoaderSettings(batch_size=batch), CPU, size).batch_size
    assert rounded % size == 0
    assert batch <= rounded < batch + size


def test_it_is_decided_before_torch() -> None:
    code = "import sys, utils.passes; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
