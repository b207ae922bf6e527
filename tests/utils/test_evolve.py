"""Evolution: what is tried lies within bounds and is repeatable; what is kept can be read and gone on with."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.evolve import (
    META,
    EvolveLog,
    Generation,
    best_hyp_text,
    choose_parent,
    evolution_text,
    mutate,
    next_hyp,
    read_evolution,
)
from utils.hyp import HYPS, RANGES, Hyp, hyp_as_dict, read_hyp

SETS = sorted(HYPS.glob("*.yaml"))


def generation(fitness: float, hyp: Hyp = Hyp()) -> Generation:  # noqa: B008 (frozen)
    """A generation whose two mAPs, and so its fitness, are one number."""
    return Generation(hyp, 0.5, 0.4, fitness, fitness, 0.03, 0.02, 0.01)


def measured(hyp: Hyp) -> Generation:
    """Stands for a training: a figure that depends on the set alone."""
    return generation(0.5 - abs(hyp.lr0 - 0.02) - abs(hyp.box - 0.06), hyp)


def evolve(folder: Path, generations: int, seed: int = 0) -> None:
    log = EvolveLog(folder)
    for _ in range(generations):
        log.record(measured(next_hyp(log.table, Hyp(), seed)))


def any_hyp() -> st.SearchStrategy[Hyp]:
    """Any set that Hyp takes, also far outside of META's bounds."""
    parts = {f.name: st.floats(*RANGES.get(f.name, (0.0, 1.0))) for f in fields(Hyp) if f.name != "anchors"}
    return st.builds(Hyp, **parts, anchors=st.none() | st.floats(1, 20))


# ---- what is tried ---------------------------------------------------------------------------------------------------


def test_every_hyperparameter_has_its_gain_and_bounds() -> None:
    assert set(META) == {field.name for field in fields(Hyp)}
    assert {key for key, bounds in META.items() if bounds.gain == 0} == {"iou_t", "fl_gamma", "perspective", "fliplr"}
    assert (META["momentum"].gain, META["anchors"].gain) == (0.3, 2)
    assert all(bounds.low < bounds.high for bounds in META.values())


@given(any_hyp(), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_child_differs_and_lies_within_the_bounds(parent: Hyp, seed: int) -> None:
    child = mutate(parent, np.random.default_rng(seed))
    assert child != parent
    for key, value in hyp_as_dict(child).items():
        assert META[key].low <= value <= META[key].high
        assert value == float(f"{value:.5g}")
    assert (child.anchors is None) == (parent.anchors is None)


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_child_of_a_shipped_set_keeps_what_has_no_gain_or_is_zero(path: Path) -> None:
    parent = read_hyp(path)
    for seed in range(20):
        child = hyp_as_dict(mutate(parent, np.random.default_rng(seed)))
        for key, value in hyp_as_dict(parent).items():
            inside = META[key].low <= value <= META[key].high
            if inside and (META[key].gain == 0 or value == 0):
                assert child[key] == value
            if value > 0 and inside:
                assert 0.3 - 1e-4 <= child[key] / value <= 3 + 1e-4


def test_four_values_of_five_change_by_steps_as_the_formula_says() -> None:
    """lr0 and momentum lie far from their bounds. N(0, 1) U(0, 1) 0.2 has the standard deviation 0.2 / sqrt(3)."""
    parent = Hyp(lr0=0.01, momentum=0.8)
    children = [mutate(parent, np.random.default_rng(seed)) for seed in range(4000)]
    rates = np.array([child.lr0 / 0.01 for child in children])
    momenta = np.array([child.momentum / 0.8 for child in children])
    assert (rates != 1).mean() == pytest.approx(0.8, abs=0.03)  # a few steps are too small for five digits
    assert rates[rates != 1].std() == pytest.approx(0.2 / np.sqrt(3), rel=0.08)
    assert momenta[momenta != 1].std() == pytest.approx(0.3 * 0.2 / np.sqrt(3), rel=0.08)


def test_only_the_five_best_are_parents_the_fitter_the_likelier() -> None:
    table = [generation(fitness) for fitness in (0.1, 0.6, 0.2, 0.5, 0.9, 0.3, 0.4)]
    counts = Counter(choose_parent(table, np.random.default_rng(seed)).map for seed in range(3000))
    assert set(counts) <= {0.9, 0.6, 0.5, 0.4, 0.3}
    weights = {0.9: 0.6, 0.6: 0.3, 0.5: 0.2, 0.4: 0.1}  # fitness - 0.3; their sum is 1.2
    for fitness, weight in weights.items():
        assert counts[fitness] / 3000 == pytest.approx(weight / 1.2, abs=0.03)
    assert counts[0.3] < 10


@pytest.mark.parametrize("fitness", [0.0, float("nan"), float("inf")])
def test_generations_that_all_broke_down_still_have_a_parent(fitness: float) -> None:
    table = [generation(fitness), generation(fitness)]
    chosen = {id(choose_parent(table, np.random.default_rng(seed))) for seed in range(50)}
    assert chosen == {id(one) for one in table}


def test_the_given_set_is_tried_first_as_it_is() -> None:
    unusual = Hyp(lr0=0.5)  # beyond META's bounds
    assert next_hyp([], unusual, 3) is unusual


def test_the_next_set_is_a_function_of_seed_and_table() -> None:
    table = [generation(0.3), generation(0.4, Hyp(lr0=0.02))]
    assert next_hyp(table, Hyp(), 1) == next_hyp(table, Hyp(), 1)
    assert len({next_hyp(table, Hyp(), seed) for seed in range(5)} | {next_hyp(table[:1], Hyp(), 1)}) == 6


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_an_evolution_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    evolve(tmp_path / "whole", 5)
    evolve(tmp_path / "parts", 2)
    evolve(tmp_path / "parts", 3)
    for name in ("evolve.csv", "hyp_evolve.yaml"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_the_table_has_yolov5s_columns(tmp_path: Path) -> None:
    evolve(tmp_path, 2)
    text = (tmp_path / "evolve.csv").read_text()
    assert text.startswith("   metrics/precision,      metrics/recall,     metrics/mAP_0.5,metrics/mAP_0.5:0.95,")
    table = pd.read_csv(tmp_path / "evolve.csv", skipinitialspace=True)
    figures = ["precision", "recall", "mAP_0.5", "mAP_0.5:0.95"]
    losses = ["val/box_loss", "val/obj_loss", "val/cls_loss"]
    assert list(table.columns) == [*(f"metrics/{name}" for name in figures), *losses, *hyp_as_dict(Hyp())]
    assert table["lr0"][0] == 0.01


@given(st.lists(any_hyp(), min_size=1, max_size=3))
@settings(deadline=None)
def test_what_was_written_is_read_and_written_the_same(tmp_path_factory: Any, hyps: list[Hyp]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(evolution_text([generation(0.25, hyp) for hyp in hyps]))
    table = read_evolution(path)
    for read, hyp in zip(table, hyps):
        assert (read.hyp.anchors is None) == (hyp.anchors is None)
        assert astuple(read.hyp)[:-1] == pytest.approx(astuple(hyp)[:-1], rel=1e-4)
    assert evolution_text(table) == path.read_text()


@pytest.mark.parametrize("torn", ["0.5, 0.4", "x" + ",0.5" * 34, "0.5" + ",-3" * 34, "0.5," * 35, ""])
def test_a_torn_or_impossible_row_is_left_out_and_said(
    torn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evolve(tmp_path, 2)
    whole = read_evolution(tmp_path / "evolve.csv")
    with (tmp_path / "evolve.csv").open("a") as file:
        file.write(torn + "\n")
    assert EvolveLog(tmp_path).table == whole
    assert "line 4" in caplog.text


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\xff", "lr0,lr0\n1,1\n"])
def test_a_foreign_table_is_left_out_and_said(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "evolve.csv").write_text(text)
    assert EvolveLog(tmp_path).table == ()
    assert "other columns" in caplog.text


def test_the_best_set_is_told_and_can_be_trained_with(tmp_path: Path) -> None:
    log = EvolveLog(tmp_path)
    best = Hyp(lr0=0.00334, weight_decay=1e-5, anchors=3.412)
    for one in (generation(0.3), generation(0.4, best), generation(0.4, Hyp(lr0=0.05)), generation(float("nan"))):
        log.record(one)
    assert read_hyp(tmp_path / "hyp_evolve.yaml") == best
    comments = (tmp_path / "hyp_evolve.yaml").read_text().splitlines()[:8]
    assert comments[0] == "# The fittest of 4 generations: 1 (from 0), fitness 0.4"
    assert "#   metrics/mAP_0.5: 0.4" in comments


@given(any_hyp())
@settings(deadline=None)
def test_any_set_is_read_back_from_its_yaml(tmp_path_factory: Any, hyp: Hyp) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(best_hyp_text([generation(0.1, hyp)]))
    assert read_hyp(path) == hyp


def test_an_evolution_that_has_not_begun_leaves_no_files(tmp_path: Path) -> None:
    EvolveLog(tmp_path).draw()
    assert list(tmp_path.iterdir()) == []


def test_the_figure_marks_the_fittest_at_its_values(tmp_path: Path) -> None:
    log = EvolveLog(tmp_path)
    low, high = Hyp(lr0=0.001, anchors=3.0), replace(Hyp(), lr0=0.1)
    marks = []
    for one in (generation(0.4, high), generation(0.6, low)):
        log.record(one)
        log.draw()
        picture: Any = cv2.imread(str(tmp_path / "evolve.png"))
        panel = picture[:330, :450, ::-1].astype(int)  # lr0
        marks.append(np.argwhere(np.abs(panel - (217, 72, 15)).max(axis=2) < 20).mean(axis=0))
    assert picture.shape == (1800, 2250, 3)
    assert marks[1][1] < marks[0][1] - 50  # alone in the middle, then the lower of two at the left
