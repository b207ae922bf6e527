"""What a person reads is so: links lead somewhere, tables are the code's, commands run as they are written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import yaml

from make_task import make_task
from models.checkpoint_writer import SavedTraining, write_checkpoint, yaml_of
from models.yolo import make_model, read_spec
from tests.conftest import ROOT
from tests.ymir.test_templates import read as read_template
from utils import errors
from utils.shapes import NAMES, write_shapes
from ymir.params import OTHER_SPELLINGS, TaskParams

READMES = ("README.md", "README.zh-CN.md")
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("ymir/**/*.md")})
DOORS = ("start", "make_task", "train", "val", "detect", "export", "demo")
FOREIGN_OPTIONS = {  # docker's, torchrun's and fetch_weights.sh's
    "--rm", "--network", "--user", "--gpus", "--shm-size", "--memory", "--cpus", "--nproc_per_node",
    "--sha256",
}  # fmt: skip
NO_VALUE = "\N{EN DASH}"
PLATFORM = {"object_type", "class_names", "gpu_id", "gpu_count", "task_id", "pretrained_model_params"} | {
    "model_params_path"
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


# ---- links -----------------------------------------------------------------------------------------------------------


def links(text: str) -> list[str]:
    """Give where a page's links and pictures lead; what stands in code is none."""
    plain = re.sub(r"`[^`\n]*`", "", without_blocks(text))
    return re.findall(r"\]\(([^)\s]+)\)", plain)


def anchors(text: str) -> set[str]:
    """Give the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in links(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            wrong.append(f"{link}: no such heading")
    assert wrong == []


def test_links_and_headings_are_seen() -> None:
    page = "# A page (`x.y`)\n\n[a](b.md#c) ![d](e.png) `[no](link)`\n\n```sh\n# no heading\n[no](link)\n```\n"
    assert links(page) == ["b.md#c", "e.png"]
    assert anchors(page) == {"a-page-xy"}


# ---- tables ----------------------------------------------------------------------------------------------------------


def tables(text: str) -> list[list[list[str]]]:
    """Give each table's rows of cells, the heading first and without the ruler."""
    found = []
    for lines in re.findall(r"(?:^\|.*\n)+", without_blocks(text), re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines.splitlines()]
        found.append([rows[0], *rows[2:]])
    return found


def parameter_tables(name: str) -> list[dict[str, str]]:
    """Give key -> default, as they stand there, for each table of parameters."""
    found = []
    for heading, *rows in tables(text_of(name)):
        if heading[0] in ("key", "参数"):
            for row in rows:
                assert re.fullmatch(r"`\w+`", row[0]) and len(row) == 3, row
            found.append({row[0].strip("`"): row[1] for row in rows})
            assert len(found[-1]) == len(rows)
    return found


def keys_of_tables() -> list[set[str]]:
    """The keys of the five tables: the platform's, all tasks', training's, inference and mining's, mining's."""
    training, infer, mining = (set(read_template(name)) for name in ("training", "infer", "mining"))
    common = training & infer & mining
    return [PLATFORM, common, training - common, infer - common, mining - infer - training]


@pytest.mark.parametrize("name", READMES)
def test_tables_name_exactly_the_keys_of_each_task(name: str) -> None:
    assert [set(table) for table in parameter_tables(name)] == keys_of_tables()
    assert set().union(*keys_of_tables()) == set(TaskParams.model_fields)


@pytest.mark.parametrize("name", READMES)
def test_tables_give_the_defaults_of_the_code(name: str) -> None:
    for table in parameter_tables(name):
        for key, shown in table.items():
            default = TaskParams.model_fields[key].default
            if key == "letterbox":
                of_form = [read_template(task)["letterbox"] for task in ("infer", "mining")]
                assert shown == "{}; mining: {}".format(*of_form)
            elif default == ():
                assert shown == NO_VALUE, key
            else:
                value = yaml.safe_load(shown)
                expected = "" if default is None else default
                assert (value, type(value)) == (expected, type(expected)), key


@pytest.mark.parametrize("name", READMES)
def test_every_parameter_of_the_seed_is_answered(name: str, shared: Path) -> None:
    text = (shared / "seed-det-yolov5-tmi-readme.txt").read_text(encoding="utf-8")
    rows = [row for table in tables(text) if table[0][0] == "超参数" for row in table[2:]]
    keys = {row[0] for row in rows} | set(re.findall(r"^  - `(\w+)`", text, re.MULTILINE)) | {"model_param_path"}
    assert len(keys) > 20
    assert [key for key in sorted(keys) if f"`{key}`" not in text_of(name)] == []
    assert set(OTHER_SPELLINGS) <= keys


@pytest.mark.parametrize("name", READMES)
def test_published_figures_are_the_seeds_and_parameters_goldens(
    name: str, shared: Path, golden: Callable[[str], Any]
) -> None:
    def plain(rows: list[list[str]]) -> dict[str, list[str]]:
        cleaned = [[re.sub(r"[*\[\]]", "", cell) for cell in row] for row in rows]
        return {row[0].lower(): row[1:9] for row in cleaned if row[0].lower().startswith("yolov5")}

    text = (shared / "seed-det-yolov5-tmi-readme.txt").read_text(encoding="utf-8")
    (published,) = (plain(table) for table in tables(text) if "Model" in table[0][0])
    (ours,) = (table for table in tables(text_of(name)) if table[0][0] == "Model")
    assert len(published) == 9
    assert plain(ours) == published
    parameters = golden("parameters.json")
    assert {row[0]: int(row[9]) for row in ours[1:]} == {model: parameters[model] for model in published}


@pytest.mark.parametrize("name", READMES)
def test_codes_are_those_of_the_errors(name: str) -> None:
    (table,) = (table for table in tables(text_of(name)) if table[0][0] in ("code", "错误码"))
    shown = {int(cell) for row in table[1:] for cell in row if cell.isdigit()}
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ExecutorError)
    ]
    assert shown == {int(kind.code) for kind in kinds}


# ---- commands --------------------------------------------------------------------------------------------------------


def commands(name: str) -> list[str]:
    """Give the lines of a README's sh blocks, without their comments."""
    lines = [line for block in blocks(text_of(name)) for line in block.splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line]


@cache
def help_of(door: str) -> str:
    done = subprocess.run([sys.executable, f"{door}.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def known_options(doors: tuple[str, ...]) -> set[str]:
    return {option for door in doors for option in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", help_of(door))}


def test_both_languages_give_the_same_commands() -> None:
    assert commands(READMES[0]) == commands(READMES[1])
    assert len(commands(READMES[0])) > 15


@pytest.mark.parametrize("name", READMES)
def test_commands_are_well_formed(name: str) -> None:
    for block in blocks(text_of(name)):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), block


def test_make_knows_its_targets() -> None:
    targets = [line.split()[1] for line in commands(READMES[0]) if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", text_of("Makefile"), re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in commands(READMES[0]) if line.startswith("python ")])
def test_commands_name_options_that_there_are(line: str) -> None:
    words = shlex.split(line)
    options = {word for word in words[2:] if word.startswith("--")}
    assert options <= known_options((Path(words[1]).stem,))


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md", "docs/tasks.md"])
def test_options_in_the_text_are_known(name: str) -> None:
    code = re.findall(r"`([^`\n]*)`", without_blocks(text_of(name)))
    named = {option for text in code for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    strange = named - known_options(DOORS) - FOREIGN_OPTIONS
    assert strange == set()


def last_lines(text: str) -> list[str]:
    return [re.sub(r"^[-\d]+ [:,\d]+ ", "", line) for line in text.splitlines()[-5:]]


def test_the_five_lines_of_a_failed_training_are_those_that_come(tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data", 5, 0, 128)
    made = make_task(data, tmp_path / "task", "train")
    for annotation in (made.in_dir / "annotations").rglob("*.txt"):
        annotation.write_text(re.sub(r"^\d+,", "7,", annotation.read_text(), flags=re.MULTILINE))
    command = [sys.executable, "start.py", "--in", str(made.in_dir), "--out", str(made.out_dir)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed = last_lines(done.stdout.replace(str(made.in_dir), "/in"))
    assert done.returncode == 1
    for name in READMES:
        (shown,) = blocks(text_of(name), "text")
        assert last_lines(shown) == printed


@pytest.mark.parametrize("name", READMES)
def test_weights_that_are_fetched_at_once_are_those_whose_checksum_is_known(name: str) -> None:
    known = re.findall(r"^known='(\w+) [0-9a-f]{64}", text_of("ymir/docker/fetch_weights.sh"), re.MULTILINE)
    assert known == ["yolov5n"]
    assert set(re.findall(r"fetch_weights\.sh (\w+)", text_of(name))) == set(known)


@pytest.mark.parametrize("name", READMES)
def test_docker_lines_are_the_platforms_way(name: str) -> None:
    lines = [shlex.split(line) for line in commands(name) if line.startswith("docker ")]
    runs = [words for words in lines if words[1] == "run"]
    builds = [words for words in lines if words[1] == "build"]
    assert (len(runs), len(builds)) == (3, 4)
    for words in runs:
        assert {"--rm", "--network", "--user"} <= set(words)
        assert [word.rpartition(":/")[2] for word in words if word.startswith("$PWD")] == ["in:ro", "out"]
    for words in builds:
        recipe = words[words.index("-f") + 1]
        row = Path(recipe).name.partition(".")[0]
        assert words[words.index("-t") + 1] == f"your/ymir-executor:ymir2.0.0-{row}-yolov5-tmi"
        assert not any((ROOT / "ymir/docker").glob("*.dockerfile")) or (ROOT / recipe).is_file()


def tree_of(name: str) -> list[str]:
    """Give the files that the tree of /out names; a stage's, which is only there when asked for, is left out."""
    (tree,) = (block for block in blocks(text_of(name), "") if block.startswith("/out/"))
    folder, files = "", []
    for line in tree.splitlines()[1:]:
        match = re.match(r"(│   )?[├└]── (.*)", line)
        if match is None:
            continue
        entry = re.split(r"  +| (?=[^\x00-\x7f])", match[2])[0]
        if not match[1]:
            folder = ""
        if entry.endswith("/") or entry.startswith("tensorboard/"):
            folder = entry.partition("/")[0] + "/"
        elif not entry.startswith("epoch_N"):
            files += [folder + file for text in entry.split(", ") for file in expanded(text)]
    return files


def expanded(text: str) -> Iterator[str]:
    """{a,b}.c -> a.c, b.c"""
    match = re.search(r"\{(.*?)\}", text)
    if match is None:
        yield text
        return
    for part in match[1].split(","):
        yield text[: match.start()] + part + text[match.end() :]


def test_both_languages_draw_the_same_tree() -> None:
    files = tree_of(READMES[0])
    assert files == tree_of(READMES[1])
    assert {"train.tsv", "val.cache", "models/best.onnx", "models/result.yaml"} <= set(files)


def lay_out(folder: Path) -> None:
    """Put what the commands need into a folder: the project, and small things under the names of a user's."""
    for entry in (*ROOT.glob("*.py"), *(ROOT / room for room in ("data", "ymir"))):
        copy = shutil.copytree if entry.is_dir() else shutil.copy
        copy(entry, folder / entry.name)
    for room in ("formats", "mining", "models", "training", "utils"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    write_shapes(folder / "drawn", 5, 0, 128)
    for name in ("images", "labels", "data.yaml"):
        (folder / "drawn" / name).rename(folder / name)
    shutil.copytree(folder / "images/pool", folder / "pictures")
    narrow = yaml.safe_load((ROOT / "models/yolov5s.yaml").read_text()) | {"width_multiple": 0.03}
    (folder / "narrow.yaml").write_text(yaml.safe_dump(narrow))
    torch.manual_seed(0)
    spec = read_spec(folder / "narrow.yaml", len(NAMES))
    saved = SavedTraining(make_model(spec), None, tuple(NAMES), yaml_of(spec), -1, None, None, None, "", {})
    write_checkpoint(folder / "yolov5s.pt", saved)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")


@pytest.mark.slow
def test_commands_run_as_written_one_after_another(tmp_path: Path) -> None:
    lay_out(tmp_path)
    lines = [line for line in commands(READMES[0]) if not line.startswith(("make ", "docker ", "IMAGE="))]
    assert len(lines) >= 12
    script = "\n".join(["set -e", *(f"echo {shlex.quote('+ ' + line)}\n{line}" for line in lines)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash"],
        input=script,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]

    out = tmp_path / "run/train/out"
    assert [file for file in tree_of(READMES[0]) if not (out / file).is_file()] == []
    for file in ("results.csv", "results.png", "confusion_matrix.png", "train_batch0.jpg", "val_batch0_pred.jpg"):
        assert (out / "tensorboard" / file).is_file()
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    mined = (tmp_path / "run/mining/out/result.tsv").read_text().splitlines()
    assert sorted(Path(line.split("\t")[0]).name for line in mined) == pictures
    assert (tmp_path / "run/mining/out/mining_report.html").is_file()
    inferred = json.loads((tmp_path / "run/infer/out/infer-result.json").read_text())
    assert sorted(inferred["detection"]) == pictures
    for left in ("train/exp/weights/best.pt", "train/exp2/weights/best.pt", "val/exp", "detect/exp/labels"):
        assert (tmp_path / "runs" / left).exists(), left
    for suffix in (".onnx", ".torchscript", "_openvino_model/best.xml"):
        assert (out / f"models/best{suffix}").is_file()
