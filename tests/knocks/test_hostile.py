"""What lies in a task's folders and options and would run something if it were believed."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
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


HUGE_NETWORKS = {
    "channels": ("channels: [[-1, 1, Conv, [1000000000, 3]]]", r"layer 0 \(Conv\): its output is 1000000000"),
    "repeats": ("repeats: [[-1, 1000000, C3, [64]]]", "1000000 repeats"),
    "many layers": (f"layers: [{', '.join(['[-1, 1, Conv, [1600, 3]]'] * 400)}]", r"layer 22 \(Conv\): .*weights"),
    "maps that grow": ("maps: [[-1, 1, nn.Upsample, [None, 60, nearest]]]", r"layer 0 \(nn.Upsample\): .*too much"),
    "no stride": ("up: [[-1, 1, nn.Upsample, [None, 2, nearest]]]", "strides have to be whole"),
    "laughs": (
        "a: &a [-1, 1, Conv, [64, 3]]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b]\n"
        "d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e]",
        "more than 100000 values",
    ),
}


@pytest.mark.parametrize("case", HUGE_NETWORKS)
def test_a_model_yaml_that_asks_for_everything_is_refused_unbuilt(
    case: str, training: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "task"
    shutil.copytree(training / "in", task / "in")
    rows, says = HUGE_NETWORKS[case]
    _, _, value = rows.rpartition("\n")[2].partition(": ")
    more = rows.rpartition("\n")[0]
    (task / "in/m.yaml").write_text(
        f"{more}\nnc: 80\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nbackbone: {value}\n"
        "head: [[[-1], 1, Detect, [nc, anchors]]]\n"
    )
    configure(task, args_options=f"{QUICK} --weights '' --cfg {task}/in/m.yaml")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert run(task) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error 300001: ") and "m.yaml: " in last and re.search(says, last), last
    assert monitor_of(task)[3:5] == ["4", "300001"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10  # torch itself takes 300 MB
