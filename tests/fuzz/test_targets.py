"""Each fuzz target over its seeds, over mutations of them, and over every input that once crashed it."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuzz.targets import MAX_BYTES, TARGETS, check

FOUND = Path(__file__).resolve().parent.parent.parent / "fuzz/found"
MUTATIONS = 200
PATIENCE_S = 60  # twelve times the fuzzer's own: here others may hold the machine


@contextmanager
def patience(content: bytes) -> Iterator[None]:
    """End an endless loop as a failure instead of a run that never ends."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"took more than {PATIENCE_S} s: {content[:200]!r}")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(name: str, content: bytes, folder: Path) -> bool:
    with patience(content):
        try:
            return check(TARGETS[name], content, folder)
        except (Exception, SystemExit) as cause:
            raise AssertionError(f"{name}: {type(cause).__name__} for {content[:2000]!r}") from cause


def mutated(chance: random.Random, seeds: list[bytes], tokens: tuple[bytes, ...]) -> bytes:
    """A seed with one to six changes of a few bytes."""
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 6)):
        at, length = chance.randint(0, len(content)), chance.choice((0, 1, 1, 2, 4, 30))
        other = chance.choice(seeds)
        start = chance.randint(0, len(other))
        content[at : at + length] = chance.choice(
            (
                chance.randbytes(length),
                chance.choice(tokens) if tokens else b"\xff" * length,
                other[start : start + 30],
                bytes(content[at : at + length]) * chance.choice((0, 2, 100)),
            )
        )
    return bytes(content[:MAX_BYTES])


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken_or_refused(name: str, tmp_path: Path) -> None:
    taken = [run(name, seed, tmp_path) for seed in TARGETS[name].seeds()]
    assert any(taken), "no seed is honest, so fuzzing would see refusals alone"


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_are_taken_or_refused(name: str, tmp_path: Path) -> None:
    chance = random.Random(name)
    seeds = TARGETS[name].seeds()
    for _ in range(MUTATIONS):
        run(name, mutated(chance, seeds, TARGETS[name].tokens), tmp_path)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_crashed_does_so_no_more(path: Path, tmp_path: Path) -> None:
    run(path.parent.name, path.read_bytes(), tmp_path)
