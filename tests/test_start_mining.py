"""Mining through start.py: shards, ranks, kills, the options of the order and the report, on real pictures."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import infer
import mine
import start
from make_task import TaskOptions, make_task
from mining import MINERS
from mining.data_augment import turns_in_steps
from utils.distributed import launch
from utils.progress import Progress
from utils.settings import MINING_ALGORITHMS
from utils.shards import Shard, alone_in
from ymir.config import read_env, read_task

ROOT = Path(__file__).resolve().parent.parent
SIDE = 96
COUNT = 10


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, coco_images: list[Path], yolov5n_pt: Path) -> Path:
    """One /in tree: ten pictures, one that can't be read, and a line that stands twice."""
    pictures = tmp_path_factory.mktemp("pictures")
    for path in coco_images[:COUNT]:
        shutil.copy(path, pictures / path.name)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    settings = {"img_size": SIDE, "batch_size_per_gpu": 4, "num_workers_per_gpu": 2, "threads_per_rank": 1}
    options = TaskOptions(weights=(yolov5n_pt,), settings=settings, placing="copy")
    in_dir = make_task(pictures, tmp_path_factory.mktemp("task") / "t", "mining+infer", options).in_dir
    index = in_dir / "candidate-index.tsv"
    index.write_text(index.read_text() + index.read_text().splitlines()[2] + "\n")
    return in_dir


@pytest.fixture
def task(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "in", symlinks=True)
    return tmp_path


def edit(task: Path, **values: Any) -> None:
    path = task / "in/config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


def run(task: Path, *more: str) -> int:
    return start.main(["--in", str(task / "in"), "--out", str(task / "out"), *more])


def result(task: Path) -> bytes:
    return (task / "out/result.tsv").read_bytes()


def started(task: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "start.py"), "--in", str(task / "in"), "--out", str(task / "out"), *more]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)


def records(task: Path) -> list[Path]:
    return sorted((task / "out").glob("*.records"))


def test_there_is_a_miner_for_every_name_that_a_task_may_give() -> None:
    assert set(MINERS) == set(MINING_ALGORITHMS)


@pytest.mark.parametrize("algorithm", sorted(MINERS))
def test_every_miner_gives_each_line_once_and_leaves_no_records(task: Path, algorithm: str) -> None:
    edit(task, mining_algorithm=algorithm)
    assert run(task) == 0
    rows = [row.split("\t") for row in result(task).decode().splitlines()]
    lines = (task / "in/candidate-index.tsv").read_text().splitlines()
    assert sorted(line for line, _ in rows) == sorted(set(lines))
    scores = [float(score) for _, score in rows]
    assert scores == sorted(scores, reverse=True) and rows[-1][0].endswith("broken.jpg")
    assert records(task) == []


@pytest.mark.parametrize("count", [2, 3])
def test_shards_and_a_merge_give_the_bytes_of_one_run(task: Path, count: int) -> None:
    edit(task, mining_algorithm="entropy")
    assert run(task) == 0
    mined, found = result(task), (task / "out/infer-result.json").read_bytes()
    for number in range(count):
        assert run(task, "--shard", f"{number}/{count}") == 0
        assert (task / f"out/monitor.{number}-of-{count}.txt").is_file()
    assert not (task / "out/result.tsv").exists() and len(records(task)) == 2 * count
    assert run(task, "--merge", str(count)) == 0
    assert result(task) == mined and (task / "out/infer-result.json").read_bytes() == found
    assert records(task) == []


def test_a_merge_names_the_shard_that_is_missing(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(task, mining_algorithm="random")
    assert run(task, "--shard", "0/2") == 0
    assert run(task, "--merge", "2") == 1
    assert "--shard 1/2" in capfd.readouterr().err.splitlines()[-1]


def test_a_merge_with_other_settings_leaves_the_records(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(task, mining_algorithm="random", seed=0)
    assert [run(task, "--shard", f"{number}/2") for number in range(2)] == [0, 0]
    before = {path: path.read_bytes() for path in records(task)}
    edit(task, mining_algorithm="random", seed=5)
    assert run(task, "--merge", "2") == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error 300002: ") and "mining.0-of-2.records: its records are of other weights" in last
    assert {path: path.read_bytes() for path in records(task)} == before
    edit(task, mining_algorithm="random", seed=0)
    assert run(task, "--merge", "2") == 0 and records(task) == []


def test_a_second_merge_leaves_the_result(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(task, mining_algorithm="random")
    assert [run(task, *part) for part in (["--shard", "0/2"], ["--shard", "1/2"], ["--merge", "2"])] == [0, 0, 0]
    mined = result(task)
    for count in ("2", "3"):
        assert run(task, "--merge", count) == 0
        assert "merged before" in caplog.text and result(task) == mined
    assert (task / "out/infer-result.json").is_file()
    assert run(task, "--shard", "0/2") == 0
    assert run(task, "--merge", "2") == 1 and not (task / "out/result.tsv").exists()


def test_a_merge_that_lacks_a_step_loses_no_other(task: Path) -> None:
    edit(task, mining_algorithm="random")
    assert [run(task, "--shard", f"{number}/2") for number in range(2)] == [0, 0]
    (task / "out/infer.1-of-2.records").unlink()
    assert run(task, "--merge", "2") == 1
    assert (task / "out/result.tsv").is_file() and not (task / "out/infer-result.json").exists()
    before = (task / "out/mining.1-of-2.records").read_bytes()
    assert run(task, "--shard", "1/2") == 0
    assert (task / "out/mining.1-of-2.records").read_bytes() == before
    assert run(task, "--merge", "2") == 0 and records(task) == []
    assert (task / "out/result.tsv").is_file() and (task / "out/infer-result.json").is_file()


def test_a_kill_in_the_inference_costs_no_mining(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(task, mining_algorithm="entropy", batch_size_per_gpu=4)
    count = many_copies(task)
    process = started(task)
    while process.poll() is None and not (task / "out/result.tsv").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (task / "out/infer-result.json").exists()
    with caplog.at_level("INFO"):
        assert run(task) == 0
    assert f"{count} candidates were scored before" in caplog.text and records(task) == []


def test_a_second_start_leaves_the_firsts_monitor_alone(task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (task / "out").mkdir(exist_ok=True)
    with alone_in(task / "out"):
        (task / "out/monitor.txt").write_text("of the first")
        assert run(task) == 1
        assert capfd.readouterr().err.splitlines()[-1].startswith("error 160004: ")
        assert (task / "out/monitor.txt").read_text() == "of the first"
    edit(task, mining_algorithm="random")
    assert run(task) == 0


@pytest.mark.parametrize(
    ("more", "word"), [(["--shard", "2/2"], "--shard"), (["--merge", "0"], "--merge"), (["--shard", "x"], "--shard")]
)
def test_a_wrong_part_is_told(task: Path, capfd: pytest.CaptureFixture[str], more: list[str], word: str) -> None:
    assert run(task, *more) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error 300001") and word in last


def test_ranks_of_this_machine_give_the_bytes_of_one_process(task: Path) -> None:
    edit(task, mining_algorithm="entropy", diversity=1.0, dedup=True)
    assert run(task) == 0
    mined, found = result(task), (task / "out/infer-result.json").read_bytes()
    roots = task / "in", task / "out"
    read = read_task(*roots, read_env(*roots))
    told: list[float] = []
    assert launch(mine.score_as_rank, roots, 2, lambda rank, fraction: told.append(fraction))
    mine.merge(mine.read_mining(read), 2, Progress())
    assert launch(infer.detect_as_rank, roots, 2, lambda rank, fraction: told.append(fraction))
    infer.merge(infer.read_inference(read), 2, Progress())
    assert result(task) == mined and (task / "out/infer-result.json").read_bytes() == found
    assert max(told) == 1.0


def test_torchruns_ranks_share_the_work_and_the_last_one_merges(task: Path) -> None:
    edit(task, mining_algorithm="entropy")
    assert run(task) == 0
    mined = result(task)
    (task / "out/monitor.txt").unlink()
    ranks = [started(task, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in range(2)]
    assert [rank.wait(240) for rank in ranks] == [0, 0], [rank.stdout and rank.stdout.read() for rank in ranks]
    assert result(task) == mined and records(task) == []
    assert (task / "out/infer-result.json").is_file()
    assert (task / "out/monitor.txt").read_text().split("\t")[2] == "1.0"


def test_a_rank_that_ends_first_merges_only_what_all_have_ended(task: Path) -> None:
    """Between its mining and the end of its inference, another rank merges the mining."""
    edit(task, mining_algorithm="random")
    read = read_task(task / "in", task / "out", read_env(task / "in", task / "out"))
    for number in range(2):
        mine.score_shard(mine.read_mining(read), Shard(number, 2), Progress())
    inference = infer.read_inference(read)
    infer.detect_shard(inference, Shard(0, 2), Progress(), inference.config.engine)
    start.merge_what_is_there(read, 2)
    assert (task / "out/result.tsv").is_file() and not (task / "out/infer-result.json").exists()
    infer.detect_shard(inference, Shard(1, 2), Progress(), inference.config.engine)
    start.merge_what_is_there(read, 2)
    assert (task / "out/infer-result.json").is_file() and records(task) == []


def many_copies(task: Path) -> int:
    """Name each of the task's pictures twenty times, so that its work has a middle; gives how many that makes."""
    lines = (task / "in/candidate-index.tsv").read_text().splitlines()[:COUNT]
    copies = []
    for number in range(20):
        for line in lines:
            path = Path(line.replace("/in/", f"{task}/in/", 1))
            copy = path.with_name(f"{path.stem}-{number}{path.suffix}")
            copy.symlink_to(path.name)
            copies.append(line.replace(path.name, copy.name))
    (task / "in/candidate-index.tsv").write_text("\n".join(copies) + "\n")
    return len(copies)


def only(task: Path, **steps: bool) -> None:
    """Ask for some steps alone."""
    env = yaml.safe_load((task / "in/env.yaml").read_text())
    (task / "in/env.yaml").write_text(yaml.safe_dump({**env, **steps}))


def kill_in_the_middle(task: Path, *options: str, size: int = 4000) -> None:
    """Start a task and kill it when its records have some size."""
    process = started(task, *options)
    while process.poll() is None and not (records(task) and records(task)[0].stat().st_size > size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_mining_goes_on_and_scores_nothing_twice(task: Path) -> None:
    edit(task, mining_algorithm="entropy", batch_size_per_gpu=8)
    count = many_copies(task)
    only(task, run_infer=False)
    kill_in_the_middle(task)
    assert records(task) and not (task / "out/result.tsv").exists()
    again = started(task)
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert "were scored before" in output
    resumed = result(task)
    edit(task, resume="never")
    assert run(task) == 0
    assert result(task) == resumed and len(resumed.splitlines()) == count


def test_a_killed_shard_of_an_inference_goes_on(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    many_copies(task)
    only(task, run_mining=False)
    assert run(task) == 0
    whole = (task / "out/infer-result.json").read_bytes()
    (task / "out/infer-result.json").unlink()
    kill_in_the_middle(task, "--shard", "0/2")
    assert records(task) and not (task / "out/infer-result.json").exists()
    left = records(task)[0].stat().st_size
    with caplog.at_level("INFO"):
        assert run(task, "--shard", "0/2") == 0
    assert "were looked at before" in caplog.text
    assert records(task)[0].stat().st_size > left
    assert run(task, "--shard", "1/2") == 0
    assert run(task, "--merge", "2") == 0
    assert (task / "out/infer-result.json").read_bytes() == whole


def test_records_of_other_lines_of_the_index_are_not_used(task: Path) -> None:
    only(task, run_mining=False)
    assert run(task, "--shard", "0/1") == 0
    index = task / "in/candidate-index.tsv"
    lines = index.read_text().splitlines()
    index.write_text("\n".join(reversed(lines)) + "\n")
    assert run(task, "--shard", "0/1") == 0
    assert run(task, "--merge", "1") == 0
    turned = (task / "out/infer-result.json").read_bytes()
    edit(task, resume="never")
    assert run(task) == 0
    assert (task / "out/infer-result.json").read_bytes() == turned


def test_records_of_other_settings_are_not_used(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(task, mining_algorithm="entropy")
    assert run(task, "--shard", "0/1") == 0
    edit(task, entropy_of="class")
    assert run(task, "--shard", "0/1") == 0
    assert "begun anew" in caplog.text


def test_cald_tells_of_pictures_without_a_box(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    edit(task, mining_algorithm="cald", conf_thres=0.9)
    assert run(task) == 0
    assert "nothing was found in" in caplog.text and "cald_empty: last" in caplog.text
    edit(task, cald_empty="last")
    assert run(task) == 0
    assert all(float(row.split("\t")[1]) < 0 for row in result(task).decode().splitlines())


def test_cald_says_where_the_originals_figures_cannot_be_had(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(task, mining_algorithm="cald")
    assert run(task) == 0 and "OpenCV 4" not in caplog.text
    edit(task, cald_mode="ymir")
    assert run(task) == 0
    assert ("OpenCV 4" in caplog.text) == turns_in_steps()


def test_the_report_says_why(task: Path) -> None:
    edit(task, mining_algorithm="entropy", mining_report=True, dedup=True)
    assert run(task) == 0
    page = (task / "out/mining_report.html").read_text()
    assert "<script" not in page and "Content-Security-Policy" in page and "broken.jpg" in page
    rows = (task / "out/mining_report.csv").read_text().splitlines()
    assert len(rows) == 1 + COUNT + 1
