"""The container engine that tests of built images talk to, where one is up. Nothing is built here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

TAGS = tuple(os.environ.get("YMIR_IMAGES", "").split())  # which images are tried, such as "a/b:c d/e:f"
# As the platform's user; a tester who isn't root can give files to nobody but himself.
USER = (1000, 1000) if os.getuid() == 0 else (os.getuid(), os.getgid())
STRICT = ("--user", f"{USER[0]}:{USER[1]}", "--network", "none", "--read-only")
AS_THE_PLATFORM = (*STRICT, "--tmpfs", "/tmp")


def _environment() -> dict[str, str]:
    """Point `docker` at the engine of ../shared/tools/containers, if it is up, else leave it the machine's own."""
    state = Path(os.environ.get("CONTAINERS_STATE") or Path(tempfile.gettempdir()) / "ctr")
    socket = state / "engine.sock"
    return {**os.environ, "DOCKER_HOST": f"unix://{socket}"} if socket.exists() else dict(os.environ)


def docker(*arguments: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run docker, whatever its exit code."""
    return subprocess.run(
        ["docker", *arguments], env=_environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )


@lru_cache(maxsize=1)
def images() -> tuple[str, ...]:
    """Give those of TAGS that an engine has; none where there is no engine."""
    if shutil.which("docker") is None:
        return ()
    try:
        return tuple(tag for tag in TAGS if docker("image", "inspect", tag, timeout_s=20).returncode == 0)
    except subprocess.TimeoutExpired:
        return ()


def inspect(tag: str) -> dict[str, Any]:
    """Give what an image is configured as."""
    config: dict[str, Any] = json.loads(docker("image", "inspect", tag).stdout)[0]["Config"]
    return config


def run(tag: str, *command: str, options: Sequence[str] = AS_THE_PLATFORM) -> subprocess.CompletedProcess[str]:
    """Run a command in an image, by default as the platform's user, on a read-only root without a network."""
    return docker("run", "--rm", *options, tag, *command)


def run_task(
    tag: str, in_dir: Path, out_dir: Path, *options: str, tmp_dir: Optional[Path] = None
) -> subprocess.CompletedProcess[str]:
    """Run a task as the platform does, with the image's own command. tmp_dir: seen there as /tmp, to look at after."""
    for folder in filter(None, (out_dir, tmp_dir)):
        folder.mkdir(exist_ok=True)
        if os.getuid() == 0:
            os.chown(folder, *USER)
    temporary = ("-v", f"{tmp_dir}:/tmp") if tmp_dir else ("--tmpfs", "/tmp")
    volumes = ["-v", f"{in_dir}:/in:ro", "-v", f"{out_dir}:/out", "--shm-size", "1g"]
    return run(tag, options=[*STRICT, *temporary, *volumes, *options])
