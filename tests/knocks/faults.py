"""Run a task once for each call that changes a file in /out, with that call failing, and look at what is left.

    python -m tests.knocks.faults FOLDER KIND HOW [FIRST [STEP [LAST]]]

FOLDER: a task of tests.knocks.tasks. A line of JSON for each run. Everything is imported once; each run is a fork.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

import start
from tests.knocks.syscalls import Fault, Seen, run
from tests.knocks.tasks import Task, faults_of, missing_of, result_of

DEFECT = "is a defect of the executor"


@dataclass(frozen=True)
class Outcome:
    """One run with a fault. wrong: what must not be, in words. told: the last line that it printed."""

    number: int
    hit: str  # the call that failed; "": there were fewer
    code: int
    told: str
    wrong: list[str]


def preload(kind: str) -> None:
    """Import once what each run would import."""
    import training.ranks
    import training.task  # noqa: F401
    import utils.train_plots  # noqa: F401


def run_task(task: Task, fault: Fault, log: Path) -> Seen:
    """Run start.py's main in a fork; its stdout and stderr go to a file."""

    def work() -> int:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        return start.main(task.arguments)

    return run(work, fault)


def one(task: Task, kind: str, fault: Fault, expected: Any) -> Outcome:
    """Run a task anew with a fault, look, and run it again without."""
    shutil.rmtree(task.out, ignore_errors=True)
    task.out.mkdir()
    log = task.folder / "log.txt"
    seen = run_task(task, fault, log)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    told = lines[-1] if lines else ""
    wrong = faults_of(task, kind) + after_fault(task, kind, fault, seen, lines)
    again = run_task(task, Fault(task.out, "count"), log)
    if again.status:
        wrong.append(f"the next run ends with {again.status}: {log.read_text(errors='replace').splitlines()[-1:]}")
    else:
        wrong += [f"next run: {text}" for text in faults_of(task, kind) + missing_of(task, kind)]
        if result_of(task, kind) != expected:
            wrong.append("the next run's results are others")
    return Outcome(fault.number, seen.hit, seen.status, told, wrong)


def after_fault(task: Task, kind: str, fault: Fault, seen: Seen, lines: list[str]) -> list[str]:
    """Say where exit code, monitor and last line don't agree."""
    if fault.how == "kill" and seen.hit:
        return [] if seen.status == -9 else [f"ended with {seen.status}, not by a signal"]
    if seen.status == 0:
        return (
            missing_of(task, kind)
            if not seen.hit
            else [text for text in missing_of(task, kind) if "was left" not in text]
        )
    wrong = []
    if seen.status != 1 or not lines or not lines[-1].startswith("error "):
        wrong.append(f"ended with {seen.status} and {lines[-3:]}")
    if any("Traceback" in line or DEFECT in line for line in lines):
        wrong.append(f"a defect: {[line for line in lines if DEFECT in line or 'Error' in line][-3:]}")
    has_monitor = (task.out / "monitor.txt").exists()
    if fault.how != "full" and (not has_monitor or task.monitor()[3] != "4"):
        wrong.append(f"exit code {seen.status}, monitor {task.monitor() if has_monitor else 'not there'}")
    if fault.how == "full" and has_monitor and task.monitor()[2] == "1.0":
        wrong.append("failed, and the monitor tells of a good end")
    return wrong


def main() -> int:
    """Go through the calls; 1 where something is wrong."""
    folder, kind, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    first, step, last = ([int(text) for text in sys.argv[4:]] + [1, 1, 1 << 30][len(sys.argv) - 4 :])[:3]
    task = Task(folder)
    preload(kind)
    shutil.rmtree(task.out, ignore_errors=True)
    task.out.mkdir()
    clean = run_task(task, Fault(task.out, "count"), folder / "log.txt")
    if clean.status:
        sys.stderr.write((folder / "log.txt").read_text())
        return 1
    expected = result_of(task, kind)
    print(json.dumps({"calls": clean.calls}), flush=True)
    number, is_wrong = first, False
    while number <= last:
        outcome = one(task, kind, Fault(task.out, how, number), expected)
        print(json.dumps(asdict(outcome)), flush=True)
        is_wrong = is_wrong or bool(outcome.wrong)
        if not outcome.hit:
            break
        number += step
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main())
