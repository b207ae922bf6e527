"""The recipes of the images, without an engine: what they copy, what they leave out, what they say of themselves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.images.recipes import LOCKS, RECIPES, context, instructions
from tests.test_house import MODULES, ours

BASES = {
    "cpu": "python:3.11-slim-bookworm",
    "cuda": "python:3.11-slim-bookworm",
    "cuda111": "python:3.9-slim-bullseye",
    "cuda102": "python:3.9-slim-bullseye",
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)


def test_there_is_a_recipe_for_each_row() -> None:
    assert {recipe.stem for recipe in RECIPES} == set(BASES)


@every_recipe
def test_both_stages_stand_on_the_rows_base(recipe: Path) -> None:
    bases = [rest.split()[0] for name, rest in instructions(recipe) if name == "FROM"]
    assert bases == [BASES[recipe.stem]] * 2


@every_recipe
def test_what_is_copied_is_in_the_context(recipe: Path) -> None:
    names = context(ROOT)
    sources = [rest.split()[:-1] for name, rest in instructions(recipe) if name == "COPY" and "--from" not in rest]
    assert sources
    for source in (one for several in sources for one in several):
        assert source == "." or source in names, source


@every_recipe
def test_it_starts_the_executor_and_wraps_no_other_command(recipe: Path) -> None:
    found = instructions(recipe)
    assert [json.loads(rest) for name, rest in found if name == "CMD"] == [["python3", "/app/start.py"]]
    assert "ENTRYPOINT" not in [name for name, _ in found]  # `docker run IMAGE cat ...` is the platform's


@every_recipe
def test_packages_come_by_hash_and_leave_no_cache(recipe: Path) -> None:
    installs = [part for name, rest in instructions(recipe) if name == "RUN" for part in re.split("&&|;", rest)]
    installs = [part for part in installs if "pip install" in part]
    unhashed = [part for part in installs if "--require-hashes" not in part]
    assert installs
    assert all("--no-cache-dir" in part and "--no-deps" in part for part in installs)
    # the CPU build of torch, from an index that is given by hand
    assert len(unhashed) == (1 if recipe.stem == "cpu" else 0)
    assert all("$PIP_ARGS" in part for part in unhashed)


@every_recipe
def test_the_label_is_the_projects_version(recipe: Path) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert ("ARG", f"VERSION={version[1]}") in instructions(recipe)


@every_recipe
def test_nothing_is_fetched_that_no_package_index_has(recipe: Path) -> None:
    text = " ".join(rest for name, rest in instructions(recipe) if name in ("RUN", "ADD"))
    assert not re.search(r"\b(curl|wget|git|https?:)", text)


def test_the_context_holds_every_source_file_and_nothing_else(tmp_path: Path) -> None:
    for name in ("start.py", "LICENSE", "ymir/img-man/manifest.yaml", "ymir/docker/locks/py311.txt"):
        assert name in context(ROOT)
    assert {name.partition("/")[0] for name in context(ROOT)} <= {
        "LICENSE", "start.py", "check.py", "infer.py", "mine.py", "train.py", "val.py", "detect.py", "export.py",
        "make_task.py",
        "data", "docs", "formats", "mining", "models", "training", "utils", "ymir", "weights",
    }  # fmt: skip
    # what lies about in a checkout stays there
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    strays = (
        "weights/README.md", "weights/secret.txt", "tests/test_start.py", "out/models/best.pt", "runs/train/last.pt",
        "demo-out/index.html", ".env", "utils/.env", "id_rsa", "models/__pycache__/yolo.cpython-311.pyc",
        "utils/boxes.pyc", "data/pictures/a.jpg", "coco128/images/a.jpg", "ymir/docker/cpu.dockerfile",
        "benchmarks/a.py", "best.pt", "demo.py", "docs/images.md",
    )  # fmt: skip
    for name in (*strays, "weights/yolov5s.pt", "utils/boxes.py", "models/yolov5s.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert context(tmp_path) == ["models/yolov5s.yaml", "utils/boxes.py", "weights/yolov5s.pt"]


def test_whatever_start_imports_is_in_the_context() -> None:
    names = context(ROOT)
    rooms = ("utils", "models", "formats", "mining", "ymir", "training")
    for path in sorted(path for room in rooms for path in (ROOT / room).glob("*.py")):
        assert str(path.relative_to(ROOT)) in names
    for name in names:
        if name.endswith(".py"):
            needed = {str(MODULES[module].relative_to(ROOT)) for module, _ in ours(ROOT / name)}
            assert needed <= set(names), name
    for pattern in ("models/*.yaml", "data/hyps/*.yaml", "ymir/img-man/*.yaml"):
        assert {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)} <= set(names)


def locked(name: str) -> dict[str, str]:
    """Give a lock's packages and versions; each line is one package with one hash."""
    lines = (LOCKS / name).read_text().splitlines()
    found = [re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines[1:]]
    assert all(found), name
    return {one[1]: one[2] for one in found if one}


def pins(name: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower(): line.partition("==")[2] for line in lines if line}


@pytest.mark.parametrize(
    ("row", "files"),
    [
        ("py311", ["requirements.txt"]),
        ("cuda102", ["requirements-py39.txt"]),
        ("cuda111", ["requirements-py39.txt", "ymir/docker/requirements-cuda111.txt"]),
    ],
)
def test_locks_hold_what_the_requirements_pin(row: str, files: list[str]) -> None:
    torch, others = locked(f"torch-{row}.txt"), locked(f"{row}.txt")
    assert not set(torch) & set(others)
    assert {"torch", "torchvision"} <= set(torch)
    assert not {name for name in others if name.startswith(("torch", "nvidia"))}
    wanted: dict[str, str] = {}
    for file in files:
        wanted.update(pins(file))
    assert len(wanted) > 15
    assert {name: {**torch, **others}.get(name) for name in wanted} == wanted
