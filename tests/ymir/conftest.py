"""A task's /in and /out in a temporary folder, written as the platform writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

ENV: dict[str, Any] = {
    "task_id": "t000001",
    "protocol_version": "1.1.0",
    "run_training": False,
    "run_mining": False,
    "run_infer": True,
    "input": {
        "root_dir": "/in",
        "assets_dir": "/in/assets",
        "annotations_dir": "/in/annotations",
        "models_dir": "/in/models",
        "training_index_file": "",
        "val_index_file": "",
        "candidate_index_file": "/in/candidate-index.tsv",
        "config_file": "/in/config.yaml",
    },
    "output": {
        "root_dir": "/out",
        "models_dir": "/out/models",
        "tensorboard_dir": "/out/tensorboard",
        "training_result_file": "/out/models/result.yaml",
        "mining_result_file": "/out/result.tsv",
        "infer_result_file": "/out/infer-result.json",
        "monitor_file": "/out/monitor.txt",
        "executor_log_file": "/out/ymir-executor-out.log",
    },
}
CONFIG: dict[str, Any] = {"class_names": ["cat", "dog"], "gpu_id": "", "object_type": 2}


class Task:
    """The folders of one task."""

    def __init__(self, root: Path) -> None:
        self.in_dir, self.out_dir = root / "in", root / "out"
        for folder in ("assets", "annotations", "models"):
            (self.in_dir / folder).mkdir(parents=True)
        self.out_dir.mkdir()

    def write(self, env: Any = None, config: Any = None) -> Task:
        """Write env.yaml (changes to a usual one, or text) and config.yaml (keys to add, or text)."""
        if not isinstance(env, str):
            env = yaml.safe_dump({**ENV, **(env or {})})
        if not isinstance(config, str):
            config = yaml.safe_dump({**CONFIG, **(config or {})})
        (self.in_dir / "env.yaml").write_text(env)
        (self.in_dir / "config.yaml").write_text(config)
        return self

    def index(self, content: bytes, name: str = "candidate-index.tsv") -> Task:
        """Write an index file."""
        (self.in_dir / name).write_bytes(content)
        return self


@pytest.fixture
def task_dirs(tmp_path: Path) -> Task:
    """An empty task."""
    return Task(tmp_path)


@pytest.fixture
def write_task(task_dirs: Task) -> Callable[..., Task]:
    """write_task(env=..., config=...) fills the task's /in."""
    return task_dirs.write
