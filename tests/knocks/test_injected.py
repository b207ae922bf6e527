"""Each write, fsync, rename … of a task fails, or ends the process, in turn; what is left is whole.

The fast tests take a sample of the places, the slow ones all. Of what comes more than eight times on one file (the
writes of a .pt, monitor.txt in a training) the first, the middle one and the last are taken.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.knocks.few import CODES, RESULTS, assert_whole, copied, monitor_of
from tests.knocks.forks import ROOT, Forks, Ran
from tests.knocks.injector import KILLED, Fault, Place, read_report

TASKS = ("infer", "mining", "train")
MONITOR = (".monitor.txt.tmp", "")  # written when the clock says so: how often differs from run to run


def places_of(operations: Sequence[Place]) -> list[Place]:
    """Give where faults are tried: all places, but of repeats of one kind on one file three at most."""
    repeats = Counter((place.kind, place.name) for place in operations)
    few = 8  # what a training does that often is a matter of its own each time

    def is_taken(place: Place) -> bool:
        count = repeats[place.kind, place.name]
        return count <= few or place.number in (1, count // 2, count)

    return [place for place in operations if is_taken(place)]


def try_fault(forks: Forks, task: str, folder: Path, fault: Fault, then_again: bool) -> tuple[Ran, bool]:
    """Run a task with a fault, and look at what it left; gives how it ended, and whether the place was reached."""
    assert fault.place is not None
    ran = forks.run(folder, fault)
    told = f"{task} {fault}: exit {ran.code}\n{ran.output[-1500:]}"
    reached = fault.place in ran.operations
    assert reached or fault.place.name in MONITOR, told
    names = assert_whole(folder)
    assert "defect" not in ran.output and "Traceback" not in ran.output, told
    if reached and fault.mode == "kill":
        assert ran.code == KILLED, told
    elif ran.code == 0:  # it could do without: the result is all there
        assert RESULTS[task] in names and monitor_of(folder)[2:] == ["1.0", "2"], told
    else:
        assert ran.code == 1 and ran.last.split(":")[0].removeprefix("error ") in CODES, told
        assert str(folder / "out") in ran.last, told  # it says where
        if fault.mode == "error":
            assert monitor_of(folder)[3] == "4", told
    if then_again:
        again = forks.run(folder)
        assert again.code == 0, f"{told}\nthen: {again.output[-1500:]}"
        names = assert_whole(folder)
        assert RESULTS[task] in names and monitor_of(folder)[2:] == ["1.0", "2"], told
        scraps = [name for name in names if name.endswith((".tmp", ".records"))]
        assert not scraps, f"{told}\nthen: {scraps}"
    return ran, reached


def try_faults(
    forks: Forks,
    templates: dict[str, Path],
    folder: Path,
    task: str,
    mode: str,
    step: int,
    again_every: int,
    first: int = 0,
) -> None:
    """Try every step-th place; after every again_every-th run the task again. Prints what was tried."""
    whole = copied(templates[task], folder / "whole")
    undisturbed = forks.run(whole)
    assert undisturbed.code == 0, undisturbed.output
    assert RESULTS[task] in assert_whole(whole)
    places = places_of(undisturbed.operations)
    if mode == "kill":
        places = [place for place in places if place.kind != "truncate"]
    kinds, ends, failures = Counter[str](), Counter[str](), []
    for number, place in enumerate(places[first::step]):
        run = copied(templates[task], folder / "run")
        then_again = number % again_every == 0
        try:
            ran, reached = try_fault(forks, task, run, Fault(mode, place), then_again)
        except AssertionError as error:
            failures.append(str(error))
            ran, reached = None, True
        if reached:
            kinds[place.kind] += 1
            ends["wrong" if ran is None else "killed" if ran.code == KILLED else "failed" if ran.code else "done"] += 1
        if ran and then_again and task != "train" and not failures:
            name = RESULTS[task]
            result, expected = ((each / "out" / name).read_bytes() for each in (run, whole))
            assert result.replace(bytes(run), bytes(whole)) == expected
        shutil.rmtree(run)
    with (folder / "counts.txt").open("a") as file:
        print(task, mode, sum(kinds.values()), dict(kinds), dict(ends), "of", len(undisturbed.operations), file=file)
    print((folder / "counts.txt").read_text())
    assert not failures, f"{len(failures)} of {sum(kinds.values())}:\n" + "\n\n".join(failures)


@pytest.mark.parametrize("mode", ["error", "full", "kill"])
@pytest.mark.parametrize("task", ["infer", "mining"])
def test_a_sample_of_faults(forks: Forks, templates: dict[str, Path], tmp_path: Path, task: str, mode: str) -> None:
    try_faults(forks, templates, tmp_path, task, mode, step=7, again_every=2, first=4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["error", "full", "kill"])
@pytest.mark.parametrize("task", TASKS)
def test_every_fault(forks: Forks, templates: dict[str, Path], tmp_path: Path, task: str, mode: str) -> None:
    again_every, step = (8, 1 + (mode == "full")) if task == "train" else (1, 1)
    try_faults(forks, templates, tmp_path, task, mode, step, again_every)


CALLS = "write,pwrite64,writev,pwritev,sendfile,copy_file_range,fsync,fdatasync,rename,renameat,renameat2,ftruncate"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_no_write_escapes_the_injector(task: str, templates: dict[str, Path], tmp_path: Path) -> None:
    """The system's own calls on files below /out, counted by strace, are those that the injector counted."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    here = copied(templates[task], tmp_path / "task")
    script = f"from tests.knocks.forks import run_alone; run_alone({str(here)!r})"
    log = tmp_path / "calls.txt"
    command = ["strace", "-f", "-qq", "-y", "--seccomp-bpf", "-s", "0", "-e", f"trace={CALLS}", "-o", str(log)]
    done = subprocess.run([*command, sys.executable, "-c", script], cwd=ROOT, timeout=600)
    assert done.returncode == 0
    known = Counter[str]()
    for line in log.read_text(errors="replace").splitlines():
        call = re.match(r"\d+ +(\w+)\((.*)", line)
        if call and f"{here}/out/" in call[2]:
            known[{"renameat": "rename", "renameat2": "rename", "ftruncate": "truncate"}.get(call[1], call[1])] += 1
    counted = Counter(place.kind for place in read_report((here / "report.txt").read_text()))
    assert known == {kind: counted[kind] for kind in ("write", "fsync", "rename", "truncate") if counted[kind]}
