"""Hostile checkpoints: one builder each, with what reading it must say. Made when a test runs, never committed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Attack:
    """content(command) gives the file's bytes; command is a shell command that must never run."""

    name: str
    content: Callable[[str], bytes]
    says: Optional[str]  # part of the WeightsError; None: the file reads, and the attack does nothing
    runs_in_pickle: bool = False  # Python's own pickle.loads of its data.pkl runs the command
