"""The law of the house, read off every source file: who imports whom, and what no file does (docs/design/house.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("utils", "models", "formats", "mining", "ymir", "training")
# Who may import whom: a file from its own room, and from what is named here. Doors are the files at the root.
BELOW = {
    "utils": set(),
    "models": {"utils"},
    "formats": {"models", "utils"},
    "mining": {"formats", "models", "utils"},
    "ymir": {"formats", "models", "utils"},
    "training": {"formats", "models", "utils", "val", "ymir"},
}
TASKS = {"val": set(), "detect": set(), "export": {"val"}, "train": {"val"}}  # doors that other doors may import
SOURCES = sorted(path for room in (".", *ROOMS) for path in (ROOT / room).glob("*.py"))


def module_of(path: Path) -> str:
    """utils/labels.py -> utils.labels; mining/__init__.py -> mining."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in SOURCES}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Give every module that a file imports, inside functions too, and the line; ours by the file that is meant."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports by whole names only"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in MODULES else str(node.module)), node.lineno


def ours(path: Path) -> Iterator[tuple[str, int]]:
    return ((name, line) for name, line in imported(path) if name in MODULES)


def may_import(importer: str, name: str) -> bool:
    room, target = importer.partition(".")[0], name.partition(".")[0]
    if room in BELOW:
        return target == room or target in BELOW[room]
    if room in TASKS:  # a task is in one file
        return target in ROOMS or target in TASKS[room]
    return True  # start, make_task, demo: whatever there is


def breaches(rule: Callable[[ast.AST], Optional[str]], leave_out: tuple[str, ...] = ()) -> list[str]:
    found = []
    for path in SOURCES:
        if module_of(path) in leave_out:
            continue
        for node in ast.walk(parse(path)):
            says = rule(node)
            if says:
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {says}")
    return found


def test_there_is_something_to_check() -> None:
    assert {"make_task", "utils.labels", "models.checkpoint"} <= set(MODULES)


def test_imports_point_down() -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        for name, line in ours(path)
        if not may_import(module_of(path), name)
    ]
    assert upward == []


@pytest.mark.parametrize(
    ("importer", "name", "expected"),
    [
        ("utils.labels", "models.yolo", False),
        ("models.yolo", "utils.boxes", True),
        ("models.yolo", "ymir.config", False),
        ("mining.runner", "ymir.config", False),
        ("ymir.config", "mining", False),
        ("mining.runner", "start", False),
        ("val", "detect", False),
        ("train", "val", True),
        ("val", "train", False),
        ("start", "train", True),
    ],
)
def test_the_law_itself(importer: str, name: str, expected: bool) -> None:
    assert may_import(importer, name) is expected


def test_imports_have_no_cycle() -> None:
    graph = {module: {name for name, _ in ours(path) if name != module} for module, path in MODULES.items()}
    while True:
        leaves = {module for module, names in graph.items() if not names}
        if not leaves:
            break
        graph = {module: names - leaves for module, names in graph.items() if module not in leaves}
    assert graph == {}, "these import each other, or what does"


def test_nothing_but_unpickle_knows_pickles() -> None:
    pickles = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    users = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        if module_of(path) != "models.unpickle"
        for name, line in imported(path)
        if name.partition(".")[0] in pickles
    ]
    assert users == []


def dotted(node: ast.AST) -> str:
    """os.path.join for that expression, '' for what is no plain name."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.hub.load"}
FORBIDDEN |= {"pandas.read_pickle", "pd.read_pickle", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"}
FORBIDDEN |= {"subprocess.getoutput", "subprocess.getstatusoutput"}


def runs_strings(node: ast.AST) -> Optional[str]:
    """Say what a line does that could run what stands in a file or a setting."""
    if isinstance(node, ast.Attribute) and dotted(node) in FORBIDDEN:  # also when only handed on
        return dotted(node)
    if isinstance(node, ast.Call) and dotted(node.func) in FORBIDDEN:
        return dotted(node.func)
    if isinstance(node, ast.ImportFrom):
        taken = {f"{node.module}.{alias.name}" for alias in node.names} & FORBIDDEN
        return f"imports {taken}" if taken else None
    if isinstance(node, ast.keyword):
        value = node.value.value if isinstance(node.value, ast.Constant) else None
        if node.arg == "shell" and value is not False:
            return "shell="
        if node.arg == "allow_pickle" and value is not False:
            return "allow_pickle="
    return None


def test_no_file_runs_strings() -> None:
    assert breaches(runs_strings) == []


@pytest.mark.parametrize(
    "line",
    ["eval('1')", "x = torch.load", "from torch import load", "import os; os.system('x')", "run('x', shell=True)"],
)
def test_a_line_that_runs_strings_is_seen(line: str) -> None:
    assert any(runs_strings(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize("line", ["model.eval()", "re.compile('x')", "run(['x'], shell=False)", "json.load(file)"])
def test_a_harmless_line_is_not(line: str) -> None:
    assert not any(runs_strings(node) for node in ast.walk(ast.parse(line)))


def test_everything_is_caught_only_in_start() -> None:
    def catches_all(node: ast.AST) -> Optional[str]:
        if isinstance(node, ast.ExceptHandler) and (node.type is None or dotted(node.type) == "Exception"):
            return "except Exception"
        return None

    assert breaches(catches_all, leave_out=("start",)) == []


@pytest.mark.parametrize("module", ["models.checkpoint", "ymir.config", "utils.labels", "utils.pictures", "make_task"])
def test_what_runs_before_torch_does_not_bring_it(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'torchvision'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", ["scratch-low", "scratch-med", "scratch-high", "Objects365", "VOC", "no-augmentation"])
def test_hyperparameters_are_the_golden_ones(name: str, golden: Callable[[str], Any]) -> None:
    content = yaml.safe_load((ROOT / f"data/hyps/hyp.{name}.yaml").read_text())
    assert content == golden("hyperparameters.json")[name]


def test_there_are_no_other_hyperparameter_files(golden: Callable[[str], Any]) -> None:
    files = {path.name for path in (ROOT / "data/hyps").iterdir()}
    assert files == {f"hyp.{name}.yaml" for name in golden("hyperparameters.json")}
