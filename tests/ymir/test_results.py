"""The three result files, read back as the platform reads them."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from utils.detections import Detections
from utils.errors import ExecutorError
from ymir.results import (
    BEST_STAGE,
    InferResultWriter,
    InferSummary,
    ModelStage,
    read_stages,
    whole_boxes,
    write_mining_result,
    write_stages,
)


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


# result.tsv


def mined(path: Path) -> list[tuple[str, str]]:
    lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    assert lines.pop() == ""
    return [(line.rsplit("\t", 1)[0], line.rsplit("\t", 1)[1]) for line in lines]


def test_scores_fall_and_equal_ones_go_by_the_bytes_of_the_line(tmp_path: Path) -> None:
    pairs = [("/in/b", 1.0), ("/in/é", 1.0), ("/in/a", 1.0), ("/in/Z", 1.0), ("/in/c", 2.0), ("/in/d", -3.5)]
    write_mining_result(tmp_path / "result.tsv", pairs)
    assert mined(tmp_path / "result.tsv") == [
        ("/in/c", "2"),
        ("/in/Z", "1"),
        ("/in/a", "1"),
        ("/in/b", "1"),
        ("/in/é", "1"),
        ("/in/d", "-3.5"),
    ]


def test_scores_are_rounded_before_they_are_compared(tmp_path: Path) -> None:
    write_mining_result(tmp_path / "r.tsv", [("/b", 0.12345678912), ("/a", 0.12345678911), ("/c", 0.123456788)])
    assert mined(tmp_path / "r.tsv") == [("/a", "0.123456789"), ("/b", "0.123456789"), ("/c", "0.123456788")]


def test_zero_has_one_spelling(tmp_path: Path) -> None:
    write_mining_result(tmp_path / "r.tsv", [("/b", -0.0), ("/a", 0.0)])
    assert mined(tmp_path / "r.tsv") == [("/a", "0"), ("/b", "0")]


def test_each_line_stands_once_with_its_first_score(tmp_path: Path) -> None:
    summary = write_mining_result(tmp_path / "r.tsv", [("/a", 1.0), ("/b", 2.0), ("/a", 3.0), ("/a", 0.0)])
    assert mined(tmp_path / "r.tsv") == [("/b", "2"), ("/a", "1")]
    assert (summary.lines, summary.repeated_lines) == (2, 2)


def test_lines_with_one_base_name_are_kept_counted_and_named(tmp_path: Path) -> None:
    summary = write_mining_result(tmp_path / "r.tsv", [("/x/a.jpg", 1), ("/y/a.png", 2), ("/b", 3), ("/z/a.jpg", 4)])
    assert len(mined(tmp_path / "r.tsv")) == 4
    assert (summary.same_name.count, summary.same_name.first) == (2, "/y/a.png")


def test_no_candidates_make_an_empty_file(tmp_path: Path) -> None:
    assert write_mining_result(tmp_path / "r.tsv", []).lines == 0
    assert (tmp_path / "r.tsv").read_bytes() == b""


def test_bytes_that_are_no_utf8_come_back(tmp_path: Path) -> None:
    write_mining_result(tmp_path / "r.tsv", [(b"/in/\xff\t\xfe.jpg".decode("utf-8", "surrogateescape"), 1.0)])
    assert (tmp_path / "r.tsv").read_bytes() == b"/in/\xff\t\xfe.jpg\t1\n"


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_an_error_and_leaves_the_old_file(tmp_path: Path, score: float) -> None:
    (tmp_path / "r.tsv").write_text("old")
    with pytest.raises(ExecutorError, match="need a finite one"):
        write_mining_result(tmp_path / "r.tsv", [("/a", 1.0), ("/b", score)])
    assert (tmp_path / "r.tsv").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.text("ab/.é", min_size=1, max_size=4), st.sampled_from([0.1, 0.2, 1e-9]) | st.floats(-9, 9)),
        max_size=30,
    )
)
def test_the_order_is_the_specs(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, float]]) -> None:
    path = tmp_path_factory.mktemp("r") / "r.tsv"
    write_mining_result(path, pairs)
    first: dict[str, float] = {}
    for line, score in pairs:
        first.setdefault(line, float(f"{score:.9g}") + 0.0)
    expected = sorted(first.items(), key=lambda item: (-item[1], item[0].encode()))
    assert mined(path) == [(line, f"{score:.9g}") for line, score in expected]


def test_many_lines_are_packed(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        pairs = ((f"/in/assets/{i:032d}.jpg", (i * 7919) % 100_003 / 100_003) for i in range(20_000))
        write_mining_result(tmp_path / "r.tsv", pairs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000 * 250


# infer-result.json


def infer(
    tmp_path: Path, *added: tuple[int, str, Detections], hw: tuple[int, int] = (100, 200), **options: bool
) -> tuple[dict[str, Any], InferSummary]:
    path = tmp_path / "infer-result.json"
    with InferResultWriter(path, ("cat", 'd"og'), **options) as writer:
        for index, name, found in added:
            writer.add(index, name, found, hw)
        summary = writer.finish()
    return json.loads(path.read_text(encoding="utf-8"))["detection"], summary


def test_boxes_are_whole_numbers_with_class_and_score(tmp_path: Path) -> None:
    found, summary = infer(tmp_path, (0, "a.jpg", detections((1.5, 2.4, 10.6, 20.5, 0.9, 1), (0, 0, 5, 5, 0.25, 0))))
    assert found == {
        "a.jpg": {
            "boxes": [
                {"box": {"x": 2, "y": 2, "w": 9, "h": 19}, "class_name": 'd"og', "score": 0.9},
                {"box": {"x": 0, "y": 0, "w": 5, "h": 5}, "class_name": "cat", "score": 0.25},
            ]
        }
    }
    assert (summary.pictures, summary.boxes, summary.repeats.count) == (1, 2, 0)


def test_scores_have_six_decimals(tmp_path: Path) -> None:
    infer(tmp_path, (0, "a.jpg", detections((0, 0, 5, 5, 1 / 3, 0))))
    assert '"score": 0.333333}' in (tmp_path / "infer-result.json").read_text()


def test_every_picture_has_an_entry(tmp_path: Path) -> None:
    found, summary = infer(tmp_path, (0, "a.jpg", Detections.empty()), (1, "b.jpg", Detections.empty()), hw=(1, 1))
    assert found == {"a.jpg": {"boxes": []}, "b.jpg": {"boxes": []}}
    assert summary.pictures == 2


def test_no_pictures_make_a_valid_file(tmp_path: Path) -> None:
    assert infer(tmp_path)[0] == {}


def test_old_protocols_say_annotations(tmp_path: Path) -> None:
    found, _ = infer(tmp_path, (0, "a.jpg", detections((0, 0, 5, 5, 0.5, 0))), old_protocol=True)
    assert list(found["a.jpg"]) == ["annotations"]


def test_entries_stand_in_the_order_of_the_index(tmp_path: Path) -> None:
    rows = [(index, f"{index}.jpg", detections((0, 0, index + 1, 5, 0.5, 0))) for index in (3, 0, 2, 1)]
    found, _ = infer(tmp_path, *rows)
    assert list(found) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [entry["boxes"][0]["box"]["w"] for entry in found.values()] == [1, 2, 3, 4]


def test_the_first_candidate_keeps_the_entry_of_a_name(tmp_path: Path) -> None:
    found, summary = infer(
        tmp_path,
        (5, "a.jpg", detections((0, 0, 5, 5, 0.5, 0))),
        (2, "a.jpg", detections((0, 0, 2, 2, 0.5, 0))),
        (3, "a.png", detections((0, 0, 3, 3, 0.5, 0))),
    )
    assert [(name, entry["boxes"][0]["box"]["w"]) for name, entry in found.items()] == [("a.jpg", 2), ("a.png", 3)]
    assert (summary.repeats.count, summary.repeats.first) == (1, "a.jpg")
    assert (summary.pictures, summary.boxes) == (2, 2)


def test_in_mining_the_suffix_does_not_tell_pictures_apart(tmp_path: Path) -> None:
    rows = [(0, "a.jpg", Detections.empty()), (1, "a.png", Detections.empty()), (2, "b", Detections.empty())]
    found, summary = infer(tmp_path, *rows, by_stem=True)
    assert list(found) == ["a.jpg", "b"]
    assert (summary.repeats.count, summary.repeats.first) == (1, "a.png")


@pytest.mark.parametrize(
    "name", ["a b.jpg", '"}{.jpg', "\\", "图片.JPG", "\udcff.jpg", "a\tb\n.jpg", "</script>", "\u2028"]
)
def test_odd_names_make_valid_json(tmp_path: Path, name: str) -> None:
    found, _ = infer(tmp_path, (0, name, Detections.empty()))
    assert list(found) == [name]


def test_nothing_is_left_beside_the_result(tmp_path: Path) -> None:
    with InferResultWriter(tmp_path / "infer-result.json", ("cat",)) as writer:
        writer.add(0, "a.jpg", Detections.empty(), (1, 1))
        assert list(tmp_path.iterdir()) == []
        writer.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["infer-result.json"]
    assert stat.S_IMODE((tmp_path / "infer-result.json").stat().st_mode) == 0o666


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ExecutorError, match="can't be written"):
        InferResultWriter(tmp_path / "out/infer-result.json", ("cat",))


SIZE = st.integers(1, 3000)


@settings(max_examples=200, deadline=None)
@given(hw=st.tuples(SIZE, SIZE), shares=st.tuples(*[st.floats(0, 1, width=32)] * 4))
def test_whole_boxes_lie_inside_the_picture(hw: tuple[int, int], shares: tuple[float, float, float, float]) -> None:
    height, width = hw
    x1, x2 = sorted(np.float32(share * width) for share in shares[:2])
    y1, y2 = sorted(np.float32(share * height) for share in shares[2:])
    left, top, w, h = whole_boxes(np.array([[x1, y1, x2, y2]], np.float32), hw)[0].tolist()
    assert 0 <= left < left + w <= width
    assert 0 <= top < top + h <= height
    assert abs(left - x1) <= 1
    assert abs(left + w - x2) <= 1.5  # at least one pixel


def test_whole_boxes_by_hand() -> None:
    boxes = np.array([[0.5, 0.49, 2.5, 2.49], [9.7, 9.7, 10, 10], [3.2, 3.2, 3.3, 3.3]], np.float32)
    assert whole_boxes(boxes, (10, 10)).tolist() == [[1, 0, 2, 2], [9, 9, 1, 1], [3, 3, 1, 1]]
    assert whole_boxes(np.zeros((0, 4), np.float32), (10, 10)).shape == (0, 4)


# models/result.yaml


def stage(name: str, mean_ap: float, *files: str, timestamp: int = 0) -> ModelStage:
    return ModelStage(name, files, mean_ap, timestamp)


def touch(models_dir: Path, *names: str) -> Path:
    for name in names:
        (models_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (models_dir / name).write_bytes(b"x")
    return models_dir / "result.yaml"


def test_stages_stand_in_the_platforms_form(tmp_path: Path) -> None:
    path = touch(tmp_path, "yolov5_best/best.pt", "epoch_10/epoch_10.pt", "log.txt")
    stages = [
        ModelStage("epoch_10", ("epoch_10.pt",), np.float32(0.25), 5),  # type: ignore[arg-type]  # as trainers have it
        stage(BEST_STAGE, 0.5, "best.pt", "best.onnx", timestamp=7),
    ]
    write_stages(path, tmp_path, stages, attachments={"log": ["log.txt", "gone.txt"], "none": ["gone.txt"]})
    assert yaml.safe_load(path.read_text()) == {
        "model_stages": {
            "epoch_10": {"stage_name": "epoch_10", "files": ["epoch_10.pt"], "timestamp": 5, "mAP": 0.25},
            "yolov5_best": {"stage_name": "yolov5_best", "files": ["best.pt"], "timestamp": 7, "mAP": 0.5},
        },
        "best_stage_name": "yolov5_best",
        "mAP": 0.5,
        "evaluate_config": {"iou_thr": 0.5, "conf_thr": 0.005},
        "attachments": {"log": ["log.txt"]},
    }


def test_files_are_found_in_models_too_and_never_outside(tmp_path: Path) -> None:
    path = touch(tmp_path / "models", "best.pt", "../secret.pt")
    stages = [stage("s", 0.5, "best.pt", "best.pt", "../secret.pt", str(tmp_path / "secret.pt"), "gone.onnx")]
    (kept,) = write_stages(path, tmp_path / "models", stages)
    assert kept.files == ("best.pt",)


def test_a_stage_without_files_is_left_out(tmp_path: Path) -> None:
    path = touch(tmp_path, "a.pt")
    assert [kept.name for kept in write_stages(path, tmp_path, [stage("a", 0.1, "a.pt"), stage("b", 0.9, "b.pt")])] == [
        "a"
    ]
    with pytest.raises(ExecutorError, match="no stage has a file"):
        write_stages(path, tmp_path, [stage("b", 0.9, "b.pt")])


def test_old_protocols_have_one_model(tmp_path: Path) -> None:
    path = touch(tmp_path, "a.pt", "b.pt")
    write_stages(path, tmp_path, [stage("a", 0.1, "a.pt"), stage("b", 0.3, "b.pt")], old_protocol=True)
    assert yaml.safe_load(path.read_text()) == {"model": ["b.pt"], "map": 0.3}


def test_eleven_stages_stay_the_best_and_the_newest(tmp_path: Path) -> None:
    path = touch(tmp_path, "w.pt")
    stages = [stage(f"epoch_{i}", 0.9 if i == 2 else 0.1, "w.pt", timestamp=i) for i in range(20)]
    stages.append(stage(BEST_STAGE, 0.8, "w.pt", timestamp=3))
    kept = write_stages(path, tmp_path, stages)
    assert {item.name for item in kept} == {"epoch_2", BEST_STAGE, *(f"epoch_{i}" for i in range(11, 20))}
    assert yaml.safe_load(path.read_text())["best_stage_name"] == "epoch_2"


def test_of_equal_stages_the_later_is_best(tmp_path: Path) -> None:
    path = touch(tmp_path, "w.pt")
    write_stages(path, tmp_path, [stage("epoch_10", 0.5, "w.pt"), stage(BEST_STAGE, 0.5, "w.pt")])
    assert yaml.safe_load(path.read_text())["best_stage_name"] == BEST_STAGE


@pytest.mark.parametrize("mean_ap", [-0.1, 1.1, 56.8, float("nan"), float("inf")])
def test_an_map_outside_0_to_1_is_refused(mean_ap: float) -> None:
    with pytest.raises(ExecutorError, match="need a number from 0 to 1"):
        stage("a", mean_ap, "w.pt")


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_name_that_is_no_folders_is_refused(name: str) -> None:
    with pytest.raises(ExecutorError, match="need a name"):
        stage(name, 0.5, "w.pt")


def test_stages_are_read_back(tmp_path: Path) -> None:
    path = touch(tmp_path, "a.pt", "b.pt")
    stages = (stage("a", 0.125, "a.pt", timestamp=3), stage("b", 0.3, "a.pt", "b.pt", timestamp=4))
    write_stages(path, tmp_path, stages)
    assert read_stages(path) == stages
    assert read_stages(tmp_path / "none.yaml") == ()


STAGE = "model_stages: {{a: {{stage_name: a, files: {}, mAP: 0.5, timestamp: {}}}}}"


def test_stages_of_any_texts_are_read_and_may_be_written(tmp_path: Path) -> None:
    path = touch(tmp_path, "w.pt")
    strange = tmp_path / "strange.yaml"
    strange.write_text(STAGE.format(f"[w.pt, '{'x' * 5000}', \"a\\0b\", '/etc/passwd']", 7))
    stages = read_stages(strange)
    assert len(stages[0].files) == 4
    assert write_stages(path, tmp_path, stages)[0].files == ("w.pt",)


@pytest.mark.parametrize(
    "content",
    [
        *("", "- a\n", "model: 5\n", "model_stages: {a: 5}\n", "{", "model_stages: 5", "{model: w.pt, map: 0.5}"),
        *(STAGE.format("[w.pt]", ".inf"), STAGE.format("[1, 2]", 5), STAGE.format("[[]]", 5), STAGE.format("w.pt", 5)),
    ],
)
def test_a_result_that_is_no_list_of_stages_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.yaml").write_text(content)
    assert read_stages(tmp_path / "result.yaml") == ()


def test_a_killed_writer_leaves_a_whole_result(tmp_path: Path) -> None:
    touch(tmp_path, "w.pt")
    code = (
        "from pathlib import Path; from ymir.results import ModelStage, write_mining_result, write_stages\n"
        f"folder = Path({str(tmp_path)!r}); count = 0\n"
        "while True:\n"
        "    count += 1\n"
        "    stages = [ModelStage(f'epoch_{i}', ('w.pt',), 0.5, count) for i in range(11)]\n"
        "    write_stages(folder / 'result.yaml', folder, stages)\n"
        "    write_mining_result(folder / 'result.tsv', ((f'/in/{i}', i + count) for i in range(3000)))\n"
        "    if count == 1: print('on', flush=True)\n"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n"
            time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
        assert len(read_stages(tmp_path / "result.yaml")) == 11
        assert len(mined(tmp_path / "result.tsv")) == 3000
