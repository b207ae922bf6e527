"""Built images, run as the platform runs them; docs/images.md says how they are built."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from make_task import TaskOptions, make_task
from mining.shipped_code import runs_target
from models.checkpoint import read_checkpoint
from tests.conftest import ROOT
from tests.images.engine import AS_THE_PLATFORM, USER, docker, inspect, run, run_task
from tests.images.recipes import context
from tests.test_start import config
from utils.gpus import IMAGES

pytestmark = pytest.mark.image

FORMS = sorted(path.name for path in (ROOT / "ymir/img-man").iterdir())
SMALL = {"img_size": 160, "batch_size_per_gpu": 8}
COUNT = 16


@pytest.mark.parametrize("form", FORMS)
def test_cat_of_a_form_gives_that_form_and_nothing_else(image: str, form: str) -> None:
    done = run(image, "cat", f"/img-man/{form}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (ROOT / "ymir/img-man" / form).read_text()
    assert all(isinstance(value, (str, int, float, bool)) for value in yaml.safe_load(done.stdout).values())


def test_it_holds_our_files_and_no_others(image: str) -> None:
    done = run(image, "find", "/app", "-type", "f", "-not", "-name", "*.pyc")
    inside = sorted(name[len("/app/") :] for name in done.stdout.splitlines())
    expected = context(ROOT)
    assert [name for name in inside if not name.startswith("weights/")] == [
        name for name in expected if not name.startswith("weights/")
    ], "the image is of another state of the source: build it again"


def test_packages_fit_together(image: str) -> None:
    done = run(image, "pip", "check")
    assert done.returncode == 0, done.stdout


def test_no_compiler_and_no_scraps_are_left(image: str) -> None:
    looking = (
        "for name in gcc cc g++ c++ clang make git curl wget; do command -v $name; done; "
        "ls -A /root/.cache /var/lib/apt/lists 2>/dev/null | grep -v ':$'; "
        "find /app /img-man -not -perm -o+r; find /app /img-man -type f -perm /022"
    )
    done = run(image, "sh", "-c", looking, options=["--network", "none"])
    assert done.stdout.split() == []


def test_bytecode_is_there_and_is_taken(image: str) -> None:
    done = run(image, "python3", "-v", "-c", "import ymir.config, numpy, yaml, pydantic")
    assert "/app/ymir/__pycache__/config.cpython-3" in done.stderr
    assert (
        "code object from /" not in done.stderr
    )  # so Python says where it has compiled a source; of a .pyc it quotes the path


def test_compiled_code_knows_its_source_after_a_registry_too(image: str) -> None:
    """A registry keeps whole seconds of a file's time, by which numba knows what it compiled."""
    done = run(image, "python3", "-c", "import os; print(os.stat('/app/mining/aldd_kernel.py').st_mtime_ns % 10**9)")
    assert done.stdout.strip() == "0"


def test_it_is_configured_as_the_platform_needs_it(image: str) -> None:
    config = inspect(image)
    environment = dict(one.split("=", 1) for one in config["Env"])
    assert config["Cmd"] == ["python3", "/app/start.py"]
    assert not config.get("Entrypoint")
    assert environment["LANG"] == "C.UTF-8"
    assert environment["HOME"] == "/"
    for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME", "TORCH_HOME"):
        assert environment[name].startswith("/tmp/")
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    if "cpu" not in image:
        assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


def test_its_torch_has_code_for_the_gpus_that_we_say(image: str) -> None:
    row = image.rpartition(":")[2]
    if row not in IMAGES:
        return  # the cpu image's torch is whatever PIP_ARGS brought
    done = run(image, "python3", "-c", "import torch; print(torch._C._cuda_getArchFlags())")
    assert tuple(done.stdout.split()) == IMAGES[row]


def finished(out_dir: Path) -> bool:
    return (out_dir / "monitor.txt").read_text().rstrip("\n").split("\t")[2:] == ["1.0", "2"]


def numbers(entry: dict[str, Any]) -> list[float]:
    """Give the corners and sizes, in whole pixels, of a picture's boxes."""
    return [float(box["box"][side]) for box in entry["boxes"] for side in ("x", "y", "w", "h")]


def strangers(out_dir: Path) -> list[str]:
    """Give the results that don't belong to the user who runs the task."""
    return [str(path) for path in out_dir.rglob("*") if (path.stat().st_uid, path.stat().st_gid) != USER]


def test_it_infers(image: str, coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path) -> None:
    options = TaskOptions(weights=(yolov5n_pt,), settings=SMALL, limit=COUNT, placing="copy")
    task = make_task(coco_images[0].parent, tmp_path, "infer", options)
    done = run_task(image, task.in_dir, task.out_dir)
    assert done.returncode == 0, done.stderr
    found = json.loads((task.out_dir / "infer-result.json").read_text())["detection"]
    assert sorted(found) == [path.name for path in coco_images[:COUNT]]
    here = tmp_path / "here"
    command = [sys.executable, str(ROOT / "start.py"), "--in", str(task.in_dir), "--out", str(here)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    expected = json.loads((here / "infer-result.json").read_text())["detection"]
    assert sum(len(entry["boxes"]) for entry in expected.values()) > COUNT
    for name, entry in expected.items():  # whatever versions a row has, it finds what this Python finds
        assert [box["class_name"] for box in found[name]["boxes"]] == [box["class_name"] for box in entry["boxes"]]
        assert numbers(found[name]) == pytest.approx(numbers(entry), abs=1.01)
    assert finished(task.out_dir)
    assert strangers(task.out_dir) == []
    assert ", CPU, " in done.stderr  # also in an image with CUDA inside, on a machine that has no driver


@pytest.mark.slow
@pytest.mark.parametrize("miner", ["aldd", "cald", "entropy"])
def test_it_mines(image: str, miner: str, coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "mining_algorithm": miner}
    options = TaskOptions(weights=(yolov5n_pt,), settings=settings, limit=COUNT, placing="copy")
    task = make_task(coco_images[0].parent, tmp_path, "mining", options)
    done = run_task(image, task.in_dir, task.out_dir, tmp_dir=tmp_path / "tmp")
    assert done.returncode == 0, done.stderr
    if miner == "aldd" and runs_target(Path("/proc/cpuinfo")):
        listed = run(image, "sh", "-c", 'cd "$YMIR_COMPILED_CODE" && find . -name "*.nbc"').stdout.split()
        used = [str(path.relative_to(tmp_path / f"tmp/numba-{USER[0]}")) for path in (tmp_path / "tmp").rglob("*.nbc")]
        assert sorted(used) == sorted(name[2:] for name in listed) != [], "compiled in the container"
    rows = [line.split("\t") for line in (task.out_dir / "result.tsv").read_text().splitlines()]
    assert sorted(Path(path).name for path, _ in rows) == [path.name for path in coco_images[:COUNT]]
    scores = [float(score) for _, score in rows]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > COUNT // 2
    assert finished(task.out_dir)
    assert strangers(task.out_dir) == []


@pytest.mark.slow
def test_it_trains_from_its_own_weights_and_draws_chinese_names(
    image: str, shared: Path, yolov5n_pt: Path, tmp_path: Path
) -> None:
    names = [f"类别{number}" for number in range(80)]
    data = tmp_path / "data.yaml"
    data.write_text(
        yaml.safe_dump({"path": str(shared / "data/coco128"), "train": "images/train2017", "names": names}), "utf-8"
    )
    settings = {**SMALL, "model": "yolov5n", "epochs": 1}
    options = TaskOptions(settings=settings, limit=COUNT, placing="copy", val_share=0.25)
    task = make_task(data, tmp_path / "task", "train", options)
    done = run_task(image, task.in_dir, task.out_dir, "-v", f"{yolov5n_pt}:/app/weights/yolov5n.pt:ro")
    assert done.returncode == 0, done.stderr
    assert "training starts from /app/weights/yolov5n.pt" in done.stderr
    assert "no installed font" not in done.stderr
    result = yaml.safe_load((task.out_dir / "models/result.yaml").read_text())
    files = result["model_stages"]["yolov5_best"]["files"]
    assert {"best.pt", "best.onnx"} <= set(files)
    assert list(read_checkpoint(task.out_dir / "models/best.pt").names) == names
    assert (task.out_dir / "tensorboard/confusion_matrix.png").stat().st_size > 0
    assert finished(task.out_dir)
    assert strangers(task.out_dir) == []


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [({"conf_thres": "high"}, "300001", "conf_thres"), ({"gpu_id": "0"}, "300102", "gpu")],
    ids=["a wrong value", "a GPU that isn't there"],
)
def test_a_fault_is_told_in_the_last_line(
    image: str,
    settings: dict[str, str],
    code: str,
    says: str,
    coco_images: list[Path],
    yolov5n_pt: Path,
    tmp_path: Path,
) -> None:
    options = TaskOptions(weights=(yolov5n_pt,), limit=1, placing="copy")
    task = make_task(coco_images[0].parent, tmp_path, "infer", options)
    config(**settings)(task.in_dir)  # the task maker would refuse it
    done = run_task(image, task.in_dir, task.out_dir)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error {code}: ")
    assert says in last.lower()
    assert (task.out_dir / "monitor.txt").read_text().split("\t")[3:5] == ["4", code]


@pytest.mark.slow
@pytest.mark.parametrize("how", [("stop", "--time", "30"), ("kill",)], ids=["docker stop", "docker kill"])
def test_a_stopped_container_leaves_a_word_and_the_next_goes_on(
    image: str, how: tuple[str, ...], coco_images: list[Path], yolov5n_pt: Path, tmp_path: Path
) -> None:
    """Python is process 1 there, to which signals do nothing that it doesn't handle."""
    settings = {**SMALL, "mining_algorithm": "cald"}
    options = TaskOptions(weights=(yolov5n_pt,), settings=settings, placing="copy")
    task = make_task(coco_images[0].parent, tmp_path, "mining", options)
    if os.getuid() == 0:
        os.chown(task.out_dir, *USER)
    name = f"ymir-test-{os.getpid()}-{how[0]}"
    volumes = ("-v", f"{task.in_dir}:/in:ro", "-v", f"{task.out_dir}:/out")
    assert docker("run", "-d", "--name", name, *AS_THE_PLATFORM, *volumes, image).returncode == 0
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size > 2000 for path in task.out_dir.glob("*.records")):
            assert time.monotonic() < deadline, docker("logs", name).stderr
            time.sleep(0.05)
        docker(how[0], *how[1:], name)
        code, said = docker("wait", name).stdout.strip(), docker("logs", name).stderr
    finally:
        docker("rm", "-f", name)
    assert not (task.out_dir / "result.tsv").exists() and not finished(task.out_dir)
    if how[0] == "stop":
        assert code == "1" and "SIGTERM" in said.splitlines()[-1], said
        assert (task.out_dir / "monitor.txt").read_text().split("\t")[3:5] == ["4", "160004"]
    done = run_task(image, task.in_dir, task.out_dir)
    assert done.returncode == 0 and finished(task.out_dir), done.stderr
    assert re.search(r"[1-9]\d* candidates were scored before", done.stderr), done.stderr
    assert len((task.out_dir / "result.tsv").read_text().splitlines()) == len(coco_images)
