"""Tasks where the place is hostile: a full /out, a tiny /dev/shm, no network, a read-only root, a neighbour.

Mounts are made in a namespace of the test's own (unshare), which needs root; elsewhere such a test is skipped.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import mine
from tests.knocks.few import RESULTS, assert_whole, copied, monitor_of
from tests.training.started import ROOT
from utils.distributed import launch
from utils.errors import DeviceError
from utils.progress import Progress
from ymir.config import read_env, read_task

TRAIN = pytest.param("train", marks=pytest.mark.slow)


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    code: int
    output: str

    @property
    def last(self) -> str:
        """The last line."""
        return self.output.rstrip().rpartition("\n")[2]


def start_command(in_dir: Path, out_dir: Path) -> str:
    return f"{sys.executable} {ROOT}/start.py --in {in_dir} --out {out_dir}"


def in_own_mounts(script: str) -> Ended:
    """Run a shell script that may mount what it likes and has no network."""
    command = ["unshare", "--mount", "--net", "sh", "-euc"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*command, "mount -t tmpfs none /mnt"], capture_output=True).returncode
    ):
        pytest.skip("this machine lets nobody mount (root, or CAP_SYS_ADMIN)")
    done = subprocess.run(
        [*command, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Ended(done.returncode, done.stdout)


# --- no room ----------------------------------------------------------------------------------------------------------


# A page of 4 KB is what a file takes at least. train: 3 MB end in the first weights.
@pytest.mark.parametrize(
    ("task", "size"), [("infer", "4k"), ("mining", "8k"), pytest.param("train", "3m", marks=pytest.mark.slow)]
)
def test_a_full_out_is_told_and_what_is_there_is_whole(
    task: str, size: str, templates: dict[str, Path], tmp_path: Path
) -> None:
    """Then it is given room, and the next start ends well."""
    here = copied(templates[task], tmp_path / "task")
    kept = copied(templates[task], tmp_path / "kept")
    out = here / "out"
    done = in_own_mounts(
        f"mount -t tmpfs -o size={size} none {out}\n"
        f"code=0; {start_command(here / 'in', out)} || code=$?\n"
        f"cp -a {out}/. {kept}/out; echo 'ended with' $code\n"
        f"mount -o remount,size=64m {out}\n"
        f"{start_command(here / 'in', out)} > {tmp_path}/again.txt 2>&1"
    )
    *lines, ended = done.output.rstrip().splitlines()
    assert done.code == 0 and ended == "ended with 1", done.output
    assert lines[-1].startswith("error 160004: ") and "No space left on device" in lines[-1], done.output
    assert str(out) in lines[-1] and "defect" not in done.output
    assert RESULTS[task] not in assert_whole(kept)


# --- little else ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["infer", "mining", TRAIN])
def test_with_hardly_anything(task: str, templates: dict[str, Path], tmp_path: Path) -> None:
    """/dev/shm of 1 MB, / read-only with a tmpfs /tmp, no network at all."""
    here = copied(templates[task], tmp_path / "task")
    done = in_own_mounts(
        "mount -t tmpfs none /mnt; mkdir /mnt/in /mnt/out /mnt/root\n"
        f"mount --bind {(here / 'in').resolve()} /mnt/in; mount --bind {here}/out /mnt/out\n"
        # the checkout may lie below /tmp
        f"mount --bind {ROOT} /mnt/root; mount -t tmpfs none /tmp; mkdir -p {ROOT}; mount --bind /mnt/root {ROOT}\n"
        f"mount -t tmpfs -o size=1m none /dev/shm; mount -o remount,bind,ro {ROOT}; mount -o remount,bind,ro /\n"
        f'! touch {ROOT}/x 2>/dev/null; test -z "$(cat /proc/net/route | tail -n +2)"\n'
        f"HOME=/ {start_command(Path('/mnt/in'), Path('/mnt/out'))}"
    )
    assert done.code == 0, done.output
    assert RESULTS[task] in assert_whole(here) and monitor_of(here)[2:] == ["1.0", "2"]


# --- neighbours -------------------------------------------------------------------------------------------------------


def both_at_once(here: Path) -> list[Ended]:
    """Run one task twice at the same time."""
    running = [
        subprocess.Popen(
            start_command(here / "in", here / "out").split(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=300)[0] for process in running]
    return [Ended(process.returncode, text) for process, text in zip(running, texts)]


@pytest.mark.parametrize("task", ["infer", "mining", TRAIN])
def test_one_task_twice_at_once_in_one_out(task: str, templates: dict[str, Path], tmp_path: Path) -> None:
    """Each ends well or says in a line why not; all that is left is whole, and one more start is well."""
    here = copied(templates[task], tmp_path / "task")
    for ended in both_at_once(here):
        assert ended.code in (0, 1) and "Traceback" not in ended.output and "defect" not in ended.output, ended.output
        assert ended.code == 0 or ended.last.startswith("error "), ended.output
    assert_whole(here)
    again = subprocess.run(start_command(here / "in", here / "out").split(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    names = assert_whole(here)
    assert RESULTS[task] in names and not [name for name in names if name.endswith((".tmp", ".records"))]


def test_a_killed_rank_ends_a_mining_with_a_word_and_loses_nothing(templates: dict[str, Path], tmp_path: Path) -> None:
    here = copied(templates["mining"], tmp_path / "task")
    roots = here / "in", here / "out"
    killed: list[int] = []

    def kill_one(rank: int, fraction: float) -> None:
        for child in multiprocessing.active_children():
            if child.name == "rank 1" and not killed and child.pid:
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(DeviceError, match="rank 1 was ended by SIGKILL"):
        launch(mine.score_as_rank, roots, 2, kill_one)
    assert killed and "result.tsv" not in assert_whole(here)
    assert launch(mine.score_as_rank, roots, 2, lambda rank, fraction: None)
    mine.merge(mine.read_mining(read_task(*roots, read_env(*roots))), 2, Progress())
    assert "result.tsv" in assert_whole(here)
