"""start.py from outside: tasks run on real pictures with real weights, and everything a task can get wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch.nn.modules.module import register_module_forward_pre_hook

import start
from make_task import TaskOptions, make_task
from models.yolo import DetectionModel
from ymir import monitor as monitor_module
from ymir.monitor import Monitor

ROOT = Path(__file__).resolve().parent.parent
SIDE = 160  # px; golden figures at 640 are held in tests/models and tests/mining
Change = Callable[[Path], object]  # alters the /in folder given


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> Path:
    """One /in tree for all tests here, to be copied: six pictures, entropy and inference."""
    pictures = tmp_path_factory.mktemp("pictures")
    for path in coco_images[:6]:
        shutil.copy(path, pictures / path.name)
    settings = {"mining_algorithm": "entropy", "img_size": SIDE, "batch_size_per_gpu": 4, "num_workers_per_gpu": 2}
    options = TaskOptions(weights=(yolov5n_pt,), settings=settings, placing="copy")
    return make_task(pictures, tmp_path_factory.mktemp("task") / "t", "mining+infer", options).in_dir


@pytest.fixture
def task(template: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the tree as `in`, and an empty `out`."""
    shutil.copytree(template, tmp_path / "in", symlinks=True)
    return tmp_path


def run(task: Path) -> int:
    return start.main(["--in", str(task / "in"), "--out", str(task / "out")])


def run_process(task: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "start.py"), "--in", str(task / "in"), "--out", str(task / "out"), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


def edit(path: Path, **values: Any) -> None:
    """Change keys of a yaml file; None takes one away."""
    content = yaml.safe_load(path.read_text())
    for key, value in values.items():
        content.pop(key, None)
        if value is not None:
            content[key] = value
    path.write_text(yaml.safe_dump(content, allow_unicode=True))


def config(**values: Any) -> Change:
    return lambda in_dir: edit(in_dir / "config.yaml", **values)


def env(**values: Any) -> Change:
    return lambda in_dir: edit(in_dir / "env.yaml", **values)


def output(**paths: str) -> Change:
    def change(in_dir: Path) -> None:
        content = yaml.safe_load((in_dir / "env.yaml").read_text())
        content["output"].update(paths)
        (in_dir / "env.yaml").write_text(yaml.safe_dump(content))

    return change


def write(name: str, content: bytes) -> Change:
    def change(in_dir: Path) -> None:
        (in_dir / name).write_bytes(content)

    return change


def remove(name: str) -> Change:
    return lambda in_dir: (in_dir / name).unlink()


def lines(task: Path) -> list[str]:
    return (task / "in/candidate-index.tsv").read_text().splitlines()


def set_lines(in_dir: Path, new: list[str]) -> None:
    (in_dir / "candidate-index.tsv").write_bytes("\n".join(new).encode("utf-8", "surrogateescape") + b"\n")


def monitor(task: Path) -> list[str]:
    """The fields of monitor.txt's first line."""
    return (task / "out/monitor.txt").read_text().splitlines()[0].split("\t")


def ranking(task: Path) -> dict[str, float]:
    rows = (task / "out/result.tsv").read_text(errors="surrogateescape").splitlines()
    return {line: float(score) for line, score in (row.rsplit("\t", 1) for row in rows)}


def detections(task: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((task / "out/infer-result.json").read_text())["detection"]
    return found


def weights_of(in_dir: Path) -> Path:
    return next((in_dir / "models").rglob("*.pt"))


# --- what a good task leaves behind -----------------------------------------------------------------------------------


def test_mining_and_inference_at_once(task: Path) -> None:
    assert run(task) == 0
    assert monitor(task)[2:] == ["1.0", "2"]
    ranked = ranking(task)
    assert sorted(ranked) == sorted(lines(task))
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    assert set(detections(task)) == {Path(line).name for line in lines(task)}
    for line in lines(task):
        picture: Any = cv2.imread(str(task / line.lstrip("/")))
        height, width = picture.shape[:2]
        for box in (entry["box"] for entry in detections(task)[Path(line).name]["boxes"]):
            assert 0 <= box["x"] < box["x"] + box["w"] <= width and 0 <= box["y"] < box["y"] + box["h"] <= height
    assert sorted(path.name for path in (task / "out").iterdir()) == ["infer-result.json", "monitor.txt", "result.tsv"]


def test_results_do_not_depend_on_order_batch_or_workers(task: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert run(task) == 0
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(task / "in", other / "in")
    set_lines(other / "in", lines(task)[::-1])
    edit(other / "in/config.yaml", batch_size_per_gpu=1, num_workers_per_gpu=0)
    assert run(other) == 0
    assert (other / "out/result.tsv").read_bytes() == (task / "out/result.tsv").read_bytes()
    assert detections(other) == detections(task)


def test_random_needs_no_weights_and_no_torch(task: Path) -> None:
    edit(task / "in/env.yaml", run_infer=False)
    edit(task / "in/config.yaml", mining_algorithm="random", model_params_path=None)
    script = (
        "import sys, start; code = start.main(sys.argv[1:]);"
        "print('torch' in sys.modules, 'torchvision' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--in", str(task / "in"), "--out", str(task / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False"]
    first = ranking(task)
    assert len(first) == 6 and run(task) == 0 and ranking(task) == first
    edit(task / "in/config.yaml", seed=1)
    assert run(task) == 0 and ranking(task) != first


def test_old_protocol_and_relative_paths(task: Path) -> None:
    content = yaml.safe_load((task / "in/env.yaml").read_text())
    content.pop("protocol_version")
    content.pop("manifest_file", None)
    content["input"] = {"root_dir": "/in", "candidate_index_file": "candidate-index.tsv", "config_file": "config.yaml"}
    content["output"] = {"root_dir": "/out"}
    (task / "in/env.yaml").write_text(yaml.safe_dump(content))
    assert run(task) == 0
    assert all("annotations" in entry for entry in detections(task).values())


def test_a_task_as_a_process_prints_plain_lines_and_exits_0(task: Path) -> None:
    done = run_process(task)
    assert done.returncode == 0
    assert "\r" not in done.stdout and "\x1b" not in done.stdout
    assert "Traceback" not in done.stdout


def test_monitor_is_whole_at_every_moment_and_never_falls(task: Path) -> None:
    seen: list[tuple[float, str]] = []
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            try:
                fields = (task / "out/monitor.txt").read_text().splitlines()[0].split("\t")
                seen.append((float(fields[2]), fields[3]))
            except FileNotFoundError:
                assert not seen, "monitor.txt vanished"
            time.sleep(0.02)

    thread = threading.Thread(target=poll)
    thread.start()
    process = run_process(task)
    done.set()
    thread.join()
    assert process.returncode == 0, process.stdout
    percents = [percent for percent, _ in seen]
    assert percents == sorted(percents) and percents[0] == 0 and {state for _, state in seen} == {"2"}


def test_first_monitor_line_stands_before_torch_is_imported(task: Path) -> None:
    script = (
        "import sys, start\nfrom ymir.monitor import Monitor\nbegin = Monitor.start\n"
        "def watched(self):\n    begin(self)\n    print('torch' in sys.modules, 'numpy' in sys.modules)\n"
        "Monitor.start = watched\nsys.exit(start.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--in", str(task / "in"), "--out", str(task / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


# --- what is wrong with a task as a whole: an error with its code -----------------------------------------------------


def hostile_pickle() -> bytes:
    class Attack:
        def __reduce__(self) -> Any:
            return os.system, ("touch /tmp/ymir-was-here; echo hacked > was-here",)

    return pickle.dumps({"model": Attack()})


def hostile_weights(in_dir: Path) -> None:
    with zipfile.ZipFile(weights_of(in_dir), "w") as archive:
        archive.writestr("best/data.pkl", hostile_pickle())
        archive.writestr("best/version", "3\n")


def bare_hostile_weights(in_dir: Path) -> None:
    weights_of(in_dir).write_bytes(hostile_pickle())


def truncate_weights(in_dir: Path) -> None:
    path = weights_of(in_dir)
    path.write_bytes(path.read_bytes()[:-50_000])


def all_pictures_broken(in_dir: Path) -> None:
    for path in (in_dir / "assets").rglob("*.jpg"):
        path.write_bytes(b"no picture")


YAML_BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (97 + k, 97 + k, b", ".join([b"*%c" % (96 + k)] * 9)) for k in range(1, 12)
)

WRONG: dict[str, tuple[Change, int, str]] = {
    "env missing": (remove("env.yaml"), 300001, "env.yaml"),
    "env empty": (write("env.yaml", b""), 300001, "env.yaml"),
    "env garbled": (write("env.yaml", b"task_id: [1, 2\n\x00"), 300001, "env.yaml"),
    "env a list": (write("env.yaml", b"- a\n- b\n"), 300001, "env.yaml"),
    "env bomb": (write("env.yaml", YAML_BOMB), 300001, "env.yaml"),
    "env python tag": (write("env.yaml", b"!!python/object/apply:os.system ['touch x']\n"), 300001, "env.yaml"),
    "env without a task": (env(run_mining=False, run_infer=False), 300001, "run_mining"),
    "results over the input": (output(infer_result_file="/in/candidate-index.tsv"), 300001, "output.infer_result_file"),
    "monitor elsewhere": (output(monitor_file="/tmp/ymir-was-here"), 300001, "output.monitor_file"),
    "results above /out": (output(mining_result_file="/out/../x.tsv"), 300001, "output.mining_result_file"),
    "config missing": (remove("config.yaml"), 300001, "config.yaml"),
    "config empty": (write("config.yaml", b""), 300001, "config.yaml"),
    "config garbled": (write("config.yaml", b"{"), 300001, "config.yaml"),
    "config bomb": (write("config.yaml", YAML_BOMB), 300001, "config.yaml"),
    "config a number": (write("config.yaml", b"7\n"), 300001, "config.yaml"),
    "conf_thres abc": (config(conf_thres="abc"), 300001, "conf_thres"),
    "conf_thres 2": (config(conf_thres="2"), 300001, "conf_thres"),
    "conf_thres -1": (config(conf_thres=-1), 300001, "conf_thres"),
    "conf_thres nan": (config(conf_thres="nan"), 300001, "conf_thres"),
    "iou_thres a list": (config(iou_thres=[1, 2]), 300001, "iou_thres"),
    "img_size 0": (config(img_size="0"), 300001, "img_size"),
    "img_size huge": (config(img_size=10**9), 300001, "img_size"),
    "batch 0": (config(batch_size_per_gpu=0), 300001, "batch_size_per_gpu"),
    "workers -1": (config(num_workers_per_gpu=-1), 300001, "num_workers_per_gpu"),
    "letterbox round": (config(letterbox="round"), 300001, "letterbox"),
    "precision fp8": (config(precision="fp8"), 300001, "precision"),
    "unknown algorithm": (config(mining_algorithm="magic"), 300001, "mining_algorithm"),
    "backend unknown": (config(backend="tvm"), 300001, "backend"),
    "class names empty": (config(class_names=[]), 300001, "class_names"),
    "class names doubled": (config(class_names=["a", "a"]), 300001, "class_names"),
    "gpu_id garbage": (config(gpu_id="zero"), 300001, "gpu_id"),
    "a GPU that is not there": (config(gpu_id="7"), 300102, "gpu_id"),
    "object_type 3": (config(object_type=3), 300005, "object_type"),
    "no weights named": (config(model_params_path=None), 300004, "model_params_path"),
    "weights not there": (config(model_params_path=["/in/models/none.pt"]), 300004, "none.pt"),
    "weights outside models_dir": (
        config(model_params_path=["/in/models/../../etc/passwd"]),
        300001,
        "model_params_path",
    ),
    "weights are text": (lambda in_dir: weights_of(in_dir).write_text("hello"), 300004, ".pt"),
    "weights are empty": (lambda in_dir: weights_of(in_dir).write_bytes(b""), 300004, ".pt"),
    "weights cut off": (truncate_weights, 300004, ".pt"),
    "weights hostile": (hostile_weights, 300004, "system"),
    "weights hostile, bare pickle": (bare_hostile_weights, 300004, ".pt"),
    "another number of classes": (config(class_names=["one", "two"]), 300004, "80 classes"),
    "index missing": (remove("candidate-index.tsv"), 300002, "candidate-index.tsv"),
    "every picture unreadable": (all_pictures_broken, 300003, "6"),
}


def assert_told(task: Path, capfd: pytest.CaptureFixture[str], code: int, named: str) -> str:
    """Run a task that must fail: monitor.txt and the last line tell why; give what went to stderr."""
    assert run(task) != 0
    fields = monitor(task)
    assert fields[3:5] == ["4", str(code)], fields
    assert named in fields[5]
    printed = capfd.readouterr()
    last = (printed.out + printed.err).splitlines()[-1]
    assert last.startswith(f"error {code}: ") and named in last and len(last) < 1200
    return printed.err


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_task_ends_with_its_code_in_one_line(
    case: str, task: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, code, named = WRONG[case]
    change(task / "in")
    monkeypatch.chdir(task)
    assert_told(task, capfd, code, named)
    assert not (task / "was-here").exists() and not Path("/tmp/ymir-was-here").exists()
    assert not (task / "out/infer-result.json").exists() or case == "every picture unreadable"


def test_a_wrong_env_is_told_under_its_tasks_id(task: Path) -> None:
    for change in (env(run_mining=False, run_infer=False), output(monitor_file="/tmp/elsewhere")):
        change(task / "in")
        env(task_id="t0001")(task / "in")
        assert run(task) == 1 and monitor(task)[0] == "t0001"
    write("env.yaml", b"- 7")(task / "in")
    assert run(task) == 1 and monitor(task)[0] == "default-task"


@pytest.mark.parametrize("case", ["conf_thres abc", "weights hostile", "a GPU that is not there", "env missing"])
def test_a_wrong_task_as_a_process(case: str, task: Path) -> None:
    change, code, named = WRONG[case]
    change(task / "in")
    done = run_process(task)
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1].startswith(f"error {code}: ")
    assert "Traceback" not in done.stdout
    assert named in "\n".join(done.stdout.splitlines()[-5:])


def assert_nothing_heavy_is_loaded(task: Path) -> None:
    """Run a task in a process of its own, and look at what it imported."""
    script = "import sys, start; start.main(sys.argv[1:]); print(sorted({'torch', 'cv2', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script, "--in", str(task / "in"), "--out", str(task / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_wrong_configuration_is_told_without_torch(task: Path) -> None:
    edit(task / "in/config.yaml", conf_thres="abc")
    assert_nothing_heavy_is_loaded(task)


def test_keys_that_nobody_reads_are_told_in_one_short_line(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    odd = {"img_sise": 640, "a\nb\tc": 1, "x" * 500: 1, **{f"key{number}": 1 for number in range(10)}}
    edit(task / "in/config.yaml", activate="ReLU", **odd)
    edit(task / "in/env.yaml", run_infer=False)
    edit(task / "in/config.yaml", mining_algorithm="random")
    assert run(task) == 0
    (told,) = (record.getMessage() for record in caplog.records if "unknown keys" in record.getMessage())
    assert told.startswith("config.yaml: 13 unknown keys are ignored: ")
    assert told.count(", ") == 9 and len(told) < 300
    assert "\n" not in told and "\t" not in told and "activate" not in told


def test_a_task_without_unknown_keys_tells_of_none(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    edit(task / "in/env.yaml", run_infer=False)
    edit(task / "in/config.yaml", mining_algorithm="random")
    assert run(task) == 0
    assert "unknown keys" not in caplog.text


def test_an_output_folder_that_cannot_be_written(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (task / "out").write_text("a file stands in the way")
    assert run(task) != 0
    assert "Traceback" not in capfd.readouterr().err


def test_results_of_an_earlier_run_are_gone_when_a_task_fails(task: Path) -> None:
    assert run(task) == 0
    edit(task / "in/config.yaml", conf_thres="abc")
    assert run(task) != 0
    assert sorted(path.name for path in (task / "out").iterdir()) == ["monitor.txt"]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_however_small_the_batch_a_cpus_passes_are_full(batch: int, task: Path) -> None:
    edit(task / "in/config.yaml", batch_size_per_gpu=batch)
    edit(task / "in/env.yaml", run_infer=False)
    set_lines(task / "in", [line for line in lines(task) for _ in range(4)])  # 24
    pictures: list[int] = []  # of each pass through the network

    def count(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, DetectionModel):
            pictures.append(len(arguments[0]))

    handle = register_module_forward_pre_hook(count)
    try:
        assert run(task) == 0
    finally:
        handle.remove()
    assert pictures == [8, 8, 8]


def test_an_old_result_that_cannot_be_removed_is_told(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (task / "out/result.tsv").mkdir(parents=True)
    assert run(task) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error 160004: ") and "out/result.tsv" in last and "defect" not in last
    assert monitor(task)[3:5] == ["4", "160004"]


@pytest.fixture
def living() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives as long as the test; a parent's number is 0 where pytest is a container's first process."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_what_a_kill_left_half_written_is_removed(task: Path, living: subprocess.Popen[bytes]) -> None:
    edit(task / "in/env.yaml", run_infer=False)
    edit(task / "in/config.yaml", mining_algorithm="random")
    (task / "out").mkdir()
    others = task / f"out/.result.tsv.{living.pid}.tmp"
    others.touch()
    ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    (task / f"out/.result.tsv.{ended}.tmp").write_text("half")
    assert run(task) == 0
    assert sorted(path.name for path in (task / "out").iterdir()) == [others.name, "monitor.txt", "result.tsv"]


def test_a_heartbeat_that_cannot_be_written_is_a_line_not_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(start, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(monitor_module, "AFTER_A_FAULT_S", 0.0)
    with start.beating(Monitor(tmp_path / "file/monitor.txt", "t")):
        while caplog.text.count("can't be written") < 2:  # it goes on beating
            time.sleep(0.01)


def test_closed_streams_are_no_trouble(task: Path) -> None:
    edit(task / "in/env.yaml", run_infer=False)
    edit(task / "in/config.yaml", mining_algorithm="random")
    command = f"exec {sys.executable} {ROOT}/start.py --in {task}/in --out {task}/out >&- 2>&-"
    assert subprocess.run(["sh", "-c", command]).returncode == 0
    assert monitor(task)[2:] == ["1.0", "2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_task_is_an_error_of_its_own(number: signal.Signals, task: Path) -> None:
    set_lines(task / "in", lines(task) * 500)
    edit(task / "in/config.yaml", img_size=640)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "start.py"), "--in", str(task / "in"), "--out", str(task / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (task / "out/monitor.txt").exists() or float(monitor(task)[2]) == 0:
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert monitor(task)[3] == "4" and number.name in printed.splitlines()[-1]
    assert not (task / "out/result.tsv").exists()


# --- what is wrong with a picture: skipped, counted and named ---------------------------------------------------------


def missing(in_dir: Path) -> str:
    return "/in/assets/not-there.jpg"


def placed(name: str, content: bytes) -> Callable[[Path], str]:
    def place(in_dir: Path) -> str:
        (in_dir / "assets" / name).write_bytes(content)
        return f"/in/assets/{name}"

    return place


def folder(in_dir: Path) -> str:
    (in_dir / "assets/folder.jpg").mkdir()
    return "/in/assets/folder.jpg"


def pipe(in_dir: Path) -> str:
    os.mkfifo(in_dir / "assets/pipe.jpg")
    return "/in/assets/pipe.jpg"


def cut(in_dir: Path) -> str:
    content = next((in_dir / "assets").rglob("*.jpg")).read_bytes()
    (in_dir / "assets/cut.jpg").write_bytes(content[:300])
    return "/in/assets/cut.jpg"


def bomb(in_dir: Path) -> str:
    header = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + (60000).to_bytes(4, "big") * 2
    (in_dir / "assets/bomb.png").write_bytes(header + b"\x08\x02\x00\x00\x00" + b"\0" * 100)
    return "/in/assets/bomb.png"


def outside(in_dir: Path) -> str:
    picture = next((in_dir / "assets").rglob("*.jpg"))
    shutil.copy(picture, in_dir.parent / "secret.jpg")
    return "/in/assets/../../secret.jpg"


BROKEN: dict[str, Callable[[Path], str]] = {
    "missing": missing,
    "text": placed("text.jpg", b"these are words"),
    "empty": placed("empty.jpg", b""),
    "cut before its first row": cut,
    "a bomb's header": bomb,
    "a folder": folder,
    "a pipe": pipe,
    "leads outside": outside,
}


def test_broken_pictures_come_last_and_lose_nothing(
    task: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    good = lines(task)
    clean = tmp_path_factory.mktemp("clean")
    shutil.copytree(task / "in", clean / "in")
    assert run(clean) == 0
    broken = [make(task / "in") for make in BROKEN.values()]
    set_lines(task / "in", [*broken[:4], *good, *broken[4:]])
    caplog.clear()
    with caplog.at_level("WARNING"):
        assert run(task) == 0
    ranked, expected = ranking(task), ranking(clean)
    assert {line: ranked[line] for line in good} == expected
    lowest = min(expected.values()) - 1
    assert all(ranked[line] == pytest.approx(lowest, rel=1e-8) for line in broken)
    assert set(list(ranked)[-len(broken) :]) == set(broken)
    found = detections(task)
    for line in broken:
        assert found[Path(line).name] == {"boxes": []}
    assert {name: found[name] for name in detections(clean)} == detections(clean)
    said = caplog.text
    assert f"{len(broken)} pictures can't be read" in said and "not-there.jpg" in said
    assert "these are words" not in said


def test_random_sets_broken_pictures_aside_too(task: Path) -> None:
    edit(task / "in/env.yaml", run_infer=False)
    edit(task / "in/config.yaml", mining_algorithm="random")
    broken = [BROKEN["missing"](task / "in"), BROKEN["text"](task / "in"), BROKEN["a pipe"](task / "in")]
    set_lines(task / "in", [*broken, *lines(task)])
    assert run(task) == 0
    assert set(list(ranking(task))[-3:]) == set(broken)


@pytest.mark.parametrize(
    "name", ["with space.jpg", "图片 一.JPG", "-dash.jpg", "qu'o\"te&<b>.jpg", "tab\there.jpg", "a..b.jpg"]
)
def test_odd_names(name: str, task: Path) -> None:
    source = next((task / "in/assets").rglob("*.jpg"))
    shutil.copy(source, task / "in/assets" / name)
    set_lines(task / "in", [f"/in/assets/{name}"])
    assert run(task) == 0
    assert list(ranking(task)) == [f"/in/assets/{name}"]
    assert list(detections(task)) == [name]


def test_duplicates_crlf_and_blank_lines(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = lines(task)
    text = "\r\n".join([given[0], "", given[1], given[0], "", given[2]]) + "\r\n"
    (task / "in/candidate-index.tsv").write_bytes(text.encode())
    with caplog.at_level("WARNING"):
        assert run(task) == 0
    assert sorted(ranking(task)) == sorted(given[:3])
    assert len(detections(task)) == 3
    assert "repeat" in caplog.text


def test_an_empty_list_is_done_with_empty_results(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    (task / "in/candidate-index.tsv").write_text("\n\n")
    with caplog.at_level("WARNING"):
        assert run(task) == 0
    assert (task / "out/result.tsv").read_text() == "" and detections(task) == {}
    assert monitor(task)[2:] == ["1.0", "2"] and "empty" in caplog.text


def test_pictures_of_every_kind_and_shape(task: Path) -> None:
    draw = np.random.default_rng(0)
    made = []
    dtype: Any
    for name, shape, dtype in [
        ("pixel.png", (1, 1, 3), np.uint8),
        ("grey.png", (40, 30), np.uint8),
        ("alpha.png", (40, 30, 4), np.uint8),
        ("deep.png", (40, 30, 3), np.uint16),
        ("long.png", (2, 3000, 3), np.uint8),
        ("tall.jpg", (3000, 2, 3), np.uint8),
        ("x.bmp", (33, 65, 3), np.uint8),
        ("x.webp", (33, 65, 3), np.uint8),
        ("x.tiff", (33, 65, 3), np.uint8),
    ]:
        pixels = draw.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
        assert cv2.imwrite(str(task / "in/assets" / name), pixels)
        made.append(f"/in/assets/{name}")
    set_lines(task / "in", made)
    assert run(task) == 0
    assert len(ranking(task)) == len(made)
    assert min(ranking(task).values()) >= 0, "one of them was not read"


def test_memory_does_not_grow_with_the_list(task: Path) -> None:
    """10,000 and 100 candidates differ by little more than path and score (benchmarks/memory.py goes to 100,000)."""
    cv2.imwrite(str(task / "in/assets/tiny.png"), np.full((8, 8, 3), 90, np.uint8))
    edit(task / "in/env.yaml", run_infer=False)
    edit(task / "in/config.yaml", mining_algorithm="random")
    script = (
        "import resource, sys, start; start.main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (100, 10_000):
        links = task / "in/assets" / f"many{count}"
        links.mkdir()
        for number in range(count):
            (links / f"{number:06d}.png").symlink_to("../tiny.png")
        set_lines(task / "in", [f"/in/assets/many{count}/{number:06d}.png" for number in range(count)])
        done = subprocess.run(
            [sys.executable, "-c", script, "--in", str(task / "in"), "--out", str(task / "out")],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 12_000, f"{peaks} KB"  # 1.2 KB a candidate: decode futures, paths, scores, noise


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    yield
    assert not Path("/tmp/ymir-was-here").exists()


def test_as_an_ordinary_user_with_a_read_only_input(template: Path, tmp_path: Path) -> None:
    """uid 1000, HOME=/, an /in that can't be written, no network: as the platform runs it."""
    shutil.copytree(template, tmp_path / "in")
    (tmp_path / "out").mkdir(mode=0o777)
    in_dir = tmp_path / "in"
    script = (
        f"mount --bind {in_dir} {in_dir} && mount -o remount,ro,bind {in_dir} && ! touch {in_dir}/x 2>/dev/null && "
        f"exec unshare --user --map-user=1000 --map-group=1000 {sys.executable} {ROOT}/start.py "
        f"--in {in_dir} --out {tmp_path}/out"
    )
    command = ["unshare", "--mount", "--net", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*command, "unshare --user true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody leave its network or become another user")
    done = subprocess.run([*command, script], capture_output=True, text=True, env={**os.environ, "HOME": "/"})
    assert done.returncode == 0, done.stderr
    assert len(ranking(tmp_path)) == 6 and len(detections(tmp_path)) == 6
