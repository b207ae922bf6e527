"""The manifests of docs/scale.md: they parse, and their commands do what the page says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

import start
from make_task import TaskOptions, make_task

ROOT = Path(__file__).resolve().parent.parent
INDEX = "$(JOB_COMPLETION_INDEX)"  # Kubernetes replaces it


def jobs() -> list[dict[str, Any]]:
    page = (ROOT / "docs/scale.md").read_text()
    found = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert found
    return list(yaml.safe_load_all(found[1]))


def command(job: dict[str, Any]) -> list[str]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    words: list[str] = container["command"]
    assert words[:2] == ["python", "start.py"] and all(isinstance(word, str) for word in words)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {"/in", "/out", "/tmp"} and mounts["/in"]["readOnly"] is True
    volumes = {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == volumes
    return words[2:]


def test_the_jobs_mine_in_shards_and_merge(tmp_path: Path, coco_images: list[Path]) -> None:
    shards, merge = jobs()
    completions = shards["spec"]["completions"]
    assert shards["spec"]["completionMode"] == "Indexed"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in coco_images[:9]:
        shutil.copy(path, pictures / path.name)
    options = TaskOptions(class_names=("a",), settings={"mining_algorithm": "random"}, placing="copy")
    task = make_task(pictures, tmp_path / "task", "mining", options)
    places = ["--in", str(task.in_dir), "--out", str(tmp_path / "out")]
    for index in range(completions):
        words = [word.replace(INDEX, str(index)) for word in command(shards)]
        assert start.main([*words, *places]) == 0
    assert start.main([*command(merge), *places]) == 0
    assert len((tmp_path / "out/result.tsv").read_text().splitlines()) == 9
