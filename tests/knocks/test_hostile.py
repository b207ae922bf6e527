"""What lies in a task's folders and options and would run something if it were believed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import start
from tests.knocks.few import QUICK, monitor_of, pictures_task, training_task


class Touch:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def run(task: Path) -> int:
    return start.main(["--in", str(task / "in"), "--out", str(task / "out")])


def configure(task: Path, **values: Any) -> None:
    path = task / "in/config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_records_and_statistics_that_are_pickles_do_nothing(
    protocol: int, coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path
) -> None:
    task = pictures_task(coco_images[:4], yolov5n_pt, tmp_path / "made", "mining", mining_algorithm="entropy")
    assert run(task) == 0
    expected = (task / "out/result.tsv").read_text()
    trace = tmp_path / "trace"
    hostile = pickle.dumps(Touch(trace), protocol)
    pickle.loads(hostile)
    assert trace.exists(), "the attack is none"
    trace.unlink()
    (task / "out/mining.0-of-1.records").write_bytes(hostile)
    weights = next((task / "in/models").rglob("*.pt"))
    weights.with_name("mining_stats.safetensors").write_bytes(hostile)
    configure(task, class_balance=0.0001)  # or nobody would read the statistics
    assert run(task) == 0
    assert not trace.exists()
    assert sorted((task / "out/result.tsv").read_text().split()[::2]) == sorted(expected.split()[::2])


def test_links_in_the_input_are_followed_wherever_they_lead(
    coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path
) -> None:
    """Platforms lay assets and models out as links to a store; what a user mounts the container's user may read."""
    task = pictures_task(coco_images[:3], yolov5n_pt, tmp_path / "made", "infer")
    assert run(task) == 0
    expected = (task / "out/infer-result.json").read_bytes()
    store = tmp_path / "store"
    store.mkdir()
    shutil.move(task / "in/models", store / "models")
    (task / "in/models").symlink_to(store / "models")  # a folder
    for picture in sorted((task / "in/assets").iterdir()):  # files, by absolute and by relative links
        shutil.move(picture, store / picture.name)
        picture.symlink_to(store / picture.name)
    picture.unlink()
    picture.symlink_to(os.path.relpath(store / picture.name, picture.parent))
    assert run(task) == 0
    assert (task / "out/infer-result.json").read_bytes() == expected
    picture.unlink()
    picture.symlink_to(tmp_path)  # but only regular files are opened: this picture is unreadable, the others stay
    assert run(task) == 0
    found = json.loads((task / "out/infer-result.json").read_text())["detection"]
    assert [name for name in found if name != picture.name] == sorted(json.loads(expected)["detection"])[:2]


@pytest.fixture(scope="module")
def training(coco_images: list[Path], yolov5n_pt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_task(coco_images[:4], yolov5n_pt, tmp_path_factory.mktemp("training"))


@pytest.mark.parametrize(
    "text", ["; touch {0}", "$(touch {0})", "`touch {0}`", "| touch {0}", "--cfg $(touch${{IFS}}{0})"]
)
def test_options_are_never_run_by_a_shell(
    training: Path, tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    task, trace = tmp_path / "task", tmp_path / "trace"
    shutil.copytree(training / "in", task / "in")
    configure(task, args_options=f"{QUICK} {text.format(trace)}")
    assert run(task) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("error 300001: ")
    assert monitor_of(task)[3:5] == ["4", "300001"] and not trace.exists()
