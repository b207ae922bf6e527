"""The Dockerfiles and .dockerignore, read as Docker reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.conftest import ROOT

FOLDER = ROOT / "ymir/docker"
RECIPES = sorted(FOLDER.glob("*.dockerfile"))
LOCKS = FOLDER / "locks"


def instructions(recipe: Path) -> list[tuple[str, str]]:
    """Give a recipe's instructions: (COPY, "a b"), continued lines joined, comments left out."""
    lines = [line for line in recipe.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    split = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest.strip()) for name, _, rest in split]


def context(root: Path) -> list[str]:
    """Give the files below a folder that get into a build, as .dockerignore says: the last line that matches counts."""
    rules = [line.strip() for line in (root / ".dockerignore").read_text().splitlines()]
    patterns = [(not rule.startswith("!"), _pattern(rule.lstrip("!"))) for rule in rules if rule and rule[0] != "#"]
    kept = []
    for folder, folders, files in os.walk(root):
        if folder == str(root):
            folders[:] = [name for name in folders if name not in (".venv", ".venv39", ".git", ".peer")]
        for file in files:
            name = str((Path(folder) / file).relative_to(root))
            ignored = False
            for ignores, pattern in patterns:
                if pattern.match(name):
                    ignored = ignores
            if not ignored:
                kept.append(name)
    return sorted(kept)


def _pattern(rule: str) -> re.Pattern[str]:
    """Read a line of .dockerignore: it matches a path or a folder around it."""
    text = re.escape(rule).replace(r"\*\*/", "(.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    return re.compile(rf"{text}(/.*)?\Z")
