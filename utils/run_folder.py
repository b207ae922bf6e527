"""Run folders: where a command line's results go, runs/val/exp, exp2, exp3, ..."""

from __future__ import annotations

from pathlib import Path

from utils.errors import ConfigError

MAX_RUNS = 10_000


def make_run_folder(project: Path, name: str, exist_ok: bool = False) -> Path:
    """Make the folder project/name, or, where that is there, the first free one of name2, name3, ...

    exist_ok: take project/name even if it is there. Raises ConfigError where no folder can be made.
    """
    try:
        for number in range(1, MAX_RUNS):
            folder = project / (name if number == 1 else f"{name}{number}")
            try:
                folder.mkdir(parents=True, exist_ok=exist_ok)
            except FileExistsError:
                if exist_ok:
                    raise
                continue
            return folder
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise ConfigError(f"--project {project} --name {name}: no folder can be made there ({reason})") from cause
    raise ConfigError(f"--name {name}: {project} has {MAX_RUNS} of them; give another --name or --exist-ok")
